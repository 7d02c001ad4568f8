//! What a refresh and its waiters share.

use std::{
    sync::{Mutex, OnceLock, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

use super::work::Work;
use crate::{
    error::{Error, ErrorKind},
    store::StoreLock,
    token::RefreshToken,
};

/// How a refresh ends for its waiters: it brought a token, or a `replace_tokens` or `clear`
/// superseded it, or it failed.
pub(in crate::session) type RefreshResult = Result<Ending, Error>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    Refreshed,
    Superseded,
}

/// What a session's state holds while a refresh is under way.
pub(crate) struct InFlight {
    outcome: watch::Sender<Option<RefreshResult>>,
    /// Of the session's state when it began.
    login: u64,
    /// The generation to be renewed.
    generation: u64,
    /// A later `replace_tokens` or `clear` counts: what the refresh brings is dropped.
    superseded: Notify,
    /// The store's lock, while the refresh has it: the session's other saves use it.
    lock: Mutex<Option<StoreLock>>,
    /// When a logout superseded it, the moment by which what it brings is revoked.
    logged_out: OnceLock<Instant>,
    /// Whether its task is gone: those who wait may be freed before that.
    ended: watch::Sender<bool>,
    /// The refresh token that may have been sent, as long as no response to it is known.
    unanswered: Mutex<Option<RefreshToken>>,
    /// Another process has failed, and the token endpoint is left alone for so long.
    stands_back: OnceLock<(Error, Duration)>,
    work: Work,
}

impl InFlight {
    pub(in crate::session) fn new(login: u64, generation: u64) -> Self {
        Self {
            outcome: watch::Sender::new(None),
            login,
            generation,
            superseded: Notify::new(),
            lock: Mutex::default(),
            logged_out: OnceLock::new(),
            ended: watch::Sender::new(false),
            unanswered: Mutex::default(),
            stands_back: OnceLock::new(),
            work: Work::default(),
        }
    }

    /// Frees the waiters, unless they are free already.
    pub(in crate::session) fn resolve(&self, outcome: RefreshResult) {
        self.outcome.send_if_modified(|slot| {
            let first = slot.is_none();
            if first {
                *slot = Some(outcome);
            }
            first
        });
    }

    /// A new login or a logout supersedes the refresh: its waiters go on with that, and the call is
    /// given up.
    pub(in crate::session) fn supersede(&self, outcome: RefreshResult) {
        self.resolve(outcome);
        self.superseded.notify_one();
    }

    /// A logout is about to supersede the refresh: the call goes on until this moment, and what it
    /// brings is revoked.
    pub(in crate::session) fn log_out(&self, revoked_by: Instant) {
        let _ = self.logged_out.set(revoked_by);
    }

    /// By when what it brings is to be revoked, if a logout has superseded it.
    pub(in crate::session) fn revoked_by(&self) -> Option<Instant> {
        self.logged_out.get().copied()
    }

    /// The outcome, whichever runtime runs the refresh. One that dies resolves too.
    pub(in crate::session) async fn wait(&self) -> RefreshResult {
        let mut outcome = self.outcome.subscribe();
        let outcome = outcome.wait_for(Option::is_some).await;
        outcome.ok().and_then(|outcome| outcome.clone()).unwrap_or_else(|| Err(broken_off()))
    }

    /// Waits until its task is gone, with all that it had to save.
    pub(in crate::session) async fn ended(&self) {
        let _ = self.ended.subscribe().wait_for(|ended| *ended).await;
    }

    /// A share of the store's lock, if the refresh has it.
    pub(in crate::session) fn lock(&self) -> Option<StoreLock> {
        self.lock.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(StoreLock::share)
    }

    /// The outcome, if there is one.
    pub(in crate::session) fn outcome(&self) -> Option<RefreshResult> {
        self.outcome.borrow().clone()
    }

    /// Notes the refresh token that is being sent, or that a response to it is known.
    pub(super) fn set_unanswered(&self, refresh: Option<RefreshToken>) {
        *self.unanswered.lock().unwrap_or_else(PoisonError::into_inner) = refresh;
    }

    /// The refresh token that may have been spent by a call whose response was lost.
    pub(in crate::session) fn unanswered(&self) -> Option<RefreshToken> {
        self.unanswered.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The refresh asks nobody, since another process has failed with this error.
    pub(super) fn stand_back(&self, cause: Error, left: Duration) {
        let _ = self.stands_back.set((cause, left));
    }

    /// Why the token endpoint is left alone, and for how long.
    pub(in crate::session) fn stands_back(&self) -> Option<&(Error, Duration)> {
        self.stands_back.get()
    }

    /// Adds what is known of a lost call to the error that ends it.
    pub(super) fn mark(&self, error: Error) -> Error {
        if self.unanswered().is_some() { error.with_possibly_consumed() } else { error }
    }

    pub(super) fn work(&self) -> &Work {
        &self.work
    }

    pub(in crate::session) fn is_resolved(&self) -> bool {
        self.outcome.borrow().is_some()
    }

    /// Waits until a new login or a logout supersedes the refresh.
    pub(in crate::session) async fn superseded(&self) {
        self.superseded.notified().await;
    }

    /// The task of the refresh is gone.
    pub(in crate::session) fn end(&self) {
        self.ended.send_replace(true);
    }

    pub(in crate::session) fn generation(&self) -> u64 {
        self.generation
    }

    pub(in crate::session) fn login(&self) -> u64 {
        self.login
    }

    pub(in crate::session) fn set_lock(&self, lock: Option<StoreLock>) {
        *self.lock.lock().unwrap_or_else(PoisonError::into_inner) = lock;
    }
}

impl AsRef<Work> for InFlight {
    fn as_ref(&self) -> &Work {
        &self.work
    }
}

pub(in crate::session) fn broken_off() -> Error {
    Error::new(ErrorKind::Internal, "the runtime of the refresh was shut down")
}
