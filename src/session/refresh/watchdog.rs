//! Ends a refresh that nothing drives any more, so that its waiters do not wait forever.

use std::{pin::pin, sync::Arc, time::Duration};

use tokio::runtime::{Handle, Id};

use super::{super::Session, in_flight::InFlight};
use crate::{
    error::{Error, ErrorKind},
    event::Event,
    time::{Elapsed, Limit},
};

/// A runtime that stands still says nothing about the refresh. Its time is therefore counted in
/// pieces of this length, and a standstill counts as one piece at most.
const TICK: Duration = Duration::from_secs(1);

impl Session {
    /// Starts a watchdog for this refresh on the current runtime, unless there is one. All waiters
    /// of a runtime share it, so that they need no timers of their own. Without a runtime there
    /// are no timers.
    pub(super) fn watch_over(&self, in_flight: &Arc<InFlight>) {
        let Ok(handle) = Handle::try_current() else { return };
        let runtime = handle.id();
        let Some(ran) = in_flight.claim_watch(runtime) else { return };
        let (inner, longest) = (Arc::downgrade(&self.0), self.longest_refresh());
        let watchdog = Watchdog { in_flight: Arc::clone(in_flight), runtime };
        handle.spawn(async move {
            if watchdog.is_needed_after(longest, ran).await
                && let Some(inner) = inner.upgrade()
            {
                Self(inner).give_up(&watchdog.in_flight);
            }
        });
    }

    /// Ends a refresh whose runtime is not shut down, but which nothing drives any more.
    #[cold]
    fn give_up(&self, in_flight: &Arc<InFlight>) {
        let error = in_flight.mark(Error::new(
            ErrorKind::Unavailable,
            "the runtime of the refresh makes no progress",
        ));
        let outcome = Err(error.clone());
        if !in_flight.decide(&outcome) {
            // It has ended, but a listener holds it up.
            in_flight.resolve(in_flight.outcome().unwrap_or(outcome));
            return;
        }
        if self.end_refresh(in_flight, Some(&error)) {
            self.emit(&Event::RefreshFailed { error });
        }
        in_flight.resolve(outcome);
        // Releases its locks. If its runtime is driven again, the refresh sends nothing.
        in_flight.work().cancel();
    }
}

/// Watches a refresh from one runtime, while somebody waits.
struct Watchdog {
    in_flight: Arc<InFlight>,
    runtime: Id,
}

impl Watchdog {
    /// Returns whether this runtime has run for longer than this while somebody waited. It had run
    /// for `ran` before.
    async fn is_needed_after(&self, longest: Duration, mut ran: Duration) -> bool {
        let mut unneeded = pin!(self.unneeded());
        while ran < longest {
            let tick = TICK.min(longest.saturating_sub(ran));
            match Limit::after(tick).run_pinned(unneeded.as_mut()).await {
                Err(Elapsed) => ran += tick,
                Ok(()) if self.in_flight.free_watch(self.runtime, ran) => return false,
                Ok(()) => unneeded.set(self.unneeded()),
            }
        }
        true
    }

    /// Waits until the refresh has ended, or nobody waits.
    async fn unneeded(&self) {
        loop {
            let changed = self.in_flight.changed();
            if !self.in_flight.is_awaited() {
                return;
            }
            changed.await;
        }
    }
}
