//! [`OAuthRefresh`]: new tokens by the `refresh_token` grant of RFC 6749 §6.
//!
//! `request` asks once; `body`, `response` and `cookies` read what came back; `codes`, `classify` and
//! `transport` judge it; `reading` asks the user's own rule; `retry` decides what follows; and
//! `attempts` runs one refresh with all its attempts. `error` tells how one failed; `redact` keeps
//! secrets out of that.

mod attempts;
mod body;
mod classify;
mod codes;
mod cookies;
mod error;
mod failure;
#[cfg(fuzzing)]
pub(crate) mod fuzzing;
mod reading;
mod redact;
mod request;
mod response;
mod retry;
#[cfg(test)]
mod tests;
mod transport;

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use reqwest_middleware::ClientWithMiddleware;
use url::Url;
use zeroize::Zeroizing;

pub use self::reading::{Reading, TokenResponse};
pub(crate) use self::retry::asked_wait;
use self::{
    attempts::{Attempts, Doubt},
    reading::Rule,
    retry::Pace,
};
use crate::{
    error::{Error, ErrorKind},
    policy::is_loopback,
    refresher::{RefreshContext, Refresher},
    token::Tokens,
};

/// Brings new tokens from an OAuth 2.0 token endpoint with a refresh token (RFC 6749 §6).
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

/// What a refresh is made with.
#[derive(Clone)]
struct Settings {
    endpoint: Result<Url, &'static str>,
    http: Option<ClientWithMiddleware>,
    client: ClientAuth,
    scope: Option<String>,
    params: Vec<(String, Zeroizing<String>)>,
    pace: Pace,
    attempt_timeout: Duration,
    allow_plain_http: bool,
    read_response: Option<Rule>,
    doubt: Doubt,
}

/// How the client says who it is (RFC 6749 §2.3.1).
#[derive(Clone)]
enum ClientAuth {
    Unnamed,
    Public { id: String },
    Basic { id: String, secret: Zeroizing<String> },
    BasicRaw { id: String, secret: Zeroizing<String> },
    Post { id: String, secret: Zeroizing<String> },
}

