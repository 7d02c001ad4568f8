//! A fleet on a real redis-server: processes that share a login, stall and die, and a Redis that
//! becomes unavailable.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use crate::redis_server::Server;
use crate::workers::{Job, Worker, caller, client, form, refresh_token, session};
use reqwest_middleware::ClientWithMiddleware;
use reqwest_reauth::{
    ErrorKind, Event, OAuthRefresh, RedisStore, SessionBuilder, TokenStore, Tokens,
    testing::{Answer, AuthServer, Rotation},
};

/// How long the lock of a dead or stopped holder is kept.
const LEASE: Duration = Duration::from_millis(600);
/// Beyond what the lease explains.
const SLACK: Duration = Duration::from_secs(5);

/// The part of the other process. It does nothing in a normal run.
pub(crate) async fn worker() {
    if let Some(job) = Job::from_env() {
        let store = RedisStore::connect(&job.store, "login").await.unwrap();
        // Workers that are neither killed nor stopped have the default lease, because a busy
        // machine may not run them for a while.
        let store = if job.is_to_be_stopped() { store.lease(LEASE) } else { store };
        job.run(store).await;
    }
}

async fn served(client: &ClientWithMiddleware, server: &AuthServer) {
    assert_eq!(client.get(server.url("/jobs")).send().await.unwrap().status(), 200);
}

async fn stored(redis: &Server) -> Option<String> {
    redis.store().await.load().await.unwrap().as_ref().map(refresh_token)
}

/// How often the store has failed.
fn counting_failures(session: SessionBuilder) -> (SessionBuilder, Arc<Mutex<Vec<ErrorKind>>>) {
    let failures = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&failures);
    let session = session.on_event(move |event| {
        if let Event::StoreFailed { error, .. } = event {
            heard.lock().unwrap().push(error.kind());
        }
    });
    (session, failures)
}

pub(crate) async fn four_processes_refresh_one_at_a_time() {
    let redis = Server::start();
    crate::workers::four_processes_refresh_once_an_expiry(&redis.url()).await;
}

pub(crate) async fn a_redis_that_goes_away_fails_no_request() {
    let mut redis = Server::start();
    let server = AuthServer::builder().only_newest_token().start().await;
    let day_one = server.login();
    let (session, failures) = counting_failures(
        // Otherwise a rotating refresh token waits for Redis.
        session(day_one.clone(), server.origin(), "alone")
            .store(redis.store().await)
            .refresh_without_store(),
    );
    let session = session.restore().await.unwrap();
    let client = client(&session);
    for _ in 0..2 {
        server.expire_now();
        served(&client, &server).await;
        let before = stored(&redis).await;
        assert_eq!(before, session.tokens().as_ref().map(refresh_token));
        assert!(std::mem::take(&mut *failures.lock().unwrap()).is_empty());

        redis.stop();
        for _ in 0..3 {
            server.expire_now();
            served(&client, &server).await;
            let failed = std::mem::take(&mut *failures.lock().unwrap());
            assert!(
                !failed.is_empty() && failed.iter().all(|kind| *kind == ErrorKind::Store),
                "{failed:?}"
            );
        }

        redis.start_again();
        assert_eq!(stored(&redis).await, before);
        // What could not be saved is there before it is spent.
        let unsaved = session.tokens().as_ref().map(refresh_token);
        let hold = server.hold_token_calls();
        server.expire_now();
        let request = tokio::spawn(client.get(server.url("/jobs")).send());
        hold.waiting(1).await;
        assert_eq!(stored(&redis).await, unsaved);
        hold.release();
        assert_eq!(request.await.unwrap().unwrap().status(), 200);
        assert_eq!(stored(&redis).await, session.tokens().as_ref().map(refresh_token));
    }
    assert_eq!(server.token_calls(), 10);
    assert_eq!(server.counts().reuses, 0);

    // Another worker has all of it.
    let refused = server.refused();
    let other = crate::workers::session(day_one, server.origin(), "other")
        .store(redis.store().await)
        .restore()
        .await
        .unwrap();
    served(&crate::workers::client(&other), &server).await;
    assert_eq!(server.token_calls(), 10);
    assert_eq!(server.refused(), refused);
}

pub(crate) async fn a_restarted_redis_changes_nothing() {
    let mut redis = Server::start();
    let server = AuthServer::builder().only_newest_token().start().await;
    let day_one = server.login();
    let mut sessions = Vec::new();
    for name in ["one", "two", "three"] {
        sessions.push(
            session(day_one.clone(), server.origin(), name)
                .store(redis.store().await)
                .restore()
                .await
                .unwrap(),
        );
    }
    let clients: Vec<_> = sessions.iter().map(client).collect();
    for round in 1..=4 {
        server.expire_now();
        let requests: Vec<_> = clients
            .iter()
            .map(|client| tokio::spawn(client.get(server.url("/jobs")).send()))
            .collect();
        for request in requests {
            assert_eq!(request.await.unwrap().unwrap().status(), 200);
        }
        assert_eq!(server.token_calls(), round);
        redis.stop();
        for client in &clients {
            served(client, &server).await;
        }
        redis.start_again();
    }
    assert_eq!(server.counts().reuses, 0);
    assert_eq!(server.concurrent_token_calls_max(), 1);
}

