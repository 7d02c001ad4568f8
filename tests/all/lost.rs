//! A refresh token that a call without a response may have spent (contract 5.7), and a refresh
//! whose runtime is not driven (contract 6.4).

use std::{
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    task::{Context, Waker},
    time::Duration,
};

use crate::support::{
    Api, Issuer, ORIGIN, Turn, answer, held, pair,
    store::{Call, FakeStore, Fate},
    texts, unavailable, url,
};
use reqwest_reauth::{
    Error, ErrorKind, Event, OAuthRefresh, RefreshContext, Refresher, Session, SessionBuilder,
    SessionState, Tokens, refresh_with, testing::AuthServer,
};
use tokio::{
    runtime::{Builder, Handle, Runtime},
    sync::Notify,
    time::{Instant, sleep, timeout},
};

const SECOND: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);
const HOUR: Duration = Duration::from_secs(3600);

fn builder(issuer: &Issuer) -> SessionBuilder {
    let session = Session::builder(pair("t0", "r0")).origin(ORIGIN).refresher(issuer.clone());
    session.cooldown(Duration::ZERO)
}

fn invalid_grant() -> Turn {
    Turn::Fail(Duration::ZERO, Error::new(ErrorKind::LoginRequired, "scripted"))
}

/// The kind, and whether the refresh token may be spent.
fn told(result: Result<Tokens, Error>) -> (ErrorKind, bool) {
    let error = result.unwrap_err();
    (error.kind(), error.possibly_consumed())
}

#[tokio::test(start_paused = true)]
async fn the_mark_outlives_the_timeout() {
    let issuer = Issuer::new([Turn::Hang, invalid_grant()]);
    let session = builder(&issuer).refresh_timeout(SECOND).build().unwrap();
    assert_eq!(told(session.refresh().await), (ErrorKind::Unavailable, true));
    assert_eq!(told(session.refresh().await), (ErrorKind::LoginRequired, true));
}

#[tokio::test(start_paused = true)]
async fn the_mark_outlives_failures_between() {
    let lost = unavailable().with_possibly_consumed();
    let issuer = Issuer::new([
        Turn::Fail(Duration::ZERO, lost),
        Turn::Fail(Duration::ZERO, unavailable()),
        invalid_grant(),
    ]);
    let session = builder(&issuer).build().unwrap();
    assert_eq!(told(session.refresh().await), (ErrorKind::Unavailable, true));
    assert_eq!(told(session.refresh().await), (ErrorKind::Unavailable, false));
    assert_eq!(told(session.refresh().await), (ErrorKind::LoginRequired, true));
}

#[tokio::test(start_paused = true)]
async fn a_grant_clears_the_mark() {
    // The token endpoint does not rotate.
    let again = Turn::Bring(Duration::ZERO, Tokens::new("t1").unwrap());
    let issuer = Issuer::new([Turn::Hang, again, invalid_grant()]);
    let session = builder(&issuer).refresh_timeout(SECOND).build().unwrap();
    assert_eq!(told(session.refresh().await), (ErrorKind::Unavailable, true));
    session.refresh().await.unwrap();
    assert_eq!(held(&session), texts("t1", "r0"));
    assert_eq!(told(session.refresh().await), (ErrorKind::LoginRequired, false));
}

#[tokio::test(start_paused = true)]
async fn a_new_login_has_no_mark() {
    let issuer = Issuer::new([Turn::Hang, invalid_grant()]);
    let session = builder(&issuer).refresh_timeout(SECOND).build().unwrap();
    assert_eq!(told(session.refresh().await), (ErrorKind::Unavailable, true));
    session.replace_tokens(pair("u0", "r0")).await.unwrap();
    assert_eq!(told(session.refresh().await), (ErrorKind::LoginRequired, false));
}

