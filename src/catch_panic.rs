//! Other people's code may panic in a future of ours.

use std::{
    future::{Future, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind},
    task::Poll,
};

/// A panic while the future is polled, or dropped, ends it, and not the task: `None`.
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

/// A call of the store panicked. An error's cause, by which its repetition is told at a slower pace.
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
