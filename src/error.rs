//! One opaque error for the whole crate, typed by [`ErrorKind`]. It keeps the API's response and
//! the token endpoint's response apart.

mod find;
mod text;

use std::{error::Error as StdError, sync::Arc, time::Duration};

use http::StatusCode;

use self::find::{LONGEST_CHAIN, find};
pub(crate) use self::text::printable;

/// The error type of the closures that users pass in. `?` converts any error to it.
pub type BoxError = Box<dyn StdError + Send + Sync>;

/// The error of this crate.
///
/// An error that reaches a request's caller describes two servers separately.
/// [`api_status`](Self::api_status) is the status of the API's response to the request.
/// [`status`](Self::status) is the status of the token endpoint's response to the refresh. The text
/// contains neither a response body nor a token. Cloning is cheap.
///
/// Requests fail with [`reqwest_middleware::Error`]. [`Error::find_in`] finds this error inside it.
#[derive(Clone)]
pub struct Error(Box<Repr>);

#[derive(Clone)]
struct Repr {
    kind: ErrorKind,
    source: Option<Arc<dyn StdError + Send + Sync>>,
    status: Option<StatusCode>,
    /// Host and port of the token endpoint that caused the error.
    token_endpoint: Option<Arc<str>>,
    oauth_error: Option<Arc<str>>,
    attempts: u32,
    retry_after: Option<Duration>,
    api_status: Option<StatusCode>,
    possibly_consumed: bool,
    nothing_to_ask_with: bool,
    transient: bool,
}

/// The kinds of [`Error`], and how to react to each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A token is empty, longer than 64 KiB, or contains a character other than visible ASCII.
    /// Correct the input.
    InvalidToken,
    /// A setting cannot work, for example a session without an origin. Correct the program.
    InvalidConfig,
    /// The login is over: the refresh token was rejected, or there is no token. A person or a
    /// supervisor has to provide new tokens through
    /// [`Session::replace_tokens`](crate::Session::replace_tokens).
    LoginRequired,
    /// The token endpoint rejects this client or this request, for example with `invalid_client`.
    /// The refresh token is kept. Correct the settings.
    ClientRejected,
    /// The token endpoint is unreachable, or reports that it is unavailable. The next refresh may
    /// succeed.
    Unavailable,
    /// The token endpoint's response was not a token response. The next refresh may succeed.
    BadResponse,
    /// A recent refresh failed and the cool-down is not over. The failure of that refresh is the
    /// [source](StdError::source).
    CoolingDown,
    /// The request's own timeout ran out while it waited for a refresh. The refresh continues.
    TimedOut,
    /// A scoped client was used outside every [`Session::scope`](crate::Session::scope). Nothing
    /// was sent.
    NoSession,
    /// The token store failed.
    Store,
    /// The session is closed and sends no more tokens. If the error has an
    /// [`api_status`](Error::api_status), the request was sent before the session closed, and was
    /// rejected.
    Closed,
    /// The URL is outside the session's origins, so the session provides no credential for it.
    UntrustedOrigin,
    /// A refresher panicked, or the runtime of the refresh was shut down. The next request starts a
    /// new refresh.
    Internal,
}

impl Error {
    /// Creates an error of this kind with a cause.
    ///
    /// This constructor and the setters below are for implementors of
    /// [`Refresher`](crate::Refresher) and [`TokenStore`](crate::TokenStore). The text of `source`
    /// is shown to users: keep secrets out of it.
    pub fn new(kind: ErrorKind, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        let mut error = Self::of(kind);
        error.0.source = Some(Arc::from(source.into()));
        error
    }

    pub(crate) fn of(kind: ErrorKind) -> Self {
        Self(Box::new(Repr {
            kind,
            source: None,
            status: None,
            token_endpoint: None,
            oauth_error: None,
            attempts: 0,
            retry_after: None,
            api_status: None,
            possibly_consumed: false,
            nothing_to_ask_with: false,
            transient: false,
        }))
    }