pub(crate) async fn a_stalled_holder_adopts_newer_tokens() {
    let redis = Server::start();
    // It has made its call when it stops. Without a grace, the others could only learn that the
    // login is over.
    let server =
        AuthServer::builder().rotation(Rotation::ReuseGrace).only_newest_token().start().await;
    let mut worker = Worker::start("stall", "stalled", &server, &redis.url(), &server.login());
    assert_eq!(worker.says().as_deref(), Some("issued"));
    worker.signal("-STOP");

    let day_one = server_tokens(&server);
    let session = session(day_one, server.origin(), "second")
        .store(redis.store().await)
        .restore()
        .await
        .unwrap();
    let client = client(&session);
    let stopped = Instant::now();
    session.refresh().await.unwrap();
    assert!(stopped.elapsed() < LEASE + SLACK, "{:?}", stopped.elapsed());
    session.refresh().await.unwrap();
    served(&client, &server).await;
    let newer = stored(&redis).await;
    assert_eq!(newer, session.tokens().as_ref().map(refresh_token));

    worker.signal("-CONT");
    worker.go_on();
    let said = worker.says().unwrap();
    assert!(said.starts_with("store failed") && said.contains("lost to another holder"), "{said}");
    assert_eq!(worker.says().as_deref(), Some("refreshed after 1 calls"));
    assert_eq!(stored(&redis).await, newer);
    // Its next refresh adopts the stored tokens.
    let calls = server.token_calls();
    worker.go_on();
    assert_eq!(worker.says().as_deref(), Some("refreshed after 0 calls"));
    assert_eq!(worker.says().as_deref(), Some("200 OK"));
    assert_eq!(server.token_calls(), calls);
    assert_eq!(server.counts().reuses, 0);
    assert_eq!(stored(&redis).await, newer);
    served(&client, &server).await;
}

/// The tokens of the first call, which every worker of the fleet was given.
fn server_tokens(server: &AuthServer) -> Tokens {
    Tokens::from_refresh_token(form(&server.token_requests()[0], "refresh_token").unwrap()).unwrap()
}

pub(crate) async fn a_killed_holder_blocks_for_one_lease() {
    let redis = Server::start();
    let server = AuthServer::start().await;
    let day_one = server.login();
    server.script_token_endpoint([Answer::Hang]);
    let hold = server.hold_token_calls();
    let worker = Worker::start("rotate", "first", &server, &redis.url(), &day_one);
    hold.waiting(1).await;
    hold.release();
    server.expire_now();
    let mut requests = Vec::new();
    for name in ["second", "third"] {
        let session = session(day_one.clone(), server.origin(), name)
            .store(redis.store().await.lease(LEASE))
            .build()
            .unwrap();
        requests.push(tokio::spawn(client(&session).get(server.url("/jobs")).send()));
        session
            .subscribe()
            .wait_for(|state| *state == reqwest_reauth::SessionState::Refreshing)
            .await
            .unwrap();
    }
    worker.kill();
    let killed = Instant::now();
    for request in requests {
        assert_eq!(request.await.unwrap().unwrap().status(), 200);
    }
    assert!(killed.elapsed() < LEASE + SLACK, "{:?}", killed.elapsed());
    let callers: Vec<_> = server.token_requests().iter().map(caller).collect();
    assert_eq!(callers.len(), 2, "one of the others has called, and the other has what it got");
    assert_eq!(
        callers[0].as_str(),
        "first",
        "one of the others has called, and the other has what it got"
    );
    assert_eq!(server.counts().reuses, 0);
}

/// The record of the call that is on the wire.
fn record(redis: &Server) -> Option<String> {
    redis.ask(&["HGET", "{login}:tokens", "sending"])
}

/// Killed between the token endpoint's response and the save: the next holder's `invalid_grant`
/// says so (contract 5.7). So does a failure between the two.
pub(crate) async fn a_killed_holders_call_is_told() {
    let redis = Server::start();
    let server = AuthServer::start().await;
    let mut worker = Worker::start("stall", "stalled", &server, &redis.url(), &server.login());
    assert_eq!(worker.says().as_deref(), Some("issued"));
    worker.kill();
    assert_eq!(record(&redis).map(|of| of.len()), Some(64));
    let given = server_tokens(&server);
    let next = || async {
        let refresher = OAuthRefresh::new(server.token_endpoint()).max_attempts(1);
        let next = session(given.clone(), server.origin(), "next").refresher(refresher);
        let next = next.store(redis.store().await).restore().await.unwrap();
        next.refresh().await.unwrap_err()
    };
    server.script_token_endpoint([Answer::Status(400)]);
    let error = next().await;
    assert_eq!(error.kind(), ErrorKind::ClientRejected, "{error:?}");
    let error = next().await;
    assert_eq!(error.kind(), ErrorKind::LoginRequired, "{error:?}");
    assert!(error.possibly_consumed());
}

pub(crate) async fn a_revoked_login_has_lost_no_call() {
    let redis = Server::start();
    let server = AuthServer::start().await;
    let one = session(server.login(), server.origin(), "one").store(redis.store().await);
    let one = one.build().unwrap();
    one.refresh().await.unwrap();
    while record(&redis).is_some() {
        // The lock is released behind the refresh.
        tokio::task::yield_now().await;
    }
    server.revoke("login-1");
    let error = one.refresh().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LoginRequired);
    assert!(!error.possibly_consumed());
}
