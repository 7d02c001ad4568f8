//! Storms and growth: from 1 to 10,000 requests that wait for one refresh, and from 1 to 100,000
//! sessions.
//!
//! ```text
//! cargo run --release --manifest-path benches/micro/Cargo.toml --bin scaling
//! ```
//!
//! prints the figures and writes `docs/scaling.svg`.

use std::{
    alloc::System,
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use reqwest_middleware::ClientBuilder;
use reqwest_reauth::{ClientBuilderExt, OAuthRefresh, Session, Tokens};
use reqwest_reauth_micro::{
    End, ORIGIN, connection,
    plot::{Series, slope, svg},
    session,
    storm::{Ideal, Look, Storm, serve},
};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use tokio::{
    runtime::{Builder, Runtime},
    task::JoinSet,
};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// The response time of the token endpoint in the timed storms.
const DELAY: Duration = Duration::from_millis(100);

fn main() {
    storm_over_sockets(256);
    storm(10_000);
    let numbers = [1, 10, 100, 1_000, 10_000];
    let waiters: Vec<_> = numbers.map(|waiters| (waiters, growth_of_waiters(waiters))).into();
    let ideal: Vec<_> = numbers.map(|waiters| (waiters, growth_of_the_ideal(waiters))).into();
    let sessions: Vec<_> = [1, 10, 100, 1_000, 10_000, 100_000]
        .map(|sessions| (sessions, growth_of_sessions(sessions)))
        .into();
    report("requests rejected at once", &waiters);
    report("the ideal: two bare sends each, one wait for all", &ideal);
    report("sessions made, used and dropped", &sessions);
    let points = |figures: &[(usize, Duration)]| {
        figures
            .iter()
            .map(|&(number, time)| (number as f64, time.as_nanos() as f64))
            .collect::<Vec<_>>()
    };
    let series = [
        Series {
            name: "requests rejected at once, one refresh, all replayed",
            colour: "#c2410c",
            points: points(&waiters),
        },
        Series {
            name: "two bare sends each, one wait for all",
            colour: "#737373",
            points: points(&ideal),
        },
        Series {
            name: "sessions made, used and dropped",
            colour: "#1d4ed8",
            points: points(&sessions),
        },
    ];
    let picture = svg(
        "Time on the processor, by number (dotted: exactly linear)",
        "requests or sessions",
        &series,
    );
    fs::write(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/scaling.svg"), picture)
        .unwrap();
}

/// All over loopback, the token endpoint too.
fn storm_over_sockets(waiters: usize) {
    let mut runs = Vec::new();
    for _ in 0..9 {
        let (address, calls) = serve(waiters, DELAY);
        let tokens = Tokens::new("old").unwrap().with_refresh_token("a-refresh-token").unwrap();
        let session = Session::builder(tokens)
            .origin(format!("http://{address}"))
            .refresher(OAuthRefresh::new(format!("http://{address}/token")))
            .build()
            .unwrap();
        let client = ClientBuilder::new(reqwest::Client::new()).with_session(session).build();
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let (elapsed, _) = timed(|| {
            runtime.block_on(async {
                let mut tasks = JoinSet::new();
                for _ in 0..waiters {
                    let request = client.get(format!("http://{address}/")).send();
                    tasks.spawn(async move { assert_eq!(request.await.unwrap().status(), 200) });
                }
                tasks.join_all().await;
            });
        });
        assert_eq!(calls.load(Ordering::SeqCst), 1);
        runs.push(elapsed);
    }
    runs.sort();
    println!(
        "{waiters} requests over sockets rejected at once, a token endpoint that takes {DELAY:?}: one call, all served in"
    );
    println!(
        "{:.0?} (median), {:.0?} (fastest), of which the connections are a part\n",
        runs[runs.len() / 2],
        runs[0]
    );
}

/// A storm compared with the ideal, which is two sends for each request and a single wait.
fn storm(waiters: usize) {
    const RUNS: u32 = 5;
    let runtime = runtime();
    let (mut ours, mut ideal) = (Vec::new(), Vec::new());
    let (mut our_processor, mut ideal_processor) = (Duration::ZERO, Duration::ZERO);
    let (our_memory, ideal_memory) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    for _ in 0..RUNS {
        let storm = Storm::new(waiters, DELAY, memory_into(&our_memory));
        let (elapsed, processor) = timed(|| runtime.block_on(storm.run()));
        ours.push(elapsed);
        our_processor += processor;
        let least = Ideal::new(waiters, DELAY, memory_into(&ideal_memory));
        let (elapsed, processor) = timed(|| runtime.block_on(least.run()));
        ideal.push(elapsed);
        ideal_processor += processor;
    }
    println!(
        "{waiters} requests rejected at once, a token endpoint that takes {DELAY:?}, one thread: one call, all served"
    );
    println!("| | time | on the processor | memory a waiter |");
    println!("| --- | ---: | ---: | ---: |");
    for (name, mut elapsed, processor, memory) in [
        ("through the chain", ours, our_processor, our_memory),
        ("the ideal: two bare sends each, one wait for all", ideal, ideal_processor, ideal_memory),
    ] {
        elapsed.sort();
        let memory = memory.load(Ordering::Relaxed) / waiters;
        println!(
            "| {name} | {:.0?} | {:.0?} | {memory} B |",
            elapsed[elapsed.len() / 2],
            processor / RUNS
        );
    }
    println!();
}

/// The memory in use when all requests wait, minus the memory when this value was created.
fn memory_into(memory: &Arc<AtomicUsize>) -> Look {
    let memory = Arc::clone(memory);
    let before = in_use();
    Arc::new(move || memory.store(in_use() - before, Ordering::Relaxed))
}

fn in_use() -> usize {
    let stats = ALLOCATOR.stats();
    stats.bytes_allocated.wrapping_sub(stats.bytes_deallocated)
}

/// The token endpoint responds as soon as all requests wait, so that only work is measured.
fn growth_of_waiters(waiters: usize) -> Duration {
    let runtime = runtime();
    let storms: Vec<_> =
        (0..runs(waiters)).map(|_| Storm::new(waiters, Duration::ZERO, Arc::new(|| ()))).collect();
    timed(|| storms.iter().for_each(|storm| runtime.block_on(storm.run()))).1 / runs(waiters)
}

fn growth_of_the_ideal(waiters: usize) -> Duration {
    let runtime = runtime();
    let ideals: Vec<_> =
        (0..runs(waiters)).map(|_| Ideal::new(waiters, Duration::ZERO, Arc::new(|| ()))).collect();
    timed(|| ideals.iter().for_each(|ideal| runtime.block_on(ideal.run()))).1 / runs(waiters)
}

fn runs(waiters: usize) -> u32 {
    u32::try_from(50_000 / waiters).unwrap().clamp(10, 20_000)
}

/// Sessions made, one request sent through each, and all dropped.
fn growth_of_sessions(sessions: usize) -> Duration {
    let client =
        ClientBuilder::new(connection()).with_scoped_sessions().with(End::default()).build();
    let runtime = runtime();
    let runs = u32::try_from((200_000 / sessions).max(3)).unwrap();
    let use_them = || async {
        let all: Vec<Session> = (0..sessions).map(|_| session().build().unwrap()).collect();
        for session in &all {
            session.scope(client.get(ORIGIN).send()).await.unwrap();
        }
    };
    timed(|| (0..runs).for_each(|_| runtime.block_on(use_them()))).1 / runs
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_time().build().unwrap()
}

/// Wall time and CPU time. On many systems CPU time advances in ticks of several milliseconds.
fn timed(work: impl FnOnce()) -> (Duration, Duration) {
    let (start, before) = (Instant::now(), on_processor());
    work();
    let elapsed = start.elapsed();
    match (before, on_processor()) {
        (Some(before), Some(after)) => (elapsed, after - before),
        _ => (elapsed, elapsed),
    }
}

/// The CPU time of this thread, if the system reports it. Other threads do not count.
fn on_processor() -> Option<Duration> {
    let text = fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    Some(Duration::from_nanos(text.split(' ').next()?.parse().ok()?))
}

fn report(what: &str, figures: &[(usize, Duration)]) {
    println!("| {what} | on the processor | each |");
    println!("| ---: | ---: | ---: |");
    for (number, time) in figures {
        println!("| {number} | {time:.1?} | {:.2?} |", *time / u32::try_from(*number).unwrap());
    }
    // A few show the one-time cost, and more show the growth.
    let many: Vec<_> = figures
        .iter()
        .filter(|(number, _)| *number >= 100)
        .map(|&(number, time)| (number as f64, time.as_nanos() as f64))
        .collect();
    println!("slope from 100 on: {:.2}\n", slope(&many));
}
