//! Keeps panics in users' code from unwinding through the crate's own tasks.

use std::{
    future::{Future, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind},
    task::Poll,
};

/// Runs a future and returns `None` if it panics while it is polled or dropped.
pub(crate) async fn catch_panic<F: Future>(future: F) -> Option<F::Output> {
    let mut future = Caught(Some(Box::pin(future)));
    poll_fn(|context| {
        let Some(inner) = &mut future.0 else { return Poll::Ready(None) };
        match catch_unwind(AssertUnwindSafe(|| inner.as_mut().poll(context))) {
            Ok(poll) => poll.map(Some),
            Err(_) => Poll::Ready(None),
        }
    })
    .await
}

/// The cause of an error after a call to the store panicked. The log reports repetitions of it less
/// often.
#[derive(Debug, thiserror::Error)]
#[error("the store panicked")]
pub(crate) struct StorePanicked;
struct Caught<F>(Option<std::pin::Pin<Box<F>>>);

impl<F> Drop for Caught<F> {
    fn drop(&mut self) {
        let future = self.0.take();
        let _ = catch_unwind(AssertUnwindSafe(|| drop(future)));
    }
}
