//! How anything can bring new tokens.

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
    async fn refresh(&self, context: &RefreshContext) -> Result<Tokens, Error>;

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

    /// Whether there is something to bring, for a source that is cheap to look at, such as a file.
    /// Default: yes.
    ///
    /// A session asks before each refresh, with the tokens that it holds. With `false` there is no
    /// refresh and no event. If the held token was rejected or has expired, those who wait get
    /// [`Unavailable`](crate::ErrorKind::Unavailable).
    ///
    /// # Errors
    /// An error is a refresh that failed:
    /// [`Event::RefreshFailed`](crate::Event::RefreshFailed), without an
    /// [`Event::RefreshStarted`](crate::Event::RefreshStarted).
    async fn has_news(&self, held: &Tokens) -> Result<bool, Error> {
        let _ = held;
        Ok(true)
    }

    /// Tells the issuer that these tokens are no longer in use (RFC 7009). Default: does nothing.
    ///
    /// [`Session::clear`](crate::Session::clear) calls it after the session and its store have
    /// forgotten the tokens: once for what the session held, and once more for what the store held
    /// of the same login, where these are other tokens. All calls together are bounded by one
    /// [`store_timeout`](crate::SessionBuilder::store_timeout).
    ///
    /// # Errors
    /// Becomes an [`Event::RevocationFailed`](crate::Event::RevocationFailed). The logout stands.
    async fn revoke(&self, tokens: &Tokens) -> Result<(), Error> {
        let _ = tokens;
        Ok(())
    }

    /// Whether it is worth while to wait for tokens that [`revoke`](Self::revoke) can be called
    /// with. Default: no.
    ///
    /// With `true`, [`Session::clear`](crate::Session::clear) looks into the store for tokens that
    /// another process has stored since, and gives a refresh in progress one
    /// [`store_timeout`](crate::SessionBuilder::store_timeout) to end, so that what it brings is
    /// revoked. With `false`, a refresh in progress is given up at once.
    fn can_revoke(&self) -> bool {
        false
    }

    /// The longest cool-down after a failed refresh, however long
    /// [`SessionBuilder::cooldown`](crate::SessionBuilder::cooldown) is. Default: no bound.
    fn longest_cooldown(&self) -> Option<Duration> {
        None
    }
}

/// What points to a refresher is one.
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

            fn longest_cooldown(&self) -> Option<Duration> {
                (**self).longest_cooldown()
            }
        }
    };
}

forward!(Arc);
forward!(Box);

