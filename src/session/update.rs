//! How a session's state changes: one writer at a time publishes a changed copy.

use std::{sync::Arc, time::Duration};

use arc_swap::Guard;
use tokio::time::Instant;

use super::{
    Inner, Session, can_refresh, expiry,
    interleave::{self, lock},
    refresh::InFlight,
    state::{Phase, State, no_token},
};
use crate::{
    error::Error,
    refresher::Refresher,
    session_state::SessionState,
    store::Says,
    time::Now,
    token::{Arrival, Lifetime, RefreshToken, Tokens},
};

impl Session {
    pub(super) fn is_current(&self, login: u64) -> bool {
        self.load().login == login
    }

    /// Whether these tokens from the store make a call to the token endpoint unnecessary.
    pub(super) fn can_use(&self, theirs: &Tokens) -> bool {
        let expired = theirs
            .lifetime(Arrival::Handed)
            .is_some_and(|lifetime| lifetime.until <= Instant::now());
        theirs.access_token().is_some_and(|access| self.load().access.as_ref() != Some(access))
            && !expired
    }

    /// Publishes the result of a refresh. `issued` is the length of its probation, if the token
    /// endpoint has just issued it. Returns `None` if a later login or a logout has superseded the
    /// refresh.
    pub(super) fn adopt_tokens(
        &self,
        login: u64,
        tokens: &Tokens,
        lifetime: Option<Lifetime>,
        issued: Option<Duration>,
    ) -> Option<u64> {
        let due = self.due(lifetime);
        let pause = issued.and_then(|left| Instant::now().checked_add(left));
        self.update(|state| {
            if state.login != login {
                return None;
            }
            state.adopt_tokens(tokens, lifetime, due, pause);
            Some(state.generation)
        })
    }

    /// Adopts the stored tokens. An expired access token never replaces a valid one. In that case
    /// only its refresh token is used, in the next refresh (contract 10.3).
    pub(super) fn adopt_stored(&self, stored: &Tokens) {
        let lifetime = stored.lifetime(Arrival::Handed);
        let state = self.load_full();
        let now = Instant::now();
        let is_useless = stored.access_token().is_none()
            || lifetime.as_ref().is_some_and(|lifetime| lifetime.until <= now);
        if is_useless && state.access.is_some() && !state.is_expired(now) {
            if let Some(store) = &self.0.store {
                let refresh =
                    stored.refresh_token().filter(|&own| state.refresh.as_ref() != Some(own));
                store.set_candidate(state.login, refresh.cloned());
            }
            return;
        }
        let login = state.login;
        self.adopt_tokens(login, stored, lifetime, None);
    }

    /// Keeps a refresh token during a refresh. Returns the tokens to save.
    pub(super) fn keep_refresh(&self, login: u64, refresh: RefreshToken) -> Option<Tokens> {
        self.update(|state| {
            (state.login == login).then(|| {
                state.refresh = Some(refresh);
                state.tokens()
            })
        })
    }

    /// Marks an error that ends the login if an earlier call may have spent the refresh token.
    pub(super) fn mark_if_lost(&self, error: Error, asked: Option<&RefreshToken>) -> Error {
        let lost = asked.is_some() && self.load().unanswered.as_ref() == asked;
        if lost && !error.nothing_to_ask_with() { error.with_possibly_consumed() } else { error }
    }

    /// Removes the refresh token if it is among the rejected ones.
    pub(super) fn forget_refresh(&self, login: u64, dead: &[RefreshToken]) {
        self.update(|state| {
            if state.login == login {
                state.refresh.take_if(|refresh| dead.contains(refresh));
            }
        });
    }

    /// Ends a refresh whose refresher had nothing new. Returns the error for the waiters if the
    /// current token is unusable.
    pub(super) fn end_without_news(&self, in_flight: &Arc<InFlight>) -> Option<Error> {
        self.update(|state| {
            state.in_flight.take_if(|refresh| Arc::ptr_eq(refresh, in_flight))?;
            state.no_news(Instant::now(), self.0.cooldown)
        })
    }

    /// Ends a refresh. Returns whether it was the current refresh of the session.
    pub(super) fn end_refresh(&self, in_flight: &Arc<InFlight>, error: Option<&Error>) -> bool {
        let is_it = |state: &State| {
            state.in_flight.as_ref().is_some_and(|refresh| Arc::ptr_eq(refresh, in_flight))
        };
        if !is_it(&self.load()) {
            return false;
        }
        self.update(|state| {
            let is_it = is_it(state);
            if is_it {
                state.in_flight = None;
                state.rejected = false;
                if let Some(lost) = in_flight.unanswered() {
                    state.unanswered = Some(lost);
                }
                if let Some(error) = error {
                    match in_flight.stands_back() {
                        Some((cause, left)) => {
                            state.stand_back(cause, Instant::now() + *left);
                            self.bound_cooldown(state);
                        }
                        None => self.fail(state, error),
                    }
                }
            }
            is_it
        })
    }

    fn fail(&self, state: &mut State, error: &Error) {
        let now = Instant::now();
        state.fail(error, now, self.0.cooldown);
        if self.0.store.as_ref().is_some_and(|store| store.is_shared_by_others())
            && Says::is_own_trouble(error)
        {
            // Other processes go first (contract 10.8).
            state.lengthen_cooldown(now, self.0.cooldown.saturating_mul(2));
        }
        self.bound_cooldown(state);
    }

    fn bound_cooldown(&self, state: &mut State) {
        if let Some(longest) = self.0.longest_cooldown {
            state.shorten_cooldown(Instant::now(), longest);
        }
    }