    /// Sets the status of the token endpoint's response.
    pub fn with_status(mut self, status: StatusCode) -> Self {
        self.0.status = Some(status);
        self
    }

    /// Sets how long the token endpoint asks its clients to wait. The cool-down lasts at least that
    /// long, up to five minutes.
    pub fn with_retry_after(mut self, wait: Duration) -> Self {
        self.0.retry_after = Some(wait);
        self
    }

    /// Sets the number of calls to the token endpoint.
    pub fn with_attempts(mut self, attempts: u32) -> Self {
        self.0.attempts = attempts;
        self
    }

    /// Marks that a call whose response was lost may have spent the refresh token.
    pub fn with_possibly_consumed(mut self) -> Self {
        self.0.possibly_consumed = true;
        self
    }

    /// Sets the `error` code (RFC 6749 §5.2) of the token endpoint's response. The code is cut to
    /// 256 characters, and control and non-ASCII characters are escaped.
    pub fn with_oauth_error(self, code: impl Into<String>) -> Self {
        self.with_escaped_oauth_error(&printable(&code.into()))
    }

    /// Sets a code that the caller has already cut and escaped with [`printable`].
    pub(crate) fn with_escaped_oauth_error(mut self, code: &str) -> Self {
        self.0.oauth_error = Some(code.into());
        self
    }

    /// Sets the status of the API's response that rejected the request.
    pub fn with_api_status(mut self, status: StatusCode) -> Self {
        self.0.api_status = Some(status);
        self
    }

    /// Names the token endpoint that caused the error. Does nothing if the error already names one,
    /// or if no token endpoint was involved.
    pub(crate) fn with_token_endpoint(mut self, host: impl FnOnce() -> Arc<str>) -> Self {
        let caused = matches!(
            self.0.kind,
            ErrorKind::LoginRequired
                | ErrorKind::ClientRejected
                | ErrorKind::Unavailable
                | ErrorKind::BadResponse
                | ErrorKind::CoolingDown
        );
        if caused && !self.0.nothing_to_ask_with && self.0.token_endpoint.is_none() {
            self.0.token_endpoint = Some(host());
        }
        self
    }

    /// The token endpoint that caused the error, as host and port.
    pub(crate) fn token_endpoint(&self) -> Option<&Arc<str>> {
        self.0.token_endpoint.as_ref()
    }

    /// Marks that neither the session nor the store holds a refresh token. The API's response is
    /// then returned unchanged.
    pub(crate) fn with_nothing_to_ask_with(mut self) -> Self {
        self.0.nothing_to_ask_with = true;
        self
    }

    /// Marks that a later refresh may succeed, whatever the kind says.
    pub(crate) fn with_transient(mut self) -> Self {
        self.0.transient = true;
        self
    }

    pub(crate) fn nothing_to_ask_with(&self) -> bool {
        self.0.nothing_to_ask_with
    }

