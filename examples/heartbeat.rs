//! A job that has to stay alive, its heartbeat, and a server that makes it hard.
//!
//! ```text
//! cargo run --example heartbeat [-- --grace] [--seconds 20] [--every 1] [--ttl 4]
//! cargo run --example heartbeat --features rustls -- --url https://api.example.com/jobs/7/heartbeat [--method PUT]
//! ```
//!
//! Without `--url` a server in this process plays both Airflow and the Seqera platform: tokens live
//! four seconds (`--ttl`); every answer in the last fifth of that, 404 and 409 included, brings a
//! new one in `Refreshed-API-Token`; what has expired gets 403; and refresh tokens are single-use.
//!
//! What forces each thing to happen:
//! - captured: the heartbeat moves beats into the last fifth of each token's life, and the job's
//!   own requests fall there too;
//! - refused and replayed: two lifetimes after the start the server stands still for one lifetime
//!   and a second. The requests that it holds were sent with a token that has expired when it looks
//!   at them: 403, and only the refresh token is left;
//! - refreshed: the token endpoint is a single-use one behind an nginx that answers 502, then 503
//!   with `Retry-After: 1`, then lets the call through. That happens once every five lifetimes.
//!
//! With `--grace` the server has the repair of apache/airflow#67944, which takes a token for a
//! while after its expiry and replaces it: the same standstill then costs no refresh.
//!
//! With `--url` the beats go to a real server, with tokens from the environment:
//! `REAUTH_ACCESS_TOKEN`, and, if it is to be refreshed, `REAUTH_REFRESH_TOKEN`,
//! `REAUTH_TOKEN_ENDPOINT` and `REAUTH_CLIENT_ID`.
//!
//! It exits with 1 if a beat was lost.

