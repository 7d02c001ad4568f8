//! The other processes of a fleet. Each is the test binary once more, running only its test
//! `worker`, with its own session on the shared store. The server in the test is the judge, because
//! only the server knows the calls and their times.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its own part")]
#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers outside of test functions

use std::{
    collections::{BTreeMap, HashSet},
    io::{BufRead, BufReader, Lines, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use reqwest_middleware::{ClientBuilder, ClientWithMiddleware};
use reqwest_reauth::{
    ClientBuilderExt, Error, Event, OAuthRefresh, RefreshContext, Refresher, Session,
    SessionBuilder, TokenStore, Tokens,
    testing::{AuthServer, Recorded},
};

/// The extra form member that identifies the worker in the token endpoint's log.
const NAME: &str = "worker";

/// The settings of a session on this server.
pub fn session(tokens: Tokens, origin: &str, worker: &str) -> SessionBuilder {
    let refresher =
        OAuthRefresh::new(format!("{origin}/oauth/token")).client_id("fleet").param(NAME, worker);
    Session::builder(tokens).origin(origin).refresher(refresher)
}

pub fn client(session: &Session) -> ClientWithMiddleware {
    ClientBuilder::new(reqwest::Client::new()).with_session(session.clone()).build()
}

/// A form member of a call to the token endpoint.
pub fn form(call: &Recorded, wanted: &str) -> Option<String> {
    form_urlencoded::parse(&call.body)
        .find_map(|(name, value)| (name == wanted).then(|| value.into_owned()))
}

/// The worker that made this call.
pub fn caller(call: &Recorded) -> String {
    form(call, NAME).unwrap()
}

/// The refresh token's own text.
pub fn refresh_token(tokens: &Tokens) -> String {
    tokens.refresh_token().unwrap().expose_secret().to_owned()
}

/// A worker in its own process.
pub struct Worker {
    process: Child,
    lines: Lines<BufReader<ChildStdout>>,
    input: ChildStdin,
}

impl Worker {
    /// Starts a worker with these tokens. The `worker` of the test file maps `store` to a store.
    pub fn start(task: &str, name: &str, server: &AuthServer, store: &str, given: &Tokens) -> Self {
        let access = given.access_token().map_or("", |token| token.expose_secret());
        let refresh = given.refresh_token().map_or("", |token| token.expose_secret());
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "fleet::worker", "--nocapture", "--test-threads=1"])
            .envs([
                ("FLEET_TASK", task),
                ("FLEET_NAME", name),
                ("FLEET_API", server.origin()),
                ("FLEET_STORE", store),
            ])
            .envs([("FLEET_ACCESS", access), ("FLEET_REFRESH", refresh)])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let input = process.stdin.take().unwrap();
        Self { process, lines, input }
    }

    /// Returns the worker's next line, or `None` if it has ended.
    pub fn says(&mut self) -> Option<String> {
        self.lines
            .by_ref()
            .map_while(Result::ok)
            .find_map(|line| line.strip_prefix("> ").map(str::to_owned))
    }

    pub fn go_on(&mut self) {
        self.input.write_all(b"go on\n").unwrap();
    }

    pub fn signal(&self, signal: &str) {
        assert!(
            Command::new("kill")
                .args([signal, &self.process.id().to_string()])
                .status()
                .unwrap()
                .success()
        );
    }

    /// Kills the worker with `kill -9` and returns its earlier lines.
    pub fn kill(mut self) -> Vec<String> {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        std::iter::from_fn(|| self.says()).collect()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn say(line: impl std::fmt::Display) {
    println!("\n> {line}");
}

/// Reads a line on a thread that may block.
async fn told_to_go_on() {
    tokio::task::spawn_blocking(|| std::io::stdin().lines().next()).await.unwrap();
}

/// The task of a worker process.
pub struct Job {
    task: String,
    name: String,
    api: String,
    pub store: String,
    given: Tokens,
}

impl Job {
    /// Returns `None` in a normal run of the tests.
    pub fn from_env() -> Option<Self> {
        let task = std::env::var("FLEET_TASK").ok()?;
        let of = |name| std::env::var(name).unwrap();
        let mut given = match of("FLEET_ACCESS") {
            access if access.is_empty() => Tokens::empty(),
            access => Tokens::new(access).unwrap(),
        };
        if !of("FLEET_REFRESH").is_empty() {
            given = given.with_refresh_token(of("FLEET_REFRESH")).unwrap();
        }
        Some(Self {
            task,
            name: of("FLEET_NAME"),
            api: of("FLEET_API"),
            store: of("FLEET_STORE"),
            given,
        })
    }

    /// Whether the test stops the process instead of killing it.
    pub fn is_to_be_stopped(&self) -> bool {
        self.task != "serve"
    }

    pub async fn run(self, store: impl TokenStore) {
        let session = session(self.given.clone(), &self.api, &self.name).store(store);
        match self.task.as_str() {
            "rotate" => rotate(session).await,
            "rotate aloud" => rotate(session.on_event(tell_retries)).await,
            "serve" => serve(session, &self.api).await,
            "stall" => stall(session, &self.api).await,
            task => panic!("no such task: {task}"),
        }
    }
}

fn tell_retries(event: &Event) {
    if let Event::RefreshRetrying { .. } = event {
        say("retries");
    }
}

/// Rotates until the process is killed or has lost the login.
async fn rotate(session: SessionBuilder) {
    let session = session.restore().await.unwrap();
    say("ready");
    loop {
        match session.refresh().await {
            Ok(_) => say("rotated"),
            Err(error) => {
                say(format_args!(
                    "{:?} {} {}",
                    error.kind(),
                    error.possibly_consumed(),
                    error.attempts()
                ));
                std::future::pending::<()>().await;
            }
        }
    }
}

/// Sends requests until told to stop, then reports how many succeeded.
async fn serve(session: SessionBuilder, api: &str) {
    let called = Arc::new(AtomicU64::new(0));
    let adopted = Arc::new(AtomicU64::new(0));
    let counts = (Arc::clone(&called), Arc::clone(&adopted));
    let session = session.on_event(move |event| match event {
        Event::Refreshed { attempts: 0, .. } => drop(counts.1.fetch_add(1, SeqCst)),
        Event::Refreshed { .. } => drop(counts.0.fetch_add(1, SeqCst)),
        Event::RefreshFailed { error, .. } | Event::StoreFailed { error, .. } => {
            say(format_args!("failed: {error:?}"));
        }
        _ => {}
    });
    let session = session.restore().await.unwrap();
    let client = client(&session);
    let stop = Arc::new(AtomicBool::new(false));
    say("ready");
    told_to_go_on().await;
    let senders: Vec<_> = (0..2)
        .map(|_| {
            let (client, stop, url) = (client.clone(), Arc::clone(&stop), format!("{api}/jobs"));
            tokio::spawn(async move {
                let mut pace = tokio::time::interval(Duration::from_millis(5));
                let mut served = 0_u64;
                while !stop.load(SeqCst) {
                    pace.tick().await;
                    match client.get(&url).send().await {
                        Ok(answer) if answer.status() == 200 => served += 1,
                        other => say(format_args!("failed: {other:?}")),
                    }
                }
                served
            })
        })
        .collect();
    told_to_go_on().await;
    stop.store(true, SeqCst);
    let mut served = 0;
    for sender in senders {
        served += sender.await.unwrap();
    }
    session.close().await.unwrap();
    say(format_args!(
        "served {served} called {} adopted {}",
        called.load(SeqCst),
        adopted.load(SeqCst)
    ));
}

/// Stops between the token endpoint's response and the save, and then reports the outcome.
async fn stall(session: SessionBuilder, api: &str) {
    struct Stalling(OAuthRefresh);

    #[async_trait]
    impl Refresher for Stalling {
        async fn refresh(&self, context: &RefreshContext) -> Result<Tokens, Error> {
            let tokens = self.0.refresh(context).await?;
            say("issued");
            told_to_go_on().await;
            Ok(tokens)
        }
    }

    let refresher =
        OAuthRefresh::new(format!("{api}/oauth/token")).client_id("fleet").param(NAME, "stalled");
    let session = session.refresher(Stalling(refresher)).on_event(|event| match event {
        Event::StoreFailed { error, .. } => {
            say(format_args!("store failed: {}", std::error::Error::source(error).unwrap()));
        }
        Event::Refreshed { attempts, .. } => say(format_args!("refreshed after {attempts} calls")),
        _ => {}
    });
    let session = session.restore().await.unwrap();
    let client = client(&session);
    session.refresh().await.unwrap();
    told_to_go_on().await;
    session.refresh().await.unwrap();
    say(client.get(format!("{api}/jobs")).send().await.unwrap().status());
    std::future::pending::<()>().await;
}

/// Four processes on one store, with tokens of two seconds and a strict server, sending requests
/// all the time.
pub async fn four_processes_refresh_once_an_expiry(store: &str) {
    const LIFETIME: Duration = Duration::from_secs(2);
    let length = std::env::var("FLEET_TEST_SECONDS").map_or(15, |seconds| seconds.parse().unwrap());
    let server = AuthServer::builder().lifetime(LIFETIME).start().await;
    let day_one = server.login();
    let mut workers: Vec<_> = ["one", "two", "three", "four"]
        .map(|name| Worker::start("serve", name, &server, store, &day_one))
        .into();
    for worker in &mut workers {
        assert_eq!(worker.says().as_deref(), Some("ready"));
    }
    workers.iter_mut().for_each(Worker::go_on);
    // When each access token was issued, by its number. Read while the run lasts, because the log
    // is bounded.
    let mut issued = BTreeMap::new();
    let mut look = tokio::time::interval(Duration::from_millis(500));
    let begun = Instant::now();
    while begun.elapsed().as_secs() < length {
        look.tick().await;
        note_tokens(&server, &mut issued);
    }
    workers.iter_mut().for_each(Worker::go_on);
    let mut answered = 0;
    for (worker, name) in workers.iter_mut().zip(["one", "two", "three", "four"]) {
        let said: Vec<_> = std::iter::from_fn(|| worker.says()).collect();
        eprintln!("worker {name}: {said:?}");
        let [done] = &said[..] else { panic!("worker {name}: {said:?}") };
        let own: u64 = done.split(' ').nth(1).unwrap().parse().unwrap();
        assert!(own > 0);
        answered += own;
    }
    note_tokens(&server, &mut issued);
    let (counts, calls) = (server.counts(), server.token_requests());
    eprintln!("{length} s: {counts:?}, {} tokens used", issued.len());
    assert!(calls.iter().all(|call| call.status.is_some_and(|status| status == 200)), "{calls:?}");
    assert_eq!(counts.reuses, 0);
    assert_eq!(server.concurrent_token_calls_max(), 1);
    assert_eq!(counts.api_hits, answered + counts.refused, "each request was served once");
    // Every token was used, except perhaps the first and the last. None was refreshed before the
    // last fifth of its lifetime.
    let (first, last) = (*issued.keys().next().unwrap(), *issued.keys().next_back().unwrap());
    assert!(
        issued.len() as u64 == last - first + 1 && first <= 2 && last >= counts.token_calls,
        "{issued:?}"
    );
    let times: Vec<f64> = issued.into_values().collect();
    let lives: Vec<f64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    eprintln!("a token was renewed after {lives:.2?} s");
    assert!(lives.iter().all(|life| *life > LIFETIME.as_secs_f64() * 0.8 - 0.01), "{lives:?}");
    assert!(counts.token_calls > length / 4, "{}", counts.token_calls);
}

/// Records the numbers and times of the access tokens that the API has seen.
fn note_tokens(server: &AuthServer, issued: &mut BTreeMap<u64, f64>) {
    let mut seen = HashSet::new();
    for request in server.requests() {
        if !seen.insert(request.token_id.clone()) {
            continue;
        }
        let token = request.headers["authorization"].to_str().unwrap().to_owned();
        let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap()).unwrap();
        let claims: serde_json::Value = serde_json::from_slice(&claims).unwrap();
        let number = claims["jti"].as_str().unwrap().split('#').nth(1).unwrap().parse().unwrap();
        issued.insert(number, claims["iat"].as_f64().unwrap());
    }
}
