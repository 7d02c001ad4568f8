//! How an attempt can fail.

use crate::error::ErrorKind;

/// How an attempt failed, which decides both whether another follows and the kind of the error if
/// none does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// The token endpoint says that it cannot for now.
    Busy,
    /// Nothing was sent.
    Unreached,
    /// Sent, and the response did not arrive whole, or a gateway answered in place of the token
    /// endpoint: the refresh token may be spent.
    Lost,
    /// The token endpoint says that this client asks too often.
    Throttled,
    /// A new refresh token, and no usable access token beside it.
    Salvaged,
    /// `invalid_grant`, and what providers say instead.
    GrantOver,
    Rejected,
    /// A passed-in client followed a redirect to another origin.
    Strayed,
    /// `read_response` panicked.
    RulePanicked,
    /// Broken in a way that a retry is not likely to mend.
    Down,
    /// A 2xx that is no token answer, and why.
    Unusable(&'static str),
    /// The request could not be made.
    Misconfigured,
    /// The caller's code panicked.
    Panicked,
    /// The refresh token went away while the refresh ran.
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
