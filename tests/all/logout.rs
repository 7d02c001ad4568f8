//! What a logout revokes (RFC 7009).

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use reqwest_reauth::{
    Error, ErrorKind, Event, MemoryStore, OAuthRefresh, RefreshContext, Refresher, Session,
    SessionBuilder, TokenStore, Tokens,
};
use tokio::{
    sync::Semaphore,
    time::{Instant, advance},
};

use crate::{
    raw::{Reply, Server},
    support::{Events, ORIGIN, held, pair, settle, silence_scripted_panics, store, texts},
};

/// Returns `new` when the gate has a permit, and records what it revokes.
#[derive(Clone)]
struct Issuer {
    gate: Arc<Semaphore>,
    revoked: Arc<Mutex<Vec<(String, String)>>>,
    then: Then,
}

#[derive(Clone, Copy)]
enum Then {
    Succeed,
    Fail,
    Panic,
    Hang,
}

impl Issuer {
    fn new(then: Then) -> Self {
        Self { gate: Arc::new(Semaphore::new(0)), revoked: Arc::default(), then }
    }

    fn revoked(&self) -> Vec<(String, String)> {
        self.revoked.lock().unwrap().clone()
    }
}

#[async_trait]
impl Refresher for Issuer {
    async fn refresh(&self, _: &RefreshContext) -> Result<Tokens, Error> {
        self.gate.acquire().await.unwrap().forget();
        Ok(pair("new", "next"))
    }

    fn can_revoke(&self) -> bool {
        true
    }

    async fn revoke(&self, tokens: &Tokens) -> Result<(), Error> {
        self.revoked.lock().unwrap().push(store::texts(tokens));
        match self.then {
            Then::Succeed => Ok(()),
            Then::Fail => Err(Error::new(ErrorKind::Unavailable, "down")),
            Then::Panic => panic!("the refresher panics, as the script says"),
            Then::Hang => std::future::pending().await,
        }
    }
}

fn session(issuer: &Issuer, events: &Events) -> SessionBuilder {
    Session::builder(pair("old", "first"))
        .origin(ORIGIN)
        .refresher(issuer.clone())
        .on_event(events.listener())
}

fn failures(events: &Events) -> Vec<ErrorKind> {
    let kind = |event| match event {
        Event::RevocationFailed { error, .. } => Some(error.kind()),
        _ => None,
    };
    events.all().into_iter().filter_map(kind).collect()
}

#[tokio::test]
async fn both_tokens_are_revoked() {
    let server = Server::simple(|_| Reply::status(200)).await;
    let refresher = OAuthRefresh::new(server.url("/token"))
        .revocation_endpoint(server.url("/revoke"))
        .client_id("me");
    let events = Events::default();
    let session = Session::builder(pair("access", "refresh"))
        .origin(ORIGIN)
        .refresher(refresher)
        .on_event(events.listener())
        .build()
        .unwrap();
    session.clear().await.unwrap();
    assert_eq!(held(&session), texts("", ""));
    let seen = server.seen();
    let forms: Vec<_> = seen
        .iter()
        .map(|seen| (&*seen.target, String::from_utf8_lossy(&seen.body).into_owned()))
        .collect();
    let form = |text: &str| ("/revoke", text.to_owned());
    assert_eq!(
        forms,
        [
            form("token=refresh&token_type_hint=refresh_token&client_id=me"),
            form("token=access&token_type_hint=access_token&client_id=me"),
        ]
    );
    assert_eq!(events.all().len(), 0);
}

#[tokio::test]
async fn each_token_that_is_not_revoked_is_an_event() {
    let server = Server::simple(|_| Reply::status(400)).await;
    let refresher =
        OAuthRefresh::new(server.url("/token")).revocation_endpoint(server.url("/revoke"));
    let events = Events::default();
    let session = Session::builder(pair("access", "refresh"))
        .origin(ORIGIN)
        .refresher(refresher)
        .on_event(events.listener())
        .build()
        .unwrap();
    session.clear().await.unwrap();
    assert_eq!(failures(&events), [ErrorKind::ClientRejected; 2]);
    assert_eq!(server.count(), 2);
}

#[tokio::test(start_paused = true)]
async fn no_failure_undoes_a_logout() {
    silence_scripted_panics();
    for (then, kind, took) in [
        (Then::Fail, ErrorKind::Unavailable, 0),
        (Then::Panic, ErrorKind::Internal, 0),
        (Then::Hang, ErrorKind::Unavailable, 5),
    ] {
        let (issuer, events) = (Issuer::new(then), Events::default());
        let session = session(&issuer, &events).build().unwrap();
        let begun = Instant::now();
        session.clear().await.unwrap();
        assert_eq!(held(&session), texts("", ""));
        assert_eq!(begun.elapsed().as_secs(), took);
        assert_eq!(failures(&events), [kind]);
        assert_eq!(issuer.revoked(), [texts("old", "first")]);
    }
}

