//! The cost of a fleet for its Redis (contract 10.8), and the cost of a failover, a data loss or a
//! slow Redis for the fleet.

use std::time::{Duration, Instant};

use crate::redis_server::Server;
use crate::workers::{Worker, client, refresh_token, session};
use futures_util::future::join_all;
use reqwest_reauth::{
    Error, ErrorKind, OAuthRefresh, RedisStore, Session, TokenStore, Tokens,
    testing::{Answer, AuthServer},
};

const MEMBERS: u32 = 100;
const ATTEMPTS: u32 = 3;
/// The cost of one refresh without its waiters, including the query of the counter.
const HOLDER: u64 = 60;

/// The number of commands that Redis has run so far, including those inside scripts.
fn commands(redis: &Server) -> u64 {
    let info: String = redis.ask(&["INFO", "commandstats"]);
    let calls = info.lines().filter_map(|line| line.split_once("calls=")?.1.split(',').next());
    calls.map(|calls| calls.parse::<u64>().unwrap()).sum()
}

/// Eight for each waiter. After a second and a half, as on a busy machine, a waiter also asks for
/// the rest of the holder's lease.
fn most(begun: Instant) -> u64 {
    let each = if begun.elapsed() > Duration::from_millis(1400) { 9 } else { 8 };
    each * u64::from(MEMBERS - 1) + HOLDER
}

/// Sessions that share a login, each with a separate connection, as separate processes would have.
async fn fleet(url: &str, server: &AuthServer, given: &Tokens) -> Vec<Session> {
    join_all((0..MEMBERS).map(|_| async {
        let store = RedisStore::connect(url, "login").await.unwrap();
        let refresher = OAuthRefresh::new(server.token_endpoint())
            .max_attempts(ATTEMPTS)
            .backoff(Duration::from_millis(500), Duration::from_millis(500));
        let builder = session(given.clone(), server.origin(), "member").refresher(refresher);
        builder.store(store).restore().await.unwrap()
    }))
    .await
}

/// Refreshes all of them at once. Returns the results and their times.
async fn refresh_all(members: &[Session]) -> Vec<(Result<Tokens, Error>, Instant)> {
    let tasks: Vec<_> = members
        .iter()
        .map(|member| {
            let member = member.clone();
            tokio::spawn(async move { (member.refresh().await, Instant::now()) })
        })
        .collect();
    let mut results = Vec::new();
    for task in tasks {
        results.push(task.await.unwrap());
    }
    results
}

async fn put(redis: &Server, tokens: &Tokens) {
    let store = redis.store().await;
    store.save(&store.lock().await.unwrap(), tokens).await.unwrap();
}

pub(crate) async fn a_waiter_costs_eight_commands() {
    let redis = Server::start();
    let server = AuthServer::start().await;
    let given = server.login();
    put(&redis, &given).await;
    let members = fleet(&redis.url(), &server, &given).await;
    let (before, begun) = (commands(&redis), Instant::now());
    server.script_token_endpoint([Answer::Delay(Duration::from_secs(1))]);
    let results = refresh_all(&members).await;
    assert!(results.iter().all(|(result, _)| result.is_ok()), "{results:?}");
    let spent = commands(&redis) - before;
    let times = || results.iter().map(|(_, at)| *at);
    let spread = times().max().unwrap() - times().min().unwrap();
    eprintln!("{MEMBERS} members: {spent} commands, the last {spread:?} after the first");
    assert_eq!(server.token_calls(), 1);
    assert!(spent <= most(begun), "{spent} commands");
    assert!(spread < Duration::from_secs(1), "{spread:?}");
}

fn kinds(results: &[(Result<Tokens, Error>, Instant)], kind: ErrorKind) -> usize {
    let is_it =
        |result: &Result<Tokens, Error>| result.as_ref().is_err_and(|error| error.kind() == kind);
    results.iter().filter(|(result, _)| is_it(result)).count()
}

