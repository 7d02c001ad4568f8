//! How anything can bring new tokens.

use std::{
    fmt,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use http::StatusCode;

use crate::{
    error::Error,
    token::{RefreshToken, Tokens},
};

/// Anything that can bring new tokens: [`OAuthRefresh`](crate::OAuthRefresh), [`refresh_with`], or
/// your own.
///
/// A session runs one refresh at a time. The refresh belongs to the session: it goes on when the
/// requests that wait for it are dropped, and is bounded by
/// [`SessionBuilder::refresh_timeout`](crate::SessionBuilder::refresh_timeout). A panic in it
/// becomes an [`Internal`](crate::ErrorKind::Internal) error for those who wait.
#[async_trait]
pub trait Refresher: Send + Sync + 'static {
    /// Brings new tokens. An answer without a refresh token keeps the old one.
    ///
    /// # Errors
    /// The [kind](crate::ErrorKind) decides what follows: `LoginRequired` is kept until
    /// [`Session::replace_tokens`](crate::Session::replace_tokens), after `Internal` the next
    /// request tries afresh, after all others the session cools down.
    async fn refresh(&self, flight: &RefreshContext) -> Result<Tokens, Error>;

    /// Asked by [`SessionBuilder::build`](crate::SessionBuilder::build): whether the settings can
    /// work.
    ///
    /// # Errors
    /// [`InvalidConfig`](crate::ErrorKind::InvalidConfig), which `build` returns.
    fn check(&self) -> Result<(), Error> {
        Ok(())
    }

    /// Whether these tokens are enough to ask with. Where they are not, a rejected answer is handed
    /// to the caller. Default: yes.
    ///
    /// It is asked whenever the session changes, with the session locked: look at the tokens, and
    /// at nothing else. With a store it is asked in the refresh alone, once the store has been
    /// looked into.
    fn can_refresh(&self, tokens: &Tokens) -> bool {
        let _ = tokens;
        true
    }
}

#[async_trait]
impl<R: Refresher + ?Sized> Refresher for Arc<R> {
    async fn refresh(&self, flight: &RefreshContext) -> Result<Tokens, Error> {
        (**self).refresh(flight).await
    }

    fn check(&self) -> Result<(), Error> {
        (**self).check()
    }

    fn can_refresh(&self, tokens: &Tokens) -> bool {
        (**self).can_refresh(tokens)
    }
}

/// A refresher from a closure, for tokens that are minted, read from a file or asked of another
/// service. It is given the tokens to be renewed.
///
/// ```
/// use reqwest_reauth::{Error, ErrorKind, Session, Tokens, refresh_with};
///
/// # fn main() -> Result<(), Error> {
/// let session = Session::builder(Tokens::empty())
///     .origin("https://api.example.com")
///     .refresher(refresh_with(|_old| async {
///         // Kubernetes renews the file before the token in it ends.
///         let text = std::fs::read_to_string("/var/run/secrets/tokens/api")
///             .map_err(|error| Error::new(ErrorKind::Unavailable, error))?;
///         Tokens::new(text.trim())
///     }))
///     .build()?;
/// # Ok(())
/// # }
/// ```
pub fn refresh_with<F, R>(mint: F) -> impl Refresher
where
    F: Fn(Tokens) -> R + Send + Sync + 'static,
    R: Future<Output = Result<Tokens, Error>> + Send + 'static,
{
    Mint(mint)
}

struct Mint<F>(F);

#[async_trait]
impl<F, R> Refresher for Mint<F>
where
    F: Fn(Tokens) -> R + Send + Sync + 'static,
    R: Future<Output = Result<Tokens, Error>> + Send + 'static,
{
    async fn refresh(&self, flight: &RefreshContext) -> Result<Tokens, Error> {
        (self.0)(flight.tokens()).await
    }
}

/// One refresh, as its [`Refresher`] sees it.
pub struct RefreshContext {
    log: Arc<dyn RefreshLog>,
    failed_attempts: Arc<AtomicU32>,
}

