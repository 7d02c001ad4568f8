//! Many sessions in one process: the cost of each, and that none leaves a trace or delays another.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod support;

use std::{sync::Mutex, time::Duration};

use http::Extensions;
use peak_alloc::PeakAlloc;
use reqwest::{Request, Response, ResponseBuilderExt, header::AUTHORIZATION};
use reqwest_middleware::{ClientBuilder, ClientWithMiddleware, Middleware, Next};
use reqwest_reauth::{
    ClientBuilderExt, OAuthRefresh, Outcome, Session, Tokens,
    heartbeat::{Beat, Heartbeat},
    refresh_with,
};
use support::{ORIGIN, url};
use tokio::{
    runtime::{Builder, Handle, Runtime},
    time::Instant,
};

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// Memory is counted for the whole process, so the tests run one at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// The end of the chain: rejects every token but `new`, and stores nothing.
struct Api;

#[async_trait::async_trait]
impl Middleware for Api {
    async fn handle(
        &self,
        request: Request,
        _: &mut Extensions,
        _: Next<'_>,
    ) -> reqwest_middleware::Result<Response> {
        let status = if request.headers()[AUTHORIZATION] == "Bearer new" { 200 } else { 401 };
        let answer = http::Response::builder().status(status).url(request.url().clone());
        Ok(answer.body("").unwrap().into())
    }
}

fn client() -> ClientWithMiddleware {
    ClientBuilder::new(reqwest::Client::new()).with_scoped_sessions().with(Api).build()
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().start_paused(true).build().unwrap()
}

/// A session whose token is rejected and refreshed at its first request.
fn session() -> Session {
    let tokens = Tokens::new("old")
        .unwrap()
        .with_refresh_token("r")
        .unwrap()
        .with_expires_in(Duration::from_secs(3600));
    let renew = refresh_with(|_| async {
        Ok(Tokens::new("new")?.with_refresh_token("s")?.with_expires_in(Duration::from_secs(3600)))
    });
    Session::builder(tokens).origin(ORIGIN).refresher(renew).build().unwrap()
}

async fn send(client: &ClientWithMiddleware, session: &Session) -> Response {
    session.scope(client.get(url("/")).send()).await.unwrap()
}

/// Sends a request through each session. Each token is rejected and refreshed once.
async fn use_all(client: &ClientWithMiddleware, sessions: &[Session]) {
    for session in sessions {
        let response = send(client, session).await;
        assert_eq!(response.status(), 200);
        assert!(
            response
                .extensions()
                .get::<Outcome>()
                .is_some_and(|outcome| outcome.refreshed && outcome.replayed)
        );
    }
}

/// The runtime drops finished tasks when it runs next.
async fn settled() {
    while Handle::current().metrics().num_alive_tasks() > 0 {
        tokio::task::yield_now().await;
    }
}

#[test]
fn a_session_costs_at_most_2_kib() {
    const SESSIONS: usize = 10_000;
    let _alone = ALONE.lock();
    runtime().block_on(async {
        let client = client();
        use_all(&client, &[session()]).await;
        settled().await;
        let mut sessions = Vec::with_capacity(SESSIONS);
        let before = MEMORY.current_usage();
        sessions.extend((0..SESSIONS).map(|_| session()));
        let fresh = (MEMORY.current_usage() - before) / SESSIONS;
        use_all(&client, &sessions).await;
        settled().await;
        let used = MEMORY.current_usage().saturating_sub(before) / SESSIONS;
        assert!(
            fresh <= 2048 && used <= 2048,
            "{fresh} bytes a session, {used} after a request and a refresh"
        );
        println!("{fresh} bytes a session, {used} after a request and a refresh");
    });
}

#[test]
fn a_session_with_oauth_costs_2_kib() {
    const SESSIONS: usize = 10_000;
    let _alone = ALONE.lock();
    let with_endpoint = || {
        let endpoint =
            OAuthRefresh::new("https://api.example.com/oauth/access_token").client_id("c");
        let tokens = Tokens::new("t").unwrap().with_refresh_token("r").unwrap();
        Session::builder(tokens).origin(ORIGIN).refresher(endpoint).build().unwrap()
    };
    drop(with_endpoint());
    let mut sessions = Vec::with_capacity(SESSIONS);
    let before = MEMORY.current_usage();
    sessions.extend((0..SESSIONS).map(|_| with_endpoint()));
    let each = (MEMORY.current_usage() - before) / SESSIONS;
    assert!(each <= 2048, "{each} bytes a session");
    println!("{each} bytes a session with a token endpoint");
}

#[test]
fn an_idle_session_runs_no_task_and_no_thread() {
    let _alone = ALONE.lock();
    runtime().block_on(async {
        let client = client();
        let threads = threads();
        let sessions: Vec<_> = (0..1_000).map(|_| session()).collect();
        assert_eq!(Handle::current().metrics().num_alive_tasks(), 0);
        use_all(&client, &sessions).await;
        settled().await;
        // A task holds a timer, so without tasks there is no timer. Time passes, and nothing wakes
        // up.
        tokio::time::sleep(Duration::from_secs(86_400)).await;
        assert_eq!(Handle::current().metrics().num_alive_tasks(), 0);
        assert_eq!(threads, self::threads());
    });
}

