//! Decides which of several repeated failures is logged loudly: a pure function of instants.

use std::time::Duration;

use tokio::time::Instant;

const MINUTE: Duration = Duration::from_secs(60);

/// Kinds of repeated failures, each with its own rate limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Failed attempts of a refresh, and failed refreshes.
    Refresh,
    Heartbeat,
    Store,
    StorePanic,
    ListenerPanic,
}

impl Kind {
    const COUNT: usize = 5;

    fn interval(self) -> Duration {
        match self {
            Self::Refresh | Self::Heartbeat | Self::Store => MINUTE,
            Self::StorePanic | Self::ListenerPanic => MINUTE * 5,
        }
    }
}

/// The level at which a failure is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Volume {
    /// At `WARN`. `count` is the number of failures since the last loud one, including this one. It
    /// is `None` for the first failure.
    Aloud { count: Option<u64> },
    /// At `DEBUG`.
    Quiet,
}

/// The failures that a session has logged loudly, and when.
#[derive(Debug, Default)]
pub(super) struct Repeats([Slot; Kind::COUNT]);

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    told: Option<Instant>,
    since: u64,
}

impl Repeats {
    /// Counts a failure of this kind and returns its volume.
    pub(super) fn failed(&mut self, kind: Kind, now: Instant) -> Volume {
        let slot = &mut self.0[kind as usize];
        slot.since = slot.since.saturating_add(1);
        let first = slot.told.is_none();
        let quiet =
            slot.told.is_some_and(|told| now.saturating_duration_since(told) < kind.interval());
        if quiet {
            return Volume::Quiet;
        }
        slot.told = Some(now);
        let count = std::mem::take(&mut slot.since);
        Volume::Aloud { count: (!first).then_some(count) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_told_then_one_an_interval() {
        let start = Instant::now();
        let aloud = |count| Volume::Aloud { count };
        let table = [
            (Kind::Refresh, 0, aloud(None)),
            (Kind::Refresh, 1, Volume::Quiet),
            (Kind::Refresh, 59, Volume::Quiet),
            // Each kind has its own rate limit.
            (Kind::Heartbeat, 59, aloud(None)),
            (Kind::StorePanic, 59, aloud(None)),
            (Kind::Refresh, 60, aloud(Some(3))),
            (Kind::Refresh, 119, Volume::Quiet),
            (Kind::StorePanic, 358, Volume::Quiet),
            (Kind::StorePanic, 359, aloud(Some(2))),
            (Kind::ListenerPanic, 360, aloud(None)),
            (Kind::ListenerPanic, 659, Volume::Quiet),
            // The quiet failures of an hour ago still count.
            (Kind::Refresh, 4000, aloud(Some(2))),
            (Kind::Refresh, 5000, aloud(Some(1))),
        ];
        let mut repeats = Repeats::default();
        for (kind, at, expected) in table {
            let now = start + Duration::from_secs(at);
            assert_eq!(repeats.failed(kind, now), expected, "{kind:?} at {at} s");
        }
    }
}
