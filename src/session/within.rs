//! Whether a request is made within the session's own refresh: by its refresher, by its store, or
//! by a parameter of the token request. Such a request must not wait for the refresh that waits for
//! it.
//!
//! The mark exists during each poll of that work, for the task that polls it. Tasks that the work
//! spawns do not have it.

use std::{
    cell::RefCell,
    future::{Future, poll_fn},
    pin::pin,
};

use tokio::task;

use super::Session;

thread_local! {
    /// The sessions whose work is being polled on this thread, innermost last, and the task.
    static WITHIN: RefCell<Vec<(usize, Option<task::Id>)>> = const { RefCell::new(Vec::new()) };
}

impl Session {
    /// Polls the session's own work with the mark.
    pub(super) fn within<F: Future>(&self, work: F) -> impl Future<Output = F::Output> + use<F> {
        let id = self.id();
        async move {
            let mut work = pin!(work);
            poll_fn(|context| {
                let _mark = Mark::set(id);
                work.as_mut().poll(context)
            })
            .await
        }
    }

    /// Whether the caller runs within this session's own refresh, save or load.
    pub(crate) fn is_within_own_work(&self) -> bool {
        let here = (self.id(), task::try_id());
        WITHIN.try_with(|within| within.borrow().contains(&here)).unwrap_or(false)
    }

    fn id(&self) -> usize {
        std::sync::Arc::as_ptr(&self.0) as usize
    }
}

/// Removes the mark at the end of the poll, even if it panics.
struct Mark;

impl Mark {
    fn set(id: usize) -> Self {
        let _ = WITHIN.try_with(|within| within.borrow_mut().push((id, task::try_id())));
        Self
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        let _ = WITHIN.try_with(|within| within.borrow_mut().pop());
    }
}
