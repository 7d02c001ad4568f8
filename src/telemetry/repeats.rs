//! Which of many failures in a row is told aloud: from instants to a verdict, no clock, no I/O.

use std::time::Duration;

use tokio::time::Instant;

const MINUTE: Duration = Duration::from_secs(60);

/// Failures that repeat for one reason, each with a pace of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Attempts of a refresh, and refreshes that ended without a token.
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

/// How a failure is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Volume {
    /// At `WARN`. `count`: how many there were since the last one told so, with this one. `None`
    /// for the first of all.
    Aloud { count: Option<u64> },
    /// At `DEBUG`.
    Quiet,
}

/// What a session has told aloud, and when.
#[derive(Debug, Default)]
pub(super) struct Repeats([Slot; Kind::COUNT]);

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    told: Option<Instant>,
    since: u64,
}

impl Repeats {
    /// Another failure of this kind.
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
            // Each kind has a pace of its own.
            (Kind::Heartbeat, 59, aloud(None)),
            (Kind::StorePanic, 59, aloud(None)),
            (Kind::Refresh, 60, aloud(Some(3))),
            (Kind::Refresh, 119, Volume::Quiet),
            (Kind::StorePanic, 358, Volume::Quiet),
            (Kind::StorePanic, 359, aloud(Some(2))),
            (Kind::ListenerPanic, 360, aloud(None)),
            (Kind::ListenerPanic, 659, Volume::Quiet),
            // What was quiet an hour ago still counts.
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