use std::{
    collections::VecDeque,
    env,
    error::Error as StdError,
    io::IsTerminal as _,
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use http::{Method, StatusCode};
use reqwest_middleware::{ClientBuilder, ClientWithMiddleware};
use reqwest_reauth::{
    ClientBuilderExt, Event, OAuthRefresh, Session, Tokens,
    heartbeat::{Health, Heartbeat, Stopped},
    testing::{Answer, AuthServer, Refusal},
};
use tokio::{task::JoinHandle, time::Instant};

type AnyError = Box<dyn StdError + Send + Sync>;

#[tokio::main]
async fn main() -> Result<ExitCode, AnyError> {
    let options = Options::parse(env::args().skip(1))?;
    let story = Arc::new(Story::default());
    let scene = match &options.url {
        Some(url) => Scene::real(url, &story)?,
        None => Scene::embedded(&options, &story).await?,
    };
    println!("{}", scene.introduction);
    let client =
        ClientBuilder::new(reqwest::Client::new()).with_session(scene.session.clone()).build();

    let (url, method) = (scene.beat.clone(), options.method.clone());
    let heartbeat =
        Heartbeat::new(client.clone(), move |client| client.request(method.clone(), &url))
            .session(scene.session.clone())
            .every(options.every)
            // Long enough for the standstill and the refresh after it.
            .timeout(options.ttl + Duration::from_secs(10))
            .reissue_window(0.8)
            .stop_on(|status| matches!(status.as_u16(), 404 | 409 | 410))
            .spawn()?;
    let job =
        scene.job.as_ref().map(|url| tokio::spawn(job(client, url.clone(), Arc::clone(&story))));

    // One line a beat, until the time is up.
    let paint = Paint::new();
    let start = Instant::now();
    let until = start + options.length;
    let mut health = heartbeat.health();
    println!(
        "\n{}",
        paint.faint("   time  status  generation  what the crate did since the last line")
    );
    let mut stopped = None;
    while stopped.is_none() {
        tokio::select! {
            Ok(()) = health.changed() => {
                let health = health.borrow_and_update().clone();
                println!("{}", line(&paint, start, &scene.session, &health, &story.take_news()));
                story.count(|counts| {
                    counts.beats = health.beats;
                    counts.lost += u64::from(health.last_error.is_some());
                });
            }
            () = tokio::time::sleep_until(until) => stopped = Some(heartbeat.stop().await),
            why = heartbeat.finished() => stopped = Some(why),
        }
    }
    if let Some(job) = job {
        job.abort();
    }
    Ok(summary(&paint, stopped, &heartbeat.health().borrow(), &story, &scene))
}

/// A job beside the heartbeat, on the same client: it reports progress, and looks for things that
/// are not there.
async fn job(client: ClientWithMiddleware, url: String, story: Arc<Story>) {
    for status in [200_u16, 404, 409].into_iter().cycle() {
        let answer = client.post(format!("{url}?status={status}")).body("progress").send().await;
        let as_asked = answer.is_ok_and(|answer| answer.status() == status);
        story.count(|counts| {
            counts.requests += 1;
            counts.failed += u64::from(!as_asked);
        });
        tokio::time::sleep(Duration::from_millis(350)).await;
    }
}

/// The server, and the session with it.
struct Scene {
    introduction: String,
    session: Session,
    beat: String,
    job: Option<String>,
    server: Option<Arc<AuthServer>>,
    troubles: Option<JoinHandle<()>>,
}

impl Scene {
    async fn embedded(options: &Options, story: &Arc<Story>) -> Result<Self, AnyError> {
        let mut server = AuthServer::builder()
            .lifetime(options.ttl)
            .reissue_after(0.8)
            .refusal(Refusal::Forbidden403);
        if options.grace {
            server = server.grace(options.ttl * 5);
        }
        let server = Arc::new(server.start().await);
        let session = Session::builder(server.login_as("job-7"))
            .origin(server.origin())
            .refresher(OAuthRefresh::new(server.cookie_token_endpoint()))
            // The header is the way to new tokens here, and the token endpoint is for when that has
            // failed.
            .refresh_ahead(Duration::ZERO)
            .on_event(story.listener())
            .build()?;
        let grace = if options.grace {
            ", takes expired ones for a while"
        } else {
            ", refuses expired ones with 403"
        };
        let troubles = tokio::spawn(troubles(Arc::clone(&server), options.ttl));
        Ok(Self {
            introduction: format!(
                "{} reissues {:?} tokens in their last fifth{grace}",
                server.origin(),
                options.ttl
            ),
            session,
            beat: server.url("/jobs/7/heartbeat?status=204"),
            job: Some(server.url("/jobs/7/progress")),
            server: Some(server),
            troubles: Some(troubles),
        })
    }

    fn real(url: &str, story: &Arc<Story>) -> Result<Self, AnyError> {
        let variable = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
        let access = variable("REAUTH_ACCESS_TOKEN").ok_or("REAUTH_ACCESS_TOKEN is not set")?;
        let mut tokens = Tokens::new(access)?;
        if let Some(refresh) = variable("REAUTH_REFRESH_TOKEN") {
            tokens = tokens.with_refresh_token(refresh)?;
        }
        let origin = reqwest::Url::parse(url)?.origin().ascii_serialization();
        let mut session = Session::builder(tokens).origin(&origin).on_event(story.listener());
        if let Some(endpoint) = variable("REAUTH_TOKEN_ENDPOINT") {
            let refresher = OAuthRefresh::new(endpoint);
            session = session.refresher(match variable("REAUTH_CLIENT_ID") {
                Some(id) => refresher.client_id(id),
                None => refresher,
            });
        }
        let session = session.build()?;
        Ok(Self {
            introduction: origin,
            session,
            beat: url.to_owned(),
            job: None,
            server: None,
            troubles: None,
        })
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        if let Some(troubles) = &self.troubles {
            troubles.abort();
        }
    }
}

/// Two lifetimes after the start, and every five from then on, the server stands still until every
/// token has expired.
async fn troubles(server: Arc<AuthServer>, ttl: Duration) {
    tokio::time::sleep(ttl * 2).await;
    loop {
        server.script_token_endpoint([
            Answer::Status(502),
            Answer::StatusRetryAfter(503, Duration::from_secs(1)),
        ]);
        let standstill = ttl + Duration::from_secs(1);
        let hold = server.hold_api();
        tokio::time::sleep(standstill).await;
        hold.release();
        tokio::time::sleep((ttl * 5).saturating_sub(standstill)).await;
    }
}

/// What happened: counted, and told since the last line.
#[derive(Default)]
struct Story(Mutex<(Counts, VecDeque<String>)>);

#[derive(Clone, Copy, Default)]
struct Counts {
    beats: u64,
    lost: u64,
    captured: u64,
    refreshed: u64,
    replayed: u64,
    token_calls: u64,
    requests: u64,
    failed: u64,
}

impl Story {
    fn count(&self, count: impl FnOnce(&mut Counts)) {
        count(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner).0);
    }

    fn counts(&self) -> Counts {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).0
    }

    fn take_news(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).1.drain(..).collect()
    }

    fn listener(self: &Arc<Self>) -> impl Fn(&Event) + Send + Sync + 'static {
        let story = Arc::clone(self);
        move |event| {
            let (counts, news) = &mut *story.0.lock().unwrap_or_else(PoisonError::into_inner);
            news.push_back(match event {
                Event::Captured { .. } => {
                    counts.captured += 1;
                    "captured".to_owned()
                }
                Event::RefreshRetrying { status, delay, .. } => {
                    counts.token_calls += 1;
                    let status = status
                        .map_or_else(|| "nothing".to_owned(), |status| status.as_u16().to_string());
                    format!("T answered {status}, again in {:.1} s", delay.as_secs_f64())
                }
                Event::Refreshed { attempts, .. } => {
                    counts.token_calls += u64::from(*attempts > 0);
                    counts.refreshed += 1;
                    format!("refreshed at attempt {attempts}")
                }
                Event::RefreshFailed { error, .. } => {
                    counts.token_calls += u64::from(error.attempts() > 0);
                    format!("refresh failed: {error}")
                }
                Event::Replayed { status, .. } => {
                    counts.replayed += 1;
                    format!("replayed: {}", status.as_u16())
                }
                // Two answers in one window bring two tokens: the later one is left.
                _ => return,
            });
        }
    }
}

