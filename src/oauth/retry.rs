//! Decides what is retried, when and how often: pure functions over durations.

use std::time::Duration;

use super::failure::Failure;

/// The retry settings of a refresh.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    pub(super) max_attempts: u32,
    pub(super) first: Duration,
    pub(super) longest: Duration,
    pub(super) deadline: Duration,
    pub(super) max_retry_after: Duration,
    pub(super) retry_lost: bool,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            max_attempts: 6,
            first: Duration::from_millis(500),
            longest: Duration::from_secs(10),
            deadline: Duration::from_secs(60),
            max_retry_after: Duration::from_secs(30),
            retry_lost: true,
        }
    }
}

/// How long the token endpoint asks its clients to wait, if it does.
pub(super) type AskedWait = Option<Duration>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    TryAfter(Duration),
    End,
}

impl Pace {
    /// Decides what follows after attempt number `attempt` (counted from 1) failed, `elapsed` after
    /// the start of the refresh. `roll` is a random number from 0 to 1.
    pub(super) fn next(
        &self,
        failure: Failure,
        attempt: u32,
        asked: AskedWait,
        elapsed: Duration,
        roll: f64,
    ) -> Next {
        let step = match failure {
            Failure::Busy | Failure::Unreached | Failure::Salvaged => self.step(attempt),
            // No longer than the first step, because servers that rotate accept a spent refresh
            // token for a few seconds only.
            Failure::Lost if self.retry_lost => self.step(1),
            Failure::Lost
            | Failure::Throttled
            | Failure::GrantOver
            | Failure::Rejected
            | Failure::Strayed
            | Failure::RulePanicked
            | Failure::Down
            | Failure::Unusable(_)
            | Failure::Misconfigured
            | Failure::Panicked
            | Failure::NothingToAskWith => return Next::End,
        };
        let asked = asked.unwrap_or_default();
        let wait = jittered(step, roll).max(asked);
        let late = elapsed.checked_add(wait).is_none_or(|end| end >= self.deadline);
        if attempt >= self.max_attempts || asked > self.max_retry_after || late {
            Next::End
        } else {
            Next::TryAfter(wait)
        }
    }

    fn step(&self, attempt: u32) -> Duration {
        let mut step = self.first.min(self.longest);
        for _ in 1..attempt {
            if step.is_zero() || step == self.longest {
                break;
            }
            step = step.saturating_mul(2).min(self.longest);
        }
        step
    }
}

