//! What a session is doing, for its users.

use std::fmt;

/// The state of a session. See [`Session::state`](crate::Session::state).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SessionState {
    /// The session has a token, or can obtain one.
    Active,
    /// A refresh is in progress.
    Refreshing,
    /// A refresh failed, and the session makes no call to the token endpoint for a while.
    CoolingDown,
    /// The token cannot be refreshed, or there is none, until
    /// [`Session::replace_tokens`](crate::Session::replace_tokens), or until a request finds a login
    /// that another process has stored. An access token that is still valid is sent until it
    /// expires.
    LoginRequired,
    /// The session is closed.
    Closed,
}

/// The text for logs, such as `cooling down`.
impl fmt::Display for SessionState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Active => "active",
            Self::Refreshing => "refreshing",
            Self::CoolingDown => "cooling down",
            Self::LoginRequired => "login required",
            Self::Closed => "closed",
        })
    }
}