fn line(
    paint: &Paint,
    start: Instant,
    session: &Session,
    health: &Health,
    news: &[String],
) -> String {
    let time = format!("{:6.2}s", start.elapsed().as_secs_f64());
    let status = health.last_status.as_ref().map_or("-", StatusCode::as_str);
    let status = format!("{status:>6}");
    let status =
        if health.last_error.is_some() { paint.red(&status) } else { paint.green(&status) };
    let error = health.last_error.as_ref().map(|error| paint.red(&format!("lost: {error}")));
    let news: Vec<_> = news
        .iter()
        .map(|news| if news == "captured" { paint.faint(news) } else { paint.yellow(news) })
        .chain(error)
        .collect();
    let line = format!(
        "{}  {status}  {:>10}  {}",
        paint.faint(&time),
        session.generation(),
        news.join(", ")
    );
    line.trim_end().to_owned()
}

fn summary(
    paint: &Paint,
    stopped: Option<Stopped>,
    health: &Health,
    story: &Story,
    scene: &Scene,
) -> ExitCode {
    let mut counts = story.counts();
    // The last beat ends after the last line.
    counts.lost += u64::from(health.beats > counts.beats && health.last_error.is_some());
    counts.beats = health.beats;
    let number = |number: u64, good: bool| {
        let text = format!("{number:>6}");
        if good { paint.green(&text) } else { paint.red(&text) }
    };
    let row = |name: &str, number: &str| println!("  {name:<22}{number}");
    println!();
    row("beats", &number(counts.beats, counts.beats > 0));
    row("lost", &number(counts.lost, counts.lost == 0));
    row("captured", &format!("{:>6}", counts.captured));
    row("refreshed", &format!("{:>6}", counts.refreshed));
    row("replayed", &format!("{:>6}", counts.replayed));
    row("calls of T", &format!("{:>6}", counts.token_calls));
    if let Some(server) = &scene.server {
        row("requests of the job", &format!("{:>6}", counts.requests));
        row("  not as asked", &number(counts.failed, counts.failed == 0));
        row("refused by the server", &format!("{:>6}", server.refused()));
    }
    let ended = stopped.filter(|stopped| *stopped != Stopped::Requested);
    if let Some(ended) = &ended {
        println!("\n{}", paint.red(&format!("the heartbeat ended: {ended:?}")));
    }
    let good = counts.beats > 0 && counts.lost == 0 && counts.failed == 0 && ended.is_none();
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Colours, if it is a person who looks.
struct Paint(bool);

impl Paint {
    fn new() -> Self {
        Self(std::io::stdout().is_terminal() && env::var_os("NO_COLOR").is_none())
    }

    fn with(&self, code: u8, text: &str) -> String {
        if self.0 { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    fn faint(&self, text: &str) -> String {
        self.with(2, text)
    }

    fn red(&self, text: &str) -> String {
        self.with(31, text)
    }

    fn green(&self, text: &str) -> String {
        self.with(32, text)
    }

    fn yellow(&self, text: &str) -> String {
        self.with(33, text)
    }
}

struct Options {
    grace: bool,
    length: Duration,
    every: Duration,
    ttl: Duration,
    url: Option<String>,
    method: Method,
}

impl Options {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self, AnyError> {
        let seconds = Duration::from_secs;
        let mut options = Self {
            grace: false,
            length: seconds(20),
            every: seconds(1),
            ttl: seconds(4),
            url: None,
            method: Method::GET,
        };
        while let Some(name) = arguments.next() {
            let mut value = || arguments.next().ok_or(format!("{name} needs a value"));
            let duration =
                |text: String| Ok::<_, AnyError>(Duration::try_from_secs_f64(text.parse()?)?);
            match name.as_str() {
                "--grace" => options.grace = true,
                "--seconds" => options.length = duration(value()?)?,
                "--every" => options.every = duration(value()?)?,
                "--ttl" => options.ttl = duration(value()?)?,
                "--url" => options.url = Some(value()?),
                "--method" => options.method = value()?.parse()?,
                _ => {
                    return Err(format!(
                        "{name}? There are --grace, --seconds, --every, --ttl, --url and --method"
                    )
                    .into());
                }
            }
        }
        Ok(options)
    }
}
