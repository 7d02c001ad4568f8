//! When the next beat is due: from values to an instant, no clock and no await.

use std::time::Duration;

use tokio::time::Instant;

use crate::token::Lifetime;

/// A beat comes before its tick by up to this part of the period, so that workers that were started
/// together do not beat together. Early and never late: a server that counts missed beats is none
/// the worse for it.
const JITTER: f64 = 0.05;
/// Where in the reissue window the two beats stand. The first well inside, since `iat` and `exp`
/// may be whole seconds and the server counts from when it signed; the second with time left for
/// its own answer.
const IN_WINDOW: [f64; 2] = [0.25, 0.625];
/// Beats for the sake of a token's window are at least this far apart: a server that hands out
/// tokens of a millisecond is not to make the loop spin.
const CLOSEST: Duration = Duration::from_millis(10);
/// Beyond any schedule, and within what the clock can hold.
const NEVER: Duration = Duration::from_secs(60 * 60 * 24 * 365 * 10);

/// The beats of one worker.
#[derive(Clone, Debug)]
pub(super) struct Schedule {
    every: Duration,
    reissue_window: Option<f64>,
    /// Ticks are whole periods after this.
    anchor: Instant,
    tick: Instant,
    /// `tick`, less the jitter.
    planned: Instant,
    last: Instant,
}

/// The next beat, and why it is then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Due {
    pub(super) at: Instant,
    pub(super) cause: Cause,
}

/// Why there is a beat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// The first one, or a period has passed.
    Tick,
    /// The token's reissue window.
    Window,
    /// `beat_now`.
    Asked,
}

impl Schedule {
    /// The first beat is at once.
    pub(super) fn new(now: Instant, every: Duration, reissue_window: Option<f64>) -> Self {
        Self { every, reissue_window, anchor: now, tick: now, planned: now, last: now }
    }

    pub(super) fn watches_the_token(&self) -> bool {
        self.reissue_window.is_some()
    }

    /// When to beat next, given the lifetime of the present token.
    pub(super) fn due(&self, now: Instant, lifetime: Option<Lifetime>) -> Due {
        let tick = Due { at: self.planned, cause: Cause::Tick };
        let (Some(fraction), Some(lifetime)) = (self.reissue_window, lifetime) else {
            return tick;
        };
        // For an expired token the window is missed, and not made up.
        let slots = window(lifetime, fraction).into_iter().filter(|_| now < lifetime.until);
        let closest = later(self.last, CLOSEST);
        match slots.filter(|&slot| slot > self.last).map(|slot| slot.max(closest)).min() {
            Some(at) if at < tick.at => Due { at, cause: Cause::Window },
            _ => tick,
        }
    }

    /// After a beat that began at `began` and is over `now`. `jitter` is a random number between 0
    /// and 1. A beat that was moved forward takes the following ones with it; one that was asked for
    /// moves nothing. Ticks that have passed meanwhile are left out.
    pub(super) fn beaten(&mut self, cause: Cause, began: Instant, now: Instant, jitter: f64) {
        let done = match cause {
            Cause::Tick => self.tick,
            Cause::Window => {
                self.anchor = began;
                began
            }
            Cause::Asked => now,
        };
        self.last = began;
        // After a beat that was asked for, the tick that was due next still is, unless it has
        // passed.
        if cause != Cause::Asked || now >= self.tick {
            self.tick = tick_after(self.anchor, self.every, done.max(now));
            let early = self.every.min(NEVER).mul_f64(JITTER * jitter.clamp(0.0, 1.0));
            self.planned = self.tick.checked_sub(early).unwrap_or(self.tick);
        }
    }
}

/// The first whole number of periods after `anchor` that is after `now`.
fn tick_after(anchor: Instant, every: Duration, now: Instant) -> Instant {
    let period = every.as_nanos().max(1);
    let passed = now.saturating_duration_since(anchor).as_nanos() / period;
    match u64::try_from((passed + 1).saturating_mul(period)) {
        Ok(nanos) => later(anchor, Duration::from_nanos(nanos)),
        Err(_) => later(now, NEVER),
    }
}

/// The two beats in the last part of a token's life.
fn window(lifetime: Lifetime, fraction: f64) -> [Instant; 2] {
    let life = lifetime.until.saturating_duration_since(lifetime.from);
    IN_WINDOW.map(|part| later(lifetime.from, life.mul_f64(fraction + (1.0 - fraction) * part)))
}

