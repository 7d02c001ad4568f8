//! What a session knows, and how it changes: pure transitions, no I/O, no await.
//!
//! A [`State`] is immutable once published: requests read it with one atomic load, writers publish
//! a changed copy.

use std::{fmt, sync::Arc, time::Duration};

use http::{HeaderValue, StatusCode};
use tokio::time::Instant;

use super::{expiry::OnWall, refresh::InFlight, signature::Signature};
use crate::{
    error::{Error, ErrorKind},
    time::{Now, wall},
    token::{AccessToken, Lifetime, RefreshToken, Tokens},
};

/// The longest that a token endpoint can ask a session to cool down.
const LONGEST_COOLDOWN: Duration = Duration::from_secs(300);

/// What a session is doing. See [`Session::state`](super::Session::state).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SessionState {
    /// It has a token, or can get one.
    Active,
    /// A refresh is under way.
    Refreshing,
    /// A refresh has failed, and the session does not ask the token endpoint for a while.
    CoolingDown,
    /// The token cannot be renewed, or there is none, and
    /// [`Session::replace_tokens`](super::Session::replace_tokens) alone helps. An access token
    /// that is still good is sent for as long as it lasts.
    LoginRequired,
    /// The session was closed.
    Closed,
}

/// In words, for logs: `cooling down`.
impl fmt::Display for SessionState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Active => "active",
            Self::Refreshing => "refreshing",
            Self::CoolingDown => "cooling down",
            Self::LoginRequired => "login required",
            Self::Closed => "closed",
        })
    }
}

#[derive(Clone)]
#[allow(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub(crate) struct State {
    /// Rises each time the access token changes.
    pub(super) generation: u64,
    /// Rises with each `replace_tokens` and `clear`. What a refresh of an earlier login brings is
    /// dropped.
    pub(super) login: u64,
    /// Rises with each `clear`: no request is sent again across one.
    pub(super) logouts: u64,
    /// Rises with each `replace_tokens` that brings another refresh token, and with each `clear`.
    pub(super) accounts: u64,
    pub(super) access: Option<AccessToken>,
    /// The access token as it goes on a request. Filled in when the state is published.
    pub(super) header: Option<HeaderValue>,
    pub(super) refresh: Option<RefreshToken>,
    pub(super) lifetime: Option<Lifetime>,
    /// When renewal ahead of expiry begins.
    pub(super) due: Option<Instant>,
    /// Both on the wall clock.
    pub(super) wall: Option<OnWall>,
    /// Whether there is something to renew with.
    pub(super) renewable: bool,
    /// The API rejected the present generation.
    pub(super) rejected: bool,
    /// The API rejected the present generation, whether a refresh followed or not: no credential is
    /// given with it.
    pub(super) known_rejected: bool,
    /// The user of a credential says so too: requests of the chain renew the token first.
    pub(super) renew_first: bool,
    /// Until when a token that the token endpoint issued, and that no response has accepted yet, is
    /// not renewed again.
    pub(super) probation: Option<Instant>,
    /// The cool-down's end after the token endpoint issued a token. Until then one that was expired
    /// on arrival, from there or from a response header, is not renewed for that reason.
    pub(super) issued_pause: Option<Instant>,
    /// The cool-down's end after a refresh broke off. Until then none begins in the background.
    pub(super) broken_pause: Option<Instant>,
    /// Until when a rejection starts no refresh: a token that was just issued was rejected in a
    /// replay too.
    pub(super) replay_pause: Option<Instant>,
    /// How many refreshes failed with `ClientRejected` or `BadResponse` since the last grant.
    pub(super) failures: u32,
    /// The refresh token of a call whose response was lost: it may be spent.
    pub(super) unanswered: Option<RefreshToken>,
    /// The login was ended by `clear`: a stored one does not take its place.
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

/// What a request, or a caller of [`Session`](super::Session), does next.
pub(super) enum Step {
    /// Go on with what there is: send the request, or hand the response through.
    Go,
    /// Go on, and renew in the background.
    GoAndRenew,
    /// Wait for the refresh, which begins if none is under way.
    Wait,
    /// Give up.
    Fail(Error),
}

/// What has become of the token that a request was sent with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Since {
    /// It is still the session's.
    Same,
    /// The session has another one by now.
    Replaced,
    /// The session was cleared, or, for a 403, has another login: what the response says of the
    /// token of that time is the caller's.
    OtherLogin,
}

