//! The stores that need no server pass the conformance suite, and the suite detects a store that
//! breaks a rule.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use reqwest_reauth::{
    Error, FileStore, MemoryStore, StoreLock, StoredFailure, TokenStore, Tokens,
    testing::store_conformance,
};

#[tokio::test]
async fn memory_conforms() {
    let store = MemoryStore::default();
    store_conformance(|| async { store.clone() }).await;
}

#[tokio::test]
async fn a_file_conforms() {
    let dir = tempfile::tempdir().unwrap();
    store_conformance(|| async { FileStore::new(dir.path().join("below/tokens.json")) }).await;
}

#[tokio::test]
async fn a_sealed_file_conforms() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokens.json");
    store_conformance(|| async { FileStore::new(&path).encrypt_with(&[1; 32]).label("a") }).await;
}

/// Only the methods without defaults, like a store written for the first edition.
#[derive(Clone, Default)]
struct Old {
    inner: MemoryStore,
    fault: Fault,
}

#[derive(Clone, Copy, Default, PartialEq)]
enum Fault {
    #[default]
    None,
    NoLock,
    NoClear,
    AddsToWhatIsThere,
}

#[async_trait]
impl TokenStore for Old {
    async fn load(&self) -> Result<Option<Tokens>, Error> {
        self.inner.load().await
    }

    async fn save(&self, lock: &StoreLock, tokens: &Tokens) -> Result<(), Error> {
        let old = self.inner.load().await?;
        let refresh = old.as_ref().and_then(Tokens::refresh_token);
        match refresh.filter(|_| tokens.refresh_token().is_none()) {
            Some(refresh) if self.fault == Fault::AddsToWhatIsThere => {
                let both = tokens.clone().with_refresh_token(refresh.expose_secret())?;
                self.inner.save(lock, &both).await
            }
            _ => self.inner.save(lock, tokens).await,
        }
    }

    async fn clear(&self, lock: &StoreLock) -> Result<(), Error> {
        match self.fault {
            Fault::NoClear => Ok(()),
            _ => self.inner.clear(lock).await,
        }
    }

    async fn lock(&self) -> Result<StoreLock, Error> {
        match self.fault {
            Fault::NoLock => Ok(StoreLock::none()),
            _ => self.inner.lock().await,
        }
    }
}

#[tokio::test]
async fn the_defaults_conform() {
    let store = Old::default();
    store_conformance(|| async { store.clone() }).await;
}

#[tokio::test]
async fn a_broken_rule_is_named() {
    for (fault, rule) in [
        (Fault::NoLock, "the lock has one holder"),
        (Fault::NoClear, "what is cleared is gone"),
        (Fault::AddsToWhatIsThere, "a save replaces the tokens as a whole"),
    ] {
        let store = Old { fault, ..Old::default() };
        let suite =
            tokio::spawn(async move { store_conformance(|| async { store.clone() }).await });
        let panic = suite.await.unwrap_err().into_panic();
        let said = panic.downcast_ref::<String>().unwrap();
        assert!(said.contains(rule), "{said}");
    }
}

/// Counts what reaches the store inside a pointer.
#[derive(Clone, Default)]
struct Counting(Arc<Mutex<Vec<&'static str>>>);

impl Counting {
    fn note(&self, call: &'static str) {
        self.0.lock().unwrap().push(call);
    }
}

#[async_trait]
impl TokenStore for Counting {
    async fn load(&self) -> Result<Option<Tokens>, Error> {
        self.note("load");
        Ok(None)
    }
    async fn save(&self, _: &StoreLock, _: &Tokens) -> Result<(), Error> {
        self.note("save");
        Ok(())
    }
    async fn clear(&self, _: &StoreLock) -> Result<(), Error> {
        self.note("clear");
        Ok(())
    }
    async fn lock(&self) -> Result<StoreLock, Error> {
        self.note("lock");
        Ok(StoreLock::holding(7_u8))
    }
    async fn wait_for_change(&self, _: Option<&Tokens>) -> Result<Option<Tokens>, Error> {
        self.note("wait_for_change");
        Ok(None)
    }
    async fn load_failure(&self) -> Result<Option<StoredFailure>, Error> {
        self.note("load_failure");
        Ok(None)
    }
    async fn save_failure(&self, _: &StoreLock, _: &StoredFailure) -> Result<(), Error> {
        self.note("save_failure");
        Ok(())
    }
}

async fn call_all(store: impl TokenStore) {
    let lock = store.lock().await.unwrap();
    assert_eq!(lock.downcast_ref::<u8>(), Some(&7));
    assert_eq!(lock.downcast_ref::<u16>(), None);
    let failure = StoredFailure::from_text("x");
    store.load().await.unwrap();
    store.save(&lock, &Tokens::empty()).await.unwrap();
    store.clear(&lock).await.unwrap();
    store.wait_for_change(None).await.unwrap();
    store.load_failure().await.unwrap();
    store.save_failure(&lock, &failure).await.unwrap();
}

#[tokio::test]
async fn arc_and_box_forward_every_method() {
    let all = ["lock", "load", "save", "clear", "wait_for_change", "load_failure", "save_failure"];
    let inner = Counting::default();
    call_all(Arc::new(inner.clone())).await;
    assert_eq!(std::mem::take(&mut *inner.0.lock().unwrap()), all);
    let boxed: Box<dyn TokenStore> = Box::new(inner.clone());
    call_all(boxed).await;
    assert_eq!(*inner.0.lock().unwrap(), all);
}