#[tokio::test(start_paused = true)]
async fn a_token_never_sent_has_no_mark() {
    let store = FakeStore::default();
    let issuer = Issuer::new([invalid_grant()]);
    let session = builder(&issuer).refresh_timeout(SECOND).store(store.clone()).build().unwrap();
    // The lock is not free in time: nothing is sent.
    let other = store.occupy().await;
    assert_eq!(told(session.refresh().await), (ErrorKind::Store, false));
    drop(other);
    assert_eq!(told(session.refresh().await), (ErrorKind::LoginRequired, false));
}

fn thread_runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

#[test]
fn the_mark_outlives_the_runtime() {
    let issuer = Issuer::new([Turn::Hang, invalid_grant()]);
    let session = builder(&issuer).build().unwrap();
    let (gone, here) = (thread_runtime(), thread_runtime());
    let refresh = gone.spawn({
        let session = session.clone();
        async move { session.refresh().await }
    });
    gone.block_on(issuer.until_called(1));
    drop(refresh);
    drop(gone);
    assert_eq!(told(here.block_on(session.refresh())), (ErrorKind::LoginRequired, true));
}

#[test]
fn a_grant_lost_in_its_refresher_is_told() {
    /// Has more to do once the token endpoint has issued tokens, and does not end.
    struct GoesOn(OAuthRefresh, Arc<AtomicBool>, Arc<Notify>);

    #[async_trait::async_trait]
    impl Refresher for GoesOn {
        async fn refresh(&self, context: &RefreshContext) -> Result<Tokens, Error> {
            let tokens = self.0.refresh(context).await?;
            if !self.1.swap(true, Ordering::SeqCst) {
                self.2.notify_one();
                std::future::pending::<()>().await;
            }
            Ok(tokens)
        }
    }

    let (gone, here) = (thread_runtime(), Runtime::new().unwrap());
    let server = here.block_on(AuthServer::start());
    let issued = Arc::new(Notify::new());
    let refresher = OAuthRefresh::new(server.token_endpoint());
    let refresher = GoesOn(refresher, Arc::default(), Arc::clone(&issued));
    let session =
        Session::builder(server.login()).origin(server.origin()).refresher(refresher).build();
    let session = session.unwrap();
    let _refresh = gone.spawn({
        let session = session.clone();
        async move { session.refresh().await }
    });
    gone.block_on(issued.notified());
    drop(gone);
    assert_eq!(told(here.block_on(session.refresh())), (ErrorKind::LoginRequired, true));
}

#[test]
fn the_waiters_of_a_lost_runtime_get_an_error() {
    let issuer = Issuer::new([Turn::Hang]);
    let session = builder(&issuer).build().unwrap();
    let (gone, here) = (thread_runtime(), thread_runtime());
    let _refresh = gone.spawn({
        let session = session.clone();
        async move { session.refresh().await }
    });
    gone.block_on(issuer.until_called(1));
    let waiting = here.spawn({
        let session = session.clone();
        async move { session.refresh().await }
    });
    here.block_on(tokio::task::yield_now());
    drop(gone);
    assert_eq!(told(here.block_on(waiting).unwrap()), (ErrorKind::Internal, true));
}

fn paused_runtime() -> Runtime {
    Builder::new_current_thread().enable_all().start_paused(true).build().unwrap()
}

/// A session that waits at most 2 s for a refresh that stands still.
fn short(issuer: &Issuer) -> SessionBuilder {
    builder(issuer).refresh_timeout(SECOND)
}

#[test]
fn an_undriven_call_is_abandoned_once() {
    let issuer = Issuer::new([Turn::Hang]);
    let session = short(&issuer).build().unwrap();
    let (still, here) = (thread_runtime(), paused_runtime());
    let _refresh = still.spawn({
        let session = session.clone();
        async move { session.refresh().await }
    });
    still.block_on(issuer.until_called(1));
    // The call was on its way.
    here.block_on(async {
        let begun = Instant::now();
        assert_eq!(told(session.refresh().await), (ErrorKind::Unavailable, true));
        assert_eq!(begun.elapsed(), 2 * SECOND);
    });
    here.block_on(session.refresh()).unwrap();
    assert_eq!(held(&session), texts("t2", "r2"));
    assert_eq!(issuer.most(), 1);
}

