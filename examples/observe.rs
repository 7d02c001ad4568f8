//! Three sessions and two heartbeats with failing servers, to be scraped by Prometheus.
//!
//! ```text
//! cargo run --example observe -- --help
//! cargo run --example observe
//! ```
//!
//! The metrics are served on a port of the loopback interface. `docs/dashboard.json` is a Grafana
//! dashboard for them, and the guide's page on telemetry has alert rules.

use std::{
    error::Error as StdError,
    io::{self, Write as _},
    net::Ipv4Addr,
    process::ExitCode,
    time::Duration,
};

use axum::{Router, routing::get};
use clap::Parser;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder};
use reqwest_middleware::{ClientBuilder, ClientWithMiddleware};
use reqwest_reauth::{
    ClientBuilderExt, FileStore, OAuthRefresh, Session, SessionBuilder,
    heartbeat::{Heartbeat, HeartbeatHandle},
    testing::{Answer, AuthServer},
};
use tokio::{net::TcpListener, time::sleep};

type AnyError = Box<dyn StdError + Send + Sync>;

/// Three sessions and two heartbeats against failing servers, with metrics for Prometheus.
///
/// "healthy" refreshes every few seconds. The token endpoint of "outage" always responds with 503.
/// "revoked" loses its login at once, and its store cannot be read. "outage" and "revoked" have a
/// heartbeat each: the first continues, the second ends with its login.
#[derive(Debug, Parser)]
#[command(name = "observe")]
struct Options {
    /// The port of http://127.0.0.1:PORT/metrics. With 0 the system chooses a port.
    #[arg(long, default_value = "9184")]
    port: u16,

    /// How long to run, in seconds [default: until interrupted].
    #[arg(long, value_name = "SECONDS")]
    seconds: Option<u64>,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(&Options::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
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

async fn run(options: &Options) -> Result<(), AnyError> {
    // Installed before the first session, because a session describes its metrics to the recorder.
    let buckets = [0.005, 0.02, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
    let recorder = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("duration".to_owned()), &buckets)?
        .install_recorder()?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, options.port)).await?;
    let address = listener.local_addr()?;
    let metrics = get(move || {
        let text = recorder.render();
        async move { text }
    });
    tokio::spawn(
        async move { axum::serve(listener, Router::new().route("/metrics", metrics)).await },
    );

    let good = AuthServer::builder().lifetime(Duration::from_secs(5)).start().await;
    let down = AuthServer::builder().lifetime(Duration::from_secs(5)).start().await;
    // More than any run will use.
    down.script_token_endpoint((0..100_000).map(|_| Answer::Status(503)));
    let healthy = session("healthy", &good).build()?;
    let outage = session("outage", &down).build()?;
    // A directory instead of a file, so that every load fails.
    let unreadable = FileStore::new(std::env::temp_dir());
    let revoked = session("revoked", &good).store(unreadable).build()?;
    good.revoke("revoked");

    for (session, server) in [(&healthy, &good), (&outage, &down), (&revoked, &good)] {
        tokio::spawn(requests(client(session), server.url("/jobs")));
    }
    let _heartbeats = [heartbeat(&outage, &down)?, heartbeat(&revoked, &good)?];
    say(&format!("metrics:    http://{address}/metrics"))?;
    say("dashboard:  docs/dashboard.json (Grafana: Dashboards, New, Import)")?;
    say("alerts:     docs/alerts.yml (Prometheus: rule_files)")?;
    match options.seconds {
        Some(seconds) => sleep(Duration::from_secs(seconds)).await,
        None => tokio::signal::ctrl_c().await?,
    }
    Ok(())
}

fn session(name: &str, server: &AuthServer) -> SessionBuilder {
    let step = Duration::from_millis(100);
    let refresher = OAuthRefresh::new(server.token_endpoint()).backoff(step, step).max_attempts(2);
    Session::builder(server.login_as(name))
        .name(name)
        .origin(server.origin())
        .refresher(refresher)
        .cooldown(Duration::from_secs(2))
}

fn client(session: &Session) -> ClientWithMiddleware {
    ClientBuilder::new(reqwest::Client::new()).with_session(session.clone()).build()
}

fn heartbeat(session: &Session, server: &AuthServer) -> Result<HeartbeatHandle, AnyError> {
    let url = server.url("/jobs/7/heartbeat");
    let heartbeat = Heartbeat::new(client(session), move |client| client.put(&url));
    Ok(heartbeat.session(session.clone()).every(Duration::from_secs(1)).spawn()?)
}

/// The job's own requests. Failures are ignored.
async fn requests(client: ClientWithMiddleware, url: String) {
    loop {
        let _ = client.get(&url).send().await;
        sleep(Duration::from_millis(500)).await;
    }
}

fn say(line: &str) -> io::Result<()> {
    writeln!(io::stdout().lock(), "{line}")
}
