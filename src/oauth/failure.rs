//! The ways in which an attempt can fail.

use std::error::Error as StdError;

use crate::error::ErrorKind;

/// The source of the error of a refresh. Its text repeats no secret.
pub(super) type Cause = Box<dyn StdError + Send + Sync>;

/// How an attempt failed. It decides whether another attempt follows, and otherwise the kind of the
/// error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// The token endpoint reports that it is temporarily unavailable.
    Busy,
    /// Nothing was sent.
    Unreached,
    /// The request was sent, but the response did not arrive whole, or a gateway responded in place
    /// of the token endpoint. The refresh token may be spent.
    Lost,
    /// The token endpoint reports that this client sends too many requests.
    Throttled,
    /// The response has a new refresh token, but no usable access token.
    Salvaged,
    /// `invalid_grant`, or the code that a provider uses instead.
    GrantOver,
    Rejected,
    /// The user's client followed a redirect to another origin.
    Strayed,
    /// The `read_response` rule panicked.
    RulePanicked,
    /// A failure that a retry is unlikely to resolve.
    Down,
    /// A 2xx that is not a token response, and the reason.
    Unusable(&'static str),
    /// The request could not be built.
    Misconfigured,
    /// The user's code panicked.
    Panicked,
    /// The refresh token disappeared while the refresh ran.
    NothingToAskWith,
}

impl Failure {
    pub(super) fn kind(self) -> ErrorKind {
        match self {
            Self::Busy | Self::Unreached | Self::Lost | Self::Throttled | Self::Down => {
                ErrorKind::Unavailable
            }
            Self::Salvaged | Self::Unusable(_) => ErrorKind::BadResponse,
            Self::GrantOver | Self::NothingToAskWith => ErrorKind::LoginRequired,
            Self::Rejected | Self::Strayed => ErrorKind::ClientRejected,
            Self::Misconfigured => ErrorKind::InvalidConfig,
            Self::Panicked | Self::RulePanicked => ErrorKind::Internal,
        }
    }
}
