//! Token types: validated on construction, redacted in `Debug`, wiped on drop.

mod claims;
mod secret;

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::time::Instant;

pub use secret::{AccessToken, RefreshToken};
pub(crate) use secret::{Trimmed, trim_header, trim_token};

use crate::{
    error::Error,
    time::{Now, wall},
};

/// An access token, a refresh token, or both, and the expiry of the access token.
///
/// The expiry comes from [`with_expires_in`](Self::with_expires_in) or
/// [`with_expires_at`](Self::with_expires_at). If neither was called, it is the `exp` of an access
/// token that is a JWT, and otherwise unknown. Clones share the secrets.
///
/// ```
/// use std::time::Duration;
///
/// use reqwest_reauth::{Error, Tokens};
///
/// fn main() -> Result<(), Error> {
///     let tokens = Tokens::new("access-token")?
///         .with_refresh_token("refresh-token")?
///         .with_expires_in(Duration::from_secs(3600));
///     assert!(tokens.expires_at().is_some());
///     Ok(())
/// }
/// ```
#[derive(Clone, Debug, Default)]
pub struct Tokens {
    access: Option<AccessToken>,
    refresh: Option<RefreshToken>,
    expiry: Option<Expiry>,
    /// The refresh tokens of this login are known to rotate, so each can be sent only once.
    rotates: bool,
    /// When the token endpoint issued the access token, on the wall clock of the process that
    /// received it.
    issued_at: Option<SystemTime>,
    /// The thumbprint of the key that the tokens are bound to.
    key_thumbprint: Option<Arc<str>>,
}

#[derive(Clone, Copy, Debug)]
struct Expiry {
    /// The expiry on the local clock, for display and storage.
    at: SystemTime,
    /// `(received, end)` on the monotonic clock, if the lifetime was given relative to receipt.
    monotonic: Option<(Instant, Instant)>,
}

/// When an access token was received and when it expires, on the monotonic clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lifetime {
    pub(crate) from: Instant,
    pub(crate) until: Instant,
}

/// How a token arrived, which decides how a JWT's `exp` is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// Just issued by a server: the lifetime is `exp − iat`, whatever the local clock says.
    Issued,
    /// Handed over by the caller or a store, and of unknown age: `exp` is compared with the local
    /// clock.
    Handed,
}

impl Lifetime {
    /// The same lifetime, shifted back by this much.
    pub(crate) fn moved_back(self, by: Duration, now: Instant) -> Self {
        // An `Instant` may be unable to represent times before boot.
        let until = self.until.checked_sub(by).unwrap_or(now);
        let from = self.from.checked_sub(by).unwrap_or_else(|| self.from.min(until));
        Self { from, until }
    }
}

impl Tokens {
    /// Creates tokens with an access token only.
    ///
    /// # Errors
    /// [`InvalidToken`](crate::ErrorKind::InvalidToken), as for [`AccessToken::new`].
    pub fn new(access: impl Into<String>) -> Result<Self, Error> {
        Ok(Self { access: Some(AccessToken::new(access)?), ..Self::default() })
    }

    /// Creates tokens without any token, for a session whose [store](crate::SessionBuilder::store)
    /// or [`Refresher`](crate::Refresher) provides them.
    pub fn empty() -> Self {
        Self::default()
    }

    /// Creates tokens with a refresh token only. The first request then obtains an access token.
    ///
    /// # Errors
    /// [`InvalidToken`](crate::ErrorKind::InvalidToken), as for [`RefreshToken::new`].
    pub fn from_refresh_token(refresh: impl Into<String>) -> Result<Self, Error> {
        Self::empty().with_refresh_token(refresh)
    }

    /// Adds or replaces the refresh token.
    ///
    /// # Errors
    /// [`InvalidToken`](crate::ErrorKind::InvalidToken), as for [`RefreshToken::new`].
    pub fn with_refresh_token(mut self, refresh: impl Into<String>) -> Result<Self, Error> {
        self.refresh = Some(RefreshToken::new(refresh)?);
        Ok(self)
    }

    /// Sets the remaining lifetime of the access token, counted from now on the monotonic clock.
    /// Zero means expired. A lifetime beyond the range of the clock counts as unknown.
    pub fn with_expires_in(mut self, remaining: Duration) -> Self {
        let now = Now::read();
        let from = now.monotonic;
        self.expiry = from
            .checked_add(remaining)
            .zip(now.wall.checked_add(remaining))
            .map(|(until, at)| Expiry { at, monotonic: Some((from, until)) });
        self
    }

    /// Sets the time at which the access token expires, on the local clock.
    pub fn with_expires_at(mut self, at: SystemTime) -> Self {
        self.expiry = Some(Expiry { at, monotonic: None });
        self
    }

    /// Sets the expiry to the `exp` of the access token (RFC 7519 §4.1.4), compared with the local
    /// clock.
    ///
    /// This is for a refresher that obtains tokens of unknown age, for example from a file. By
    /// default, the lifetime of a token from a refresher is `exp − iat`, counted from its receipt.
    /// An expiry from [`with_expires_in`](Self::with_expires_in) or
    /// [`with_expires_at`](Self::with_expires_at) takes precedence. Without an `exp` nothing
    /// changes.
    pub fn with_expiry_from_claims(mut self) -> Self {
        if self.expiry.is_none() {
            let at = self.access.as_ref().and_then(claims::expires_at);
            self.expiry = at.map(|at| Expiry { at, monotonic: None });
        }
        self
    }

