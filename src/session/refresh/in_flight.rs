//! Where a flight and those who wait for it meet.

use std::sync::{Mutex, PoisonError};

use tokio::sync::{Notify, watch};

use crate::{
    error::{Error, ErrorKind},
    store::StoreLock,
};

/// How a flight ends for those who wait: whether it brought a token, or was superseded by the
/// user's word.
pub(in crate::session) type RefreshResult = Result<Ending, Error>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    Refreshed,
    Superseded,
}

/// What a session's state holds while a flight is under way.
pub(crate) struct InFlight {
    outcome: watch::Sender<Option<RefreshResult>>,
    /// Of the session's state when it began.
    epoch: u64,
    /// The generation to be renewed.
    generation: u64,
    /// The user has spoken: what the flight brings is not wanted any more.
    superseded: Notify,
    /// The store's lock, while the flight has it: the session's own saves use it.
    lock: Mutex<Option<StoreLock>>,
    /// Whether its task is gone: those who wait may be freed before that.
    ended: watch::Sender<bool>,
}

impl InFlight {
    pub(in crate::session) fn new(epoch: u64, generation: u64) -> Self {
        Self {
            outcome: watch::Sender::new(None),
            epoch,
            generation,
            superseded: Notify::new(),
            lock: Mutex::default(),
            ended: watch::Sender::new(false),
        }
    }

    /// Frees those who wait, unless they are free already.
    pub(in crate::session) fn resolve(&self, outcome: RefreshResult) {
        self.outcome.send_if_modified(|slot| {
            let first = slot.is_none();
            if first {
                *slot = Some(outcome);
            }
            first
        });
    }

    /// The user's word supersedes the flight: whoever waits goes on with it, and the call is given
    /// up.
    pub(in crate::session) fn supersede(&self, outcome: RefreshResult) {
        self.resolve(outcome);
        self.superseded.notify_one();
    }

    /// The flight's outcome. Whoever leads it, on whichever runtime: a flight that dies resolves
    /// too.
    pub(in crate::session) async fn wait(&self) -> RefreshResult {
        let mut outcome = self.outcome.subscribe();
        let outcome = outcome.wait_for(Option::is_some).await;
        outcome.ok().and_then(|outcome| outcome.clone()).unwrap_or_else(|| Err(broken_off()))
    }

    /// Waits until its task is gone, with all that it had to save.
    pub(in crate::session) async fn ended(&self) {
        let _ = self.ended.subscribe().wait_for(|ended| *ended).await;
    }

    /// A share of the store's lock, if the flight has it.
    pub(in crate::session) fn lock(&self) -> Option<StoreLock> {
        self.lock.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(StoreLock::share)
    }

    pub(in crate::session) fn is_resolved(&self) -> bool {
        self.outcome.borrow().is_some()
    }

    /// Waits until the user's word supersedes the flight.
    pub(in crate::session) async fn superseded(&self) {
        self.superseded.notified().await;
    }

    /// The flight's task is gone.
    pub(in crate::session) fn end(&self) {
        self.ended.send_replace(true);
    }

    pub(in crate::session) fn generation(&self) -> u64 {
        self.generation
    }

    pub(in crate::session) fn epoch(&self) -> u64 {
        self.epoch
    }

    pub(in crate::session) fn set_lock(&self, lock: Option<StoreLock>) {
        *self.lock.lock().unwrap_or_else(PoisonError::into_inner) = lock;
    }
}

pub(in crate::session) fn broken_off() -> Error {
    Error::new(ErrorKind::Internal, "the runtime that ran the refresh is gone")
}
