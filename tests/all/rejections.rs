//! How rejected tokens are handled (contract §3), end to end without a socket.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use crate::support::{
    Api, Issuer, ORIGIN, Turn, answer, error_of, outcome_of, pair, settle, unavailable, url,
};
use futures_util::FutureExt as _;
use reqwest_middleware::{ClientBuilder, ClientWithMiddleware};
use reqwest_reauth::{
    ClientBuilderExt, Error, ErrorKind, NotReplayed, OnRefreshFailure, Session, SessionBuilder,
    SessionState, Tokens,
};
use reqwest_retry::{RetryTransientMiddleware, policies::ExponentialBackoff};
use tokio::time::Instant;

const SECOND: Duration = Duration::from_secs(1);

fn builder(issuer: &Issuer) -> SessionBuilder {
    Session::builder(pair("t0", "r0")).origin(ORIGIN).refresher(issuer.clone())
}

/// Responds to the first token like this, and accepts every other token.
fn refusing(answering: impl Fn() -> http::response::Builder + Send + Sync + 'static) -> Api {
    Api::new(move |seen| {
        let answer = if seen.token() == Some("t0") { answering() } else { answer(200) };
        async move { answer }
    })
}

#[tokio::test(start_paused = true)]
async fn which_responses_refresh_the_token() {
    type Headers = &'static [(&'static str, &'static str)];
    const CHALLENGE: &str = "www-authenticate";
    const TABLE: &[(u16, Headers, bool)] = &[
        (401, &[], true),
        (401, &[(CHALLENGE, "Bearer")], true),
        (401, &[(CHALLENGE, "Basic realm=\"x\""), (CHALLENGE, "Bearer")], true),
        (401, &[(CHALLENGE, "Basic realm=\"x\"")], false),
        (401, &[(CHALLENGE, "Bearer error=\"insufficient_scope\"")], false),
        (401, &[(CHALLENGE, "Bearer error=\"insufficient_user_authentication\"")], false),
        (401, &[(CHALLENGE, "Bearer error=\"insufficient_claims\"")], false),
        (401, &[(CHALLENGE, "Basic"), ("refreshed-api-token", "c1")], true),
        (403, &[], false),
        (403, &[(CHALLENGE, "Bearer error=\"invalid_token\"")], true),
        (403, &[("refreshed-api-token", "c1")], true),
        (407, &[(CHALLENGE, "Bearer error=\"invalid_token\"")], false),
        (421, &[], false),
        (425, &[], false),
        (419, &[], false),
    ];
    for (status, headers, refused) in TABLE {
        let issuer = Issuer::new([]);
        let session = builder(&issuer).build().unwrap();
        let (status, headers) = (*status, *headers);
        let api = refusing(move || {
            headers
                .iter()
                .fold(answer(status), |answer, (name, value)| answer.header(*name, *value))
        });
        let response = api.client(&session).get(url("/")).send().await.unwrap();
        let expected = if *refused { 200 } else { status };
        assert_eq!(response.status().as_u16(), expected, "{status} {headers:?}");
        assert_eq!(outcome_of(&response).replayed, *refused, "{status} {headers:?}");
        let captured = headers.iter().any(|(name, _)| *name == "refreshed-api-token");
        assert_eq!(issuer.calls(), usize::from(*refused && !captured), "{status} {headers:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_bare_403_rejects_a_token_that_ended() {
    let issuer = Issuer::new([]);
    let tokens = pair("t0", "r0").with_expires_in(10 * SECOND);
    let session = Session::builder(tokens)
        .origin(ORIGIN)
        .refresher(issuer.clone())
        .refresh_ahead(Duration::ZERO)
        .build()
        .unwrap();
    let api = Api::new(|seen| async move {
        if seen.token() == Some("t0") {
            tokio::time::sleep(11 * SECOND).await;
            return answer(403);
        }
        answer(200)
    });
    assert_eq!(api.client(&session).get(url("/")).send().await.unwrap().status(), 200);
    assert_eq!(issuer.calls(), 1);
    assert_eq!(api.tokens_seen(), vec!["t0".to_owned(), "t1".to_owned()]);
}

#[tokio::test(start_paused = true)]
async fn rejected_if_is_handed_the_verdict() {
    let issuer = Issuer::new([]);
    let verdicts = Arc::new(Mutex::new(Vec::new()));
    let rule = {
        let verdicts = Arc::clone(&verdicts);
        move |response: &reqwest::Response, verdict: reqwest_reauth::Verdict| {
            verdicts.lock().unwrap().push((
                response.status().as_u16(),
                verdict.rejected,
                verdict.token_expired,
            ));
            response.status() == 419
        }
    };
    let session = builder(&issuer).rejected_if(rule).build().unwrap();
    let response = refusing(|| answer(419)).client(&session).get(url("/")).send().await.unwrap();
    assert!(response.status() == 200 && outcome_of(&response).replayed);
    assert_eq!(*verdicts.lock().unwrap(), [(419, false, false), (200, false, false)]);

    verdicts.lock().unwrap().clear();
    let api = Api::accepting(|_| false);
    assert_eq!(api.client(&session).get(url("/")).send().await.unwrap().status(), 401);
    assert_eq!(&*verdicts.lock().unwrap(), &vec![(401, true, false)]);
    assert_eq!(api.seen().len(), 1);
    assert_eq!(issuer.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_late_rejection_needs_no_call() {
    let issuer = Issuer::new([]);
    let session = builder(&issuer).build().unwrap();
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let api = Api::new({
        let gate = Arc::clone(&gate);
        move |seen| {
            let gate = Arc::clone(&gate);
            async move {
                if seen.token() != Some("t0") {
                    return answer(200);
                }
                gate.acquire().await.unwrap().forget();
                answer(401)
            }
        }
    });
    let client = api.client(&session);
    let requests: Vec<_> = (0..20).map(|_| tokio::spawn(client.get(url("/")).send())).collect();
    settle().await;
    session.refresh().await.unwrap();
    gate.add_permits(20);
    for request in requests {
        let response = request.await.unwrap().unwrap();
        assert!(
            response.status() == 200
                && outcome_of(&response).replayed
                && !outcome_of(&response).refreshed
        );
    }
    assert_eq!(issuer.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn no_refresher_no_refresh() {
    let session = Session::builder(pair("t0", "r0")).origin(ORIGIN).build().unwrap();
    let api = Api::accepting(|_| false);
    let response = api.client(&session).get(url("/")).send().await.unwrap();
    assert_eq!(response.status().as_u16(), 401);
    assert_eq!(api.seen().len(), 1);
    assert!(outcome_of(&response).refresh_error.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_token_on_probation_waits() {
    let issuer = Issuer::new([]);
    let session = builder(&issuer).build().unwrap();
    let refusing = Api::accepting(|_| false);
    let client = refusing.client(&session);
    let response = client.get(url("/")).send().await.unwrap();
    assert_eq!(response.status().as_u16(), 401);
    assert_eq!(issuer.calls(), 1);
    assert_eq!(outcome_of(&response).not_replayed, Some(NotReplayed::AlreadyReplayed));
    assert_eq!(client.get(url("/")).send().await.unwrap().status(), 401);
    assert_eq!(issuer.calls(), 1);
    assert_eq!(session.state(), SessionState::Active);

    // Whatever another URL accepts.
    let other = Api::new(|_| async { answer(404) });
    other.client(&session).get(url("/")).send().await.unwrap();
    client.get(url("/")).send().await.unwrap();
    assert_eq!(issuer.calls(), 1);

    tokio::time::advance(10 * SECOND).await;
    client.get(url("/")).send().await.unwrap();
    assert_eq!(issuer.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_stored_token_is_not_on_probation() {
    let issuer = Issuer::new([]);
    let store = crate::support::store::FakeStore::holding(pair("s", "rs"));
    let session = builder(&issuer).store(store).build().unwrap();
    let api = Api::accepting(|token| token == "t1");
    let client = api.client(&session);
    assert_eq!(client.get(url("/")).send().await.unwrap().status(), 401);
    assert_eq!(client.get(url("/")).send().await.unwrap().status(), 200);
    assert_eq!(api.tokens_seen(), ["t0", "s", "s", "t1"].map(str::to_owned).to_vec());
    assert_eq!(issuer.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_timed_out_wait_leaves_the_refresh() {
    for choice in [OnRefreshFailure::ReturnError, OnRefreshFailure::ReturnResponse] {
        for answered in [false, true] {
            let issuer = Issuer::new([Turn::Issue(20 * SECOND, None)]);
            let mut tokens = pair("t0", "r0");
            if !answered {
                tokens = tokens.with_expires_in(Duration::ZERO);
            }
            let session = Session::builder(tokens)
                .origin(ORIGIN)
                .refresher(issuer.clone())
                .on_refresh_failure(choice);
            let session = session.build().unwrap();
            let api = Api::accepting(|token| token == "t1");
            let client = api.client(&session);
            let begun = Instant::now();
            let result = client.get(url("/")).timeout(3 * SECOND).send().await;
            assert_eq!(begun.elapsed(), 3 * SECOND);
            let error = match result {
                Ok(response) => {
                    assert!(answered && choice == OnRefreshFailure::ReturnResponse);
                    assert_eq!(response.status(), 401);
                    outcome_of(&response).refresh_error.unwrap()
                }
                Err(error) => Error::find_in(&error).unwrap().clone(),
            };
            assert_eq!(error.kind(), ErrorKind::TimedOut);
            assert_eq!(error.api_status().map(|status| status.as_u16()), answered.then_some(401));
            assert_eq!(client.get(url("/")).send().await.unwrap().status(), 200);
            assert_eq!(issuer.calls(), 1);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_rejected_token_is_never_sent_again() {
    for choice in [OnRefreshFailure::ReturnError, OnRefreshFailure::ReturnResponse] {
        let issuer = Issuer::new([Turn::Fail(SECOND, unavailable())]);
        let session = builder(&issuer).on_refresh_failure(choice).build().unwrap();
        let api = refusing(|| answer(401).header("x-says", "no"));
        let error = match api.client(&session).get(url("/")).send().await {
            Ok(response) => {
                assert_eq!(response.status().as_u16(), 401);
                assert_eq!(response.headers()["x-says"], "no");
                outcome_of(&response).refresh_error.unwrap()
            }
            Err(error) => Error::find_in(&error).unwrap().clone(),
        };
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert_eq!(error.status().unwrap().as_u16(), 502);
        assert_eq!(error.api_status().unwrap().as_u16(), 401);
        assert_eq!(api.seen().len(), 1);
    }
}

fn under_retry(api: &Api, session: &Session) -> ClientWithMiddleware {
    let policy = ExponentialBackoff::builder().build_with_max_retries(3);
    let client = ClientBuilder::new(reqwest::Client::new())
        .with(RetryTransientMiddleware::new_with_policy(policy));
    client.with_session(session.clone()).with(api.clone()).build()
}

#[tokio::test(start_paused = true)]
async fn an_outer_retry_shares_one_budget() {
    let issuer = Issuer::new([]);
    let session = builder(&issuer).build().unwrap();
    // 401, replayed: 503, retried: the new token is rejected too.
    let count = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let api = Api::new(move |_| {
        let status =
            [401, 503, 401, 503][count.fetch_add(1, std::sync::atomic::Ordering::SeqCst).min(3)];
        async move { answer(status) }
    });
    let response = under_retry(&api, &session).get(url("/")).send().await.unwrap();
    assert_eq!(response.status().as_u16(), 401);
    assert_eq!(issuer.calls(), 1);
    assert_eq!(outcome_of(&response).not_replayed, Some(NotReplayed::AlreadyReplayed));
    assert_eq!(api.tokens_seen(), ["t0", "t1", "t1"]);
}

#[tokio::test(start_paused = true)]
async fn an_outer_retry_refreshes_expiry_once() {
    let short = Some(Duration::from_millis(1));
    let issuer =
        Issuer::new([Turn::Issue(Duration::ZERO, short), Turn::Issue(Duration::ZERO, short)]);
    let tokens = pair("t0", "r0").with_expires_in(Duration::ZERO);
    let session = Session::builder(tokens)
        .origin(ORIGIN)
        .refresher(issuer.clone())
        .cooldown(Duration::ZERO)
        .build()
        .unwrap();
    let api = Api::new({
        let count = std::sync::atomic::AtomicUsize::new(0);
        move |_| {
            let first = count.fetch_add(1, std::sync::atomic::Ordering::SeqCst) == 0;
            async move {
                // Longer than the token lives.
                tokio::time::sleep(SECOND).await;
                answer(if first { 503 } else { 200 })
            }
        }
    });
    assert_eq!(under_retry(&api, &session).get(url("/")).send().await.unwrap().status(), 200);
    assert_eq!(issuer.calls(), 1);
    assert_eq!(api.tokens_seen(), vec!["t1".to_owned(), "t1".to_owned()]);
}

#[tokio::test(start_paused = true)]
async fn a_refresh_before_sending_is_the_only_one() {
    let issuer = Issuer::new([]);
    let tokens = pair("t0", "r0").with_expires_in(Duration::ZERO);
    let session = Session::builder(tokens)
        .origin(ORIGIN)
        .refresher(issuer.clone())
        .cooldown(Duration::ZERO)
        .build()
        .unwrap();
    let api = Api::accepting(|_| false);
    let response = api.client(&session).get(url("/")).send().await.unwrap();
    assert_eq!(response.status().as_u16(), 401);
    assert_eq!(issuer.calls(), 1);
    assert_eq!(api.tokens_seen(), vec!["t1".to_owned()]);
}

#[tokio::test(start_paused = true)]
async fn a_failed_background_refresh_costs_nothing() {
    let issuer = Issuer::new([Turn::Fail(Duration::ZERO, unavailable())]);
    let tokens = pair("t0", "r0").with_expires_in(100 * SECOND);
    let session = Session::builder(tokens)
        .origin(ORIGIN)
        .refresher(issuer.clone())
        .cooldown(Duration::ZERO)
        .build()
        .unwrap();
    tokio::time::advance(99 * SECOND).await;
    // It responds after that refresh has failed and the cool-down is over.
    let api = Api::new(|_| async {
        settle().await;
        answer(401)
    });
    let response = api.client(&session).get(url("/")).send().await.unwrap();
    assert_eq!(response.status().as_u16(), 401);
    assert_eq!(issuer.calls(), 2);
    assert_eq!(api.tokens_seen(), vec!["t0".to_owned(), "t2".to_owned()]);
}

#[tokio::test(start_paused = true)]
async fn find_in_sees_through_an_outer_retry() {
    let issuer = Issuer::new([Turn::Fail(SECOND, unavailable())]);
    let session = builder(&issuer).build().unwrap();
    let api = Api::accepting(|_| false);
    let error = error_of(under_retry(&api, &session).get(url("/")).send().await);
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert_eq!(error.api_status().unwrap().as_u16(), 401);
    assert_eq!(api.seen().len(), 1);
    assert_eq!(issuer.calls(), 1);
}

/// Rejects `t0` once this login has replaced it, and accepts only `t1`.
fn refusing_after(session: &Session, login: Tokens) -> Api {
    let session = session.clone();
    Api::new(move |seen| {
        let (session, login) = (session.clone(), login.clone());
        async move {
            if seen.token() == Some("t0") {
                session.replace_tokens(login).await.unwrap();
            }
            answer(if seen.token() == Some("t1") { 200 } else { 401 })
        }
    })
}

#[tokio::test(start_paused = true)]
async fn a_login_with_a_dead_token_is_renewed() {
    let without = Tokens::from_refresh_token("rn").unwrap();
    let with_one_that_has_run_out = pair("short", "rn").with_expires_in(Duration::ZERO);
    for login in [without, with_one_that_has_run_out] {
        let issuer = Issuer::new([]);
        let session = builder(&issuer).build().unwrap();
        let api = refusing_after(&session, login);
        assert_eq!(api.client(&session).get(url("/")).send().await.unwrap().status(), 200);
        assert_eq!(issuer.asked(), vec![Some("rn".to_owned())]);
        assert_eq!(api.tokens_seen(), vec!["t0".to_owned(), "t1".to_owned()]);
    }
}

/// The API rejects `t0` after its successor has expired and could not be refreshed.
fn refuses_late(session: &Session) -> Api {
    let session = session.clone();
    Api::new(move |_| {
        let session = session.clone();
        async move {
            session
                .replace_tokens(pair("short", "rs").with_expires_in(Duration::ZERO))
                .await
                .unwrap();
            session.refresh().await.unwrap_err();
            answer(401)
        }
    })
}

#[tokio::test(start_paused = true)]
async fn no_token_for_the_replay_names_the_status() {
    for choice in [OnRefreshFailure::ReturnError, OnRefreshFailure::ReturnResponse] {
        let issuer = Issuer::new([Turn::Fail(Duration::ZERO, unavailable())]);
        let session = builder(&issuer).on_refresh_failure(choice).build().unwrap();
        let api = refuses_late(&session);
        let answer = api.client(&session).get(url("/")).send().await;
        let error = match choice {
            OnRefreshFailure::ReturnResponse => {
                let answer = answer.unwrap();
                assert_eq!(answer.status(), 401);
                outcome_of(&answer).refresh_error.unwrap()
            }
            _ => error_of(answer),
        };
        assert_eq!(error.kind(), ErrorKind::CoolingDown);
        assert_eq!(error.api_status().map(|status| status.as_u16()), Some(401));
        assert_eq!(issuer.calls(), 1);
        assert_eq!(api.tokens_seen(), vec!["t0".to_owned()]);
    }
}

#[tokio::test(start_paused = true)]
async fn closed_before_the_replay_names_the_status() {
    let issuer = Issuer::new([]);
    let to_close = Arc::new(Mutex::new(None::<Session>));
    let session = builder(&issuer).replay_if({
        let to_close = Arc::clone(&to_close);
        move |_| {
            let session = to_close.lock().unwrap().take().unwrap();
            // Its first step closes it.
            let _ = session.close().now_or_never();
            true
        }
    });
    let session = session.build().unwrap();
    *to_close.lock().unwrap() = Some(session.clone());
    let api = Api::accepting(|token| token != "t0");
    let error = error_of(api.client(&session).get(url("/")).send().await);
    assert_eq!(error.kind(), ErrorKind::Closed);
    assert_eq!(error.api_status().map(|status| status.as_u16()), Some(401));
    assert_eq!(api.tokens_seen(), ["t0"]);
}

#[tokio::test(start_paused = true)]
async fn a_login_without_an_access_token_is_renewed() {
    let issuer = Issuer::new([Turn::Hang]);
    let tokens = pair("t0", "r0").with_expires_in(Duration::ZERO);
    let session =
        Session::builder(tokens).origin(ORIGIN).refresher(issuer.clone()).build().unwrap();
    let api = Api::accepting(|_| true);
    let request = tokio::spawn(api.client(&session).get(url("/")).send());
    issuer.until_called(1).await;
    session.replace_tokens(Tokens::from_refresh_token("rn").unwrap()).await.unwrap();
    assert_eq!(request.await.unwrap().unwrap().status(), 200);
    assert_eq!(issuer.asked(), vec![Some("r0".to_owned()), Some("rn".to_owned())]);
    assert_eq!(api.tokens_seen(), vec!["t2".to_owned()]);
}
