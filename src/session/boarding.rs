//! Who waits for a flight, and who starts it.

use std::{sync::Arc, time::Duration};

use tokio::{
    runtime::Handle,
    time::{Instant, timeout},
};

use super::{
    Session,
    cell::{Cell, Ending, Landing},
    flight,
    state::{Phase, State, Step},
};
use crate::{
    error::{Error, ErrorKind},
    telemetry,
};

/// What a request is to do, with the flight to wait for.
pub(crate) enum Boarding {
    /// Go on. `started`: a flight began behind it.
    Go {
        started: bool,
    },
    Wait(Ticket),
    Fail(Error),
}

/// A place in a flight.
pub(crate) struct Ticket {
    cell: Arc<Cell>,
    generation: u64,
    /// The flight began with this one.
    pub(crate) started: bool,
}

impl Session {
    /// Before a request is sent: whether to wait. `may_start`: whether it may start a flight, or
    /// only join one.
    pub(crate) fn before_sending(&self, may_start: bool) -> Boarding {
        self.board(
            |state, now| match state.before_sending(now) {
                Step::Wait | Step::GoAndRenew if !may_start && state.flight.is_none() => Step::Go,
                step => step,
            },
            false,
        )
    }

    /// After the API refused a token of generation `sent`. `may_start` as above.
    pub(crate) fn after_refusal(&self, sent: u64, may_start: bool) -> Boarding {
        self.board(
            |state, now| match state.after_refusal(sent, now) {
                Step::Wait if !may_start && state.flight.is_none() => Step::Go,
                step => step,
            },
            true,
        )
    }

    /// Waits for a flight, and says whether it brought a token. One that fails is no failure if the
    /// token has changed meanwhile.
    pub(crate) async fn wait(&self, ticket: &Ticket) -> Result<Ending, Error> {
        let begun = Instant::now();
        let outcome = self.outcome_of(&ticket.cell).await;
        telemetry::wait(begun.elapsed());
        if outcome.is_err() {
            let state = self.load();
            if state.generation != ticket.generation
                && state.access.is_some()
                && !matches!(state.phase, Phase::Closed)
            {
                return Ok(Ending::Overtaken);
            }
        }
        outcome
    }

    async fn outcome_of(&self, cell: &Arc<Cell>) -> Landing {
        if Handle::try_current().is_err() {
            // Nothing here could tell the time.
            return cell.wait().await;
        }
        if let Ok(outcome) = timeout(self.longest_flight(), cell.wait()).await {
            return outcome;
        }
        // The runtime that runs it is not shut down, but nobody drives it any more.
        let error = Error::new(
            ErrorKind::Unavailable,
            "the runtime that runs the refresh has come to a stop",
        );
        self.end_flight(cell, Some(&error));
        cell.resolve(Err(error.clone()));
        Err(error)
    }

    /// Longer than any flight on a runtime that runs: its own limit, and what the store may take to
    /// save what it brought.
    pub(super) fn longest_flight(&self) -> Duration {
        let saving =
            self.0.vault.as_ref().map_or(Duration::ZERO, |vault| vault.limit().saturating_mul(8));
        self.0.flight_timeout.saturating_add(saving).saturating_add(Duration::from_secs(1))
    }

    /// Decides and, where it has to, starts a flight, in one step. Most need no more than a look:
    /// the lock is for the first.
    pub(super) fn board(
        &self,
        decide: impl Fn(&State, Instant) -> Step,
        refused: bool,
    ) -> Boarding {
        let now = Instant::now();
        let state = self.load();
        match (decide(&state, now), &state.flight) {
            (Step::Go, _) => return Boarding::Go { started: false },
            (Step::Fail(error), _) => return Boarding::Fail(error),
            (Step::Wait, Some(cell)) if state.refused || !refused => {
                return Boarding::Wait(Ticket {
                    cell: Arc::clone(cell),
                    generation: state.generation,
                    started: false,
                });
            }
            _ => {}
        }
        drop(state);
        let mut started = None;
        let boarding = self.update(|state| {
            let background = match decide(state, now) {
                Step::Go => return Boarding::Go { started: false },
                Step::Fail(error) => return Boarding::Fail(error),
                Step::GoAndRenew => true,
                Step::Wait => false,
            };
            let generation = state.generation;
            state.refused |= refused;
            let cell = state.flight.get_or_insert_with(|| {
                let cell = Arc::new(Cell::new(state.epoch, generation));
                started = Some(Arc::clone(&cell));
                cell
            });
            let ticket = Ticket { cell: Arc::clone(cell), generation, started: started.is_some() };
            if background {
                Boarding::Go { started: ticket.started }
            } else {
                Boarding::Wait(ticket)
            }
        });
        if let Some(cell) = started {
            flight::launch(self, cell);
        }
        boarding
    }
}