/// A refresher from a closure, for tokens that are minted or asked of another service. It is given
/// the tokens to be renewed. For tokens in a file see [`FileRefresh`](crate::FileRefresh).
///
/// ```
/// use std::time::Duration;
///
/// use reqwest_reauth::{Error, Session, Tokens, refresh_with};
///
/// # async fn mint() -> Result<String, Error> { Ok("signed".to_owned()) }
/// # fn main() -> Result<(), Error> {
/// let session = Session::builder(Tokens::empty())
///     .origin("https://api.example.com")
///     .refresher(refresh_with(|_held| async {
///         Ok(Tokens::new(mint().await?)?.with_expires_in(Duration::from_secs(600)))
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
    kept: Arc<Mutex<Option<RefreshToken>>>,
    /// When whoever hands the refresh on wants it to end.
    deadline: Option<Instant>,
    #[cfg(feature = "dpop")]
    dpop: Option<Arc<Dpop>>,
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

    /// Whether the token endpoint may be asked now, with what [`tokens`](Self::tokens) has then.
    async fn may_ask(&self) -> bool {
        true
    }

    /// The login seems to be over. Whether the store has nothing newer either, so that another
    /// refresher may be asked.
    async fn may_fall_back(&self) -> bool {
        true
    }

    /// Another refresher is asked from now on, because of this error.
    fn fell_back(&self, error: &Error) {
        let _ = error;
    }

    /// The session's side of RFC 9449, if its tokens are bound to a key.
    #[cfg(feature = "dpop")]
    fn dpop(&self) -> Option<Arc<Dpop>> {
        None
    }

    /// The refresh token that was asked with is dead: what the refresh brings takes its place, also
    /// without another refresh token.
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

    /// What a refresher is handed, outside a session: for testing a refresher.
    ///
    /// [`retrying`](Self::retrying) is counted and told to nobody; [`keep`](Self::keep) replaces
    /// the refresh token of [`tokens`](Self::tokens).
    ///
    /// ```
    /// use reqwest_reauth::{RefreshContext, Refresher, Tokens, refresh_with};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), reqwest_reauth::Error> {
    /// let refresher = refresh_with(|_held| async { Tokens::new("new") });
    /// let context = RefreshContext::for_test(Tokens::new("old")?);
    /// let brought = refresher.refresh(&context).await?;
    /// assert_eq!(brought.access_token().map(|token| token.expose_secret()), Some("new"));
    /// assert!(context.kept().is_none());
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "test-util")]
    #[cfg_attr(docsrs, doc(cfg(feature = "test-util")))]
    pub fn for_test(tokens: Tokens) -> Self {
        Self::new(Arc::new(OutsideSession(Mutex::new(tokens))))
    }

    /// The refresh token that the refresher [kept](Self::keep) last, if any.
    #[cfg(feature = "test-util")]
    #[cfg_attr(docsrs, doc(cfg(feature = "test-util")))]
    pub fn kept(&self) -> Option<RefreshToken> {
        lock(&self.kept).clone()
    }

    /// The same refresh once more, for a refresher whose parts outlive a borrow.
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

    /// The same refresh for the refresher that is asked next, after `attempts` attempts of the one
    /// before. It has no refresh token: a refresh token goes only to the endpoint that issued it.
    pub(crate) fn for_next(&self, attempts: u32, deadline: Option<Instant>) -> Self {
        if attempts > 0 {
            // The last attempt of the one before has failed, too.
            self.failed_attempts.fetch_add(1, Ordering::Relaxed);
        }
        let log = ForNext { log: Arc::clone(&self.log), attempts, kept: Mutex::default() };
        Self { log: Arc::new(log), deadline, ..self.share() }
    }

    /// The key that the session's tokens are bound to
    /// ([`Placement::dpop`](crate::Placement::dpop)), for a refresher that signs its own calls.
    /// Feature `dpop`.
    #[cfg(feature = "dpop")]
    #[cfg_attr(docsrs, doc(cfg(feature = "dpop")))]
    pub fn dpop_key(&self) -> Option<&crate::dpop::DpopKey> {
        self.dpop.as_ref().map(|dpop| dpop.key())
    }

    #[cfg(feature = "dpop")]
    pub(crate) fn dpop(&self) -> Option<&Arc<Dpop>> {
        self.dpop.as_ref()
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
    /// refresh. A server that rotates refresh tokens has already spent the old one when an unusable
    /// access token comes beside the new one.
    pub async fn keep(&self, refresh_token: RefreshToken) {
        *lock(&self.kept) = Some(refresh_token.clone());
        self.log.keep(refresh_token).await;
    }

    /// Makes sure that the session still has its store's lock. To be awaited before each attempt,
    /// before [`tokens`](Self::tokens) is read for it: where the lock may have lapsed, the session
    /// takes it again and looks into the store, and may then have another refresh token.
    ///
    /// `false` if the token endpoint is not to be asked any more, e.g. because another process has
    /// stored new tokens. Return any error then: the session knows better.
    pub async fn may_ask(&self) -> bool {
        self.log.may_ask().await
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

/// Several tokens could not be revoked: the source of the error that
/// [`Refresher::revoke`] returns.
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

    /// Each failure of a revocation.
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

/// The end of a [`RefreshContext`] where there is no session.
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

/// What the refresher that is asked next sees: no refresh token but its own, and attempts that are
/// numbered on.
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
        assert_eq!(flight.attempts(), 2);
        assert_eq!(share.attempts(), 2);
        assert_eq!(format!("{flight:?}"), "RefreshContext { attempts: 2, .. }");
    }
}
