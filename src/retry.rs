//! A retry strategy for `reqwest-retry` outside the chain.

use reqwest::Response;
use reqwest_middleware::Result;
use reqwest_retry::{DefaultRetryableStrategy, Retryable, RetryableStrategy};

use crate::{error::Error, outcome::Outcome};

/// A strategy for
/// [`RetryTransientMiddleware`](reqwest_retry::RetryTransientMiddleware::new_with_policy_and_strategy)
/// outside the chain.
///
/// It retries whatever the wrapped strategy retries (by default reqwest-retry's own), errors of
/// this crate that are [transient](Error::is_transient), and responses whose
/// [`Outcome`](crate::Outcome) has a transient [`refresh_error`](crate::Outcome::refresh_error).
/// The wrapped strategy decides on everything except this crate's errors.
///
/// **The retry must outlast the cool-down** (10 s by default, up to five minutes if the token
/// endpoint asks for it). A request during the cool-down fails at once with
/// [`CoolingDown`](crate::ErrorKind::CoolingDown). Choose the policy's intervals and its number of
/// retries so that their sum is longer.
///
/// ```
/// use reqwest_middleware::ClientBuilder;
/// use reqwest_reauth::{AuthRetryStrategy, ClientBuilderExt, Error, Session, Tokens};
/// use reqwest_retry::{RetryTransientMiddleware, policies::ExponentialBackoff};
///
/// fn main() -> Result<(), Error> {
///     let session =
///         Session::builder(Tokens::new("token")?).origin("https://api.example.com").build()?;
///     // 1 + 2 + 4 + 8 + 16 s
///     let policy = ExponentialBackoff::builder().build_with_max_retries(5);
///     let retry = RetryTransientMiddleware::new_with_policy_and_strategy(
///         policy,
///         AuthRetryStrategy::new(),
///     );
///     let client =
///         ClientBuilder::new(reqwest::Client::new()).with(retry).with_session(session).build();
///     Ok(())
/// }
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct AuthRetryStrategy<S = DefaultRetryableStrategy>(S);

impl AuthRetryStrategy {
    /// Wraps reqwest-retry's default strategy.
    pub fn new() -> Self {
        Self(DefaultRetryableStrategy)
    }
}

impl<S> AuthRetryStrategy<S> {
    /// Wraps another strategy.
    pub fn wrapping(strategy: S) -> Self {
        Self(strategy)
    }
}

impl<S: RetryableStrategy> RetryableStrategy for AuthRetryStrategy<S> {
    fn handle(&self, result: &Result<Response>) -> Option<Retryable> {
        if is_retryable(result) {
            return Some(Retryable::Transient);
        }
        match result {
            Err(error) if Error::find_in(error).is_some() => Some(Retryable::Fatal),
            _ => self.0.handle(result),
        }
    }
}

/// Returns whether a retry may succeed, for retry middleware other than [`AuthRetryStrategy`].
///
/// It returns `true` if the result is an error of this crate that is
/// [transient](Error::is_transient), or a response with a transient
/// [`refresh_error`](crate::Outcome::refresh_error).
pub fn is_retryable(result: &Result<Response>) -> bool {
    match result {
        Ok(response) => response
            .extensions()
            .get::<Outcome>()
            .and_then(|outcome| outcome.refresh_error.as_ref())
            .is_some_and(Error::is_transient),
        Err(error) => Error::find_in(error).is_some_and(Error::is_transient),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    /// Retries everything.
    struct Always;

    impl RetryableStrategy for Always {
        fn handle(&self, _: &Result<Response>) -> Option<Retryable> {
            Some(Retryable::Transient)
        }
    }

    #[allow(clippy::unnecessary_wraps, reason = "it is what the table compares")]
    fn response(status: u16, refresh_error: Option<ErrorKind>) -> Result<Response> {
        let mut response = http::Response::builder().status(status).body("").unwrap();
        if let Some(kind) = refresh_error {
            let outcome = Outcome { refresh_error: Some(Error::of(kind)), ..Outcome::default() };
            response.extensions_mut().insert(outcome);
        }
        Ok(response.into())
    }

    fn failed(kind: ErrorKind) -> Result<Response> {
        Err(Error::of(kind).into())
    }

    #[test]
    fn this_crate_judges_its_own_errors() {
        let other = || Err(reqwest_middleware::Error::Middleware(anyhow::anyhow!("other")));
        let table: Vec<(&str, Result<Response>, bool, bool, bool)> = vec![
            // name, result, is_retryable, retried by default, retried when everything is
            ("unavailable", failed(ErrorKind::Unavailable), true, true, true),
            ("cooling down", failed(ErrorKind::CoolingDown), true, true, true),
            ("login required", failed(ErrorKind::LoginRequired), false, false, false),
            ("closed", failed(ErrorKind::Closed), false, false, false),
            ("transient 401", response(401, Some(ErrorKind::Unavailable)), true, true, true),
            ("final 401", response(401, Some(ErrorKind::LoginRequired)), false, false, true),
            ("401", response(401, None), false, false, true),
            ("503", response(503, None), false, true, true),
            ("200", response(200, None), false, false, true),
            ("another's", other(), false, false, true),
        ];
        let retries = |retry| matches!(retry, Some(Retryable::Transient));
        for (name, result, own, by_default, always) in table {
            assert_eq!(is_retryable(&result), own, "{name}");
            let default = AuthRetryStrategy::new();
            assert_eq!(retries(default.handle(&result)), by_default, "{name}");
            let wrapping = AuthRetryStrategy::wrapping(Always);
            assert_eq!(retries(wrapping.handle(&result)), always, "{name}");
        }
    }
}
