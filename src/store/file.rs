mod disk;
#[cfg(unix)]
mod trust;

use std::{
    fs::{File, TryLockError},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;

use self::disk::Place;
use super::{
    StoreLock, StoredFailure, TokenStore,
    failure::{failure, io_failure},
    is_same,
    record::{Record, Unreadable},
    sealed::{Sealing, Unopened},
    sending::{AtRelease, KeepsRecord, RECORD_BYTES, SendRecord},
};
use crate::{error::Error, token::Tokens};

const FIRST_POLL: Duration = Duration::from_millis(5);
const LONGEST_POLL: Duration = Duration::from_millis(50);

/// A login in a file, shared by the processes of a machine.
///
/// The file is JSON, with the expiry in Unix seconds:
///
/// ```json
/// {"version":1,"access_token":"…","refresh_token":"…","expires_at":1800000000.5}
/// ```
///
/// Tokens that are bound to a key (DPoP) have version 2 and the key's thumbprint,
/// `"cnf":{"jkt":"…"}`. Unknown members survive a rewrite. The file has mode 0600. The tokens in it
/// are not encrypted, unless [`encrypt_with`](Self::encrypt_with) is set.
///
/// # Defaults
///
/// | setting | default |
/// | --- | --- |
/// | [`encrypt_with`](Self::encrypt_with) | none: the file is not encrypted |
/// | [`label`](Self::label) | the empty text |
/// | [`also_decrypt_with`](Self::also_decrypt_with) | none |
/// | [`also_read_plain`](Self::also_read_plain) | off |
///
/// # Example
///
/// ```
/// use reqwest_reauth::{FileStore, Session, TokenStore, Tokens};
///
/// #[tokio::main(flavor = "current_thread")]
/// async fn main() -> Result<(), Box<dyn std::error::Error>> {
///     let dir = tempfile::tempdir()?;
///     let store = FileStore::new(dir.path().join("tokens.json"));
///
///     // Your login saves the first tokens.
///     let lock = store.lock().await?;
///     let tokens = Tokens::new("access-token")?.with_refresh_token("refresh-token")?;
///     store.save(&lock, &tokens).await?;
///     drop(lock);
///
///     // Every process builds its session from the file.
///     let session = Session::builder(Tokens::empty())
///         .origin("https://api.example.com")
///         .store(store)
///         .restore()
///         .await?;
///     assert!(session.tokens().is_some_and(|tokens| tokens.refresh_token().is_some()));
///     Ok(())
/// }
/// ```
///
/// # Files and directories
///
/// - Neither the group nor others may have write access to the file's directory, whoever owns it.
///   Do not use the shared temporary directory, or the root of a Kubernetes `emptyDir` or `fsGroup`
///   volume, but a subdirectory of it. A missing directory is created with mode 0700.
/// - The file, the files beside it and every symbolic link on the path must belong to this user or
///   to root. A link is followed and preserved, even if its target does not exist yet. Windows has
///   neither modes nor such owners: there the access list of the directory protects the file.
/// - A save writes a temporary file beside the old one, flushes it, and renames it. After a crash
///   the file is either the old one or the new one, and complete. The next save removes what a
///   crash leaves behind.
/// - A file that cannot be read is a [`Store`](crate::ErrorKind::Store) error that names it. The
///   next save first moves it to `<name>.broken` (or `.broken.1` and so on). A file that a later
///   version has written is left alone: loads and saves fail.
/// - The lock is the operating system's, on `<name>.lock` beside the file. It is released when its
///   holder dies. Never delete that file. During a call to the token endpoint it contains the
///   SHA-256 of the refresh token, by which the next holder learns that a response was lost. Waiting
///   for the lock does not block a thread and can be cancelled at any time. Network file systems
///   share such locks between machines only if configured to. For several machines, use a store that
///   is made for it.
/// - A failure that the processes share is stored in `<name>.failure`, without a secret. It counts
///   for its own lifetime from the time at which that file was written.
#[derive(Clone, Debug)]
pub struct FileStore {
    path: PathBuf,
    sealing: Sealing,
}

impl FileStore {
    /// Creates a store in this file, which need not exist. Nothing is read or written yet. A
    /// relative path is resolved against the current working directory at the time of this call.
    pub fn new(path: impl AsRef<Path>) -> Self {
        let path = path.as_ref();
        Self {
            path: std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf()),
            sealing: Sealing::default(),
        }
    }

    /// Encrypts the document with this key (XChaCha20-Poly1305, with a new nonce for each save).
    /// Default: not encrypted.
    ///
    /// Keep the key apart from the file, for example in the system's keyring. All processes that
    /// share the file need it.
    ///
    /// A file that was encrypted with another key, truncated or modified is a
    /// [`Store`](crate::ErrorKind::Store) error that says which. Loads, saves and clears then fail
    /// and leave the file unchanged, until someone removes it. The same is true of a plain file,
    /// unless [`also_read_plain`](Self::also_read_plain) is set.
    ///
    /// Encryption cannot detect that an old copy of the file was restored. When a plain file
    /// becomes encrypted, its old blocks may remain on the disk.
    pub fn encrypt_with(mut self, key: &[u8; 32]) -> Self {
        self.sealing.encrypt_with(key);
        self
    }

    /// Binds the encrypted document to this text, for example a tenant's name, so that the files of
    /// two tenants with the same key cannot be swapped. Default: the empty text. Without
    /// [`encrypt_with`](Self::encrypt_with) it has no effect.
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.sealing.label(label.into());
        self
    }

    /// Also decrypts a file with this old key, for a while after a change of the key. The next save
    /// encrypts the file with the new key. It can be called for several keys. Default: none.
    /// Without [`encrypt_with`](Self::encrypt_with) it has no effect.
    pub fn also_decrypt_with(mut self, old_key: &[u8; 32]) -> Self {
        self.sealing.also_decrypt_with(old_key);
        self
    }

    /// Also reads a plain file, to migrate to [`encrypt_with`](Self::encrypt_with). The first save
    /// replaces it with an encrypted file and logs that at WARN. Default: off. Without
    /// `encrypt_with` it has no effect.
    pub fn also_read_plain(mut self) -> Self {
        self.sealing.read_plain();
        self
    }

    /// Writes or clears the tokens on a thread that may block. The thread holds its own share of
    /// the lock, so that a cancelled save still keeps others out until it ends.
    async fn rewrite(&self, lock: &StoreLock, tokens: Option<Tokens>) -> Result<(), Error> {
        let (path, sealing, lock) = (self.path.clone(), self.sealing.clone(), lock.share());
        off_the_async_threads(move || {
            let place = Place::make(&path)?;
            check_lock(&lock, &place)?;
            let rest = match place.read()?.as_deref().map(|document| read(&sealing, document)) {
                None => None,
                Some(Ok(record)) => Some(record.rest),
                Some(Err(Unusable::Record(Unreadable::Broken(_)))) if !sealing.is_on() => {
                    place.move_aside()?;
                    None
                }
                Some(Err(why)) => return Err(unusable(&place, &why)),
            }
            .unwrap_or_default();
            let document = match tokens {
                None if rest.is_empty() => return place.remove(),
                tokens => rest.with(&tokens.unwrap_or_default()),
            };
            let Some(sealed) = sealing.seal(document.as_bytes()) else {
                return place.replace(document.as_bytes());
            };
            let was_plain = place.read()?.is_some_and(|old| sealing.is_plain(&old));
            place.replace(sealed.as_bytes())?;
            if was_plain {
                tracing::warn!(target: "reqwest_reauth", file = %place, "a plain token file is now encrypted; its old blocks may stay on the disk");
            }
            Ok(())
        })
        .await
    }
}

