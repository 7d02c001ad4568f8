//! Who waits for a refresh, and who starts it.

use std::{sync::Arc, time::Duration};

use tokio::{runtime::Handle, time::Instant};

use super::{
    super::{
        Session,
        state::{Phase, State, Step},
    },
    in_flight::{Ending, InFlight, RefreshResult},
    task,
};
use crate::{
    error::{Error, ErrorKind},
    time::within,
};

/// What a request does next, with the refresh to wait for.
pub(crate) enum Join {
    /// Go on. `started`: a refresh began in the background.
    Go {
        started: bool,
    },
    Wait(Waiter),
    Fail(Error),
}

/// One who waits for a refresh.
pub(crate) struct Waiter {
    in_flight: Arc<InFlight>,
    generation: u64,
    /// The refresh began with this one.
    pub(crate) started: bool,
}

impl Session {
    /// Before a request is sent: whether to wait. `may_start`: whether it may start a refresh, or
    /// only join one.
    pub(crate) fn should_refresh(&self, may_start: bool) -> Join {
        self.join(
            |state, now| match state.should_refresh(now) {
                Step::Wait | Step::GoAndRenew if !may_start && state.in_flight.is_none() => {
                    Step::Go
                }
                step => step,
            },
            false,
        )
    }

    /// After the API rejected a token of generation `sent`. `may_start` as above.
    pub(crate) fn after_rejection(&self, sent: u64, may_start: bool) -> Join {
        self.join(
            |state, now| match state.should_refresh_after_rejection(sent, now) {
                Step::Wait if !may_start && state.in_flight.is_none() => Step::Go,
                step => step,
            },
            true,
        )
    }

    /// Waits for a refresh, and says whether it brought a token. One that fails is no failure if the
    /// token has changed meanwhile.
    pub(crate) async fn wait(&self, waiter: &Waiter) -> Result<Ending, Error> {
        let begun = Instant::now();
        let outcome = self.outcome_of(&waiter.in_flight).await;
        self.telemetry().wait(begun.elapsed());
        if outcome.is_err() {
            let state = self.load();
            if state.generation != waiter.generation
                && state.access.is_some()
                && !matches!(state.phase, Phase::Closed)
            {
                return Ok(Ending::Superseded);
            }
        }
        outcome
    }

    async fn outcome_of(&self, in_flight: &Arc<InFlight>) -> RefreshResult {
        if Handle::try_current().is_err() {
            // Nothing here could tell the time.
            return in_flight.wait().await;
        }
        if let Ok(outcome) = within(self.longest_refresh(), in_flight.wait()).await {
            return outcome;
        }
        // The runtime that runs it is not shut down, but nobody drives it any more.
        let error = Error::new(
            ErrorKind::Unavailable,
            "the runtime that runs the refresh has come to a stop",
        );
        self.end_refresh(in_flight, Some(&error));
        in_flight.resolve(Err(error.clone()));
        Err(error)
    }

    /// Longer than any refresh on a runtime that runs: its own limit, and what the store may take to
    /// save what it brought.
    pub(in crate::session) fn longest_refresh(&self) -> Duration {
        let saving =
            self.0.store.as_ref().map_or(Duration::ZERO, |store| store.limit().saturating_mul(8));
        self.0.refresh_timeout.saturating_add(saving).saturating_add(Duration::from_secs(1))
    }

    /// Decides and, where it has to, starts a refresh, in one step. Only the first of many takes
    /// the writer's lock.
    pub(in crate::session) fn join(
        &self,
        decide: impl Fn(&State, Instant) -> Step,
        rejected: bool,
    ) -> Join {
        let now = Instant::now();
        let state = self.load();
        match (decide(&state, now), &state.in_flight) {
            (Step::Go, _) => return Join::Go { started: false },
            (Step::Fail(error), _) => return Join::Fail(error),
            (Step::Wait, Some(in_flight)) if state.rejected || !rejected => {
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
                Step::Go => return Join::Go { started: false },
                Step::Fail(error) => return Join::Fail(error),
                Step::GoAndRenew => true,
                Step::Wait => false,
            };
            let generation = state.generation;
            state.rejected |= rejected;
            let in_flight = state.in_flight.get_or_insert_with(|| {
                let in_flight = Arc::new(InFlight::new(state.login, generation));
                started = Some(Arc::clone(&in_flight));
                in_flight
            });
            let waiter =
                Waiter { in_flight: Arc::clone(in_flight), generation, started: started.is_some() };
            if background { Join::Go { started: waiter.started } } else { Join::Wait(waiter) }
        });
        if let Some(in_flight) = started {
            task::spawn(self, in_flight);
        }
        join
    }
}