pub(crate) async fn an_outage_costs_eight_commands() {
    let redis = Server::start();
    let server = AuthServer::start().await;
    let given = server.login();
    put(&redis, &given).await;
    let members = fleet(&redis.url(), &server, &given).await;
    let (before, begun) = (commands(&redis), Instant::now());
    server.script_token_endpoint((0..100).map(|_| Answer::Status(503)));
    let results = refresh_all(&members).await;
    let spent = commands(&redis) - before;
    eprintln!("{MEMBERS} members without an endpoint: {spent} commands");
    assert_eq!(kinds(&results, ErrorKind::Unavailable), 1, "{results:?}");
    assert_eq!(kinds(&results, ErrorKind::CoolingDown), members.len() - 1, "{results:?}");
    assert_eq!(server.token_calls(), u64::from(ATTEMPTS));
    assert!(spent <= most(begun), "{spent} commands");
}

pub(crate) async fn a_dead_login_costs_eight_commands() {
    let redis = Server::start();
    let server = AuthServer::start().await;
    let given = server.login();
    put(&redis, &given).await;
    let members = fleet(&redis.url(), &server, &given).await;
    let (before, begun) = (commands(&redis), Instant::now());
    server.revoke("login-1");
    server.script_token_endpoint([Answer::Delay(Duration::from_secs(1))]);
    let results = refresh_all(&members).await;
    let spent = commands(&redis) - before;
    eprintln!("{MEMBERS} members without a login: {spent} commands");
    assert_eq!(kinds(&results, ErrorKind::LoginRequired), members.len(), "{results:?}");
    assert_eq!(server.token_calls(), 1);
    assert!(spent <= most(begun), "{spent} commands");
}

pub(crate) async fn who_may_not_subscribe_looks_once_a_second() {
    const WAIT: Duration = Duration::from_secs(3);
    let redis = Server::start();
    let user = ["ACL", "SETUSER", "poll", "on", ">s3cret", "~*", "resetchannels", "+@all"];
    redis.ask::<()>(&user);
    let url = redis.url().replace("redis://", "redis://poll:s3cret@");
    let server = AuthServer::start().await;
    let given = server.login();
    put(&redis, &given).await;
    let members = fleet(&url, &server, &given).await;
    let before = commands(&redis);
    server.script_token_endpoint([Answer::Delay(WAIT)]);
    let results = refresh_all(&members).await;
    assert!(results.iter().all(|(result, _)| result.is_ok()), "{results:?}");
    assert_eq!(server.token_calls(), 1);
    let spent = commands(&redis) - before;
    eprintln!("{MEMBERS} members that look: {spent} commands in {WAIT:?}");
    let times = || results.iter().map(|(_, at)| *at);
    let spread = times().max().unwrap() - times().min().unwrap();
    assert!(spread < Duration::from_millis(1500), "{spread:?}");
}

/// Between two attempts, a holder is stopped for longer than its lease. In the meantime another
/// process spends its refresh token, which it must not send again.
pub(crate) async fn a_holder_stopped_between_attempts_sends_nothing() {
    let redis = Server::start();
    let server = AuthServer::start().await;
    let given = server.login();
    server.script_token_endpoint([Answer::Status(503)]);
    let mut worker = Worker::start("rotate aloud", "stopped", &server, &redis.url(), &given);
    assert_eq!(worker.says().as_deref(), Some("ready"));
    assert_eq!(worker.says().as_deref(), Some("retries"));
    // It waits for at least 250 ms before its next attempt.
    worker.signal("-STOP");
    let other = session(given, server.origin(), "other").store(redis.store().await);
    let other = other.restore().await.unwrap();
    other.refresh().await.unwrap();
    let calls = server.token_calls();
    worker.signal("-CONT");
    assert_eq!(worker.says().as_deref(), Some("rotated"));
    assert_eq!(server.counts().reuses, 0);
    assert!(server.token_calls() >= calls);
}

// ---- a Redis that fails over, forgets, or is slow

fn synced(primary: &Server) {
    // Also waits for a replica that is not connected yet.
    assert_eq!(primary.ask::<u32>(&["WAIT", "1", "60000"]), 1);
}

