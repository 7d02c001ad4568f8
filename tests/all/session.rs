//! A session's lifecycle: its state, its subscribers, and `replace_tokens` or `clear` during a
//! refresh (contract §6).

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use crate::support::{
    Api, Events, Issuer, ORIGIN, Turn, answer, error_of, held, outcome_of, pair, settle,
    store::{Call, FakeStore, Fate},
    texts, unavailable, until, url,
};
use reqwest_reauth::{
    Error, ErrorKind, Event, OnRefreshFailure, RefreshContext, Refresher, Session, SessionBuilder,
    SessionState, Tokens,
};
use tokio::{
    task::JoinHandle,
    time::{Instant, advance},
};

const SECOND: Duration = Duration::from_secs(1);

fn builder(issuer: &Issuer) -> SessionBuilder {
    Session::builder(pair("t0", "r0")).origin(ORIGIN).refresher(issuer.clone())
}

fn session(issuer: &Issuer) -> Session {
    builder(issuer).build().unwrap()
}

fn refreshing(session: &Session) -> JoinHandle<Result<Tokens, Error>> {
    let session = session.clone();
    tokio::spawn(async move { session.refresh().await })
}

/// Records each state that a subscriber receives, until the session is closed.
fn record(session: &Session) -> JoinHandle<Vec<SessionState>> {
    let mut states = session.subscribe();
    tokio::spawn(async move {
        let mut told = vec![*states.borrow_and_update()];
        while told.last() != Some(&SessionState::Closed) && states.changed().await.is_ok() {
            told.push(*states.borrow_and_update());
        }
        told
    })
}

#[tokio::test(start_paused = true)]
async fn state_and_subscribers_agree_at_each_step() {
    use SessionState::{Active, Closed, CoolingDown, LoginRequired, Refreshing};
    let dead = reqwest_reauth::Error::new(ErrorKind::LoginRequired, "scripted");
    let issuer =
        Issuer::new([Turn::Fail(SECOND, unavailable()), Turn::Fail(SECOND, dead), Turn::Gated]);
    let session = session(&issuer);
    let told = record(&session);
    settle().await;
    session.refresh().await.unwrap_err();
    assert_eq!(session.state(), CoolingDown);
    tokio::time::sleep(10 * SECOND).await;
    assert_eq!(session.state(), Active);
    settle().await;
    session.refresh().await.unwrap_err();
    settle().await;
    assert_eq!(session.state(), LoginRequired);
    session.replace_tokens(pair("new", "rn")).await.unwrap();
    assert_eq!(session.state(), Active);
    settle().await;
    let refresh = refreshing(&session);
    until(&session, Refreshing).await;
    settle().await;
    session.clear().await.unwrap();
    assert_eq!(session.state(), LoginRequired);
    settle().await;
    session.close().await.unwrap();
    assert_eq!(session.state(), Closed);
    refresh.await.unwrap().unwrap_err();
    let expected = [
        Active,
        Refreshing,
        CoolingDown,
        Active,
        Refreshing,
        LoginRequired,
        Active,
        Refreshing,
        LoginRequired,
        Closed,
    ];
    assert_eq!(told.await.unwrap(), expected);
}

#[tokio::test(start_paused = true)]
async fn subscribers_hear_the_cool_downs_end() {
    let issuer = Issuer::new([Turn::Fail(SECOND, unavailable())]);
    let session = session(&issuer);
    session.refresh().await.unwrap_err();
    let begun = Instant::now();
    until(&session, SessionState::Active).await;
    assert!((10..=11).contains(&begun.elapsed().as_secs()));
}

#[tokio::test(start_paused = true)]
async fn a_cool_down_costs_one_timer() {
    let issuer = Issuer::new([Turn::Fail(SECOND, unavailable())]);
    let session = session(&issuer);
    let _subscriber = session.subscribe();
    session.refresh().await.unwrap_err();
    settle().await;
    let before = tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let api = Api::new(|_| async { answer(200).header("refreshed-api-token", "t0") });
    for _ in 0..50 {
        api.client(&session).get(url("/")).send().await.unwrap();
    }
    assert_eq!(tokio::runtime::Handle::current().metrics().num_alive_tasks(), before);
}