    /// Marks the tokens as bound to the key with this SHA-256 thumbprint (RFC 7638), like `jkt` in
    /// a `cnf` claim (RFC 7800, RFC 9449 §6.1). Default: not bound.
    ///
    /// This is for a [`TokenStore`](crate::TokenStore) that stores the thumbprint beside the
    /// tokens. A session saves the thumbprint of its own key. It neither adopts nor overwrites a
    /// stored login that is bound to another key.
    pub fn with_key_thumbprint(mut self, thumbprint: impl Into<String>) -> Self {
        self.key_thumbprint = Some(thumbprint.into().into());
        self
    }

    /// Returns the thumbprint of the key that the tokens are bound to, or `None` if they are not
    /// bound or the key is not known.
    pub fn key_thumbprint(&self) -> Option<&str> {
        self.key_thumbprint.as_deref()
    }

    /// Returns the access token, if there is one.
    pub fn access_token(&self) -> Option<&AccessToken> {
        self.access.as_ref()
    }

    /// Returns the refresh token, if there is one.
    pub fn refresh_token(&self) -> Option<&RefreshToken> {
        self.refresh.as_ref()
    }

    /// Returns when the access token expires, on the local clock, or `None` if that is not known.
    pub fn expires_at(&self) -> Option<SystemTime> {
        match self.expiry {
            Some(expiry) => Some(expiry.at),
            None => self.access.as_ref().and_then(claims::expires_at),
        }
    }

    pub(crate) fn of(access: Option<AccessToken>, refresh: Option<RefreshToken>) -> Self {
        Self { access, refresh, ..Self::default() }
    }

    pub(crate) fn set_refresh(&mut self, refresh: Option<RefreshToken>) {
        self.refresh = refresh;
    }

    /// Resolves the expiry for this kind of arrival. Returns `None` if the expiry is unknown.
    pub(crate) fn lifetime(&self, arrival: Arrival) -> Option<Lifetime> {
        let both = Now::read();
        let now = both.monotonic;
        match (self.expiry, arrival) {
            (Some(Expiry { at, monotonic: Some((from, until)) }), _) => {
                Some(Lifetime { from, until }.moved_back(both.missed(until, at), now))
            }
            (Some(Expiry { at, .. }), _) => local(now, at),
            (None, Arrival::Handed) => {
                self.access.as_ref().and_then(claims::expires_at).and_then(|at| local(now, at))
            }
            (None, Arrival::Issued) => {
                let span = self.access.as_ref().and_then(claims::lifetime)?;
                Some(Lifetime { from: now, until: now.checked_add(span)? })
            }
        }
    }

    /// Sets the expiry to the one that was resolved on arrival.
    pub(crate) fn with_lifetime(mut self, lifetime: Option<Lifetime>) -> Self {
        let now = Now::read();
        self.expiry = lifetime.and_then(|Lifetime { from, until }| {
            now.on_wall(until).map(|at| Expiry { at, monotonic: Some((from, until)) })
        });
        self
    }

    /// The tokens that `other` does not have.
    pub(crate) fn without(&self, other: &Self) -> Self {
        Self::of(
            self.access.clone().filter(|access| other.access.as_ref() != Some(access)),
            self.refresh.clone().filter(|refresh| other.refresh.as_ref() != Some(refresh)),
        )
    }

    pub(crate) fn bound_to(mut self, thumbprint: Option<&str>) -> Self {
        self.key_thumbprint = thumbprint.map(Arc::from);
        self
    }

    pub(crate) fn issued_at(&self) -> Option<SystemTime> {
        self.issued_at
    }

    pub(crate) fn with_issued_at(mut self, at: Option<SystemTime>) -> Self {
        self.issued_at = at;
        self
    }

    /// How much of this span is left since the access token was issued, if any. A time in the
    /// future comes from the difference between two machines' clocks and counts as now.
    pub(crate) fn is_issued_within(&self, span: Duration) -> Option<Duration> {
        let age = wall().duration_since(self.issued_at?).unwrap_or_default();
        span.checked_sub(age).filter(|left| !left.is_zero())
    }

    pub(crate) fn rotates(&self) -> bool {
        self.rotates
    }

    pub(crate) fn with_rotates(mut self, rotates: bool) -> Self {
        self.rotates |= rotates;
        self
    }

    /// Whether access and refresh token are equal, regardless of the expiry.
    pub(crate) fn same_as(&self, other: &Self) -> bool {
        self.access == other.access && self.refresh == other.refresh
    }
}

