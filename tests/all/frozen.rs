//! A process that is not run for a while, stopped or starved, keeps its login: what the kernel holds
//! is read before a limit counts (contract 12.1). The token endpoint forgives nothing: a refresh
//! token that comes twice ends the login.

use std::{
    ffi::OsString,
    io::{BufRead, BufReader, Lines, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{Arc, Barrier},
    thread,
    time::{Duration, Instant, SystemTime},
};

use crate::workers::form;
use reqwest_middleware::{ClientBuilder, ClientWithMiddleware};
use reqwest_reauth::{
    ClientBuilderExt, Error, ErrorKind, FileStore, OAuthRefresh, Session, SessionBuilder, Tokens,
    heartbeat::Heartbeat,
    testing::{AuthServer, Refusal},
};
use tokio::runtime::{Builder, Runtime};

/// Longer than it takes to start everything, shorter than a freeze.
const LIMIT: Duration = Duration::from_secs(3);
const FREEZE: Duration = Duration::from_millis(3600);
/// How many logins are at stake in each test.
const LOGINS: usize = 20;

// ---- the process that is stopped

/// A process of its own: this test binary, running nothing but [`child`].
struct Process {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    input: ChildStdin,
}

impl Process {
    fn start(task: &str, server: &AuthServer, store: &str, logins: &[Tokens]) -> Self {
        Self::start_with(task, server, store, logins, [])
    }

    fn start_with<const N: usize>(
        task: &str,
        server: &AuthServer,
        store: &str,
        logins: &[Tokens],
        envs: [(&str, OsString); N],
    ) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "frozen::child", "--nocapture", "--test-threads=1"])
            .envs([("FROZEN_TASK", task), ("FROZEN_API", server.origin()), ("FROZEN_STORE", store)])
            .envs(envs)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut input = child.stdin.take().unwrap();
        for login in logins {
            let access = login.access_token().unwrap().expose_secret();
            let refresh = login.refresh_token().unwrap().expose_secret();
            writeln!(input, "{access} {refresh}").unwrap();
        }
        writeln!(input).unwrap();
        Self { child, lines, input }
    }

    fn signal(&self, signal: &str) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &id]).status().unwrap().success());
    }

    /// The lines that the worker prints at the end.
    fn says(&mut self) -> String {
        let mut lines = self.lines.by_ref().map_while(Result::ok);
        lines.find_map(|line| line.strip_prefix("> ").map(str::to_owned)).unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where libfaketime is, which moves the wall clock of a process alone. That is what a process sees
/// of a suspend.
fn libfaketime() -> Option<PathBuf> {
    let found =
        ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib"]
            .map(|dir| Path::new(dir).join("faketime/libfaketime.so.1"))
            .into_iter()
            .find(|library| library.exists());
    assert!(found.is_some() || std::env::var_os("CI").is_none(), "libfaketime is not installed");
    found
}

/// A process whose wall clock can be moved.
struct Suspendable {
    process: Process,
    clock: tempfile::NamedTempFile,
}

impl Suspendable {
    /// `None` where libfaketime is not installed.
    fn start(task: &str, server: &AuthServer, login: &Tokens) -> Option<Self> {
        let clock = tempfile::NamedTempFile::new().unwrap();
        let envs = [
            ("LD_PRELOAD", libfaketime()?.into_os_string()),
            ("FAKETIME_TIMESTAMP_FILE", clock.path().into()),
            ("FAKETIME_NO_CACHE", "1".into()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".into()),
        ];
        std::fs::write(clock.path(), "+0").unwrap();
        let login = std::slice::from_ref(login);
        Some(Self { process: Process::start_with(task, server, "", login, envs), clock })
    }

    /// The process's clock is this many seconds off from now on.
    fn set_clock(&self, seconds: i32) {
        std::fs::write(self.clock.path(), format!("{seconds:+}")).unwrap();
    }

    /// Lets the worker take the next step, and returns its next line.
    fn next(&mut self) -> String {
        writeln!(self.process.input).unwrap();
        self.process.says()
    }
}

/// The other process's part. Does nothing in a usual run.
#[test]
fn child() {
    let Ok(task) = std::env::var("FROZEN_TASK") else { return };
    let api = std::env::var("FROZEN_API").unwrap();
    let store = std::env::var("FROZEN_STORE").unwrap();
    let lines = std::io::stdin().lines().map_while(Result::ok);
    let logins: Vec<_> = lines
        .take_while(|line| !line.is_empty())
        .map(|line| {
            let (access, refresh) = line.split_once(' ').unwrap();
            Tokens::new(access).unwrap().with_refresh_token(refresh).unwrap()
        })
        .collect();
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let said = runtime.block_on(async {
        match task.as_str() {
            "refresh" => refresh(&sessions(logins, &api)).await,
            "beat" => beat(&sessions(logins, &api), &api).await,
            "get" => send(logins, &api, false).await,
            "upload" => send(logins, &api, true).await,
            "watch" => watch(logins, &api).await,
            "share" => share(logins, &api, refresher(&api), store).await,
            "share by default" => share(logins, &api, default_refresher(&api), store).await,
            task => panic!("no such task: {task}"),
        }
    });
    println!("\n> {said}");
}

fn sessions(logins: Vec<Tokens>, api: &str) -> Vec<Session> {
    logins.into_iter().map(|login| session(login, api).build().unwrap()).collect()
}

fn session(login: Tokens, api: &str) -> SessionBuilder {
    Session::builder(login).origin(api).refresher(refresher(api))
}

fn refresher(api: &str) -> OAuthRefresh {
    default_refresher(api).attempt_timeout(LIMIT)
}

fn default_refresher(api: &str) -> OAuthRefresh {
    OAuthRefresh::new(format!("{api}/oauth/token"))
}

fn client(session: &Session) -> ClientWithMiddleware {
    ClientBuilder::new(reqwest::Client::new()).with_session(session.clone()).build()
}

/// Refreshes all at once. How many are alive, and what the first of the others failed with.
async fn refresh(sessions: &[Session]) -> String {
    let refreshes: Vec<_> = sessions
        .iter()
        .cloned()
        .map(|session| tokio::spawn(async move { session.refresh().await }))
        .collect();
    let (mut alive, mut failed) = (0, String::new());
    for refresh in refreshes {
        match refresh.await.unwrap() {
            Ok(_) => alive += 1,
            Err(error) => failed = format!(", {error:?}"),
        }
    }
    format!("{alive} alive{failed}")
}

/// Sends one beat for each, whose response carries a token.
async fn beat(sessions: &[Session], api: &str) -> String {
    let beats: Vec<_> = sessions
        .iter()
        .map(|session| {
            let url = format!("{api}/heartbeat");
            Heartbeat::new(client(session), move |client| client.get(&url))
                .session(session.clone())
                .every(Duration::from_secs(3600))
                .timeout(LIMIT)
                .spawn()
                .unwrap()
        })
        .collect();
    for beat in &beats {
        beat.beat_now().await;
    }
    let alive = sessions.iter().filter(|session| session.generation() > 1).count();
    format!("{alive} alive")
}

/// A request with a token that was revoked, in a session that shares its login by a file.
async fn share(logins: Vec<Tokens>, api: &str, refresher: OAuthRefresh, store: String) -> String {
    let name = std::process::id().to_string();
    let refresher = refresher.param("worker", name);
    let [login] = &logins[..] else { panic!("one login") };
    let session = session(login.clone(), api).refresher(refresher).store(FileStore::new(store));
    let session = session.build().unwrap();
    match client(&session).get(format!("{api}/jobs")).send().await {
        Ok(response) => response.status().as_u16().to_string(),
        Err(error) => format!("{:?}", Error::find_in(&error)),
    }
}

/// Sends a request for each line of the input, and prints the token's remaining lifetime before it.
async fn send(logins: Vec<Tokens>, api: &str, stream: bool) -> String {
    let [login] = &logins[..] else { panic!("one login") };
    let session = session(login.clone(), api).build().unwrap();
    let client = client(&session);
    loop {
        tokio::task::spawn_blocking(|| std::io::stdin().lines().next()).await.unwrap();
        let ends = session.tokens().unwrap().expires_at().unwrap();
        let left = match ends.duration_since(SystemTime::now()) {
            Ok(left) => left.as_secs_f64(),
            Err(past) => -past.duration().as_secs_f64(),
        };
        let mut request = client.post(format!("{api}/jobs"));
        if stream {
            let chunks = futures_util::stream::iter([Ok::<_, Error>("data")]);
            request = request.body(reqwest::Body::wrap_stream(chunks));
        }
        let status = match request.send().await {
            Ok(response) => response.status().as_u16().to_string(),
            Err(error) => format!("{:?}", Error::find_in(&error)),
        };
        println!("\n> {:.0} min left, {status}", left / 60.0);
    }
}

/// A heartbeat that beats rarely, until a beat has brought a token.
async fn watch(logins: Vec<Tokens>, api: &str) -> String {
    let [login] = &logins[..] else { panic!("one login") };
    let session = Session::builder(login.clone()).origin(api).build().unwrap();
    let url = format!("{api}/heartbeat");
    let heartbeat = Heartbeat::new(client(&session), move |client| client.put(&url))
        .session(session.clone())
        .every(Duration::from_secs(3600))
        .reissue_window(0.8)
        .spawn()
        .unwrap();
    heartbeat.health().wait_for(|health| health.beats > 0).await.unwrap();
    println!("\n> started");
    let mut health = heartbeat.health();
    let renewed = health.wait_for(|_| session.generation() > 1);
    let renewed = tokio::time::timeout(Duration::from_secs(20), renewed).await;
    renewed.map_or("not renewed", |_| "renewed").to_owned()
}

fn logins(server: &AuthServer, number: usize) -> Vec<Tokens> {
    (0..number).map(|number| server.login_as(&format!("user {number}"))).collect()
}

/// The process is stopped while the responses are on their way.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_stopped_process_reads_the_responses() {
    let server = AuthServer::start().await;
    let logins = logins(&server, LOGINS);
    let hold = server.hold_token_calls();
    let mut process = Process::start("refresh", &server, "", &logins);
    hold.waiting(LOGINS).await;
    process.signal("-STOP");
    hold.release();
    tokio::time::sleep(FREEZE).await;
    process.signal("-CONT");
    assert_eq!(process.says(), format!("{LOGINS} alive"));
    assert_eq!(server.token_calls(), LOGINS as u64);
    assert_eq!(server.counts().reuses, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_stopped_process_reads_beat_responses() {
    let server = AuthServer::start().await;
    let logins = logins(&server, LOGINS);
    server.reissue_next(LOGINS);
    let hold = server.hold_api();
    let mut process = Process::start("beat", &server, "", &logins);
    hold.waiting(LOGINS).await;
    process.signal("-STOP");
    hold.release();
    tokio::time::sleep(FREEZE).await;
    process.signal("-CONT");
    assert_eq!(process.says(), format!("{LOGINS} alive"));
}

/// Ten fleets at once, each of four processes on one file. The process that makes the call is
/// stopped for longer than its call may take.
#[test]
fn a_stopped_member_loses_no_fleet() {
    thread::scope(|scope| {
        for _ in 0..10 {
            scope.spawn(|| runtime(1).block_on(one_fleet("share", FREEZE)));
        }
    });
}

/// The same with all settings at their defaults.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_stopped_member_loses_no_default_fleet() {
    one_fleet("share by default", Duration::from_secs(12)).await;
}

async fn one_fleet(task: &str, freeze: Duration) {
    let server = AuthServer::start().await;
    let login = server.login();
    server.expire_now();
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("tokens.json");
    let hold = server.hold_token_calls();
    let start =
        |_| Process::start(task, &server, store.to_str().unwrap(), std::slice::from_ref(&login));
    let mut fleet: Vec<_> = (0..4).map(start).collect();
    hold.waiting(1).await;
    let holder = form(&server.token_requests()[0], "worker").unwrap();
    let holder = fleet.iter().find(|member| member.child.id().to_string() == holder).unwrap();
    holder.signal("-STOP");
    hold.release();
    tokio::time::sleep(freeze).await;
    holder.signal("-CONT");
    for member in &mut fleet {
        assert_eq!(member.says(), "200");
    }
    assert_eq!(server.token_calls(), 1);
    assert_eq!(server.counts().reuses, 0);
}

// ---- the machine that is suspended

/// The API rejects expired tokens with a bare 403, or with 401 a body that cannot be sent twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_suspended_machine_refreshes_first() {
    for (task, refusal) in [("get", Refusal::Forbidden403), ("upload", Refusal::Unauthorized401)] {
        let server = AuthServer::builder().refusal(refusal).start().await;
        let Some(mut process) = Suspendable::start(task, &server, &server.login()) else { return };
        assert_eq!(process.next(), "60 min left, 200");
        process.set_clock(7200);
        server.expire_now();
        assert_eq!(process.next(), "-60 min left, 200", "{task}");
        assert_eq!(server.token_calls(), 1, "{task}");
        assert_eq!(server.refused(), 0, "{task}");
        assert_eq!(process.next(), "60 min left, 200", "{task}");
        assert_eq!(server.token_calls(), 1, "{task}");
    }
}

/// A clock that is set forward costs one refresh, one that is set back nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_clock_that_is_set_costs_one_refresh() {
    let server = AuthServer::start().await;
    let Some(mut process) = Suspendable::start("get", &server, &server.login()) else { return };
    for (clock, calls) in [(0, 0), (-7200, 0), (0, 0), (7200, 1), (7200, 1), (0, 1), (-7200, 1)] {
        process.set_clock(clock);
        let said = process.next();
        assert!(said.ends_with(", 200"), "{clock}: {said}");
        assert_eq!(server.token_calls(), calls, "{clock}: {said}");
    }
    assert_eq!(server.refused(), 0);
}

