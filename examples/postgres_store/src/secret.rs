//! A login in a directory with the layout of a mounted Kubernetes secret.

use std::{
    ffi::OsStr,
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, ErrorKind as Io, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, symlink},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use async_trait::async_trait;
use reqwest_reauth::{Error, ErrorKind, StoreLock, TokenStore, Tokens};
use serde::{Deserialize, Serialize};

const FILE: &str = "login.json";
const DATA: &str = "..data";
const NEW_DATA: &str = "..data_tmp";
const LOCK: &str = ".lock";
const FIRST_POLL: Duration = Duration::from_millis(5);
const LONGEST_POLL: Duration = Duration::from_millis(50);

/// A login in a directory that looks like a mounted secret, shared by the processes of a machine.
///
/// ```text
/// login.json -> ..data/login.json
/// ..data     -> ..1800000000.5f3a…
/// ..1800000000.5f3a…/login.json
/// .lock
/// ```
///
/// A program that reads a mounted secret can read it. As the kubelet does, a save writes a new
/// directory and replaces the link `..data` by a rename, so that a reader finds the old login or the
/// new one. A real mount of a secret is read-only: use a subdirectory of a volume that the processes
/// may write.
///
/// The lock is the operating system's, on `.lock`, and ends with its holder. The store keeps no
/// failures, and is polled for changes: both are the defaults of [`TokenStore`].
#[derive(Clone, Debug)]
pub struct SecretStore {
    dir: PathBuf,
}

impl SecretStore {
    /// Creates a store in this directory. A missing directory is created by the first lock.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// Replaces the content, on a thread that may block. The thread has its own share of the lock,
    /// so that a cancelled save keeps others out until it ends.
    async fn replace(&self, lock: &StoreLock, content: Option<Vec<u8>>) -> Result<(), Error> {
        let held = match lock.downcast_ref::<Arc<Held>>() {
            Some(held) if held.dir == self.dir => Arc::clone(held),
            _ => {
                return Err(Error::new(
                    ErrorKind::Store,
                    "a write needs the lock of its own login",
                ));
            }
        };
        blocking(move || {
            if !is_lock(&held.dir, &held.file)? {
                return Err(io::Error::other("the lock file was deleted while it was held"));
            }
            swap(&held.dir, content.as_deref())
        })
        .await
    }
}

#[async_trait]
impl TokenStore for SecretStore {
    async fn load(&self) -> Result<Option<Tokens>, Error> {
        let dir = self.dir.clone();
        match blocking(move || read(&dir)).await? {
            Some(content) => {
                // The error of the parser could quote a token.
                let stored: Stored = serde_json::from_slice(&content)
                    .map_err(|_| Error::new(ErrorKind::Store, "login.json cannot be parsed"))?;
                stored.into_tokens().map(Some)
            }
            None => Ok(None),
        }
    }

    async fn save(&self, lock: &StoreLock, tokens: &Tokens) -> Result<(), Error> {
        let content = serde_json::to_vec(&Stored::of(tokens))
            .map_err(|error| Error::new(ErrorKind::Store, error))?;
        self.replace(lock, Some(content)).await
    }

    async fn clear(&self, lock: &StoreLock) -> Result<(), Error> {
        self.replace(lock, None).await
    }

    async fn lock(&self) -> Result<StoreLock, Error> {
        let mut pause = FIRST_POLL;
        loop {
            // Polls, because a thread that waits in the operating system cannot be cancelled.
            let dir = self.dir.clone();
            if let Some(held) = blocking(move || Held::take(dir)).await? {
                return Ok(StoreLock::holding(Arc::new(held)));
            }
            tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
            pause = (pause * 2).min(LONGEST_POLL);
        }
    }
}

/// The content of `login.json`.
#[derive(Serialize, Deserialize)]
struct Stored {
    #[serde(skip_serializing_if = "Option::is_none")]
    access_token: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    refresh_token: Option<String>,
    /// In Unix seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<u64>,
    /// Of a key for DPoP.
    #[serde(skip_serializing_if = "Option::is_none")]
    key_thumbprint: Option<String>,
}

