//! Other people's code may panic in a future of ours.

use std::{
    future::{Future, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    task::Poll,
};

/// A panic while the future is polled ends it, and not the task: `None`.
pub(crate) async fn catch_panic<F: Future>(future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    poll_fn(|context| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context))) {
        Ok(poll) => poll.map(Some),
        Err(_) => Poll::Ready(None),
    })
    .await
}

/// A call of the store panicked. An error's cause, by which its repetition is told at a slower pace.
#[derive(Debug, thiserror::Error)]
#[error("the store panicked")]
pub(crate) struct StorePanicked;
