//! The cost of a fleet for its Redis: many sessions with one login that all need a refresh at once.
//!
//! ```text
//! cargo run --release --features redis --example fleet [sessions…]
//! ```
//!
//! The example starts its own redis-server and gives each session a separate store and connection,
//! as separate processes would have. It prints a row for each number of sessions: the calls to the
//! token endpoint, the failed sessions, the time until half of the sessions and the last session
//! had the result, and the commands that Redis ran for each session, including those inside
//! scripts. The token endpoint takes 200 ms. In the last rows it is down.
//!
//! Each session needs two file descriptors, one here and one in Redis: `ulimit -n 32768`.

use std::{
    error::Error as StdError,
    net::TcpListener,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use reqwest_reauth::{
    Error, ErrorKind, RedisStore, Session, TokenStore as _, Tokens, refresh_with, reqwest,
};

type Result<T> = std::result::Result<T, Box<dyn StdError>>;

const SIZES: [usize; 4] = [100, 2_000, 5_000, 10_000];
/// The response time of the token endpoint.
const ENDPOINT: Duration = Duration::from_millis(200);
/// The number of sessions that connect at once before the measurement begins.
const CONNECTING: usize = 64;

#[tokio::main]
async fn main() -> Result<()> {
    let asked: std::result::Result<Vec<usize>, _> =
        std::env::args().skip(1).map(|text| text.parse()).collect();
    let sizes = match asked? {
        none if none.is_empty() => SIZES.to_vec(),
        sizes => sizes,
    };
    let redis = Redis::start()?;
    println!("| sessions | calls | failed | median | last | Redis commands a session |");
    println!("| --: | --: | --: | --: | --: | --: |");
    for &sessions in &sizes {
        run(&redis, sessions, true).await?.print(&sessions.to_string());
    }
    for &sessions in &sizes {
        run(&redis, sessions, false).await?.print(&format!("{sessions}, token endpoint down"));
    }
    Ok(())
}

/// A token endpoint that counts its calls.
#[derive(Clone)]
struct Endpoint {
    calls: Arc<AtomicUsize>,
    works: bool,
}

impl Endpoint {
    async fn issue(self) -> std::result::Result<Tokens, Error> {
        let call = self.calls.fetch_add(1, Ordering::SeqCst) + 1;
        tokio::time::sleep(ENDPOINT).await;
        if self.works {
            return Tokens::new(format!("t{call}"))?.with_refresh_token(format!("r{call}"));
        }
        let status = reqwest::StatusCode::SERVICE_UNAVAILABLE;
        Err(Error::new(ErrorKind::Unavailable, "down").with_status(status))
    }
}

async fn run(redis: &Redis, sessions: usize, works: bool) -> Result<Row> {
    let key = format!("login-{sessions}-{works}");
    let first = RedisStore::connect(&redis.url, key.as_str()).await?;
    let old = Tokens::new("old")?.with_refresh_token("r0")?;
    first.save(&first.lock().await?, &old).await?;
    let endpoint = Endpoint { calls: Arc::default(), works };
    let fleet: Vec<Session> = stream::iter(0..sessions)
        .map(|_| member(redis, &key, &old, &endpoint))
        .buffer_unordered(CONNECTING)
        .try_collect()
        .await?;

    let before = redis.commands()?;
    let begun = Instant::now();
    let members: Vec<_> = fleet
        .iter()
        .map(|session| {
            let session = session.clone();
            tokio::spawn(async move {
                let failure = session.refresh().await.err();
                (begun.elapsed(), failure)
            })
        })
        .collect();
    let (mut times, mut failed, mut why) = (Vec::new(), 0, None);
    for member in members {
        let (took, failure) = member.await?;
        times.push(took);
        failed += usize::from(failure.is_some());
        why = why.or(failure);
    }
    let commands = redis.commands()? - before;
    times.sort_unstable();
    if let Some(why) = why.filter(|_| works) {
        eprintln!("one of {failed} failures: {why:?}");
    }
    Ok(Row {
        calls: endpoint.calls.load(Ordering::SeqCst),
        failed,
        median: times.get(sessions / 2).copied().unwrap_or_default(),
        last: times.last().copied().unwrap_or_default(),
        commands: commands / f64::from(u32::try_from(sessions)?),
    })
}

async fn member(redis: &Redis, key: &str, old: &Tokens, endpoint: &Endpoint) -> Result<Session> {
    let endpoint = endpoint.clone();
    let session = Session::builder(old.clone())
        .origin("https://api.example.com")
        .refresher(refresh_with(move |_held| endpoint.clone().issue()))
        .store(RedisStore::connect(&redis.url, key).await?);
    Ok(session.restore().await?)
}

struct Row {
    calls: usize,
    failed: usize,
    median: Duration,
    last: Duration,
    commands: f64,
}

impl Row {
    fn print(&self, name: &str) {
        let Self { calls, failed, median, last, commands } = self;
        let (median, last) = (median.as_secs_f64(), last.as_secs_f64());
        println!("| {name} | {calls} | {failed} | {median:.2} s | {last:.2} s | {commands:.1} |");
    }
}

struct Redis {
    process: Child,
    url: String,
    _dir: tempfile::TempDir,
}

impl Redis {
    fn start() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port().to_string();
        let process = Command::new("redis-server")
            .args(["--port", &port, "--bind", "127.0.0.1", "--save", ""])
            .args(["--maxclients", "20000", "--tcp-backlog", "4096"])
            .arg("--dir")
            .arg(dir.path())
            .stdout(Stdio::null())
            .spawn()?;
        let redis = Self { process, url: format!("redis://127.0.0.1:{port}"), _dir: dir };
        let client = redis::Client::open(redis.url.as_str())?;
        while client.get_connection().is_err() {
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(redis)
    }

    /// The number of commands that Redis has run so far.
    fn commands(&self) -> Result<f64> {
        let mut connection = redis::Client::open(self.url.as_str())?.get_connection()?;
        let info: String = redis::cmd("INFO").arg("stats").query(&mut connection)?;
        let count = info.lines().find_map(|line| line.strip_prefix("total_commands_processed:"));
        Ok(count.ok_or("no count of commands")?.trim().parse()?)
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
