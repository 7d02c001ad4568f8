//! When the next beat is due: pure functions from values to an instant.
//!
//! The rules, in order of precedence from the lowest:
//!
//! 1. The tick: a whole number of periods after the first beat, up to 5 % early.
//! 2. After a failed beat, half of the remaining lease, if that is sooner.
//! 3. The two places in the token's reissue window, if one is sooner. If the machine was suspended
//!    and the tick would come after the token's expiry, the beat is due at once.
//! 4. `Retry-After` delays all of these, but not beyond the point at which a third of the lease is
//!    left, and not beyond the last place in the reissue window.
//!
//! `beat_now` and the end of the lease ignore all of them. The loop handles both.

use std::time::Duration;

use tokio::time::Instant;

use crate::token::Lifetime;

/// The part of the period by which a beat may come before its tick, so that workers that were
/// started together do not beat together. A beat is early, never late, so that a server that counts
/// missed beats does not notice.
const JITTER: f64 = 0.05;
/// The places of the two beats in the reissue window. The first is well inside, because `iat` and
/// `exp` may be whole seconds and the server counts from its signature. The second leaves time for
/// its own response.
const IN_WINDOW: [f64; 2] = [0.25, 0.625];
/// The minimum distance between beats for a token's window. Without it, a server that issues tokens
/// of a millisecond would make the loop spin.
const CLOSEST: Duration = Duration::from_millis(10);
/// The minimum wait before a retry for the lease.
const SHORTEST_RETRY: Duration = Duration::from_secs(1);
/// The bounds of a period that a server sets.
const PERIODS: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(3600)];
/// The minimum time without a success after which a 429 counts as a failure.
const LONGEST_PARDON: Duration = Duration::from_secs(3600);
/// Beyond any schedule, but within the range of the clock.
const NEVER: Duration = Duration::from_secs(60 * 60 * 24 * 365 * 10);

/// The schedule of one worker's beats.
#[derive(Clone, Debug)]
pub(super) struct Schedule {
    every: Duration,
    lease: Option<Duration>,
    reissue_window: Option<f64>,
    /// Ticks are a whole number of periods after this instant.
    anchor: Instant,
    tick: Instant,
    /// The tick minus the jitter.
    planned: Instant,
    last: Instant,
    /// The retry for the lease after a failed beat.
    retry: Option<Instant>,
    /// The time that `Retry-After` asked for.
    not_before: Option<Instant>,
}

/// The next beat, and its cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Due {
    pub(super) at: Instant,
    pub(super) cause: Cause,
}

/// The cause of a beat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// The first beat, or the end of a period.
    Tick,
    /// The token's reissue window.
    Window,
    /// The last beat failed, and the lease is running out.
    Retry,
    /// The server's `Retry-After`.
    Asked,
    /// `beat_now`.
    Now,
}

/// A finished beat.
#[derive(Clone, Copy, Debug)]
pub(super) struct Beaten {
    pub(super) cause: Cause,
    pub(super) began: Instant,
    pub(super) now: Instant,
    pub(super) failed: bool,
    /// The server's `Retry-After`.
    pub(super) asked_wait: Option<Duration>,
    /// The end of the lease after this beat.
    pub(super) lease_end: Option<Instant>,
    /// A random number from 0 to 1.
    pub(super) jitter: f64,
}

/// What is known when the next beat is scheduled.
#[derive(Clone, Copy, Debug)]
pub(super) struct View {
    pub(super) now: Instant,
    /// The lifetime of the current token, on the monotonic clock.
    pub(super) token: Option<Lifetime>,
    pub(super) lease_end: Option<Instant>,
    /// How long the machine was suspended since the last beat.
    pub(super) suspended: Duration,
}

impl Schedule {
    /// Creates a schedule whose first beat is due at once.
    pub(super) fn new(
        now: Instant,
        every: Duration,
        lease: Option<Duration>,
        reissue_window: Option<f64>,
    ) -> Self {
        Self {
            every,
            lease,
            reissue_window,
            anchor: now,
            tick: now,
            planned: now,
            last: now,
            retry: None,
            not_before: None,
        }
    }

    pub(super) fn watches_the_token(&self) -> bool {
        self.reissue_window.is_some()
    }

