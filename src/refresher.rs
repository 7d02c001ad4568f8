//! The [`Refresher`] trait: how a session obtains new tokens.

use std::{
    fmt,
    future::Future,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use http::StatusCode;
use tokio::time::Instant;

#[cfg(feature = "dpop")]
use crate::dpop::Dpop;
use crate::{
    error::Error,
    token::{RefreshToken, Tokens},
};

/// A source of new tokens: [`OAuthRefresh`](crate::OAuthRefresh),
/// [`FileRefresh`](crate::FileRefresh), [`refresh_with`], or your own implementation.
///
/// A session runs one refresh at a time. The refresh belongs to the session: it continues when the
/// requests that wait for it are dropped.
/// [`SessionBuilder::refresh_timeout`](crate::SessionBuilder::refresh_timeout) bounds it. If it
/// panics, the requests that wait for it fail with [`Internal`](crate::ErrorKind::Internal).
#[async_trait]
pub trait Refresher: Send + Sync + 'static {
    /// Obtains new tokens. If the result has no refresh token, the session keeps the old one.
    ///
    /// # Errors
    /// The [kind](crate::ErrorKind) of the error decides what follows. `LoginRequired` persists
    /// until [`Session::replace_tokens`](crate::Session::replace_tokens). After `Internal`, the
    /// next request starts a new refresh. After any other kind, a cool-down begins.
    async fn refresh(&self, context: &RefreshContext) -> Result<Tokens, Error>;

    /// Checks whether the settings can work.
    /// [`SessionBuilder::build`](crate::SessionBuilder::build) calls it. The default accepts
    /// everything.
    ///
    /// # Errors
    /// [`InvalidConfig`](crate::ErrorKind::InvalidConfig), which `build` returns.
    fn check(&self) -> Result<(), Error> {
        Ok(())
    }

    /// Returns whether these tokens suffice for a refresh. If they do not, a rejected response is
    /// returned to the caller unchanged. The default is `true`.
    ///
    /// The session calls it on each change, with its lock held: inspect only the tokens. With a
    /// store, it is called only during a refresh, after the store has been read.
    fn can_refresh(&self, tokens: &Tokens) -> bool {
        let _ = tokens;
        true
    }

    /// Returns whether the source has anything new. This is for sources that are cheap to inspect,
    /// such as a file. The default is `true`.
    ///
    /// The session calls it before each refresh, with the tokens that it holds. If it returns
    /// `false`, there is no refresh and no event. If the held token was rejected or has expired,
    /// the waiting requests then fail with [`Unavailable`](crate::ErrorKind::Unavailable).
    ///
    /// # Errors
    /// An error counts as a failed refresh. The session reports
    /// [`Event::RefreshFailed`](crate::Event::RefreshFailed) without a preceding
    /// [`Event::RefreshStarted`](crate::Event::RefreshStarted).
    async fn has_news(&self, held: &Tokens) -> Result<bool, Error> {
        let _ = held;
        Ok(true)
    }

    /// Revokes the tokens at their issuer (RFC 7009). The default does nothing.
    ///
    /// [`Session::clear`](crate::Session::clear) calls it after the tokens are gone from the
    /// session and its store. The first call has the session's tokens. If the store held different
    /// tokens of the same login, a second call has those. One
    /// [`store_timeout`](crate::SessionBuilder::store_timeout) bounds all calls together.
    ///
    /// # Errors
    /// An error becomes an [`Event::RevocationFailed`](crate::Event::RevocationFailed). The logout
    /// itself is complete.
    async fn revoke(&self, tokens: &Tokens) -> Result<(), Error> {
        let _ = tokens;
        Ok(())
    }

    /// Returns whether a logout should wait for tokens to [revoke](Self::revoke). The default is
    /// `false`.
    ///
    /// If `true`, [`Session::clear`](crate::Session::clear) reads from the store any tokens that
    /// another process has saved in the meantime. It also waits up to one
    /// [`store_timeout`](crate::SessionBuilder::store_timeout) for a refresh in progress, so that
    /// its tokens are revoked. If `false`, a refresh in progress is abandoned at once.
    fn can_revoke(&self) -> bool {
        false
    }

    /// Identifies the recipient of a refresh token. For [`OAuthRefresh`](crate::OAuthRefresh) that
    /// is its token endpoint, client id, grant and scope. The text must not contain a secret. The
    /// default is `None`.
    ///
    /// When a refresh token becomes invalid, the processes that share a store tell each other. The
    /// processes for which this text is the same do not send that token any more. With `None`, each
    /// process finds out by itself.
    fn sends_to(&self) -> Option<String> {
        None
    }

    /// Returns the longest cool-down after a failed refresh, which takes precedence over
    /// [`SessionBuilder::cooldown`](crate::SessionBuilder::cooldown). The default is no limit.
    fn longest_cooldown(&self) -> Option<Duration> {
        None
    }
}

