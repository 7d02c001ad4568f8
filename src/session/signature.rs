//! What a request remembers of the state that it was signed with.

use std::time::SystemTime;

use tokio::time::Instant;

use crate::time::Now;

/// What a request remembers of the [`State`](super::State) that it was signed with, to judge its
/// response. It has only numbers: if requests kept the state itself, all requests of a session
/// would write to the same reference counter.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Signature {
    pub(super) generation: u64,
    pub(super) logouts: u64,
    pub(super) accounts: u64,
    /// The token's [fingerprint](crate::AccessToken::fingerprint).
    pub(super) token: u64,
    /// When the token expires, by either clock.
    pub(super) until: Option<Instant>,
    pub(super) ends: Option<SystemTime>,
    pub(super) on_probation: bool,
}

impl Signature {
    /// The generation of the token that was sent.
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    /// Whether the token endpoint had issued the token and no response had accepted it yet.
    #[inline]
    pub(crate) fn is_on_probation(&self) -> bool {
        self.on_probation
    }

    /// Whether the token has expired, by either clock. They are read only if its expiry is known.
    pub(crate) fn has_expired(&self, now: impl FnOnce() -> Now) -> bool {
        let Some(until) = self.until else { return false };
        let now = now();
        let missed = self.ends.map(|ends| now.missed(until, ends)).unwrap_or_default();
        until.checked_sub(missed).is_none_or(|until| until <= now.monotonic)
    }
}
