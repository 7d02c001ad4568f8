use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;

use super::{StoreLock, TokenStore};
use crate::{error::Error, token::Tokens};

/// One login shared by the sessions of a process. Clones are the same store.
///
/// It ends with the process: for sessions that have different settings, or listeners of their own,
/// but one login. Where the settings are the same, clones of one [`Session`](crate::Session) are
/// simpler.
///
/// ```
/// # async fn f() -> Result<(), reqwest_reauth::Error> {
/// use reqwest_reauth::{MemoryStore, TokenStore, Tokens};
///
/// let store = MemoryStore::default();
/// let other = store.clone();
/// let lock = store.lock().await?;
/// store.save(&lock, &Tokens::from_refresh_token("1//0g-x")?).await?;
/// drop(lock);
/// assert!(other.load().await?.is_some());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Default)]
pub struct MemoryStore {
    tokens: Arc<Mutex<Option<Tokens>>>,
    lock: Arc<tokio::sync::Mutex<()>>,
}

impl MemoryStore {
    fn put(&self, tokens: Option<Tokens>) {
        *self.tokens.lock().unwrap_or_else(PoisonError::into_inner) = tokens;
    }
}

#[async_trait]
impl TokenStore for MemoryStore {
    async fn load(&self) -> Result<Option<Tokens>, Error> {
        Ok(self.tokens.lock().unwrap_or_else(PoisonError::into_inner).clone())
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
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore").finish_non_exhaustive()
    }
}
