//! Ends a refresh that nothing drives any more, so that its waiters do not wait forever.

use std::{pin::pin, sync::Arc, time::Duration};

use tokio::runtime::{Handle, Id};

use super::{super::Session, in_flight::InFlight};
use crate::{
    error::{Error, ErrorKind},
    event::Event,
    time::{Elapsed, Limit},
};

impl Session {
    /// Starts a watchdog for this refresh on the current runtime, unless there is one. All waiters
    /// of a runtime share it, so that they need no timers of their own. Without a runtime there
    /// are no timers.
    pub(super) fn watch_over(&self, in_flight: &Arc<InFlight>) {
        let Ok(handle) = Handle::try_current() else { return };
        let runtime = handle.id();
        if !in_flight.claim_watch(runtime) {
            return;
        }
        let (inner, longest) = (Arc::downgrade(&self.0), self.longest_refresh());
        let watchdog = Watchdog { in_flight: Arc::clone(in_flight), runtime };
        handle.spawn(async move {
            if watchdog.is_needed_after(longest).await
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
        in_flight.decide(&outcome);
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
    /// Returns whether the refresh takes longer than this, and somebody waits.
    async fn is_needed_after(&self, longest: Duration) -> bool {
        let mut unneeded = pin!(self.unneeded());
        let mut limit = Limit::after(longest);
        let mut ended = limit.run_pinned(unneeded.as_mut()).await;
        if ended.is_err() && limit.was_late() {
            // This runtime stood still, so its timer says nothing about the refresh. Not repeated,
            // because on an overloaded machine every timer is late.
            ended = Limit::after(longest).run_pinned(unneeded).await;
        }
        ended == Err(Elapsed)
    }

    /// Waits until the refresh has ended, or nobody waits.
    async fn unneeded(&self) {
        let Self { in_flight, runtime } = self;
        loop {
            let changed = in_flight.changed();
            if in_flight.resolved().is_some() || in_flight.free_watch_if_unneeded(*runtime) {
                return;
            }
            changed.await;
        }
    }
}
