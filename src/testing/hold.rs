//! Requests that are held back for a test.

use std::fmt;

use tokio::sync::watch;

/// A gate for requests. It is open unless a [`Hold`] exists.
pub(super) struct Gate {
    holders: watch::Sender<usize>,
    waiting: watch::Sender<usize>,
}

/// Holds requests back until it is dropped. See
/// [`AuthServer::hold_token_calls`](super::AuthServer::hold_token_calls) and
/// [`AuthServer::hold_api`](super::AuthServer::hold_api).
#[must_use = "requests are held as long as this lives"]
pub struct Hold {
    holders: watch::Sender<usize>,
    waiting: watch::Receiver<usize>,
}

impl Gate {
    pub(super) fn new() -> Self {
        Self { holders: watch::Sender::new(0), waiting: watch::Sender::new(0) }
    }

    pub(super) fn hold(&self) -> Hold {
        self.holders.send_modify(|holders| *holders += 1);
        Hold { holders: self.holders.clone(), waiting: self.waiting.subscribe() }
    }

    pub(super) async fn pass(&self) {
        let mut holders = self.holders.subscribe();
        if *holders.borrow_and_update() == 0 {
            return;
        }
        let _counted = Counted::one_more(&self.waiting);
        // `self` holds the sender, so the wait cannot fail.
        let _ = holders.wait_for(|&holders| holders == 0).await;
    }
}

/// Counts a request for as long as it lives. A client that gives up drops its request.
struct Counted<'a>(&'a watch::Sender<usize>);

impl<'a> Counted<'a> {
    fn one_more(count: &'a watch::Sender<usize>) -> Self {
        count.send_modify(|count| *count += 1);
        Self(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

impl Hold {
    /// Returns once at least this many requests are held back.
    pub async fn waiting(&self, requests: usize) {
        let mut waiting = self.waiting.clone();
        // An error means that the server is gone, so no more requests will arrive.
        let _ = waiting.wait_for(|&waiting| waiting >= requests).await;
    }

    /// Releases the requests, like dropping the value.
    pub fn release(self) {}
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.holders.send_modify(|holders| *holders -= 1);
    }
}

impl fmt::Debug for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hold").field("waiting", &*self.waiting.borrow()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test]
    async fn a_request_that_is_given_up_no_longer_waits() {
        let gate = Arc::new(Gate::new());
        let (hold, other) = (gate.hold(), gate.hold());
        let pass = || {
            let gate = Arc::clone(&gate);
            tokio::spawn(async move { gate.pass().await })
        };
        let (given_up, kept) = (pass(), pass());
        hold.waiting(2).await;
        assert_eq!(format!("{hold:?}"), "Hold { waiting: 2, .. }");
        given_up.abort();
        assert!(given_up.await.unwrap_err().is_cancelled());
        assert_eq!(format!("{other:?}"), "Hold { waiting: 1, .. }");
        hold.release();
        tokio::task::yield_now().await;
        assert!(!kept.is_finished());
        drop(other);
        kept.await.unwrap();
        gate.pass().await;
    }
}
