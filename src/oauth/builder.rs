//! The constructors and settings of an [`OAuthRefresh`].

use std::{future::Future, path::PathBuf, sync::Arc, time::Duration};

use reqwest::Url;
use reqwest_middleware::ClientWithMiddleware;
use zeroize::Zeroizing;

use super::{
    OAuthRefresh,
    grant::Grant,
    parameters::Parameter,
    reading::{Reading, TokenResponse},
    settings::{ClientAuth, Other, Settings},
};
use crate::{error::BoxError, refresher::Refresher};

impl OAuthRefresh {
    /// Creates a refresher that sends the session's refresh token to this token endpoint.
    ///
    /// The URL must be absolute, use `https` (or `http` on loopback), and have no user info and no
    /// fragment. [`SessionBuilder::build`](crate::SessionBuilder::build) reports a URL that cannot
    /// work as [`InvalidConfig`](crate::ErrorKind::InvalidConfig), like any other setting below.
    pub fn new(token_endpoint: impl AsRef<str>) -> Self {
        Self::of(token_endpoint.as_ref(), Grant::RefreshToken)
    }

    /// Creates a refresher that uses the client's own credentials (RFC 6749 §4.4), for service
    /// accounts. Its session starts with [`Tokens::empty`](crate::Tokens::empty).
    ///
    /// Attempts, backoff, deadline and error kinds are the same as with a refresh token. These
    /// points differ:
    ///
    /// - A refresh token in the response is ignored (§4.4.3).
    /// - A lost response spends nothing, so no error reports
    ///   [`possibly_consumed`](crate::Error::possibly_consumed).
    /// - No code ends the login. `invalid_grant` and similar codes become
    ///   [`ClientRejected`](crate::ErrorKind::ClientRejected) with a cool-down, because the next
    ///   call may have a new assertion.
    ///
    /// [`Session::clear`](crate::Session::clear) ends such a session too, until
    /// [`replace_tokens(Tokens::empty())`](crate::Session::replace_tokens).
    ///
    /// ```
    /// use reqwest_reauth::{Error, OAuthRefresh, Session, Tokens};
    ///
    /// fn main() -> Result<(), Error> {
    ///     let session = Session::builder(Tokens::empty())
    ///         .origin("https://api.example.com")
    ///         .refresher(
    ///             OAuthRefresh::client_credentials("https://login.example.com/oauth/token")
    ///                 .client_secret_basic("my-service", "my secret")
    ///                 .scope("jobs:read"),
    ///         )
    ///         .build()?;
    ///     let client = session.wrap(reqwest::Client::new());
    ///     Ok(())
    /// }
    /// ```
    pub fn client_credentials(token_endpoint: impl AsRef<str>) -> Self {
        Self::of(token_endpoint.as_ref(), Grant::Named("client_credentials".to_owned()))
    }

    /// Creates a refresher that uses an extension grant (RFC 6749 §4.5), for example token exchange
    /// (RFC 8693) or the JWT bearer grant (RFC 7523).
    ///
    /// Add the members that the grant needs with [`param`](Self::param),
    /// [`param_with`](Self::param_with) and [`param_file`](Self::param_file). Everything else is as
    /// with [`client_credentials`](Self::client_credentials).
    ///
    /// A grant type that is empty or `refresh_token` is
    /// [`InvalidConfig`](crate::ErrorKind::InvalidConfig). Use [`new`](Self::new) for refresh
    /// tokens.
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

    /// Sets a fallback refresher. It runs within the same refresh if this refresher finds that a
    /// new login is required, or has no refresh token. Default: none.
    ///
    /// Before the fallback runs, the session reads the store again: if another process has stored
    /// newer tokens, the session uses those. The fallback runs under this refresher's
    /// [`deadline`](Self::deadline). Its [`RefreshContext`](crate::RefreshContext) has no refresh
    /// token, because a refresh token goes only to the endpoint that issued it. The session reports
    /// the switch as [`Event::FellBack`](crate::Event::FellBack). If the fallback fails too, its
    /// error is returned, with the attempts of both.
    ///
    /// After the fallback has obtained a token, the session discards the refresh token, unless the
    /// code was `login_required`, `interaction_required` or `consent_required`.
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

    /// Sets the revocation endpoint (RFC 7009). The rules for its URL are those of the token
    /// endpoint. Default: none.
    ///
    /// [`Session::clear`](crate::Session::clear) revokes the refresh token, then the access token.
    /// The client authenticates as it does at the token endpoint, and an assertion is computed
    /// anew. Calls are retried as at the token endpoint. A failure becomes an
    /// [`Event::RevocationFailed`](crate::Event::RevocationFailed). The logout itself is complete.
    pub fn revocation_endpoint(self, url: impl AsRef<str>) -> Self {
        let url = Url::parse(url.as_ref()).ok();
        self.with(|settings| settings.revocation = Some(Box::new(url)))
    }