impl Stored {
    fn of(tokens: &Tokens) -> Self {
        let since_epoch = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            access_token: tokens.access_token().map(|token| token.expose_secret().to_owned()),
            refresh_token: tokens.refresh_token().map(|token| token.expose_secret().to_owned()),
            expires_at: tokens.expires_at().map(|time| since_epoch(time).as_secs()),
            key_thumbprint: tokens.key_thumbprint().map(str::to_owned),
        }
    }

    fn into_tokens(self) -> Result<Tokens, Error> {
        let mut tokens = match self.access_token {
            Some(access) => Tokens::new(access)?,
            None => Tokens::empty(),
        };
        if let Some(refresh) = self.refresh_token {
            tokens = tokens.with_refresh_token(refresh)?;
        }
        let expires_at =
            self.expires_at.and_then(|at| UNIX_EPOCH.checked_add(Duration::from_secs(at)));
        if let Some(expires_at) = expires_at {
            tokens = tokens.with_expires_at(expires_at);
        }
        Ok(match self.key_thumbprint {
            Some(thumbprint) => tokens.with_key_thumbprint(thumbprint),
            None => tokens,
        })
    }
}

/// The lock on a directory, until it is dropped.
struct Held {
    dir: PathBuf,
    file: File,
}

impl Held {
    /// Returns `None` while another process holds the lock.
    fn take(dir: PathBuf) -> io::Result<Option<Self>> {
        DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        let open = OpenOptions::new().create(true).append(true).mode(0o600).open(dir.join(LOCK));
        let file = open?;
        match file.try_lock() {
            // If the lock file was deleted under its holder, only the file that now exists counts.
            Ok(()) => Ok(is_lock(&dir, &file)?.then_some(Self { dir, file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // Closing alone would not free the lock while a child process has inherited the file.
        let _ = self.file.unlock();
    }
}

fn is_lock(dir: &Path, file: &File) -> io::Result<bool> {
    let Some(now) = existing(fs::metadata(dir.join(LOCK)))? else {
        return Ok(false);
    };
    let held = file.metadata()?;
    Ok((now.dev(), now.ino()) == (held.dev(), held.ino()))
}

/// Reads what `..data` points to.
fn read(dir: &Path) -> io::Result<Option<Vec<u8>>> {
    loop {
        let Some(target) = existing(fs::read_link(dir.join(DATA)))? else {
            return Ok(None);
        };
        if let Some(content) = existing(fs::read(dir.join(&target).join(FILE)))? {
            return Ok(Some(content));
        }
        // A save may have replaced the link in between, and removed the old directory.
        if existing(fs::read_link(dir.join(DATA)))?.as_ref() == Some(&target) {
            return Ok(None);
        }
    }
}

/// Writes a new directory, and lets `..data` point to it.
fn swap(dir: &Path, content: Option<&[u8]>) -> io::Result<()> {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let name = format!("..{seconds}.{:016x}", fastrand::u64(..));
    let version = dir.join(&name);
    DirBuilder::new().mode(0o700).create(&version)?;
    if let Some(content) = content {
        let path = version.join(FILE);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(content)?;
        file.sync_all()?;
        File::open(&version)?.sync_all()?;
    }
    // What a crash has left behind.
    existing(fs::remove_file(dir.join(NEW_DATA)))?;
    symlink(&name, dir.join(NEW_DATA))?;
    fs::rename(dir.join(NEW_DATA), dir.join(DATA))?;
    if fs::symlink_metadata(dir.join(FILE)).is_err() {
        symlink(Path::new(DATA).join(FILE), dir.join(FILE))?;
    }
    File::open(dir)?.sync_all()?;
    // The new login is stored. A failure to remove an old one must not look like a failed save.
    remove_old(dir, OsStr::new(&name));
    Ok(())
}

/// Removes all versions but this one.
fn remove_old(dir: &Path, current: &OsStr) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let is_version = name.as_encoded_bytes().starts_with(b"..")
            && entry.file_type().is_ok_and(|kind| kind.is_dir());
        if is_version && name != current {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

fn existing<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == Io::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(|error| Error::new(ErrorKind::Store, error)),
        Err(error) => Err(Error::new(ErrorKind::Store, error)),
    }
}
