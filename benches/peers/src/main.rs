//! Throughput over loopback: this crate, its peers and clients written by hand, each against plain reqwest with a fixed header.
//!
//! ```text
//! cargo run --release --manifest-path benches/peers/Cargo.toml
//! ```
//!
//! Each contestant runs by turns with the plain client of the reqwest version that it is made for, so that what else the machine
//! does in the meantime falls on both; what counts is the median of the ratios.

mod clients;
mod server;

use std::time::{Duration, Instant};

use clients::Client;
use tokio::task::JoinSet;

const IN_FLIGHT: [usize; 3] = [1, 64, 256];
const ROUNDS: usize = 31;
const REQUESTS: usize = 2048;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let url = server::start();
    let contestants = clients::contestants(&url).await;
    println!("| client | against | 1 in flight | 64 in flight | 256 in flight |");
    println!("| ------ | ------- | ----------: | -----------: | ------------: |");
    for contestant in contestants {
        let mut cells = Vec::new();
        for in_flight in IN_FLIGHT {
            cells.push(ratio(&contestant.client, &contestant.plain, in_flight).await);
        }
        println!("| {} | {} | {:.3} | {:.3} | {:.3} |", contestant.name, contestant.against, cells[0], cells[1], cells[2]);
    }
}

/// Throughput as a fraction of the plain client's.
async fn ratio(client: &Client, plain: &Client, in_flight: usize) -> f64 {
    // Connections are opened before anything is measured.
    run(client, in_flight).await;
    run(plain, in_flight).await;
    let mut ratios = Vec::with_capacity(ROUNDS);
    for round in 0..ROUNDS {
        let (ours, theirs) = if round % 2 == 0 {
            let ours = run(client, in_flight).await;
            (ours, run(plain, in_flight).await)
        } else {
            let theirs = run(plain, in_flight).await;
            (run(client, in_flight).await, theirs)
        };
        ratios.push(theirs.as_secs_f64() / ours.as_secs_f64());
    }
    ratios.sort_by(f64::total_cmp);
    ratios[ROUNDS / 2]
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
