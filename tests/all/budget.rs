//! What one logical request may cause under an outer retry (contract 1.3, 3.6, 5.8).

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use crate::support::{
    Api, Issuer, ORIGIN, Turn, answer, error_of, never_asked, outcome_of, pair, unavailable, url,
};
use reqwest_middleware::{ClientBuilder, ClientWithMiddleware};
use reqwest_reauth::{
    ClientBuilderExt, Error, ErrorKind, Event, NotReplayed, Session, SessionBuilder, SessionState,
};
use reqwest_retry::{
    DefaultRetryableStrategy, RetryTransientMiddleware, Retryable, RetryableStrategy,
    policies::ExponentialBackoff,
};
use tokio::{
    sync::Notify,
    time::{advance, sleep},
};

const SECOND: Duration = Duration::from_secs(1);

fn session(issuer: &Issuer) -> Session {
    Session::builder(pair("a", "r0")).origin(ORIGIN).refresher(issuer.clone()).build().unwrap()
}

/// Repeats whatever the default strategy repeats, and this crate's transient errors.
struct Transient;

impl RetryableStrategy for Transient {
    fn handle(&self, result: &reqwest_middleware::Result<reqwest::Response>) -> Option<Retryable> {
        match result {
            Err(error) if Error::find_in(error).is_some_and(Error::is_transient) => {
                Some(Retryable::Transient)
            }
            other => DefaultRetryableStrategy.handle(other),
        }
    }
}

fn retrying(api: &Api, session: &Session) -> ClientWithMiddleware {
    let policy = ExponentialBackoff::builder()
        .retry_bounds(SECOND, 1800 * SECOND)
        .jitter(reqwest_retry::Jitter::None)
        .build_with_max_retries(10);
    let retry = RetryTransientMiddleware::new_with_policy_and_strategy(policy, Transient);
    ClientBuilder::new(never_asked())
        .with(retry)
        .with_session(session.clone())
        .with(api.clone())
        .build()
}

#[tokio::test(start_paused = true)]
async fn a_rejected_token_is_not_sent_again() {
    let issuer = Issuer::new([Turn::Fail(Duration::ZERO, unavailable())]);
    let api = Api::accepting(|token| token != "a");
    let session = session(&issuer);
    let response = retrying(&api, &session).get(url("/")).send().await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(api.tokens_seen(), ["a", "t2"]);
    assert_eq!(issuer.calls(), 2);
}

/// The API and the token endpoint are down for 400 s.
async fn outage(life: u32) -> (Vec<String>, usize, u16) {
    let is_up = Arc::new(AtomicBool::new(false));
    let failures = (0..200).map(|_| Turn::Fail(Duration::ZERO, unavailable()));
    let issuer = Issuer::new(failures);
    let up = Arc::clone(&is_up);
    let api = Api::new(move |seen| {
        let status = match (up.load(Ordering::SeqCst), seen.token()) {
            (false, _) => 503,
            (true, Some("a")) => 401,
            (true, _) => 200,
        };
        async move { answer(status) }
    });
    let tokens = pair("a", "r0").with_expires_in(life * SECOND);
    let session =
        Session::builder(tokens).origin(ORIGIN).refresher(issuer.clone()).build().unwrap();
    let request = tokio::spawn(retrying(&api, &session).get(url("/")).send());
    sleep(400 * SECOND).await;
    is_up.store(true, Ordering::SeqCst);
    issuer.recover();
    let before = issuer.calls();
    let response = request.await.unwrap().unwrap();
    (api.tokens_seen(), issuer.calls() - before, response.status().as_u16())
}

