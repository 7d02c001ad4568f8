//! The caller's end of a heartbeat.

use std::fmt;

use tokio::sync::watch;

use super::{Health, Stopped, worker::Stop};

/// A heartbeat that runs. Dropping it stops the loop, after the beat in flight.
#[must_use = "dropping the handle stops the heartbeat"]
pub struct HeartbeatHandle {
    pub(super) health: watch::Receiver<Health>,
    /// Counts the beats that were asked for.
    pub(super) wanted: watch::Sender<u64>,
    /// Up to which of these there has been a beat.
    pub(super) answered: watch::Receiver<u64>,
    pub(super) stop: watch::Sender<Stop>,
    pub(super) finished: watch::Receiver<Option<Stopped>>,
}

impl HeartbeatHandle {
    /// How it goes, after each beat. The receiver may outlive the handle.
    pub fn health(&self) -> watch::Receiver<Health> {
        self.health.clone()
    }

    /// Beats now, and returns when that beat is done. While a beat is in flight, another follows as
    /// soon as it is over, and callers that wait meanwhile share it. The ticks stay where they are,
    /// and a `Retry-After` is passed over. If the loop ends first, or has ended, there is no such
    /// beat, and what is returned is the last health.
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

    /// Ends the loop, after the beat in flight, and returns why it ended: [`Stopped::Requested`],
    /// unless something else came first. It takes as long as that beat, at most its
    /// [`timeout`](super::Heartbeat::timeout): [`abort`](Self::abort) does not wait.
    pub async fn stop(&self) -> Stopped {
        self.ask(Stop::AfterBeat);
        self.finished().await
    }

    /// Ends the loop now, with [`Stopped::Requested`]. The beat in flight is given up: the server
    /// may have seen it or not. A refresh that it waited for goes on, and its tokens are saved.
    pub fn abort(&self) {
        self.ask(Stop::Now);
    }

    fn ask(&self, stop: Stop) {
        self.stop.send_modify(|asked| *asked = stop.max(*asked));
    }

    /// Returns when the loop has ended, and why.
    pub async fn finished(&self) -> Stopped {
        let mut finished = self.finished.clone();
        let stopped = finished.wait_for(Option::is_some).await;
        // The loop is gone without a word: its runtime was shut down.
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