/// Draws from the upper half of the step, so that the processes of a fleet do not retry in
/// lockstep.
fn jittered(step: Duration, roll: f64) -> Duration {
    let half = step / 2;
    half.saturating_add(
        Duration::try_from_secs_f64(half.as_secs_f64() * roll).unwrap_or(half).min(half),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;
    const FAILURES: [Failure; 13] = [
        Failure::Busy,
        Failure::Unreached,
        Failure::Lost,
        Failure::Salvaged,
        Failure::GrantOver,
        Failure::Rejected,
        Failure::Down,
        Failure::Unusable("x"),
        Failure::Misconfigured,
        Failure::NothingToAskWith,
        Failure::Throttled,
        Failure::Strayed,
        Failure::RulePanicked,
    ];

    #[test]
    fn lost_responses_are_retried_if_allowed() {
        for (retry_lost, expected) in [(true, 4), (false, 3)] {
            let pace = Pace { retry_lost, ..Pace::default() };
            let retried = FAILURES.map(|failure| {
                pace.next(failure, 1, None, Duration::ZERO, 1.0) == Next::TryAfter(MS(500))
            });
            assert_eq!(retried.iter().filter(|yes| **yes).count(), expected);
            assert_eq!(
                retried.to_vec(),
                [[true, true, retry_lost, true].as_slice(), &[false; 9]].concat()
            );
        }
    }

    #[test]
    fn backoff_doubles_and_lost_takes_the_first() {
        let pace = Pace { max_attempts: u32::MAX, deadline: Duration::MAX, ..Pace::default() };
        let waits = |failure, roll| {
            [1, 2, 3, 4, 5, 6, 7, u32::MAX - 1].map(|n| pace.next(failure, n, None, MS(0), roll))
        };
        let full =
            [500, 1000, 2000, 4000, 8000, 10_000, 10_000, 10_000].map(|ms| Next::TryAfter(MS(ms)));
        let half = [250, 500, 1000, 2000, 4000, 5000, 5000, 5000].map(|ms| Next::TryAfter(MS(ms)));
        for failure in [Failure::Busy, Failure::Unreached, Failure::Salvaged] {
            assert_eq!(waits(failure, 1.0), full);
            assert_eq!(waits(failure, 0.0), half);
        }
        assert_eq!(waits(Failure::Lost, 1.0), [Next::TryAfter(MS(500)); 8]);
    }

    #[test]
    fn backoff_jitter_is_bounded_and_varies() {
        let pace = Pace::default();
        let runs: Vec<[Duration; 3]> = (0..30)
            .map(|_| {
                [1, 2, 3].map(|attempt| {
                    let Next::TryAfter(wait) =
                        pace.next(Failure::Busy, attempt, None, MS(0), fastrand::f64())
                    else {
                        panic!("ended")
                    };
                    let step = MS(500 << (attempt - 1));
                    assert!(step / 2 <= wait && wait <= step, "{wait:?} of {step:?}");
                    wait
                })
            })
            .collect();
        for step in 0..3 {
            assert!(runs.iter().any(|run| run[step] != runs[0][step]));
        }
    }

    #[test]
    fn retry_after_is_a_floor_up_to_its_longest() {
        let pace = Pace::default();
        let next = |asked| pace.next(Failure::Busy, 1, Some(asked), MS(0), 1.0);
        assert_eq!(next(MS(0)), Next::TryAfter(MS(500)));
        assert_eq!(next(MS(3000)), Next::TryAfter(MS(3000)));
        assert_eq!(next(MS(30_000)), Next::TryAfter(MS(30_000)));
        for asked in [MS(30_001), MS(86_400_000), Duration::MAX] {
            assert_eq!(next(asked), Next::End);
        }
    }

    #[test]
    fn the_last_attempt_and_the_deadline_end_it() {
        let pace = Pace { max_attempts: 3, deadline: MS(1000), ..Pace::default() };
        let next = |attempt, elapsed| pace.next(Failure::Busy, attempt, None, elapsed, 1.0);
        assert_eq!(next(1, MS(499)), Next::TryAfter(MS(500)));
        assert_eq!(next(1, MS(500)), Next::End);
        assert_eq!(next(2, MS(0)), Next::End);
        assert_eq!(next(1, Duration::MAX), Next::End);
        assert_eq!(
            Pace { max_attempts: 1, ..Pace::default() }.next(Failure::Lost, 1, None, MS(0), 1.0),
            Next::End
        );
        let open = Pace { deadline: Duration::MAX, ..pace };
        assert_eq!(open.next(Failure::Busy, 3, None, MS(0), 1.0), Next::End);
        assert_ne!(open.next(Failure::Busy, 2, None, MS(0), 1.0), Next::End);
    }

    #[test]
    fn absurd_durations_do_no_harm() {
        for first in [Duration::ZERO, Duration::from_nanos(1), Duration::MAX] {
            for longest in [Duration::ZERO, Duration::from_nanos(1), Duration::MAX] {
                let pace = Pace {
                    first,
                    longest,
                    deadline: Duration::MAX,
                    max_retry_after: Duration::MAX,
                    ..Pace::default()
                };
                for (attempt, asked, elapsed) in
                    [(1, None, MS(0)), (5, Some(Duration::MAX), MS(1)), (5, None, Duration::MAX)]
                {
                    for roll in [0.0, 1.0, f64::NAN, -1.0, 7.0] {
                        let _ = pace.next(Failure::Busy, attempt, asked, elapsed, roll);
                    }
                }
            }
        }
    }
}
