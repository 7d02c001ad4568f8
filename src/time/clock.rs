//! The second clock of a token's lifetime.
//!
//! The monotonic clock stops while a machine is suspended (`CLOCK_MONOTONIC` on Linux, and also on
//! macOS). The wall clock continues. A token has therefore expired as soon as either clock says so.
//! The wall clock is only used to shorten a lifetime: if it is set back, the monotonic clock alone
//! decides. `docs/decisions/0021-two-clocks.md` explains the choice of clock.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

/// The difference that the clocks may show without a suspend. They are not read at the same
/// instant, and the wall clock is adjusted in small steps.
pub(crate) const TOLERANCE: Duration = Duration::from_secs(1);

/// One instant on both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Now {
    pub(crate) monotonic: Instant,
    pub(crate) wall: SystemTime,
}

impl Now {
    /// Reads both clocks.
    pub(crate) fn read() -> Self {
        Self { monotonic: Instant::now(), wall: wall() }
    }

    /// Converts an instant of the monotonic clock to the wall clock, or returns `None` on overflow.
    pub(crate) fn on_wall(self, at: Instant) -> Option<SystemTime> {
        match at.checked_duration_since(self.monotonic) {
            Some(left) => self.wall.checked_add(left),
            None => self.wall.checked_sub(self.monotonic.saturating_duration_since(at)),
        }
    }

    /// Returns how long the monotonic clock stood still, judged by a lifetime that ends at `until`
    /// on the monotonic clock and at `ends` on the wall clock.
    pub(crate) fn missed(self, until: Instant, ends: SystemTime) -> Duration {
        let missed = self.on_wall(until).and_then(|told| told.duration_since(ends).ok());
        missed.filter(|missed| *missed > TOLERANCE).unwrap_or_default()
    }
}

/// The wall clock.
#[cfg(not(test))]
#[allow(clippy::disallowed_methods, reason = "the one place where it is read")]
pub(crate) fn wall() -> SystemTime {
    SystemTime::now()
}

#[cfg(test)]
pub(crate) use tests::wall;

#[cfg(test)]
pub(crate) mod tests {
    use std::cell::Cell;

    use super::*;

    thread_local! {
        static SUSPENDED: Cell<Duration> = const { Cell::new(Duration::ZERO) };
    }

    pub(crate) fn wall() -> SystemTime {
        SystemTime::now() + SUSPENDED.get()
    }

    /// Advances the wall clock of this test, but not its monotonic clock.
    pub(crate) fn suspend(span: Duration) {
        SUSPENDED.set(SUSPENDED.get() + span);
    }

    #[test]
    fn only_a_wall_clock_ahead_shows_a_suspend() {
        let now = Now::read();
        let hour = Duration::from_secs(3600);
        let minute = hour / 60;
        let end = |left: Duration| now.monotonic + left;
        let table = [
            // The columns: end by the monotonic clock, end by the wall clock, missed time.
            (end(hour), now.wall + hour, Duration::ZERO),
            // Not read at the same instant.
            (end(hour), now.wall + hour - TOLERANCE, Duration::ZERO),
            // Suspended: until before the end, until after the end, and until long after the end.
            (end(hour), now.wall + minute, minute * 59),
            (end(hour), now.wall, hour),
            (end(hour), now.wall - hour, hour * 2),
            (now.monotonic - minute, now.wall - hour, minute * 59),
            // Set back.
            (end(hour), now.wall + hour * 2, Duration::ZERO),
            (now.monotonic - minute, now.wall + hour, Duration::ZERO),
        ];
        for (until, ends, missed) in table {
            assert_eq!(now.missed(until, ends), missed, "{until:?} {ends:?}");
        }
    }

    #[test]
    fn a_moment_is_found_on_the_wall_clock() {
        let now = Now::read();
        let hour = Duration::from_secs(3600);
        assert_eq!(now.on_wall(now.monotonic + hour), Some(now.wall + hour));
        assert_eq!(now.on_wall(now.monotonic - hour), Some(now.wall - hour));
    }
}