/// Polls once.
fn poll(future: Pin<&mut impl Future<Output = Result<Tokens, Error>>>) {
    let mut context = Context::from_waker(Waker::noop());
    assert!(future.poll(&mut context).is_pending());
}

/// The waiters of a runtime share its timer.
#[test]
fn a_waiter_outlasts_the_one_before() {
    let issuer = Issuer::new([Turn::Hang]);
    let session = short(&issuer).build().unwrap();
    let (still, here) = (thread_runtime(), paused_runtime());
    let mut refresh = Box::pin(session.refresh());
    still.block_on(async { poll(refresh.as_mut()) });
    here.block_on(async {
        let begun = Instant::now();
        let (mut first, second) = (Box::pin(session.refresh()), session.refresh());
        poll(first.as_mut());
        drop(first);
        let ended = timeout(HOUR, second).await.unwrap();
        assert_eq!(told(ended).0, ErrorKind::Unavailable);
        assert_eq!(begun.elapsed(), 2 * SECOND);
    });
}

/// A waiter is polled without a runtime, on one that then stands still, and on one that is shut
/// down, and then on another.
#[test]
fn a_waiter_outlasts_the_runtime_that_it_began_on() {
    let (stands, gone) = (thread_runtime(), thread_runtime());
    let handles = [None, Some(stands.handle().clone()), Some(gone.handle().clone())];
    drop(gone);
    for handle in handles {
        let issuer = Issuer::new([Turn::Hang]);
        let session = short(&issuer).build().unwrap();
        let (still, here) = (thread_runtime(), paused_runtime());
        let mut refresh = Box::pin(session.refresh());
        still.block_on(async { poll(refresh.as_mut()) });
        let mut waiting = Box::pin(session.refresh());
        let entered = handle.as_ref().map(Handle::enter);
        poll(waiting.as_mut());
        drop(entered);
        let ended = here.block_on(async { timeout(HOUR, waiting).await.unwrap() });
        assert_eq!(told(ended).0, ErrorKind::Unavailable);
    }
}

/// A caller leaves, and its runtime stands still with the response unread, until the limit of a wait
/// is over or almost over.
#[test]
fn a_refresh_that_is_driven_again_ends() {
    for standstill in [HOUR, 9900 * MS] {
        let issuer = Issuer::new([Turn::Issue(100 * MS, None)]);
        let store = FakeStore::default();
        store.next(Call::Save, [Fate::Gated]);
        // A wait ends after 10 s.
        let session = short(&issuer).store(store.clone()).store_timeout(SECOND).build().unwrap();
        let runtime = paused_runtime();
        runtime.block_on(async {
            timeout(50 * MS, session.refresh()).await.unwrap_err();
        });
        runtime.block_on(async {
            let mut waiting = Box::pin(session.refresh());
            poll(waiting.as_mut());
            tokio::time::advance(standstill).await;
            let gate = store.clone();
            // Longer than the extra time of a late timer, and within the limit of a save.
            tokio::spawn(async move {
                gate.until_begun(Call::Save).await;
                sleep(400 * MS).await;
                gate.open_gate();
            });
            waiting.await.unwrap();
        });
        assert_eq!(held(&session), texts("t1", "r1"));
        assert_eq!(store.held(), Some(texts("t1", "r1")));
        assert_eq!(issuer.calls(), 1);
    }
}

/// None of them waits for as long as the limit of a wait.
#[test]
fn callers_that_leave_early_are_freed_too() {
    let issuer = Issuer::new([Turn::Hang]);
    let session = short(&issuer).build().unwrap();
    let (still, here) = (thread_runtime(), paused_runtime());
    still.block_on(async { poll(Box::pin(session.refresh()).as_mut()) });
    here.block_on(async {
        timeout(1900 * MS, session.refresh()).await.unwrap_err();
        sleep(MS).await;
        let second = timeout(1900 * MS, session.refresh()).await.unwrap();
        assert_eq!(told(second).0, ErrorKind::Unavailable);
    });
}

