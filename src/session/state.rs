//! What a session knows, and how that changes: pure transitions without I/O and without await.
//!
//! A published [`State`] is immutable. Requests read it with one atomic load, and writers publish a
//! changed copy.

use std::{sync::Arc, time::Duration};

use http::{HeaderValue, StatusCode};
use tokio::time::Instant;

use super::{expiry::OnWall, refresh::InFlight, signature::Signature};
use crate::{
    error::{Error, ErrorKind},
    session_state::SessionState,
    time::{Now, wall},
    token::{AccessToken, Lifetime, RefreshToken, Tokens},
};

#[derive(Clone)]
#[allow(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub(crate) struct State {
    /// Increases each time the access token changes.
    pub(super) generation: u64,
    /// Increases with each `replace_tokens` and `clear`. The result of a refresh of an earlier
    /// login is discarded.
    pub(super) login: u64,
    /// Increases with each `clear`. A request is not replayed across a logout.
    pub(super) logouts: u64,
    /// Increases with each `replace_tokens` that changes the refresh token, and with each `clear`.
    pub(super) accounts: u64,
    pub(super) access: Option<AccessToken>,
    /// The header with the access token, set when the state is published.
    pub(super) header: Option<HeaderValue>,
    pub(super) refresh: Option<RefreshToken>,
    pub(super) lifetime: Option<Lifetime>,
    /// When the background refresh starts.
    pub(super) due: Option<Instant>,
    /// The expiry and the due time on the wall clock.
    pub(super) wall: Option<OnWall>,
    /// Whether the session can refresh.
    pub(super) renewable: bool,
    /// The API rejected the current generation.
    pub(super) rejected: bool,
    /// The API rejected the current generation, whether or not a refresh followed. No credential is
    /// returned for it.
    pub(super) known_rejected: bool,
    /// The user of a credential reported the rejection too, so requests through the chain refresh
    /// the token first.
    pub(super) renew_first: bool,
    /// Until then, a token that the token endpoint issued, and that no response has accepted yet,
    /// is not refreshed again.
    pub(super) probation: Option<Instant>,
    /// The end of the cool-down after the token endpoint issued a token. Until then, a token that
    /// arrived expired, from there or from a response header, is not refreshed for that reason.
    pub(super) issued_pause: Option<Instant>,
    /// The end of the cool-down after an aborted refresh. No background refresh is started before
    /// then.
    pub(super) broken_pause: Option<Instant>,
    /// Until then, a rejection starts no refresh, because a token that was just issued was rejected
    /// in a replay too.
    pub(super) replay_pause: Option<Instant>,
    /// The number of refreshes that failed with `ClientRejected` or `BadResponse` since the last
    /// grant.
    pub(super) failures: u32,
    /// The refresh token of a call whose response was lost. It may be spent.
    pub(super) unanswered: Option<RefreshToken>,
    /// `clear` ended the login, so a stored login is not adopted.
    pub(super) cleared: bool,
    pub(super) phase: Phase,
    pub(super) in_flight: Option<Arc<InFlight>>,
}

#[derive(Clone)]
pub(super) enum Phase {
    Open,
    LoginRequired(Error),
    CoolingDown { until: Instant, cause: Error },
    Closed,
}

/// What happened to the token of a request since it was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Since {
    /// The session still holds it.
    Same,
    /// The session now holds another token.
    Replaced,
    /// The session was cleared or, for a 403, has another login. The response concerns the old
    /// login and is returned to the caller.
    OtherLogin,
}

/// The result of a capture.
#[derive(Debug, PartialEq)]
pub(crate) enum Captured {
    Adopted { generation: u64 },
    Unchanged,
    Superseded,
}

impl State {
    pub(super) fn new(tokens: &Tokens, lifetime: Option<Lifetime>, due: Option<Instant>) -> Self {
        Self {
            generation: 1,
            login: 0,
            logouts: 0,
            accounts: 0,
            access: tokens.access_token().cloned(),
            header: None,
            refresh: tokens.refresh_token().cloned(),
            lifetime,
            due,
            wall: on_wall(lifetime, due),
            renewable: false,
            rejected: false,
            known_rejected: false,
            renew_first: false,
            probation: None,
            issued_pause: None,
            broken_pause: None,
            replay_pause: None,
            failures: 0,
            unanswered: None,
            cleared: false,
            phase: Phase::Open,
            in_flight: None,
        }
    }

    // ---- what a request reads

    /// Whether a request can be sent without further checks, which is almost always so. `now` is
    /// called only if time matters.
    #[inline]
    pub(crate) fn is_quiet(&self, now: impl FnOnce() -> Instant) -> bool {
        if !matches!(self.phase, Phase::Open)
            || self.access.is_none()
            || self.in_flight.is_some()
            || self.broken_pause.is_some()
        {
            return false;
        }
        match self.due {
            Some(due) if self.renewable => {
                now() < due && self.wall.is_none_or(|on_wall| wall() < on_wall.due)
            }
            _ => true,
        }
    }

