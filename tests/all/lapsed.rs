//! A holder whose lock may have lapsed makes no call before it holds the lock again (contract
//! 10.5).

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use crate::support::{
    held, pair,
    store::{Call, FakeStore, Fate, Op},
    texts,
};
use async_trait::async_trait;
use reqwest_reauth::{
    DpopKey, Error, ErrorKind, OAuthRefresh, Placement, Session, SessionBuilder, StoreLock,
    TokenStore, Tokens,
    testing::{Answer, AuthServer, Dpop, Recorded},
};

/// A store whose n-th lock check reports a lapsed lock, and the next one too if it lapses `twice`.
/// By then something else has happened.
#[derive(Clone)]
struct Lapsing {
    store: FakeStore,
    left: Arc<AtomicUsize>,
    twice: bool,
    /// Whether no lock is held any more when it is looked at.
    never: Arc<AtomicBool>,
    meanwhile: Arc<dyn Fn(&FakeStore) + Send + Sync>,
}

impl Lapsing {
    fn at(look: usize, meanwhile: impl Fn(&FakeStore) + Send + Sync + 'static) -> Self {
        let left = Arc::new(AtomicUsize::new(look));
        Self {
            store: FakeStore::default(),
            left,
            twice: false,
            never: Arc::default(),
            meanwhile: Arc::new(meanwhile),
        }
    }

    fn locks(&self) -> usize {
        self.store.ops().iter().filter(|op| **op == Op::Lock).count()
    }
}

#[async_trait]
impl TokenStore for Lapsing {
    async fn load(&self) -> Result<Option<Tokens>, Error> {
        self.store.load().await
    }

    async fn save(&self, lock: &StoreLock, tokens: &Tokens) -> Result<(), Error> {
        self.store.save(lock, tokens).await
    }

    async fn clear(&self, lock: &StoreLock) -> Result<(), Error> {
        self.store.clear(lock).await
    }

    async fn lock(&self) -> Result<StoreLock, Error> {
        let (left, store, meanwhile) =
            (Arc::clone(&self.left), self.store.clone(), Arc::clone(&self.meanwhile));
        let (twice, never) = (self.twice, Arc::clone(&self.never));
        let is_held = move || {
            let left = left.fetch_sub(1, SeqCst);
            let lapses = left == 1 || twice && left == 0;
            if lapses {
                meanwhile(&store);
            }
            !lapses && !never.load(SeqCst)
        };
        Ok(self.store.lock().await?.with_check(is_held))
    }
}

/// The lock is checked before the call to the refresher, and before its first attempt.
const BEFORE_THE_SECOND_ATTEMPT: usize = 3;

fn builder(server: &AuthServer, store: &Lapsing, tokens: Tokens) -> SessionBuilder {
    Session::builder(tokens).origin(server.origin()).store(store.clone())
}

fn refresher(server: &AuthServer) -> OAuthRefresh {
    OAuthRefresh::new(server.token_endpoint())
        .backoff(Duration::from_millis(1), Duration::from_millis(1))
}

fn session(server: &AuthServer, store: &Lapsing, tokens: Tokens) -> Session {
    builder(server, store, tokens).refresher(refresher(server)).build().unwrap()
}

fn asked_with(call: &Recorded) -> String {
    crate::workers::form(call, "refresh_token").unwrap()
}

#[tokio::test]
async fn a_lapsed_holder_takes_what_others_stored() {
    let server = AuthServer::start().await;
    let store = Lapsing::at(BEFORE_THE_SECOND_ATTEMPT, |store| store.put(pair("other", "ro")));
    server.script_token_endpoint([Answer::Status(503)]);
    let session = session(&server, &store, server.login());
    session.refresh().await.unwrap();
    assert_eq!(held(&session), texts("other", "ro"));
    assert_eq!(server.token_calls(), 1, "its refresh token is spent, and was not sent again");
}

#[tokio::test]
async fn a_lapsed_holder_goes_on_with_the_newer_token() {
    let server = AuthServer::start().await;
    let (old, new) = (server.login(), server.login());
    let newer = crate::workers::refresh_token(&new);
    let stored = Tokens::from_refresh_token(newer.clone()).unwrap();
    let store = Lapsing::at(BEFORE_THE_SECOND_ATTEMPT, move |store| store.put(stored.clone()));
    server.script_token_endpoint([Answer::Status(503)]);
    let session = session(&server, &store, old.clone());
    session.refresh().await.unwrap();
    let asked: Vec<_> = server.token_requests().iter().map(asked_with).collect();
    assert_eq!(asked, [crate::workers::refresh_token(&old), newer]);
}

#[tokio::test]
async fn a_lapsed_lock_is_taken_again() {
    let server = AuthServer::start().await;
    let store = Lapsing::at(BEFORE_THE_SECOND_ATTEMPT, |_| {});
    server.script_token_endpoint([Answer::Status(503)]);
    let session = session(&server, &store, server.login());
    session.refresh().await.unwrap();
    assert_eq!(server.token_calls(), 2);
    assert_eq!(store.locks(), 2);
    store.store.assert_orderly();
    assert!(store.store.is_free());
}

#[tokio::test]
async fn a_lock_that_lapses_again_is_taken_again() {
    let server = AuthServer::start().await;
    let mut store = Lapsing::at(BEFORE_THE_SECOND_ATTEMPT, |_| {});
    store.twice = true;
    server.script_token_endpoint([Answer::Status(503)]);
    let session = session(&server, &store, server.login());
    session.refresh().await.unwrap();
    assert_eq!(server.token_calls(), 2);
    assert_eq!(store.locks(), 3, "nothing is sent under the second lock");
    store.store.assert_orderly();
    assert!(store.store.is_free());
}

#[tokio::test]
async fn a_rotating_token_needs_a_lock_that_holds() {
    let server = AuthServer::start().await;
    let store = Lapsing::at(usize::MAX, |_| {});
    let session = session(&server, &store, server.login());
    // Known to rotate from now on.
    session.refresh().await.unwrap();
    store.never.store(true, SeqCst);
    let error = session.refresh().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Store);
    assert!(error.is_transient());
    assert_eq!(server.token_calls(), 1);
}

#[tokio::test]
async fn a_lapsed_holder_without_its_store_asks_nobody() {
    let server = AuthServer::start().await;
    let store = Lapsing::at(BEFORE_THE_SECOND_ATTEMPT, |store| {
        store.put(pair("t0", "r0"));
        store.always(Call::Lock, Fate::Down);
    });
    let session = session(&server, &store, server.login());
    // Known to rotate from now on. Only the first attempt of this refresh counts.
    store.left.store(usize::MAX, SeqCst);
    session.refresh().await.unwrap();
    store.left.store(BEFORE_THE_SECOND_ATTEMPT, SeqCst);
    server.script_token_endpoint([Answer::Status(503)]);
    let error = session.refresh().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Store);
    assert_eq!(server.token_calls(), 2);
}

#[tokio::test]
async fn a_repeat_for_a_nonce_needs_the_lock() {
    let server = AuthServer::builder().dpop(Dpop::new().token_endpoint_nonces(1)).start().await;
    let store = Lapsing::at(BEFORE_THE_SECOND_ATTEMPT, |store| store.put(pair("other", "ro")));
    let session = builder(&server, &store, server.login())
        .refresher(refresher(&server))
        .placement(Placement::dpop(DpopKey::generate().unwrap()))
        .build()
        .unwrap();
    session.refresh().await.unwrap();
    assert_eq!(held(&session), texts("other", "ro"));
    assert_eq!(server.token_calls(), 1);
}
