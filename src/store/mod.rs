//! Stores that keep tokens beyond the process: the [`TokenStore`] trait, and its implementations
//! for memory, files and Redis.

mod failure;
mod file;
mod mark;
mod memory;
mod record;
#[cfg(feature = "redis")]
mod redis;
mod sealed;
mod sending;

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
use self::sending::{KeepsRecord, SendRecord};
pub(crate) use self::{
    failure::is_lock_lapsed,
    mark::{Says, fingerprint},
};
pub use self::{file::FileStore, mark::StoredFailure, memory::MemoryStore};
use crate::{
    error::Error,
    token::{RefreshToken, Tokens},
};

/// Keeps a session's tokens beyond the process, and shares them with other sessions of the same
/// login.
///
/// A session makes every save under the store's lock and after a load.
/// [`SessionBuilder::store_timeout`](crate::SessionBuilder::store_timeout) bounds each call, and
/// [`refresh_timeout`](crate::SessionBuilder::refresh_timeout) bounds a wait for the lock. A
/// failing store never fails a request: the session reports
/// [`Event::StoreFailed`](crate::Event::StoreFailed), and retries the save before the next
/// rotation.
///
/// The repository's `examples/postgres_store` has two complete implementations, which share a login
/// in PostgreSQL and in a Kubernetes-like secret. `testing::store_conformance` (feature `test-util`)
/// tests an implementation.
#[async_trait]
pub trait TokenStore: Send + Sync + 'static {
    /// Returns the stored tokens, or `None` if there are none.
    ///
    /// # Errors
    /// [`Store`](crate::ErrorKind::Store) if the store is unavailable or its content cannot be
    /// read.
    async fn load(&self) -> Result<Option<Tokens>, Error>;

    /// Atomically replaces the stored tokens.
    ///
    /// # Errors
    /// [`Store`](crate::ErrorKind::Store) if the save failed, or if `lock` is no longer held.
    async fn save(&self, lock: &StoreLock, tokens: &Tokens) -> Result<(), Error>;

    /// Removes the stored tokens.
    ///
    /// # Errors
    /// [`Store`](crate::ErrorKind::Store) if the removal failed, or if `lock` is no longer held.
    async fn clear(&self, lock: &StoreLock) -> Result<(), Error>;

    /// Waits for the lock and takes it. A store that is not shared returns [`StoreLock::none`].
    ///
    /// # Errors
    /// [`Store`](crate::ErrorKind::Store) if the store is unavailable. The session then continues
    /// without it.
    async fn lock(&self) -> Result<StoreLock, Error>;

    /// Waits until the stored tokens differ from `seen`, or until the [failure](Self::load_failure)
    /// beside them has changed since the call, and returns the stored tokens. `seen` is what the
    /// caller loaded last, so that a change between its load and this call is not missed.
    ///
    /// A session calls it while another process holds the lock, and may cancel it at any time. Its
    /// cost to the store should not grow with the number of waiters. The default implementation
    /// polls, first after 20 ms and later once a second.
    ///
    /// # Errors
    /// [`Store`](crate::ErrorKind::Store) if the store is unavailable. The session then waits for
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

    /// Returns the failure that another process has stored, if it still counts. The default returns
    /// `None`, so that failures are not shared.
    ///
    /// # Errors
    /// [`Store`](crate::ErrorKind::Store) if the store is unavailable.
    async fn load_failure(&self) -> Result<Option<StoredFailure>, Error> {
        Ok(None)
    }

    /// Stores a failure beside the tokens, and replaces the previous one. A failure whose
    /// [lifetime](StoredFailure::lifetime) is zero withdraws the previous one. The default does
    /// nothing.
    ///
    /// # Errors
    /// [`Store`](crate::ErrorKind::Store) if the save failed, or if `lock` is no longer held.
    async fn save_failure(&self, lock: &StoreLock, failure: &StoredFailure) -> Result<(), Error> {
        let _ = (lock, failure);
        Ok(())
    }
}

/// The first polling interval of the default [`TokenStore::wait_for_change`].
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

/// The lock of a store, held during a refresh or a save. It is released when its last share is
/// dropped.
pub struct StoreLock {
    guard: Option<Arc<dyn Any + Send + Sync>>,
    fence: Option<u64>,
    is_held: Option<Arc<dyn Fn() -> bool + Send + Sync>>,
    /// The guard again, if its store records which refresh token is sent.
    recorder: Option<Arc<dyn KeepsRecord>>,
}

