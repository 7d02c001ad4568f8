//! The end of a background save that has stopped.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::super::refresh::Work;

/// A background save, for those who wait for the store's lock. Its runtime may no longer be driven.
pub(super) struct Saver {
    work: Work,
    /// The start of the current round.
    began: Mutex<Instant>,
}

impl AsRef<Work> for Saver {
    fn as_ref(&self) -> &Work {
        &self.work
    }
}

impl Saver {
    pub(super) fn new() -> Self {
        Self { work: Work::default(), began: Mutex::new(Instant::now()) }
    }

    pub(super) fn begins(&self) {
        *self.began.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Cancels the save, with its locks, if its round takes longer than any round on a running
    /// runtime. Its tokens are left to the next save.
    pub(super) fn end_if_older_than(&self, longest: Duration) {
        let began = *self.began.lock().unwrap_or_else(PoisonError::into_inner);
        if began.elapsed() >= longest {
            self.work.cancel();
        }
    }
}