/// What a session hears from a running refresh.
#[async_trait]
pub(crate) trait RefreshLog: Send + Sync {
    fn tokens(&self) -> Tokens;
    fn retrying(&self, failed_attempt: u32, delay: Duration, status: Option<StatusCode>);
    /// Whether the refresh token may have been sent in a call without a known response.
    fn sending(&self, maybe_sent: bool) {
        let _ = maybe_sent;
    }
    async fn keep(&self, refresh_token: RefreshToken);
}

impl RefreshContext {
    pub(crate) fn new(log: Arc<dyn RefreshLog>) -> Self {
        Self { log, failed_attempts: Arc::default() }
    }

    /// The same flight once more, for a refresher whose parts outlive a borrow.
    pub(crate) fn share(&self) -> Self {
        Self { log: Arc::clone(&self.log), failed_attempts: Arc::clone(&self.failed_attempts) }
    }

    /// What to renew: with the refresh token that was [kept](Self::keep) last.
    pub fn tokens(&self) -> Tokens {
        self.log.tokens()
    }

    /// An attempt failed and another follows after `delay`: becomes an event and counts. Attempts
    /// are numbered from 1.
    pub fn retrying(&self, failed_attempt: u32, delay: Duration, status: Option<StatusCode>) {
        self.failed_attempts.fetch_add(1, Ordering::Relaxed);
        self.log.retrying(failed_attempt, delay, status);
    }

    /// A new refresh token, as soon as it is known: kept, and saved, whatever becomes of the
    /// flight. A server that rotates refresh tokens has already spent the old one when an unusable
    /// access token comes beside the new one.
    pub async fn keep(&self, refresh_token: RefreshToken) {
        self.log.keep(refresh_token).await;
    }

    /// Whether the refresh token may be on its way, or spent by a call whose response was lost. A
    /// session assumes it from the call of the refresher on, until this says otherwise.
    pub(crate) fn sending(&self, maybe_sent: bool) {
        self.log.sending(maybe_sent);
    }

    /// How many attempts were made, given that the last one has ended.
    pub(crate) fn attempts(&self) -> u32 {
        self.failed_attempts.load(Ordering::Relaxed).saturating_add(1)
    }
}

impl fmt::Debug for RefreshContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RefreshContext").field("attempts", &self.attempts()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    struct Quiet;

    #[async_trait]
    impl RefreshLog for Quiet {
        fn tokens(&self) -> Tokens {
            Tokens::new("old").unwrap()
        }
        fn retrying(&self, _: u32, _: Duration, _: Option<StatusCode>) {}
        async fn keep(&self, _: RefreshToken) {}
    }

    /// Asks only with a refresh token.
    struct Picky;

    #[async_trait]
    impl Refresher for Picky {
        async fn refresh(&self, flight: &RefreshContext) -> Result<Tokens, Error> {
            Ok(flight.tokens())
        }

        fn check(&self) -> Result<(), Error> {
            Err(Error::of(ErrorKind::InvalidConfig))
        }

        fn can_refresh(&self, tokens: &Tokens) -> bool {
            tokens.refresh_token().is_some()
        }
    }

    #[tokio::test]
    async fn a_shared_refresher_is_the_one_inside() {
        let shared = Arc::new(Picky);
        let flight = RefreshContext::new(Arc::new(Quiet));
        assert_eq!(
            shared.refresh(&flight).await.unwrap().access_token().unwrap().expose_secret(),
            "old"
        );
        assert_eq!(shared.check().unwrap_err().kind(), ErrorKind::InvalidConfig);
        assert!(!shared.can_refresh(&flight.tokens()));
        assert!(shared.can_refresh(&Tokens::from_refresh_token("r").unwrap()));
        let minted = refresh_with(|old| async { Ok(old) });
        assert!(minted.can_refresh(&Tokens::empty()) && minted.check().is_ok());
        assert_eq!(
            minted.refresh(&flight).await.unwrap().access_token().unwrap().expose_secret(),
            "old"
        );
    }

    #[test]
    fn attempts_are_counted_in_every_share() {
        let flight = RefreshContext::new(Arc::new(Quiet));
        let share = flight.share();
        assert_eq!(flight.attempts(), 1);
        share.retrying(1, Duration::ZERO, None);
        assert_eq!((flight.attempts(), share.attempts()), (2, 2));
        assert_eq!(format!("{flight:?}"), "RefreshContext { attempts: 2, .. }");
    }
}
