//! One session on two runtimes, of which the runtime of the refresh is shut down (contract §6.4).
//! Each runtime has its own clock: that of the one that goes on is paused where a limit counts.

use std::{
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use crate::support::{
    Api, Issuer, ORIGIN, Turn, held, pair,
    store::{Call, FakeStore, Fate, Op},
    texts, url,
};
use reqwest_reauth::{Error, ErrorKind, MemoryStore, Session, StoreLock, TokenStore, Tokens};
use tokio::{
    runtime::{Builder, Runtime},
    sync::Notify,
};

const BOUND: Duration = Duration::from_secs(20);

fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

fn session(issuer: &Issuer, store: impl TokenStore) -> Session {
    // A time limit must not end the hanging call.
    let session =
        Session::builder(pair("t0", "r0")).origin(ORIGIN).refresher(issuer.clone()).store(store);
    session.store_timeout(2 * BOUND).build().unwrap()
}

#[test]
fn a_shut_down_runtime_frees_its_waiters() {
    let issuer = Issuer::new([Turn::Hang]);
    let store = FakeStore::default();
    let session = session(&issuer, store.clone());
    let (leads, waits) = (runtime(), runtime());
    leads.spawn({
        let session = session.clone();
        async move { session.refresh().await }
    });
    waits.block_on(issuer.until_called(1));
    let api = Api::accepting(|token| token == "t2");
    let (sender, answered) = mpsc::channel();
    let (refused, mut is_refused) = tokio::sync::mpsc::channel(1);
    let gated = Api::new(move |seen| {
        let refused = refused.clone();
        async move {
            let _ = refused.try_send(());
            crate::support::answer(if seen.token() == Some("t2") { 200 } else { 401 })
        }
    });
    waits.spawn({
        let request = gated.client(&session).get(url("/")).send();
        async move { sender.send(request.await) }
    });
    waits.block_on(is_refused.recv()).unwrap();
    assert!(answered.recv_timeout(Duration::from_millis(50)).is_err(), "it waits for the refresh");
    leads.shutdown_background();
    let error = crate::support::error_of(answered.recv_timeout(BOUND).expect("a waiter hangs"));
    assert_eq!(error.kind(), ErrorKind::Internal);
    assert_eq!(error.api_status().unwrap().as_u16(), 401);
    assert!(store.is_free());
    // The next refresh starts here.
    let response = waits.block_on(api.client(&session).get(url("/")).send()).unwrap();
    assert_eq!(response.status().as_u16(), 200);
    assert_eq!(issuer.calls(), 2);
    assert_eq!(held(&session), texts("t2", "r2"));
}

#[test]
fn a_save_cut_off_with_its_runtime_is_kept() {
    let issuer = Issuer::new([]);
    let store = FakeStore::default();
    store.next(Call::Save, [Fate::Hang]);
    let session = session(&issuer, store.clone());
    let (leads, waits) = (runtime(), runtime());
    leads.spawn({
        let session = session.clone();
        async move { session.refresh().await }
    });
    // The store hangs in its first save; the refresh token is kept by then.
    waits.block_on(store.until_begun(Call::Save));
    assert_eq!(held(&session).1, "r1", "the refresh token is not kept before it is saved");
    leads.shutdown_timeout(BOUND);
    assert!(store.is_free());
    waits.block_on(session.refresh()).unwrap();
    assert_eq!(issuer.asked(), [Some("r0".to_owned()), Some("r1".to_owned())]);
    assert_eq!(store.held(), Some(texts("t2", "r2")));
}

#[test]
fn an_undriven_runtime_frees_its_waiters() {
    let issuer = Issuer::new([]);
    let session = Session::builder(pair("t0", "r0")).origin(ORIGIN).refresher(issuer.clone());
    let session = session.cooldown(Duration::ZERO).build().unwrap();
    // It stops as soon as the refresh is registered, before its first poll.
    let still = Builder::new_current_thread().enable_all().build().unwrap();
    still.block_on(async {
        let session = session.clone();
        let mut refresh = Box::pin(async move { session.refresh().await });
        let _ = std::future::poll_fn(|context| {
            std::task::Poll::Ready(refresh.as_mut().poll(context).is_ready())
        })
        .await;
    });
    let runs = Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runs.block_on(async {
        let begun = tokio::time::Instant::now();
        let error = session.refresh().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        // The limit of a refresh, and a second.
        assert_eq!(begun.elapsed().as_secs(), 91);
        session.refresh().await.unwrap();
    });
}

#[test]
fn a_captures_save_outlives_its_runtime() {
    let issuer = Issuer::new([]);
    let store = FakeStore::default();
    store.next(Call::Save, [Fate::Hang]);
    let session = session(&issuer, store.clone());
    let (first, second) = (runtime(), runtime());
    let api =
        Api::new(|_| async { crate::support::answer(200).header("refreshed-api-token", "c1") });
    first.block_on(api.client(&session).get(url("/")).send()).unwrap();
    first.block_on(store.until_begun(Call::Save));
    first.shutdown_timeout(BOUND);
    assert_eq!(store.held(), None);
    second.block_on(session.refresh()).unwrap();
    let saves = store.saves();
    assert_eq!(saves, [texts("c1", "r0"), texts("t1", "r1")]);
}

#[test]
fn a_captures_wait_for_the_lock_is_resumed() {
    let (issuer, store) = (Issuer::new([]), FakeStore::default());
    let session = session(&issuer, store.clone());
    let (first, second) = (runtime(), runtime());
    let other = second.block_on(store.occupy());
    let api =
        Api::new(|_| async { crate::support::answer(200).header("refreshed-api-token", "c1") });
    first.block_on(api.client(&session).get(url("/")).send()).unwrap();
    first.shutdown_timeout(BOUND);
    drop(other);
    second.block_on(session.refresh()).unwrap();
    assert_eq!(store.saves(), [texts("c1", "r0"), texts("t1", "r1")]);
}

/// A wrapper that drives its runtime only during a request leaves a save unfinished, with the
/// store's lock.
#[test]
fn a_saver_nobody_drives_frees_its_lock() {
    let (issuer, store) = (Issuer::new([]), FakeStore::default());
    store.next(Call::Save, [Fate::Hang]);
    let session = Session::builder(pair("t0", "r0")).origin(ORIGIN).refresher(issuer.clone());
    let session = session.store(store.clone()).build().unwrap();
    let api =
        Api::new(|_| async { crate::support::answer(200).header("refreshed-api-token", "c1") });
    let still = Builder::new_current_thread().enable_all().build().unwrap();
    still.block_on(api.client(&session).get(url("/")).send()).unwrap();
    still.block_on(store.until_begun(Call::Save));
    let runs = Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runs.block_on(async {
        let begun = tokio::time::Instant::now();
        session.refresh().await.unwrap();
        // Four times the store timeout, and only once.
        assert_eq!(begun.elapsed().as_secs(), 20);
        session.refresh().await.unwrap();
        session.close().await.unwrap();
        assert_eq!(begun.elapsed().as_secs(), 20);
    });
    assert_eq!(store.saves(), [texts("c1", "r0"), texts("t1", "r1"), texts("t2", "r2")]);
    assert!(store.is_free());
    // It saves nothing more if it is driven again.
    still.block_on(crate::support::settle());
    assert_eq!(store.saves().len(), 3);
}

#[test]
fn without_a_runtime_a_refresh_ends_at_once() {
    let issuer = Issuer::new([]);
    let session = session(&issuer, MemoryStore::default());
    let mut refresh = Box::pin(session.refresh());
    let polled =
        refresh.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop()));
    assert!(
        matches!(polled, std::task::Poll::Ready(Err(error)) if error.kind() == ErrorKind::Internal)
    );
    drop(refresh);
    runtime().block_on(session.refresh()).unwrap();
    assert_eq!(held(&session), texts("t1", "r1"));
}