/// A standstill lengthens the limit of the session's own, and not the caller's.
#[test]
fn a_longer_limit_of_the_callers_own_counts() {
    let issuer = Issuer::new([Turn::Hang]);
    let session = short(&issuer).wait_timeout(3 * SECOND).build().unwrap();
    let (still, here) = (thread_runtime(), paused_runtime());
    let rejected = here.block_on(session.credential(ORIGIN)).unwrap();
    session.reject(&rejected);
    let mut refresh = Box::pin(session.refresh());
    still.block_on(async { poll(refresh.as_mut()) });
    here.block_on(async {
        let begun = Instant::now();
        let waiting = tokio::spawn({
            let session = session.clone();
            async move { session.credential(ORIGIN).await }
        });
        tokio::task::yield_now().await;
        tokio::time::advance(2900 * MS).await;
        assert_eq!(waiting.await.unwrap().unwrap_err().kind(), ErrorKind::TimedOut);
        assert_eq!(begun.elapsed(), 3 * SECOND);
    });
}

#[test]
fn a_listener_that_blocks_makes_no_failure_of_a_grant() {
    let issuer = Issuer::new([]);
    let there = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (events, told) = mpsc::channel();
    let (release, released) = mpsc::channel::<()>();
    let released = Mutex::new(released);
    let session = short(&issuer).on_event(move |event| {
        events.send(event.clone()).unwrap();
        if let Event::Refreshed { .. } = event {
            released.lock().unwrap().recv().unwrap();
        }
    });
    let session = session.build().unwrap();
    let refresh = there.spawn({
        let session = session.clone();
        async move { session.refresh().await }
    });
    while !matches!(told.recv().unwrap(), Event::Refreshed { .. }) {}
    paused_runtime().block_on(session.refresh()).unwrap();
    release.send(()).unwrap();
    there.block_on(refresh).unwrap().unwrap();
    assert_eq!(session.state(), SessionState::Active);
    assert!(told.try_iter().all(|event| !matches!(event, Event::RefreshFailed { .. })));
}

/// Every timer of its runtime is late.
#[test]
fn a_waiter_on_an_overloaded_machine_is_freed() {
    let issuer = Issuer::new([Turn::Hang]);
    let session = short(&issuer).build().unwrap();
    let (still, here) = (thread_runtime(), paused_runtime());
    let mut refresh = Box::pin(session.refresh());
    still.block_on(async { poll(refresh.as_mut()) });
    here.block_on(async {
        let waiting = tokio::spawn({
            let session = session.clone();
            async move { session.refresh().await }
        });
        for _ in 0..3 {
            sleep(SECOND).await;
            tokio::time::advance(2 * SECOND).await;
        }
        assert!(waiting.is_finished());
        assert_eq!(told(waiting.await.unwrap()).0, ErrorKind::Unavailable);
    });
}

#[test]
fn a_refresh_for_which_nobody_waits_is_not_given_up() {
    let issuer = Issuer::new([]);
    let session = short(&issuer).build().unwrap();
    let (still, here) = (thread_runtime(), paused_runtime());
    let entered = still.enter();
    poll(Box::pin(session.refresh()).as_mut());
    drop(entered);
    here.block_on(async {
        timeout(SECOND, session.refresh()).await.unwrap_err();
        sleep(HOUR).await;
    });
    assert_eq!(session.state(), SessionState::Refreshing);
    still.block_on(session.refresh()).unwrap();
    assert_eq!(held(&session), texts("t1", "r1"));
    assert_eq!(issuer.calls(), 1);
}

