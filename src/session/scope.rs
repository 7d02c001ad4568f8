//! The task's session: a value in `task-local-extensions`, put there for the length of each poll
//! and no longer.
//!
//! The item itself, once there, stays: a [`Slot`], which a scope fills and empties. A scope is
//! entered at every poll of its future, and two more items inserted each time would cost more than
//! all that a request needs of it.

use std::{
    future::Future,
    pin::{Pin, pin},
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, Waker},
};

use pin_project_lite::pin_project;
use task_local_extensions::{get_local_item, set_local_item};
use tokio::task;

use super::Session;

/// The item in the task's extensions. They cannot forget an item, so that no session is `None`.
/// Only the thread that polls the task comes to it: nobody ever waits for the lock.
#[derive(Clone, Default)]
struct Slot(Arc<Mutex<Option<Here>>>);

/// A session, and the task that polls its scope. A `LocalSet` that is driven inside a scope polls
/// its other tasks there as well, on behalf of whoever spawned them.
#[derive(Clone)]
struct Here {
    session: Session,
    task: Option<task::Id>,
}

impl Slot {
    /// The one of the extensions that are in force.
    fn here() -> Option<Self> {
        now(get_local_item()).flatten()
    }

    fn session(&self) -> Option<Session> {
        let here = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        here.as_ref().filter(|here| here.task == task::try_id()).map(|here| here.session.clone())
    }

    fn put(&self, here: Option<Here>) -> Option<Here> {
        std::mem::replace(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner), here)
    }
}

impl Session {
    /// Makes this the task's session while `future` runs, for clients made with
    /// [`with_scoped_sessions`](crate::ClientBuilderExt::with_scoped_sessions).
    ///
    /// It holds for this future alone: not for other tasks on the same thread, and not for what the
    /// future gives to `tokio::spawn` or `spawn_local`, which start tasks of their own. There,
    /// scope the spawned future too:
    ///
    /// ```
    /// # use reqwest_reauth::{Error, Session, Tokens};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Error> {
    /// # let session = Session::builder(Tokens::new("t")?).origin("https://api.example.com").build()?;
    /// session.scope(async {
    ///     let here = Session::current().expect("we are in a scope");
    ///     tokio::spawn(here.scope(async { assert!(Session::current().is_some()) })).await.unwrap();
    /// }).await;
    /// assert!(Session::current().is_none());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// Scopes nest: the inner one holds while it runs. Items that others keep in
    /// `task-local-extensions` stay visible.
    pub fn scope<F: Future>(&self, future: F) -> impl Future<Output = F::Output> + use<F> {
        Scoped { session: self.clone(), future }
    }

    /// The session of the innermost [`scope`](Self::scope) that is running on this task.
    pub fn current() -> Option<Session> {
        Slot::here().and_then(|slot| slot.session())
    }
}

pin_project! {
    /// A future in its session's scope. It holds the future once: an `async` block would hold what
    /// it captures and what it pins, at twice the size.
    struct Scoped<F> {
        session: Session,
        #[pin]
        future: F,
    }
}

impl<F: Future> Future for Scoped<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let _restore = Restore::entering(this.session);
        this.future.poll(context)
    }
}

/// Puts back, at the end of each poll and also when it panics, what was there before: the next task
/// on this thread must never find this one's session.
struct Restore {
    slot: Slot,
    outer: Option<Here>,
}

impl Restore {
    fn entering(session: &Session) -> Self {
        let slot = Slot::here().unwrap_or_else(|| {
            let slot = Slot::default();
            now(set_local_item(slot.clone()));
            slot
        });
        let outer = slot.put(Some(Here { session: session.clone(), task: task::try_id() }));
        Self { slot, outer }
    }
}

impl Drop for Restore {
    fn drop(&mut self) {
        drop(self.slot.put(self.outer.take()));
    }
}

/// The functions of `task-local-extensions` are `async` and never wait.
fn now<T>(future: impl Future<Output = T>) -> Option<T> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}
