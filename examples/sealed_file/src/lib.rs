//! An encrypted token file whose key is in the system's keyring. This file is to be copied.
//!
//! The keyring is the secret service of Linux desktops here. For macOS and Windows, replace its store
//! by one of
//! [`apple-native-keyring-store`](https://docs.rs/apple-native-keyring-store) and
//! [`windows-native-keyring-store`](https://docs.rs/windows-native-keyring-store).
//!
//! The program of this package runs it against a real secret service.

use std::{error::Error, path::Path};

use keyring_core::Entry;
use reqwest_reauth::{FileStore, TokenStore as _};
use zbus_secret_service_keyring_store::Store;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Returns a store in this file, encrypted with the key that the keyring has under this name. The
/// first process of a user makes the key.
///
/// # Errors
/// If the keyring is missing or locked, or if it has something else under this name.
pub async fn sealed_store(path: &Path, name: &'static str) -> Result<FileStore> {
    let store = FileStore::new(path);
    // Only one process makes the key: locking a file needs none.
    let lock = store.lock().await?;
    // The keyring blocks its thread, for example while the user types a password.
    let key = tokio::task::spawn_blocking(move || key(&entry(name)?)).await??;
    drop(lock);
    Ok(store.encrypt_with(&key))
}

/// Returns the place of the key in the keyring.
///
/// # Errors
/// If the keyring cannot be reached.
pub fn entry(name: &str) -> Result<Entry> {
    let keyring = Store::new()?;
    Ok(Entry::new_in_store(&(keyring as _), name, "token-file")?)
}

fn key(entry: &Entry) -> Result<[u8; 32]> {
    match entry.get_secret() {
        Ok(secret) => {
            let key = <[u8; 32]>::try_from(secret.as_slice());
            key.map_err(|_| "the keyring has something else under this name".into())
        }
        // Any other error must not replace a key that tokens are encrypted with.
        Err(keyring_core::Error::NoEntry) => {
            let mut key = [0; 32];
            getrandom::fill(&mut key)?;
            entry.set_secret(&key)?;
            Ok(key)
        }
        Err(error) => Err(error.into()),
    }
}
