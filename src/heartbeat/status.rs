//! What a heartbeat says of itself.

use std::{error::Error as StdError, fmt, sync::Arc, time::SystemTime};

use http::StatusCode;

use super::beat::BoxError;
use crate::error::Error;

/// How a heartbeat goes.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Health {
    /// How many beats are done, failed ones included.
    pub beats: u64,
    /// How many beats have failed since the last that did not. A 429 that says when to come back
    /// neither counts here nor sets it back (see [Retry-After](crate::heartbeat#retry-after)).
    pub consecutive_failures: u32,
    /// What the API answered to the latest beat that it answered.
    pub last_status: Option<StatusCode>,
    /// When a beat last succeeded, on the local clock: when its response was there.
    pub last_success: Option<SystemTime>,
    /// When the last beat that succeeded was sent, on the local clock. The
    /// [lease](super::Heartbeat::lease) counts from then.
    pub last_success_sent: Option<SystemTime>,
    /// Why the latest beat failed, as text for people; `None` if it did not.
    pub last_error: Option<String>,
    /// Why the latest beat failed; `None` if it did not.
    pub last_failure: Option<Failure>,
}

/// Why a beat failed.
///
/// [`Heartbeat::read_response`](super::Heartbeat::read_response) is handed one inside
/// [`Beat::Failed`](super::Beat::Failed), as an error.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Failure {
    /// The API answered with a status of 400 or more.
    Status(StatusCode),
    /// No token could be had: [`Error::api_status`] is what the API answered, [`Error::status`]
    /// what the token endpoint did.
    Auth(Error),
    /// The request could not be made or sent, or its response did not arrive.
    Transport(Arc<reqwest_middleware::Error>),
    /// The closure of [`Heartbeat::from_fn`](super::Heartbeat::from_fn), or of
    /// [`Heartbeat::read_response`](super::Heartbeat::read_response), says so.
    Beat(Arc<dyn StdError + Send + Sync>),
    /// It took longer than [`Heartbeat::timeout`](super::Heartbeat::timeout).
    TimedOut,
    /// The closure, a rule, or a middleware of the client panicked.
    Panicked,
}

impl Failure {
    /// What a user's closure failed with.
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

    /// For metrics.
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

/// Its text has the whole chain of causes.
impl StdError for Failure {}

/// An error with its causes, which a text without `source()` would lose.
fn chain(f: &mut fmt::Formatter<'_>, error: &dyn StdError) -> fmt::Result {
    write!(f, "{error}")?;
    let mut cause = error.source();
    while let Some(error) = cause {
        write!(f, ": {error}")?;
        cause = error.source();
    }
    Ok(())
}

/// Why a heartbeat ended. Where there are several reasons, the first of this list counts.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stopped {
    /// [`HeartbeatHandle::stop`](super::HeartbeatHandle::stop) or
    /// [`abort`](super::HeartbeatHandle::abort) was called, or the handle was dropped.
    Requested,
    /// The session was closed, or there is none for the beat.
    #[non_exhaustive]
    Closed {},
    /// The server said that the job is over: [`Beat::Stop`](super::Beat::Stop).
    #[non_exhaustive]
    ByServer {
        /// What it said, whole.
        reason: String,
    },
    /// The API answered what [`Heartbeat::stop_on`](super::Heartbeat::stop_on) names.
    #[non_exhaustive]
    ByStatus {
        /// What it answered.
        status: StatusCode,
    },
    /// The session has no login any more.
    LoginRequired,
    /// No beat that was sent within the [lease](super::Heartbeat::lease) has succeeded.
    #[non_exhaustive]
    LeaseLost {},
    /// As many beats failed in a row as [`Heartbeat::max_failures`](super::Heartbeat::max_failures)
    /// allows.
    #[non_exhaustive]
    TooManyFailures {
        /// How many.
        failures: u32,
    },
    /// The loop was lost: its runtime was shut down.
    RuntimeGone,
}

impl Stopped {
    /// Whether it is worth a warning.
    pub(super) fn is_fault(&self) -> bool {
        matches!(self, Self::LoginRequired | Self::LeaseLost {} | Self::TooManyFailures { .. })
    }

    /// For logs and metrics.
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