/// The threads that could belong to a session: a new thread inherits the name of its creator, or
/// has tokio's. The harness has others, for waiting tests.
fn threads() -> Option<usize> {
    let name =
        |thread: &std::path::Path| std::fs::read_to_string(thread.join("comm")).unwrap_or_default();
    let own = name("/proc/thread-self".as_ref());
    let all = std::fs::read_dir("/proc/self/task").ok()?;
    let all = all.filter_map(Result::ok).map(|thread| name(&thread.path()));
    Some(all.filter(|name| *name == own || name.starts_with("tokio")).count())
}

/// How often the runtime slept while this many heartbeats ran for `span`, and the CPU time of its
/// thread.
fn beats(heartbeats: usize, span: Duration, window: Option<f64>) -> (u64, Option<Duration>) {
    let runtime = runtime();
    runtime.block_on(async {
        let handles: Vec<_> = (0..heartbeats)
            .map(|_| {
                let tokens =
                    Tokens::new("t").unwrap().with_expires_in(Duration::from_secs(30 * 24 * 3600));
                let session = Session::builder(tokens).origin(ORIGIN).build().unwrap();
                let heartbeat = Heartbeat::from_fn(|| async { Ok(Beat::Alive) })
                    .session(session)
                    .every(Duration::from_secs(30));
                match window {
                    Some(fraction) => heartbeat.reissue_window(fraction).spawn().unwrap(),
                    None => heartbeat.spawn().unwrap(),
                }
            })
            .collect();
        // The first beats. The clock is paused.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let metrics = Handle::current().metrics();
        let (parks, took) = (metrics.worker_park_count(0), processor_time());
        tokio::time::sleep(span).await;
        let parks = metrics.worker_park_count(0) - parks;
        let took = processor_time().zip(took).map(|(now, before)| now.saturating_sub(before));
        drop(handles);
        (parks, took)
    })
}

/// The CPU time of this thread, or `None` if the system does not report it.
fn processor_time() -> Option<Duration> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    text.split_whitespace().next()?.parse().ok().map(Duration::from_nanos)
}

/// A loop waits for its next beat and for another token, and does not poll once a second.
#[test]
fn a_reissue_window_wakes_for_beats_alone() {
    let _alone = ALONE.lock();
    let span = Duration::from_secs(3000);
    let (without, _) = beats(1, span, None);
    let (with, _) = beats(1, span, Some(0.8));
    assert!(with <= without + 10, "{with} with a window, {without} without");
    assert!(with < 1000, "{with} in 3,000 s");
}

/// Set `HEARTBEATS=10000` for the number that docs/performance.md gives.
#[test]
fn a_reissue_window_costs_little() {
    let _alone = ALONE.lock();
    let heartbeats = std::env::var("HEARTBEATS").map_or(500, |text| text.parse().unwrap());
    let span = Duration::from_secs(300);
    let (_, without) = beats(heartbeats, span, None);
    let (_, with) = beats(heartbeats, span, Some(0.8));
    let Some((with, without)) = with.zip(without) else { return };
    let ratio = with.as_secs_f64() / without.as_secs_f64();
    println!("{heartbeats} heartbeats, {span:?}: {without:?}, with a window {with:?}, {ratio:.2}");
    assert!(ratio < 2.0, "{ratio}: {with:?} against {without:?}");
}

#[test]
fn sessions_leave_no_trace() {
    const SESSIONS: usize = 100_000;
    let _alone = ALONE.lock();
    runtime().block_on(async {
        let client = client();
        // What the runtime, the client and the thread keep for good is there after some have come
        // and gone.
        use_all(&client, &(0..1_000).map(|_| session()).collect::<Vec<_>>()).await;
        settled().await;
        let before = MEMORY.current_usage();
        let mut sessions: Vec<_> = (0..SESSIONS).map(|_| session()).collect();
        use_all(&client, &sessions).await;
        settled().await;
        sessions.clear();
        sessions.shrink_to_fit();
        let left = MEMORY.current_usage().saturating_sub(before);
        assert!(left < 4096, "{left} bytes are left of {SESSIONS} sessions");
        println!("{left} bytes are left of {SESSIONS} sessions");
    });
}

#[test]
fn one_tenants_slow_refresh_delays_no_other() {
    let _alone = ALONE.lock();
    runtime().block_on(async {
        let client = client();
        let slow = refresh_with(|_| async {
            tokio::time::sleep(Duration::from_secs(2)).await;
            Tokens::new("new")
        });
        let slow = Session::builder(Tokens::new("old").unwrap())
            .origin(ORIGIN)
            .refresher(slow)
            .build()
            .unwrap();
        let start = Instant::now();
        let waiting = tokio::spawn(slow.scope({
            let client = client.clone();
            async move { client.get(url("/")).send().await.unwrap().status() }
        }));
        tokio::task::yield_now().await;
        for _ in 0..1_000 {
            assert_eq!(send(&client, &session()).await.status(), 200);
        }
        // The clock is paused, so it advances only after all tasks have run.
        assert_eq!(start.elapsed(), Duration::ZERO);
        assert!(!waiting.is_finished());
        assert_eq!(waiting.await.unwrap(), 200);
        assert!(start.elapsed() >= Duration::from_secs(2));
    });
}
