//! A heartbeat on a thread of its own, beside a job that blocks (contract: heartbeat).

use std::{
    pin::pin,
    time::{Duration, Instant},
};

use futures_util::poll;
use reqwest_middleware::ClientBuilder;
use reqwest_reauth::{
    ClientBuilderExt, ErrorKind, OAuthRefresh, Session,
    heartbeat::{Heartbeat, Stopped},
    testing::AuthServer,
};
use tokio::runtime::{Builder, Runtime};

const MS: fn(u64) -> Duration = Duration::from_millis;

/// A server on a runtime that is never blocked, and a session for it.
fn start() -> (Runtime, AuthServer, Session) {
    let servers = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let server = servers.block_on(AuthServer::start());
    let session = Session::builder(server.login())
        .origin(server.origin())
        .refresher(OAuthRefresh::new(server.token_endpoint()))
        .build()
        .unwrap();
    (servers, server, session)
}

fn heartbeat(server: &AuthServer, session: &Session) -> Heartbeat {
    let client = reqwest::Client::builder().pool_max_idle_per_host(0).build().unwrap();
    let client = ClientBuilder::new(client).with_session(session.clone()).build();
    let url = server.url("/jobs/7/heartbeat");
    Heartbeat::new(client, move |client| client.put(&url)).session(session.clone())
}

fn job() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

#[test]
fn beats_go_on_while_a_job_blocks() {
    let (_servers, server, session) = start();
    let handle = heartbeat(&server, &session).every(MS(50)).spawn_thread().unwrap();
    job().block_on(async {
        handle.health().wait_for(|health| health.beats > 0).await.unwrap();
        // The job's own request starts a refresh, and the job continues to compute.
        server.expire_now();
        let begins_a_refresh = tokio::time::timeout(Duration::ZERO, session.refresh());
        // On a busy machine it may have ended already.
        let _ = begins_a_refresh.await;
        let before = handle.health().borrow().beats;
        // The job ends after ten more beats.
        let begun = Instant::now();
        while handle.health().borrow().beats < before + 10 && begun.elapsed() < MS(60_000) {
            std::thread::sleep(MS(10));
        }
        let health = handle.health().borrow().clone();
        assert!(health.beats >= before + 10, "{before}, then {health:?}");
        assert_eq!(health.consecutive_failures, 0, "{health:?}");
        assert_eq!(session.generation(), 2);
        assert_eq!(server.token_calls(), 1);
        assert_eq!(handle.stop().await, Stopped::Requested);
    });
}

#[test]
fn abort_ends_the_thread_after_its_refresh() {
    let (_servers, server, session) = start();
    let hold = server.hold_token_calls();
    server.expire_now();
    let handle = heartbeat(&server, &session).timeout(MS(60_000)).spawn_thread().unwrap();
    job().block_on(async {
        // The beat was rejected, and waits for a refresh.
        hold.waiting(1).await;
        let begun = Instant::now();
        handle.abort();
        assert_eq!(handle.finished().await, Stopped::Requested);
        assert!(begun.elapsed() < MS(5000), "{:?}", begun.elapsed());
        // Joins the same refresh, which nothing else drives, before it can end.
        let mut refresh = pin!(session.refresh());
        assert!(poll!(refresh.as_mut()).is_pending());
        hold.release();
        refresh.await.unwrap();
        assert_eq!(session.generation(), 2);
        assert_eq!(server.token_calls(), 1);
    });
}

#[test]
fn after_the_end_refreshes_run_at_the_caller() {
    let (_servers, server, session) = start();
    let handle = heartbeat(&server, &session).spawn_thread().unwrap();
    job().block_on(async {
        handle.stop().await;
        session.refresh().await.unwrap();
    });
    assert_eq!(session.generation(), 2);
}

#[test]
fn a_thread_wants_settings_that_work() {
    let (_servers, server, session) = start();
    let wrong = heartbeat(&server, &session).every(Duration::ZERO).spawn_thread();
    assert_eq!(wrong.unwrap_err().kind(), ErrorKind::InvalidConfig);
}