    /// Sets the HTTP client for calls to the token endpoint. The client is used unchanged,
    /// including its middleware, redirect policy and timeouts.
    ///
    /// `reqwest` adds a client's default headers to each request that lacks them. A default
    /// `Authorization` header therefore reaches the token endpoint of a public client, or of
    /// [`client_secret_post`](Self::client_secret_post): pass a client without that header. A
    /// default `User-Agent` replaces `reqwest-reauth/<version>`.
    ///
    /// If the client follows a redirect to another origin, the response is not used. The refresh
    /// then fails with [`ClientRejected`](crate::ErrorKind::ClientRejected) and
    /// [`Error::possibly_consumed`](crate::Error::possibly_consumed).
    ///
    /// Default: one client for the whole process. It follows no redirects, keeps no idle
    /// connections, decodes no compressed bodies and does not retry by itself.
    pub fn http_client(self, client: impl Into<ClientWithMiddleware>) -> Self {
        self.with(|settings| settings.http = Some(client.into()))
    }

    /// Sets the id of a public client, which is sent as `client_id` in the form. Default: none.
    pub fn client_id(self, id: impl Into<String>) -> Self {
        self.with(|settings| settings.set_client(ClientAuth::Public { id: id.into() }))
    }

    /// Authenticates a confidential client by HTTP Basic. Id and secret are form-encoded first (RFC
    /// 6749 §2.3.1).
    pub fn client_secret_basic(self, id: impl Into<String>, secret: impl Into<String>) -> Self {
        let secret = Zeroizing::new(secret.into());
        self.with(|settings| settings.set_client(ClientAuth::Basic { id: id.into(), secret }))
    }

    /// Authenticates a confidential client by HTTP Basic without form-encoding (RFC 7617), in
    /// UTF-8.
    ///
    /// Use it for servers that do not form-decode the credentials, and therefore respond with
    /// `invalid_client` to secrets with characters such as `+` or `/`
    /// (thephpleague/oauth2-server#1305).
    ///
    /// An id that contains a colon, and control characters in either value, are
    /// [`InvalidConfig`](crate::ErrorKind::InvalidConfig).
    pub fn client_secret_basic_raw(self, id: impl Into<String>, secret: impl Into<String>) -> Self {
        let secret = Zeroizing::new(secret.into());
        self.with(|settings| settings.set_client(ClientAuth::BasicRaw { id: id.into(), secret }))
    }

    /// Authenticates a confidential client by `client_id` and `client_secret` in the form.
    pub fn client_secret_post(self, id: impl Into<String>, secret: impl Into<String>) -> Self {
        let secret = Zeroizing::new(secret.into());
        self.with(|settings| settings.set_client(ClientAuth::Post { id: id.into(), secret }))
    }

    /// Authenticates the client with a signed assertion (RFC 7523 §2.2, `private_key_jwt`).
    ///
    /// The form contains `client_id`, `client_assertion_type`, and the result of `make` as
    /// `client_assertion`. `make` is called for each attempt and receives the URL of the token
    /// endpoint, for a revocation too. Each assertion needs its own `jti`. Its `aud` is a single
    /// value, as the provider documents it: the issuer if the provider accepts that, otherwise the
    /// token endpoint. Errors and the time limit are as with [`param_with`](Self::param_with).
    ///
    /// ```
    /// use reqwest_reauth::OAuthRefresh;
    ///
    /// /// Stands for a signer that uses the client's private key.
    /// fn sign(audience: &str) -> Result<String, std::io::Error> {
    ///     Ok(format!("an assertion for {audience}"))
    /// }
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

    /// Sets the `scope` to request, as names separated by spaces. Default: none, which means the
    /// scope of the login.
    pub fn scope(self, scope: impl Into<String>) -> Self {
        self.with(|settings| settings.scope = Some(scope.into()))
    }

    /// Adds a member to the form, for example `resource` or `audience`. It can be called several
    /// times, even with the same name.
    ///
    /// A name that the form already has is [`InvalidConfig`](crate::ErrorKind::InvalidConfig),
    /// because RFC 6749 §3.2 allows each name only once. These names are `grant_type` and
    /// `refresh_token`, and `scope`, `client_id` and `client_secret` if they are set.
    pub fn param(self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.with(|settings| settings.parameters.push(Parameter::fixed(name.into(), value.into())))
    }

