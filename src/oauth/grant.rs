//! The grants, and what a response means for each.

use super::{
    classify::{NO_ACCESS_TOKEN, Verdict},
    failure::Failure,
};

#[derive(Clone)]
pub(super) enum Grant {
    /// RFC 6749 §6.
    RefreshToken,
    /// A grant by the name of its type: `client_credentials` (RFC 6749 §4.4), or an extension grant
    /// (§4.5).
    Named(String),
}

impl Grant {
    pub(super) fn name(&self) -> &str {
        match self {
            Self::RefreshToken => "refresh_token",
            Self::Named(name) => name,
        }
    }

    /// Whether the request contains the session's refresh token, which a call may spend.
    pub(super) fn spends_refresh_token(&self) -> bool {
        matches!(self, Self::RefreshToken)
    }

    pub(super) fn problem(&self) -> Option<&'static str> {
        match self {
            Self::Named(name) if name.trim().is_empty() => Some("the grant type is empty"),
            Self::Named(name) if name == "refresh_token" => {
                Some("the grant type is refresh_token: use OAuthRefresh::new")
            }
            Self::RefreshToken | Self::Named(_) => None,
        }
    }

    /// Adjusts a verdict to this grant. A grant without a refresh token ignores refresh tokens in
    /// the response. No code ends its login, because the next call has a new assertion.
    pub(super) fn read(&self, verdict: Verdict) -> Verdict {
        if self.spends_refresh_token() {
            return verdict;
        }
        match verdict {
            Verdict::Granted(mut tokens) => {
                tokens.set_refresh(None);
                Verdict::Granted(tokens)
            }
            Verdict::Failed(Failure::GrantOver) => Verdict::Failed(Failure::Rejected),
            Verdict::Failed(Failure::Salvaged) => {
                Verdict::Failed(Failure::Unusable(NO_ACCESS_TOKEN))
            }
            Verdict::Failed(failure) => Verdict::Failed(failure),
        }
    }
}
