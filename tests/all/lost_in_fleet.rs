//! A refresh token that a call of another process may have spent (contract 5.7). The record beside
//! the store's lock says whether there was such a call.

use std::{sync::Arc, time::Duration};

use crate::support::{Api, Issuer, ORIGIN, Turn, answer, pair, texts, unavailable, url};
use http::StatusCode;
use reqwest_reauth::{
    Error, ErrorKind, FileStore, MemoryStore, Session, SessionBuilder, StoreLock, TokenStore,
    Tokens,
};
use tokio::runtime::{Builder, Runtime};

type Store = Arc<dyn TokenStore>;

/// A store in memory and one in a file, with the first tokens.
fn stores() -> Vec<(Store, Option<tempfile::TempDir>)> {
    let dir = tempfile::tempdir().unwrap();
    let file = FileStore::new(dir.path().join("tokens.json"));
    let stores: Vec<(Store, _)> =
        vec![(Arc::new(MemoryStore::default()), None), (Arc::new(file), Some(dir))];
    for (store, _) in &stores {
        runtime().block_on(async {
            store.save(&store.lock().await.unwrap(), &pair("t0", "r0")).await.unwrap();
        });
    }
    stores
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// A session as another process would have it.
fn member(store: &Store, issuer: &Issuer) -> SessionBuilder {
    Session::builder(pair("t0", "r0"))
        .origin(ORIGIN)
        .refresher(issuer.clone())
        .store(Arc::clone(store))
        .cooldown(Duration::ZERO)
}

/// Refreshes in a process of its own. Returns the kind of the error, and whether the refresh token
/// may be spent.
fn refresh(store: &Store, turn: Turn) -> Result<Tokens, (ErrorKind, bool)> {
    let issuer = Issuer::new([turn]);
    let session = member(store, &issuer).build().unwrap();
    let result = runtime().block_on(session.refresh());
    assert_eq!(issuer.calls(), 1);
    result.map_err(|error| (error.kind(), error.possibly_consumed()))
}

fn fails(error: Error) -> Turn {
    Turn::Fail(Duration::ZERO, error)
}

fn invalid_grant() -> Turn {
    fails(Error::new(ErrorKind::LoginRequired, "scripted"))
}

/// A process that dies while its call is on the wire.
fn dies_in_its_call(store: &Store) {
    let issuer = Issuer::new([Turn::Hang]);
    let session = member(store, &issuer).build().unwrap();
    let runtime = runtime();
    let _refresh = runtime.spawn(async move { session.refresh().await });
    runtime.block_on(issuer.until_called(1));
}

const LOST: Result<(), (ErrorKind, bool)> = Err((ErrorKind::LoginRequired, true));
const REVOKED: Result<(), (ErrorKind, bool)> = Err((ErrorKind::LoginRequired, false));

fn next_is(store: &Store, expected: Result<(), (ErrorKind, bool)>) {
    assert_eq!(refresh(store, invalid_grant()).map(drop), expected);
}

#[test]
fn a_call_that_the_dead_has_lost_is_told() {
    for (store, _dir) in stores() {
        dies_in_its_call(&store);
        next_is(&store, LOST);
    }
}

#[test]
fn other_text_in_the_lock_file_hides_no_call() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("tokens.json.lock"), "x".repeat(200)).unwrap();
    let store: Store = Arc::new(FileStore::new(dir.path().join("tokens.json")));
    runtime().block_on(async {
        store.save(&store.lock().await.unwrap(), &pair("t0", "r0")).await.unwrap();
    });
    dies_in_its_call(&store);
    next_is(&store, LOST);
}

#[test]
fn a_revoked_login_has_lost_no_call() {
    for (store, _dir) in stores() {
        refresh(&store, Turn::Issue(Duration::ZERO, None)).unwrap();
        let issuer = Issuer::new([Turn::Issue(Duration::ZERO, None), invalid_grant()]);
        let session = member(&store, &issuer).build().unwrap();
        runtime().block_on(async {
            // The stored tokens, a call, and then the end of the login.
            session.refresh().await.unwrap();
            session.refresh().await.unwrap();
            let error = session.refresh().await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::LoginRequired);
            assert!(!error.possibly_consumed());
        });
        assert_eq!(issuer.calls(), 2);
    }
}

