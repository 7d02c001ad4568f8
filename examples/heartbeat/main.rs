//! A job that has to stay alive, its heartbeat, and a server that fails in several ways.
//!
//! ```text
//! cargo run --example heartbeat -- --help
//! cargo run --example heartbeat
//! cargo run --example heartbeat --features rustls -- --url https://airflow.example.com/execution/ --task-instance ID
//! ```

mod options;
mod output;
mod scene;
mod story;

use std::{error::Error as StdError, io, process::ExitCode, sync::Arc, time::Duration};

use clap::Parser as _;
use http::header::CONTENT_TYPE;
use reqwest_middleware::{ClientBuilder, ClientWithMiddleware};
use reqwest_reauth::{
    ClientBuilderExt,
    heartbeat::{Heartbeat, HeartbeatHandle, Stopped},
};
use tokio::time::{Instant, sleep_until};

use self::{
    options::Options,
    output::{LEGEND, Paint, ended, head, line, say, summary},
    scene::Scene,
    story::Story,
};

type AnyError = Box<dyn StdError + Send + Sync>;

#[tokio::main]
async fn main() -> ExitCode {
    match run(&Options::parse()).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        // The reader of the output has gone, for example `| head`.
        Err(error) if is_closed_pipe(&*error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn is_closed_pipe(error: &(dyn StdError + Send + Sync + 'static)) -> bool {
    let error = error.downcast_ref::<io::Error>();
    error.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// Returns whether no beat was lost.
async fn run(options: &Options) -> Result<bool, AnyError> {
    let story = Arc::new(Story::default());
    let scene = match &options.url {
        Some(url) => Scene::real(options, url, &story)?,
        None => Scene::embedded(options, &story).await?,
    };
    let client =
        ClientBuilder::new(reqwest::Client::new()).with_session(scene.session.clone()).build();
    let heartbeat = start(options, &scene, client.clone())?;
    let job =
        scene.job.as_ref().map(|url| tokio::spawn(job(client, url.clone(), Arc::clone(&story))));

    let paint = Paint::new();
    say(&format!("{}\n\n{}\n\n{}", scene.introduction, paint.faint(LEGEND), head(&paint)))?;
    let start = Instant::now();
    let until = options.length().map(|length| start + length);
    let mut health = heartbeat.health();
    let stopped = loop {
        tokio::select! {
            Ok(()) = health.changed() => {
                let health = health.borrow_and_update().clone();
                say(&line(&paint, start, &scene.session, &health, &story.take_news()))?;
                story.count(|counts| {
                    counts.beats = health.beats;
                    counts.lost += u64::from(health.last_error.is_some());
                });
            }
            () = async { sleep_until(until.unwrap_or(start)).await }, if until.is_some() => {
                break heartbeat.stop().await;
            }
            why = heartbeat.finished() => break why,
        }
    };
    if let Some(job) = job {
        job.abort();
    }
    let mut counts = story.counts();
    let health = heartbeat.health().borrow().clone();
    // The last beat may end after the last line.
    counts.lost += u64::from(health.beats > counts.beats && health.last_error.is_some());
    counts.beats = health.beats;
    say(&summary(&paint, &counts, scene.server.as_deref()))?;
    if stopped != Stopped::Requested {
        say(&ended(&paint, &stopped))?;
    }
    let as_planned = stopped == Stopped::Requested;
    Ok(as_planned && counts.beats > 0 && counts.lost == 0 && counts.failed == 0)
}

fn start(
    options: &Options,
    scene: &Scene,
    client: ClientWithMiddleware,
) -> Result<HeartbeatHandle, AnyError> {
    let url = scene.beat.clone();
    let heartbeat = if options.url.is_some() {
        let (method, body) = (options.method.clone(), options.body());
        Heartbeat::new(client, move |client| {
            let request = client.request(method.clone(), &url);
            request.header(CONTENT_TYPE, "application/json").body(body.clone())
        })
        .max_failures(options.max_failures)
    } else {
        // Covers the standstill and the refresh after it.
        Heartbeat::new(client, move |client| client.put(&url))
            .timeout(options.ttl + Duration::from_secs(10))
    };
    let heartbeat = heartbeat
        .session(scene.session.clone())
        .every(options.every())
        .reissue_window(0.8)
        // Not found, running elsewhere, or gone.
        .stop_on(|status| matches!(status.as_u16(), 404 | 409 | 410));
    Ok(heartbeat.spawn()?)
}

/// The job's own requests on the same client: it reports progress, and asks for resources that do
/// not exist.
async fn job(client: ClientWithMiddleware, url: String, story: Arc<Story>) {
    for status in [200_u16, 404, 409].into_iter().cycle() {
        let response = client.post(format!("{url}?status={status}")).body("progress").send().await;
        let as_asked = response.is_ok_and(|response| response.status() == status);
        story.count(|counts| {
            counts.requests += 1;
            counts.failed += u64::from(!as_asked);
        });
        tokio::time::sleep(Duration::from_millis(350)).await;
    }
}