#[tokio::test(start_paused = true)]
async fn retry_after_lengthens_the_cool_down() {
    for (asked, expected) in [(0, 10), (60, 60), (86_400, 300)] {
        let issuer = Issuer::new([Turn::Fail(
            Duration::ZERO,
            unavailable().with_retry_after(asked * SECOND),
        )]);
        let session = session(&issuer);
        session.refresh().await.unwrap_err();
        let error = error_of(Api::accepting(|_| false).client(&session).get(url("/")).send().await);
        assert_eq!(error.kind(), ErrorKind::CoolingDown);
        assert_eq!(error.retry_after(), Some(asked * SECOND));
        advance(Duration::from_secs(expected - 1)).await;
        assert_eq!(session.state(), SessionState::CoolingDown, "{asked}");
        advance(SECOND).await;
        assert_eq!(session.state(), SessionState::Active, "{asked}");
    }
}

#[tokio::test(start_paused = true)]
async fn refresh_ignores_the_cool_down() {
    let issuer = Issuer::new([Turn::Fail(SECOND, unavailable())]);
    let session = session(&issuer);
    session.refresh().await.unwrap_err();
    let api = Api::accepting(|_| true);
    assert_eq!(api.client(&session).get(url("/")).send().await.unwrap().status(), 200);
    assert_eq!(store_texts(&session.refresh().await.unwrap()), texts("t2", "r2"));
    assert_eq!(session.state(), SessionState::Active);
}

fn store_texts(tokens: &Tokens) -> (String, String) {
    crate::support::store::texts(tokens)
}