#[tokio::test(start_paused = true)]
async fn tokens_of_a_running_refresh_are_revoked() {
    let (issuer, events) = (Issuer::new(Then::Succeed), Events::default());
    let session = session(&issuer, &events).build().unwrap();
    let refreshing = tokio::spawn({
        let session = session.clone();
        async move { session.refresh().await }
    });
    settle().await;
    let logout = tokio::spawn({
        let session = session.clone();
        async move { session.clear().await }
    });
    settle().await;
    // Those who wait are free at once, and what was held is revoked.
    assert_eq!(refreshing.await.unwrap().unwrap_err().kind(), ErrorKind::LoginRequired);
    assert_eq!(issuer.revoked(), [texts("old", "first")]);
    issuer.gate.add_permits(1);
    logout.await.unwrap().unwrap();
    assert_eq!(issuer.revoked(), [texts("old", "first"), texts("new", "next")]);
    assert_eq!(held(&session), texts("", ""));
    assert_eq!(failures(&events), vec![]);
}

#[tokio::test(start_paused = true)]
async fn a_logout_abandons_a_slow_refresh() {
    let (issuer, events) = (Issuer::new(Then::Succeed), Events::default());
    let session = session(&issuer, &events).build().unwrap();
    tokio::spawn({
        let session = session.clone();
        async move { session.refresh().await }
    });
    settle().await;
    let begun = Instant::now();
    session.clear().await.unwrap();
    settle().await;
    assert_eq!(begun.elapsed().as_secs(), 5);
    assert_eq!(failures(&events), [ErrorKind::TimedOut]);
    // Its place is free.
    session.replace_tokens(pair("old", "second")).await.unwrap();
    issuer.gate.add_permits(1);
    session.refresh().await.unwrap();
    assert_eq!(held(&session), texts("new", "next"));
}

#[tokio::test(start_paused = true)]
async fn neither_close_nor_a_new_login_revokes() {
    let (issuer, events) = (Issuer::new(Then::Succeed), Events::default());
    let session = session(&issuer, &events).build().unwrap();
    session.replace_tokens(pair("another", "login")).await.unwrap();
    session.close().await.unwrap();
    advance(Duration::from_secs(60)).await;
    assert_eq!(issuer.revoked(), []);
}

#[tokio::test]
async fn a_stored_token_of_this_login_is_revoked() {
    let table = [
        // The columns: the content of the store, and which of it is revoked.
        (pair("old", "first"), None),
        (pair("newer", "first"), Some(texts("newer", ""))),
        (pair("old", "second"), Some(texts("", "second"))),
        (pair("theirs", "other"), None),
    ];
    for (stored, expected) in table {
        let (issuer, events) = (Issuer::new(Then::Succeed), Events::default());
        let store = MemoryStore::default();
        let session = session(&issuer, &events).store(store.clone()).build().unwrap();
        let lock = store.lock().await.unwrap();
        store.save(&lock, &stored).await.unwrap();
        drop(lock);
        session.clear().await.unwrap();
        let revoked: Vec<_> = [texts("old", "first")].into_iter().chain(expected).collect();
        assert_eq!(issuer.revoked(), revoked, "{stored:?}");
        assert!(store.load().await.unwrap().is_none());
    }
}

#[tokio::test]
async fn loaded_tokens_are_revoked() {
    let (issuer, events) = (Issuer::new(Then::Succeed), Events::default());
    let store = MemoryStore::default();
    let lock = store.lock().await.unwrap();
    store.save(&lock, &pair("loaded", "before")).await.unwrap();
    drop(lock);
    let session = session(&issuer, &events).store(store.clone()).restore().await.unwrap();
    assert_eq!(held(&session), texts("loaded", "before"));
    session.clear().await.unwrap();
    assert_eq!(issuer.revoked(), [texts("loaded", "before")]);
}

#[tokio::test(start_paused = true)]
async fn a_refresher_need_not_be_waited_for() {
    /// Revokes, and says no more than the trait asks for.
    struct Plain(Issuer);
    #[async_trait]
    impl Refresher for Plain {
        async fn refresh(&self, context: &RefreshContext) -> Result<Tokens, Error> {
            self.0.refresh(context).await
        }
        async fn revoke(&self, tokens: &Tokens) -> Result<(), Error> {
            self.0.revoke(tokens).await
        }
    }
    let issuer = Issuer::new(Then::Succeed);
    let store = MemoryStore::default();
    let lock = store.lock().await.unwrap();
    store.save(&lock, &pair("loaded", "before")).await.unwrap();
    drop(lock);
    let session = Session::builder(Tokens::empty())
        .origin(ORIGIN)
        .refresher(Plain(issuer.clone()))
        .store(store)
        .restore()
        .await
        .unwrap();
    tokio::spawn({
        let session = session.clone();
        async move { session.refresh().await }
    });
    settle().await;
    let begun = Instant::now();
    session.clear().await.unwrap();
    assert_eq!(begun.elapsed(), Duration::ZERO);
    assert_eq!(issuer.revoked(), [texts("loaded", "before")]);
    assert_eq!(issuer.gate.available_permits(), 0);
}