#[test]
fn a_call_that_failed_is_not_lost() {
    for (store, _dir) in stores() {
        let busy = unavailable().with_status(StatusCode::SERVICE_UNAVAILABLE);
        let failed = refresh(&store, fails(busy));
        assert_eq!(failed.map(drop), Err((ErrorKind::Unavailable, false)));
        next_is(&store, REVOKED);
    }
}

#[test]
fn a_timeout_is_told_to_the_others() {
    for (store, _dir) in stores() {
        let lost = refresh(&store, fails(unavailable().with_possibly_consumed()));
        assert_eq!(lost.map(drop), Err((ErrorKind::Unavailable, true)));
        next_is(&store, LOST);
    }
}

#[test]
fn a_failure_between_keeps_the_record() {
    for (store, _dir) in stores() {
        dies_in_its_call(&store);
        let failed = refresh(&store, fails(unavailable()));
        assert_eq!(failed.map(drop), Err((ErrorKind::Unavailable, false)));
        next_is(&store, LOST);
    }
}

#[test]
fn a_grant_removes_the_record() {
    for (store, _dir) in stores() {
        dies_in_its_call(&store);
        // The token endpoint does not rotate, and the access token has ended by the next refresh.
        let again = Tokens::new("t1").unwrap().with_expires_in(Duration::ZERO);
        refresh(&store, Turn::Bring(Duration::ZERO, again)).unwrap();
        next_is(&store, REVOKED);
    }
}

#[test]
fn a_captures_save_keeps_the_record() {
    for (store, _dir) in stores() {
        dies_in_its_call(&store);
        let api = Api::new(|_| async { answer(200).header("refreshed-api-token", "c1") });
        let session = member(&store, &Issuer::new([]));
        runtime().block_on(async {
            let session = session.restore().await.unwrap();
            api.client(&session).get(url("/")).send().await.unwrap();
            session.close().await.unwrap();
            let stored = store.load().await.unwrap().unwrap();
            assert_eq!(crate::support::store::texts(&stored), texts("c1", "r0"));
            // It has ended by the next refresh.
            let ended = stored.with_expires_in(Duration::ZERO);
            store.save(&store.lock().await.unwrap(), &ended).await.unwrap();
        });
        next_is(&store, LOST);
    }
}

#[test]
fn a_new_login_removes_the_record() {
    for (store, _dir) in stores() {
        dies_in_its_call(&store);
        let session = member(&store, &Issuer::new([])).build().unwrap();
        let new = pair("t0", "r0").with_expires_in(Duration::ZERO);
        runtime().block_on(session.replace_tokens(new)).unwrap();
        next_is(&store, REVOKED);
    }
}

#[test]
fn a_logout_removes_the_record() {
    for (store, _dir) in stores() {
        dies_in_its_call(&store);
        let session = member(&store, &Issuer::new([])).build().unwrap();
        runtime().block_on(async {
            session.clear().await.unwrap();
            let new = member(&store, &Issuer::new([])).build().unwrap();
            new.replace_tokens(pair("t0", "r0")).await.unwrap();
        });
        next_is(&store, REVOKED);
    }
}

/// A store whose saves fail.
#[derive(Clone)]
struct Full(Store);

#[async_trait::async_trait]
impl TokenStore for Full {
    async fn load(&self) -> Result<Option<Tokens>, Error> {
        self.0.load().await
    }

    async fn save(&self, _: &StoreLock, _: &Tokens) -> Result<(), Error> {
        Err(Error::new(ErrorKind::Store, "the disk is full"))
    }

    async fn clear(&self, lock: &StoreLock) -> Result<(), Error> {
        self.0.clear(lock).await
    }

    async fn lock(&self) -> Result<StoreLock, Error> {
        self.0.lock().await
    }
}

#[test]
fn tokens_that_died_unsaved_are_told() {
    for (store, _dir) in stores() {
        let full: Store = Arc::new(Full(Arc::clone(&store)));
        refresh(&full, Turn::Issue(Duration::ZERO, None)).unwrap();
        next_is(&store, LOST);
    }
}