    /// Returns when the next beat is due.
    pub(super) fn due(&self, view: &View) -> Due {
        let mut due = Due { at: self.planned, cause: Cause::Tick };
        let sooner = |due: &mut Due, at: Option<Instant>, cause| {
            if let Some(at) = at.filter(|at| *at < due.at) {
                *due = Due { at, cause };
            }
        };
        sooner(&mut due, self.retry, Cause::Retry);
        let places = self.places(view);
        let closest = later(self.last, CLOSEST);
        sooner(&mut due, places.iter().flatten().min().map(|&at| at.max(closest)), Cause::Window);
        if let (Some(_), Some(token)) = (self.reissue_window, view.token)
            && !view.suspended.is_zero()
            && view.now < token.until
            && due.at >= token.until
        {
            due = Due { at: view.now, cause: Cause::Window };
        }
        if let Some(asked) = self.not_before {
            let last_third = self.last_third(view);
            let limits = [last_third, places.iter().flatten().max().copied()];
            let at = limits.into_iter().flatten().fold(asked, Instant::min);
            if at > due.at {
                due = Due { at, cause: Cause::Asked };
            }
        }
        due
    }

    /// The places in the reissue window that are still ahead or were missed. The window of an
    /// expired token is over and not made up.
    fn places(&self, view: &View) -> [Option<Instant>; 2] {
        let (Some(fraction), Some(token)) = (self.reissue_window, view.token) else {
            return [None; 2];
        };
        // The token aged while the machine was suspended, but the monotonic clock stood still.
        let last = self.last.checked_sub(view.suspended).unwrap_or(self.last);
        window(token, fraction).map(|at| Some(at).filter(|&at| at > last && view.now < token.until))
    }

    /// The instant at which a third of the lease is left.
    fn last_third(&self, view: &View) -> Option<Instant> {
        let (end, lease) = view.lease_end.zip(self.lease)?;
        Some(end.checked_sub(lease / 3).unwrap_or(end))
    }

    /// Updates the schedule after a beat. A beat that was moved forward for the token moves the
    /// following ones too; other beats do not. Missed ticks are skipped.
    pub(super) fn beaten(&mut self, beaten: &Beaten) {
        let Beaten { cause, began, now, .. } = *beaten;
        let done = match cause {
            Cause::Tick => self.tick,
            Cause::Window => {
                self.anchor = began;
                began
            }
            Cause::Retry | Cause::Asked | Cause::Now => now,
        };
        self.last = began;
        // After an additional beat, the next tick stays due unless it has passed.
        if matches!(cause, Cause::Tick | Cause::Window) || now >= self.tick {
            self.plan(done.max(now), beaten.jitter);
        }
        self.retry = beaten
            .lease_end
            .filter(|_| beaten.failed)
            .map(|end| later(now, (end.saturating_duration_since(now) / 2).max(SHORTEST_RETRY)));
        self.not_before = match beaten.asked_wait {
            Some(wait) => Some(later(now, wait)),
            None => self.not_before.filter(|_| beaten.failed),
        };
    }

    /// Sets the period that the server asks for.
    pub(super) fn set_every(&mut self, every: Duration, beaten: &Beaten) {
        if every != self.every {
            self.every = every;
            self.anchor = beaten.began;
            self.plan(beaten.now, beaten.jitter);
        }
    }

    fn plan(&mut self, after: Instant, jitter: f64) {
        self.tick = tick_after(self.anchor, self.every, after);
        let early = self.every.min(NEVER).mul_f64(JITTER * jitter.clamp(0.0, 1.0));
        self.planned = self.tick.checked_sub(early).unwrap_or(self.tick);
    }
}

/// Limits a period that the server has asked for.
pub(super) fn period(asked: Duration, lease: Option<Duration>) -> Duration {
    let [shortest, longest] = PERIODS;
    let period = asked.clamp(shortest, longest);
    // Never zero, whatever the lease.
    lease.map_or(period, |lease| period.min(lease / 2)).max(CLOSEST)
}

/// Whether a 429 with `Retry-After` does not count towards `max_failures`, because the last success
/// is recent enough.
pub(super) fn is_pardoned(every: Duration, since_success: Duration) -> bool {
    since_success < every.saturating_mul(10).max(LONGEST_PARDON)
}

/// The first tick after `now`, at a whole number of periods after `anchor`.
fn tick_after(anchor: Instant, every: Duration, now: Instant) -> Instant {
    let period = every.as_nanos().max(1);
    let passed = now.saturating_duration_since(anchor).as_nanos() / period;
    match u64::try_from((passed + 1).saturating_mul(period)) {
        Ok(nanos) => later(anchor, Duration::from_nanos(nanos)),
        Err(_) => later(now, NEVER),
    }
}

/// The two beats in the last part of a token's lifetime.
fn window(lifetime: Lifetime, fraction: f64) -> [Instant; 2] {
    let life = lifetime.until.saturating_duration_since(lifetime.from);
    IN_WINDOW.map(|part| later(lifetime.from, life.mul_f64(fraction + (1.0 - fraction) * part)))
}

/// Adds a span, and stays within the range of the clock.
pub(super) fn later(from: Instant, span: Duration) -> Instant {
    from.checked_add(span).or_else(|| from.checked_add(NEVER)).unwrap_or(from)
}

#[cfg(test)]
mod tests;