fn later(from: Instant, span: Duration) -> Instant {
    from.checked_add(span).or_else(|| from.checked_add(NEVER)).unwrap_or(from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    #[test]
    fn ticks_are_whole_periods_and_missed_ones_are_left_out() {
        let start = Instant::now();
        // How long the beat at 0 took, and when the next one is.
        for (took, next) in [(0.0, 10.0), (9.9, 10.0), (10.0, 20.0), (10.1, 20.0), (95.0, 100.0)] {
            let mut schedule = Schedule::new(start, seconds(10.0), None);
            assert_eq!(schedule.due(start, None), Due { at: start, cause: Cause::Tick });
            schedule.beaten(Cause::Tick, start, start + seconds(took), 0.0);
            assert_eq!(schedule.due(start, None).at, start + seconds(next), "after {took} s");
        }
    }

    #[test]
    fn jitter_is_early_and_at_most_a_twentieth_of_the_period() {
        let start = Instant::now();
        for (jitter, next) in [(0.0, 20.0), (0.5, 19.75), (1.0, 19.5), (7.0, 19.5)] {
            let mut schedule = Schedule::new(start, seconds(10.0), None);
            schedule.beaten(Cause::Tick, start, start, 0.0);
            // A beat before its tick does not bring the same tick again.
            schedule.beaten(Cause::Tick, start + seconds(9.5), start + seconds(9.6), jitter);
            assert_eq!(schedule.due(start, None).at, start + seconds(next), "jitter {jitter}");
        }
    }

    #[test]
    fn a_beat_that_was_asked_for_moves_no_tick() {
        let start = Instant::now();
        for (began, over, next) in [(3.0, 4.0, 10.0), (9.9, 10.1, 20.0), (9.9, 31.0, 40.0)] {
            let mut schedule = Schedule::new(start, seconds(10.0), None);
            schedule.beaten(Cause::Tick, start, start, 0.0);
            schedule.beaten(Cause::Asked, start + seconds(began), start + seconds(over), 1.0);
            let due = schedule.due(start, None).at;
            let early = start + seconds(next) - due;
            assert!(
                early <= seconds(0.5),
                "asked for at {began}, over at {over}: next at {:?}",
                due - start
            );
        }
    }

    #[test]
    fn two_beats_fall_into_the_last_part_of_the_life() {
        let start = Instant::now();
        let token = Lifetime { from: start, until: start + seconds(10.0) };
        // The last beat, now, and the next with a tick at 9; `None`: the tick.
        let table = [
            (0.0, 0.1, Some(8.5)),
            (8.4, 8.4, Some(8.5)),
            (8.5, 8.5, None),
            (8.6, 8.6, None),
            (8.4, 8.8, Some(8.5)),
            (8.4, 10.0, None),
        ];
        for (last, now, next) in table {
            let mut schedule = Schedule::new(start, seconds(9.0), Some(0.8));
            schedule.beaten(Cause::Tick, start + seconds(last), start + seconds(last), 0.0);
            schedule.tick = start + seconds(9.0);
            schedule.planned = schedule.tick;
            let due = schedule.due(start + seconds(now), Some(token));
            let expected = match next {
                Some(at) => Due { at: start + seconds(at), cause: Cause::Window },
                None => Due { at: start + seconds(9.0), cause: Cause::Tick },
            };
            assert_eq!(due, expected, "last {last}, now {now}");
        }
    }

    #[test]
    fn a_tick_in_the_window_stays_a_tick() {
        let start = Instant::now();
        let token = Lifetime { from: start, until: start + seconds(10.0) };
        let mut schedule = Schedule::new(start, seconds(8.5), Some(0.8));
        schedule.beaten(Cause::Tick, start, start, 0.0);
        assert_eq!(
            schedule.due(start, Some(token)),
            Due { at: start + seconds(8.5), cause: Cause::Tick }
        );
    }

    #[test]
    fn a_moved_beat_takes_the_following_ones_with_it() {
        let start = Instant::now();
        let token = Lifetime { from: start, until: start + seconds(10.0) };
        let mut schedule = Schedule::new(start, seconds(9.0), Some(0.8));
        schedule.beaten(Cause::Tick, start, start, 0.0);
        let moved = start + seconds(8.5);
        assert_eq!(schedule.due(start, Some(token)), Due { at: moved, cause: Cause::Window });
        schedule.beaten(Cause::Window, moved, moved, 0.0);
        assert_eq!(schedule.due(moved, None).at, start + seconds(17.5));
        // It brought no new token: once more before the end.
        assert_eq!(
            schedule.due(moved, Some(token)),
            Due { at: start + seconds(9.25), cause: Cause::Window }
        );
    }

    #[test]
    fn without_window_or_expiry_there_are_only_ticks() {
        let start = Instant::now();
        let token = Some(Lifetime { from: start, until: start + seconds(10.0) });
        for (window, lifetime) in [(None, token), (Some(0.8), None)] {
            let mut schedule = Schedule::new(start, seconds(9.0), window);
            schedule.beaten(Cause::Tick, start, start, 0.0);
            assert_eq!(
                schedule.due(start, lifetime),
                Due { at: start + seconds(9.0), cause: Cause::Tick }
            );
        }
    }

    #[test]
    fn odd_periods_and_lifetimes_neither_panic_nor_spin() {
        let start = Instant::now();
        for every in [Duration::from_nanos(1), Duration::MAX] {
            let mut schedule = Schedule::new(start, every, Some(0.999));
            schedule.beaten(Cause::Tick, start, start, 1.0);
            let lifetime = Lifetime { from: start, until: start + Duration::from_nanos(3) };
            let due = schedule.due(start, Some(lifetime));
            assert!(due.at > start, "{every:?}");
            assert!(due.cause == Cause::Tick || due.at == start + CLOSEST, "{every:?}");
            // A period that the clock cannot hold is a very long one, not a short one.
            let year = Duration::from_secs(365 * 86_400);
            assert_eq!(schedule.due(start, None).at > start + 9 * year, every == Duration::MAX);
        }
    }
}
