//! Output for a terminal.

use std::io::{self, IsTerminal as _, Write as _};

use http::StatusCode;
use reqwest_reauth::{
    Session,
    heartbeat::{Health, Stopped},
    testing::AuthServer,
};
use tokio::time::Instant;

use crate::story::Counts;

/// Writes a line to standard output. An error means that nothing reads it any more.
pub(crate) fn say(line: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}

pub(crate) const LEGEND: &str = "\
each line is a beat:
  status      the status of the API's response
  generation  the number of tokens that the session has had
  then        what has happened since the last line:
    standstill        the API responded to nothing for a while
    captured          a response brought the next token
    token endpoint:   an attempt to refresh failed and is repeated
    refreshed         the token endpoint brought a token
    replayed          a rejected beat or request of the job was sent again
                      with another token, and got this status (the job
                      asks for 200, 404 and 409)
    lost              the beat failed, and why";

pub(crate) fn head(paint: &Paint) -> String {
    paint.faint("   time  status  generation  then")
}

pub(crate) fn line(
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
    let (time, generation) = (paint.faint(&time), session.generation());
    let line = format!("{time}  {status}  {generation:>10}  {}", news.join(", "));
    line.trim_end().to_owned()
}

/// The summary table at the end.
pub(crate) fn summary(paint: &Paint, counts: &Counts, server: Option<&AuthServer>) -> String {
    let judged = |number: u64, good: bool| {
        let text = format!("{number:>6}");
        if good { paint.green(&text) } else { paint.red(&text) }
    };
    let plain = |number: u64| format!("{number:>6}");
    let mut rows = vec![
        ("beats", judged(counts.beats, counts.beats > 0)),
        ("lost", judged(counts.lost, counts.lost == 0)),
        ("tokens captured", plain(counts.captured)),
        ("tokens refreshed", plain(counts.refreshed)),
        ("requests replayed", plain(counts.replayed)),
        ("token endpoint calls", plain(counts.token_calls)),
    ];
    if let Some(server) = server {
        rows.push(("requests of the job", plain(counts.requests)));
        rows.push(("  not as expected", judged(counts.failed, counts.failed == 0)));
        rows.push(("rejected by the API", plain(server.refused())));
    }
    let rows: Vec<_> =
        rows.into_iter().map(|(name, number)| format!("  {name:<22}{number}")).collect();
    format!("\n{}", rows.join("\n"))
}

pub(crate) fn ended(paint: &Paint, stopped: &Stopped) -> String {
    paint.red(&format!("\nthe heartbeat ended: {stopped:?}"))
}

/// Uses colours if the output is a terminal.
pub(crate) struct Paint(bool);

impl Paint {
    pub(crate) fn new() -> Self {
        Self(io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none())
    }

    fn with(&self, code: u8, text: &str) -> String {
        if self.0 { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    pub(crate) fn faint(&self, text: &str) -> String {
        self.with(2, text)
    }

    pub(crate) fn red(&self, text: &str) -> String {
        self.with(31, text)
    }

    pub(crate) fn green(&self, text: &str) -> String {
        self.with(32, text)
    }

    pub(crate) fn yellow(&self, text: &str) -> String {
        self.with(33, text)
    }
}
