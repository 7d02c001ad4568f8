//! Decides who waits for a refresh, and who starts it.

use std::{
    future::{Future as _, poll_fn},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use tokio::{runtime::Handle, time::Instant};

use super::{
    super::{
        Session,
        decisions::Step,
        state::{Phase, State},
    },
    in_flight::{Ending, InFlight, RefreshResult},
    task,
};
use crate::{
    error::{Error, ErrorKind},
    telemetry::Begun,
    time::{Elapsed, within},
};

/// What a request does next, with the refresh to wait for.
pub(crate) enum Join {
    /// Go on. `started` is the refresh that this started in the background.
    Go {
        started: Option<Waiter>,
    },
    Wait(Waiter),
    Fail(Error),
}

/// Whether a request may start a refresh, or only join one.
pub(crate) enum Allowance {
    Start,
    JoinOnly,
    /// The refresh that the request started failed permanently, and so would another.
    Failed(Error),
}

impl Allowance {
    fn apply(&self, step: Step, state: &State) -> Step {
        match (self, step) {
            (Self::JoinOnly | Self::Failed(_), Step::GoAndRenew) => Step::Go,
            (Self::JoinOnly, Step::Wait) if state.in_flight.is_none() => Step::Go,
            (Self::Failed(error), Step::Wait) if state.in_flight.is_none() => {
                Step::Fail(error.clone())
            }
            (_, step) => step,
        }
    }
}

/// A handle for waiting for a refresh.
#[derive(Clone)]
pub(crate) struct Waiter {
    in_flight: Arc<InFlight>,
    generation: u64,
    /// Whether this waiter started the refresh.
    pub(crate) started: bool,
}

impl Waiter {
    /// The outcome of the refresh, if it has ended.
    pub(crate) fn outcome(&self) -> Option<Result<Ending, Error>> {
        self.in_flight.outcome()
    }
}

impl Session {
    /// Decides before a request is sent.
    pub(crate) fn should_refresh(&self, allowance: &Allowance) -> Join {
        self.join(|state, now| allowance.apply(state.should_refresh(now), state), None)
    }

    /// Decides before a request is sent that needs a token with this much lifetime left.
    pub(crate) fn should_refresh_valid_for(
        &self,
        at_least: Duration,
        allowance: &Allowance,
    ) -> Join {
        self.join(
            |state, now| allowance.apply(state.should_refresh_valid_for(at_least, now), state),
            None,
        )
    }

    /// Decides after the API rejected a token of generation `sent`, and records the rejection.
    pub(crate) fn after_rejection(&self, sent: u64, allowance: &Allowance) -> Join {
        let join = self.join(
            |state, now| allowance.apply(state.should_refresh_after_rejection(sent, now), state),
            Some(sent),
        );
        // A decision to wait is recorded together with the rejection.
        if !matches!(join, Join::Wait(_)) {
            self.mark_rejected(sent);
        }
        join
    }

    /// The shorter of a request's own timeout and the session's
    /// [`wait_timeout`](crate::SessionBuilder::wait_timeout).
    pub(crate) fn wait_limit(&self, own: Option<Duration>) -> Option<Duration> {
        own.into_iter().chain(self.0.wait_timeout).min()
    }

    /// Waits for a refresh, at most for this long, and returns how it ended. The refresh continues
    /// after the limit. A failed refresh counts as superseded if the token has changed in the
    /// meantime.
    ///
    /// Not an `async fn`, whose future would be larger: each waiter holds one.
    pub(crate) fn wait<'a>(
        &'a self,
        waiter: &'a Waiter,
        limit: Option<Duration>,
    ) -> impl Future<Output = Result<Ending, Error>> + Send + 'a {
        let begun = Begun::now();
        async move {
            let outcome = match limit {
                Some(limit) if Handle::try_current().is_ok() => {
                    Box::pin(within(limit, self.outcome(waiter))).await
                }
                _ => Ok(self.outcome(waiter).await),
            };
            self.telemetry().wait(begun);
            match outcome {
                Ok(outcome) => outcome.or_else(|error| self.unless_superseded(waiter, error)),
                Err(Elapsed) => Err(Error::of(ErrorKind::TimedOut)),
            }
        }
    }

    /// Waits for the outcome, whichever runtime runs the refresh. A refresh whose runtime is shut
    /// down resolves too.
    async fn outcome(&self, Waiter { in_flight, .. }: &Waiter) -> RefreshResult {
        let _waits = in_flight.count_waiter();
        loop {
            // Created before the look at the outcome, and so notified even if it is set in between.
            let mut changed = pin!(in_flight.changed());
            if let Some(outcome) = in_flight.resolved() {
                return outcome.clone();
            }
            poll_fn(|context| {
                let changed = changed.as_mut().poll(context);
                // On each poll, because it may be on another runtime than the last.
                if changed.is_pending() {
                    self.watch_over(in_flight);
                }
                changed
            })
            .await;
        }
    }

    fn unless_superseded(&self, waiter: &Waiter, error: Error) -> Result<Ending, Error> {
        let state = self.load();
        let superseded = state.generation != waiter.generation
            && state.access.is_some()
            && !matches!(state.phase, Phase::Closed);
        if superseded { Ok(Ending::Superseded) } else { Err(error) }
    }

    /// Longer than any refresh on a running runtime: its own limit, and the time that the store may
    /// take to save its tokens.
    pub(in crate::session) fn longest_refresh(&self) -> Duration {
        let saving =
            self.0.store.as_ref().map_or(Duration::ZERO, |store| store.limit().saturating_mul(8));
        self.0.refresh_timeout.saturating_add(saving).saturating_add(Duration::from_secs(1))
    }

    /// Decides, and starts a refresh if necessary, in one atomic step. Of many callers, only the
    /// first takes the writer's lock. `rejected` is the generation that the API has rejected.
    pub(in crate::session) fn join(
        &self,
        decide: impl Fn(&State, Instant) -> Step,
        rejected: Option<u64>,
    ) -> Join {
        let (state, now) = self.load_now();
        match (decide(&state, now), &state.in_flight) {
            (Step::Go, _) => return Join::Go { started: None },
            (Step::Fail(error), _) => return Join::Fail(error),
            (Step::Wait, Some(in_flight)) if state.has_recorded(rejected) => {
                return Join::Wait(Waiter {
                    in_flight: Arc::clone(in_flight),
                    generation: state.generation,
                    started: false,
                });
            }
            _ => {}
        }
        drop(state);
        let mut started = None;
        let join = self.update(|state| {
            let background = match decide(state, now) {
                Step::Go => return Join::Go { started: None },
                Step::Fail(error) => return Join::Fail(error),
                Step::GoAndRenew => true,
                Step::Wait => false,
            };
            let generation = state.generation;
            state.rejected |= rejected.is_some();
            state.known_rejected |= rejected == Some(generation);
            let in_flight = state.in_flight.get_or_insert_with(|| {
                let in_flight = Arc::new(InFlight::new(state.login, generation));
                started = Some(Arc::clone(&in_flight));
                in_flight
            });
            let waiter =
                Waiter { in_flight: Arc::clone(in_flight), generation, started: started.is_some() };
            if background {
                Join::Go { started: Some(waiter).filter(|waiter| waiter.started) }
            } else {
                Join::Wait(waiter)
            }
        });
        if let Some(in_flight) = started {
            task::spawn(self, in_flight);
        }
        join
    }
}
