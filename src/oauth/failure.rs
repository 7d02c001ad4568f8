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
    /// Sent, and the answer did not arrive whole.
    Lost,
    /// A new refresh token, and no usable access token beside it.
    Salvaged,
    /// `invalid_grant`.
    GrantOver,
    Rejected,
    /// Broken in a way that a retry is not likely to mend.
    Down,
    /// A 2xx that is no token answer, and why.
    Unusable(&'static str),
    /// The request could not be made.
    Misconfigured,
    /// The refresh token went away while the refresh ran.
    NothingToAskWith,
}

impl Failure {
    pub(super) fn kind(self) -> ErrorKind {
        match self {
            Self::Busy | Self::Unreached | Self::Lost | Self::Down => ErrorKind::Unavailable,
            Self::Salvaged | Self::Unusable(_) => ErrorKind::BadResponse,
            Self::GrantOver | Self::NothingToAskWith => ErrorKind::LoginRequired,
            Self::Rejected => ErrorKind::ClientRejected,
            Self::Misconfigured => ErrorKind::InvalidConfig,
        }
    }
}
