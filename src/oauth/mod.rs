//! [`OAuthRefresh`]: new tokens from an OAuth 2.0 token endpoint, by a refresh token or any other
//! grant.
//!
//! `settings` is what it is made with. `grant` describes one request, with the `parameters` that
//! are made for it. `request` sends it; `body`, `response` and `cookies` read what came back;
//! `codes`, `classify` and `transport` judge it; `reading` asks the user's own rule; `retry` decides
//! what follows; and `attempts` runs one refresh with all its attempts. `fallback` asks another
//! refresher when the login is over, and `revocation` revokes tokens. `error` tells how a refresh
//! failed; `redact` keeps secrets out of that.

mod attempts;
mod body;
mod classify;
mod codes;
mod cookies;
mod error;
mod failure;
mod fallback;
#[cfg(fuzzing)]
pub(crate) mod fuzzing;
mod grant;
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

use std::{fmt, future::Future, path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use reqwest::Url;
use reqwest_middleware::ClientWithMiddleware;
use tokio::time::Instant;
use zeroize::Zeroizing;

pub use self::reading::{Reading, TokenResponse};
use self::{
    attempts::{Attempts, Failed},
    grant::Grant,
    parameters::Parameter,
    settings::{ClientAuth, Other, Settings},
};
use crate::{
    error::{BoxError, Error},
    refresher::{RefreshContext, Refresher, Several},
    token::Tokens,
};

/// Brings new tokens from an OAuth 2.0 token endpoint: with a refresh token (RFC 6749 §6), or by
/// [client credentials](Self::client_credentials) and any [other grant](Self::grant).
///
/// Defaults: 6 attempts, a backoff of 500 ms doubling to 10 s with jitter, 10 s for an attempt, 60
/// s for everything, a `Retry-After` of 30 s at most, and an HTTP client of its own that follows no
/// redirects.
///
/// The response may be JSON (in snake or camel case), form-encoded, gzipped, or the cookies `JWT`
/// and `JWT_REFRESH_TOKEN`; it is read leniently in everything but the access token. Retried are
/// 408, 409, 423, 425, 429, 500, 502, 503, 504, 520 to 524 and 529, the codes
/// `temporarily_unavailable`, `server_error`, `slow_down` and `rate_limit_exceeded`, Salesforce's
/// "already being processed", connections that fail, and responses that are lost. A certificate that
/// is not trusted, and a proxy that wants a login, end the refresh at once. For what is odd in a way
/// of its own there is [`read_response`](Self::read_response); the
/// [guide](crate::guide::providers) goes through some providers. Cloning is cheap.
///
/// ```
/// use std::time::Duration;
/// use reqwest_reauth::OAuthRefresh;
///
/// let refresher = OAuthRefresh::new("https://login.example.com/oauth/token")
///     .client_secret_basic("my-app", "my secret")
///     .scope("jobs:read jobs:write")
///     .deadline(Duration::from_secs(20));
/// ```
#[derive(Clone)]
pub struct OAuthRefresh(Arc<Settings>);

impl OAuthRefresh {
    /// A refresher that asks this token endpoint, an absolute `https` URL without user info and
    /// without a fragment.
    ///
    /// A URL that cannot work is reported by
    /// [`SessionBuilder::build`](crate::SessionBuilder::build) as
    /// [`InvalidConfig`](crate::ErrorKind::InvalidConfig), as are all settings below.
    pub fn new(token_endpoint: impl AsRef<str>) -> Self {
        Self::of(token_endpoint.as_ref(), Grant::RefreshToken)
    }

    /// A refresher that asks with the client's own credentials (RFC 6749 §4.4), for service
    /// accounts. Its session starts with [`Tokens::empty`].
    ///
    /// Everything else is as with a refresh token: attempts, backoff, deadline, error kinds. These
    /// differ:
    ///
    /// - A refresh token in the response is dropped (§4.4.3).
    /// - A lost response costs nothing: no error says
    ///   [`possibly_consumed`](Error::possibly_consumed).
    /// - No code ends the login. `invalid_grant` and its like are
    ///   [`ClientRejected`](crate::ErrorKind::ClientRejected) with a cool-down, since the next call
    ///   may bring another assertion.
    ///
    /// [`Session::clear`](crate::Session::clear) ends such a session too, until
    /// [`replace_tokens(Tokens::empty())`](crate::Session::replace_tokens).
    ///
    /// ```
    /// use reqwest_reauth::{OAuthRefresh, Session, Tokens};
    ///
    /// # fn main() -> Result<(), reqwest_reauth::Error> {
    /// let session = Session::builder(Tokens::empty())
    ///     .origin("https://api.example.com")
    ///     .refresher(
    ///         OAuthRefresh::client_credentials("https://login.example.com/oauth/token")
    ///             .client_secret_basic("my-service", "my secret")
    ///             .scope("jobs:read"),
    ///     )
    ///     .build()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn client_credentials(token_endpoint: impl AsRef<str>) -> Self {
        Self::of(token_endpoint.as_ref(), Grant::Named("client_credentials".to_owned()))
    }

    /// A refresher that asks with an extension grant (RFC 6749 §4.5), e.g. token exchange (RFC
    /// 8693) or the JWT bearer grant (RFC 7523). What the grant needs comes by
    /// [`param`](Self::param), [`param_with`](Self::param_with) and
    /// [`param_file`](Self::param_file). Otherwise as
    /// [`client_credentials`](Self::client_credentials).
    ///
    /// A grant type that is empty or `refresh_token` is
    /// [`InvalidConfig`](crate::ErrorKind::InvalidConfig): [`new`](Self::new) is for the latter.
    ///
    /// ```
    /// use reqwest_reauth::OAuthRefresh;
    ///
    /// let refresher = OAuthRefresh::grant(
    ///     "https://login.example.com/oauth/token",
    ///     "urn:ietf:params:oauth:grant-type:token-exchange",
    /// )
    /// .param("subject_token_type", "urn:ietf:params:oauth:token-type:jwt")
    /// .param_file("subject_token", "/var/run/secrets/tokens/exchange");
    /// ```
    pub fn grant(token_endpoint: impl AsRef<str>, grant_type: impl Into<String>) -> Self {
        Self::of(token_endpoint.as_ref(), Grant::Named(grant_type.into()))
    }

    /// Asks another refresher, in the same refresh, when this one says that a new login is
    /// required or has no refresh token to ask with. Default: none.
    ///
    /// Before that the store is looked into once more: if another process has stored newer tokens,
    /// those are used. The other refresher runs under this one's [`deadline`](Self::deadline), and
    /// its [`RefreshContext`] has no refresh token: a refresh token goes only to the endpoint that
    /// issued it. The switch is an [`Event::FellBack`](crate::Event::FellBack). The error is the
    /// other one's, and the attempts add up.
    ///
    /// When the other one has brought a token, the refresh token is forgotten, unless the code was
    /// `login_required`, `interaction_required` or `consent_required`.
    ///
    /// ```
    /// use reqwest_reauth::OAuthRefresh;
    ///
    /// let endpoint = "https://login.example.com/oauth/token";
    /// let refresher = OAuthRefresh::new(endpoint)
    ///     .client_secret_basic("my-service", "my secret")
    ///     .or_else(
    ///         OAuthRefresh::client_credentials(endpoint)
    ///             .client_secret_basic("my-service", "my secret"),
    ///     );
    /// ```
    pub fn or_else(self, other: impl Refresher) -> Self {
        let other = Other { refresher: Arc::new(other), brought: Arc::default() };
        self.with(|settings| settings.other = Some(other))
    }

    /// Where tokens are revoked (RFC 7009), with the same rules for the URL as for the token
    /// endpoint. Default: nowhere.
    ///
    /// [`Session::clear`](crate::Session::clear) revokes the refresh token, then the access token.
    /// The client authenticates as at the token endpoint; an assertion is made anew. Statuses and
    /// connections are retried as at the token endpoint. A failure is an
    /// [`Event::RevocationFailed`](crate::Event::RevocationFailed), and the logout stands.
    pub fn revocation_endpoint(self, url: impl AsRef<str>) -> Self {
        let url = Url::parse(url.as_ref()).ok();
        self.with(|settings| settings.revocation = Some(Box::new(url)))
    }

    /// The client to ask with, in place of the default one: as it is, its middleware, redirect
    /// policy and timeouts included.
    ///
    /// `reqwest` adds the client's default headers wherever a request has none of that name. A
    /// default `Authorization` therefore reaches a token endpoint that needs none of ours (a public
    /// client, or `client_secret_post`): pass a client without one. A default `User-Agent` takes the
    /// place of `reqwest-reauth/<version>`.
    ///
    /// If the client follows a redirect to another origin, nothing in the response is used: the
    /// refresh ends with [`ClientRejected`](crate::ErrorKind::ClientRejected) and
    /// [`Error::possibly_consumed`].
    ///
    /// Default: one client for the process, which follows no redirects, keeps no idle connections,
    /// decodes no compressed bodies and retries nothing by itself.
    pub fn http_client(self, client: impl Into<ClientWithMiddleware>) -> Self {
        self.with(|settings| settings.http = Some(client.into()))
    }

    /// A public client: `client_id` goes into the form. Default: none.
    pub fn client_id(self, id: impl Into<String>) -> Self {
        self.with(|settings| settings.set_client(ClientAuth::Public { id: id.into() }))
    }

    /// A confidential client that sends its id and secret by HTTP Basic, each form-encoded first
    /// (RFC 6749 §2.3.1).
    pub fn client_secret_basic(self, id: impl Into<String>, secret: impl Into<String>) -> Self {
        let secret = Zeroizing::new(secret.into());
        self.with(|settings| settings.set_client(ClientAuth::Basic { id: id.into(), secret }))
    }

    /// A confidential client that sends its id and secret by HTTP Basic as they are (RFC 7617), in
    /// UTF-8. For servers that do not form-decode them and answer `invalid_client` to secrets with
    /// characters like `+` or `/` (thephpleague/oauth2-server#1305).
    ///
    /// An id with a colon, and control characters in either, are
    /// [`InvalidConfig`](crate::ErrorKind::InvalidConfig).
    pub fn client_secret_basic_raw(self, id: impl Into<String>, secret: impl Into<String>) -> Self {
        let secret = Zeroizing::new(secret.into());
        self.with(|settings| settings.set_client(ClientAuth::BasicRaw { id: id.into(), secret }))
    }

    /// A confidential client that sends its id and secret as `client_id` and `client_secret` in the
    /// form.
    pub fn client_secret_post(self, id: impl Into<String>, secret: impl Into<String>) -> Self {
        let secret = Zeroizing::new(secret.into());
        self.with(|settings| settings.set_client(ClientAuth::Post { id: id.into(), secret }))
    }

    /// A client that authenticates with a signed assertion (RFC 7523 §2.2, `private_key_jwt`):
    /// sends `client_id`, `client_assertion_type`, and what `make` returns as `client_assertion`.
    ///
    /// `make` is called for each attempt and is told the token endpoint, for a revocation too. Each
    /// assertion needs a `jti` of its own. `aud` is what the provider documents: its issuer where it
    /// takes that, else the token endpoint; one value, not a list. Errors and time limit as with
    /// [`param_with`](Self::param_with).
    ///
    /// ```
    /// use reqwest_reauth::OAuthRefresh;
    /// # fn sign(audience: &str) -> Result<String, std::io::Error> { Ok(audience.to_owned()) }
    ///
    /// let refresher = OAuthRefresh::client_credentials("https://login.example.com/oauth/token")
    ///     .client_assertion_with("my-service", |endpoint| async move { Ok(sign(endpoint.as_str())?) });
    /// ```
    pub fn client_assertion_with<F, Fut>(self, client_id: impl Into<String>, make: F) -> Self
    where
        F: Fn(Url) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<String, BoxError>> + Send + 'static,
    {
        let make = move |endpoint: &Url| make(endpoint.clone());
        let assertion = Parameter::late("client_assertion".to_owned(), make).of_client();
        self.with(|settings| {
            settings.set_client(ClientAuth::Assertion { id: client_id.into() });
            settings.parameters.push(assertion);
        })
    }

    /// The `scope` to ask for, names with blanks between them. Default: none, which means the scope
    /// of the login.
    pub fn scope(self, scope: impl Into<String>) -> Self {
        self.with(|settings| settings.scope = Some(scope.into()))
    }

    /// One more member of the form, e.g. `resource` or `audience`. May be called several times,
    /// also with the same name.
    ///
    /// A name that the form has already (`grant_type`, `refresh_token`, and `scope`, `client_id`
    /// and `client_secret` where they are set) is [`InvalidConfig`](crate::ErrorKind::InvalidConfig): RFC
    /// 6749 §3.2 allows each only once.
    pub fn param(self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.with(|settings| settings.parameters.push(Parameter::fixed(name.into(), value.into())))
    }

    /// One more member of the form, made anew for each attempt: a signed assertion, a token that
    /// another library renews. Late members are made in the order of the calls, within the
    /// [`attempt_timeout`](Self::attempt_timeout). Names as in [`param`](Self::param).
    ///
    /// An error fails the attempt, which is repeated as if the connection had failed; when all
    /// attempts are used up, the refresh is [`Unavailable`](crate::ErrorKind::Unavailable). An error
    /// that is, or has as a source, an [`Error`] of the kind
    /// [`InvalidConfig`](crate::ErrorKind::InvalidConfig) ends the refresh at once. A panic is
    /// [`Internal`](crate::ErrorKind::Internal).
    pub fn param_with<F, Fut>(self, name: impl Into<String>, make: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<String, BoxError>> + Send + 'static,
    {
        let parameter = Parameter::late(name.into(), move |_| make());
        self.with(|settings| settings.parameters.push(parameter))
    }

    /// One more member of the form, read from a file for each attempt: at most 64 KiB of UTF-8, of
    /// which outer blanks and line ends are dropped. A file that cannot be read, or has nothing in
    /// it, is an error as with [`param_with`](Self::param_with).
    pub fn param_file(self, name: impl Into<String>, path: impl Into<PathBuf>) -> Self {
        let parameter = Parameter::file(name.into(), path.into());
        self.with(|settings| settings.parameters.push(parameter))
    }

    /// How often the token endpoint is asked in one refresh, the first time included. Default: 6.
    /// Zero is [`InvalidConfig`](crate::ErrorKind::InvalidConfig).
    pub fn max_attempts(self, attempts: u32) -> Self {
        self.with(|settings| settings.pace.max_attempts = attempts)
    }

    /// The wait before the second attempt, doubled with each further one up to `longest`. Default:
    /// 500 ms and 10 s. Each wait is drawn from the upper half of its step. After an answer that
    /// was lost the first step is taken, whichever attempt it was.
    pub fn backoff(self, first: Duration, longest: Duration) -> Self {
        self.with(|settings| (settings.pace.first, settings.pace.longest) = (first, longest))
    }

    /// How long one attempt may take, from connecting to the last byte of the answer. Default: 10
    /// s. Zero is [`InvalidConfig`](crate::ErrorKind::InvalidConfig).
    pub fn attempt_timeout(self, limit: Duration) -> Self {
        self.with(|settings| settings.attempt_timeout = limit)
    }

    /// How long all attempts and waits may take together. Default: 60 s. A wait that would end
    /// later is not begun. Zero is [`InvalidConfig`](crate::ErrorKind::InvalidConfig).
    pub fn deadline(self, limit: Duration) -> Self {
        self.with(|settings| settings.pace.deadline = limit)
    }

    /// The longest `Retry-After` that is waited for. Default: 30 s. When the token endpoint asks
    /// for more, the refresh ends at once, and [`Error::retry_after`] says what it asked for.
    pub fn max_retry_after(self, limit: Duration) -> Self {
        self.with(|settings| settings.pace.max_retry_after = limit)
    }

    /// Whether to ask again with the same refresh token after a response that was lost: the
    /// connection broke, the attempt timed out, or a gateway answered in place of the token endpoint
    /// (408, 502, 504, 520 to 524). Default: yes.
    ///
    /// The token endpoint may have spent the refresh token by then. Many servers take a spent one
    /// for some seconds more; some (e.g. `oidc-provider`) revoke the whole login instead. For those
    /// say `false`: the refresh then ends with [`Unavailable`](crate::ErrorKind::Unavailable) and
    /// [`Error::possibly_consumed`].
    pub fn retry_lost(self, yes: bool) -> Self {
        self.with(|settings| settings.pace.retry_lost = yes)
    }

    /// Allows a token endpoint with plain `http` that is not on the loopback interface. Default:
    /// no. The secrets then travel in the clear.
    pub fn allow_plain_http(self) -> Self {
        self.with(|settings| settings.allow_plain_http = true)
    }

    /// Replaces the rule that reads responses, for a token endpoint that answers in a way of its own.
    ///
    /// `rule` is handed every response whose body came whole, decoded, and how the built-in rule
    /// reads it. Returning that [`Reading`] changes nothing. A new refresh token that the built-in
    /// rule found, also through [`TokenResponse::read_at`], is kept whatever `rule` returns. What it
    /// returns as [`Reading::Tokens`] is used as it is: the token's type is not checked. A panic in
    /// it ends the refresh with [`Internal`](crate::ErrorKind::Internal).
    ///
    /// `{"data": {"access_token": …}}` is one line; a code that only one provider has is a few:
    ///
    /// ```
    /// use reqwest_reauth::{OAuthRefresh, Reading};
    ///
    /// let lark = OAuthRefresh::new("https://login.example.com/oauth/token")
    ///     .read_response(|response, _| response.read_at("/data"));
    ///
    /// #[derive(serde::Deserialize)]
    /// struct Refusal {
    ///     code: i64,
    /// }
    /// let odd = OAuthRefresh::new("https://login.example.com/oauth/token").read_response(
    ///     |response, reading| match response.json::<Refusal>() {
    ///         Some(Refusal { code: 20026 | 20037 }) => Reading::LoginRequired,
    ///         _ => reading,
    ///     },
    /// );
    /// ```
    pub fn read_response(
        self,
        rule: impl Fn(&TokenResponse, Reading) -> Reading + Send + Sync + 'static,
    ) -> Self {
        self.with(|settings| settings.read_response = Some(Arc::new(rule)))
    }

    fn of(token_endpoint: &str, grant: Grant) -> Self {
        Self(Arc::new(Settings::new(token_endpoint, grant)))
    }

    fn with(mut self, set: impl FnOnce(&mut Settings)) -> Self {
        set(Arc::make_mut(&mut self.0));
        self
    }
}

#[async_trait]
impl Refresher for OAuthRefresh {
    async fn refresh(&self, flight: &RefreshContext) -> Result<Tokens, Error> {
        let settings = &self.0;
        let endpoint = settings.checked()?;
        let begun = Instant::now();
        let failed = match Attempts::new(settings, endpoint.clone(), flight)?.run().await {
            Ok(tokens) => return Ok(tokens),
            Err(Failed { error, is_over }) => {
                Failed { error: error.with_token_endpoint(|| host_and_port(endpoint)), is_over }
            }
        };
        let Some(other) = settings.other.as_ref().filter(|_| failed.is_over) else {
            return Err(failed.error);
        };
        let end = begun.checked_add(settings.pace.deadline);
        let deadline = end.into_iter().chain(flight.deadline()).min();
        other.ask(flight, failed, deadline, settings.grant.spends_refresh_token()).await
    }

    fn check(&self) -> Result<(), Error> {
        self.0.checked().map(|_| ())
    }

    fn can_refresh(&self, tokens: &Tokens) -> bool {
        !self.0.grant.spends_refresh_token()
            || tokens.refresh_token().is_some()
            || self.0.other.as_ref().is_some_and(|other| other.can_refresh(tokens))
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
        // The path and the query may carry a tenant or a key.
        let origin = self
            .0
            .endpoint
            .as_ref()
            .map_or_else(|| "invalid".to_owned(), |url| url.origin().ascii_serialization());
        f.debug_struct("OAuthRefresh").field("origin", &origin).finish_non_exhaustive()
    }
}

/// What errors call a token endpoint. Its path and query may carry a tenant or a key.
fn host_and_port(endpoint: &Url) -> Arc<str> {
    let host = endpoint.host_str().unwrap_or_default();
    match endpoint.port_or_known_default() {
        Some(port) => format!("{host}:{port}").into(),
        None => host.into(),
    }
}
