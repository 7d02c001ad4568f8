//! Ensures one call at a time, even if the runtime of the previous call is no longer driven.

use std::{
    pin::pin,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::sync::Notify;

use super::InFlight;

/// An unfair lock: a waiter that wakes up takes it if it is free. A fair lock would pass it to a
/// waiter whose runtime may have stopped, and would then never be released.
#[derive(Clone)]
pub(in crate::session) struct Turn(Arc<Shared>);

struct Shared {
    taken: AtomicBool,
    /// A `watch` channel would be ten times as large, in every session.
    freed: Notify,
    holder: Mutex<Weak<InFlight>>,
}

/// Holds the turn until it is dropped.
pub(in crate::session) struct Taken(Turn);

impl Turn {
    pub(in crate::session) fn new() -> Self {
        Self(Arc::new(Shared {
            taken: AtomicBool::new(false),
            freed: Notify::new(),
            holder: Mutex::default(),
        }))
    }

    pub(super) async fn take(&self, in_flight: &Arc<InFlight>) -> Taken {
        self.until(|| !self.0.taken.swap(true, Ordering::SeqCst)).await;
        *self.holder() = Arc::downgrade(in_flight);
        Taken(self.clone())
    }

    pub(in crate::session) fn is_free(&self) -> bool {
        !self.0.taken.load(Ordering::SeqCst)
    }

    /// Waits until the turn is free.
    pub(in crate::session) async fn free(&self) {
        self.until(|| self.is_free()).await;
    }

    async fn until(&self, is_so: impl Fn() -> bool) {
        loop {
            let mut freed = pin!(self.0.freed.notified());
            // Registered before the check, so that no change in between is missed.
            freed.as_mut().enable();
            if is_so() {
                return;
            }
            freed.await;
        }
    }

    /// Ends the superseded refresh that holds the turn, because its runtime has stopped.
    pub(super) fn evict(&self) {
        let holder = self.holder().upgrade();
        if let Some(holder) = holder {
            holder.work().cancel();
        }
    }

    fn holder(&self) -> std::sync::MutexGuard<'_, Weak<InFlight>> {
        self.0.holder.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        *self.0.holder() = Weak::new();
        self.0.0.taken.store(false, Ordering::SeqCst);
        self.0.0.freed.notify_waiters();
    }
}