    /// The header that [`Authorize`](crate::Authorize) sets.
    #[inline]
    pub(crate) fn header_to_send(&self) -> Result<&HeaderValue, Error> {
        self.token_to_send().map(|token| self.header.as_ref().unwrap_or_else(|| token.header()))
    }

    /// The token that [`Authorize`](crate::Authorize) sends.
    #[inline]
    pub(crate) fn token_to_send(&self) -> Result<&AccessToken, Error> {
        match (&self.phase, &self.access) {
            (Phase::Closed, _) => Err(Error::of(ErrorKind::Closed)),
            (_, Some(access)) => Ok(access),
            (Phase::LoginRequired(cause), None) => Err(cause.clone()),
            (Phase::CoolingDown { cause, .. }, None) if cause.nothing_to_ask_with() => {
                Err(cause.clone())
            }
            (_, None) => Err(no_token()),
        }
    }

    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    /// Whether the token endpoint issued the token and no response has accepted it yet.
    pub(crate) fn is_on_probation(&self) -> bool {
        self.probation.is_some()
    }

    /// What a request that is signed with this state's token remembers of the state.
    #[inline(always)]
    #[allow(clippy::inline_always, reason = "its fields are then moved once")]
    pub(crate) fn signature(&self) -> Signature {
        Signature {
            generation: self.generation,
            logouts: self.logouts,
            accounts: self.accounts,
            token: self.access.as_ref().map_or(0, AccessToken::fingerprint),
            until: self.lifetime.map(|lifetime| lifetime.until),
            ends: self.wall.map(|on_wall| on_wall.ends),
            on_probation: self.is_on_probation(),
        }
    }

    /// Whether the current token has this generation and was issued less than a cool-down ago.
    pub(super) fn is_fresh(&self, generation: u64, now: Instant) -> bool {
        self.generation == generation && self.issued_pause.is_some_and(|until| now < until)
    }

    /// Whether a request that was rejected with `sent` can be replayed with a newer token.
    pub(crate) fn has_newer_token_than(&self, sent: &Signature) -> bool {
        self.generation != sent.generation
            && self.logouts == sent.logouts
            && self.access.as_ref().is_some_and(|token| token.fingerprint() != sent.token)
    }

    /// What has happened to the token of a response with this status.
    pub(crate) fn since(&self, sent: &Signature, status: StatusCode) -> Since {
        let is_other_account = self.accounts != sent.accounts && status == StatusCode::FORBIDDEN;
        if self.logouts != sent.logouts || is_other_account {
            Since::OtherLogin
        } else if self.has_newer_token_than(sent) {
            Since::Replaced
        } else {
            Since::Same
        }
    }

    pub(crate) fn is_expired(&self, now: Instant) -> bool {
        self.lifetime.is_some_and(|lifetime| lifetime.until <= now)
    }

    /// The token's lifetime, moved back by the time that the monotonic clock has missed.
    pub(crate) fn lifetime_at(&self, now: Now) -> Option<Lifetime> {
        let missed = self.missed(now);
        self.lifetime.map(|lifetime| lifetime.moved_back(missed, now.monotonic))
    }

    /// How long the machine was suspended since the token arrived, as far as this state has not
    /// been adjusted yet.
    pub(super) fn missed(&self, now: Now) -> Duration {
        match (self.lifetime, self.wall) {
            (Some(lifetime), Some(wall)) => now.missed(lifetime.until, wall.ends),
            _ => Duration::ZERO,
        }
    }