#[async_trait]
impl TokenStore for FileStore {
    async fn load(&self) -> Result<Option<Tokens>, Error> {
        let (path, sealing) = (self.path.clone(), self.sealing.clone());
        off_the_async_threads(move || {
            let Some(place) = Place::find(&path)? else {
                return Ok(None);
            };
            let Some(document) = place.read()? else {
                return Ok(None);
            };
            read(&sealing, &document).map(Record::into_tokens).map_err(|why| unusable(&place, &why))
        })
        .await
    }

    async fn save(&self, lock: &StoreLock, tokens: &Tokens) -> Result<(), Error> {
        self.rewrite(lock, Some(tokens.clone())).await
    }

    async fn clear(&self, lock: &StoreLock) -> Result<(), Error> {
        self.rewrite(lock, None).await
    }

    async fn lock(&self) -> Result<StoreLock, Error> {
        let mut pause = FIRST_POLL;
        loop {
            // Polls instead of blocking in the operating system: a cancelled wait leaves no thread
            // behind, and no lock without a holder.
            let path = self.path.clone();
            if let Some(guard) =
                off_the_async_threads(move || FileGuard::take(Place::make(&path)?)).await?
            {
                return Ok(StoreLock::recording(guard));
            }
            tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
            pause = (pause * 2).min(LONGEST_POLL);
        }
    }