/// A synchronous wrapper drives its runtime during its calls only, while the refresh has its own.
#[test]
fn a_wait_that_is_over_keeps_no_session() {
    let there = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (alive, is_dropped) = mpsc::channel::<()>();
    let refresher = refresh_with(move |_| {
        let _ = &alive;
        async { Tokens::new("t1") }
    });
    let session = Session::builder(pair("t0", "r0")).origin(ORIGIN).refresher(refresher);
    let session = session.runtime(there.handle().clone()).build().unwrap();
    let here = thread_runtime();
    here.block_on(session.refresh()).unwrap();
    drop(session);
    assert_eq!(is_dropped.recv_timeout(60 * SECOND), Err(RecvTimeoutError::Disconnected));
}

#[test]
fn an_abandoned_refresh_sends_nothing_later() {
    let issuer = Issuer::new([]);
    let session = short(&issuer).build().unwrap();
    let (still, here) = (thread_runtime(), paused_runtime());
    // The refresh has its place, and is never polled.
    let mut refresh = Box::pin(session.refresh());
    let entered = still.enter();
    poll(refresh.as_mut());
    drop(entered);
    assert_eq!(told(here.block_on(session.refresh())), (ErrorKind::Unavailable, false));
    here.block_on(session.refresh()).unwrap();
    assert_eq!(issuer.calls(), 1);
    still.block_on(async {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    });
    assert_eq!(issuer.calls(), 1);
    assert_eq!(held(&session), texts("t1", "r1"));
}

#[test]
fn an_undriven_refresh_frees_the_store() {
    let issuer = Issuer::new([Turn::Hang]);
    let store = FakeStore::default();
    let session = short(&issuer).store(store.clone()).build().unwrap();
    let (still, here) = (thread_runtime(), paused_runtime());
    let _refresh = still.spawn({
        let session = session.clone();
        async move { session.refresh().await }
    });
    still.block_on(issuer.until_called(1));
    assert!(!store.is_free());
    here.block_on(session.refresh()).unwrap_err();
    assert!(store.is_free());
    here.block_on(session.refresh()).unwrap();
    assert_eq!(store.held(), Some(texts("t2", "r2")));
}

#[test]
fn a_synchronous_wrapper_holds_others_up_once() {
    let issuer = Issuer::new([Turn::Hang]);
    let api = Api::new(|_| async { answer(200) });
    // A clock of its own for each thread, so that the token ends without a wait.
    let (a, b) = (paused_runtime(), paused_runtime());
    let session = a.block_on(async {
        let tokens = pair("t0", "r0").with_expires_in(HOUR);
        let session = Session::builder(tokens).origin(ORIGIN).refresher(issuer.clone());
        session.cooldown(Duration::ZERO).refresh_timeout(SECOND).build().unwrap()
    });
    let request = || async { api.client(&session).get(url("/")).send().await };
    a.block_on(async {
        // The last second of the token: due, and not expired.
        tokio::time::advance(3599 * SECOND).await;
        request().await.unwrap();
        issuer.until_called(1).await;
    });
    b.block_on(async {
        tokio::time::advance(HOUR + SECOND).await;
        request().await.unwrap_err();
        request().await.unwrap();
        request().await.unwrap();
    });
    assert_eq!(api.tokens_seen(), ["t0", "t2", "t2"]);
    assert_eq!(issuer.calls(), 2);
}

#[test]
fn a_superseded_refresh_gives_way() {
    let issuer = Issuer::new([Turn::Hang]);
    let session = short(&issuer).build().unwrap();
    let (still, here) = (thread_runtime(), paused_runtime());
    let _refresh = still.spawn({
        let session = session.clone();
        async move { session.refresh().await }
    });
    still.block_on(issuer.until_called(1));
    here.block_on(session.replace_tokens(pair("u0", "s0"))).unwrap();
    assert_eq!(told(here.block_on(session.refresh())).0, ErrorKind::Unavailable);
    here.block_on(session.refresh()).unwrap();
    assert_eq!(issuer.asked(), [Some("r0".to_owned()), Some("s0".to_owned())]);
}
