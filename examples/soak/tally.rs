//! The counts of the run, and their bounds.

use std::{
    fmt, fs,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use reqwest_reauth::{Error, Event};

/// How long after the end of an outage a failure still counts as part of it.
const AFTERMATH: Duration = Duration::from_secs(1);

#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) requests: AtomicU64,
    pub(crate) replayed: AtomicU64,
    pub(crate) refreshes: AtomicU64,
    pub(crate) retries: AtomicU64,
    pub(crate) invalid_grants: AtomicU64,
    outages: Mutex<Vec<Outage>>,
    failures: Mutex<Vec<Failure>>,
}

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Of {
    Api,
    TokenEndpoint,
}

struct Outage {
    of: Of,
    from: Instant,
    to: Option<Instant>,
}

#[derive(Clone)]
pub(crate) struct Failure {
    at: Instant,
    /// A failure of the token: a rejection, or the error of a refresh. Other failures are those of
    /// the connection.
    refused: bool,
    text: String,
}

impl Tally {
    pub(crate) fn hear(&self, event: &Event) {
        match event {
            Event::Refreshed { .. } => _ = self.refreshes.fetch_add(1, Ordering::Relaxed),
            Event::RefreshRetrying { .. } => _ = self.retries.fetch_add(1, Ordering::Relaxed),
            Event::RefreshFailed { error, .. } if error.oauth_error() == Some("invalid_grant") => {
                self.invalid_grants.fetch_add(1, Ordering::Relaxed);
            }
            _ => {}
        }
    }

    /// Counts a response or an error of a worker.
    pub(crate) fn note(&self, got: &Result<u16, reqwest_middleware::Error>) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let (refused, text) = match got {
            Ok(200) => return,
            Ok(status) => (matches!(status, 401 | 403), format!("status {status}")),
            Err(error) => (Error::find_in(error).is_some(), format!("{error:#}")),
        };
        if let Ok(mut failures) = self.failures.lock() {
            failures.push(Failure { at: Instant::now(), refused, text });
        }
    }

    pub(crate) fn outage_begins(&self, of: Of) {
        if let Ok(mut outages) = self.outages.lock() {
            outages.push(Outage { of, from: Instant::now(), to: None });
        }
    }

    pub(crate) fn outage_ends(&self) {
        if let Ok(mut outages) = self.outages.lock()
            && let Some(outage) = outages.last_mut()
        {
            outage.to = Some(Instant::now());
        }
    }

    /// Returns the failures of the token, or the other failures. `excused` selects those that an
    /// outage explains.
    pub(crate) fn failures(&self, refused: bool, excused: bool) -> Vec<Failure> {
        let (Ok(failures), Ok(outages)) = (self.failures.lock(), self.outages.lock()) else {
            return Vec::new();
        };
        let of = if refused { Of::TokenEndpoint } else { Of::Api };
        let explained = |failure: &Failure| {
            let lasted = |outage: &Outage| {
                let over = outage.to.is_some_and(|end| failure.at > end + AFTERMATH);
                outage.of == of && outage.from <= failure.at && !over
            };
            outages.iter().any(lasted)
        };
        failures
            .iter()
            .filter(|failure| failure.refused == refused && explained(failure) == excused)
            .cloned()
            .collect()
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// What the process holds, or `None` without `/proc`.
#[derive(Clone, Copy)]
pub(crate) struct Held {
    pub(crate) kib: u64,
    pub(crate) files: usize,
}

impl Held {
    pub(crate) fn now() -> Option<Self> {
        let status = fs::read_to_string("/proc/self/status").ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        let kib = line.split_whitespace().next()?.parse().ok()?;
        Some(Self { kib, files: fs::read_dir("/proc/self/fd").ok()?.count() })
    }
}
