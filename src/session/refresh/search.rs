//! The search for a refresh token, in the session and in its store.

use super::{
    super::{
        Session,
        persist::{Look, StoreSync},
    },
    in_flight::InFlight,
    progress::{Next, Progress, Stage},
};
use crate::{
    error::{Error, ErrorKind},
    event::Event,
    refresher::RefreshLog,
    store::StoreLock,
    token::{RefreshToken, Tokens},
};

/// The result of a wait for the lock.
pub(super) enum Waited {
    Locked(Result<StoreLock, Error>),
    /// Another process has stored tokens, so no call is needed.
    Stored(Tokens),
}

/// The search for a refresh token that the token endpoint accepts. Each token is sent once.
pub(super) struct Search<'a> {
    pub(super) session: &'a Session,
    pub(super) store: &'a StoreSync,
    pub(super) in_flight: &'a InFlight,
    pub(super) progress: &'a Progress,
}

impl<'a> Search<'a> {
    pub(super) fn new(
        session: &'a Session,
        store: &'a StoreSync,
        in_flight: &'a InFlight,
        progress: &'a Progress,
    ) -> Self {
        Self { session, store, in_flight, progress }
    }

    /// Takes the store's lock and reads the store. A failing store is skipped, unless the refresh
    /// token is known to rotate: other processes would send it too, and a strict server would
    /// revoke them all (contract 10.1).
    pub(super) async fn lock_and_look(&self) -> Result<Next, Error> {
        let is_locked = match self.lock().await? {
            Ok(is_locked) => is_locked,
            Err(stored) => return Ok(Next::Take(stored)),
        };
        self.progress.is_at(Stage::Looking);
        let look = self.store.look(self.session).await;
        let is_readable = !matches!(look, Look::Failed);
        if !self.progress.catch_up() || !self.store.is_newest(self.in_flight.login()) {
            return Ok(Next::Superseded);
        }
        if let Some(next) = self.look_under_lock(is_locked, look).await? {
            return Ok(next);
        }
        if let Some(candidate) = self.store.candidate(self.in_flight.login()) {
            self.progress.ask_with(candidate);
        }
        if is_readable {
            // The previous holder may have failed in the meantime. A store that cannot be read is
            // reported once.
            self.store.hear(self.session).await;
        }
        self.heed()?;
        Ok(Next::Ask)
    }

    /// Takes the lock again after it may have lapsed. Another process may have held it and spent
    /// the refresh token (contract 10.5). `Ask` continues with the refresh token that is current by
    /// then.
    pub(super) async fn lock_again(&self) -> Result<Next, Error> {
        self.in_flight.set_lock(None);
        self.progress.searched().shared = true;
        let is_locked = match self.lock().await? {
            Ok(is_locked) => is_locked,
            Err(stored) => return Ok(Next::Take(stored)),
        };
        let look = self.store.look(self.session).await;
        let login = self.in_flight.login();
        if !self.session.is_current(login) || !self.store.is_newest(login) {
            return Ok(Next::Superseded);
        }
        Ok(self.look_under_lock(is_locked, look).await?.unwrap_or(Next::Ask))
    }

    /// Returns whether the refresh now holds the lock, or the tokens that another process has
    /// stored in the meantime.
    async fn lock(&self) -> Result<Result<bool, Tokens>, Error> {
        self.progress.is_at(Stage::Locking);
        match self.lock_or_watch().await? {
            Waited::Stored(stored) => Ok(Err(stored)),
            Waited::Locked(Ok(lock)) => {
                self.in_flight.set_lock(Some(lock));
                Ok(Ok(true))
            }
            Waited::Locked(Err(error)) => {
                self.session.emit(&Event::StoreFailed { error });
                Ok(Ok(false))
            }
        }
    }

    /// What the first read under a lock offers, if anything.
    async fn look_under_lock(&self, is_locked: bool, look: Look) -> Result<Option<Next>, Error> {
        let is_alone = !is_locked || matches!(look, Look::Failed);
        let has_refresh = self.progress.tokens().refresh_token().is_some();
        if is_alone && has_refresh && self.store.is_needed() {
            return Err(needs_the_store());
        }
        if matches!(look, Look::Same) && self.store.has_unsaved() {
            // The last save failed. Its tokens must be stored before the refresh token is spent.
            self.session.save_under(self.in_flight, None, &self.progress.tokens()).await;
        }
        Ok(self.consider(look))
    }

    /// Handles a refresh token that the token endpoint rejected.
    pub(super) async fn after_login_required(&self, error: Error) -> Result<Next, Error> {
        let asked = self.progress.tokens().refresh_token().cloned();
        let error = self.session.mark_if_lost(error, asked.as_ref());
        self.progress.searched().shared |= error.possibly_consumed();
        if let Some(asked) = &asked {
            self.store.died(asked);
        }
        if let Some(next) = self.look_again().await {
            return Ok(next);
        }
        if error.nothing_to_ask_with()
            && let Some(error) = self.store.bound_elsewhere(self.session)
        {
            return Err(error);
        }
        // Known from a record, or assumed: not every store has one.
        let maybe_spent = self.progress.searched().shared && !error.nothing_to_ask_with();
        Err(if maybe_spent { error.with_possibly_consumed() } else { error })
    }

    /// Looks for another token after a rejection: another process may have refreshed it, or the
    /// session may have received another one.
    pub(super) async fn look_again(&self) -> Option<Next> {
        // Read after the store, because the refresher may have continued with a token that it kept.
        let asked = self.progress.tokens().refresh_token().cloned();
        if asked.is_some() && asked == self.store.candidate(self.in_flight.login()) {
            self.store.set_candidate(self.in_flight.login(), None);
        }
        {
            let mut searched = self.progress.searched();
            let lock = self.in_flight.lock();
            // Without a record, each process that could read the token may have spent it.
            searched.shared |= asked.as_ref().is_some_and(|asked| {
                let recorded = lock.as_ref().and_then(|lock| lock.is_lost(asked));
                recorded.unwrap_or_else(|| self.store.is_shared(asked))
            });
            // Another process may have held the lock in the meantime.
            searched.shared |= lock.is_some_and(|lock| !lock.is_held());
            searched.tried.extend(asked);
        }
        let look = self.store.look(self.session).await;
        if let Some(next) = self.consider(look) {
            return Some(next);
        }
        if let Some(held) = self.progress.captured_meanwhile() {
            self.progress.ask_with(held);
            return Some(Next::Ask);
        }
        let given =
            self.store.given(self.in_flight.login()).filter(|given| !self.has_tried(given))?;
        self.progress.ask_with(given);
        Some(Next::Ask)
    }

    fn has_tried(&self, refresh: &RefreshToken) -> bool {
        self.progress.searched().tried.contains(refresh)
    }

    /// What the content of the store offers, if anything.
    pub(super) fn consider(&self, look: Look) -> Option<Next> {
        let Look::Changed(stored) = look else { return None };
        if self.session.can_use(&stored) {
            return Some(Next::Take(stored));
        }
        let refresh = stored.refresh_token().filter(|refresh| !self.has_tried(refresh))?;
        // Not adopted yet, because it may belong to another login than the access token (contract
        // 10.3).
        self.store.set_candidate(self.in_flight.login(), Some(refresh.clone()));
        self.progress.ask_with(refresh.clone());
        Some(Next::Ask)
    }
}

/// Contract 10.1.
pub(super) fn needs_the_store() -> Error {
    let why = "the refresh token rotates and is not sent while the store cannot be locked and read";
    Error::new(ErrorKind::Store, why).with_transient()
}