/// Implements [`Refresher`] for a pointer to a refresher.
macro_rules! forward {
    ($pointer:ident) => {
        #[async_trait]
        impl<R: Refresher + ?Sized> Refresher for $pointer<R> {
            async fn refresh(&self, context: &RefreshContext) -> Result<Tokens, Error> {
                (**self).refresh(context).await
            }

            fn check(&self) -> Result<(), Error> {
                (**self).check()
            }

            fn can_refresh(&self, tokens: &Tokens) -> bool {
                (**self).can_refresh(tokens)
            }

            async fn has_news(&self, held: &Tokens) -> Result<bool, Error> {
                (**self).has_news(held).await
            }

            async fn revoke(&self, tokens: &Tokens) -> Result<(), Error> {
                (**self).revoke(tokens).await
            }

            fn can_revoke(&self) -> bool {
                (**self).can_revoke()
            }

            fn sends_to(&self) -> Option<String> {
                (**self).sends_to()
            }

            fn longest_cooldown(&self) -> Option<Duration> {
                (**self).longest_cooldown()
            }
        }
    };
}

forward!(Arc);
forward!(Box);

/// Creates a refresher from a closure, for tokens that your program mints or fetches from another
/// service. The closure receives the tokens that are to be replaced. For tokens in a file see
/// [`FileRefresh`](crate::FileRefresh).
///
/// ```
/// use std::time::Duration;
///
/// use reqwest_reauth::{Error, Session, Tokens, refresh_with};
///
/// /// Stands for a signer, or for a call to another service.
/// async fn mint() -> Result<String, Error> {
///     Ok("signed".to_owned())
/// }
///
/// fn main() -> Result<(), Error> {
///     let session = Session::builder(Tokens::empty())
///         .origin("https://api.example.com")
///         .refresher(refresh_with(|_held| async {
///             Ok(Tokens::new(mint().await?)?.with_expires_in(Duration::from_secs(600)))
///         }))
///         .build()?;
///     let client = session.wrap(reqwest::Client::new());
///     Ok(())
/// }
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
    async fn refresh(&self, context: &RefreshContext) -> Result<Tokens, Error> {
        (self.0)(context.tokens()).await
    }
}

/// A refresh in progress, as its [`Refresher`] sees it.
pub struct RefreshContext {
    log: Arc<dyn RefreshLog>,
    failed_attempts: Arc<AtomicU32>,
    kept: Arc<Mutex<Option<RefreshToken>>>,
    /// The deadline of the refresher that fell back to this one.
    deadline: Option<Instant>,
    #[cfg(feature = "dpop")]
    dpop: Option<Arc<Dpop>>,
}

/// What a running refresh reports to its session.
#[async_trait]
pub(crate) trait RefreshLog: Send + Sync {
    fn tokens(&self) -> Tokens;
    fn retrying(&self, failed_attempt: u32, delay: Duration, status: Option<StatusCode>);
    /// Records whether the refresh token may have been sent in a call whose response is not known.
    fn sending(&self, maybe_sent: bool) {
        let _ = maybe_sent;
    }
    async fn keep(&self, refresh_token: RefreshToken);

    /// Returns an error if another process has learned that the refresh token is invalid, so that
    /// it is not sent.
    fn known_dead(&self) -> Option<Error> {
        None
    }

    /// Returns whether the token endpoint may be called now, with the [`tokens`](Self::tokens) at
    /// that time.
    async fn may_ask(&self) -> bool {
        true
    }

    /// Returns whether a fallback refresher may be used: the login seems to be over, and the store
    /// has nothing newer either.
    async fn may_fall_back(&self) -> bool {
        true
    }

    /// Records that the fallback refresher takes over, and the error that caused it.
    fn fell_back(&self, error: &Error) {
        let _ = error;
    }

    /// The session's DPoP state (RFC 9449), if its tokens are bound to a key.
    #[cfg(feature = "dpop")]
    fn dpop(&self) -> Option<Arc<Dpop>> {
        None
    }

    /// Records that the refresh token is no longer valid. The new tokens then replace it, even if
    /// they include no refresh token.
    fn forget_refresh_token(&self) {}
}

impl RefreshContext {
    pub(crate) fn new(log: Arc<dyn RefreshLog>) -> Self {
        Self {
            #[cfg(feature = "dpop")]
            dpop: log.dpop(),
            log,
            failed_attempts: Arc::default(),
            kept: Arc::default(),
            deadline: None,
        }
    }

