//! Many tasks on one session while its servers fail.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use reqwest_middleware::{ClientBuilder, ClientWithMiddleware};
use reqwest_reauth::{ClientBuilderExt as _, Event, Session, SessionState};
use reqwest_retry::{RetryTransientMiddleware, policies::ExponentialBackoff};
use tokio::task::JoinSet;

use crate::peers::{Peers, TOKEN, client};

const TASKS: usize = 8;

/// The duration: seconds in `INTEROP_SECONDS`, or `default`.
fn length(default: u64) -> Duration {
    let seconds = std::env::var("INTEROP_SECONDS")
        .ok()
        .map(|seconds| seconds.parse().expect("INTEROP_SECONDS is no number"));
    Duration::from_secs(seconds.unwrap_or(default))
}

/// The statuses that the tasks received, and how often.
type Tally = Arc<Mutex<BTreeMap<String, u64>>>;

/// Eight tasks that send one request after the other until `end`.
struct Load {
    tasks: JoinSet<()>,
    tally: Tally,
}

impl Load {
    fn start(client: &ClientWithMiddleware, url: &str, end: Instant) -> Self {
        let mut load = Self { tasks: JoinSet::new(), tally: Tally::default() };
        for task in 0..TASKS {
            let (client, url, tally) = (client.clone(), url.to_owned(), Arc::clone(&load.tally));
            load.tasks.spawn(async move {
                while Instant::now() < end {
                    let request = if task % 2 == 0 {
                        client.get(&url)
                    } else {
                        client.post(&url).body("payload")
                    };
                    let got = match request.send().await {
                        Ok(response) => response.status().to_string(),
                        Err(error) => format!("{error:#}"),
                    };
                    *tally.lock().unwrap().entry(got).or_default() += 1;
                    // The load of a client that goes on for as long as tokens live and end.
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            });
        }
        load
    }

    async fn end(mut self) -> BTreeMap<String, u64> {
        while let Some(task) = self.tasks.join_next().await {
            task.unwrap();
        }
        std::mem::take(&mut *self.tally.lock().unwrap())
    }
}

fn assert_all_200(tally: &BTreeMap<String, u64>) -> u64 {
    assert_eq!(tally.keys().map(String::as_str).collect::<Vec<_>>(), ["200 OK"], "{tally:?}");
    tally["200 OK"]
}

pub(crate) async fn short_tokens_outlast_a_failing_endpoint() {
    let length = length(20);
    let peers = Peers::start(&[("TTL", if length.as_secs() > 60 { "5" } else { "2" })]);
    // None of them spends the refresh token, because this provider has no grace for a reused one.
    let rounds = usize::try_from(length.as_secs() / 10 + 4).unwrap();
    for fault in ["down", "status 503", "reset", "hang"].into_iter().cycle().take(rounds) {
        peers.fault(TOKEN, "ok", 4).await;
        peers.fault(TOKEN, fault, 1).await;
        peers.fault(TOKEN, "ok", 5).await;
    }
    let (session, events) = peers.session(peers.plain_refresher()).await;

    let tally = Load::start(&client(&session), &peers.api(), Instant::now() + length).end().await;

    let requests = assert_all_200(&tally);
    // The grant is valid, which it would not be if a spent refresh token had been reused. Joins a
    // refresh that may be in progress.
    session.refresh().await.unwrap();
    let calls = peers.hits("POST /token").await;
    let refreshed = peers.answered("POST /token 200").await;
    let refused = peers.answered("GET /resource/echo 401").await
        + peers.answered("POST /resource/echo 401").await;
    let retries = events.retries().len();
    println!(
        "{length:?}: {requests} requests, all 200; {calls} token calls, of which {retries} failed and {refreshed} issued; \
         {refused} refused and replayed"
    );
    assert!(calls >= 10 && retries >= 1, "{calls} calls, {retries} retries");
    assert_eq!(calls, refreshed + retries as u64);
    assert_eq!(events.count(|event| matches!(event, Event::RefreshFailed { .. })), 0);
    assert_eq!(peers.answered("POST /token 400").await, 0);
}

/// nextflow-io/nextflow#6967: after one 502 of a restarting proxy, the client never requested a
/// token again.
pub(crate) async fn a_restarted_token_endpoint_costs_nothing() {
    let peers = Peers::start(&[("TTL", "2")]);
    let (session, events) = peers.session(peers.plain_refresher().max_attempts(40)).await;
    let end = Instant::now() + length(12);
    // Calls to the API bypass nginx, so only refreshes notice that it is gone.
    let load =
        Load::start(&client(&session), &format!("{}/resource/echo", peers.direct_origin()), end);

    let mut stops = 0;
    while Instant::now() + Duration::from_secs(5) < end {
        after_a_refresh(&session).await;
        peers.stop_nginx();
        stops += 1;
        // Longer than a token lives.
        tokio::time::sleep(Duration::from_millis(2500)).await;
        peers.start_nginx();
    }
    let tally = load.end().await;

    let requests = assert_all_200(&tally);
    let retries = events.retries();
    println!(
        "{requests} requests, all 200; nginx stopped {stops} times; {} token calls found nobody",
        retries.len()
    );
    assert!(stops >= 2 && retries.len() >= stops);
    assert!(retries.iter().all(|(status, _)| status.is_none()), "{retries:?}");
    assert_eq!(events.count(|event| matches!(event, Event::RefreshFailed { .. })), 0);
    assert_eq!(peers.answered("POST /token 400").await, 0);
    session.refresh().await.unwrap();
}

pub(crate) async fn a_restarted_proxy_with_an_outer_retry() {
    // Opaque tokens live exactly as long as announced. The second to which a JWT's `exp` is rounded
    // could reject one request twice.
    let peers = Peers::start(&[("TTL", "2"), ("FORMAT", "opaque")]);
    let (session, _) = peers.session(peers.plain_refresher().max_attempts(40)).await;
    let policy = ExponentialBackoff::builder()
        .retry_bounds(Duration::from_millis(50), Duration::from_millis(500))
        .build_with_max_retries(1000);
    let client = ClientBuilder::new(reqwest::Client::new())
        .with(RetryTransientMiddleware::new_with_policy(policy))
        .with_session(session.clone())
        .build();
    let end = Instant::now() + length(12);
    let load = Load::start(&client, &peers.api(), end);

    let mut stops = 0;
    while Instant::now() + Duration::from_secs(5) < end {
        after_a_refresh(&session).await;
        peers.stop_nginx();
        stops += 1;
        // Longer than a token lives.
        tokio::time::sleep(Duration::from_millis(2500)).await;
        peers.start_nginx();
    }
    let tally = load.end().await;

    let requests = assert_all_200(&tally);
    println!("{requests} requests, all 200; nginx stopped {stops} times");
    assert!(stops >= 2);
    assert_eq!(peers.answered("POST /token 400").await, 0);
    session.refresh().await.unwrap();
}

/// No refresh is in progress now, so stopping nginx cannot lose its response. This provider would
/// revoke the grant for that.
async fn after_a_refresh(session: &Session) {
    let mut states = session.subscribe();
    let generation = session.generation();
    while session.generation() == generation || session.state() == SessionState::Refreshing {
        states.changed().await.unwrap();
    }
}
