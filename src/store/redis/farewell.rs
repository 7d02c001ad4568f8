//! Releases locks when a runtime is shut down, on a separate thread.
//!
//! Dropping a runtime waits for the release, because the program often ends right afterwards. The
//! wait is at most half a second, whatever the number of locks and however long Redis takes.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError, mpsc},
    thread,
    time::{Duration, Instant},
};

/// The time limit that all locks dropped together share. The time of the drops themselves is added.
const LIMIT: Duration = Duration::from_millis(400);
/// Drops that are further apart belong to two shutdowns.
const APART: Duration = Duration::from_secs(5);

type Work = Box<dyn FnOnce() + Send>;

struct Queue {
    waiting: VecDeque<Work>,
    /// Whether the worker thread is running. It ends when the queue is empty.
    has_thread: bool,
    budget: Budget,
}

static QUEUE: Mutex<Queue> = Mutex::new(Queue {
    waiting: VecDeque::new(),
    has_thread: false,
    budget: Budget { last: None, left: LIMIT },
});

/// The remaining time for locks that are dropped together.
struct Budget {
    last: Option<Instant>,
    left: Duration,
}

impl Budget {
    fn left(&mut self, now: Instant) -> Duration {
        if self.last.is_none_or(|last| now.saturating_duration_since(last) > APART) {
            self.left = LIMIT;
        }
        self.last = Some(now);
        self.left
    }

    fn spend(&mut self, waited: Duration) {
        self.left = self.left.saturating_sub(waited);
    }
}

/// Queues the work, and waits for it as long as the budget lasts.
pub(super) fn say(now: Instant, work: impl FnOnce() + Send + 'static) {
    let (done, is_done) = mpsc::sync_channel(1);
    let mut queue = queue();
    queue.waiting.push_back(Box::new(move || {
        work();
        let _ = done.send(());
    }));
    if !queue.has_thread {
        queue.has_thread = thread::Builder::new().spawn(work_off).is_ok();
    }
    let left = queue.budget.left(now);
    drop(queue);
    if left.is_zero() {
        return;
    }
    #[allow(clippy::disallowed_methods, reason = "no runtime drives this thread")]
    let begun = Instant::now();
    let _ = is_done.recv_timeout(left);
    self::queue().budget.spend(begun.elapsed());
}

fn queue() -> std::sync::MutexGuard<'static, Queue> {
    QUEUE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn work_off() {
    loop {
        let mut queue = queue();
        let Some(work) = queue.waiting.pop_front() else {
            queue.has_thread = false;
            return;
        };
        drop(queue);
        work();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropped_together_share_one_budget() {
        let mut budget = Budget { last: None, left: LIMIT };
        let start = Instant::now();
        assert_eq!(budget.left(start), LIMIT);
        budget.spend(LIMIT / 2);
        assert_eq!(budget.left(start + LIMIT / 2), LIMIT / 2);
        budget.spend(LIMIT);
        assert_eq!(budget.left(start + LIMIT), Duration::ZERO);
        assert_eq!(budget.left(start + LIMIT + 2 * APART), LIMIT, "a later shutdown");
    }
}