    /// Creates a context without a session, for tests of a refresher.
    ///
    /// [`retrying`](Self::retrying) only counts the attempt. [`keep`](Self::keep) replaces the
    /// refresh token of [`tokens`](Self::tokens).
    ///
    /// ```
    /// use reqwest_reauth::{Error, RefreshContext, Refresher, Tokens, refresh_with};
    ///
    /// #[tokio::main(flavor = "current_thread")]
    /// async fn main() -> Result<(), Error> {
    ///     let refresher = refresh_with(|_held| async { Tokens::new("new") });
    ///     let context = RefreshContext::for_test(Tokens::new("old")?);
    ///     let tokens = refresher.refresh(&context).await?;
    ///     assert_eq!(tokens.access_token().map(|token| token.expose_secret()), Some("new"));
    ///     assert!(context.kept().is_none());
    ///     Ok(())
    /// }
    /// ```
    #[cfg(feature = "test-util")]
    #[cfg_attr(docsrs, doc(cfg(feature = "test-util")))]
    pub fn for_test(tokens: Tokens) -> Self {
        Self::new(Arc::new(OutsideSession(Mutex::new(tokens))))
    }

    /// Returns the refresh token of the last call to [`keep`](Self::keep), if any.
    #[cfg(feature = "test-util")]
    #[cfg_attr(docsrs, doc(cfg(feature = "test-util")))]
    pub fn kept(&self) -> Option<RefreshToken> {
        lock(&self.kept).clone()
    }

    /// Returns an owned handle to the same refresh, for a refresher that needs more than a borrow.
    pub(crate) fn share(&self) -> Self {
        Self {
            log: Arc::clone(&self.log),
            failed_attempts: Arc::clone(&self.failed_attempts),
            kept: Arc::clone(&self.kept),
            deadline: self.deadline,
            #[cfg(feature = "dpop")]
            dpop: self.dpop.clone(),
        }
    }

    /// Returns the context for the fallback refresher, after `attempts` attempts of the first
    /// refresher. It holds no refresh token, because a refresh token goes only to the endpoint that
    /// issued it.
    pub(crate) fn for_next(&self, attempts: u32, deadline: Option<Instant>) -> Self {
        if attempts > 0 {
            // The last attempt of the first refresher has failed too.
            self.failed_attempts.fetch_add(1, Ordering::Relaxed);
        }
        let log = ForNext { log: Arc::clone(&self.log), attempts, kept: Mutex::default() };
        Self { log: Arc::new(log), deadline, ..self.share() }
    }

    /// Returns the key that the session's tokens are bound to
    /// ([`Placement::dpop`](crate::Placement::dpop)), for a refresher that signs its own calls.
    /// Requires the feature `dpop`.
    #[cfg(feature = "dpop")]
    #[cfg_attr(docsrs, doc(cfg(feature = "dpop")))]
    pub fn dpop_key(&self) -> Option<&crate::dpop::DpopKey> {
        self.dpop.as_ref().map(|dpop| dpop.key())
    }

    #[cfg(feature = "dpop")]
    pub(crate) fn dpop(&self) -> Option<&Arc<Dpop>> {
        self.dpop.as_ref()
    }

    /// Returns the tokens to refresh. They include the refresh token of the last call to
    /// [`keep`](Self::keep).
    pub fn tokens(&self) -> Tokens {
        self.log.tokens()
    }

    /// Reports that an attempt failed and that another one follows after `delay`. The session emits
    /// [`Event::RefreshRetrying`](crate::Event::RefreshRetrying) and counts the attempt. Attempts
    /// are numbered from 1.
    pub fn retrying(&self, failed_attempt: u32, delay: Duration, status: Option<StatusCode>) {
        self.failed_attempts.fetch_add(1, Ordering::Relaxed);
        self.log.retrying(failed_attempt, delay, status);
    }

    /// Keeps and saves a new refresh token, however the refresh ends. Call it as soon as the token
    /// is known: a server that rotates refresh tokens has already spent the old one, even if the
    /// access token beside the new one is unusable.
    pub async fn keep(&self, refresh_token: RefreshToken) {
        *lock(&self.kept) = Some(refresh_token.clone());
        self.log.keep(refresh_token).await;
    }

    /// Makes sure that the session still holds its store's lock, and returns whether the token
    /// endpoint may be called.
    ///
    /// Await it before each attempt, and before reading [`tokens`](Self::tokens) for that attempt.
    /// If the lock may have lapsed, the session takes it again and reads the store, and may then
    /// hold another refresh token.
    ///
    /// If it returns `false`, make no more calls and return any error: the session replaces it. This
    /// happens, for example, if another process has stored new tokens.
    pub async fn may_ask(&self) -> bool {
        self.log.may_ask().await
    }

    /// Records whether a call that is in progress, or whose response was lost, may have spent the
    /// refresh token. The session assumes so from the call to the refresher until the refresher
    /// says otherwise.
    pub(crate) fn sending(&self, maybe_sent: bool) {
        self.log.sending(maybe_sent);
    }

    /// The number of attempts, assuming that the last one has ended.
    pub(crate) fn attempts(&self) -> u32 {
        self.failed_attempts.load(Ordering::Relaxed).saturating_add(1)
    }

