//! A task whose work another thread can end.
//!
//! A refresh can stop forever, because a synchronous wrapper drives its runtime only during a
//! request. The watchdog of a runtime with waiters then gives it up. It drops the work, with its
//! locks and its call, so that nothing is sent when the runtime is driven again.

use std::{
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
};

type Boxed = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The work of a task, accessible from other threads.
#[derive(Default)]
pub(in crate::session) struct Work {
    slot: Mutex<Slot>,
    cancelled: AtomicBool,
}

#[derive(Default)]
struct Slot {
    work: Option<Boxed>,
    /// The waker of the task that polls the work.
    waker: Option<Waker>,
}

impl Work {
    /// Drops the work now, or at the end of a poll that is running on another thread.
    pub(in crate::session) fn cancel(&self) {
        self.cancelled.store(true, Ordering::SeqCst);
        if let Ok(slot) = self.slot.try_lock() {
            Self::discard(slot);
        }
    }

    /// Returns the task that polls this work. Dropping the task drops the work.
    pub(in crate::session) fn task(
        owner: Arc<impl AsRef<Work> + Send + Sync + 'static>,
        work: impl Future<Output = ()> + Send + 'static,
    ) -> impl Future<Output = ()> + Send + 'static {
        (*owner).as_ref().slot().work = Some(Box::pin(work));
        Task(owner)
    }

    fn poll(&self, context: &mut Context<'_>) -> Poll<()> {
        let mut slot = self.slot();
        if self.cancelled.load(Ordering::SeqCst) {
            Self::discard(slot);
            return Poll::Ready(());
        }
        let Some(work) = &mut slot.work else {
            return Poll::Ready(());
        };
        let poll = work.as_mut().poll(context);
        if poll.is_ready() {
            Self::discard(slot);
            return poll;
        }
        slot.waker = Some(context.waker().clone());
        drop(slot);
        // A thread that cancelled the work during the poll could not drop it.
        if self.cancelled.load(Ordering::SeqCst) {
            Self::discard(self.slot());
            return Poll::Ready(());
        }
        Poll::Pending
    }

    /// Drops the work after unlocking its slot, because its guards may access the slot. Panics are
    /// caught, because this may run in the task of a watchdog.
    fn discard(mut slot: MutexGuard<'_, Slot>) {
        let Slot { work, waker } = std::mem::take(&mut *slot);
        drop(slot);
        let _ = catch_unwind(AssertUnwindSafe(|| drop(work)));
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn slot(&self) -> MutexGuard<'_, Slot> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Task<O: AsRef<Work>>(Arc<O>);

impl<O: AsRef<Work>> Future for Task<O> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        (*self.0).as_ref().poll(context)
    }
}

impl<O: AsRef<Work>> Drop for Task<O> {
    fn drop(&mut self) {
        (*self.0).as_ref().cancel();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Owner(Work);

    impl AsRef<Work> for Owner {
        fn as_ref(&self) -> &Work {
            &self.0
        }
    }

    struct Flag(Arc<AtomicBool>);

    impl Drop for Flag {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }

    fn poll(task: &mut Pin<Box<dyn Future<Output = ()> + Send>>) -> Poll<()> {
        task.as_mut().poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn cancelled_work_is_dropped_at_once() {
        let owner = Arc::new(Owner(Work::default()));
        let dropped = Arc::new(AtomicBool::new(false));
        let flag = Flag(Arc::clone(&dropped));
        let mut task: Boxed = Box::pin(Work::task(Arc::clone(&owner), async move {
            let _flag = flag;
            std::future::pending::<()>().await;
        }));
        assert!(poll(&mut task).is_pending());
        owner.0.cancel();
        assert!(dropped.load(Ordering::SeqCst));
        assert!(poll(&mut task).is_ready());
    }

    #[test]
    fn work_cancelled_in_its_poll_ends_with_it() {
        let owner = Arc::new(Owner(Work::default()));
        let dropped = Arc::new(AtomicBool::new(false));
        let (flag, of) = (Flag(Arc::clone(&dropped)), Arc::clone(&owner));
        let mut task: Boxed = Box::pin(Work::task(Arc::clone(&owner), async move {
            let _flag = flag;
            std::thread::spawn(move || of.0.cancel()).join().unwrap();
            std::future::pending::<()>().await;
        }));
        assert!(poll(&mut task).is_ready());
        assert!(dropped.load(Ordering::SeqCst));
    }

    #[test]
    fn a_dropped_task_drops_its_work() {
        let owner = Arc::new(Owner(Work::default()));
        let dropped = Arc::new(AtomicBool::new(false));
        let flag = Flag(Arc::clone(&dropped));
        drop(Work::task(Arc::clone(&owner), async move {
            let _flag = flag;
            std::future::pending::<()>().await;
        }));
        assert!(dropped.load(Ordering::SeqCst));
    }

    #[test]
    fn a_panic_of_dropped_work_is_caught() {
        struct Loud;
        impl Drop for Loud {
            fn drop(&mut self) {
                panic!("dropped, as the test says");
            }
        }
        let owner = Arc::new(Owner(Work::default()));
        let task = Work::task(Arc::clone(&owner), async {
            let _loud = Loud;
            std::future::pending::<()>().await;
        });
        let mut task: Boxed = Box::pin(task);
        assert!(poll(&mut task).is_pending());
        owner.0.cancel();
    }
}