/// After a suspend the next beat is at once if it would otherwise come after the token's end.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_suspended_machine_beats_at_once() {
    let server = AuthServer::start().await;
    let Some(mut process) = Suspendable::start("watch", &server, &server.login()) else { return };
    assert_eq!(process.process.says(), "started");
    server.reissue_next(1);
    // 6 s of the token's hour are left.
    process.set_clock(3594);
    assert_eq!(process.process.says(), "renewed");
    assert_eq!(server.api_hits(), 2);
}

// ---- the runtime that is starved

fn runtime(workers: usize) -> Runtime {
    Builder::new_multi_thread().worker_threads(workers).enable_all().build().unwrap()
}

/// Keeps every worker busy. Returns once it does.
fn starve(runtime: &Runtime, workers: usize, span: Duration) {
    let all = Arc::new(Barrier::new(workers + 1));
    for _ in 0..workers {
        let all = Arc::clone(&all);
        runtime.spawn(async move {
            all.wait();
            thread::sleep(span);
        });
    }
    all.wait();
}

#[test]
fn a_starved_runtime_reads_the_responses() {
    for workers in [1, 2] {
        let (servers, clients) = (runtime(1), runtime(workers));
        let (server, logins) = servers.block_on(async {
            let server = AuthServer::start().await;
            let logins = logins(&server, LOGINS);
            (server, logins)
        });
        let sessions = sessions(logins, server.origin());
        let hold = server.hold_token_calls();
        let alive = clients.spawn(async move { refresh(&sessions).await });
        servers.block_on(hold.waiting(LOGINS));
        starve(&clients, workers, FREEZE);
        hold.release();
        let alive = servers.block_on(alive).unwrap();
        assert_eq!(alive, format!("{LOGINS} alive"), "{workers} workers");
        assert_eq!(server.counts().reuses, 0, "{workers} workers");
    }
}

