//! The only timer of a session. It tells subscribers that a cool-down is over.

use std::sync::{
    Arc, Weak,
    atomic::{AtomicBool, Ordering},
};

use tokio::{runtime::Handle, sync::watch, time::Instant};

use super::{Inner, Session};

pub(super) struct Timer {
    until: watch::Sender<Option<Instant>>,
    running: Arc<AtomicBool>,
}

impl Timer {
    pub(super) fn new() -> Self {
        Self { until: watch::Sender::new(None), running: Arc::default() }
    }

    /// Sets the timer, and starts its task unless that is running. There is at most one task,
    /// however often a cool-down begins.
    pub(super) fn set(&self, until: Instant, session: Weak<Inner>) {
        self.until.send_replace(Some(until));
        let Ok(runtime) = Handle::try_current() else { return };
        if self.running.swap(true, Ordering::SeqCst) {
            return;
        }
        let running = Running(Arc::clone(&self.running));
        runtime.spawn(run(self.until.subscribe(), session, running));
    }
}

/// Marks the task as running. Its runtime may be shut down.
struct Running(Arc<AtomicBool>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.store(false, Ordering::SeqCst);
    }
}

#[allow(clippy::disallowed_methods, reason = "it gives nothing up: a late word is a late word")]
async fn run(
    mut settings: watch::Receiver<Option<Instant>>,
    session: Weak<Inner>,
    running: Running,
) {
    loop {
        let Some(until) = *settings.borrow_and_update() else { return };
        tokio::select! {
            changed = settings.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            () = tokio::time::sleep_until(until) => {
                let Some(session) = session.upgrade().map(Session) else { return };
                let ended = session.0.timer.until.send_if_modified(|set| {
                    let ended = *set == Some(until);
                    if ended {
                        *set = None;
                    }
                    ended
                });
                if ended {
                    // A later `set` starts another task.
                    drop(running);
                    return session.tell_time();
                }
            }
        }
    }
}