/// Converts a time of the local clock to the monotonic clock. A past time becomes now.
fn local(now: Instant, at: SystemTime) -> Option<Lifetime> {
    let left = at.duration_since(wall()).unwrap_or_default();
    Some(Lifetime { from: now, until: now.checked_add(left)? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::suspend;

    const HOUR: Duration = Duration::from_secs(3600);

    fn access(tokens: &Tokens) -> Option<&str> {
        tokens.access_token().map(AccessToken::expose_secret)
    }

    fn refresh(tokens: &Tokens) -> Option<&str> {
        tokens.refresh_token().map(RefreshToken::expose_secret)
    }

    #[test]
    fn each_part_is_there_as_it_was_given() {
        let none = Tokens::empty();
        assert_eq!(access(&none), None);
        assert_eq!(refresh(&none), None);
        assert_eq!(none.expires_at(), None);
        let alone = Tokens::from_refresh_token("r").unwrap();
        assert_eq!(access(&alone), None);
        assert_eq!(refresh(&alone), Some("r"));
        let mut both = Tokens::new("a")
            .unwrap()
            .with_refresh_token("r")
            .unwrap()
            .with_refresh_token("s")
            .unwrap();
        assert_eq!(access(&both), Some("a"));
        assert_eq!(refresh(&both), Some("s"));
        both.set_refresh(None);
        assert_eq!(access(&both), Some("a"));
        assert_eq!(refresh(&both), None);
        let of = Tokens::of(AccessToken::new("a").ok(), RefreshToken::new("r").ok());
        assert_eq!(access(&of), Some("a"));
        assert_eq!(refresh(&of), Some("r"));
        assert_eq!(of.expires_at(), None);
    }

    #[test]
    fn tokens_are_the_same_if_both_of_them_are() {
        let pair = |a: &str, r: &str| Tokens::new(a).unwrap().with_refresh_token(r).unwrap();
        let one = pair("a", "r").with_expires_in(HOUR);
        for (other, same) in [
            (one.clone(), true),
            (pair("a", "r"), true),
            (pair("a", "s"), false),
            (pair("b", "r"), false),
        ] {
            assert_eq!(
                one.same_as(&other),
                same,
                "{} {}",
                access(&other).unwrap(),
                refresh(&other).unwrap()
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_lifetime_counts_from_receipt_or_exp() {
        let start = Instant::now();
        let token = || Tokens::new("opaque").unwrap();
        let relative = token().with_expires_in(HOUR);
        let wall = SystemTime::now();
        // Within the duration of the test itself.
        let about = |at: SystemTime, span| at > wall + span - HOUR / 60 && at <= wall + span;
        assert!(about(relative.expires_at().unwrap(), HOUR));
        tokio::time::advance(HOUR / 2).await;
        for arrival in [Arrival::Issued, Arrival::Handed] {
            assert_eq!(
                relative.lifetime(arrival),
                Some(Lifetime { from: start, until: start + HOUR }),
                "{arrival:?}"
            );
            assert_eq!(token().lifetime(arrival), None, "{arrival:?}");
            let now = Instant::now();
            let past = token().with_expires_at(wall - HOUR).lifetime(arrival);
            assert_eq!(past, Some(Lifetime { from: now, until: now }), "{arrival:?}");
            let absolute = token().with_expires_at(wall + HOUR);
            assert_eq!(absolute.expires_at(), Some(wall + HOUR));
            let Lifetime { from, until } = absolute.lifetime(arrival).unwrap();
            assert!(
                from == now && until <= now + HOUR && until > now + HOUR - HOUR / 60,
                "{arrival:?}"
            );
        }
        // Beyond the range of either clock.
        assert_eq!(token().with_expires_in(Duration::MAX).lifetime(Arrival::Handed), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_suspend_counts_for_a_lifetime() {
        let tokens = Tokens::new("opaque").unwrap().with_expires_in(HOUR);
        let (start, told) = (Instant::now(), tokens.expires_at());
        suspend(HOUR * 2);
        let lifetime = tokens.lifetime(Arrival::Handed).unwrap();
        let ended = start - HOUR;
        assert!(lifetime.until <= ended && lifetime.until > ended - HOUR / 60, "{lifetime:?}");
        assert_eq!(lifetime.until - lifetime.from, HOUR);
        assert_eq!(tokens.expires_at(), told);
    }

    #[tokio::test(start_paused = true)]
    async fn a_fixed_lifetime_keeps_both_clocks_together() {
        tokio::time::advance(HOUR).await;
        let (now, wall) = (Instant::now(), SystemTime::now());
        for (until, at) in [(now + HOUR, wall + HOUR), (now - HOUR / 2, wall - HOUR / 2)] {
            let lifetime = Lifetime { from: now - HOUR, until };
            let fixed = Tokens::new("a").unwrap().with_lifetime(Some(lifetime));
            assert_eq!(fixed.lifetime(Arrival::Issued), Some(lifetime));
            let told = fixed.expires_at().unwrap();
            assert!(told >= at && told < at + HOUR / 60, "{told:?}");
        }
        let unknown = Tokens::new("a").unwrap().with_expires_in(HOUR).with_lifetime(None);
        assert_eq!(unknown.expires_at(), None);
        assert_eq!(unknown.lifetime(Arrival::Handed), None);
        assert_eq!(access(&unknown), Some("a"));
    }
}
