//! The command-line options.
#![allow(clippy::doc_markdown, reason = "--help prints it")]

use std::time::Duration;

use clap::Parser;
use http::Method;
use reqwest::Url;

/// A heartbeat that stays signed in, against a server that fails in several ways.
///
/// Without --url the server runs in this process. It reissues tokens in the last fifth of their
/// lifetime as Airflow does, rejects expired ones with 403, has single-use refresh tokens as Seqera
/// does, and stands still now and then.
///
/// With --url the beats go to a real server, with tokens from the environment: REAUTH_ACCESS_TOKEN
/// and, to refresh it, REAUTH_REFRESH_TOKEN, REAUTH_TOKEN_ENDPOINT and REAUTH_CLIENT_ID.
///
/// Exits with 1 if a beat was lost.
#[derive(Debug, Parser)]
#[command(name = "heartbeat", max_term_width = 100)]
pub(crate) struct Options {
    /// The server accepts an expired token for a while, and replaces it (the fix of
    /// apache/airflow#67944).
    #[arg(long, conflicts_with = "url")]
    pub(crate) grace: bool,

    /// How long to run [default: 20, with --url until it ends].
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) seconds: Option<Duration>,

    /// The time between beats [default: 1, with --url 30].
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    every: Option<Duration>,

    /// The lifetime of a token of the server in this process.
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "4", conflicts_with = "url")]
    pub(crate) ttl: Duration,

    /// The URL of the beats. With --task-instance, the base URL of Airflow's execution API, for
    /// example https://airflow.example.com/execution/
    #[arg(long)]
    pub(crate) url: Option<Url>,

    /// The task instance (a UUID) to send the heartbeat for.
    #[arg(long, value_name = "ID", requires = "url")]
    task_instance: Option<String>,

    /// The method of a beat.
    #[arg(long, default_value = "PUT", requires = "url")]
    pub(crate) method: Method,

    /// The JSON body of a beat [default: hostname and pid, as Airflow requires].
    #[arg(long, value_name = "JSON", requires = "url", value_parser = json, conflicts_with_all = ["hostname", "pid"])]
    body: Option<String>,

    /// The hostname that the task was started with [default: this machine's].
    #[arg(long, requires = "url")]
    hostname: Option<String>,

    /// The process that the task was started with [default: this process].
    #[arg(long, requires = "url")]
    pid: Option<u32>,

    /// The number of beats that may fail in a row.
    #[arg(long, default_value = "20", requires = "url", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_failures: u32,
}

impl Options {
    pub(crate) fn every(&self) -> Duration {
        let default = if self.url.is_some() { 30 } else { 1 };
        self.every.unwrap_or(Duration::from_secs(default))
    }

    /// The time after which the example stops.
    pub(crate) fn length(&self) -> Option<Duration> {
        let default = self.url.is_none().then_some(Duration::from_secs(20));
        self.seconds.or(default)
    }

    /// Where beats go. Airflow returns 404 for `//task-instances`, so a slash at the end of the
    /// base URL is removed.
    pub(crate) fn beat_url(&self, base: &Url) -> String {
        match &self.task_instance {
            Some(id) => {
                format!("{}/task-instances/{id}/heartbeat", base.as_str().trim_end_matches('/'))
            }
            None => base.to_string(),
        }
    }

    pub(crate) fn body(&self) -> String {
        let hostname = || self.hostname.clone().unwrap_or_else(hostname);
        let pid = self.pid.unwrap_or_else(std::process::id);
        self.body
            .clone()
            .unwrap_or_else(|| serde_json::json!({"hostname": hostname(), "pid": pid}).to_string())
    }
}

fn hostname() -> String {
    let file = || std::fs::read_to_string("/etc/hostname").ok();
    let name = std::env::var("HOSTNAME").ok().or_else(file).unwrap_or_default();
    match name.trim() {
        "" => "localhost".to_owned(),
        name => name.to_owned(),
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    match Duration::try_from_secs_f64(seconds) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        _ => Err("not a positive number of seconds".to_owned()),
    }
}

fn json(text: &str) -> Result<String, serde_json::Error> {
    serde_json::from_str::<serde_json::Value>(text).map(|_| text.to_owned())
}