    /// Finds this crate's error in an error that a request returned, or in any other error that
    /// contains it. Returns the outermost if there are several.
    ///
    /// The search follows [`source`](StdError::source). It also looks inside wrappers whose
    /// `source` skips their content: `std::io::Error`, `reqwest_retry::RetryError`, the
    /// `anyhow::Error` in a [`reqwest_middleware::Error`], and `Arc` and `Box` of these. For a
    /// `Box<dyn Error>`, write `Error::find_in(&*boxed)`. For an `anyhow::Error`, write
    /// `Error::find_in(error.as_ref())`. The content of an `anyhow::Error` that was converted to a
    /// `Box<dyn Error>` cannot be found.
    ///
    /// ```
    /// use reqwest_reauth::{Error, ErrorKind};
    ///
    /// fn report(error: &reqwest_middleware::Error) {
    ///     match Error::find_in(error).map(Error::kind) {
    ///         Some(ErrorKind::LoginRequired) => println!("please sign in again"),
    ///         Some(kind) => println!("no token for now: {kind}"),
    ///         None => println!("the request itself failed: {error}"),
    ///     }
    /// }
    /// ```
    pub fn find_in<'e>(error: &'e (dyn StdError + 'static)) -> Option<&'e Error> {
        find(error, LONGEST_CHAIN)
    }

    /// Returns what went wrong.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Returns whether a later request may succeed although nothing is changed: for `Unavailable`,
    /// `BadResponse`, `TimedOut` and `Internal`; for `Store` if a refresh waits until the store
    /// works again; and for `CoolingDown` if its source is transient.
    pub fn is_transient(&self) -> bool {
        if self.0.transient {
            return true;
        }
        match self.0.kind {
            ErrorKind::Unavailable
            | ErrorKind::BadResponse
            | ErrorKind::TimedOut
            | ErrorKind::Internal => true,
            ErrorKind::CoolingDown => {
                let cause =
                    self.0.source.as_ref().and_then(|source| source.downcast_ref::<Error>());
                cause.is_none_or(Error::is_transient)
            }
            _ => false,
        }
    }

    /// Returns the status of the token endpoint's last response, if there was one.
    pub fn status(&self) -> Option<StatusCode> {
        self.0.status
    }

    /// Returns the `error` code (RFC 6749 §5.2) of the token endpoint's response, escaped and at
    /// most 256 characters long.
    pub fn oauth_error(&self) -> Option<&str> {
        self.0.oauth_error.as_deref()
    }

    /// Returns how many times the failed refresh called the token endpoint.
    pub fn attempts(&self) -> u32 {
        self.0.attempts
    }

    /// Returns how long the token endpoint asked its clients to wait.
    pub fn retry_after(&self) -> Option<Duration> {
        self.0.retry_after
    }

    /// Returns the status of the API's response that rejected the request, or `None` if nothing was
    /// sent.
    pub fn api_status(&self) -> Option<StatusCode> {
        self.0.api_status
    }

    /// Returns whether a call whose response never arrived may have spent the refresh token. The
    /// call may have been made by this process or, with a store, by a process that died.
    ///
    /// The stores of this crate record which refresh token is being sent. With a store of your own,
    /// this is also `true` for any other refresh token that is or was in the store.
    pub fn possibly_consumed(&self) -> bool {
        self.0.possibly_consumed
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_ref().map(|source| &**source as &(dyn StdError + 'static))
    }
}

impl From<Error> for reqwest_middleware::Error {
    fn from(error: Error) -> Self {
        Self::middleware(error)
    }
}

#[cfg(test)]
mod tests {
    use std::{fmt, io};

    use reqwest_retry::RetryError;

    use super::*;

    #[test]
    fn is_found_bare_under_retry_and_under_context() {
        let ours = || Error::of(ErrorKind::Unavailable).with_status(StatusCode::BAD_GATEWAY);
        let bare = reqwest_middleware::Error::from(ours());
        let retried = reqwest_middleware::Error::middleware(RetryError::WithRetries {
            retries: 2,
            err: ours().into(),
        });
        let once = reqwest_middleware::Error::middleware(RetryError::Error(ours().into()));
        let nested = reqwest_middleware::Error::middleware(RetryError::Error(
            reqwest_middleware::Error::middleware(RetryError::WithRetries {
                retries: 1,
                err: ours().into(),
            }),
        ));
        let context = reqwest_middleware::Error::Middleware(
            anyhow::Error::new(ours()).context("while beating"),
        );
        for error in [bare, retried, once, nested, context] {
            assert_eq!(
                Error::find_in(&error).map(Error::status),
                Some(Some(StatusCode::BAD_GATEWAY)),
                "{error:?}"
            );
        }
        let other = reqwest_middleware::Error::Middleware(anyhow::anyhow!("other"));
        assert!(Error::find_in(&other).is_none());
    }

    /// A foreign error with a cause that `source()` returns.
    #[derive(Debug, thiserror::Error)]
    #[error("a stranger's")]
    struct Foreign(#[source] Box<dyn StdError + Send + Sync>);

    #[test]
    fn is_found_in_anything_that_wraps_it() {
        let ours = || Error::of(ErrorKind::LoginRequired);
        let middleware = || reqwest_middleware::Error::from(ours());
        let retried = || RetryError::WithRetries { retries: 1, err: middleware() };
        let table: Vec<(&str, Box<dyn StdError + Send + Sync>)> = vec![
            ("itself", Box::new(ours())),
            ("arc", Box::new(Arc::new(ours()))),
            ("box", Box::new(Box::new(ours()))),
            ("foreign", Box::new(Foreign(Box::new(ours())))),
            ("foreign, middleware", Box::new(Foreign(Box::new(middleware())))),
            ("arc of middleware", Box::new(Foreign(Box::new(Arc::new(middleware()))))),
            ("box of middleware", Box::new(Foreign(Box::new(Box::new(middleware()))))),
            ("retry", Box::new(Foreign(Box::new(retried())))),
            ("arc of retry", Box::new(Arc::new(retried()))),
            ("io", Box::new(io::Error::other(ours()))),
            ("io of middleware", Box::new(io::Error::other(middleware()))),
            ("io of io", Box::new(io::Error::other(io::Error::other(Foreign(Box::new(ours())))))),
            ("arc of io", Box::new(Arc::new(io::Error::other(ours())))),
            ("arc of any", {
                let any: Arc<dyn StdError + Send + Sync> = Arc::new(middleware());
                Box::new(Foreign(Box::new(any)))
            }),
        ];
        for (name, error) in table {
            let found = Error::find_in(&*error).map(Error::kind);
            assert_eq!(found, Some(ErrorKind::LoginRequired), "{name}");
        }
        let any = anyhow::Error::new(Foreign(Box::new(middleware()))).context("while beating");
        assert!(Error::find_in(any.as_ref()).is_some());
        assert!(Error::find_in(&Foreign("other".into())).is_none());
        assert!(Error::find_in(&io::Error::from(io::ErrorKind::NotFound)).is_none());
    }

    #[test]
    fn the_outermost_is_found() {
        let inner = Error::of(ErrorKind::Unavailable);
        let outer = Error::new(ErrorKind::CoolingDown, inner);
        let error = io::Error::other(reqwest_middleware::Error::from(outer));
        assert_eq!(Error::find_in(&error).map(Error::kind), Some(ErrorKind::CoolingDown));
    }

    #[test]
    fn an_endless_chain_ends() {
        #[derive(Debug)]
        struct Endless;
        impl fmt::Display for Endless {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("endless")
            }
        }
        impl StdError for Endless {
            fn source(&self) -> Option<&(dyn StdError + 'static)> {
                Some(self)
            }
        }
        assert!(Error::find_in(&Endless).is_none());
    }

    #[test]
    fn a_code_is_bounded_and_escaped() {
        let error = Error::of(ErrorKind::ClientRejected).with_oauth_error("a\u{1b}b");
        assert_eq!(error.oauth_error(), Some("a\\u{1b}b"));
        let long = Error::of(ErrorKind::ClientRejected).with_oauth_error("x".repeat(300));
        assert_eq!(long.oauth_error().map(str::len), Some(256));
    }

    #[test]
    fn text_names_both_servers_and_not_the_cause() {
        let error = Error::new(ErrorKind::Unavailable, "the cause")
            .with_status(StatusCode::BAD_GATEWAY)
            .with_attempts(6)
            .with_api_status(StatusCode::UNAUTHORIZED);
        assert_eq!(
            error.to_string(),
            "the token endpoint is unavailable (token endpoint returned 502, 6 attempts, api returned 401)"
        );
        assert_eq!(error.source().unwrap().to_string(), "the cause");
        assert_eq!(error.api_status(), Some(StatusCode::UNAUTHORIZED));
        assert_eq!(Error::of(ErrorKind::Closed).to_string(), "the session is closed");
        assert_eq!(
            Error::of(ErrorKind::Closed).with_attempts(1).to_string(),
            "the session is closed"
        );
    }

    #[test]
    fn every_part_is_told_in_its_place() {
        let bare = Error::of(ErrorKind::Unavailable);
        assert_eq!(bare.kind(), ErrorKind::Unavailable);
        assert_eq!(bare.status(), None);
        assert_eq!(bare.oauth_error(), None);
        assert_eq!(bare.attempts(), 0);
        assert_eq!(bare.retry_after(), None);
        assert_eq!(bare.api_status(), None);
        assert!(!bare.possibly_consumed());
        assert!(!bare.nothing_to_ask_with() && bare.source().is_none());
        let full = Error::new(ErrorKind::ClientRejected, "the cause")
            .with_status(StatusCode::BAD_REQUEST)
            .with_oauth_error("invalid_client")
            .with_attempts(2)
            .with_retry_after(Duration::from_secs(7))
            .with_api_status(StatusCode::FORBIDDEN)
            .with_possibly_consumed()
            .with_nothing_to_ask_with();
        assert_eq!(full.kind(), ErrorKind::ClientRejected);
        assert_eq!(full.status(), Some(StatusCode::BAD_REQUEST));
        assert_eq!(full.oauth_error(), Some("invalid_client"));
        assert_eq!(full.attempts(), 2);
        assert_eq!(full.retry_after(), Some(Duration::from_secs(7)));
        assert_eq!(full.api_status(), Some(StatusCode::FORBIDDEN));
        assert!(full.possibly_consumed() && full.nothing_to_ask_with());
        assert_eq!(
            full.to_string(),
            "the token endpoint rejected the client (token endpoint returned 400, error invalid_client, 2 attempts, retry after 7 s, \
             the refresh token may have been spent by a call whose response was lost, api returned 403)"
        );
        assert_eq!(
            format!("{full:?}"),
            "Error { kind: ClientRejected, status: 400, oauth_error: \"invalid_client\", attempts: 2, retry_after: 7s, \
             api_status: 403, possibly_consumed: true, source: \"the cause\" }"
        );
    }

    #[test]
    fn kinds_are_transient_or_not() {
        use ErrorKind::*;
        for kind in [Unavailable, BadResponse, TimedOut, Internal, CoolingDown] {
            assert!(Error::of(kind).is_transient(), "{kind:?}");
        }
        for kind in [
            InvalidToken,
            InvalidConfig,
            LoginRequired,
            ClientRejected,
            NoSession,
            Store,
            Closed,
            UntrustedOrigin,
        ] {
            assert!(!Error::of(kind).is_transient(), "{kind:?}");
        }
    }

    #[test]
    fn debug_says_what_is_known() {
        assert_eq!(format!("{:?}", Error::of(ErrorKind::Closed)), "Error { kind: Closed }");
        let error = Error::of(ErrorKind::Unavailable).with_attempts(1).with_possibly_consumed();
        assert_eq!(
            format!("{error:?}"),
            "Error { kind: Unavailable, attempts: 1, possibly_consumed: true }"
        );
    }

    #[test]
    fn cooling_down_is_as_transient_as_its_cause() {
        let caused_by = |kind| Error::new(ErrorKind::CoolingDown, Error::of(kind));
        assert!(caused_by(ErrorKind::Unavailable).is_transient());
        assert!(!caused_by(ErrorKind::ClientRejected).is_transient());
    }

    #[test]
    fn text_from_servers_is_bounded_and_escaped() {
        assert_eq!(printable("a\u{1b}[31m\nb"), "a\\u{1b}[31m\\nb");
        assert_eq!(printable(&"x".repeat(253)), "x".repeat(253));
        assert_eq!(printable(&"x".repeat(1 << 20)), "x".repeat(253) + "...");
        assert_eq!(printable(&"\u{1b}".repeat(1 << 20)), "\\u{1b}".repeat(42) + "...");
    }
}
