//! Counters, gauges and histograms through the [`metrics`](https://docs.rs/metrics) facade.
//!
//! Names follow the conventions of OpenTelemetry: dots between words, seconds for durations,
//! `error.type` and `http.response.status_code` as attributes. The guide's page on telemetry lists
//! them.

use std::time::Duration;

use metrics::{
    Label, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};

use crate::{
    error::{Error, ErrorKind},
    event::{CaptureIgnored, Event, NotReplayed},
    session_state::SessionState,
};

/// Describes each metric to the recorder. Every session repeats this, because a recorder that is
/// installed later has missed earlier descriptions.
pub(super) fn describe() {
    let count = Unit::Count;
    describe_counter!("reauth.captures", count, "Tokens in responses of the API, by result");
    describe_counter!("reauth.flights", count, "Token refreshes that have ended, by error");
    describe_counter!(
        "reauth.flight.retries",
        count,
        "Attempts at the token endpoint that failed and were repeated, by status"
    );
    describe_counter!(
        "reauth.replays",
        count,
        "Rejected requests that were sent again, by the status of the second response"
    );
    describe_counter!(
        "reauth.not_replayed",
        count,
        "Rejected requests that were not sent again, by reason"
    );
    describe_counter!(
        "reauth.requests.failed",
        count,
        "Requests that failed because there was no usable token, by error"
    );
    describe_counter!(
        "reauth.dpop.nonce_repeats",
        count,
        "Requests that were repeated with a nonce from the server"
    );
    describe_counter!("reauth.store.failures", count, "Calls of the token store that failed");
    describe_counter!("reauth.heartbeat.beats", count, "Heartbeats, by error");
    describe_counter!(
        "reauth.heartbeat.ended",
        count,
        "Heartbeat loops that have ended, by reason"
    );
    describe_gauge!("reauth.session.state", count, "Sessions that are in each state");
    let seconds = Unit::Seconds;
    describe_histogram!("reauth.flight.duration", seconds, "How long a token refresh took");
    describe_histogram!("reauth.wait.duration", seconds, "How long a request waited for a refresh");
    describe_histogram!("reauth.heartbeat.beat.duration", seconds, "How long a heartbeat took");
}

/// The labels of a metric: at most one of its own, and the session's name if it has one.
fn labels(session: Option<&str>, own: Option<(&'static str, &str)>) -> Vec<Label> {
    let own = own.map(|(key, value)| Label::new(key, value.to_owned()));
    let session = session.map(|name| Label::new("reauth.session", name.to_owned()));
    own.into_iter().chain(session).collect()
}

pub(super) fn event(session: Option<&str>, event: &Event) {
    match event {
        Event::Captured { .. } => {
            counter!("reauth.captures", labels(session, Some(("reauth.result", "adopted"))))
                .increment(1);
        }
        Event::CaptureIgnored { reason } => {
            let result = match reason {
                CaptureIgnored::UntrustedOrigin => "untrusted_origin",
                CaptureIgnored::Malformed => "malformed",
                CaptureIgnored::Superseded => "superseded",
                CaptureIgnored::Unchanged => "unchanged",
            };
            counter!("reauth.captures", labels(session, Some(("reauth.result", result))))
                .increment(1);
        }
        Event::RefreshRetrying { status, .. } => {
            let status = status.as_ref().map_or("none", http::StatusCode::as_str);
            let labels = labels(session, Some(("http.response.status_code", status)));
            counter!("reauth.flight.retries", labels).increment(1);
        }
        Event::Replayed { status, .. } => {
            let labels = labels(session, Some(("http.response.status_code", status.as_str())));
            counter!("reauth.replays", labels).increment(1);
        }
        Event::NotReplayed { reason } => {
            let reason = match reason {
                NotReplayed::BodyNotReplayable => "body_not_replayable",
                NotReplayed::AlreadyReplayed => "already_replayed",
                NotReplayed::RuledOut => "ruled_out",
            };
            counter!("reauth.not_replayed", labels(session, Some(("reauth.reason", reason))))
                .increment(1);
        }
        Event::StoreFailed { .. } => {
            counter!("reauth.store.failures", labels(session, None)).increment(1);
        }
        // `refresh` records refreshes, with their duration. The other events have no counter.
        _ => {}
    }
}

pub(super) fn refresh(session: Option<&str>, error: Option<&Error>, took: Duration) {
    let error = error.map_or("none", |error| kind(error.kind()));
    let labels = labels(session, Some(("error.type", error)));
    counter!("reauth.flights", labels.clone()).increment(1);
    histogram!("reauth.flight.duration", labels).record(took.as_secs_f64());
}

#[cfg(feature = "dpop")]
pub(super) fn nonce_repeat(session: Option<&str>) {
    counter!("reauth.dpop.nonce_repeats", labels(session, None)).increment(1);
}

pub(super) fn wait(session: Option<&str>, took: Duration) {
    histogram!("reauth.wait.duration", labels(session, None)).record(took.as_secs_f64());
}

pub(super) fn request_failed(session: Option<&str>, error: ErrorKind) {
    counter!("reauth.requests.failed", labels(session, Some(("error.type", kind(error)))))
        .increment(1);
}

pub(super) fn beat(session: Option<&str>, failure: Option<&'static str>, took: Duration) {
    let labels = labels(session, Some(("error.type", failure.unwrap_or("none"))));
    counter!("reauth.heartbeat.beats", labels.clone()).increment(1);
    histogram!("reauth.heartbeat.beat.duration", labels).record(took.as_secs_f64());
}

pub(super) fn heartbeat_ended(session: Option<&str>, reason: &'static str) {
    counter!("reauth.heartbeat.ended", labels(session, Some(("reauth.reason", reason))))
        .increment(1);
}

/// Records a change of a session's state, where `None` stands for the time before its creation and
/// after its drop. Each state has a gauge with the number of sessions in it, so that sessions
/// without a name add up.
pub(super) fn state(session: Option<&str>, from: Option<SessionState>, to: Option<SessionState>) {
    let of = |state| gauge!("reauth.session.state", labels(session, Some(("reauth.state", state))));
    if let Some(from) = from {
        of(state_name(from)).decrement(1.0);
    }
    if let Some(to) = to {
        of(state_name(to)).increment(1.0);
    }
}

fn state_name(state: SessionState) -> &'static str {
    match state {
        SessionState::Active => "active",
        SessionState::Refreshing => "refreshing",
        SessionState::CoolingDown => "cooling_down",
        SessionState::LoginRequired => "login_required",
        SessionState::Closed => "closed",
    }
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
        ErrorKind::UntrustedOrigin => "untrusted_origin",
    }
}
