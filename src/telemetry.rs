//! Counters and histograms through the [`metrics`](https://docs.rs/metrics) facade, with feature
//! `metrics`; nothing without it.
//!
//! Names follow OpenTelemetry's habits: dots between words, seconds for durations, `error.type` and
//! `http.response.status_code` as attributes. The guide's page on telemetry lists them.

use std::time::Duration;

use crate::{error::Error, event::Event};

/// Counts what listeners are told.
pub(crate) fn event(event: &Event) {
    #[cfg(feature = "metrics")]
    enabled::event(event);
    #[cfg(not(feature = "metrics"))]
    let _ = event;
}

/// A flight has ended, and nothing has overtaken it: `None` if it brought a token.
pub(crate) fn flight(error: Option<&Error>, took: Duration) {
    #[cfg(feature = "metrics")]
    enabled::flight(error, took);
    #[cfg(not(feature = "metrics"))]
    let _ = (error, took);
}

/// A request, or the user, has waited for a flight.
pub(crate) fn wait(took: Duration) {
    #[cfg(feature = "metrics")]
    metrics::histogram!("reauth.wait.duration").record(took.as_secs_f64());
    #[cfg(not(feature = "metrics"))]
    let _ = took;
}

/// A beat of a heartbeat has ended: `None` if it was served.
pub(crate) fn beat(failure: Option<&'static str>, took: Duration) {
    #[cfg(feature = "metrics")]
    enabled::beat(failure, took);
    #[cfg(not(feature = "metrics"))]
    let _ = (failure, took);
}

#[cfg(feature = "metrics")]
mod enabled {
    use std::time::Duration;

    use metrics::{counter, histogram};

    use crate::{
        error::{Error, ErrorKind},
        event::{CaptureIgnored, Event, NotReplayed},
    };

    pub(super) fn event(event: &Event) {
        match event {
            Event::Captured { .. } => {
                counter!("reauth.captures", "reauth.result" => "adopted").increment(1);
            }
            Event::CaptureIgnored { reason } => {
                let result = match reason {
                    CaptureIgnored::UntrustedOrigin => "untrusted_origin",
                    CaptureIgnored::Malformed => "malformed",
                    CaptureIgnored::Superseded => "superseded",
                    CaptureIgnored::Unchanged => "unchanged",
                };
                counter!("reauth.captures", "reauth.result" => result).increment(1);
            }
            Event::RefreshRetrying { status, .. } => {
                let status =
                    status.map_or_else(|| "none".to_owned(), |status| status.as_u16().to_string());
                counter!("reauth.flight.retries", "http.response.status_code" => status)
                    .increment(1);
            }
            Event::Replayed { status, .. } => {
                counter!("reauth.replays", "http.response.status_code" => status.as_u16().to_string()).increment(1);
            }
            Event::NotReplayed { reason } => {
                let reason = match reason {
                    NotReplayed::BodyNotReplayable => "body_not_replayable",
                    NotReplayed::AlreadyReplayed => "already_replayed",
                    NotReplayed::RuledOut => "ruled_out",
                };
                counter!("reauth.not_replayed", "reauth.reason" => reason).increment(1);
            }
            Event::StoreFailed { .. } => counter!("reauth.store.failures").increment(1),
            // Told by `flight`, with how long it took.
            Event::RefreshStarted { .. }
            | Event::Refreshed { .. }
            | Event::RefreshFailed { .. } => {}
        }
    }

    pub(super) fn flight(error: Option<&Error>, took: Duration) {
        let error = error.map_or("none", |error| kind(error.kind()));
        counter!("reauth.flights", "error.type" => error).increment(1);
        histogram!("reauth.flight.duration", "error.type" => error).record(took.as_secs_f64());
    }

    pub(super) fn beat(failure: Option<&'static str>, took: Duration) {
        let error = failure.unwrap_or("none");
        counter!("reauth.heartbeat.beats", "error.type" => error).increment(1);
        histogram!("reauth.heartbeat.beat.duration", "error.type" => error)
            .record(took.as_secs_f64());
    }

    fn kind(kind: ErrorKind) -> &'static str {
        match kind {
            ErrorKind::InvalidToken => "invalid_token",
            ErrorKind::InvalidConfig => "invalid_config",
            ErrorKind::LoginRequired => "login_required",
            ErrorKind::ClientRejected => "client_rejected",
            ErrorKind::Unavailable => "unavailable",
            ErrorKind::BadResponse => "bad_response",
            ErrorKind::CoolingDown => "cooling_down",
            ErrorKind::TimedOut => "timed_out",
            ErrorKind::NoSession => "no_session",
            ErrorKind::Store => "store",
            ErrorKind::Closed => "closed",
            ErrorKind::Internal => "internal",
        }
    }
}
