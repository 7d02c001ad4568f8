use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::{sync::watch, time::Instant};

use super::{StoreLock, StoredFailure, TokenStore, is_same};
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
        Ok(StoreLock::holding(Arc::clone(&self.lock).lock_owned().await))
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

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore").finish_non_exhaustive()
    }
}
