//! How long a job may continue without a successful beat.

use std::time::Duration;

use tokio::time::Instant;

use super::schedule::later;
use crate::time::{Now, TOLERANCE};

/// An instant on the monotonic clock, which stops while the machine is suspended, and on the wall
/// clock, which does not.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment(Now);

impl Moment {
    pub(super) fn now() -> Self {
        Self(Now::read())
    }

    pub(super) fn monotonic(self) -> Instant {
        self.0.monotonic
    }

    /// The time between the two on the monotonic clock.
    pub(super) fn since(self, earlier: Self) -> Duration {
        self.monotonic().saturating_duration_since(earlier.monotonic())
    }

    /// How long the machine was suspended between the two.
    pub(super) fn suspended_since(self, earlier: Self) -> Duration {
        let wall = self.0.wall.duration_since(earlier.0.wall).unwrap_or_default();
        wall.checked_sub(self.since(earlier)).filter(|gap| *gap > TOLERANCE).unwrap_or_default()
    }
}

/// A lease. Each successful beat renews it from the time at which the beat was sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lease {
    length: Duration,
    from: Moment,
}

impl Lease {
    pub(super) fn new(length: Duration, from: Moment) -> Self {
        Self { length, from }
    }

    pub(super) fn renew(&mut self, sent: Moment) {
        self.from = sent;
    }

    /// The end of the lease on the monotonic clock. The time of a suspend counts.
    pub(super) fn end(&self, now: Moment) -> Instant {
        let left = self.length.saturating_sub(now.suspended_since(self.from));
        later(self.from.monotonic(), left)
    }

    pub(super) fn is_over(&self, now: Moment) -> bool {
        self.end(now) <= now.monotonic()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_suspend_counts_and_drift_does_not() {
        let start = Moment::now();
        let seconds = Duration::from_secs;
        let lease = Lease::new(seconds(30), start);
        // The columns: elapsed time on each clock, and the end of the lease after the start.
        let table = [(10, 10, 30), (10, 11, 30), (10, 13, 27), (10, 100, 0), (10, 0, 30)];
        for (monotonic, wall, end) in table {
            let now = Moment(Now {
                monotonic: start.monotonic() + seconds(monotonic),
                wall: start.0.wall + seconds(wall),
            });
            assert_eq!(lease.end(now), start.monotonic() + seconds(end), "{monotonic} {wall}");
            assert_eq!(lease.is_over(now), end <= monotonic, "{monotonic} {wall}");
        }
    }
}