    /// Returns an error if another process that shares the store has learned that the refresh token
    /// is invalid.
    pub(crate) fn known_dead(&self) -> Option<Error> {
        self.log.known_dead()
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    pub(crate) async fn may_fall_back(&self) -> bool {
        self.log.may_fall_back().await
    }

    pub(crate) fn fell_back(&self, error: &Error) {
        self.log.fell_back(error);
    }

    pub(crate) fn forget_refresh_token(&self) {
        self.log.forget_refresh_token();
    }
}

/// The source of the error that [`Refresher::revoke`] returns if several tokens could not be
/// revoked.
#[derive(Debug)]
pub(crate) struct Several(Vec<Error>);

impl Several {
    pub(crate) fn result(errors: impl IntoIterator<Item = Option<Error>>) -> Result<(), Error> {
        let mut errors: Vec<Error> = errors.into_iter().flatten().collect();
        match (errors.pop(), errors.is_empty()) {
            (None, _) => Ok(()),
            (Some(only), true) => Err(only),
            (Some(last), false) => {
                errors.push(last);
                Err(Error::new(errors[0].kind(), Self(errors)))
            }
        }
    }

    /// Splits the error of a revocation into the failures of the individual tokens.
    pub(crate) fn each(error: Error) -> Vec<Error> {
        let several = std::error::Error::source(&error).and_then(|source| source.downcast_ref());
        match several {
            Some(Self(errors)) => errors.clone(),
            None => vec![error],
        }
    }
}

impl fmt::Display for Several {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, error) in self.0.iter().enumerate() {
            f.write_str(if at == 0 { "" } else { "; " })?;
            error.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Several {}

/// The log of a [`RefreshContext`] without a session.
#[cfg(feature = "test-util")]
struct OutsideSession(Mutex<Tokens>);

#[cfg(feature = "test-util")]
#[async_trait]
impl RefreshLog for OutsideSession {
    fn tokens(&self) -> Tokens {
        lock(&self.0).clone()
    }

    fn retrying(&self, _: u32, _: Duration, _: Option<StatusCode>) {}

    async fn keep(&self, refresh_token: RefreshToken) {
        lock(&self.0).set_refresh(Some(refresh_token));
    }
}

/// The log of the fallback refresher: it has no refresh token but its own, and continues the
/// numbering of the attempts.
struct ForNext {
    log: Arc<dyn RefreshLog>,
    attempts: u32,
    kept: Mutex<Option<RefreshToken>>,
}

#[async_trait]
impl RefreshLog for ForNext {
    fn tokens(&self) -> Tokens {
        let mut tokens = self.log.tokens();
        tokens.set_refresh(lock(&self.kept).clone());
        tokens
    }

    fn retrying(&self, failed_attempt: u32, delay: Duration, status: Option<StatusCode>) {
        self.log.retrying(self.attempts.saturating_add(failed_attempt), delay, status);
    }

    async fn keep(&self, refresh_token: RefreshToken) {
        *lock(&self.kept) = Some(refresh_token.clone());
        self.log.keep(refresh_token).await;
    }

    async fn may_ask(&self) -> bool {
        self.log.may_ask().await
    }

    async fn may_fall_back(&self) -> bool {
        self.log.may_fall_back().await
    }

    fn fell_back(&self, error: &Error) {
        self.log.fell_back(error);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// A refresher that needs a refresh token.
    struct Picky;

    #[async_trait]
    impl Refresher for Picky {
        async fn refresh(&self, context: &RefreshContext) -> Result<Tokens, Error> {
            Ok(context.tokens())
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
        let context = RefreshContext::new(Arc::new(Quiet));
        assert_eq!(
            shared.refresh(&context).await.unwrap().access_token().unwrap().expose_secret(),
            "old"
        );
        assert_eq!(shared.check().unwrap_err().kind(), ErrorKind::InvalidConfig);
        assert!(!shared.can_refresh(&context.tokens()));
        assert!(shared.can_refresh(&Tokens::from_refresh_token("r").unwrap()));
        let minted = refresh_with(|old| async { Ok(old) });
        assert!(minted.can_refresh(&Tokens::empty()) && minted.check().is_ok());
        assert_eq!(
            minted.refresh(&context).await.unwrap().access_token().unwrap().expose_secret(),
            "old"
        );
    }

    #[test]
    fn attempts_are_counted_in_every_share() {
        let context = RefreshContext::new(Arc::new(Quiet));
        let share = context.share();
        assert_eq!(context.attempts(), 1);
        share.retrying(1, Duration::ZERO, None);
        assert_eq!(context.attempts(), 2);
        assert_eq!(share.attempts(), 2);
        assert_eq!(format!("{context:?}"), "RefreshContext { attempts: 2, .. }");
    }
}
