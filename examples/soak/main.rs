//! A long run against failing servers: `cargo run --release --example soak -- --minutes 10`.
//!
//! Twenty workers together send 50 requests a second (`--rate` sets another rate) through one
//! session, whose tokens live one second. Of the calls to the token endpoint, 5 % get a 503, 1 %
//! are reset, and 1 % spend the refresh token and lose the response. Using the spent token once
//! more recovers that response. The token endpoint fails twice for three seconds, and the API is
//! restarted twice on the same port.
//!
//! The example prints its counts, and exits with 1 if one of them is out of bounds.

mod relay;
mod tally;

use std::{
    process::ExitCode,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use reqwest_middleware::{ClientBuilder, ClientWithMiddleware};
use reqwest_reauth::{
    ClientBuilderExt as _, OAuthRefresh, Outcome, Session,
    testing::{Answer, AuthServer, Rotation},
};
use tokio::{
    task::JoinSet,
    time::{Interval, MissedTickBehavior, interval, interval_at, sleep_until},
};

use relay::Relay;
use tally::{Held, Of, Tally};

type Failed = Box<dyn std::error::Error>;

const WORKERS: u32 = 20;
const LIFETIME: Duration = Duration::from_secs(1);
const TOKEN_OUTAGE: Duration = Duration::from_secs(3);
const RESTART: Duration = Duration::from_millis(500);

struct Plan {
    length: Duration,
    requests_per_second: f64,
}

#[tokio::main]
async fn main() -> Result<ExitCode, Failed> {
    let plan = Plan::from_arguments()?;
    let server =
        AuthServer::builder().lifetime(LIFETIME).rotation(Rotation::ReuseGrace).start().await;
    // Three calls a second are more than the run will make.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count of calls")]
    let calls = (plan.length.as_secs_f64() * 3.0) as usize + 100;
    server.script_token_endpoint((0..calls).map(|_| fault(fastrand::f64())));

    let upstream = server.origin().trim_start_matches("http://");
    let (mut api, mut token_endpoint) = (Relay::to(upstream).await?, Relay::to(upstream).await?);
    let tally = Arc::new(Tally::default());
    let listener = Arc::clone(&tally);
    let session = Session::builder(server.login())
        .origin(api.origin())
        .refresher(OAuthRefresh::new(
            server.token_endpoint().replace(server.origin(), &token_endpoint.origin()),
        ))
        .on_event(move |event| listener.hear(event))
        .build()?;
    let client = ClientBuilder::new(reqwest::Client::new()).with_session(session.clone()).build();

    let begun = Instant::now();
    let mut workers = JoinSet::new();
    for number in 0..WORKERS {
        let url = format!("{}/worker/{number}", api.origin());
        let first = begun + plan.pause().mul_f64(f64::from(number) / f64::from(WORKERS));
        let due = interval_at(first.into(), plan.pause());
        workers.spawn(work(client.clone(), url, due, begun + plan.length, Arc::clone(&tally)));
    }
    let held = tokio::spawn(watch_held(begun, plan.length));
    let forgetting = async {
        let mut each = interval(Duration::from_secs(1));
        loop {
            each.tick().await;
            server.forget_requests();
        }
    };
    tokio::select! {
        happened = incidents(begun, plan.length, &mut api, &mut token_endpoint, &tally) => happened?,
        () = forgetting => {}
    }
    while let Some(ended) = workers.join_next().await {
        ended?;
        server.forget_requests();
    }
    let took = begun.elapsed();
    // The login must still be valid at the end.
    let alive = session.refresh().await;
    Ok(report(&server, &tally, took, &held.await?, alive.is_ok()))
}

/// Chooses the fate of a call to the token endpoint.
fn fault(roll: f64) -> Answer {
    match roll {
        roll if roll < 0.05 => Answer::Status(503),
        roll if roll < 0.06 => Answer::Reset,
        roll if roll < 0.07 => Answer::Lost,
        _ => Answer::Work,
    }
}

async fn work(
    client: ClientWithMiddleware,
    url: String,
    mut due: Interval,
    end: Instant,
    tally: Arc<Tally>,
) {
    due.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut number = 0_u64;
    while due.tick().await.into_std() < end {
        number += 1;
        let request = if number.is_multiple_of(2) {
            client.get(&url)
        } else {
            client.post(&url).body("payload")
        };
        let got = match request.timeout(Duration::from_secs(30)).send().await {
            Ok(response) => {
                if response.extensions().get::<Outcome>().is_some_and(|outcome| outcome.replayed) {
                    tally.replayed.fetch_add(1, Relaxed);
                }
                let status = response.status().as_u16();
                response.bytes().await.map(|_| status).map_err(Into::into)
            }
            Err(error) => Err(error),
        };
        tally.note(&got);
    }
}

/// Runs two outages of the token endpoint and two restarts of the API, spread over the run.
async fn incidents(
    begun: Instant,
    length: Duration,
    api: &mut Relay,
    token: &mut Relay,
    tally: &Tally,
) -> std::io::Result<()> {
    for (share, of) in
        [(0.20, Of::TokenEndpoint), (0.45, Of::Api), (0.55, Of::TokenEndpoint), (0.85, Of::Api)]
    {
        sleep_until((begun + length.mul_f64(share)).into()).await;
        let (relay, down) = match of {
            Of::Api => (&mut *api, RESTART),
            Of::TokenEndpoint => (&mut *token, TOKEN_OUTAGE),
        };
        tally.outage_begins(of);
        relay.down().await;
        tokio::time::sleep(down).await;
        relay.up().await?;
        tally.outage_ends();
    }
    sleep_until((begun + length).into()).await;
    Ok(())
}

/// Samples once a minute, or four times in a short run. The first sample is taken after everything
/// has been used once.
async fn watch_held(begun: Instant, length: Duration) -> Vec<Held> {
    let step = Duration::from_secs(60).min(length / 4);
    let mut seen = Vec::new();
    let mut at = begun + step;
    while at <= begun + length {
        sleep_until(at.into()).await;
        seen.extend(Held::now().inspect(|held| {
            println!("{:>5.0?} {} KiB, {} files", begun.elapsed(), held.kib, held.files);
        }));
        at += step;
    }
    seen
}

#[allow(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
fn report(
    server: &AuthServer,
    tally: &Tally,
    took: Duration,
    held: &[Held],
    alive: bool,
) -> ExitCode {
    let (counts, count) = (server.counts(), |of: &std::sync::atomic::AtomicU64| of.load(Relaxed));
    let refreshes = count(&tally.refreshes);
    let ratio = refreshes as f64 / (took.as_secs_f64() / LIFETIME.as_secs_f64());
    let at_once = server.concurrent_token_calls_max();
    let (refused, lost) = (tally.failures(true, false), tally.failures(false, false));
    let invalid_grants = count(&tally.invalid_grants) + counts.reuses;

    println!(
        "ran {took:.1?}: {} requests, {} replayed",
        count(&tally.requests),
        count(&tally.replayed)
    );
    println!(
        "token endpoint: {} calls, {refreshes} refreshes, {} retries",
        counts.token_calls,
        count(&tally.retries)
    );
    println!(
        "in outages: {} refused, {} not connected",
        tally.failures(true, true).len(),
        tally.failures(false, true).len()
    );
    let mut held_flat = true;
    if let (Some(first), Some(last)) = (held.first(), held.last()) {
        println!(
            "memory {} to {} KiB, files {} to {}",
            first.kib, last.kib, first.files, last.files
        );
        // An allocator returns little memory, so the check is for growth without bound. A
        // connection uses four files here, two of them in the relay, and in a burst each worker has
        // one.
        held_flat = last.kib <= first.kib + first.kib / 5 + 4096
            && last.files <= first.files + 4 * WORKERS as usize;
    }
    let musts = [
        ("refused outside outages", refused.len().to_string(), "0", refused.is_empty()),
        ("not connected outside restarts", lost.len().to_string(), "0", lost.is_empty()),
        ("refreshes / (run time / lifetime)", format!("{ratio:.2}"), "at most 1.3", ratio <= 1.3),
        ("most calls of the token endpoint at once", at_once.to_string(), "1", at_once == 1),
        ("invalid_grant", invalid_grants.to_string(), "0", invalid_grants == 0),
        ("login alive at the end", alive.to_string(), "true", alive),
        ("memory and files flat", held_flat.to_string(), "true", held_flat),
    ];
    for (what, is, must, good) in &musts {
        println!("{} {what}: {is} (must be {must})", if *good { "ok  " } else { "FAIL" });
    }
    for failure in refused.iter().chain(&lost).take(10) {
        println!("     {failure}");
    }
    if musts.iter().all(|(.., good)| *good) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

impl Plan {
    fn from_arguments() -> Result<Self, Failed> {
        let (mut minutes, mut rate) = (1.0, 50.0);
        let mut arguments = std::env::args().skip(1);
        while let Some(name) = arguments.next() {
            let value: f64 = arguments.next().ok_or("a number is missing")?.parse()?;
            match name.as_str() {
                "--minutes" => minutes = value,
                "--rate" => rate = value,
                _ => return Err("usage: soak [--minutes N] [--rate REQUESTS_PER_SECOND]".into()),
            }
        }
        if !(0.2..=10_000.0).contains(&minutes) || !(1.0..=100_000.0).contains(&rate) {
            return Err("minutes are 0.2 and more, the rate 1 and more".into());
        }
        Ok(Self { length: Duration::from_secs_f64(minutes * 60.0), requests_per_second: rate })
    }

    /// The pause between the requests of one worker.
    fn pause(&self) -> Duration {
        Duration::from_secs_f64(f64::from(WORKERS) / self.requests_per_second)
    }
}
