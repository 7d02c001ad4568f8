//! Jobs that block their runtime, waits that must not last, and shutdowns that have only so much
//! time (contract 4.5, 12.3, 12.4).

use std::{
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use async_trait::async_trait;
use reqwest_middleware::{ClientBuilder, ClientWithMiddleware};
use reqwest_reauth::{
    ClientBuilderExt, Error, ErrorKind, MemoryStore, OAuthRefresh, Session, SessionBuilder,
    SessionState, StoreLock, TokenStore, Tokens, refresh_with, testing::AuthServer,
};
use tokio::{
    runtime::{Builder, Runtime},
    sync::Semaphore,
    time::{Instant, timeout},
};

use crate::support::{Api, ORIGIN};

/// More than anything here takes.
const LONG: Duration = Duration::from_secs(10);

fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

fn session(server: &AuthServer) -> SessionBuilder {
    Session::builder(server.login())
        .origin(server.origin())
        .refresher(OAuthRefresh::new(server.token_endpoint()))
}

fn client(session: &Session) -> ClientWithMiddleware {
    ClientBuilder::new(reqwest::Client::new()).with_session(session.clone()).build()
}

async fn status(client: ClientWithMiddleware, url: String) -> u16 {
    client.get(url).send().await.unwrap().status().as_u16()
}

/// A job whose request starts a refresh, and which then computes.
#[test]
fn a_blocked_caller_delays_nobody() {
    let (servers, background, others) = (runtime(), runtime(), runtime());
    let server = servers.block_on(AuthServer::start());
    let session = session(&server).runtime(background.handle().clone()).build().unwrap();
    server.expire_now();
    let hold = server.hold_token_calls();
    let url = server.url("/jobs");

    let (compute, told_to_compute) = mpsc::channel::<()>();
    let (computes, is_computing) = mpsc::channel();
    let (done, until_done) = mpsc::channel::<()>();
    let request = status(client(&session), url.clone());
    let job = thread::spawn(move || {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let request = tokio::spawn(request);
            while told_to_compute.try_recv().is_err() {
                tokio::task::yield_now().await;
            }
            computes.send(()).unwrap();
            until_done.recv().unwrap();
            request.await.unwrap()
        })
    });
    servers.block_on(hold.waiting(1));
    compute.send(()).unwrap();
    is_computing.recv().unwrap();
    hold.release();
    let other = status(client(&session), url);
    assert_eq!(others.block_on(async { timeout(LONG, other).await }), Ok(200));
    done.send(()).unwrap();
    assert_eq!(job.join().unwrap(), 200);
    assert_eq!(server.token_calls(), 1);
}

#[tokio::test]
async fn a_runtime_that_is_gone_is_skipped() {
    let server = AuthServer::start().await;
    let gone = runtime();
    let store = MemoryStore::default();
    let session = session(&server).runtime(gone.handle().clone()).store(store).build().unwrap();
    gone.shutdown_background();
    timeout(LONG, session.refresh()).await.unwrap().unwrap();
    timeout(LONG, session.replace_tokens(server.login())).await.unwrap().unwrap();
    server.reissue_next(1);
    assert_eq!(status(client(&session), server.url("/jobs")).await, 200);
    timeout(LONG, session.close_within(LONG)).await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_wait_is_bounded_by_the_shorter_limit() {
    let api = Api::accepting(|_| true);
    let second = Duration::from_secs(1);
    for (wait, own, expected) in
        [(Some(2), None, 2), (Some(2), Some(1), 1), (Some(2), Some(3), 2), (None, Some(3), 3)]
    {
        let mut builder = Session::builder(Tokens::from_refresh_token("r").unwrap())
            .origin(ORIGIN)
            .refresher(refresh_with(|_| std::future::pending::<Result<Tokens, Error>>()));
        if let Some(wait) = wait {
            builder = builder.wait_timeout(second * wait);
        }
        let session = builder.build().unwrap();
        let mut request = api.client(&session).get(format!("{ORIGIN}/jobs"));
        if let Some(own) = own {
            request = request.timeout(second * own);
        }
        let begun = Instant::now();
        let error = request.send().await.unwrap_err();
        let case = format!("{wait:?} {own:?}");
        assert_eq!(Error::find_in(&error).unwrap().kind(), ErrorKind::TimedOut, "{case}");
        assert_eq!(begun.elapsed(), second * expected, "{case}");
        // The refresh continues, and a call of `refresh` waits for it.
        assert_eq!(session.state(), SessionState::Refreshing, "{case}");
        assert!(timeout(second * 10, session.refresh()).await.is_err(), "{case}");
    }
    assert!(api.seen().is_empty());
}

// ---- shutdown

#[tokio::test]
async fn close_within_succeeds_in_time() {
    let server = AuthServer::start().await;
    let store = Arc::new(MemoryStore::default());
    let session = session(&server).store(store.clone()).build().unwrap();
    server.reissue_next(1);
    assert_eq!(status(client(&session), server.url("/jobs")).await, 200);
    session.close_within(LONG).await.unwrap();
    assert_eq!(session.state(), SessionState::Closed);
    let stored = store.load().await.unwrap().unwrap();
    assert_eq!(stored.access_token(), session.tokens().unwrap().access_token());
    session.close_within(Duration::ZERO).await.unwrap();
}

/// A call in progress continues, and its result is saved in the background of the shutdown.
#[tokio::test]
async fn a_shutdown_does_not_wait_for_a_call() {
    let server = AuthServer::start().await;
    let store = Arc::new(MemoryStore::default());
    let session = session(&server).store(store.clone()).build().unwrap();
    let old = session.tokens().unwrap();
    let hold = server.hold_token_calls();
    let waiter = tokio::spawn({
        let session = session.clone();
        async move { session.refresh().await }
    });
    hold.waiting(1).await;
    let (begun, limit) = (Instant::now(), Duration::from_millis(300));
    let error = session.close_within(limit).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    assert!(begun.elapsed() >= limit && begun.elapsed() < LONG, "{:?}", begun.elapsed());
    assert_eq!(waiter.await.unwrap().unwrap_err().kind(), ErrorKind::Closed);
    hold.release();
    session.close_within(LONG).await.unwrap();
    let stored = store.load().await.unwrap().unwrap();
    assert!(stored.refresh_token().is_some());
    assert_ne!(stored.refresh_token(), old.refresh_token());
    assert_eq!(server.token_calls(), 1);
    assert_eq!(server.counts().reuses, 0);
}

/// A store that saves on demand.
#[derive(Clone)]
struct Gated(Arc<Semaphore>);

#[async_trait]
impl TokenStore for Gated {
    async fn load(&self) -> Result<Option<Tokens>, Error> {
        Ok(None)
    }

    async fn save(&self, _: &StoreLock, _: &Tokens) -> Result<(), Error> {
        self.0.acquire().await.unwrap().forget();
        Ok(())
    }

    async fn clear(&self, _: &StoreLock) -> Result<(), Error> {
        Ok(())
    }

    async fn lock(&self) -> Result<StoreLock, Error> {
        Ok(StoreLock::none())
    }
}

#[tokio::test]
async fn a_shutdown_does_not_wait_for_a_store() {
    let server = AuthServer::start().await;
    let gate = Arc::new(Semaphore::new(0));
    let session = session(&server).store(Gated(Arc::clone(&gate))).store_timeout(LONG);
    let session = session.build().unwrap();
    server.reissue_next(1);
    assert_eq!(status(client(&session), server.url("/jobs")).await, 200);
    let error = session.close_within(Duration::from_millis(200)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    // The save continues in the background.
    gate.add_permits(1);
    session.close_within(LONG).await.unwrap();
}