/// What became of a captured token.
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

    // ---- what a request asks

    /// Whether a request may be sent without a further question, as almost all may. `now` is asked
    /// only where time matters.
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

    /// Before a request is sent. A request whose token is still good does not wait, whoever asked
    /// for a refresh, unless the API has rejected that token.
    pub(super) fn should_refresh(&self, now: Instant) -> Step {
        if let Phase::Closed = self.phase {
            return Step::Fail(Error::of(ErrorKind::Closed));
        }
        if self.access.is_none() {
            return self.step_without_token(now);
        }
        if !self.is_expired(now) {
            return match self.in_flight {
                Some(_) if self.rejected || self.renew_first => Step::Wait,
                None if self.renew_first && self.may_renew_rejected(now) => Step::Wait,
                None if !self.renew_first && self.is_due(now) && self.may_renew(now) => {
                    Step::GoAndRenew
                }
                _ => Step::Go,
            };
        }
        match &self.phase {
            _ if self.in_flight.is_some() => Step::Wait,
            _ if !self.renewable => Step::Go,
            Phase::LoginRequired(cause) => Step::Fail(cause.clone()),
            Phase::CoolingDown { until, cause } if now < *until => step_while_cooling_down(cause),
            _ if self.is_paused_for_expiry(now) => Step::Go,
            _ => Step::Wait,
        }
    }

    pub(super) fn step_without_token(&self, now: Instant) -> Step {
        match &self.phase {
            Phase::LoginRequired(cause) => Step::Fail(cause.clone()),
            _ if self.in_flight.is_some() => Step::Wait,
            Phase::CoolingDown { until, cause } if now < *until => {
                Step::Fail(if cause.nothing_to_ask_with() {
                    cause.clone()
                } else {
                    cooling_down(cause)
                })
            }
            _ if self.renewable => Step::Wait,
            _ => Step::Fail(no_token()),
        }
    }

    /// After the API rejected a token of generation `sent`.
    pub(super) fn should_refresh_after_rejection(&self, sent: u64, now: Instant) -> Step {
        match &self.phase {
            Phase::Closed => Step::Fail(Error::of(ErrorKind::Closed)),
            Phase::LoginRequired(cause) if self.access.is_none() => Step::Fail(cause.clone()),
            // The present token was not rejected: it is asked of it what is asked before any
            // request.
            _ if self.generation != sent && self.access.is_some() => match self.should_refresh(now)
            {
                Step::GoAndRenew => Step::Go,
                step => step,
            },
            _ if self.in_flight.is_some() => Step::Wait,
            _ if !self.renewable => Step::Go,
            Phase::LoginRequired(cause) => Step::Fail(cause.clone()),
            Phase::CoolingDown { until, cause } if now < *until => step_while_cooling_down(cause),
            _ if self.rejections_start_no_refresh(now) => Step::Go,
            _ => Step::Wait,
        }
    }

    /// Whether the token endpoint has issued the token lately, and a rejection does not mean that
    /// another one would be accepted (contract 3.6).
    pub(super) fn rejections_start_no_refresh(&self, now: Instant) -> bool {
        self.probation.is_some_and(|until| now < until)
            || self.replay_pause.is_some_and(|until| now < until)
    }

    /// Whether a token that a credential's user rejected may be renewed for that reason.
    fn may_renew_rejected(&self, now: Instant) -> bool {
        let allowed = match &self.phase {
            Phase::Open => true,
            Phase::CoolingDown { until, .. } => *until <= now,
            Phase::LoginRequired(_) | Phase::Closed => false,
        };
        self.renewable && allowed && !self.rejections_start_no_refresh(now)
    }

    /// When [`Session::refresh`](super::Session::refresh) is called, whatever the token's state and the cool-down.
    pub(super) fn on_demand(&self) -> Step {
        match &self.phase {
            Phase::Closed => Step::Fail(Error::of(ErrorKind::Closed)),
            Phase::LoginRequired(cause) => Step::Fail(cause.clone()),
            _ if self.in_flight.is_some() || self.renewable => Step::Wait,
            _ => Step::Fail(no_token()),
        }
    }

    /// What [`Authorize`](crate::Authorize) puts on a request.
    #[inline]
    pub(crate) fn header_to_send(&self) -> Result<&HeaderValue, Error> {
        self.token_to_send().map(|token| self.header.as_ref().unwrap_or_else(|| token.header()))
    }

    /// What [`Authorize`](crate::Authorize) signs with.
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

    /// What is remembered of this state by a request that is signed with its token.
    #[inline]
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

    /// Whether the present token is of this generation, and was issued less than a cool-down ago.
    pub(super) fn is_fresh(&self, generation: u64, now: Instant) -> bool {
        self.generation == generation && self.issued_pause.is_some_and(|until| now < until)
    }

    /// Whether a request that was rejected with `sent` has a token to be sent again with.
    pub(crate) fn has_newer_token_than(&self, sent: &Signature) -> bool {
        self.generation != sent.generation
            && self.logouts == sent.logouts
            && self.access.as_ref().is_some_and(|token| token.fingerprint() != sent.token)
    }

    /// What has become of the token that a response with this status was sent with.
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

    /// The token's life, moved back by what the monotonic clock has missed.
    pub(crate) fn lifetime_at(&self, now: Now) -> Option<Lifetime> {
        let missed = self.missed(now);
        self.lifetime.map(|lifetime| lifetime.moved_back(missed, now.monotonic))
    }

    /// How long the machine was suspended since the token came, as far as this state does not know
    /// it.
    pub(super) fn missed(&self, now: Now) -> Duration {
        match (self.lifetime, self.wall) {
            (Some(lifetime), Some(wall)) => now.missed(lifetime.until, wall.ends),
            _ => Duration::ZERO,
        }
    }

    fn is_due(&self, now: Instant) -> bool {
        self.due.is_some_and(|due| due <= now)
    }

    /// Whether a refresh may begin in the background.
    pub(super) fn may_renew(&self, now: Instant) -> bool {
        let allowed = match &self.phase {
            Phase::Open => true,
            Phase::CoolingDown { until, .. } => *until <= now,
            Phase::LoginRequired(_) | Phase::Closed => false,
        };
        let broken = self.broken_pause.is_some_and(|until| now < until);
        self.renewable && allowed && !broken && !self.is_paused_for_expiry(now)
    }

    /// Whether the token was expired on arrival, and the token endpoint was asked a moment ago:
    /// asking again would not help.
    pub(super) fn is_paused_for_expiry(&self, now: Instant) -> bool {
        self.lifetime.is_some_and(|lifetime| lifetime.until <= lifetime.from)
            && self.issued_pause.is_some_and(|until| now < until)
    }

    /// What [`Session::state`](super::Session::state) says. Worked out when asked: a cool-down that
    /// is over is none.
    pub(super) fn public(&self, now: Instant) -> SessionState {
        match &self.phase {
            Phase::Closed => SessionState::Closed,
            _ if self.in_flight.is_some() => SessionState::Refreshing,
            Phase::LoginRequired(_) => SessionState::LoginRequired,
            Phase::CoolingDown { until, .. } if now < *until => SessionState::CoolingDown,
            // Nothing can bring another token but the API itself, or the user.
            _ if !self.renewable && (self.access.is_none() || self.is_expired(now)) => {
                SessionState::LoginRequired
            }
            _ => SessionState::Active,
        }
    }

    /// Whether a login that another process has stored may take the place of the dead one.
    pub(super) fn may_look_for_login(&self) -> bool {
        matches!(self.phase, Phase::LoginRequired(_)) && !self.cleared
    }

    /// Whether any token is left.
    pub(super) fn has_tokens(&self) -> bool {
        self.access.is_some() || self.refresh.is_some()
    }

    pub(super) fn tokens(&self) -> Tokens {
        let lifetime = self.lifetime_at(Now::read());
        Tokens::of(self.access.clone(), self.refresh.clone()).with_lifetime(lifetime)
    }

    // ---- what changes it

    /// A token from the response to a request that was sent with generation `sent`. A late
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

    /// What a refresh brought. `issued_pause`: the end of the cool-down, if the token endpoint
    /// issued it. Until then it is on trial.
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

    /// What a refresh that brought nothing leaves behind.
    pub(super) fn fail(&mut self, error: &Error, now: Instant, cooldown: Duration) {
        if matches!(self.phase, Phase::Closed) {
            return;
        }
        if matches!(error.kind(), ErrorKind::ClientRejected | ErrorKind::BadResponse) {
            self.failures = self.failures.saturating_add(1);
        }
        let cooldown = match error.kind() {
            ErrorKind::ClientRejected | ErrorKind::BadResponse => doubled(cooldown, self.failures),
            _ => cooldown,
        };
        let pause = now.checked_add(cooldown).unwrap_or(now + LONGEST_COOLDOWN);
        self.phase = match error.kind() {
            ErrorKind::LoginRequired if !error.nothing_to_ask_with() => {
                Phase::LoginRequired(error.clone())
            }
            // Nothing is known of the token endpoint: the next request may try.
            ErrorKind::Internal => {
                self.broken_pause = Some(pause);
                Phase::Open
            }
            _ => {
                let asked = error.retry_after().unwrap_or_default().min(LONGEST_COOLDOWN);
                Phase::CoolingDown { until: pause.max(now + asked), cause: error.clone() }
            }
        };
    }

    /// The refresher has nothing to bring. If the token that is held is of no use, that is a failed
    /// refresh. Otherwise the next one that nobody waits for begins after the cool-down.
    pub(super) fn no_news(&mut self, now: Instant, cooldown: Duration) -> Option<Error> {
        let useless = self.rejected || self.access.is_none() || self.is_expired(now);
        self.rejected = false;
        if useless {
            let error = Error::new(ErrorKind::Unavailable, "there is no newer token");
            self.fail(&error, now, cooldown);
            return Some(error);
        }
        self.broken_pause = now.checked_add(cooldown);
        None
    }

    /// Another process has failed, and the token endpoint is left alone until then.
    pub(super) fn stand_back(&mut self, cause: &Error, until: Instant) {
        if !matches!(self.phase, Phase::Closed) {
            self.phase = Phase::CoolingDown { until, cause: cause.clone() };
        }
    }

    /// A cool-down lasts at least so long.
    pub(super) fn lengthen_cooldown(&mut self, now: Instant, least: Duration) {
        let Some(earliest) = now.checked_add(least) else { return };
        if let Phase::CoolingDown { until, .. } = &mut self.phase {
            *until = earliest.max(*until);
        }
        if let Some(until) = &mut self.broken_pause {
            *until = earliest.max(*until);
        }
    }

    /// The refresher bounds the cool-down.
    pub(super) fn shorten_cooldown(&mut self, now: Instant, longest: Duration) {
        if let (Phase::CoolingDown { until, .. }, Some(latest)) =
            (&mut self.phase, now.checked_add(longest))
        {
            *until = latest.min(*until);
        }
    }

    /// A new login. Returns the refresh that it supersedes.
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

    /// A logout. Returns the refresh that it supersedes.
    pub(super) fn clear(&mut self) -> Option<Arc<InFlight>> {
        let superseded = self.replace(&Tokens::empty(), None, None);
        self.logouts += 1;
        self.phase = Phase::LoginRequired(logged_out());
        self.cleared = true;
        superseded
    }

    /// After a suspend: the token's times by the monotonic clock are what they would be if it had
    /// not stood still.
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

