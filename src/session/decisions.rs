//! What a request, or a caller of the session, does next. Pure.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    cooldown::cooling_down,
    state::{Phase, State, no_token},
};
use crate::error::{Error, ErrorKind};

/// What a request, or a caller of [`Session`](super::Session), does next.
pub(super) enum Step {
    /// Go on with the current token: send the request, or return the response.
    Go,
    /// Go on, and refresh in the background.
    GoAndRenew,
    /// Wait for the refresh. Start it if none is in progress.
    Wait,
    /// Fail with this error.
    Fail(Error),
}

/// The decisions of a state before and after a request is sent.
impl State {
    /// Decides before a request is sent. A request with a valid token does not wait for a refresh,
    /// unless the API has rejected that token.
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

    /// Decides after the API rejected a token of generation `sent`.
    pub(super) fn should_refresh_after_rejection(&self, sent: u64, now: Instant) -> Step {
        match &self.phase {
            Phase::Closed => Step::Fail(Error::of(ErrorKind::Closed)),
            Phase::LoginRequired(cause) if self.access.is_none() => Step::Fail(cause.clone()),
            // The current token was not rejected, so the same decision applies as before any
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

    /// Whether the token was issued recently, so that a rejection does not mean that another token
    /// would be accepted (contract 3.6).
    pub(super) fn rejections_start_no_refresh(&self, now: Instant) -> bool {
        self.probation.is_some_and(|until| now < until)
            || self.replay_pause.is_some_and(|until| now < until)
    }

    /// Whether a token that the user of a credential rejected may be refreshed for that reason.
    fn may_renew_rejected(&self, now: Instant) -> bool {
        let allowed = match &self.phase {
            Phase::Open => true,
            Phase::CoolingDown { until, .. } => *until <= now,
            Phase::LoginRequired(_) | Phase::Closed => false,
        };
        self.renewable && allowed && !self.rejections_start_no_refresh(now)
    }

    /// Decides for [`Session::refresh`](super::Session::refresh), whatever the state of the token
    /// and the cool-down.
    pub(super) fn on_demand(&self) -> Step {
        match &self.phase {
            Phase::Closed => Step::Fail(Error::of(ErrorKind::Closed)),
            Phase::LoginRequired(cause) => Step::Fail(cause.clone()),
            _ if self.in_flight.is_some() || self.renewable => Step::Wait,
            _ => Step::Fail(no_token()),
        }
    }

    /// Whether a background refresh may start.
    pub(super) fn may_renew(&self, now: Instant) -> bool {
        let allowed = match &self.phase {
            Phase::Open => true,
            Phase::CoolingDown { until, .. } => *until <= now,
            Phase::LoginRequired(_) | Phase::Closed => false,
        };
        let broken = self.broken_pause.is_some_and(|until| now < until);
        self.renewable && allowed && !broken && !self.is_paused_for_expiry(now)
    }

    /// Whether the token arrived expired and was issued recently, so that another refresh would not
    /// help.
    pub(super) fn is_paused_for_expiry(&self, now: Instant) -> bool {
        self.lifetime.is_some_and(|lifetime| lifetime.until <= lifetime.from)
            && self.issued_pause.is_some_and(|until| now < until)
    }
}

/// The decisions of a state before it returns a credential.
impl State {
    pub(super) fn for_credential(&self, at_least: Option<Duration>, now: Instant) -> Step {
        if let Phase::Closed = self.phase {
            return Step::Fail(Error::of(ErrorKind::Closed));
        }
        if self.access.is_none() {
            return self.step_without_token(now);
        }
        if self.is_usable(now) {
            return match self.should_refresh(now) {
                Step::Go | Step::GoAndRenew if self.is_too_short(at_least, now) => Step::Wait,
                step => step,
            };
        }
        match &self.phase {
            _ if self.in_flight.is_some() => Step::Wait,
            _ if !self.renewable => Step::Go,
            Phase::LoginRequired(cause) => Step::Fail(cause.clone()),
            Phase::CoolingDown { until, cause } if now < *until => step_while_cooling_down(cause),
            _ if self.is_withheld(now) => Step::Fail(cooling_down(&Error::new(
                ErrorKind::Unavailable,
                "the api rejected the latest token",
            ))),
            // The token arrived expired, and so would another one.
            _ if !self.known_rejected && self.is_paused_for_expiry(now) => Step::Go,
            _ => Step::Wait,
        }
    }

    /// Decides before a request that needs this much lifetime left.
    pub(super) fn should_refresh_valid_for(&self, at_least: Duration, now: Instant) -> Step {
        match self.should_refresh(now) {
            Step::Go | Step::GoAndRenew
                if self.is_usable(now) && self.is_too_short(Some(at_least), now) =>
            {
                Step::Wait
            }
            step => step,
        }
    }

    /// Whether the token is valid, as far as the session knows.
    pub(crate) fn is_usable(&self, now: Instant) -> bool {
        self.access.is_some() && !self.known_rejected && !self.is_expired(now)
    }

    /// Whether the API rejected the token and would reject another one too (contract 3.6).
    pub(super) fn is_withheld(&self, now: Instant) -> bool {
        self.known_rejected && self.rejections_start_no_refresh(now)
    }

    /// Whether a refresh should obtain a longer lifetime. This happens at most once per cool-down.
    fn is_too_short(&self, at_least: Option<Duration>, now: Instant) -> bool {
        let (Some(at_least), Some(lifetime)) = (at_least, self.lifetime) else {
            return false;
        };
        if lifetime.until.saturating_duration_since(now) >= at_least {
            return false;
        }
        if self.in_flight.is_some() {
            return true;
        }
        let issued_lately = self.issued_pause.is_some_and(|until| now < until);
        let whole = lifetime.until.saturating_duration_since(lifetime.from);
        let all_are_short = self.issued_pause.is_some() && whole < at_least;
        let first_half = now.saturating_duration_since(lifetime.from) < whole / 2;
        self.may_renew(now) && !issued_lately && !(all_are_short && first_half)
    }
}

/// Without a refresh token the session cannot refresh, so it goes on with its current token.
fn step_while_cooling_down(cause: &Error) -> Step {
    if cause.nothing_to_ask_with() { Step::Go } else { Step::Fail(cooling_down(cause)) }
}
