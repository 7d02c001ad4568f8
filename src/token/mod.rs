//! Tokens: validated at the door, redacted in every text, wiped when the last copy goes.

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

/// An access token, a refresh token, or both, and when the access token ends.
///
/// The expiry is what was given with [`with_expires_in`](Self::with_expires_in) or
/// [`with_expires_at`](Self::with_expires_at), else the `exp` of an access token that is a JWT,
/// else unknown. Cloning shares the secrets.
#[derive(Clone, Debug, Default)]
pub struct Tokens {
    access: Option<AccessToken>,
    refresh: Option<RefreshToken>,
    expiry: Option<Expiry>,
    /// Refresh tokens of this login are known to rotate: each can be sent once.
    rotates: bool,
    /// Of the key that they are bound to.
    key_thumbprint: Option<Arc<str>>,
}

#[derive(Clone, Copy, Debug)]
struct Expiry {
    /// On the local clock: to be shown and stored.
    at: SystemTime,
    /// On the monotonic clock: `(received, end)`, when the lifetime was told from receipt on.
    monotonic: Option<(Instant, Instant)>,
}

/// When an access token was received and when it ends, on the monotonic clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lifetime {
    pub(crate) from: Instant,
    pub(crate) until: Instant,
}

/// How a token came in, which decides how a JWT's `exp` is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// Just issued by a server: its lifetime is `exp − iat`, whatever the local clock says.
    Issued,
    /// Handed over by the caller or a store, of unknown age: `exp` against the local clock.
    Handed,
}

impl Lifetime {
    /// The same life, begun that much earlier.
    pub(crate) fn moved_back(self, by: Duration, now: Instant) -> Self {
        // A clock may not reach back before its machine's start.
        let until = self.until.checked_sub(by).unwrap_or(now);
        let from = self.from.checked_sub(by).unwrap_or_else(|| self.from.min(until));
        Self { from, until }
    }
}

impl Tokens {
    /// An access token alone.
    ///
    /// # Errors
    /// [`InvalidToken`](crate::ErrorKind::InvalidToken), see [`AccessToken::new`].
    pub fn new(access: impl Into<String>) -> Result<Self, Error> {
        Ok(Self { access: Some(AccessToken::new(access)?), ..Self::default() })
    }

    /// No token at all: for a session whose [store](crate::SessionBuilder::store) or
    /// [`Refresher`](crate::Refresher) has them.
    pub fn empty() -> Self {
        Self::default()
    }

    /// A refresh token alone: the first request gets an access token with it.
    ///
    /// # Errors
    /// [`InvalidToken`](crate::ErrorKind::InvalidToken), see [`RefreshToken::new`].
    pub fn from_refresh_token(refresh: impl Into<String>) -> Result<Self, Error> {
        Self::empty().with_refresh_token(refresh)
    }

    /// Adds a refresh token, or replaces it.
    ///
    /// # Errors
    /// [`InvalidToken`](crate::ErrorKind::InvalidToken), see [`RefreshToken::new`].
    pub fn with_refresh_token(mut self, refresh: impl Into<String>) -> Result<Self, Error> {
        self.refresh = Some(RefreshToken::new(refresh)?);
        Ok(self)
    }

    /// The access token ends this long from now, on the monotonic clock. Zero is expired. A time
    /// beyond what the clock can hold counts as unknown.
    pub fn with_expires_in(mut self, remaining: Duration) -> Self {
        let now = Now::read();
        let from = now.monotonic;
        self.expiry = from
            .checked_add(remaining)
            .zip(now.wall.checked_add(remaining))
            .map(|(until, at)| Expiry { at, monotonic: Some((from, until)) });
        self
    }

    /// The access token ends at this time of the local clock.
    pub fn with_expires_at(mut self, at: SystemTime) -> Self {
        self.expiry = Some(Expiry { at, monotonic: None });
        self
    }

    /// The access token ends at its own `exp` (RFC 7519 §4.1.4), held against the local clock.
    ///
    /// For a refresher that brings tokens of unknown age, e.g. from a file. Without this, the
    /// lifetime of a token that a refresher brings is `exp − iat`, counted from its receipt. An
    /// expiry that was given with [`with_expires_in`](Self::with_expires_in) or
    /// [`with_expires_at`](Self::with_expires_at) wins. Without an `exp` nothing changes.
    pub fn with_expiry_from_claims(mut self) -> Self {
        if self.expiry.is_none() {
            let at = self.access.as_ref().and_then(claims::expires_at);
            self.expiry = at.map(|at| Expiry { at, monotonic: None });
        }
        self
    }

    /// Says that the tokens are bound to the key with this SHA-256 thumbprint (RFC 7638), as `jkt`
    /// in the `cnf` of RFC 7800 does (RFC 9449 §6.1). Default: none.
    ///
    /// For a [`TokenStore`](crate::TokenStore) that keeps the thumbprint beside the tokens. A session
    /// saves the thumbprint of its own key, and neither adopts nor overwrites a stored login that
    /// is bound to another one.
    pub fn with_key_thumbprint(mut self, thumbprint: impl Into<String>) -> Self {
        self.key_thumbprint = Some(thumbprint.into().into());
        self
    }

    /// The thumbprint of the key that the tokens are bound to; `None` if they are bound to none, or
    /// it is not known.
    pub fn key_thumbprint(&self) -> Option<&str> {
        self.key_thumbprint.as_deref()
    }

    /// The access token, if there is one.
    pub fn access_token(&self) -> Option<&AccessToken> {
        self.access.as_ref()
    }

    /// The refresh token, if there is one.
    pub fn refresh_token(&self) -> Option<&RefreshToken> {
        self.refresh.as_ref()
    }

    /// When the access token ends, on the local clock; `None` if it is not known.
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

    /// The same tokens with an expiry that no longer depends on how they came: `None` where it is
    /// unknown.
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

    /// Fixes the expiry to the one that was worked out on arrival.
    pub(crate) fn with_lifetime(mut self, lifetime: Option<Lifetime>) -> Self {
        let now = Now::read();
        self.expiry = lifetime.and_then(|Lifetime { from, until }| {
            now.on_wall(until).map(|at| Expiry { at, monotonic: Some((from, until)) })
        });
        self
    }

    /// What is here and not there.
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

    pub(crate) fn rotates(&self) -> bool {
        self.rotates
    }

    pub(crate) fn with_rotates(mut self, rotates: bool) -> Self {
        self.rotates |= rotates;
        self
    }

    /// The same access and refresh token, whatever is known of their expiry.
    pub(crate) fn same_as(&self, other: &Self) -> bool {
        self.access == other.access && self.refresh == other.refresh
    }
}

/// A time of the local clock on the monotonic one. What is past ends now.
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
        // Within what the test itself takes.
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
        // Past what either clock can hold.
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