#[test]
fn a_stuck_call_never_overlaps_another() {
    let issuer = Issuer::new([Turn::Hang]);
    let session = Session::builder(pair("t0", "r0")).origin(ORIGIN).refresher(issuer.clone());
    let session = session.build().unwrap();
    // Nothing drives this runtime after the call has started.
    let still = Builder::new_current_thread().enable_all().build().unwrap();
    still.spawn({
        let session = session.clone();
        async move { session.refresh().await }
    });
    still.block_on(issuer.until_called(1));
    let runs = Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runs.block_on(session.replace_tokens(pair("new", "rn"))).unwrap();
    assert_eq!(runs.block_on(session.refresh()).unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(issuer.calls(), 1);
    assert_eq!(issuer.most(), 1);
    drop(still);
    runs.block_on(session.refresh()).unwrap();
    assert_eq!(issuer.asked(), vec![Some("r0".to_owned()), Some("rn".to_owned())]);
    assert_eq!(issuer.most(), 1);
}

#[test]
fn close_outlasts_a_save_nobody_drives() {
    let (issuer, store) = (Issuer::new([]), FakeStore::default());
    let session = session(&issuer, store.clone());
    let api =
        Api::new(|_| async { crate::support::answer(200).header("refreshed-api-token", "c1") });
    // It stops before the first poll of the background save.
    let still = Builder::new_current_thread().enable_all().build().unwrap();
    still.block_on(api.client(&session).get(url("/")).send()).unwrap();
    let runs = Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    let closed = runs
        .block_on(async { tokio::time::timeout(Duration::from_secs(3600), session.close()).await });
    closed.expect("it is closed in time").unwrap();
    assert!(store.saves().is_empty());
    // Nothing is lost if it continues nevertheless.
    still.block_on(store.until(|ops| ops.iter().any(|op| matches!(op, Op::Save(..)))));
    assert_eq!(store.saves(), [texts("c1", "r0")]);
}

/// A store without a lock, whose first save never ends.
#[derive(Clone, Default)]
struct Unlocked {
    saves: Arc<Mutex<Vec<(String, String)>>>,
    began: Arc<Notify>,
}

#[async_trait::async_trait]
impl TokenStore for Unlocked {
    async fn load(&self) -> Result<Option<Tokens>, Error> {
        Ok(None)
    }

    async fn save(&self, _: &StoreLock, tokens: &Tokens) -> Result<(), Error> {
        let first = {
            let mut saves = self.saves.lock().unwrap();
            saves.push(crate::support::store::texts(tokens));
            saves.len() == 1
        };
        self.began.notify_one();
        if first { std::future::pending().await } else { Ok(()) }
    }

    async fn clear(&self, _: &StoreLock) -> Result<(), Error> {
        Ok(())
    }

    async fn lock(&self) -> Result<StoreLock, Error> {
        Ok(StoreLock::none())
    }
}

#[test]
fn a_refresh_outlasts_a_save_nobody_drives() {
    let (issuer, store) = (Issuer::new([]), Unlocked::default());
    let session = Session::builder(pair("t0", "r0"))
        .origin(ORIGIN)
        .refresher(issuer.clone())
        .store(store.clone())
        .build()
        .unwrap();
    let api =
        Api::new(|_| async { crate::support::answer(200).header("refreshed-api-token", "c1") });
    // It stops in the middle of a save.
    let still = Builder::new_current_thread().enable_all().build().unwrap();
    still.block_on(api.client(&session).get(url("/")).send()).unwrap();
    still.block_on(store.began.notified());
    let runs = Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runs.block_on(session.refresh()).unwrap();
    assert_eq!(held(&session), texts("t1", "r1"));
    assert_eq!(store.saves.lock().unwrap().len(), 1);
    // What could not be saved is saved as soon as possible.
    drop(still);
    runs.block_on(session.refresh()).unwrap();
    assert_eq!(
        *store.saves.lock().unwrap(),
        [texts("c1", "r0"), texts("t1", "r1"), texts("t2", "r2")]
    );
}