#[tokio::test(start_paused = true)]
async fn an_outage_ends_with_one_refresh() {
    for life in [60, 200] {
        let (sent, calls, status) = outage(life).await;
        assert_eq!(status, 200, "{life}");
        assert_eq!(calls, 1, "{life}");
        let expired = sent.iter().filter(|token| *token == "a").count();
        // At 0, 1, 3, 7, 15, 31 s; and at 63 and 127 s, while it lasts.
        assert_eq!(expired, if life == 60 { 6 } else { 8 }, "{life}: {sent:?}");
        assert_eq!(sent.len(), expired + 1, "{life}: {sent:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_unsent_attempt_keeps_the_rejection() {
    let failures = (0..50).map(|_| Turn::Fail(Duration::ZERO, unavailable()));
    let issuer = Issuer::new(failures);
    let api = Api::accepting(|_| false);
    let session = session(&issuer);
    let error = error_of(retrying(&api, &session).get(url("/")).send().await);
    assert_eq!(error.api_status().map(|status| status.as_u16()), Some(401));
    assert_eq!(api.tokens_seen(), ["a"]);
}

#[tokio::test(start_paused = true)]
async fn a_joined_refresh_spends_no_budget() {
    let dead = Duration::from_secs(1);
    let issuer = Issuer::new([Turn::Fail(dead, unavailable())]);
    let api = Api::accepting(|token| token != "a");
    let session = session(&issuer);
    let first = tokio::spawn({
        let session = session.clone();
        async move { session.refresh().await }
    });
    issuer.until_called(1).await;
    let response = retrying(&api, &session).get(url("/")).send().await.unwrap();
    assert_eq!(first.await.unwrap().unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(response.status(), 200);
    assert_eq!(api.tokens_seen(), ["a", "t2"]);
}

#[tokio::test(start_paused = true)]
async fn a_spent_budget_is_reported() {
    let issuer = Issuer::new([]);
    // The token endpoint issues tokens that the API rejects too.
    let api = Api::accepting(|_| false);
    let session = session(&issuer);
    let response = api.client(&session).get(url("/")).send().await.unwrap();
    assert_eq!(response.status(), 401);
    assert_eq!(outcome_of(&response).not_replayed, Some(NotReplayed::AlreadyReplayed));
    assert_eq!(issuer.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_url_that_always_rejects_renews_once() {
    let issuer = Issuer::new([]);
    let api =
        Api::new(|seen| async move { answer(if seen.url.ends_with("bad") { 401 } else { 200 }) });
    let session = session(&issuer);
    let client = api.client(&session);
    for _ in 0..5 {
        assert_eq!(client.get(url("/bad")).send().await.unwrap().status(), 401);
        // Another URL accepts the issued token.
        assert_eq!(client.get(url("/good")).send().await.unwrap().status(), 200);
        sleep(SECOND).await;
    }
    assert_eq!(issuer.calls(), 1);
    // Counted from the replay, 10 s.
    sleep(6 * SECOND).await;
    client.get(url("/bad")).send().await.unwrap();
    assert_eq!(issuer.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_server_error_accepts_no_token() {
    for status in [500, 503, 408, 429] {
        let issuer = Issuer::new([]);
        let asked = Arc::new(AtomicUsize::new(0));
        let api = Api::new(move |seen| {
            // `t1` fails first, and is rejected then.
            let first = asked.fetch_add(1, Ordering::SeqCst) == 0;
            let status = match seen.token() {
                Some("t1") if first => status,
                _ => 401,
            };
            async move { answer(status) }
        });
        let session = session(&issuer);
        session.refresh().await.unwrap();
        let client = api.client(&session);
        assert_eq!(client.get(url("/")).send().await.unwrap().status(), status);
        assert_eq!(client.get(url("/")).send().await.unwrap().status(), 401);
        assert_eq!(issuer.calls(), 1, "{status}");
    }
}

/// The seconds between the calls of a session that is asked every second.
async fn pauses(kind: ErrorKind, seconds: u64) -> Vec<u64> {
    let failures = (0..100).map(|_| Turn::Fail(Duration::ZERO, Error::new(kind, "scripted")));
    let issuer = Issuer::new(failures);
    let api = Api::accepting(|_| false);
    let session = session(&issuer);
    let (mut pauses, mut since, mut calls) = (Vec::new(), 0, 0);
    for _ in 0..seconds {
        api.client(&session).get(url("/")).send().await.unwrap_err();
        if issuer.calls() > calls {
            calls = issuer.calls();
            pauses.push(std::mem::take(&mut since));
        }
        since += 1;
        sleep(SECOND).await;
    }
    pauses
}

#[tokio::test(start_paused = true)]
async fn cool_downs_of_misconfiguration_double() {
    for kind in [ErrorKind::ClientRejected, ErrorKind::BadResponse] {
        assert_eq!(pauses(kind, 1300).await, [0, 10, 20, 40, 80, 160, 300, 300, 300], "{kind:?}");
    }
    assert_eq!(pauses(ErrorKind::Unavailable, 50).await, [0, 10, 10, 10, 10]);
}

#[tokio::test(start_paused = true)]
async fn what_resets_the_doubling() {
    let rejected = || Turn::Fail(Duration::ZERO, Error::new(ErrorKind::ClientRejected, "scripted"));
    let script = [rejected(), rejected(), rejected(), rejected(), rejected()];
    let issuer = Issuer::new(script);
    let api = Api::accepting(|token| token.starts_with('t'));
    let session = session(&issuer);
    let client = api.client(&session);
    client.get(url("/")).send().await.unwrap_err();
    sleep(10 * SECOND).await;
    client.get(url("/")).send().await.unwrap_err();
    // `refresh()` counts from one again.
    session.refresh().await.unwrap_err();
    sleep(10 * SECOND).await;
    client.get(url("/")).send().await.unwrap_err();
    assert_eq!(issuer.calls(), 4);
    // A new login as well.
    session.replace_tokens(pair("b", "r1")).await.unwrap();
    client.get(url("/")).send().await.unwrap_err();
    assert_eq!(issuer.calls(), 5);
    sleep(10 * SECOND).await;
    assert_eq!(client.get(url("/")).send().await.unwrap().status(), 200);
}

#[tokio::test(start_paused = true)]
async fn a_refresh_of_its_own_is_needed_for_a_pause() {
    // A rejection long after the token was issued renews it.
    let issuer = Issuer::new([]);
    let session = session(&issuer);
    session.refresh().await.unwrap();
    sleep(11 * SECOND).await;
    let api = Api::accepting(|token| token == "t2");
    assert_eq!(api.client(&session).get(url("/")).send().await.unwrap().status(), 200);
    assert_eq!(issuer.calls(), 2);
}

// ---- refreshes in the background

/// A session without a cool-down whose token ends in 50 s.
async fn due(issuer: &Issuer, change: impl FnOnce(SessionBuilder) -> SessionBuilder) -> Session {
    let tokens = pair("a", "r0").with_expires_in(1000 * SECOND);
    let session = Session::builder(tokens).origin(ORIGIN).refresher(issuer.clone());
    let session = change(session.cooldown(Duration::ZERO)).build().unwrap();
    advance(950 * SECOND).await;
    session
}

/// Fails five times, and then works.
fn down_at_first() -> Api {
    let asked = AtomicUsize::new(0);
    Api::new(move |_| {
        let first = asked.fetch_add(1, Ordering::SeqCst) < 5;
        async move { answer(if first { 503 } else { 200 }) }
    })
}

#[tokio::test(start_paused = true)]
async fn attempts_share_one_background_refresh() {
    // Each token is due before the third attempt, and has expired before the fourth.
    let issuer = Issuer::new((0..9).map(|_| Turn::Issue(Duration::ZERO, Some(3 * SECOND))));
    let api = down_at_first();
    let session = due(&issuer, |session| session).await;
    let response = retrying(&api, &session).get(url("/")).send().await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(api.tokens_seen()[1..], ["t1", "t1", "t1", "t1", "t1"]);
    assert_eq!(issuer.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_failed_background_refresh_is_repeated() {
    let fails = || Turn::Fail(Duration::ZERO, unavailable());
    let script = [fails(), fails(), Turn::Issue(Duration::ZERO, Some(3 * SECOND))];
    let issuer = Issuer::new(script);
    let api = down_at_first();
    let session = due(&issuer, |session| session).await;
    let response = retrying(&api, &session).get(url("/")).send().await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(api.tokens_seen()[3..], ["t3", "t3", "t3"]);
    assert_eq!(issuer.calls(), 3);
}

/// A listener that takes its time does not hide how the refresh has ended.
#[tokio::test(start_paused = true)]
async fn an_end_that_is_being_told_counts() {
    let elsewhere =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let failure = Error::new(ErrorKind::ClientRejected, "scripted");
    let issuer = Issuer::new([Turn::Fail(Duration::ZERO, failure)]);
    let told = Arc::new(Notify::new());
    let (go_on, may_go_on) = std::sync::mpsc::channel::<()>();
    let may_go_on = Mutex::new(may_go_on);
    let listener = {
        let told = Arc::clone(&told);
        move |event: &Event| {
            if let Event::RefreshFailed { .. } = event {
                told.notify_one();
                let _ = may_go_on.lock().unwrap().recv();
            }
        }
    };
    let session =
        due(&issuer, |session| session.on_event(listener).runtime(elsewhere.handle().clone()))
            .await;
    let asked = Arc::new(AtomicUsize::new(0));
    let api = Api::new(move |_| {
        let (first, told) = (asked.fetch_add(1, Ordering::SeqCst) == 0, Arc::clone(&told));
        async move {
            if first {
                told.notified().await;
            }
            answer(if first { 503 } else { 200 })
        }
    });
    let policy = ExponentialBackoff::builder()
        .retry_bounds(Duration::ZERO, Duration::ZERO)
        .build_with_max_retries(1);
    let retry = RetryTransientMiddleware::new_with_policy_and_strategy(policy, Transient);
    let client = ClientBuilder::new(never_asked())
        .with(retry)
        .with_session(session.clone())
        .with(api.clone())
        .build();
    assert_eq!(client.get(url("/")).send().await.unwrap().status(), 200);
    // The first refresh has ended, and the second attempt has started no other.
    assert_ne!(session.state(), SessionState::Refreshing);
    drop(go_on);
    session.close().await.unwrap();
    elsewhere.shutdown_background();
    assert_eq!(issuer.calls(), 1);
}