    /// Whether the state already records this rejection, if there is one.
    pub(super) fn has_recorded(&self, rejected: Option<u64>) -> bool {
        rejected
            .is_none_or(|sent| self.rejected && (self.known_rejected || self.generation != sent))
    }

    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.due.is_some_and(|due| due <= now)
    }

    /// The state for [`Session::state`](super::Session::state). It is computed on each call,
    /// because a cool-down ends without a transition.
    pub(super) fn public(&self, now: Instant) -> SessionState {
        match &self.phase {
            Phase::Closed => SessionState::Closed,
            _ if self.in_flight.is_some() => SessionState::Refreshing,
            Phase::LoginRequired(_) => SessionState::LoginRequired,
            Phase::CoolingDown { until, .. } if now < *until => SessionState::CoolingDown,
            // Only the API or `replace_tokens` can provide another token.
            _ if !self.renewable && (self.access.is_none() || self.is_expired(now)) => {
                SessionState::LoginRequired
            }
            _ => SessionState::Active,
        }
    }

    /// Whether a login that another process has stored may replace the ended one.
    pub(super) fn may_look_for_login(&self) -> bool {
        matches!(self.phase, Phase::LoginRequired(_)) && !self.cleared
    }

    /// Whether the state has any token.
    pub(super) fn has_tokens(&self) -> bool {
        self.access.is_some() || self.refresh.is_some()
    }

    pub(super) fn tokens(&self) -> Tokens {
        let lifetime = self.lifetime_at(Now::read());
        Tokens::of(self.access.clone(), self.refresh.clone()).with_lifetime(lifetime)
    }

    // ---- transitions

    /// Adopts a token from the response to a request that was sent with generation `sent`. A late
    /// response never undoes a newer token.
    pub(super) fn capture(
        &mut self,
        sent: u64,
        token: &AccessToken,
        lifetime: Option<Lifetime>,
        due: Option<Instant>,
    ) -> Captured {
        if self.access.as_ref() == Some(token) {
            return Captured::Unchanged;
        }
        if self.generation != sent || matches!(self.phase, Phase::Closed) {
            return Captured::Superseded;
        }
        self.set_access(Some(token.clone()), lifetime, due);
        Captured::Adopted { generation: self.generation }
    }

    /// Adopts the result of a refresh. `issued_pause` is the end of the cool-down if the token
    /// endpoint issued the tokens. Until then they are on probation.
    pub(super) fn adopt_tokens(
        &mut self,
        tokens: &Tokens,
        lifetime: Option<Lifetime>,
        due: Option<Instant>,
        issued_pause: Option<Instant>,
    ) {
        if let Some(access) = tokens.access_token() {
            self.set_access(Some(access.clone()), lifetime, due);
        }
        if let Some(refresh) = tokens.refresh_token() {
            self.refresh = Some(refresh.clone());
        }
        self.rejected = false;
        self.probation = issued_pause;
        self.issued_pause = issued_pause;
        self.broken_pause = None;
        if issued_pause.is_some() {
            (self.failures, self.unanswered) = (0, None);
        }
        if !matches!(self.phase, Phase::Closed) {
            self.phase = Phase::Open;
        }
    }

    /// Starts a new login. Returns the refresh that it supersedes.
    pub(super) fn replace(
        &mut self,
        tokens: &Tokens,
        lifetime: Option<Lifetime>,
        due: Option<Instant>,
    ) -> Option<Arc<InFlight>> {
        self.set_access(tokens.access_token().cloned(), lifetime, due);
        if self.refresh.as_ref() != tokens.refresh_token() {
            self.accounts += 1;
        }
        self.refresh = tokens.refresh_token().cloned();
        self.login += 1;
        (self.issued_pause, self.broken_pause, self.replay_pause) = (None, None, None);
        (self.failures, self.unanswered) = (0, None);
        self.cleared = false;
        self.phase = Phase::Open;
        self.in_flight.take()
    }

    /// Logs out. Returns the refresh that this supersedes.
    pub(super) fn clear(&mut self) -> Option<Arc<InFlight>> {
        let superseded = self.replace(&Tokens::empty(), None, None);
        self.logouts += 1;
        self.phase = Phase::LoginRequired(logged_out());
        self.cleared = true;
        superseded
    }

    /// Adjusts the token's times on the monotonic clock after a suspend, as if the clock had not
    /// stood still.
    pub(super) fn catch_up(&mut self, now: Now) {
        let missed = self.missed(now);
        self.lifetime = self.lifetime_at(now);
        self.due = self.due.map(|due| due.checked_sub(missed).unwrap_or(now.monotonic));
    }

    fn set_access(
        &mut self,
        access: Option<AccessToken>,
        lifetime: Option<Lifetime>,
        due: Option<Instant>,
    ) {
        if self.access != access {
            self.generation += 1;
            self.rejected = false;
            self.known_rejected = false;
            self.renew_first = false;
            self.access = access;
            self.header = None;
        }
        self.lifetime = lifetime;
        self.due = due;
        self.wall = on_wall(lifetime, due);
        self.probation = None;
    }
}

fn on_wall(lifetime: Option<Lifetime>, due: Option<Instant>) -> Option<OnWall> {
    lifetime.and_then(|lifetime| OnWall::of(lifetime, due, Now::read()))
}

pub(super) fn no_token() -> Error {
    Error::new(ErrorKind::LoginRequired, "there is no token and no way to get one")
        .with_nothing_to_ask_with()
}

/// Unlike the error of [`no_token`], this one is not suppressed in favour of a rejected response.
pub(super) fn logged_out() -> Error {
    Error::new(ErrorKind::LoginRequired, "the session was cleared")
}

#[cfg(test)]
mod tests;
