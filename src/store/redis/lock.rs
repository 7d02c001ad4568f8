//! The lock while it is held: a task renews it, and releases it at the end.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant as StdInstant},
};

use async_trait::async_trait;
use tokio::{
    sync::oneshot,
    time::{Instant, sleep, timeout},
};

use super::{Shared, farewell, link::Question, script::Holder};
use crate::{
    error::Error,
    store::{
        failure::lock_lapsed,
        sending::{KeepsRecord, SendRecord},
    },
    time::Now,
};

/// The maximum pause between attempts to release the lock.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// The lock, until it is dropped.
pub(super) struct Held {
    shared: Arc<Shared>,
    fence: u64,
    owner: String,
    record: Arc<SendRecord>,
    lease: Arc<Lease>,
    /// Dropping it notifies the task.
    _alive: oneshot::Sender<()>,
}

impl Held {
    /// Returns `None` while another process holds the lock.
    pub(super) async fn take(shared: Arc<Shared>, lease: Duration) -> Result<Option<Self>, Error> {
        let mut claim = Claim {
            shared,
            owner: format!("{:032x}", fastrand::u128(..)),
            lease,
            record: Arc::default(),
            taken: true,
        };
        let taken = claim.shared.scripts.take(&claim.owner, lease);
        let asked = Now::read();
        let (fence, found): (u64, Option<Vec<u8>>) =
            match claim.shared.ask(Question::Script(&taken)).await {
                Ok(answer) => answer,
                Err(error) => {
                    // Redis may have granted the lock nevertheless.
                    drop(taken);
                    tokio::spawn(claim.release());
                    return Err(error);
                }
            };
        drop(taken);
        if fence == 0 {
            claim.taken = false;
            return Ok(None);
        }
        claim.record = Arc::new(SendRecord::found(found.as_deref()));
        let (shared, owner) = (Arc::clone(&claim.shared), claim.owner.clone());
        let record = Arc::clone(&claim.record);
        let (alive, dropped) = oneshot::channel();
        let lease = Arc::new(Lease::since(asked, lease));
        tokio::spawn(claim.keep(fence, Arc::clone(&lease), dropped));
        Ok(Some(Self { shared, fence, owner, record, lease, _alive: alive }))
    }

    pub(super) fn fence(&self) -> u64 {
        self.fence
    }

    pub(super) fn holder(&self) -> Holder<'_> {
        Holder { fence: self.fence, owner: &self.owner }
    }

    pub(super) fn lease(&self) -> &Arc<Lease> {
        &self.lease
    }
}

#[async_trait]
impl KeepsRecord for Held {
    fn record(&self) -> &SendRecord {
        &self.record
    }

    async fn write(self: Arc<Self>, of: String) -> Result<(), Error> {
        let send = self.shared.scripts.send(&self.owner, &of);
        let kept: bool = self.shared.ask(Question::Script(&send)).await?;
        if kept { Ok(()) } else { Err(lock_lapsed()) }
    }
}

/// The duration of the lock by both clocks. A machine that was suspended has lost it.
pub(super) struct Lease {
    length: Duration,
    /// When the last granted request for the lock was sent. `None` once the lock is lost.
    since: Mutex<Option<Now>>,
}

impl Lease {
    fn since(asked: Now, length: Duration) -> Self {
        Self { length, since: Mutex::new(Some(asked)) }
    }

    fn renewed(&self, asked: Option<Now>) {
        *self.since.lock().unwrap_or_else(PoisonError::into_inner) = asked;
    }

    /// Whether a third of the lease is left: ten seconds by default, the time limit of an attempt.
    /// While the process is running, two thirds are left.
    pub(super) fn is_held(&self) -> bool {
        self.is_held_at(Now::read())
    }

    fn is_held_at(&self, now: Now) -> bool {
        let since = *self.since.lock().unwrap_or_else(PoisonError::into_inner);
        since.is_some_and(|since| {
            let monotonic = now.monotonic.saturating_duration_since(since.monotonic);
            // A wall clock that was set back shows nothing.
            let wall = now.wall.duration_since(since.wall).unwrap_or_default();
            monotonic.max(wall) < self.length / 3 * 2
        })
    }
}

struct Claim {
    shared: Arc<Shared>,
    owner: String,
    lease: Duration,
    record: Arc<SendRecord>,
    taken: bool,
}

impl Claim {
    /// Renews the lock until it is dropped or lost. A renewal is never interrupted, because it
    /// could overtake the release.
    #[allow(clippy::disallowed_methods, reason = "it starts a renewal, and gives nothing up")]
    async fn keep(mut self, fence: u64, held: Arc<Lease>, mut dropped: oneshot::Receiver<()>) {
        let lease = self.lease;
        let mut wait = lease / 3;
        while timeout(wait, &mut dropped).await.is_err() {
            let renew = self.shared.scripts.renew(&self.owner, fence, lease);
            let asked = Now::read();
            wait = match self.shared.ask::<bool>(Question::Script(&renew)).await {
                Ok(true) => {
                    held.renewed(Some(asked));
                    lease / 3
                }
                Ok(false) => {
                    held.renewed(None);
                    drop(renew);
                    self.taken = false;
                    return;
                }
                // The lease still runs, so the renewal is repeated soon.
                Err(_) => lease / 10,
            };
        }
        self.release().await;
    }

    /// Releases the lock. While Redis is unavailable, the release is repeated for the length of the
    /// lease: Redis may come back with the lock in its data, and others would wait for the lease to
    /// end.
    async fn release(mut self) {
        let begun = Instant::now();
        loop {
            let release = self.shared.scripts.release(&self.owner, &self.record.at_release());
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
    /// The runtime is shut down, often because the program ends. The release spares others the rest
    /// of the lease.
    #[allow(clippy::disallowed_methods, reason = "there may be no runtime any more")]
    fn drop(&mut self) {
        if self.taken {
            let (shared, owner) = (Arc::clone(&self.shared), std::mem::take(&mut self.owner));
            let record = self.record.at_release();
            farewell::say(StdInstant::now(), move || {
                let _ = shared.link.call_blocking::<bool>(&shared.scripts.release(&owner, &record));
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_lease_lapses_by_either_clock() {
        let length = Duration::from_secs(30);
        let begun = Now::read();
        let lease = Lease::since(begun, length);
        let after = |monotonic, wall| Now {
            monotonic: begun.monotonic + Duration::from_secs(monotonic),
            wall: begun.wall + Duration::from_secs(wall),
        };
        let table = [
            (after(0, 0), true),
            (after(19, 19), true),
            (after(20, 20), false),
            // Suspended: the monotonic clock stood still.
            (after(1, 3600), false),
            (after(40, 1), false),
        ];
        for (now, is_held) in table {
            assert_eq!(lease.is_held_at(now), is_held, "{now:?}");
        }
        let set_back = Now { wall: begun.wall - length, ..after(1, 0) };
        assert!(lease.is_held_at(set_back));
        lease.renewed(Some(after(18, 18)));
        assert!(lease.is_held_at(after(30, 30)));
        lease.renewed(None);
        assert!(!lease.is_held_at(after(18, 18)));
    }
}
