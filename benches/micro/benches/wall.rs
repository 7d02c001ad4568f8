//! Wall time by criterion: the same workloads, and one session shared by 1 and 16 tasks.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use reqwest_reauth_micro::{NAMES, Workload};
use tokio::{runtime::Builder, task::JoinSet};

fn requests(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("request");
    group.throughput(Throughput::Elements(1));
    for name in NAMES {
        let workload = Workload::new(name);
        group.bench_function(name, |bencher| bencher.iter(|| workload.run(1)));
    }
}

/// Time a request while so many tasks send at once through one client and session. What is lost
/// against one task with the same number of threads is contention; the bare client shows what of it
/// is not ours.
fn tasks(criterion: &mut Criterion) {
    let runtime = Builder::new_multi_thread().enable_time().build().unwrap();
    let mut group = criterion.benchmark_group("tasks");
    group.throughput(Throughput::Elements(1));
    for name in ["bare_3", "chain_3"] {
        let workload = Arc::new(Workload::new(name));
        for tasks in [1, 16] {
            group.bench_function(format!("{name}/{tasks}"), |bencher| {
                bencher.iter_custom(|requests| runtime.block_on(send(&workload, tasks, requests)));
            });
        }
    }
}

async fn send(workload: &Arc<Workload>, tasks: u64, requests: u64) -> Duration {
    let start = Instant::now();
    let mut running = JoinSet::new();
    for _ in 0..tasks {
        let workload = Arc::clone(workload);
        running.spawn(async move { workload.send_all(requests.div_ceil(tasks)).await });
    }
    running.join_all().await;
    start.elapsed()
}

criterion_group! {
    name = benches;
    config = Criterion::default().without_plots().warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    targets = requests, tasks
}
criterion_main!(benches);
