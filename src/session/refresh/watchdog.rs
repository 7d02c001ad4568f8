//! Ends a refresh that nothing drives any more, so that its waiters do not wait forever.

use std::{pin::pin, sync::Arc};

use tokio::runtime::{Handle, Id};

use super::{super::Session, in_flight::InFlight};
use crate::{
    error::{Error, ErrorKind},
    event::Event,
    time::{Elapsed, Limit},
};

impl Session {
    /// Starts the watchdog of this refresh on the current runtime, unless it has one there. All
    /// waiters of a runtime share it, so that they need no timers of their own. Without a runtime
    /// there are no timers.
    pub(super) fn watch_over(&self, in_flight: &Arc<InFlight>) {
        let Ok(runtime) = Handle::try_current() else { return };
        if !in_flight.is_first_on(runtime.id()) {
            return;
        }
        let (session, mut limit) = (self.clone(), Limit::after(self.longest_refresh()));
        let watchdog = Watchdog { in_flight: Arc::clone(in_flight), runtime: runtime.id() };
        runtime.spawn(async move {
            let in_flight = &watchdog.in_flight;
            let resolved = pin!(async {
                while in_flight.resolved().is_none() {
                    in_flight.news().await;
                }
            });
            if let Err(Elapsed) = limit.run_pinned(resolved).await {
                session.give_up(in_flight);
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
        let first = self.end_refresh(in_flight, Some(&error));
        in_flight.resolve(outcome);
        // Releases its locks. If its runtime is driven again, the refresh sends nothing.
        in_flight.work().cancel();
        if first {
            self.emit(&Event::RefreshFailed { error });
        }
    }
}

/// If its runtime is shut down, waiters that are polled on another one start a watchdog there.
struct Watchdog {
    in_flight: Arc<InFlight>,
    runtime: Id,
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.in_flight.has_left(self.runtime);
    }
}
