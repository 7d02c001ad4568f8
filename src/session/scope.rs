//! The session of a task: a value in `task-local-extensions` that exists only during each poll.
//!
//! The item in the extensions is a [`Slot`] and stays there. A scope fills it and empties it. A
//! scope is entered at every poll of its future, and inserting two items each time would cost more
//! than the rest of a request.

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

/// The item in the task's extensions. Items cannot be removed, so `None` stands for no session.
/// Only the thread that polls the task accesses it, so the lock is never contended.
#[derive(Clone, Default)]
struct Slot(Arc<Mutex<Option<Here>>>);

/// A session, and the task that polls its scope. A `LocalSet` that is driven inside a scope also
/// polls its other tasks there, which do not belong to the scope.
#[derive(Clone)]
struct Here {
    session: Session,
    task: Option<task::Id>,
}

impl Slot {
    /// The slot of the current extensions.
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
    /// Makes this the session of the task while `future` runs, for clients built with
    /// [`with_scoped_sessions`](crate::ClientBuilderExt::with_scoped_sessions).
    ///
    /// The scope applies only to this future. It does not apply to other tasks on the same thread,
    /// or to futures passed to `tokio::spawn` or `spawn_local`, which start new tasks. Scope a
    /// spawned future too:
    ///
    /// ```
    /// use reqwest_reauth::{Session, Tokens};
    ///
    /// #[tokio::main(flavor = "current_thread")]
    /// async fn main() -> Result<(), Box<dyn std::error::Error>> {
    ///     let session =
    ///         Session::builder(Tokens::new("token")?).origin("https://api.example.com").build()?;
    ///     session
    ///         .scope(async {
    ///             let session = Session::current().ok_or("outside of a scope")?;
    ///             let spawned = session.scope(async { assert!(Session::current().is_some()) });
    ///             tokio::spawn(spawned).await?;
    ///             Ok::<_, Box<dyn std::error::Error>>(())
    ///         })
    ///         .await?;
    ///     assert!(Session::current().is_none());
    ///     Ok(())
    /// }
    /// ```
    ///
    /// Scopes nest, and the inner one takes precedence. Other items in `task-local-extensions` stay
    /// visible.
    pub fn scope<F: Future>(&self, future: F) -> impl Future<Output = F::Output> + use<F> {
        Scoped { session: self.clone(), future }
    }

    /// Returns the session of the innermost [`scope`](Self::scope) that is running on this task.
    pub fn current() -> Option<Session> {
        Slot::here().and_then(|slot| slot.session())
    }
}

pin_project! {
    /// A future in the scope of its session. The type holds the future once, where an `async` block
    /// would hold it twice.
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

/// Restores the previous session at the end of each poll, even if it panics, so that the next task
/// on this thread never finds this session.
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

/// The functions of `task-local-extensions` are `async` but never wait.
fn now<T>(future: impl Future<Output = T>) -> Option<T> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}
