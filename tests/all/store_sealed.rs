//! `FileStore::encrypt_with`: a rejected file is left unchanged, and the error says why.

use std::{error::Error as _, fs, path::Path};

use reqwest_reauth::{Error, ErrorKind, FileStore, TokenStore, Tokens};

const KEY: [u8; 32] = [1; 32];
const OTHER_KEY: [u8; 32] = [2; 32];

fn tokens() -> Tokens {
    Tokens::new("access-1").unwrap().with_refresh_token("refresh-1").unwrap()
}

async fn save(store: &FileStore, tokens: &Tokens) -> Result<(), Error> {
    let lock = store.lock().await?;
    store.save(&lock, tokens).await
}

async fn access(store: &FileStore) -> String {
    let tokens = store.load().await.unwrap().unwrap();
    tokens.access_token().unwrap().expose_secret().to_owned()
}

/// Load, save and clear fail for this reason, name the file, and change nothing beside it.
async fn is_refused(store: &FileStore, path: &Path, why: &str) {
    let before = fs::read(path).unwrap();
    let lock = store.lock().await.unwrap();
    let errors = [
        store.load().await.unwrap_err(),
        store.save(&lock, &tokens()).await.unwrap_err(),
        store.clear(&lock).await.unwrap_err(),
    ];
    for error in errors {
        assert_eq!(error.kind(), ErrorKind::Store);
        let said = error.source().unwrap().to_string();
        assert!(said.contains(why) && said.contains(path.to_str().unwrap()), "{said}");
    }
    assert_eq!(fs::read(path).unwrap(), before);
    let names = fs::read_dir(path.parent().unwrap()).unwrap().count();
    assert_eq!(names, 2, "the file and its lock file");
}

#[tokio::test]
async fn no_token_is_on_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokens.json");
    let store = FileStore::new(&path).encrypt_with(&KEY);
    save(&store, &tokens()).await.unwrap();
    let first = fs::read_to_string(&path).unwrap();
    assert!(first.starts_with(r#"{"version":2,"#), "{first}");
    assert!(!first.contains("access") && !first.contains("refresh-1"), "{first}");
    assert_eq!(access(&store).await, "access-1");
    save(&store, &tokens()).await.unwrap();
    assert_ne!(fs::read_to_string(&path).unwrap(), first, "each save has its own nonce");
    let lock = store.lock().await.unwrap();
    store.clear(&lock).await.unwrap();
    assert!(!path.exists());
}

#[tokio::test]
async fn an_unopenable_file_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokens.json");
    let file = || FileStore::new(&path);
    let sealed = file().encrypt_with(&KEY).label("tenant-1");
    save(&sealed, &tokens()).await.unwrap();
    is_refused(&file(), &path, "is encrypted, and this store has no key").await;
    is_refused(&file().encrypt_with(&OTHER_KEY).label("tenant-1"), &path, "another key").await;
    is_refused(&file().encrypt_with(&KEY).label("tenant-2"), &path, "has another label").await;

    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    is_refused(&sealed, &path, "was cut short").await;
    is_refused(&file(), &path, "has no key").await;
    let mut changed = whole.clone();
    let byte = changed.len() - 20;
    changed[byte] = if changed[byte] == b'A' { b'B' } else { b'A' };
    fs::write(&path, changed).unwrap();
    is_refused(&sealed, &path, "is damaged").await;

    fs::write(&path, whole).unwrap();
    assert_eq!(access(&sealed).await, "access-1");
}

#[tokio::test]
async fn a_plain_file_is_taken_over_on_request() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokens.json");
    let file = || FileStore::new(&path);
    let plain = r#"{"version":1,"access_token":"access-1","note":"kept"}"#;
    fs::write(&path, plain).unwrap();
    is_rejected_without_lock(&file().encrypt_with(&KEY), &path).await;
    let moving = file().encrypt_with(&KEY).also_read_plain();
    assert_eq!(access(&moving).await, "access-1");
    assert_eq!(fs::read_to_string(&path).unwrap(), plain, "a load changes nothing");
    save(&moving, &tokens()).await.unwrap();
    for entry in fs::read_dir(dir.path()).unwrap() {
        let content = fs::read(entry.unwrap().path()).unwrap();
        assert!(!content.windows(6).any(|part| part == b"access"), "no plain copy stays");
    }
    assert_eq!(access(&file().encrypt_with(&KEY)).await, "access-1");
}

async fn is_rejected_without_lock(store: &FileStore, path: &Path) {
    let before = fs::read(path).unwrap();
    let error = save(store, &tokens()).await.unwrap_err();
    let said = error.source().unwrap().to_string();
    assert!(said.contains("is not encrypted") && said.contains("also_read_plain"), "{said}");
    assert_eq!(fs::read(path).unwrap(), before);
}

#[tokio::test]
async fn a_key_is_changed_by_the_next_save() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokens.json");
    let file = || FileStore::new(&path);
    save(&file().encrypt_with(&KEY), &tokens()).await.unwrap();
    let changing = file().encrypt_with(&OTHER_KEY).also_decrypt_with(&KEY);
    assert_eq!(access(&changing).await, "access-1");
    save(&changing, &tokens()).await.unwrap();
    assert_eq!(access(&file().encrypt_with(&OTHER_KEY)).await, "access-1");
    is_refused(&file().encrypt_with(&KEY), &path, "another key").await;
}

#[tokio::test]
async fn no_byte_can_be_changed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokens.json");
    let store = FileStore::new(&path).encrypt_with(&KEY).also_read_plain();
    save(&store, &tokens()).await.unwrap();
    let whole = fs::read(&path).unwrap();
    for at in 0..whole.len() {
        let mut changed = whole.clone();
        changed[at] ^= 1;
        fs::write(&path, &changed).unwrap();
        let error = store.load().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Store, "byte {at}");
        if at % 7 == 0 {
            assert!(save(&store, &tokens()).await.is_err(), "byte {at}");
            assert_eq!(fs::read(&path).unwrap(), changed, "byte {at}");
        }
    }
}
