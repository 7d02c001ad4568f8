//! Where a flight and those who wait for it meet.

use std::sync::{Mutex, PoisonError};

use tokio::sync::{Notify, watch};

use crate::{
    error::{Error, ErrorKind},
    store::StoreLock,
};

/// How a flight ends for those who wait: whether it brought a token, or was overtaken by the user's
/// word.
pub(super) type Landing = Result<Ending, Error>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    Landed,
    Overtaken,
}

/// What a session's state holds while a flight is under way.
pub(crate) struct Cell {
    outcome: watch::Sender<Option<Landing>>,
    /// Of the session's state when it began.
    epoch: u64,
    /// The generation to be renewed.
    generation: u64,
    /// The user has spoken: what the flight brings is not wanted any more.
    overtaken: Notify,
    /// The store's lock, while the flight has it: the session's own saves use it.
    lock: Mutex<Option<StoreLock>>,
    /// Whether its task is gone: those who wait may be freed before that.
    ended: watch::Sender<bool>,
}

impl Cell {
    pub(super) fn new(epoch: u64, generation: u64) -> Self {
        Self {
            outcome: watch::Sender::new(None),
            epoch,
            generation,
            overtaken: Notify::new(),
            lock: Mutex::default(),
            ended: watch::Sender::new(false),
        }
    }

    /// Frees those who wait, unless they are free already.
    pub(super) fn resolve(&self, outcome: Landing) {
        self.outcome.send_if_modified(|slot| {
            let first = slot.is_none();
            if first {
                *slot = Some(outcome);
            }
            first
        });
    }

    /// The user's word overtakes the flight: whoever waits goes on with it, and the call is given
    /// up.
    pub(super) fn overtake(&self, outcome: Landing) {
        self.resolve(outcome);
        self.overtaken.notify_one();
    }

    /// The flight's outcome. Whoever leads it, on whichever runtime: a flight that dies resolves
    /// too.
    pub(super) async fn wait(&self) -> Landing {
        let mut outcome = self.outcome.subscribe();
        let outcome = outcome.wait_for(Option::is_some).await;
        outcome.ok().and_then(|outcome| outcome.clone()).unwrap_or_else(|| Err(broken_off()))
    }

    /// Waits until its task is gone, with all that it had to save.
    pub(super) async fn ended(&self) {
        let _ = self.ended.subscribe().wait_for(|ended| *ended).await;
    }

    /// A share of the store's lock, if the flight has it.
    pub(super) fn lock(&self) -> Option<StoreLock> {
        self.lock.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(StoreLock::share)
    }

    pub(super) fn is_resolved(&self) -> bool {
        self.outcome.borrow().is_some()
    }

    /// Waits until the user's word overtakes the flight.
    pub(super) async fn overtaken(&self) {
        self.overtaken.notified().await;
    }

    /// The flight's task is gone.
    pub(super) fn end(&self) {
        self.ended.send_replace(true);
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    pub(super) fn epoch(&self) -> u64 {
        self.epoch
    }

    pub(super) fn set_lock(&self, lock: Option<StoreLock>) {
        *self.lock.lock().unwrap_or_else(PoisonError::into_inner) = lock;
    }
}

pub(super) fn broken_off() -> Error {
    Error::new(ErrorKind::Internal, "the runtime that ran the refresh is gone")
}
