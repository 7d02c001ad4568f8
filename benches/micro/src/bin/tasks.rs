//! One session shared by 1 and by 16 tasks on two worker threads: what 16 gain over one, through the
//! chain and through the bare client.
//!
//! ```text
//! cargo run --release --manifest-path benches/micro/Cargo.toml --bin tasks
//! ```
//!
//! What is lost against twice the throughput is contention; the bare client shows what of it is not
//! ours. The four cases run by turns, so that what else the machine does falls on all; the figures
//! are medians, with the middle half of the runs in brackets. On a machine with fewer than two idle
//! processors they say nothing.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use reqwest_reauth_micro::Workload;
use tokio::{
    runtime::{Builder, Runtime},
    task::JoinSet,
};

const ROUNDS: usize = 101;
const REQUESTS: u64 = 16_000;

fn main() {
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap();
    let workloads = ["bare_3", "chain_3"].map(|name| Arc::new(Workload::new(name)));
    let mut gains = [const { Vec::new() }; 2];
    let mut times = [const { Vec::new() }; 4];
    for _ in 0..ROUNDS {
        for (index, workload) in workloads.iter().enumerate() {
            let one = send(&runtime, workload, 1);
            let many = send(&runtime, workload, 16);
            gains[index].push(one / many);
            times[index * 2].push(one);
            times[index * 2 + 1].push(many);
        }
    }
    println!("| time a request, ns | 1 task | 16 tasks | gain |");
    println!("| --- | ---: | ---: | ---: |");
    let [bare, chain] = gains.map(middle);
    let [bare_one, bare_many, one, many] = times.map(middle);
    println!("| bare client | {bare_one:.0?} | {bare_many:.0?} | {bare:.2?} |");
    println!("| whole chain | {one:.0?} | {many:.0?} | {chain:.2?} |");
    println!("\nthe chain's gain over the bare client's: {:.2}", chain[1] / bare[1]);
}

/// The quartiles.
fn middle(mut values: Vec<f64>) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    [1, 2, 3].map(|quarter| values[values.len() * quarter / 4])
}

/// Nanoseconds a request.
fn send(runtime: &Runtime, workload: &Arc<Workload>, tasks: u64) -> f64 {
    let elapsed: Duration = runtime.block_on(async {
        let mut running = JoinSet::new();
        let start = Instant::now();
        for _ in 0..tasks {
            let workload = Arc::clone(workload);
            running.spawn(async move { workload.send_all(REQUESTS / tasks).await });
        }
        running.join_all().await;
        start.elapsed()
    });
    elapsed.as_nanos() as f64 / REQUESTS as f64
}
