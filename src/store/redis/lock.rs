//! The lock as long as it is held: renewed by a task, which gives it back at the end.

use std::{
    sync::Arc,
    time::{Duration, Instant as StdInstant},
};

use tokio::{
    sync::oneshot,
    time::{Instant, sleep, timeout},
};

use super::{Shared, farewell, link::Question, script::Holder};
use crate::error::Error;

/// Between two tries to give the lock back.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// The lock, until it is dropped.
pub(super) struct Held {
    fence: u64,
    owner: String,
    /// Its drop tells the task.
    _alive: oneshot::Sender<()>,
}

/// What became of a try to take the lock.
pub(super) enum Taken {
    Held(Held),
    /// Another has it, and for how long, if that was asked.
    ByOther {
        left: Option<Duration>,
    },
}

impl Held {
    pub(super) async fn take(
        shared: Arc<Shared>,
        lease: Duration,
        ask_how_long: bool,
    ) -> Result<Taken, Error> {
        let mut claim =
            Claim { shared, owner: format!("{:032x}", fastrand::u128(..)), lease, taken: true };
        let taken = claim.shared.scripts.take(&claim.owner, lease, ask_how_long);
        let (fence, left): (u64, i64) = match claim.shared.ask(Question::Script(&taken)).await {
            Ok(answer) => answer,
            Err(error) => {
                // It may have been given all the same.
                drop(taken);
                tokio::spawn(claim.release());
                return Err(error);
            }
        };
        drop(taken);
        if fence == 0 {
            claim.taken = false;
            let left = u64::try_from(left).ok().map(Duration::from_millis);
            return Ok(Taken::ByOther { left });
        }
        let owner = claim.owner.clone();
        let (alive, dropped) = oneshot::channel();
        tokio::spawn(claim.keep(fence, dropped));
        Ok(Taken::Held(Self { fence, owner, _alive: alive }))
    }

    pub(super) fn fence(&self) -> u64 {
        self.fence
    }

    pub(super) fn holder(&self) -> Holder<'_> {
        Holder { fence: self.fence, owner: &self.owner }
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
            let renew = self.shared.scripts.renew(&self.owner, fence, lease);
            wait = match self.shared.ask::<bool>(Question::Script(&renew)).await {
                Ok(true) => lease / 3,
                Ok(false) => {
                    drop(renew);
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
        loop {
            let release = self.shared.scripts.release(&self.owner);
            let done = self.shared.ask::<bool>(Question::Script(&release)).await;
            if done.is_ok() || begun.elapsed() >= self.lease {
                break;
            }
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
            let (shared, owner) = (Arc::clone(&self.shared), std::mem::take(&mut self.owner));
            farewell::say(StdInstant::now(), move || {
                let _ = shared.link.call_blocking::<bool>(&shared.scripts.release(&owner));
            });
        }
    }
}
