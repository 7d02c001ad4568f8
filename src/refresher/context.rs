//! A refresh in progress, as its refresher sees it, and what it reports to its session.

use std::{
    fmt,
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

/// A refresh in progress, as its [`Refresher`](crate::Refresher) sees it.
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