    /// Adds a member to the form that is computed anew for each attempt, such as a signed
    /// assertion, or a token that another library renews.
    ///
    /// Computed members are evaluated in the order of the calls, within the
    /// [`attempt_timeout`](Self::attempt_timeout). The rules for names are those of
    /// [`param`](Self::param).
    ///
    /// An error fails the attempt, which is then retried as if the connection had failed. After the
    /// last attempt, the refresh fails with [`Unavailable`](crate::ErrorKind::Unavailable). An
    /// error that is an [`Error`](crate::Error) of the kind
    /// [`InvalidConfig`](crate::ErrorKind::InvalidConfig), or has such an error as its source, ends
    /// the refresh at once. A panic becomes [`Internal`](crate::ErrorKind::Internal).
    pub fn param_with<F, Fut>(self, name: impl Into<String>, make: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<String, BoxError>> + Send + 'static,
    {
        let parameter = Parameter::late(name.into(), move |_| make());
        self.with(|settings| settings.parameters.push(parameter))
    }

    /// Adds a member to the form that is read from a file for each attempt.
    ///
    /// The file holds at most 64 KiB of UTF-8. Surrounding whitespace is removed. A file that is
    /// empty or cannot be read is an error as with [`param_with`](Self::param_with).
    pub fn param_file(self, name: impl Into<String>, path: impl Into<PathBuf>) -> Self {
        let parameter = Parameter::file(name.into(), path.into());
        self.with(|settings| settings.parameters.push(parameter))
    }

    /// Sets the maximum number of calls to the token endpoint in one refresh, including the first.
    /// Default: 6. Zero is [`InvalidConfig`](crate::ErrorKind::InvalidConfig).
    pub fn max_attempts(self, attempts: u32) -> Self {
        self.with(|settings| settings.pace.max_attempts = attempts)
    }

    /// Sets the wait before the second attempt. It doubles with each further attempt, up to
    /// `longest`. Default: 500 ms and 10 s.
    ///
    /// Each wait is drawn at random from the upper half of its step. After a lost response the wait
    /// is always that of the first step.
    pub fn backoff(self, first: Duration, longest: Duration) -> Self {
        self.with(|settings| (settings.pace.first, settings.pace.longest) = (first, longest))
    }

    /// Sets the time limit of one attempt, from connecting to the last byte of the response.
    /// Default: 10 s. Zero is [`InvalidConfig`](crate::ErrorKind::InvalidConfig).
    pub fn attempt_timeout(self, limit: Duration) -> Self {
        self.with(|settings| settings.attempt_timeout = limit)
    }

    /// Sets the time limit of all attempts and waits together. Default: 60 s. A wait that would end
    /// after the deadline is not started. Zero is
    /// [`InvalidConfig`](crate::ErrorKind::InvalidConfig).
    pub fn deadline(self, limit: Duration) -> Self {
        self.with(|settings| settings.pace.deadline = limit)
    }

    /// Sets the longest `Retry-After` that a refresh waits for. Default: 30 s. If the token
    /// endpoint asks for more, the refresh fails at once, and
    /// [`Error::retry_after`](crate::Error::retry_after) returns the requested wait.
    pub fn max_retry_after(self, limit: Duration) -> Self {
        self.with(|settings| settings.pace.max_retry_after = limit)
    }

    /// Sets whether a refresh token is sent again after a lost response: the connection broke, the
    /// attempt timed out, or a gateway responded in place of the token endpoint (408, 502, 504, 520
    /// to 524). Default: `true`.
    ///
    /// The token endpoint may already have spent the refresh token. Many servers accept a spent
    /// token for some more seconds. Others (such as `oidc-provider`) revoke the whole login
    /// instead. Pass `false` for those: the refresh then fails with
    /// [`Unavailable`](crate::ErrorKind::Unavailable) and
    /// [`Error::possibly_consumed`](crate::Error::possibly_consumed).
    pub fn retry_lost(self, yes: bool) -> Self {
        self.with(|settings| settings.pace.retry_lost = yes)
    }

    /// Allows plain `http` for a token endpoint outside the loopback interface. Default: not
    /// allowed. The secrets then travel unencrypted.
    pub fn allow_plain_http(self) -> Self {
        self.with(|settings| settings.allow_plain_http = true)
    }

    /// Replaces the rule that reads responses, for a token endpoint with an unusual response
    /// format.
    ///
    /// `rule` receives every response whose body arrived whole, decoded, together with the
    /// [`Reading`] of the built-in rule. Return that `Reading` to change nothing.
    ///
    /// - A new refresh token that the built-in rule or [`TokenResponse::read_at`] found is kept,
    ///   whatever `rule` returns.
    /// - Returned [`Reading::Tokens`] are used unchanged: the token type is not checked.
    /// - A panic in `rule` ends the refresh with [`Internal`](crate::ErrorKind::Internal).
    ///
    /// ```
    /// use reqwest_reauth::{OAuthRefresh, Reading};
    ///
    /// // The tokens are in a member: {"data": {"access_token": …}}
    /// let nested = OAuthRefresh::new("https://login.example.com/oauth/token")
    ///     .read_response(|response, _| response.read_at("/data"));
    ///
    /// // The provider has its own error codes.
    /// #[derive(serde::Deserialize)]
    /// struct Rejection {
    ///     code: i64,
    /// }
    /// let coded = OAuthRefresh::new("https://login.example.com/oauth/token").read_response(
    ///     |response, reading| match response.json::<Rejection>() {
    ///         Some(Rejection { code: 20026 | 20037 }) => Reading::LoginRequired,
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
