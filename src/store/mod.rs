//! Where tokens outlive the process: the [`TokenStore`] trait, and a file each for memory, file and
//! Redis.

mod failure;
mod file;
mod mark;
mod memory;
mod record;
#[cfg(feature = "redis")]
mod redis;
mod sealed;

use std::{
    any::Any,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;

#[cfg(feature = "redis")]
pub use self::redis::RedisStore;
pub(crate) use self::{
    failure::is_lock_lapsed,
    mark::{Says, fingerprint},
};
pub use self::{file::FileStore, mark::StoredFailure, memory::MemoryStore};
use crate::{error::Error, token::Tokens};

/// Where a session keeps its tokens beyond the process, and shares them with others that have the
/// same login.
///
/// A session makes every save under the store's lock and after a load. Each call is bounded by
/// [`SessionBuilder::store_timeout`](crate::SessionBuilder::store_timeout), a wait for the lock by
/// [`refresh_timeout`](crate::SessionBuilder::refresh_timeout). A store that fails never fails a
/// request: it becomes an [`Event::StoreFailed`](crate::Event::StoreFailed), and the save is tried
/// again before the next rotation.
#[async_trait]
pub trait TokenStore: Send + Sync + 'static {
    /// What is stored; `None` if nothing is.
    ///
    /// # Errors
    /// [`Store`](crate::ErrorKind::Store), if the store is down or what it holds cannot be read.
    async fn load(&self) -> Result<Option<Tokens>, Error>;

    /// Stores these tokens in place of what is there, whole or not at all.
    ///
    /// # Errors
    /// [`Store`](crate::ErrorKind::Store), if it could not, or if `lock` is no longer held.
    async fn save(&self, lock: &StoreLock, tokens: &Tokens) -> Result<(), Error>;

    /// Forgets what is stored.
    ///
    /// # Errors
    /// [`Store`](crate::ErrorKind::Store), if it could not, or if `lock` is no longer held.
    async fn clear(&self, lock: &StoreLock) -> Result<(), Error>;

    /// Waits until nobody else holds the lock, and takes it. A store that nobody shares returns
    /// [`StoreLock::none`].
    ///
    /// # Errors
    /// [`Store`](crate::ErrorKind::Store), if the store is down: the session goes on without it.
    async fn lock(&self) -> Result<StoreLock, Error>;

    /// Returns what is stored as soon as that is something else than `seen`, or when the
    /// [failure](Self::load_failure) beside it has changed since the call. `seen` is what the
    /// caller loaded last, so that nothing that is stored between its load and this call is missed.
    ///
    /// A session calls it while another process holds the lock, and gives it up at any time. Its
    /// cost to the store should not grow with the number of those who wait. The default loads again
    /// and again, at first after 20 ms, later once a second.
    ///
    /// # Errors
    /// [`Store`](crate::ErrorKind::Store), if the store is down: the session goes on to wait for
    /// the lock.
    async fn wait_for_change(&self, seen: Option<&Tokens>) -> Result<Option<Tokens>, Error> {
        let failure = self.load_failure().await?;
        let mut pause = FIRST_POLL;
        loop {
            let stored = self.load().await?;
            if !is_same(stored.as_ref(), seen) || self.load_failure().await? != failure {
                return Ok(stored);
            }
            tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
            pause = (pause * 2).min(LONGEST_POLL);
        }
    }

    /// The failure that another process has left, if it still counts. Default: none, and failures
    /// are not shared.
    ///
    /// # Errors
    /// [`Store`](crate::ErrorKind::Store), if the store is down.
    async fn load_failure(&self) -> Result<Option<StoredFailure>, Error> {
        Ok(None)
    }

    /// Keeps a failure beside the tokens, in place of the one that is there. One whose
    /// [lifetime](StoredFailure::lifetime) is zero takes that back. Default: does nothing.
    ///
    /// # Errors
    /// [`Store`](crate::ErrorKind::Store), if it could not, or if `lock` is no longer held.
    async fn save_failure(&self, lock: &StoreLock, failure: &StoredFailure) -> Result<(), Error> {
        let _ = (lock, failure);
        Ok(())
    }
}

