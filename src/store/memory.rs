use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use tokio::{
    sync::{OwnedMutexGuard, watch},
    time::Instant,
};

use super::{
    StoreLock, StoredFailure, TokenStore, is_same,
    sending::{AtRelease, KeepsRecord, SendRecord},
};
use crate::{error::Error, token::Tokens};

/// A login that is shared by the sessions of a process. Clones are the same store.
///
/// The tokens end with the process. Use it for sessions with different settings or listeners but
/// the same login. If the settings are the same, clones of one [`Session`](crate::Session) are
/// simpler.
///
/// ```
/// use reqwest_reauth::{Error, MemoryStore, TokenStore, Tokens};
///
/// #[tokio::main(flavor = "current_thread")]
/// async fn main() -> Result<(), Error> {
///     let store = MemoryStore::default();
///     let other = store.clone();
///     let lock = store.lock().await?;
///     store.save(&lock, &Tokens::from_refresh_token("1//0g-x")?).await?;
///     drop(lock);
///     assert!(other.load().await?.is_some());
///     Ok(())
/// }
/// ```
#[derive(Clone, Default)]
pub struct MemoryStore {
    held: Arc<watch::Sender<Held>>,
    lock: Arc<tokio::sync::Mutex<()>>,
    sending: Arc<Mutex<Option<String>>>,
}

#[derive(Default)]
struct Held {
    tokens: Option<Tokens>,
    failure: Option<StoredFailure>,
    failed_at: Option<Instant>,
}

impl MemoryStore {
    fn put(&self, tokens: Option<Tokens>) {
        self.held.send_modify(|held| held.tokens = tokens);
    }
}

#[async_trait]
impl TokenStore for MemoryStore {
    async fn load(&self) -> Result<Option<Tokens>, Error> {
        Ok(self.held.borrow().tokens.clone())
    }

    async fn save(&self, _lock: &StoreLock, tokens: &Tokens) -> Result<(), Error> {
        self.put(Some(tokens.clone()));
        Ok(())
    }

    async fn clear(&self, _lock: &StoreLock) -> Result<(), Error> {
        self.put(None);
        Ok(())
    }

    async fn lock(&self) -> Result<StoreLock, Error> {
        let turn = Arc::clone(&self.lock).lock_owned().await;
        let record = {
            let found = self.sending.lock().unwrap_or_else(PoisonError::into_inner);
            SendRecord::found(found.as_deref().map(str::as_bytes))
        };
        let sending = Arc::clone(&self.sending);
        Ok(StoreLock::recording(MemoryGuard { record, sending, _turn: turn }))
    }

    async fn wait_for_change(&self, seen: Option<&Tokens>) -> Result<Option<Tokens>, Error> {
        let mut held = self.held.subscribe();
        let failure = held.borrow().failure.clone();
        let changed = held
            .wait_for(|held| !is_same(held.tokens.as_ref(), seen) || held.failure != failure)
            .await;
        // `self` holds the sender, so the wait cannot fail.
        Ok(changed.ok().and_then(|held| held.tokens.clone()))
    }

    async fn load_failure(&self) -> Result<Option<StoredFailure>, Error> {
        let held = self.held.borrow();
        let age = held.failed_at.map(|at| at.elapsed()).unwrap_or_default();
        let failure = held.failure.clone();
        Ok(failure.filter(|failure| failure.lifetime().is_none_or(|lifetime| age < lifetime)))
    }

    async fn save_failure(&self, _lock: &StoreLock, failure: &StoredFailure) -> Result<(), Error> {
        let kept = (failure.lifetime() != Some(Duration::ZERO)).then(|| failure.clone());
        self.held.send_modify(|held| {
            held.failed_at = kept.is_some().then(Instant::now);
            held.failure = kept;
        });
        Ok(())
    }
}

/// The lock, until it is dropped.
struct MemoryGuard {
    record: SendRecord,
    sending: Arc<Mutex<Option<String>>>,
    _turn: OwnedMutexGuard<()>,
}

impl MemoryGuard {
    fn put(&self, of: Option<String>) {
        *self.sending.lock().unwrap_or_else(PoisonError::into_inner) = of;
    }
}

#[async_trait]
impl KeepsRecord for MemoryGuard {
    fn record(&self) -> &SendRecord {
        &self.record
    }

    async fn write(self: Arc<Self>, of: String) -> Result<(), Error> {
        self.put(Some(of));
        Ok(())
    }
}

impl Drop for MemoryGuard {
    fn drop(&mut self) {
        match self.record.at_release() {
            AtRelease::Leave => {}
            AtRelease::Remove => self.put(None),
            AtRelease::Restore(of) => self.put(Some(of)),
        }
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore").finish_non_exhaustive()
    }
}
