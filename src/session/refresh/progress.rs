//! The progress of a refresh.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{
    super::{Session, persist::StoreSync},
    in_flight::InFlight,
};
use crate::{
    error::{Error, ErrorKind},
    refresher::RefreshLog,
    time::Limit,
    token::{RefreshToken, Tokens},
};

/// The session's end of a [`RefreshContext`](crate::RefreshContext).
pub(super) struct Progress {
    pub(super) session: Session,
    pub(super) in_flight: Arc<InFlight>,
    limit: Limit,
    /// The tokens for the call to the token endpoint.
    pub(super) asked: Mutex<Tokens>,
    /// The session's refresh token, without one that a response has brought since.
    held: Mutex<Option<RefreshToken>>,
    stage: Mutex<Stage>,
    search: Mutex<Searched>,
}

/// The state of the search for a refresh token.
#[derive(Default)]
pub(super) struct Searched {
    /// The rejected refresh tokens.
    pub(super) tried: Vec<RefreshToken>,
    /// Whether another process may have spent one of them and lost the response: the record beside
    /// the lock says so, the store has no record, or the lock was lost for a while.
    pub(super) shared: bool,
    /// What was found when the refresher asked whether it may continue or fall back.
    pub(super) found: Option<Result<Next, Error>>,
    /// The refresh token is invalid, and the fallback refresher has obtained a token.
    pub(super) forgets: bool,
    /// The refresh fails like another process did, which is not reported again.
    pub(super) heeds: bool,
    /// The refresh token that the refresher kept last.
    pub(super) kept: Option<RefreshToken>,
}

/// What follows after the store was read.
pub(super) enum Next {
    /// The store holds tokens that make the call unnecessary.
    Take(Tokens),
    /// Call the token endpoint with the current refresh token.
    Ask,
    /// Make no call. A later login has been announced, and the stored tokens say nothing about this
    /// one.
    Superseded,
}

/// What a refresh is doing, for the error when its time is up.
#[derive(Clone, Copy)]
pub(super) enum Stage {
    /// Waiting for the end of a superseded refresh.
    Waiting,
    /// Reading the store.
    Looking,
    /// Waiting for the store's lock.
    Locking,
    /// Calling the token endpoint.
    Asking { failed_attempts: u32 },
}

impl Progress {
    pub(super) fn new(session: &Session, in_flight: &Arc<InFlight>, limit: Limit) -> Self {
        Self {
            session: session.clone(),
            in_flight: Arc::clone(in_flight),
            limit,
            asked: Mutex::new(Tokens::empty()),
            held: Mutex::default(),
            stage: Mutex::new(Stage::Waiting),
            search: Mutex::default(),
        }
    }

    pub(super) fn is_at(&self, stage: Stage) {
        *self.stage.lock().unwrap_or_else(PoisonError::into_inner) = stage;
    }

    pub(super) fn stage(&self) -> Stage {
        *self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the time is up, so that the response to a new call could not be awaited.
    pub(super) fn is_over(&self) -> bool {
        self.limit.is_over()
    }

    /// The error of a refresh whose time is up.
    pub(super) fn cut_short(&self) -> Error {
        let too_long = || {
            Error::new(ErrorKind::Unavailable, "the refresh took longer than the refresh timeout")
        };
        match self.stage() {
            Stage::Waiting | Stage::Looking => too_long(),
            Stage::Locking => Error::new(ErrorKind::Store, "the store's lock was not free in time"),
            Stage::Asking { failed_attempts } => {
                self.in_flight.mark(too_long().with_attempts(failed_attempts.saturating_add(1)))
            }
        }
    }

    /// Takes the session's current tokens. Returns `false` if they belong to a later login, and so
    /// to another refresh, even if this refresh has not been told yet that it is superseded.
    pub(super) fn catch_up(&self) -> bool {
        let state = self.session.load();
        let current = state.login == self.in_flight.login();
        if current {
            *self.asked.lock().unwrap_or_else(PoisonError::into_inner) = state.tokens();
            self.held.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&state.refresh);
        }
        current
    }

    /// A refresh token that a response has brought in the meantime, and that was not tried yet
    /// (contract 6.5).
    pub(super) fn captured_meanwhile(&self) -> Option<RefreshToken> {
        let state = self.session.load();
        let held = state.refresh.clone().filter(|_| state.login == self.in_flight.login());
        let known = self.held.lock().unwrap_or_else(PoisonError::into_inner).clone();
        held.filter(|held| known.as_ref() != Some(held) && !self.searched().tried.contains(held))
    }

    /// Makes this the refresh token of the session, or of the stored candidate if that one was
    /// sent.
    pub(super) fn hold(&self, refresh: RefreshToken) -> Option<Tokens> {
        let asked = self.tokens().refresh_token().cloned();
        if let Some(store) = &self.session.0.store
            && asked.is_some()
            && asked == store.candidate(self.in_flight.login())
        {
            store.set_candidate(self.in_flight.login(), Some(refresh.clone()));
            return Some(store.seen_with(refresh));
        }
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = Some(refresh.clone());
        self.session.keep_refresh(self.in_flight.login(), refresh)
    }

    pub(super) fn searched(&self) -> MutexGuard<'_, Searched> {
        self.search.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records beside the lock which refresh token is about to be sent. Returns whether the lock is
    /// still held, if there is one.
    pub(super) async fn records(&self, store: &StoreSync) -> bool {
        let Some(lock) = self.in_flight.lock() else { return true };
        if !lock.is_held() {
            return false;
        }
        match self.tokens().refresh_token() {
            Some(refresh) => store.records(&self.session, &lock, refresh).await,
            None => true,
        }
    }

    /// Continues with this refresh token.
    pub(super) fn ask_with(&self, refresh: RefreshToken) {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).set_refresh(Some(refresh));
    }
}