impl OAuthRefresh {
    /// A refresher that asks this token endpoint, an absolute `https` URL without user info and
    /// without a fragment.
    ///
    /// A URL that cannot work is reported by
    /// [`SessionBuilder::build`](crate::SessionBuilder::build) as
    /// [`InvalidConfig`](ErrorKind::InvalidConfig), as are all settings below.
    pub fn new(token_endpoint: impl AsRef<str>) -> Self {
        Self(Arc::new(Settings {
            endpoint: Url::parse(token_endpoint.as_ref())
                .map_err(|_| "the token endpoint is no absolute URL"),
            http: None,
            client: ClientAuth::Unnamed,
            scope: None,
            params: Vec::new(),
            pace: Pace::default(),
            attempt_timeout: Duration::from_secs(10),
            allow_plain_http: false,
            read_response: None,
            doubt: Doubt::default(),
        }))
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
    /// refresh ends with [`ClientRejected`](ErrorKind::ClientRejected) and
    /// [`Error::possibly_consumed`].
    ///
    /// Default: one client for the process, which follows no redirects, keeps no idle connections,
    /// decodes no compressed bodies and retries nothing by itself.
    pub fn http_client(self, client: impl Into<ClientWithMiddleware>) -> Self {
        self.with(|settings| settings.http = Some(client.into()))
    }

    /// A public client: `client_id` goes into the form. Default: none.
    pub fn client_id(self, id: impl Into<String>) -> Self {
        self.with(|settings| settings.client = ClientAuth::Public { id: id.into() })
    }

    /// A confidential client that sends its id and secret by HTTP Basic, each form-encoded first
    /// (RFC 6749 §2.3.1).
    pub fn client_secret_basic(self, id: impl Into<String>, secret: impl Into<String>) -> Self {
        let secret = Zeroizing::new(secret.into());
        self.with(|settings| settings.client = ClientAuth::Basic { id: id.into(), secret })
    }

    /// A confidential client that sends its id and secret by HTTP Basic as they are (RFC 7617), in
    /// UTF-8. For servers that do not form-decode them and answer `invalid_client` to secrets with
    /// characters like `+` or `/` (thephpleague/oauth2-server#1305).
    ///
    /// An id with a colon, and control characters in either, are
    /// [`InvalidConfig`](ErrorKind::InvalidConfig).
    pub fn client_secret_basic_raw(self, id: impl Into<String>, secret: impl Into<String>) -> Self {
        let secret = Zeroizing::new(secret.into());
        self.with(|settings| settings.client = ClientAuth::BasicRaw { id: id.into(), secret })
    }

    /// A confidential client that sends its id and secret as `client_id` and `client_secret` in the
    /// form.
    pub fn client_secret_post(self, id: impl Into<String>, secret: impl Into<String>) -> Self {
        let secret = Zeroizing::new(secret.into());
        self.with(|settings| settings.client = ClientAuth::Post { id: id.into(), secret })
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
    /// and `client_secret` where they are set) is [`InvalidConfig`](ErrorKind::InvalidConfig): RFC
    /// 6749 §3.2 allows each only once.
    pub fn param(self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.with(|settings| settings.params.push((name.into(), Zeroizing::new(value.into()))))
    }

    /// How often the token endpoint is asked in one refresh, the first time included. Default: 6.
    /// Zero is [`InvalidConfig`](ErrorKind::InvalidConfig).
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
    /// s. Zero is [`InvalidConfig`](ErrorKind::InvalidConfig).
    pub fn attempt_timeout(self, limit: Duration) -> Self {
        self.with(|settings| settings.attempt_timeout = limit)
    }

    /// How long all attempts and waits may take together. Default: 60 s. A wait that would end
    /// later is not begun. Zero is [`InvalidConfig`](ErrorKind::InvalidConfig).
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
    /// say `false`: the refresh then ends with [`Unavailable`](ErrorKind::Unavailable) and
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
    /// it ends the refresh with [`Internal`](ErrorKind::Internal).
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

    fn with(mut self, set: impl FnOnce(&mut Settings)) -> Self {
        set(Arc::make_mut(&mut self.0));
        self
    }
}

#[async_trait]
impl Refresher for OAuthRefresh {
    async fn refresh(&self, flight: &RefreshContext) -> Result<Tokens, Error> {
        let endpoint = self.0.checked()?;
        let tokens = Attempts::new(&self.0, endpoint.clone(), flight)?.run().await;
        tokens.map_err(|error| error.with_token_endpoint(|| host_and_port(endpoint)))
    }

    fn check(&self) -> Result<(), Error> {
        self.0.checked().map(|_| ())
    }

    fn can_refresh(&self, tokens: &Tokens) -> bool {
        tokens.refresh_token().is_some()
    }
}

impl fmt::Debug for OAuthRefresh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The path and the query may carry a tenant or a key.
        let origin = self
            .0
            .endpoint
            .as_ref()
            .map_or_else(|_| String::from("invalid"), |url| url.origin().ascii_serialization());
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

impl Settings {
    /// The token endpoint, if the settings can work.
    fn checked(&self) -> Result<&Url, Error> {
        let invalid = |why: &'static str| Err(Error::new(ErrorKind::InvalidConfig, why));
        let endpoint = match &self.endpoint {
            Ok(endpoint) => endpoint,
            Err(why) => return invalid(why),
        };
        if !matches!(endpoint.scheme(), "http" | "https") || !endpoint.has_host() {
            return invalid("the token endpoint is neither http nor https");
        }
        if !endpoint.username().is_empty() || endpoint.password().is_some() {
            return invalid("the token endpoint has user info: use client_secret_basic");
        }
        if endpoint.fragment().is_some() {
            return invalid("the token endpoint has a fragment, which RFC 6749 §3.2 forbids");
        }
        if endpoint.scheme() == "http" && !self.allow_plain_http && !is_loopback(endpoint) {
            return invalid(
                "the token endpoint is plain http and not on loopback: use https, or allow_plain_http",
            );
        }
        if let ClientAuth::BasicRaw { id, secret } = &self.client
            && (id.contains(':') || id.chars().chain(secret.chars()).any(char::is_control))
        {
            return invalid(
                "client_secret_basic_raw cannot send an id with a colon, or control characters",
            );
        }
        if self.params.iter().any(|(name, _)| self.sends_itself(name)) {
            return invalid("an extra parameter has a name that the form has already");
        }
        if self.pace.max_attempts == 0 {
            return invalid("max_attempts is zero");
        }
        if self.attempt_timeout.is_zero() || self.pace.deadline.is_zero() {
            return invalid("attempt_timeout or deadline is zero");
        }
        Ok(endpoint)
    }

    fn sends_itself(&self, name: &str) -> bool {
        match name {
            "grant_type" | "refresh_token" => true,
            "scope" => self.scope.is_some(),
            "client_id" => {
                matches!(self.client, ClientAuth::Public { .. } | ClientAuth::Post { .. })
            }
            "client_secret" => matches!(self.client, ClientAuth::Post { .. }),
            _ => false,
        }
    }
}
