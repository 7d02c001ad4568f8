//! What an operator sees of a session: events for `tracing` and, with the feature `metrics`,
//! numbers.
//!
//! All of the crate's telemetry goes through [`Telemetry`]. It adds the session's name and limits
//! the rate of repeated failures. A panic in a subscriber or a recorder has no effect on the
//! session.

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
    session_state::SessionState,
};

/// When a wait began. Only metrics need it.
#[derive(Clone, Copy)]
pub(crate) struct Begun(#[cfg(feature = "metrics")] Instant);

impl Begun {
    pub(crate) fn now() -> Self {
        Self(
            #[cfg(feature = "metrics")]
            Instant::now(),
        )
    }
}

/// The telemetry of a session, or of a heartbeat without a session.
#[derive(Debug, Default)]
pub(crate) struct Telemetry {
    name: Option<Box<str>>,
    /// Allocated on the first failure.
    repeats: Mutex<Option<Box<Repeats>>>,
    /// Whether `CallerAuthorization` has been logged. It is logged at INFO once.
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

    /// Records an event that the listeners receive too.
    pub(crate) fn event(&self, event: &Event) {
        guarded(|| log::event(self.name(), event, self.volume_of(event)));
        #[cfg(feature = "metrics")]
        guarded(|| metrics::event(self.name(), event));
    }

    /// The volume of a failure, or of an event that is logged only once.
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

    /// Records the end of a refresh that was not superseded. `error` is `None` if the refresh
    /// obtained a token.
    #[cfg_attr(not(feature = "metrics"), allow(clippy::unused_self))]
    pub(crate) fn refresh(&self, error: Option<&Error>, took: Duration) {
        #[cfg(feature = "metrics")]
        guarded(|| metrics::refresh(self.name(), error, took));
        #[cfg(not(feature = "metrics"))]
        let _ = (error, took);
    }

    /// Records that a request is sent again with a nonce (RFC 9449 §8 and §9).
    #[cfg(feature = "dpop")]
    pub(crate) fn nonce_repeat(&self) {
        guarded(|| log::nonce_repeat(self.name()));
        #[cfg(feature = "metrics")]
        guarded(|| metrics::nonce_repeat(self.name()));
    }

    /// Records how long a request or the user waited for a refresh that ends now.
    #[cfg_attr(not(feature = "metrics"), allow(clippy::unused_self))]
    pub(crate) fn wait(&self, begun: Begun) {
        #[cfg(feature = "metrics")]
        guarded(|| metrics::wait(self.name(), begun.0.elapsed()));
        #[cfg(not(feature = "metrics"))]
        let _ = begun;
    }

    /// Records the session's state, as [`Session::state`](crate::Session::state) returns it.
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

    /// Records the end of a beat. The heartbeats of a session share one rate limit.
    pub(crate) fn beat(&self, beat: &BeatTold<'_>) {
        let volume = match beat.failure {
            Some(_) => self.failed(Kind::Heartbeat),
            None => Volume::Quiet,
        };
        guarded(|| log::beat(self.name(), beat, volume));
        #[cfg(feature = "metrics")]
        guarded(|| metrics::beat(self.name(), beat.failure.map(|(kind, _)| kind), beat.took));
    }

    /// Records the end of a heartbeat's loop.
    pub(crate) fn heartbeat_ended(&self, end: &EndTold<'_>) {
        guarded(|| log::heartbeat_ended(self.name(), end));
        #[cfg(feature = "metrics")]
        guarded(|| metrics::heartbeat_ended(self.name(), end.stopped));
    }

    /// Records that a server asked for a period outside the allowed range.
    pub(crate) fn period_cut(&self, asked: Duration, period: Duration) {
        guarded(|| log::period_cut(self.name(), asked, period));
    }
}

/// The end of a heartbeat.
pub(crate) struct EndTold<'a> {
    pub(crate) stopped: &'static str,
    /// The server's reason, already safe to log.
    pub(crate) reason: Option<&'a str>,
    pub(crate) status: Option<StatusCode>,
    pub(crate) failures: Option<u32>,
    /// Whether the heartbeat stopped without being told to.
    pub(crate) is_fault: bool,
}

/// The result of a beat.
pub(crate) struct BeatTold<'a> {
    pub(crate) status: Option<StatusCode>,
    /// The number of failed beats in a row.
    pub(crate) failures: u32,
    /// Why the beat failed: the kind for metrics, and a text.
    pub(crate) failure: Option<(&'static str, &'a str)>,
    #[cfg_attr(not(feature = "metrics"), allow(dead_code))]
    pub(crate) took: Duration,
}

/// Records that a request failed with an error of this crate.
pub(crate) fn request_failed(telemetry: Option<&Telemetry>, kind: ErrorKind) {
    #[cfg(feature = "metrics")]
    guarded(|| metrics::request_failed(telemetry.and_then(Telemetry::name), kind));
    #[cfg(not(feature = "metrics"))]
    let _ = (telemetry, kind);
}

fn is_panic(error: &Error) -> bool {
    std::error::Error::source(error).is_some_and(<dyn std::error::Error>::is::<StorePanicked>)
}

/// Catches a panic, because telemetry must not change what the session does.
fn guarded(tell: impl FnOnce()) {
    let _ = catch_unwind(AssertUnwindSafe(tell));
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        self.state(None);
    }
}
