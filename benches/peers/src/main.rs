//! Throughput over loopback: this crate, its peers and hand-written clients, each compared with
//! plain reqwest with a fixed header.
//!
//! ```text
//! cargo run --release --manifest-path benches/peers/Cargo.toml [-- PART_OF_A_NAME]
//! ```
//!
//! Each contestant alternates with the plain client of its own reqwest version, so that other load
//! on the machine affects both. There are two figures: the median of the ratios of the pairs, and
//! in brackets the ratio of the fastest runs. On a busy machine the fastest runs are the
//! undisturbed ones.

mod clients;
mod server;

use std::time::{Duration, Instant};

use clients::Client;
use tokio::task::JoinSet;

const IN_FLIGHT: [usize; 3] = [1, 64, 256];
const ROUNDS: usize = 201;
const REQUESTS: usize = 512;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let url = server::start();
    let contestants = clients::contestants(&url).await;
    println!(
        "| requests a second, as a fraction of plain reqwest's: median of pairs (fastest runs) | 1 in flight | 64 | 256 |"
    );
    println!("| --- | ---: | ---: | ---: |");
    let wanted = std::env::args().nth(1).unwrap_or_default();
    let mut plain = Vec::new();
    for contestant in contestants.into_iter().filter(|contestant| contestant.name.contains(&wanted))
    {
        plain.clear();
        print!("| {}", contestant.name);
        for in_flight in IN_FLIGHT {
            let (median, fastest, fastest_plain) =
                ratios(&contestant.client, &contestant.plain, in_flight).await;
            print!(" | {median:.3} ({fastest:.3})");
            plain.push(format!("{fastest_plain:.1?}"));
        }
        println!(" |");
    }
    println!(
        "\na request through the last's plain client, in the fastest run: {}",
        plain.join(", ")
    );
}

/// Throughput as a fraction of the plain client's, and the plain client's time a request.
async fn ratios(client: &Client, plain: &Client, in_flight: usize) -> (f64, f64, Duration) {
    // Connections are opened before anything is measured.
    run(client, in_flight).await;
    run(plain, in_flight).await;
    let mut pairs = Vec::with_capacity(ROUNDS);
    let (mut fastest, mut fastest_plain) = (Duration::MAX, Duration::MAX);
    for round in 0..ROUNDS {
        let (ours, theirs) = if round % 2 == 0 {
            let ours = run(client, in_flight).await;
            (ours, run(plain, in_flight).await)
        } else {
            let theirs = run(plain, in_flight).await;
            (run(client, in_flight).await, theirs)
        };
        pairs.push(theirs.as_secs_f64() / ours.as_secs_f64());
        fastest = fastest.min(ours);
        fastest_plain = fastest_plain.min(theirs);
    }
    pairs.sort_by(f64::total_cmp);
    let fastest = fastest_plain.as_secs_f64() / fastest.as_secs_f64();
    (pairs[ROUNDS / 2], fastest, fastest_plain / u32::try_from(REQUESTS).unwrap())
}

async fn run(client: &Client, in_flight: usize) -> Duration {
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..in_flight {
        let client = client.clone();
        tasks.spawn(async move {
            for _ in 0..REQUESTS / in_flight {
                assert_eq!(client().await, 200);
            }
        });
    }
    tasks.join_all().await;
    start.elapsed()
}