impl StoreLock {
    /// Returns the lock of a store that needs no lock.
    pub fn none() -> Self {
        Self { guard: None, fence: None, is_held: None, recorder: None }
    }

    /// Returns a lock that is held as long as `guard` lives.
    pub fn holding<T: Send + Sync + 'static>(guard: T) -> Self {
        Self { guard: Some(Arc::new(guard)), fence: None, is_held: None, recorder: None }
    }

    /// Adds a number that increases with each holder. It lets the store tell a stalled holder from
    /// the current one.
    pub fn with_fence(mut self, fence: u64) -> Self {
        self.fence = Some(fence);
        self
    }

    /// Returns the number of this holder, if the store uses one.
    pub fn fence(&self) -> Option<u64> {
        self.fence
    }

    /// Sets the check of [`is_held`](Self::is_held), for a lock that can end before it is dropped,
    /// such as a lease or a connection that may break. Default: the lock always counts as held.
    ///
    /// The check must not block. A panic in it counts as `false`.
    pub fn with_check(mut self, is_held: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        self.is_held = Some(Arc::new(is_held));
        self
    }

    /// Returns whether the lock is certain to be held for about as long as one call to the token
    /// endpoint takes. Without a [check](Self::with_check) it returns `true`.
    ///
    /// A session calls it before each attempt of a refresh. If it returns `false`, the session
    /// takes the lock again and reads the store first.
    pub fn is_held(&self) -> bool {
        let ask = |is_held: &Arc<dyn Fn() -> bool + Send + Sync>| {
            catch_unwind(AssertUnwindSafe(|| is_held())).unwrap_or(false)
        };
        self.is_held.as_ref().is_none_or(ask)
    }

    /// Returns another share of the lock, for work that continues after its caller is cancelled.
    pub(crate) fn share(&self) -> Self {
        Self {
            guard: self.guard.clone(),
            fence: self.fence,
            is_held: self.is_held.clone(),
            recorder: self.recorder.clone(),
        }
    }

    /// Returns a lock whose store records which refresh token is sent.
    fn recording<T: KeepsRecord + 'static>(guard: T) -> Self {
        let guard = Arc::new(guard);
        let recorder = Some(Arc::clone(&guard) as Arc<dyn KeepsRecord>);
        Self { guard: Some(guard), fence: None, is_held: None, recorder }
    }

    /// Records that this refresh token is about to be sent.
    pub(crate) async fn sends(&self, refresh: &RefreshToken) -> Result<(), Error> {
        let Some(recorder) = &self.recorder else { return Ok(()) };
        let of = fingerprint(refresh, &[]);
        if recorder.record().needs(&of) {
            Arc::clone(recorder).write(of.clone()).await?;
            recorder.record().writes(&of);
        }
        Ok(())
    }

    /// Whether a previous holder has sent this refresh token and lost the response. `None` if the
    /// store does not record it.
    pub(crate) fn is_lost(&self, refresh: &RefreshToken) -> Option<bool> {
        Some(self.record()?.is_lost(&fingerprint(refresh, &[])))
    }

    /// Records that the response to each call is known.
    pub(crate) fn responded(&self) {
        if let Some(record) = self.record() {
            record.responded();
        }
    }

    /// Records that the token endpoint has issued tokens, and whether they could be stored.
    pub(crate) fn issued(&self, is_saved: bool) {
        match self.record() {
            Some(record) if is_saved => record.forget(),
            Some(record) => record.is_unsaved(),
            None => {}
        }
    }

    /// Records that the login of each earlier call is replaced or over.
    pub(crate) fn forget_calls(&self) {
        if let Some(record) = self.record() {
            record.forget();
        }
    }

    fn record(&self) -> Option<&SendRecord> {
        self.recorder.as_deref().map(KeepsRecord::record)
    }

    /// Returns the guard of [`holding`](Self::holding), if it is a `T`. This gives a store access
    /// to its own connection or transaction.
    pub fn downcast_ref<T: Send + Sync + 'static>(&self) -> Option<&T> {
        self.guard.as_deref()?.downcast_ref()
    }
}

/// The guard may be foreign code, so a panic of its drop is caught.
impl Drop for StoreLock {
    fn drop(&mut self) {
        let held = (self.guard.take(), self.recorder.take());
        let _ = catch_unwind(AssertUnwindSafe(|| drop(held)));
    }
}

impl fmt::Debug for StoreLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreLock").field("fence", &self.fence).finish_non_exhaustive()
    }
}
