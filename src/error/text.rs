//! The texts of errors, which contain no secret.

use std::fmt;

use super::{Error, ErrorKind};

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::InvalidToken => "invalid token",
            Self::InvalidConfig => "invalid configuration",
            Self::LoginRequired => "a new login is required",
            Self::ClientRejected => "the token endpoint rejected the client",
            Self::Unavailable => "the token endpoint is unavailable",
            Self::BadResponse => "the token endpoint's response is unusable",
            Self::CoolingDown => "cooling down after a failed token refresh",
            Self::TimedOut => "the request timed out while it waited for a token refresh",
            Self::NoSession => "no session in this task's scope",
            Self::Store => "the token store failed",
            Self::Closed => "the session is closed",
            Self::Internal => "the token refresh was interrupted",
            Self::UntrustedOrigin => "the url is not at an origin of the session",
        })
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.kind.fmt(f)?;
        let mut separator = " (";
        let mut detail = |f: &mut fmt::Formatter<'_>, text: fmt::Arguments<'_>| {
            f.write_str(std::mem::replace(&mut separator, ", "))?;
            f.write_fmt(text)
        };
        match (&self.0.token_endpoint, self.0.status) {
            (Some(host), Some(status)) => {
                detail(f, format_args!("token endpoint {host} returned {}", status.as_u16()))?;
            }
            (Some(host), None) => detail(f, format_args!("token endpoint {host}"))?,
            (None, Some(status)) => {
                detail(f, format_args!("token endpoint returned {}", status.as_u16()))?;
            }
            (None, None) => {}
        }
        if let Some(code) = &self.0.oauth_error {
            detail(f, format_args!("error {code}"))?;
        }
        if self.0.attempts > 1 {
            detail(f, format_args!("{} attempts", self.0.attempts))?;
        }
        if let Some(wait) = self.0.retry_after {
            detail(f, format_args!("retry after {} s", wait.as_secs()))?;
        }
        if self.0.possibly_consumed {
            detail(
                f,
                format_args!(
                    "the refresh token may have been spent by a call whose response was lost"
                ),
            )?;
        }
        if let Some(status) = self.0.api_status {
            detail(f, format_args!("api returned {}", status.as_u16()))?;
        }
        if separator == ", " { f.write_str(")") } else { Ok(()) }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("Error");
        out.field("kind", &self.0.kind);
        if let Some(status) = self.0.status {
            out.field("status", &status);
        }
        if let Some(code) = &self.0.oauth_error {
            out.field("oauth_error", code);
        }
        if self.0.attempts > 0 {
            out.field("attempts", &self.0.attempts);
        }
        if let Some(wait) = self.0.retry_after {
            out.field("retry_after", &wait);
        }
        if let Some(status) = self.0.api_status {
            out.field("api_status", &status);
        }
        if self.0.possibly_consumed {
            out.field("possibly_consumed", &true);
        }
        if let Some(source) = &self.0.source {
            out.field("source", source);
        }
        out.finish()
    }
}

/// Makes text from a server safe to print: cuts it to 256 characters, and escapes control and
/// non-ASCII characters.
pub(crate) fn printable(text: &str) -> String {
    const LIMIT: usize = 256;
    let mut out = String::new();
    for piece in text.chars().map(char::escape_default) {
        if out.len() + piece.len() > LIMIT - 3 {
            out.push_str("...");
            break;
        }
        out.extend(piece);
    }
    out
}
