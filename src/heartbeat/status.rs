//! The reports of a heartbeat.

use std::{error::Error as StdError, fmt, sync::Arc, time::SystemTime};

use http::StatusCode;

use crate::error::{BoxError, Error};

/// The health of a heartbeat.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Health {
    /// The number of finished beats, including failed ones.
    pub beats: u64,
    /// The number of failed beats since the last success. A 429 with `Retry-After` neither counts
    /// nor resets the number (see [Retry-After](crate::heartbeat#retry-after)).
    pub consecutive_failures: u32,
    /// The status of the API's latest response.
    pub last_status: Option<StatusCode>,
    /// When the response to the last successful beat arrived, on the local clock.
    pub last_success: Option<SystemTime>,
    /// When the last successful beat was sent, on the local clock. The
    /// [lease](super::Heartbeat::lease) counts from then.
    pub last_success_sent: Option<SystemTime>,
    /// Why the latest beat failed, as text for people, or `None` if it succeeded.
    pub last_error: Option<String>,
    /// Why the latest beat failed, or `None` if it succeeded.
    pub last_failure: Option<Failure>,
}

/// Why a beat failed.
///
/// [`Heartbeat::read_response`](super::Heartbeat::read_response) receives it as the error in
/// [`Beat::Failed`](super::Beat::Failed).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Failure {
    /// The API responded with a status of 400 or more.
    Status(StatusCode),
    /// No token could be obtained. [`Error::api_status`] is the status of the API's response,
    /// [`Error::status`] that of the token endpoint.
    Auth(Error),
    /// The request could not be built or sent, or its response did not arrive.
    Transport(Arc<reqwest_middleware::Error>),
    /// The closure of [`Heartbeat::from_fn`](super::Heartbeat::from_fn) or
    /// [`Heartbeat::read_response`](super::Heartbeat::read_response) returned an error.
    Beat(Arc<dyn StdError + Send + Sync>),
    /// The beat took longer than [`Heartbeat::timeout`](super::Heartbeat::timeout).
    TimedOut,
    /// The closure, a rule, or a middleware of the client panicked.
    Panicked,
}

impl Failure {
    /// Classifies the error of a user's closure.
    pub(super) fn of(error: BoxError) -> Self {
        let error = match error.downcast::<Self>() {
            Ok(failure) => return *failure,
            Err(error) => error,
        };
        match Error::find_in(&*error) {
            Some(ours) => Self::Auth(ours.clone()),
            None => Self::Beat(Arc::from(error)),
        }
    }

    /// The name in metrics.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Status(_) => "status",
            Self::Auth(_) => "auth",
            Self::Transport(_) => "transport",
            Self::Beat(_) => "beat",
            Self::TimedOut => "timed_out",
            Self::Panicked => "panicked",
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => write!(f, "the api returned {status}"),
            Self::Auth(error) => chain(f, error),
            Self::Transport(error) => chain(f, &**error),
            Self::Beat(error) => chain(f, &**error),
            Self::TimedOut => f.write_str("the beat timed out"),
            Self::Panicked => f.write_str("the beat panicked"),
        }
    }
}

/// `source()` is empty, because the text has the whole chain of causes.
impl StdError for Failure {}

/// Writes an error with all its causes, which a text without `source()` would lose.
fn chain(f: &mut fmt::Formatter<'_>, error: &dyn StdError) -> fmt::Result {
    write!(f, "{error}")?;
    let mut cause = error.source();
    while let Some(error) = cause {
        write!(f, ": {error}")?;
        cause = error.source();
    }
    Ok(())
}

/// Why a heartbeat ended. If there are several reasons, the first in this list applies.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stopped {
    /// [`HeartbeatHandle::stop`](super::HeartbeatHandle::stop) or
    /// [`abort`](super::HeartbeatHandle::abort) was called, or the handle was dropped.
    Requested,
    /// The session was closed, or there is no session for the beat.
    #[non_exhaustive]
    Closed {},
    /// The server reported that the job is over ([`Beat::Stop`](super::Beat::Stop)).
    #[non_exhaustive]
    ByServer {
        /// The server's reason, in full.
        reason: String,
    },
    /// The status of the API's response matched [`Heartbeat::stop_on`](super::Heartbeat::stop_on).
    #[non_exhaustive]
    ByStatus {
        /// The status.
        status: StatusCode,
    },
    /// The session's login is over.
    LoginRequired,
    /// No beat that was sent within the [lease](super::Heartbeat::lease) has succeeded.
    #[non_exhaustive]
    LeaseLost {},
    /// [`Heartbeat::max_failures`](super::Heartbeat::max_failures) beats failed in a row.
    #[non_exhaustive]
    TooManyFailures {
        /// The number of failed beats.
        failures: u32,
    },
    /// The runtime of the loop was shut down.
    RuntimeGone,
}

impl Stopped {
    /// Whether the end is logged as a warning.
    pub(super) fn is_fault(&self) -> bool {
        matches!(self, Self::LoginRequired | Self::LeaseLost {} | Self::TooManyFailures { .. })
    }

    /// The name in logs and metrics.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Requested => "requested",
            Self::Closed {} => "closed",
            Self::ByServer { .. } => "by_server",
            Self::ByStatus { .. } => "by_status",
            Self::LoginRequired => "login_required",
            Self::LeaseLost {} => "lease_lost",
            Self::TooManyFailures { .. } => "too_many_failures",
            Self::RuntimeGone => "runtime_gone",
        }
    }
}