/// A primary and its synchronised replica.
fn pair() -> (Server, Server) {
    let (primary, replica) = (Server::start(), Server::start());
    replica.ask::<()>(&["REPLICAOF", "127.0.0.1", &primary.port.to_string()]);
    synced(&primary);
    (primary, replica)
}

/// The replica takes over the dead primary's role and address.
fn fail_over(primary: &mut Server, replica: &Server) {
    primary.stop();
    replica.ask::<()>(&["REPLICAOF", "NO", "ONE"]);
    replica.ask::<()>(&["CONFIG", "SET", "port", &primary.port.to_string()]);
}

pub(crate) async fn a_failover_keeps_what_was_replicated() {
    let (mut primary, replica) = pair();
    let server = AuthServer::builder().only_newest_token().start().await;
    let given = server.login();
    let member = |url: String| {
        let builder = session(given.clone(), server.origin(), "member");
        async move {
            let store = RedisStore::connect(&url, "login").await.unwrap();
            builder.store(store).restore().await.unwrap()
        }
    };
    let (one, two) = (member(primary.url()).await, member(primary.url()).await);
    one.refresh().await.unwrap();
    synced(&primary);
    fail_over(&mut primary, &replica);
    two.refresh().await.unwrap();
    assert_eq!(server.token_calls(), 1, "the second one has what the first one brought");
    two.refresh().await.unwrap();
    one.refresh().await.unwrap();
    assert_eq!(server.token_calls(), 2);
    assert_eq!(server.counts().reuses, 0);
}

/// The newest token is lost with the primary. The process that obtained it still holds it, and
/// stores it again before it is spent.
pub(crate) async fn a_failover_that_loses_a_save_is_repaired() {
    let (mut primary, replica) = pair();
    let server = AuthServer::builder().only_newest_token().start().await;
    let given = server.login();
    put(&primary, &given).await;
    synced(&primary);
    let store = RedisStore::connect(&primary.url(), "login").await.unwrap();
    let one = session(given, server.origin(), "one").store(store).restore().await.unwrap();
    replica.ask::<()>(&["REPLICAOF", "NO", "ONE"]);
    one.refresh().await.unwrap();
    fail_over(&mut primary, &replica);
    one.refresh().await.unwrap();
    assert_eq!(server.token_calls(), 2);
    assert_eq!(server.counts().reuses, 0);
    let newest = RedisStore::connect(&primary.url(), "login").await.unwrap().load().await.unwrap();
    assert_eq!(newest.as_ref().map(refresh_token), one.tokens().as_ref().map(refresh_token));
}

pub(crate) async fn scripts_and_keys_may_be_lost() {
    let redis = Server::start();
    let server = AuthServer::start().await;
    let one = session(server.login(), server.origin(), "one").store(redis.store().await);
    let one = one.restore().await.unwrap();
    one.refresh().await.unwrap();
    redis.ask::<()>(&["SCRIPT", "FLUSH"]);
    one.refresh().await.unwrap();
    // Evicted or flushed.
    redis.ask::<()>(&["FLUSHALL"]);
    one.refresh().await.unwrap();
    assert_eq!(server.token_calls(), 3);
    assert_eq!(server.counts().reuses, 0);
    let stored = redis.store().await.load().await.unwrap();
    assert_eq!(stored.as_ref().map(refresh_token), one.tokens().as_ref().map(refresh_token));
}

pub(crate) async fn a_slow_redis_is_waited_for() {
    let redis = Server::start();
    let server = AuthServer::start().await;
    let one = session(server.login(), server.origin(), "one").store(redis.store().await);
    let one = one.restore().await.unwrap();
    redis.ask::<()>(&["CLIENT", "PAUSE", "1000"]);
    server.expire_now();
    let response = client(&one).get(server.url("/jobs")).send().await.unwrap();
    assert_eq!(response.status(), 200);
    let stored = redis.store().await.load().await.unwrap();
    assert_eq!(stored.as_ref().map(refresh_token), one.tokens().as_ref().map(refresh_token));
}
