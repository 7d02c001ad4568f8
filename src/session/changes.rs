//! Lets a heartbeat wait for changes of a session without polling: for its close, its next token,
//! and its next login.

use std::pin::pin;

use super::{
    Session,
    state::{Phase, State},
};
use crate::{time::within, token::Lifetime};

/// Identifies a login of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LoginMark {
    generation: u64,
    login: u64,
    required: bool,
}

impl State {
    fn mark(&self) -> LoginMark {
        LoginMark {
            generation: self.generation,
            login: self.login,
            required: matches!(self.phase, Phase::LoginRequired(_)),
        }
    }

    fn is_closed(&self) -> bool {
        matches!(self.phase, Phase::Closed)
    }

    /// Whether a waiter may be interested in the change from `before`.
    pub(super) fn is_news(&self, before: &Self) -> bool {
        self.mark() != before.mark()
            || self.lifetime != before.lifetime
            || self.is_closed() != before.is_closed()
    }
}

impl Session {
    pub(crate) fn login_mark(&self) -> LoginMark {
        self.load().mark()
    }

    /// Returns when the session is closed.
    pub(crate) async fn closed(&self) {
        self.until(State::is_closed).await;
    }

    /// The token's times as computed when it arrived, whatever the clocks have done since.
    pub(crate) fn token_times(&self) -> Option<Lifetime> {
        self.load().lifetime
    }

    /// Returns when the token's times differ from `seen`.
    pub(crate) async fn token_times_changed(&self, seen: Option<Lifetime>) {
        self.until(|state| state.lifetime != seen).await;
    }

    /// Returns when the token or the login differs from `seen`.
    pub(crate) async fn login_changed(&self, seen: LoginMark) {
        self.until(|state| state.mark() != seen).await;
    }

    /// Returns when no refresh is in progress and nothing is left to save.
    pub(crate) async fn refreshes_ended(&self) {
        let in_flight = self.load().in_flight.clone();
        let ended = async {
            if let Some(in_flight) = in_flight {
                in_flight.ended().await;
            }
            // A superseded refresh may still be ending.
            self.0.turn.free().await;
        };
        let _ = within(self.longest_refresh(), ended).await;
        if let Some(store) = &self.0.store {
            let _ = within(self.longest_refresh(), store.settled()).await;
        }
    }

    async fn until(&self, reached: impl Fn(&State) -> bool) {
        loop {
            let mut change = pin!(self.0.changed.notified());
            // Registered before the check, so that no change in between is missed.
            change.as_mut().enable();
            if reached(&self.load()) {
                return;
            }
            change.await;
        }
    }
}
