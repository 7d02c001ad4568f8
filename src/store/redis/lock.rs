//! The lock as long as it is held: renewed by a task, which gives it back at the end.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::oneshot,
    time::{Instant, sleep, timeout},
};

use super::Shared;
use crate::error::Error;

/// Between two tries to give the lock back.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// The lock, until it is dropped.
pub(super) struct Held {
    fence: u64,
    /// Its drop tells the task.
    _alive: oneshot::Sender<()>,
}

impl Held {
    /// `None` while another has it.
    pub(super) async fn take(shared: Arc<Shared>, lease: Duration) -> Result<Option<Self>, Error> {
        let mut claim =
            Claim { shared, owner: format!("{:032x}", fastrand::u128(..)), lease, taken: true };
        let fence: u64 =
            match claim.shared.ask(&claim.shared.scripts.take(&claim.owner, lease)).await {
                Ok(fence) => fence,
                Err(error) => {
                    // It may have been given all the same.
                    tokio::spawn(claim.release());
                    return Err(error);
                }
            };
        if fence == 0 {
            claim.taken = false;
            return Ok(None);
        }
        let (alive, dropped) = oneshot::channel();
        tokio::spawn(claim.keep(fence, dropped));
        Ok(Some(Self { fence, _alive: alive }))
    }

    pub(super) fn fence(&self) -> u64 {
        self.fence
    }
}

struct Claim {
    shared: Arc<Shared>,
    owner: String,
    lease: Duration,
    taken: bool,
}

impl Claim {
    /// Renews until the lock is dropped or lost. A renewal is never broken off: it could overtake
    /// the release.
    async fn keep(mut self, fence: u64, mut dropped: oneshot::Receiver<()>) {
        let lease = self.lease;
        let mut wait = lease / 3;
        while timeout(wait, &mut dropped).await.is_err() {
            wait = match self
                .shared
                .ask::<bool>(&self.shared.scripts.renew(&self.owner, fence, lease))
                .await
            {
                Ok(true) => lease / 3,
                Ok(false) => {
                    self.taken = false;
                    return;
                }
                // The lease runs on: ask again soon.
                Err(_) => lease / 10,
            };
        }
        self.release().await;
    }

    /// Gives the lock back. Where Redis is away, asks again as long as the lease can last: Redis
    /// may come back with the lock in it, and others would wait for its end.
    async fn release(mut self) {
        let begun = Instant::now();
        while self.shared.ask::<bool>(&self.shared.scripts.release(&self.owner)).await.is_err()
            && begun.elapsed() < self.lease
        {
            sleep((self.lease / 10).min(LONGEST_PAUSE)).await;
        }
        self.taken = false;
    }
}

impl Drop for Claim {
    /// The runtime is shut down, often because the program ends: others need not wait for the
    /// lease.
    fn drop(&mut self) {
        if self.taken {
            let _ =
                self.shared.link.call_blocking::<bool>(&self.shared.scripts.release(&self.owner));
        }
    }
}