    /// How long no call is made to the token endpoint after this failure.
    pub(super) fn cooldown_after(&self, error: &Error) -> Duration {
        let mut state = State::clone(&self.load());
        self.fail(&mut state, error);
        match state.phase {
            Phase::CoolingDown { until, .. } => until.saturating_duration_since(Instant::now()),
            _ => self.0.cooldown,
        }
    }

    /// Forgets earlier failures for [`Session::refresh`], which ignores them.
    pub(super) fn forget_failures(&self) {
        if self.load().failures > 0 {
            self.update(|state| state.failures = 0);
        }
    }

    /// Records that a replay was rejected too. If its token was just issued, another one would not
    /// help (contract 3.6).
    pub(crate) fn replay_rejected(&self, generation: u64) {
        let now = Instant::now();
        let Some(until) = now.checked_add(self.0.cooldown) else { return };
        if self.load().is_fresh(generation, now) {
            self.update(|state| {
                if state.is_fresh(generation, now) {
                    state.replay_pause = Some(until);
                }
            });
        }
    }

    /// Tells subscribers that a cool-down may be over.
    pub(super) fn tell_time(&self) {
        let _writer = lock(&self.0.writer);
        self.tell_subscribers(&self.load(), false);
    }

    pub(super) fn due(&self, lifetime: Option<Lifetime>) -> Option<Instant> {
        lifetime.map(|lifetime| expiry::due(lifetime, self.0.refresh_ahead, fastrand::f64()))
    }

    /// Loads the state and reads the clock. After the machine was suspended, the token's times are
    /// adjusted to the wall clock first.
    pub(super) fn load_now(&self) -> (Guard<Arc<State>>, Instant) {
        let now = Now::read();
        let mut state = self.load();
        if !state.missed(now).is_zero() {
            self.update(|state| state.catch_up(now));
            state = self.load();
        }
        (state, now.monotonic)
    }

    /// Publishes a changed copy of the state.
    pub(super) fn update<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        let writer = lock(&self.0.writer);
        let before = self.0.current.load_full();
        let mut state = State::clone(&before);
        let result = change(&mut state);
        state.renewable = self.0.is_renewable(&state);
        if state.header.is_none() {
            state.header = state.access.as_ref().map(|token| self.0.placement.value(token));
        }
        let state = Arc::new(state);
        self.0.current.store(Arc::clone(&state));
        #[cfg(feature = "metrics")]
        self.telemetry().state(Some(state.public(Instant::now())));
        self.tell_subscribers(&state, false);
        if state.is_news(&before) {
            self.0.changed.notify_waiters();
        }
        drop(writer);
        interleave::switch();
        result
    }

    /// Notifies subscribers. The caller holds the writer's lock, so that they receive the changes
    /// in order. `is_new` says that there is a new subscriber.
    pub(super) fn tell_subscribers(&self, state: &State, is_new: bool) {
        let Some(sender) = self.0.subscribers.get() else {
            return;
        };
        let now = Instant::now();
        let public = state.public(now);
        let changed = sender.send_if_modified(|told| std::mem::replace(told, public) != public);
        if let (Phase::CoolingDown { until, .. }, SessionState::CoolingDown) =
            (&state.phase, public)
            && (changed || is_new)
            && sender.receiver_count() > 0
        {
            // Only subscribers need to know when a cool-down ends.
            self.0.timer.set(*until, Arc::downgrade(&self.0));
        }
    }
}

/// Saving, if there is a store.
impl Session {
    pub(super) fn save_soon(&self) {
        if let Some(store) = &self.0.store {
            store.save_soon(self);
        }
    }

    pub(super) fn save_what_is_left(&self, at_the_end: bool) {
        if let Some(store) = &self.0.store {
            store.save_what_is_left(self, at_the_end);
        }
    }

    pub(super) async fn save_under(
        &self,
        in_flight: &InFlight,
        asked: Option<&RefreshToken>,
        tokens: &Tokens,
    ) {
        if let Some(store) = &self.0.store {
            store.save_under(self, in_flight, asked, tokens).await;
        }
    }

    pub(super) async fn save_now(&self, login: u64) -> Result<(), Error> {
        match &self.0.store {
            Some(store) => store.save_now(self, login).await,
            None => Ok(()),
        }
    }
}

impl Session {
    /// Starts in `LoginRequired`, because neither the caller nor the store has a token, and none
    /// can be obtained without one.
    pub(super) fn starts_logged_out(&self) {
        let can_ask = |refresher: &dyn Refresher| can_refresh(refresher, &Tokens::empty());
        if !self.load().has_tokens() && !self.0.refresher.as_deref().is_some_and(can_ask) {
            let store = self.0.store.as_deref();
            let cause =
                store.and_then(|store| store.bound_elsewhere(self)).unwrap_or_else(no_token);
            self.update(|state| state.phase = Phase::LoginRequired(cause));
        }
    }
}

impl Inner {
    fn is_renewable(&self, state: &State) -> bool {
        match &self.refresher {
            // The store may hold a refresh token.
            Some(_) if self.store.is_some() => true,
            Some(refresher) => can_refresh(&**refresher, &state.tokens()),
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{refresher::refresh_with, time::suspend};

    /// Contract 12.2.
    #[tokio::test(start_paused = true)]
    async fn after_a_suspend_a_token_is_renewed() {
        let hour = Duration::from_secs(3600);
        let session = Session::builder(Tokens::new("old").unwrap().with_expires_in(hour))
            .origin("https://api.example.com")
            .refresher(refresh_with(|_| async { Tokens::new("new") }))
            .build()
            .unwrap();
        suspend(2 * hour);
        let credential = session.credential("https://api.example.com/").await.unwrap();
        assert_eq!(credential.access_token().expose_secret(), "new");
    }
}
