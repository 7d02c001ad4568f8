//! One call at a time, also where the runtime of the one before is not driven any more.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::watch;

use super::InFlight;

/// A lock that is handed to nobody: who wakes up takes it if it is free. A fair lock would pass it
/// to a waiter whose runtime may have stopped, and nobody would get it again.
#[derive(Clone)]
pub(in crate::session) struct Turn(Arc<Shared>);

struct Shared {
    taken: watch::Sender<bool>,
    holder: Mutex<Weak<InFlight>>,
}

/// The turn, until this is dropped.
pub(in crate::session) struct Taken(Turn);

impl Turn {
    pub(in crate::session) fn new() -> Self {
        Self(Arc::new(Shared { taken: watch::Sender::new(false), holder: Mutex::default() }))
    }

    pub(super) async fn take(&self, in_flight: &Arc<InFlight>) -> Taken {
        let mut taken = self.0.taken.subscribe();
        loop {
            let _ = taken.wait_for(|taken| !*taken).await;
            if self.0.taken.send_if_modified(|taken| !std::mem::replace(taken, true)) {
                *self.holder() = Arc::downgrade(in_flight);
                return Taken(self.clone());
            }
        }
    }

    pub(in crate::session) fn is_free(&self) -> bool {
        !*self.0.taken.borrow()
    }

    /// Waits until nobody has it.
    pub(in crate::session) async fn free(&self) {
        let _ = self.0.taken.subscribe().wait_for(|taken| !*taken).await;
    }

    /// Ends the refresh that has it: it was superseded, and its runtime has stopped.
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
        self.0.0.taken.send_replace(false);
    }
}
