//! What an operator sees of a session: lines for `tracing` and, with feature `metrics`, numbers.
//!
//! Everything that the crate says to either goes through [`Telemetry`]. It names the session, and
//! keeps failures that repeat from filling a log. A subscriber or a recorder that panics changes
//! nothing.

mod log;
#[cfg(feature = "metrics")]
mod metrics;
mod repeats;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use http::StatusCode;
use tokio::time::Instant;

use self::repeats::{Kind, Repeats, Volume};
use crate::{
    catch_panic::StorePanicked,
    error::{Error, ErrorKind},
    event::Event,
    session::SessionState,
};

/// One session's, or that of a heartbeat without a session.
#[derive(Debug, Default)]
pub(crate) struct Telemetry {
    name: Option<Box<str>>,
    /// Made at the first failure.
    repeats: Mutex<Option<Box<Repeats>>>,
    /// Told once at INFO.
    caller_authorization: AtomicBool,
    /// The state that the gauge shows.
    #[cfg(feature = "metrics")]
    state: Mutex<Option<SessionState>>,
}

impl Telemetry {
    pub(crate) fn new(name: Option<String>) -> Self {
        #[cfg(feature = "metrics")]
        guarded(metrics::describe);
        let mut telemetry = Self::default();
        telemetry.name = name.map(String::into_boxed_str);
        telemetry
    }

    pub(crate) fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Tells what listeners are told.
    pub(crate) fn event(&self, event: &Event) {
        guarded(|| log::event(self.name(), event, self.volume_of(event)));
        #[cfg(feature = "metrics")]
        guarded(|| metrics::event(self.name(), event));
    }

    /// How loud a failure, or something that is worth a line only once, is told.
    fn volume_of(&self, event: &Event) -> Volume {
        match event {
            Event::RefreshRetrying { .. } | Event::RefreshFailed { .. } => {
                self.failed(Kind::Refresh)
            }
            Event::StoreFailed { error } if is_panic(error) => self.failed(Kind::StorePanic),
            Event::StoreFailed { .. } => self.failed(Kind::Store),
            Event::CallerAuthorization {}
                if self.caller_authorization.swap(true, Ordering::Relaxed) =>
            {
                Volume::Quiet
            }
            _ => Volume::Aloud { count: None },
        }
    }

    fn failed(&self, kind: Kind) -> Volume {
        let mut repeats = self.repeats.lock().unwrap_or_else(PoisonError::into_inner);
        repeats.get_or_insert_default().failed(kind, Instant::now())
    }

    pub(crate) fn listener_panicked(&self) {
        let volume = self.failed(Kind::ListenerPanic);
        guarded(|| log::listener_panicked(self.name(), volume));
    }

    /// A refresh has ended, and nothing has overtaken it: `None` if it brought a token.
    #[cfg_attr(not(feature = "metrics"), allow(clippy::unused_self))]
    pub(crate) fn refresh(&self, error: Option<&Error>, took: Duration) {
        #[cfg(feature = "metrics")]
        guarded(|| metrics::refresh(self.name(), error, took));
        #[cfg(not(feature = "metrics"))]
        let _ = (error, took);
    }

    /// A request is sent again with a nonce (RFC 9449 §8 and §9).
    #[cfg(feature = "dpop")]
    pub(crate) fn nonce_repeat(&self) {
        guarded(|| log::nonce_repeat(self.name()));
        #[cfg(feature = "metrics")]
        guarded(|| metrics::nonce_repeat(self.name()));
    }

    /// A request, or the user, has waited for a refresh.
    #[cfg_attr(not(feature = "metrics"), allow(clippy::unused_self))]
    pub(crate) fn wait(&self, took: Duration) {
        #[cfg(feature = "metrics")]
        guarded(|| metrics::wait(self.name(), took));
        #[cfg(not(feature = "metrics"))]
        let _ = took;
    }

    /// The session's state, as [`Session::state`](crate::Session::state) says it.
    #[cfg_attr(not(feature = "metrics"), allow(clippy::unused_self))]
    pub(crate) fn state(&self, to: Option<SessionState>) {
        #[cfg(feature = "metrics")]
        {
            let mut shown = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            if *shown != to {
                let from = std::mem::replace(&mut *shown, to);
                guarded(|| metrics::state(self.name(), from, to));
            }
        }
        #[cfg(not(feature = "metrics"))]
        let _ = to;
    }

    /// A beat has ended. Heartbeats of one session share its pace.
    pub(crate) fn beat(&self, beat: &BeatTold<'_>) {
        let volume = match beat.failure {
            Some(_) => self.failed(Kind::Heartbeat),
            None => Volume::Quiet,
        };
        guarded(|| log::beat(self.name(), beat, volume));
        #[cfg(feature = "metrics")]
        guarded(|| metrics::beat(self.name(), beat.failure.map(|(kind, _)| kind), beat.took));
    }

    /// A heartbeat's loop has ended.
    pub(crate) fn heartbeat_ended(&self, end: &EndTold<'_>) {
        guarded(|| log::heartbeat_ended(self.name(), end));
        #[cfg(feature = "metrics")]
        guarded(|| metrics::heartbeat_ended(self.name(), end.stopped));
    }

    /// A server asked for another period than it gets.
    pub(crate) fn period_cut(&self, asked: Duration, period: Duration) {
        guarded(|| log::period_cut(self.name(), asked, period));
    }
}

/// What is told of a heartbeat's end.
pub(crate) struct EndTold<'a> {
    pub(crate) stopped: &'static str,
    /// What the server said, already fit for a log.
    pub(crate) reason: Option<&'a str>,
    pub(crate) status: Option<StatusCode>,
    pub(crate) failures: Option<u32>,
    /// Nobody has asked for it.
    pub(crate) is_fault: bool,
}

/// What is told of a beat.
pub(crate) struct BeatTold<'a> {
    pub(crate) status: Option<StatusCode>,
    /// How many beats have failed in a row.
    pub(crate) failures: u32,
    /// Why it failed: the kind for metrics, and a text.
    pub(crate) failure: Option<(&'static str, &'a str)>,
    #[cfg_attr(not(feature = "metrics"), allow(dead_code))]
    pub(crate) took: Duration,
}

/// A request failed with an error of this crate.
pub(crate) fn request_failed(telemetry: Option<&Telemetry>, kind: ErrorKind) {
    #[cfg(feature = "metrics")]
    guarded(|| metrics::request_failed(telemetry.and_then(Telemetry::name), kind));
    #[cfg(not(feature = "metrics"))]
    let _ = (telemetry, kind);
}

fn is_panic(error: &Error) -> bool {
    std::error::Error::source(error).is_some_and(<dyn std::error::Error>::is::<StorePanicked>)
}

/// An observer cannot change what happens.
fn guarded(tell: impl FnOnce()) {
    let _ = catch_unwind(AssertUnwindSafe(tell));
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        self.state(None);
    }
}
