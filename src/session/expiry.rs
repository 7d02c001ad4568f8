//! When a token is due for a refresh, by two clocks: pure functions of instants.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use crate::{
    time::{Now, TOLERANCE},
    token::Lifetime,
};

/// The longest default window before the expiry.
const LONGEST_DEFAULT_WINDOW: Duration = Duration::from_secs(60);

/// Returns when a token with this lifetime is refreshed ahead of its expiry.
///
/// The window is the last fifth of the lifetime, at most 60 s. A configured window is limited to
/// half the lifetime, so that a token with a shorter lifetime than the window is not refreshed all
/// the time. `jitter`, from 0 to 1, moves the start by up to a tenth of the window, so that the
/// processes of a fleet do not refresh in lockstep.
pub(crate) fn due(lifetime: Lifetime, configured: Option<Duration>, jitter: f64) -> Instant {
    let Lifetime { from, until } = lifetime;
    let span = until.saturating_duration_since(from);
    let window = match configured {
        Some(window) => window.min(span / 2),
        None => (span / 5).min(LONGEST_DEFAULT_WINDOW),
    };
    let later = window.mul_f64(jitter.clamp(0.0, 1.0) / 10.0);
    until.checked_sub(window.saturating_sub(later)).unwrap_or(from)
}

/// A token's times on the wall clock, which continues while the machine is suspended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OnWall {
    pub(super) ends: SystemTime,
    /// When the token is due, plus the tolerance between the clocks.
    pub(super) due: SystemTime,
}

impl OnWall {
    /// Returns `None` if the wall clock cannot represent the times. The monotonic clock alone
    /// decides then.
    pub(super) fn of(lifetime: Lifetime, due: Option<Instant>, now: Now) -> Option<Self> {
        Some(Self {
            ends: now.on_wall(lifetime.until)?,
            due: now.on_wall(due.unwrap_or(lifetime.until))?.checked_add(TOLERANCE)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_is_cut_to_the_lifetime() {
        let from = Instant::now() + Duration::from_secs(100_000);
        let seconds = Duration::from_secs_f64;
        let table = [
            // The columns: lifetime, configured window, jitter, due after.
            (100.0, None, 0.0, 80.0),
            (100.0, None, 1.0, 82.0),
            (3600.0, None, 0.0, 3540.0),
            (3600.0, None, 0.5, 3543.0),
            (5.0, None, 0.0, 4.0),
            (0.0, None, 1.0, 0.0),
            (100.0, Some(30.0), 0.0, 70.0),
            (100.0, Some(30.0), 1.0, 73.0),
            (20.0, Some(30.0), 0.0, 10.0),
            (20.0, Some(1e12), 0.0, 10.0),
            (20.0, Some(0.0), 1.0, 20.0),
        ];
        for (span, configured, jitter, expected) in table {
            let lifetime = Lifetime { from, until: from + seconds(span) };
            let due = due(lifetime, configured.map(seconds), jitter);
            assert_eq!(
                due.duration_since(from),
                seconds(expected),
                "{span} {configured:?} {jitter}"
            );
        }
    }
}