/// Unlike [`no_token`] it is not passed over for the sake of a rejected response.
pub(super) fn logged_out() -> Error {
    Error::new(ErrorKind::LoginRequired, "the session was cleared")
}

/// Where there was nothing to ask with, the session cannot renew: it goes on with what it has.
pub(super) fn step_while_cooling_down(cause: &Error) -> Step {
    if cause.nothing_to_ask_with() { Step::Go } else { Step::Fail(cooling_down(cause)) }
}

/// One cool-down, two, four, up to five minutes: what is misconfigured seldom mends itself.
fn doubled(cooldown: Duration, failures: u32) -> Duration {
    let factor = 1 << failures.saturating_sub(1).min(31);
    cooldown.saturating_mul(factor).min(LONGEST_COOLDOWN.max(cooldown))
}

pub(super) fn cooling_down(cause: &Error) -> Error {
    let mut error = Error::new(ErrorKind::CoolingDown, cause.clone());
    if let Some(status) = cause.status() {
        error = error.with_status(status);
    }
    if let Some(wait) = cause.retry_after() {
        error = error.with_retry_after(wait);
    }
    if let Some(host) = cause.token_endpoint() {
        error = error.with_token_endpoint(|| std::sync::Arc::clone(host));
    }
    error
}

#[cfg(test)]
mod tests;
