//! The cool-down after a failed refresh. Pure.

use std::time::Duration;

use tokio::time::Instant;

use super::state::{Phase, State};
use crate::error::{Error, ErrorKind};

/// The longest cool-down that a token endpoint can ask for.
const LONGEST_COOLDOWN: Duration = Duration::from_secs(300);

impl State {
    /// Records a failed refresh.
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
            // The failure says nothing about the token endpoint, so the next request may try again.
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

    /// Records that the refresher has nothing new. If the current token is unusable, this counts as
    /// a failed refresh. Otherwise the next background refresh starts after the cool-down.
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

    /// Records that another process has failed. No call is made to the token endpoint until then.
    pub(super) fn stand_back(&mut self, cause: &Error, until: Instant) {
        if !matches!(self.phase, Phase::Closed) {
            self.phase = Phase::CoolingDown { until, cause: cause.clone() };
        }
    }

    /// Extends a cool-down to at least this long.
    pub(super) fn lengthen_cooldown(&mut self, now: Instant, least: Duration) {
        let Some(earliest) = now.checked_add(least) else { return };
        if let Phase::CoolingDown { until, .. } = &mut self.phase {
            *until = earliest.max(*until);
        }
        if let Some(until) = &mut self.broken_pause {
            *until = earliest.max(*until);
        }
    }

    /// Applies the refresher's limit of the cool-down.
    pub(super) fn shorten_cooldown(&mut self, now: Instant, longest: Duration) {
        if let (Phase::CoolingDown { until, .. }, Some(latest)) =
            (&mut self.phase, now.checked_add(longest))
        {
            *until = latest.min(*until);
        }
    }
}

/// One cool-down, then two, four, and so on, up to five minutes, because a misconfiguration is
/// rarely fixed quickly.
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