/// Between two looks of the default [`TokenStore::wait_for_change`].
const FIRST_POLL: Duration = Duration::from_millis(20);
const LONGEST_POLL: Duration = Duration::from_secs(1);

fn is_same(one: Option<&Tokens>, other: Option<&Tokens>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => one.same_as(other),
        (None, None) => true,
        _ => false,
    }
}

macro_rules! forward {
    ($pointer:ident) => {
        #[async_trait]
        impl<S: TokenStore + ?Sized> TokenStore for $pointer<S> {
            async fn load(&self) -> Result<Option<Tokens>, Error> {
                (**self).load().await
            }

            async fn save(&self, lock: &StoreLock, tokens: &Tokens) -> Result<(), Error> {
                (**self).save(lock, tokens).await
            }

            async fn clear(&self, lock: &StoreLock) -> Result<(), Error> {
                (**self).clear(lock).await
            }

            async fn lock(&self) -> Result<StoreLock, Error> {
                (**self).lock().await
            }

            async fn wait_for_change(
                &self,
                seen: Option<&Tokens>,
            ) -> Result<Option<Tokens>, Error> {
                (**self).wait_for_change(seen).await
            }

            async fn load_failure(&self) -> Result<Option<StoredFailure>, Error> {
                (**self).load_failure().await
            }

            async fn save_failure(
                &self,
                lock: &StoreLock,
                failure: &StoredFailure,
            ) -> Result<(), Error> {
                (**self).save_failure(lock, failure).await
            }
        }
    };
}

forward!(Arc);
forward!(Box);

/// A store's lock, held while a flight or a save runs. It is free again when the last share of it
/// is dropped.
pub struct StoreLock {
    guard: Option<Arc<dyn Any + Send + Sync>>,
    fence: Option<u64>,
    is_held: Option<Arc<dyn Fn() -> bool + Send + Sync>>,
}

impl StoreLock {
    /// For a store without a lock.
    pub fn none() -> Self {
        Self { guard: None, fence: None, is_held: None }
    }

    /// Held as long as `guard` lives.
    pub fn holding<T: Send + Sync + 'static>(guard: T) -> Self {
        Self { guard: Some(Arc::new(guard)), fence: None, is_held: None }
    }

    /// Adds a number that rises with each holder, by which the store tells a holder that stalled
    /// from the present one.
    pub fn with_fence(mut self, fence: u64) -> Self {
        self.fence = Some(fence);
        self
    }

    /// The number of this holder, where the store has one.
    pub fn fence(&self) -> Option<u64> {
        self.fence
    }

    /// Adds the answer to [`is_held`](Self::is_held), for a lock that can end under its holder: a
    /// lease, a connection that may break. It must not block. A panic in it counts as `false`.
    pub fn with_check(mut self, is_held: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        self.is_held = Some(Arc::new(is_held));
        self
    }

    /// Whether the lock is certainly still held, for about as long as one call of the token
    /// endpoint takes. `true` for a lock [without a check](Self::with_check).
    ///
    /// A session asks before each attempt to refresh. If it is not certain, it takes the lock again,
    /// and looks into the store first.
    pub fn is_held(&self) -> bool {
        let ask = |is_held: &Arc<dyn Fn() -> bool + Send + Sync>| {
            catch_unwind(AssertUnwindSafe(|| is_held())).unwrap_or(false)
        };
        self.is_held.as_ref().is_none_or(ask)
    }

    /// The same lock once more: for work that goes on when the caller has given up on it.
    pub(crate) fn share(&self) -> Self {
        Self { guard: self.guard.clone(), fence: self.fence, is_held: self.is_held.clone() }
    }

    /// The guard that it was made with by [`holding`](Self::holding), if that is a `T`. A store
    /// finds its own connection or transaction here again.
    pub fn downcast_ref<T: Send + Sync + 'static>(&self) -> Option<&T> {
        self.guard.as_deref()?.downcast_ref()
    }
}

/// A guard may be somebody else's: a panic of its drop ends here.
impl Drop for StoreLock {
    fn drop(&mut self) {
        let guard = self.guard.take();
        let _ = catch_unwind(AssertUnwindSafe(|| drop(guard)));
    }
}

impl fmt::Debug for StoreLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreLock").field("fence", &self.fence).finish_non_exhaustive()
    }
}