    /// Compares the inodes and times of the files, and reads the files only if those have changed.
    async fn wait_for_change(&self, seen: Option<&Tokens>) -> Result<Option<Tokens>, Error> {
        let failure = self.load_failure().await?;
        let mut looked_at = None;
        loop {
            let path = self.path.clone();
            let stamp =
                off_the_async_threads(move || Ok(Place::find(&path)?.map(|place| place.stamp())))
                    .await?;
            if looked_at.as_ref() != Some(&stamp) {
                let stored = self.load().await?;
                if !is_same(stored.as_ref(), seen) || self.load_failure().await? != failure {
                    return Ok(stored);
                }
                looked_at = Some(stamp);
            }
            tokio::time::sleep(LONGEST_POLL.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
        }
    }

    async fn load_failure(&self) -> Result<Option<StoredFailure>, Error> {
        let path = self.path.clone();
        off_the_async_threads(move || {
            let Some(place) = Place::find(&path)? else {
                return Ok(None);
            };
            let Some((text, age)) = place.read_failure()? else {
                return Ok(None);
            };
            let failure = String::from_utf8(text).ok().map(StoredFailure::from_text);
            Ok(failure.filter(|failure| failure.lifetime().is_none_or(|lifetime| age < lifetime)))
        })
        .await
    }

    async fn save_failure(&self, lock: &StoreLock, failure: &StoredFailure) -> Result<(), Error> {
        let (path, lock, failure) = (self.path.clone(), lock.share(), failure.clone());
        off_the_async_threads(move || {
            let place = Place::make(&path)?;
            check_lock(&lock, &place)?;
            let takes_back = failure.lifetime() == Some(Duration::ZERO);
            place.replace_failure((!takes_back).then_some(failure.as_str().as_bytes()))
        })
        .await
    }
}

/// The lock on a place, until it is dropped. Its file contains the record of what is sent.
struct FileGuard {
    file: File,
    place: Place,
    record: SendRecord,
}

impl FileGuard {
    /// Returns `None` while another process holds the lock.
    fn take(place: Place) -> Result<Option<Self>, Error> {
        let file = place.open_lock()?;
        match file.try_lock() {
            // If the lock file was deleted under its holder, there can be a second one. Only the
            // file that now exists counts.
            Ok(()) if place.is_lock(&file) => {
                // Without a readable record, the lock serves nevertheless.
                let found = read_record(&file).ok();
                Ok(Some(Self { file, place, record: SendRecord::found(found.as_deref()) }))
            }
            Ok(()) | Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => {
                Err(io_failure(format!("{place} cannot be locked"), error))
            }
        }
    }
}

#[async_trait]
impl KeepsRecord for FileGuard {
    fn record(&self) -> &SendRecord {
        &self.record
    }

    async fn write(self: Arc<Self>, of: String) -> Result<(), Error> {
        off_the_async_threads(move || {
            write_record(&self.file, &of).and_then(|()| self.file.sync_data()).map_err(|error| {
                io_failure(format!("the lock file of {} cannot be written", self.place), error)
            })
        })
        .await
    }
}

fn read_record(mut file: &File) -> io::Result<Vec<u8>> {
    let mut text = Vec::with_capacity(RECORD_BYTES + 1);
    file.seek(SeekFrom::Start(0))?;
    file.take(RECORD_BYTES as u64 + 1).read_to_end(&mut text)?;
    Ok(text)
}

/// Each record has the same length, so that it replaces the previous one in a single write. The
/// file may contain something else before the first.
fn write_record(mut file: &File, of: &str) -> io::Result<()> {
    file.seek(SeekFrom::Start(0))?;
    file.write_all(of.as_bytes())?;
    file.set_len(RECORD_BYTES as u64)
}

impl Drop for FileGuard {
    fn drop(&mut self) {
        let _ = match self.record.at_release() {
            AtRelease::Leave => Ok(()),
            AtRelease::Remove => self.file.set_len(0),
            AtRelease::Restore(of) => write_record(&self.file, &of),
        };
        // Closing would release the lock too, but not before a child process that is being spawned
        // has closed its copy.
        let _ = self.file.unlock();
    }
}

/// A lock that wraps ours in another type is trusted.
fn check_lock(lock: &StoreLock, place: &Place) -> Result<(), Error> {
    match lock.downcast_ref::<FileGuard>() {
        Some(guard) if guard.place != *place => {
            Err(failure(format!("cannot write {place} under the lock of {}", guard.place)))
        }
        Some(guard) if !place.is_lock(&guard.file) => {
            Err(failure(format!("the lock file of {place} was deleted while it was held")))
        }
        None if lock.guard.is_none() => {
            Err(failure(format!("cannot write {place} without its lock")))
        }
        _ => Ok(()),
    }
}

/// The start of a plain document.
const PLAIN: &[u8] = br#"{"version":1"#;

/// Why the content of a file cannot be used.
enum Unusable {
    Record(Unreadable),
    Sealed(Unopened),
}

fn read(sealing: &Sealing, document: &[u8]) -> Result<Record, Unusable> {
    let opened = sealing.open(document).map_err(Unusable::Sealed)?;
    let plain = opened.as_deref().map_or(document, Vec::as_slice);
    let record = Record::parse(plain).map_err(Unusable::Record)?;
    if sealing.is_on() && opened.is_none() && record.is_empty() && !document.starts_with(PLAIN) {
        // It may be an encrypted document whose outermost member was modified.
        return Err(Unusable::Sealed(Unopened::Changed));
    }
    Ok(record)
}

fn unusable(place: &Place, why: &Unusable) -> Error {
    match why {
        Unusable::Record(why) => failure(format!("{place} {why}")),
        Unusable::Sealed(why) => failure(format!("{place} {why}")),
    }
}

async fn off_the_async_threads<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(_) => Err(failure("the runtime was shut down before the token file could be used")),
    }
}
