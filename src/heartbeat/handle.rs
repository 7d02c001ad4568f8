//! The caller's handle to a heartbeat.

use std::fmt;

use tokio::sync::watch;

use super::{Health, Stopped, worker::Stop};

/// A running heartbeat. Dropping the handle stops the loop after the beat in progress.
#[must_use = "dropping the handle stops the heartbeat"]
pub struct HeartbeatHandle {
    pub(super) health: watch::Receiver<Health>,
    /// Counts the beats that were requested.
    pub(super) wanted: watch::Sender<u64>,
    /// How many of the requested beats are done.
    pub(super) answered: watch::Receiver<u64>,
    pub(super) stop: watch::Sender<Stop>,
    pub(super) finished: watch::Receiver<Option<Stopped>>,
}

impl HeartbeatHandle {
    /// Returns a receiver of the health after each beat. The receiver may outlive the handle.
    pub fn health(&self) -> watch::Receiver<Health> {
        self.health.clone()
    }

    /// Beats now, and returns the health after that beat.
    ///
    /// If a beat is in progress, another one follows as soon as it ends, and all callers that wait
    /// in the meantime share it. The ticks do not move, and a `Retry-After` is ignored. If the loop
    /// ends first or has ended, there is no such beat, and the last health is returned.
    pub async fn beat_now(&self) -> Health {
        let mut mine = 0;
        self.wanted.send_modify(|wanted| {
            *wanted += 1;
            mine = *wanted;
        });
        let mut answered = self.answered.clone();
        // An error means that the loop has ended.
        let _ = answered.wait_for(|&answered| answered >= mine).await;
        self.health.borrow().clone()
    }

    /// Ends the loop after the beat in progress, and returns why it ended: [`Stopped::Requested`],
    /// unless another reason came first. This takes as long as that beat, at most its
    /// [`timeout`](super::Heartbeat::timeout). [`abort`](Self::abort) does not wait.
    pub async fn stop(&self) -> Stopped {
        self.ask(Stop::AfterBeat);
        self.finished().await
    }

    /// Ends the loop now, with [`Stopped::Requested`]. The beat in progress is abandoned, and the
    /// server may or may not have received it. A refresh that the beat waited for continues, and
    /// its tokens are saved.
    pub fn abort(&self) {
        self.ask(Stop::Now);
    }

    fn ask(&self, stop: Stop) {
        self.stop.send_modify(|asked| *asked = stop.max(*asked));
    }

    /// Waits until the loop has ended, and returns why.
    pub async fn finished(&self) -> Stopped {
        let mut finished = self.finished.clone();
        let stopped = finished.wait_for(Option::is_some).await;
        // The loop has reported nothing, so its runtime was shut down.
        stopped.ok().and_then(|stopped| stopped.clone()).unwrap_or(Stopped::RuntimeGone)
    }
}

impl fmt::Debug for HeartbeatHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HeartbeatHandle")
            .field("health", &*self.health.borrow())
            .finish_non_exhaustive()
    }
}
