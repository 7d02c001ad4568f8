//! [`OAuthRefresh`]: obtains tokens from an OAuth 2.0 token endpoint, with a refresh token or any
//! other grant.
//!
//! - `builder` sets the `settings`, which are checked there.
//! - `grant` and `form` describe a request, `parameters` computes its extra members, `request` sends
//!   it, and `wire` is what is sent and what comes back.
//! - `body`, `response` and `cookies` parse the response.
//! - `codes`, `classify` and `transport` judge the result, and `reading` applies the user's own
//!   rule.
//! - `retry` decides what follows, and `attempts` runs one refresh with all its attempts.
//! - `fallback` runs another refresher when the login is over, and `revocation` revokes tokens.
//! - `error` describes a failed refresh, and `redact` keeps secrets out of the description.

mod attempts;
mod body;
mod builder;
mod classify;
mod codes;
mod cookies;
mod doubt;
mod error;
mod failure;
mod fallback;
mod form;
#[cfg(fuzzing)]
pub(crate) mod fuzzing;
mod grant;
mod json;
mod parameters;
mod proof;
mod reading;
mod redact;
mod request;
mod response;
mod retry;
mod revocation;
mod settings;
#[cfg(test)]
mod tests;
mod transport;
mod wire;

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use reqwest::Url;
use tokio::time::Instant;

pub use self::reading::{Reading, TokenResponse};
use self::{
    attempts::{Attempts, Failed},
    settings::Settings,
};
use crate::{
    error::Error,
    refresher::{RefreshContext, Refresher, Several},
    token::Tokens,
};

/// Obtains tokens from an OAuth 2.0 token endpoint, with a refresh token (RFC 6749 §6), with
/// [client credentials](Self::client_credentials), or with any [other grant](Self::grant).
///
/// Cloning is cheap. [`SessionBuilder::build`](crate::SessionBuilder::build) reports settings that
/// cannot work as [`InvalidConfig`](crate::ErrorKind::InvalidConfig).
///
/// # Defaults
///
/// | setting | default |
/// | --- | --- |
/// | client authentication | none |
/// | [`scope`](Self::scope) | none: the scope of the login |
/// | [`max_attempts`](Self::max_attempts) | 6 |
/// | [`backoff`](Self::backoff) | 500 ms, doubled up to 10 s, with jitter |
/// | [`attempt_timeout`](Self::attempt_timeout) | 10 s |
/// | [`deadline`](Self::deadline) | 60 s |
/// | [`max_retry_after`](Self::max_retry_after) | 30 s |
/// | [`retry_lost`](Self::retry_lost) | `true` |
/// | [`http_client`](Self::http_client) | a client of the crate, which follows no redirects |
/// | [`or_else`](Self::or_else), [`revocation_endpoint`](Self::revocation_endpoint) | none |
/// | plain `http` | only on loopback |
///
/// # Responses
///
/// A response may be JSON (in snake case or camel case), form-encoded, gzipped, or the cookies
/// `JWT` and `JWT_REFRESH_TOKEN`. Parsing is lenient for everything except the access token.
/// [`read_response`](Self::read_response) replaces the rule for token endpoints that respond in an
/// unusual way. The [guide](crate::guide::providers) covers several providers.
///
/// # Retries
///
/// An attempt is repeated after any of these:
///
/// - the statuses 408, 409, 423, 425, 429, 500, 502, 503, 504, 520 to 524 and 529,
/// - the codes `temporarily_unavailable`, `server_error`, `slow_down` and `rate_limit_exceeded`,
/// - Salesforce's "already being processed",
/// - a connection that fails, and a response that is lost.
///
/// An untrusted certificate, or a proxy that requires authentication, ends the refresh at once.
///
/// # Example
///
/// ```
/// use std::time::Duration;
///
/// use reqwest_reauth::{Error, OAuthRefresh, Session, Tokens};
///
/// fn main() -> Result<(), Error> {
///     let refresher = OAuthRefresh::new("https://login.example.com/oauth/token")
///         .client_secret_basic("my-app", "my secret")
///         .scope("jobs:read jobs:write")
///         .deadline(Duration::from_secs(20));
///
///     let tokens = Tokens::new("access-token")?.with_refresh_token("refresh-token")?;
///     let session = Session::builder(tokens)
///         .origin("https://api.example.com")
///         .refresher(refresher)
///         .build()?;
///     let client = session.wrap(reqwest::Client::new());
///     Ok(())
/// }
/// ```
#[derive(Clone)]
pub struct OAuthRefresh(Arc<Settings>);

#[async_trait]
impl Refresher for OAuthRefresh {
    async fn refresh(&self, context: &RefreshContext) -> Result<Tokens, Error> {
        let settings = &self.0;
        let endpoint = settings.checked()?;
        let begun = Instant::now();
        let spends = settings.grant.spends_refresh_token();
        let ran = match context.known_dead().filter(|_| spends) {
            Some(error) => Err(Failed { error, is_over: true }),
            None => Attempts::new(settings, endpoint.clone(), context)?.run().await,
        };
        let failed = match ran {
            Ok(tokens) => return Ok(tokens),
            Err(Failed { error, is_over }) => {
                Failed { error: error.with_token_endpoint(|| host_and_port(endpoint)), is_over }
            }
        };
        let Some(other) = settings.other.as_ref().filter(|_| failed.is_over) else {
            return Err(failed.error);
        };
        let end = begun.checked_add(settings.pace.deadline);
        let deadline = end.into_iter().chain(context.deadline()).min();
        other.ask(context, failed, deadline, spends).await
    }

    fn check(&self) -> Result<(), Error> {
        self.0.checked().map(|_| ())
    }

    fn can_refresh(&self, tokens: &Tokens) -> bool {
        !self.0.grant.spends_refresh_token()
            || tokens.refresh_token().is_some()
            || self.0.other.as_ref().is_some_and(|other| other.can_refresh(tokens))
    }

    fn sends_to(&self) -> Option<String> {
        let settings = &self.0;
        let endpoint = settings.endpoint.as_ref().filter(|_| settings.grant.spends_refresh_token());
        let (id, scope) = (settings.client.id(), settings.scope.as_deref());
        endpoint.map(|endpoint| format!("{endpoint} {id:?} refresh_token {scope:?}"))
    }

    async fn revoke(&self, tokens: &Tokens) -> Result<(), Error> {
        let Some(other) = &self.0.other else {
            return self.0.revoke(tokens).await;
        };
        let (own, others) = other.share(tokens);
        let (own, others) = tokio::join!(self.0.revoke(&own), other.refresher.revoke(&others));
        Several::result([own.err(), others.err()])
    }

    fn can_revoke(&self) -> bool {
        let other = self.0.other.as_ref();
        self.0.revocation.is_some() || other.is_some_and(|other| other.refresher.can_revoke())
    }
}

impl fmt::Debug for OAuthRefresh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The path and the query may contain a tenant or a key.
        let origin = self
            .0
            .endpoint
            .as_ref()
            .map_or_else(|| "invalid".to_owned(), |url| url.origin().ascii_serialization());
        f.debug_struct("OAuthRefresh").field("origin", &origin).finish_non_exhaustive()
    }
}

/// The name of a token endpoint in errors. Its path and query may contain a tenant or a key.
fn host_and_port(endpoint: &Url) -> Arc<str> {
    let host = endpoint.host_str().unwrap_or_default();
    match endpoint.port_or_known_default() {
        Some(port) => format!("{host}:{port}").into(),
        None => host.into(),
    }
}