/// An endpoint that never responds costs exactly its limit, and 250 ms more after a late wake-up. A
/// busy machine may itself be slow, but not ten times as slow.
#[test]
fn an_endpoint_that_hangs_costs_its_limit() {
    const LIMIT: Duration = Duration::from_millis(500);
    let (servers, clients) = (runtime(1), runtime(1));
    let server = servers.block_on(AuthServer::start());
    let hold = server.hold_token_calls();
    let hang = |busy: Duration| {
        let refresher = refresher(server.origin()).attempt_timeout(LIMIT).max_attempts(1);
        let session = session(server.login(), server.origin()).refresher(refresher);
        let session = session.build().unwrap();
        let begun = Instant::now();
        let refresh = clients.spawn(async move { session.refresh().await });
        if !busy.is_zero() {
            starve(&clients, 1, busy);
        }
        let error = servers.block_on(refresh).unwrap().unwrap_err();
        let took = begun.elapsed();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.possibly_consumed());
        assert!(took >= LIMIT.max(busy), "{took:?}");
        took
    };
    for (busy, most) in
        [(Duration::ZERO, LIMIT), (LIMIT * 2, LIMIT * 2 + Duration::from_millis(250))]
    {
        let is_in_time = |took: Duration| took < most + Duration::from_millis(200);
        assert!((0..10).map(|_| hang(busy)).any(is_in_time), "not in time after {busy:?}");
    }
    drop(hold);
}