#[tokio::test(start_paused = true)]
async fn a_refresh_replaces_a_capture_made_in_it() {
    let issuer = Issuer::new([Turn::Gated]);
    let session = session(&issuer);
    let api = Api::new(|seen| async move {
        match (seen.token(), seen.url.ends_with("/capture")) {
            (Some("t0"), true) => answer(200).header("refreshed-api-token", "c1"),
            (Some("t0"), false) => answer(401),
            _ => answer(200),
        }
    });
    let client = api.client(&session);
    // Sent with the old token, with a response after the refresh has started.
    let gate = std::sync::Arc::new(tokio::sync::Notify::new());
    let late = Api::new({
        let gate = std::sync::Arc::clone(&gate);
        move |_| {
            let gate = std::sync::Arc::clone(&gate);
            async move {
                gate.notified().await;
                answer(200).header("refreshed-api-token", "c1")
            }
        }
    });
    let late = tokio::spawn(late.client(&session).get(url("/capture")).send());
    settle().await;
    let refused = tokio::spawn(client.get(url("/")).send());
    until(&session, SessionState::Refreshing).await;
    let waiting = tokio::spawn(client.get(url("/")).send());
    settle().await;
    assert!(!waiting.is_finished(), "it waits, unsent");
    assert_eq!(api.seen().len(), 1, "it waits, unsent");
    gate.notify_one();
    assert!(outcome_of(&late.await.unwrap().unwrap()).captured);
    assert_eq!(client.get(url("/")).send().await.unwrap().status(), 200);
    assert_eq!(api.tokens_seen().last().unwrap(), "c1");
    issuer.gate.add_permits(1);
    assert_eq!(refused.await.unwrap().unwrap().status(), 200);
    assert_eq!(waiting.await.unwrap().unwrap().status(), 200);
    assert_eq!(held(&session), texts("t1", "r1"));
    assert_eq!(session.generation(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_failure_with_a_newer_token_is_none() {
    let issuer = Issuer::new([Turn::Fail(5 * SECOND, unavailable())]);
    let session = session(&issuer);
    let api = Api::new(|seen| async move {
        if seen.url.ends_with("/late") {
            tokio::time::sleep(2 * SECOND).await;
            return answer(200).header("refreshed-api-token", "c1");
        }
        answer(if seen.token() == Some("c1") { 200 } else { 401 })
    });
    let client = api.client(&session);
    let late = tokio::spawn(client.get(url("/late")).send());
    settle().await;
    let response = client.get(url("/")).send().await.unwrap();
    assert!(
        response.status() == 200
            && outcome_of(&response).replayed
            && !outcome_of(&response).refreshed
    );
    late.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_late_response_never_undoes_a_newer_token() {
    let issuer = Issuer::new([]);
    let session = session(&issuer);
    let api = Api::new({
        let session = session.clone();
        move |_| {
            let session = session.clone();
            async move {
                session.refresh().await.unwrap();
                answer(200).header("refreshed-api-token", "c1")
            }
        }
    });
    let response = api.client(&session).get(url("/")).send().await.unwrap();
    assert!(!outcome_of(&response).captured);
    assert_eq!(held(&session), texts("t1", "r1"));
    assert_eq!(session.generation(), 2);
}

#[tokio::test(start_paused = true)]
async fn replace_tokens_supersedes_a_refresh() {
    let issuer = Issuer::new([Turn::Issue(60 * SECOND, None)]);
    let session = session(&issuer);
    let api = Api::accepting(|token| token == "new");
    let requests: Vec<_> =
        (0..9).map(|_| tokio::spawn(api.client(&session).get(url("/")).send())).collect();
    until(&session, SessionState::Refreshing).await;
    settle().await;
    let begun = Instant::now();
    session.replace_tokens(pair("new", "rn")).await.unwrap();
    for request in requests {
        assert_eq!(request.await.unwrap().unwrap().status(), 200);
    }
    assert_eq!(begun.elapsed(), Duration::ZERO);
    advance(120 * SECOND).await;
    settle().await;
    assert_eq!(held(&session), texts("new", "rn"));
    assert_eq!(issuer.most(), 1);
}

#[tokio::test(start_paused = true)]
async fn clear_frees_those_who_wait_unsent() {
    let issuer = Issuer::new([Turn::Hang]);
    let tokens = pair("t0", "r0").with_expires_in(Duration::ZERO);
    let session =
        Session::builder(tokens).origin(ORIGIN).refresher(issuer.clone()).build().unwrap();
    let api = Api::accepting(|_| true);
    let requests: Vec<_> =
        (0..9).map(|_| tokio::spawn(api.client(&session).get(url("/")).send())).collect();
    until(&session, SessionState::Refreshing).await;
    settle().await;
    session.clear().await.unwrap();
    for request in requests {
        let error = error_of(request.await.unwrap());
        assert_eq!(error.kind(), ErrorKind::LoginRequired);
        assert_eq!(error.api_status(), None);
    }
    assert!(api.seen().is_empty() && session.tokens().is_none());
    session.replace_tokens(pair("new", "rn")).await.unwrap();
    assert_eq!(api.client(&session).get(url("/")).send().await.unwrap().status(), 200);
}

#[tokio::test(start_paused = true)]
async fn two_refreshes_in_a_row_never_overlap() {
    let issuer = Issuer::new([Turn::Issue(5 * SECOND, None), Turn::Issue(5 * SECOND, None)]);
    let store = FakeStore::default();
    store.next(Call::Save, [Fate::Gated]);
    let session = builder(&issuer).store(store.clone()).build().unwrap();
    let first = refreshing(&session);
    tokio::time::sleep(6 * SECOND).await;
    // The first refresh is saving its result.
    let replace = tokio::spawn({
        let session = session.clone();
        async move { session.replace_tokens(pair("new", "rn")).await }
    });
    settle().await;
    let second = refreshing(&session);
    settle().await;
    assert_eq!(issuer.calls(), 1);
    store.open_gate();
    first.await.unwrap().unwrap();
    second.await.unwrap().unwrap();
    replace.await.unwrap().unwrap();
    assert_eq!(issuer.most(), 1);
    assert_eq!(issuer.asked(), vec![Some("r0".to_owned()), Some("rn".to_owned())]);
    assert_eq!(held(&session), texts("t2", "r2"));
    assert_eq!(store.held(), Some(texts("t2", "r2")));
}

#[tokio::test(start_paused = true)]
async fn close_lets_a_new_refresh_end() {
    let issuer = Issuer::new([Turn::Issue(SECOND, None)]);
    let session = session(&issuer);
    // Polled once: the refresh is registered, but its task has not run yet.
    let mut refresh = Box::pin(session.refresh());
    assert!(futures_poll(refresh.as_mut()).is_none());
    session.close().await.unwrap();
    assert_eq!(issuer.calls(), 1);
    assert_eq!(held(&session), texts("t1", "r1"));
    assert_eq!(refresh.await.unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(session.refresh().await.unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(
        session.replace_tokens(pair("new", "rn")).await.unwrap_err().kind(),
        ErrorKind::Closed
    );
    assert_eq!(session.clear().await.unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(issuer.calls(), 1);
}

fn futures_poll<T>(future: std::pin::Pin<&mut (impl Future<Output = T> + ?Sized)>) -> Option<T> {
    match future.poll(&mut std::task::Context::from_waker(std::task::Waker::noop())) {
        std::task::Poll::Ready(value) => Some(value),
        std::task::Poll::Pending => None,
    }
}

#[tokio::test(start_paused = true)]
async fn a_closed_session_replays_nothing() {
    for choice in [OnRefreshFailure::ReturnError, OnRefreshFailure::ReturnResponse] {
        let issuer = Issuer::new([]);
        let session = builder(&issuer).on_refresh_failure(choice).build().unwrap();
        let api = Api::new({
            let session = session.clone();
            move |_| {
                let session = session.clone();
                async move {
                    session.close().await.unwrap();
                    answer(401)
                }
            }
        });
        let kind = match api.client(&session).get(url("/")).send().await {
            Ok(response) => outcome_of(&response).refresh_error.unwrap().kind(),
            error => error_of(error).kind(),
        };
        assert_eq!(kind, ErrorKind::Closed);
        assert_eq!(api.seen().len(), 1);
        assert_eq!(issuer.calls(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_listeners_panic_changes_nothing() {
    let issuer = Issuer::new([]);
    let events = Events::default();
    let slot: std::sync::Arc<std::sync::Mutex<Option<Session>>> = std::sync::Arc::default();
    let session = builder(&issuer)
        .on_event({
            let slot = std::sync::Arc::clone(&slot);
            move |_| {
                if let Some(session) = &*slot.lock().unwrap() {
                    let _ = (session.state(), session.tokens(), session.subscribe());
                }
            }
        })
        .on_event(|_| panic!("the listener panics"))
        .on_event(events.listener())
        .build()
        .unwrap();
    *slot.lock().unwrap() = Some(session.clone());
    let api = Api::accepting(|token| token == "t1");
    assert_eq!(api.client(&session).get(url("/")).send().await.unwrap().status(), 200);
    let names: Vec<_> = events.all().iter().map(name).collect();
    assert_eq!(names, ["started 1", "refreshed 2 after 1", "replayed 2: 200"]);
    // The listener holds the session and the session holds the listener, so neither would be
    // dropped.
    *slot.lock().unwrap() = None;
}

fn name(event: &Event) -> String {
    match event {
        Event::RefreshStarted { generation, .. } => format!("started {generation}"),
        Event::Refreshed { generation, attempts, .. } => {
            format!("refreshed {generation} after {attempts}")
        }
        Event::Replayed { generation, status, .. } => {
            format!("replayed {generation}: {}", status.as_u16())
        }
        other => format!("{other:?}"),
    }
}

/// Needs a refresh token.
struct NeedsRefreshToken(Issuer);

#[async_trait::async_trait]
impl Refresher for NeedsRefreshToken {
    async fn refresh(&self, context: &RefreshContext) -> Result<Tokens, reqwest_reauth::Error> {
        self.0.refresh(context).await
    }

    fn can_refresh(&self, tokens: &Tokens) -> bool {
        tokens.refresh_token().is_some()
    }
}

#[tokio::test(start_paused = true)]
async fn no_refresh_token_is_no_refresh() {
    let issuer = Issuer::new([]);
    let events = Events::default();
    let builder = |tokens| {
        let builder =
            Session::builder(tokens).origin(ORIGIN).refresher(NeedsRefreshToken(issuer.clone()));
        builder.on_event(events.listener())
    };
    let api = Api::accepting(|token| token == "s0");
    let session = builder(Tokens::new("t0").unwrap()).build().unwrap();
    assert_eq!(api.client(&session).get(url("/")).send().await.unwrap().status(), 401);
    assert_eq!(issuer.calls(), 0);
    assert_eq!(session.state(), SessionState::Active);
    assert_eq!(events.all().len(), 0);

    // Nor does the store: the request is sent with the current token, and the response is returned.
    for tokens in
        [Tokens::new("t0").unwrap(), Tokens::new("t0").unwrap().with_expires_in(Duration::ZERO)]
    {
        let session = builder(tokens).store(FakeStore::default()).build().unwrap();
        assert_eq!(api.client(&session).get(url("/")).send().await.unwrap().status(), 401);
        assert_eq!(issuer.calls(), 0);
        assert_eq!(held(&session).0.as_str(), "t0");
    }

    let session = builder(Tokens::new("t0").unwrap())
        .store(FakeStore::holding(pair("s0", "r9")))
        .build()
        .unwrap();
    assert_eq!(api.client(&session).get(url("/")).send().await.unwrap().status(), 200);
    assert_eq!(issuer.calls(), 0);
    assert_eq!(held(&session), texts("s0", "r9"));
}

#[tokio::test(start_paused = true)]
async fn a_stored_token_is_taken_if_it_has_not_ended() {
    for (life, calls) in [(Duration::ZERO, 1), (60 * SECOND, 0)] {
        let issuer = Issuer::new([]);
        let store = FakeStore::holding(pair("s0", "r9").with_expires_in(life));
        let session = builder(&issuer).store(store).build().unwrap();
        session.refresh().await.unwrap();
        assert_eq!(issuer.calls(), calls);
        assert_eq!(held(&session).0.as_str(), if calls == 0 { "s0" } else { "t1" });
    }
}

#[tokio::test(start_paused = true)]
async fn a_refresh_holds_the_lock_throughout() {
    let issuer = Issuer::new([Turn::Gated]);
    let store = FakeStore::default();
    let session = builder(&issuer).store(store.clone()).build().unwrap();
    let running = refreshing(&session);
    issuer.until_called(1).await;
    assert!(!store.is_free());
    let api = Api::new(|_| async { answer(200).header("refreshed-api-token", "c1") });
    api.client(&session).get(url("/")).send().await.unwrap();
    settle().await;
    assert_eq!(store.held(), Some(texts("c1", "r0")));
    issuer.gate.add_permits(1);
    running.await.unwrap().unwrap();
    settle().await;
    assert_eq!(store.held(), Some(texts("t1", "r1")));
    assert!(store.is_free());
}

#[tokio::test(start_paused = true)]
async fn new_requests_wait_after_a_rejection() {
    let issuer = Issuer::new([Turn::Gated]);
    let session = session(&issuer);
    let refuses = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let api = Api::new({
        let refuses = std::sync::Arc::clone(&refuses);
        move |seen| {
            let refuse =
                refuses.load(std::sync::atomic::Ordering::SeqCst) && seen.token() == Some("t0");
            async move { answer(if refuse { 401 } else { 200 }) }
        }
    });
    let running = refreshing(&session);
    issuer.until_called(1).await;
    let send = || {
        let client = api.client(&session);
        tokio::spawn(async move { client.get(url("/")).send().await.unwrap().status().as_u16() })
    };
    assert_eq!(send().await.unwrap(), 200);
    refuses.store(true, std::sync::atomic::Ordering::SeqCst);
    let first = send();
    settle().await;
    let second = send();
    settle().await;
    assert_eq!(api.tokens_seen(), ["t0", "t0"]);
    issuer.gate.add_permits(1);
    assert_eq!(first.await.unwrap(), 200);
    assert_eq!(second.await.unwrap(), 200);
    running.await.unwrap().unwrap();
    assert_eq!(api.tokens_seen(), ["t0", "t0", "t1", "t1"]);
}

#[tokio::test(start_paused = true)]
async fn an_unwatched_cool_down_costs_no_task() {
    let issuer = Issuer::new([Turn::Fail(SECOND, unavailable())]);
    let session = session(&issuer);
    drop(session.subscribe());
    session.refresh().await.unwrap_err();
    settle().await;
    assert_eq!(session.state(), SessionState::CoolingDown);
    assert_eq!(tokio::runtime::Handle::current().metrics().num_alive_tasks(), 0);
}

#[tokio::test(start_paused = true)]
async fn debug_shows_the_state_and_no_token() {
    let issuer = Issuer::new([]);
    let (built, unbuilt) = (format!("{:?}", session(&issuer)), format!("{:?}", builder(&issuer)));
    assert!(built.contains("Active") && built.contains(ORIGIN), "{built}");
    assert!(unbuilt.contains("AccessToken(..)"), "{unbuilt}");
    for secret in ["t0", "r0"] {
        assert!(!built.contains(secret) && !unbuilt.contains(secret), "{built} {unbuilt}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_refresh_names_its_generation() {
    let events = Events::default();
    let session = builder(&Issuer::new([])).on_event(events.listener()).build().unwrap();
    session.refresh().await.unwrap();
    session.refresh().await.unwrap();
    let begun = |event: &Event| {
        if let Event::RefreshStarted { generation, .. } = event { Some(*generation) } else { None }
    };
    assert_eq!(events.all().iter().filter_map(begun).collect::<Vec<_>>(), [1, 2]);
}

#[tokio::test(start_paused = true)]
async fn arc_and_box_forward_every_method() {
    struct Picky {
        works: bool,
        asked: AtomicUsize,
    }

    #[async_trait::async_trait]
    impl Refresher for Picky {
        async fn refresh(&self, _: &RefreshContext) -> Result<Tokens, Error> {
            self.asked.fetch_add(1, Ordering::SeqCst);
            Tokens::new("t1")
        }

        fn check(&self) -> Result<(), Error> {
            if self.works { Ok(()) } else { Err(Error::new(ErrorKind::InvalidConfig, "picky")) }
        }

        fn can_refresh(&self, tokens: &Tokens) -> bool {
            tokens.refresh_token().is_some()
        }
    }

    let with = |works, tokens| {
        let refresher = Arc::new(Picky { works, asked: AtomicUsize::new(0) });
        let session =
            Session::builder(tokens).origin(ORIGIN).refresher(Arc::clone(&refresher)).build();
        (refresher, session)
    };
    assert_eq!(with(false, pair("t0", "r0")).1.unwrap_err().kind(), ErrorKind::InvalidConfig);
    for (tokens, times) in [(pair("t0", "r0"), 1), (Tokens::new("t0").unwrap(), 0)] {
        let (refresher, session) = with(true, tokens);
        let api = Api::accepting(|token| token == "t1");
        api.client(&session.unwrap()).get(url("/")).send().await.unwrap();
        assert_eq!(refresher.asked.load(Ordering::SeqCst), times);
        assert_eq!(api.seen().len(), 1 + times);
    }
}
