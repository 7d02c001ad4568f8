//! When the next beat is due: from values to an instant, no clock and no await.
//!
//! What wins, where the rules disagree:
//!
//! 1. The tick: whole periods after the first beat, up to 5 % early.
//! 2. After a failed beat, half of what is left of the lease, if that is sooner.
//! 3. The two places in the token's reissue window, if one is sooner; and at once if the machine
//!    was suspended and the tick would come after the token's end.
//! 4. `Retry-After` moves all of these back, but not beyond the point where a third of the lease is
//!    left, and not beyond the last place in the reissue window.
//!
//! `beat_now` and the end of the lease heed none of them: both are the loop's.

use std::time::Duration;

use tokio::time::Instant;

use crate::token::Lifetime;

/// A beat comes before its tick by up to this part of the period, so that workers that were started
/// together do not beat together. Early and never late: a server that counts missed beats is none
/// the worse for it.
const JITTER: f64 = 0.05;
/// Where in the reissue window the two beats stand. The first well inside, since `iat` and `exp`
/// may be whole seconds and the server counts from when it signed; the second with time left for
/// its own response.
const IN_WINDOW: [f64; 2] = [0.25, 0.625];
/// Beats for the sake of a token's window are at least this far apart: a server that hands out
/// tokens of a millisecond is not to make the loop spin.
const CLOSEST: Duration = Duration::from_millis(10);
/// After a failed beat the next one comes no sooner than this because of the lease.
const SHORTEST_RETRY: Duration = Duration::from_secs(1);
/// Within these a server may set the period.
const PERIODS: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(3600)];
/// The longest time without a success for which a 429 is not held against the job.
const LONGEST_PARDON: Duration = Duration::from_secs(3600);
/// Beyond any schedule, and within what the clock can hold.
const NEVER: Duration = Duration::from_secs(60 * 60 * 24 * 365 * 10);

/// The beats of one worker.
#[derive(Clone, Debug)]
pub(super) struct Schedule {
    every: Duration,
    lease: Option<Duration>,
    reissue_window: Option<f64>,
    /// Ticks are whole periods after this.
    anchor: Instant,
    tick: Instant,
    /// `tick`, less the jitter.
    planned: Instant,
    last: Instant,
    /// After a failed beat, for the sake of the lease.
    retry: Option<Instant>,
    /// What `Retry-After` asked for.
    not_before: Option<Instant>,
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
    /// The last one failed, and the lease runs out.
    Retry,
    /// The server has said when.
    Asked,
    /// `beat_now`.
    Now,
}

/// A beat that is over.
#[derive(Clone, Copy, Debug)]
pub(super) struct Beaten {
    pub(super) cause: Cause,
    pub(super) began: Instant,
    pub(super) now: Instant,
    pub(super) failed: bool,
    /// The server's `Retry-After`.
    pub(super) asked_wait: Option<Duration>,
    /// The end of the lease, after this beat.
    pub(super) lease_end: Option<Instant>,
    /// A random number from 0 to 1.
    pub(super) jitter: f64,
}

/// What is known when the next beat is looked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct View {
    pub(super) now: Instant,
    /// Of the present token, as instants of the monotonic clock.
    pub(super) token: Option<Lifetime>,
    pub(super) lease_end: Option<Instant>,
    /// How long the machine was suspended since the last beat.
    pub(super) suspended: Duration,
}

impl Schedule {
    /// The first beat is at once.
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

    /// When to beat next.
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

    /// The places in the reissue window that are still to come, or were missed. For an expired
    /// token the window is over, and not made up.
    fn places(&self, view: &View) -> [Option<Instant>; 2] {
        let (Some(fraction), Some(token)) = (self.reissue_window, view.token) else {
            return [None; 2];
        };
        // The token has aged while the machine was suspended, and the monotonic clock has not.
        let last = self.last.checked_sub(view.suspended).unwrap_or(self.last);
        window(token, fraction).map(|at| Some(at).filter(|&at| at > last && view.now < token.until))
    }

    /// The moment at which a third of the lease is left.
    fn last_third(&self, view: &View) -> Option<Instant> {
        let (end, lease) = view.lease_end.zip(self.lease)?;
        Some(end.checked_sub(lease / 3).unwrap_or(end))
    }

    /// After a beat. One that was moved forward for the token's sake takes the following ones with
    /// it; others move nothing. Ticks that have passed meanwhile are left out.
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
        // After a beat that was in addition, the tick that was due next still is, unless it has
        // passed.
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

    /// The server wants a beat this often from now on.
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

/// A period that the server has asked for, within what is sensible.
pub(super) fn period(asked: Duration, lease: Option<Duration>) -> Duration {
    let [shortest, longest] = PERIODS;
    let period = asked.clamp(shortest, longest);
    // Not zero, whatever the lease.
    lease.map_or(period, |lease| period.min(lease / 2)).max(CLOSEST)
}

/// Whether a 429 that says when to come back counts for `max_failures`: only if there was no
/// success for a long time.
pub(super) fn is_pardoned(every: Duration, since_success: Duration) -> bool {
    since_success < every.saturating_mul(10).max(LONGEST_PARDON)
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

/// An instant that the clock can hold.
pub(super) fn later(from: Instant, span: Duration) -> Instant {
    from.checked_add(span).or_else(|| from.checked_add(NEVER)).unwrap_or(from)
}

#[cfg(test)]
mod tests;
