//! Users' code that panics, blocks or calls back (contract 6.8, 6.9). docs/decisions/0023 has the
//! list.

use std::{
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use crate::support::{
    Api, Events, Issuer, ORIGIN, Turn, answer, error_of, every_thread_may_listen, held, outcome_of,
    pair, settle, silence_scripted_panics, texts, unavailable, url,
};
use async_trait::async_trait;
use reqwest_middleware::ClientWithMiddleware;
use reqwest_reauth::{
    Error, ErrorKind, MemoryStore, NotReplayed, RefreshContext, Refresher, ReplayBody, Session,
    SessionBuilder, StoreLock, TokenStore, Tokens, refresh_with,
};
use tokio::runtime::Handle;

const SECOND: Duration = Duration::from_secs(1);

fn builder(refresher: impl Refresher) -> SessionBuilder {
    Session::builder(pair("t0", "r0")).origin(ORIGIN).refresher(refresher)
}

// ---- calling back

/// A client that is known only once its session is.
type Later = Arc<OnceLock<(Session, ClientWithMiddleware)>>;

/// Calls the API through the session's own client, and returns `t1`.
fn asking(later: &Later) -> impl Refresher + use<> {
    let later = Arc::clone(later);
    refresh_with(move |_| {
        let later = Arc::clone(&later);
        async move {
            let (_, client) = later.get().unwrap();
            let response = client.get(url("/token")).send().await;
            let status =
                response.map_err(|error| Error::new(ErrorKind::Unavailable, error))?.status();
            assert_eq!(status, 200);
            Ok(pair("t1", "r1"))
        }
    })
}

#[tokio::test(start_paused = true)]
async fn a_refresher_asks_through_its_own_session() {
    let later = Later::default();
    let session = builder(asking(&later)).build().unwrap();
    let api = Api::new(|seen| async move {
        answer(if seen.url.ends_with("/token") || seen.token() == Some("t1") { 200 } else { 401 })
    });
    later.set((session.clone(), api.client(&session))).ok().unwrap();
    let begun = tokio::time::Instant::now();
    let response = api.client(&session).get(url("/")).send().await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(begun.elapsed(), Duration::ZERO);
    assert_eq!(api.tokens_seen(), ["t0", "t0", "t1"]);
}

#[tokio::test(start_paused = true)]
async fn its_rejection_is_not_renewed() {
    let later = Later::default();
    let asks = Arc::clone(&later);
    let session = builder(refresh_with(move |_| {
        let asks = Arc::clone(&asks);
        async move {
            let (_, client) = asks.get().unwrap();
            let status = client.get(url("/token")).send().await.unwrap().status();
            Tokens::new(format!("after-{}", status.as_u16()))
        }
    }))
    .build()
    .unwrap();
    let api = Api::accepting(|token| token == "after-401");
    later.set((session.clone(), api.client(&session))).ok().unwrap();
    let response = api.client(&session).get(url("/")).send().await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(api.tokens_seen(), ["t0", "t0", "after-401"]);
}

#[tokio::test(start_paused = true)]
async fn without_a_token_it_is_not_sent() {
    let later = Later::default();
    let told = Arc::new(Mutex::new(None));
    let (asks, tells) = (Arc::clone(&later), Arc::clone(&told));
    let refresher = refresh_with(move |_| {
        let (asks, tells) = (Arc::clone(&asks), Arc::clone(&tells));
        async move {
            let (_, client) = asks.get().unwrap();
            *tells.lock().unwrap() = Some(error_of(client.get(url("/")).send().await).kind());
            Tokens::new("t1")
        }
    });
    let session =
        Session::builder(Tokens::empty()).origin(ORIGIN).refresher(refresher).build().unwrap();
    let api = Api::accepting(|_| true);
    later.set((session.clone(), api.client(&session))).ok().unwrap();
    api.client(&session).get(url("/")).send().await.unwrap();
    assert_eq!(*told.lock().unwrap(), Some(ErrorKind::LoginRequired));
    assert_eq!(api.tokens_seen(), ["t1"]);
}

#[tokio::test(start_paused = true)]
async fn a_capture_during_the_refresh_counts() {
    let later = Later::default();
    let session = builder(asking(&later)).build().unwrap();
    let api = Api::new(|seen| async move {
        match seen.token() {
            _ if seen.url.ends_with("/token") => answer(200).header("refreshed-api-token", "c1"),
            Some("t0") => answer(401),
            _ => answer(200),
        }
    });
    later.set((session.clone(), api.client(&session))).ok().unwrap();
    let generation = session.generation();
    api.client(&session).get(url("/")).send().await.unwrap();
    assert_eq!(held(&session), texts("t1", "r1"));
    assert_eq!(session.generation(), generation + 2);
}

#[tokio::test(start_paused = true)]
async fn a_refresh_within_a_refresh_fails_at_once() {
    let later = Later::default();
    let asks = Arc::clone(&later);
    let session = builder(refresh_with(move |_| {
        let asks = Arc::clone(&asks);
        async move {
            let (session, _) = asks.get().unwrap();
            Tokens::new(format!("{:?}", session.refresh().await.unwrap_err().kind()))
        }
    }))
    .build()
    .unwrap();
    later.set((session.clone(), Api::accepting(|_| true).client(&session))).ok().unwrap();
    let tokens = session.refresh().await.unwrap();
    assert_eq!(tokens.access_token().unwrap().expose_secret(), "Internal");
}

/// A store that asks the API through the session's client at each load.
struct Asking(MemoryStore, Later);

#[async_trait]
impl TokenStore for Asking {
    async fn load(&self) -> Result<Option<Tokens>, Error> {
        if let Some((_, client)) = self.1.get() {
            client.get(url("/key")).send().await.unwrap();
        }
        self.0.load().await
    }

    async fn save(&self, lock: &StoreLock, tokens: &Tokens) -> Result<(), Error> {
        self.0.save(lock, tokens).await
    }

    async fn clear(&self, lock: &StoreLock) -> Result<(), Error> {
        self.0.clear(lock).await
    }

    async fn lock(&self) -> Result<StoreLock, Error> {
        self.0.lock().await
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_asks_through_its_own_session() {
    let later = Later::default();
    let issuer = Issuer::new([]);
    let store = Asking(MemoryStore::default(), Arc::clone(&later));
    let session = builder(issuer.clone()).store(store).build().unwrap();
    let api = Api::new(|seen| async move {
        answer(if seen.url.ends_with("/key") || seen.token() == Some("t1") { 200 } else { 401 })
    });
    later.set((session.clone(), api.client(&session))).ok().unwrap();
    let begun = tokio::time::Instant::now();
    assert_eq!(api.client(&session).get(url("/")).send().await.unwrap().status(), 200);
    // A new login looks into the store too.
    session.replace_tokens(pair("u0", "s0")).await.unwrap();
    assert_eq!(begun.elapsed(), Duration::ZERO);
    assert_eq!(issuer.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_task_that_it_spawns_waits() {
    let later = Later::default();
    let asks = Arc::clone(&later);
    let spawned = Arc::new(Mutex::new(None));
    let out = Arc::clone(&spawned);
    let session = builder(refresh_with(move |_| {
        let (_, client) = asks.get().unwrap().clone();
        *out.lock().unwrap() = Some(tokio::spawn(client.get(url("/")).send()));
        async { Tokens::new("t1") }
    }))
    .build()
    .unwrap();
    let api = Api::accepting(|token| token == "t1");
    later.set((session.clone(), api.client(&session))).ok().unwrap();
    api.client(&session).get(url("/")).send().await.unwrap();
    let task = spawned.lock().unwrap().take().unwrap();
    assert_eq!(task.await.unwrap().unwrap().status(), 200);
}

// ---- panicking

#[tokio::test(start_paused = true)]
async fn a_rule_that_panics_is_the_built_in_one() {
    silence_scripted_panics();
    let issuer = Issuer::new([]);
    let session = builder(issuer.clone())
        .rejected_if(|_, _| panic!("the rule panics, as the script says"))
        .replay_if(|_| panic!("the rule panics, as the script says"))
        .build()
        .unwrap();
    let api = Api::accepting(|token| token == "t1");
    assert_eq!(api.client(&session).get(url("/")).send().await.unwrap().status(), 200);
    assert_eq!(api.tokens_seen(), ["t0", "t1"]);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_panics_is_not_replayed() {
    silence_scripted_panics();
    let issuer = Issuer::new([]);
    let session = builder(issuer.clone()).build().unwrap();
    let api = Api::accepting(|token| token == "t1");
    let body = ReplayBody::new(|| panic!("the body panics, as the script says"));
    let request = api.client(&session).post(url("/")).body("first").with_extension(body.clone());
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), 401);
    assert_eq!(outcome_of(&response).not_replayed, Some(NotReplayed::BodyNotReplayable));
    // The first body is made by it as well.
    let request = api.client(&session).post(url("/")).with_extension(body);
    request.send().await.unwrap_err();
}

#[derive(Clone, Default)]
struct LoudLock(MemoryStore);

/// A lock whose drop panics.
struct Loud(#[allow(dead_code)] StoreLock);

impl Drop for Loud {
    fn drop(&mut self) {
        panic!("the lock panics, as the script says");
    }
}

#[async_trait]
impl TokenStore for LoudLock {
    async fn load(&self) -> Result<Option<Tokens>, Error> {
        self.0.load().await
    }

    async fn save(&self, lock: &StoreLock, tokens: &Tokens) -> Result<(), Error> {
        self.0.save(lock, tokens).await
    }

    async fn clear(&self, lock: &StoreLock) -> Result<(), Error> {
        self.0.clear(lock).await
    }

    async fn lock(&self) -> Result<StoreLock, Error> {
        Ok(StoreLock::holding(Loud(self.0.lock().await?)))
    }
}

#[tokio::test(start_paused = true)]
async fn a_lock_whose_drop_panics_is_let_go() {
    silence_scripted_panics();
    let issuer = Issuer::new([]);
    let store = LoudLock::default();
    let session = builder(issuer.clone()).store(store.clone()).build().unwrap();
    session.refresh().await.unwrap();
    session.replace_tokens(pair("u0", "s0")).await.unwrap();
    session.refresh().await.unwrap();
    assert_eq!(held(&session), texts("t2", "r2"));
}

/// A subscriber whose pipe is closed.
struct Broken;

impl tracing::Subscriber for Broken {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        let ours = event.metadata().target().starts_with("reqwest_reauth");
        assert!(!ours, "the subscriber panics, as the script says");
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

#[tokio::test(start_paused = true)]
async fn a_subscriber_that_panics_changes_nothing() {
    silence_scripted_panics();
    every_thread_may_listen();
    let _broken = tracing::subscriber::set_default(Broken);
    let issuer = Issuer::new([Turn::Panic, Turn::Fail(Duration::ZERO, unavailable())]);
    let events = Events::default();
    let session = builder(issuer.clone())
        .on_event(|_| panic!("the listener panics, as the script says"))
        .on_event(events.listener())
        .build()
        .unwrap();
    assert_eq!(session.refresh().await.unwrap_err().kind(), ErrorKind::Internal);
    assert_eq!(session.refresh().await.unwrap_err().kind(), ErrorKind::Unavailable);
    let api = Api::new(|_| async { answer(200).header("refreshed-api-token", "c1") });
    api.client(&session).get(url("/")).send().await.unwrap();
    assert_eq!(held(&session), texts("c1", "r0"));
    assert_eq!(events.all().len(), 5);
}

#[test]
fn a_subscriber_that_panics_aborts_nothing() {
    silence_scripted_panics();
    every_thread_may_listen();
    let broken = tracing::Dispatch::new(Broken);
    let issuer = Issuer::new([Turn::Hang]);
    let session = builder(issuer.clone()).build().unwrap();
    let gone = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    // Dropping the refresh ends it and reports that.
    tracing::dispatcher::with_default(&broken, || {
        let _refresh = gone.spawn({
            let session = session.clone();
            async move { session.refresh().await }
        });
        gone.block_on(issuer.until_called(1));
        drop(gone);
    });
    assert!(session.tokens().is_some());
}

/// Whose settings, and whose drop of a future, panic.
struct LoudRefresher(Arc<AtomicBool>);

#[async_trait]
impl Refresher for LoudRefresher {
    async fn refresh(&self, _: &RefreshContext) -> Result<Tokens, Error> {
        struct Loud;
        impl Drop for Loud {
            fn drop(&mut self) {
                panic!("the future panics, as the script says");
            }
        }
        let _loud = Loud;
        std::future::pending().await
    }

    fn check(&self) -> Result<(), Error> {
        assert!(!self.0.load(Ordering::SeqCst), "the check panics, as the script says");
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_future_whose_drop_panics_ends() {
    silence_scripted_panics();
    let session = builder(LoudRefresher(Arc::default())).refresh_timeout(SECOND).build().unwrap();
    assert_eq!(session.refresh().await.unwrap_err().kind(), ErrorKind::Unavailable);
}

#[test]
fn a_check_that_panics_is_invalid() {
    silence_scripted_panics();
    let loud = LoudRefresher(Arc::new(AtomicBool::new(true)));
    assert_eq!(builder(loud).build().unwrap_err().kind(), ErrorKind::InvalidConfig);
}

// ---- asking in vain

#[tokio::test(start_paused = true)]
async fn a_thousand_refreshes_in_vain_are_one_timer() {
    let asked = unavailable().with_retry_after(300 * SECOND);
    let script = (0..1000).map(|_| Turn::Fail(Duration::ZERO, asked.clone()));
    let issuer = Issuer::new(script);
    let session = builder(issuer.clone()).cooldown(3600 * SECOND).build().unwrap();
    let mut states = session.subscribe();
    let before = Handle::current().metrics().num_alive_tasks();
    for _ in 0..1000 {
        session.refresh().await.unwrap_err();
    }
    settle().await;
    assert_eq!(issuer.calls(), 1000);
    assert!(Handle::current().metrics().num_alive_tasks() <= before + 1);
    // The subscriber hears when the last cool-down is over.
    let begun = tokio::time::Instant::now();
    states.wait_for(|state| *state == reqwest_reauth::SessionState::Active).await.unwrap();
    assert_eq!(begun.elapsed().as_secs(), 3600);
    settle().await;
    assert_eq!(Handle::current().metrics().num_alive_tasks(), before);
}
