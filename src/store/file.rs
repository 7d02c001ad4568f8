mod disk;

use std::{
    fs::{File, TryLockError},
    path::{Path, PathBuf},
    time::Duration,
};

use async_trait::async_trait;

use self::disk::Place;
use super::{
    StoreLock, TokenStore,
    failure::{failure, io_failure},
    record::{Record, Unreadable},
};
use crate::{error::Error, token::Tokens};

const FIRST_POLL: Duration = Duration::from_millis(5);
const LONGEST_POLL: Duration = Duration::from_millis(50);

/// One login in one file, shared by the processes of a machine.
///
/// The file is JSON:
/// `{"version":1,"access_token":"…","refresh_token":"…","expires_at":1800000000.5}`, the expiry in
/// Unix seconds. Members that this crate does not know survive a rewrite. The tokens are not
/// encrypted: the file has mode 0600, and its directory must be one that nobody but its owner can
/// write, so neither the shared temporary directory nor one that a group writes. A directory that
/// is missing is made, with mode 0700. Windows has no modes: there the directory's own access list
/// protects the file.
///
/// - A save writes a temporary file beside the old one, flushes it, and renames it: at a crash the
///   file is whole, the old or the new. What a crash leaves behind is removed by the next save. A
///   symbolic link is followed, and stays.
/// - A file that cannot be read is a [`Store`](crate::ErrorKind::Store) error that names it; the
///   next save moves it aside to `<name>.broken` (or `.broken.1` and so on) first. One that a later
///   version has written is left alone: loads and saves fail.
/// - The lock is the operating system's, on `<name>.lock` beside the file, and is free again when
///   its holder dies. Never delete that file. Waiting blocks no thread, and may be given up at any
///   time. Network file systems keep such locks between machines only where they are told to;
///   several machines are better served by a store made for it.
///
/// ```
/// # async fn f() -> Result<(), reqwest_reauth::Error> {
/// use reqwest_reauth::{FileStore, TokenStore, Tokens};
///
/// let store = FileStore::new("/var/lib/worker/tokens.json");
/// let lock = store.lock().await?;
/// store.save(&lock, &Tokens::from_refresh_token("1//0g-x")?).await?;
/// drop(lock);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct FileStore {
    path: PathBuf,
}

impl FileStore {
    /// A store in this file, which need not exist. Nothing is read or written yet. A relative path
    /// is taken from the present working directory, whatever becomes of that later.
    pub fn new(path: impl AsRef<Path>) -> Self {
        let path = path.as_ref();
        Self { path: std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf()) }
    }

    /// Writes `tokens`, or forgets them, on a thread that may block. The thread has its own share
    /// of the lock, so that a save which its caller has given up on still keeps others out until it
    /// ends.
    async fn rewrite(&self, lock: &StoreLock, tokens: Option<Tokens>) -> Result<(), Error> {
        let (path, lock) = (self.path.clone(), lock.share());
        off_the_async_threads(move || {
            let place = Place::make(&path)?;
            check_lock(&lock, &place)?;
            let rest = match place.read()?.as_deref().map(|document| Record::parse(document)) {
                None => None,
                Some(Ok(record)) => Some(record.rest),
                Some(Err(Unreadable::Broken(_))) => {
                    place.move_aside()?;
                    None
                }
                Some(Err(newer)) => return Err(unreadable(&place, &newer)),
            }
            .unwrap_or_default();
            match tokens {
                Some(tokens) => place.replace(rest.with(&tokens).as_bytes()),
                None if rest.is_empty() => place.remove(),
                None => place.replace(rest.with(&Tokens::empty()).as_bytes()),
            }
        })
        .await
    }
}

#[async_trait]
impl TokenStore for FileStore {
    async fn load(&self) -> Result<Option<Tokens>, Error> {
        let path = self.path.clone();
        off_the_async_threads(move || {
            let Some(place) = Place::find(&path)? else {
                return Ok(None);
            };
            let Some(document) = place.read()? else {
                return Ok(None);
            };
            Record::parse(&document)
                .map(Record::into_tokens)
                .map_err(|why| unreadable(&place, &why))
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
            // Asked again and again instead of waiting in the system: a wait that is dropped leaves
            // no thread behind, and no lock that nobody holds.
            let path = self.path.clone();
            if let Some(guard) =
                off_the_async_threads(move || FileGuard::take(Place::make(&path)?)).await?
            {
                return Ok(StoreLock::holding(guard));
            }
            tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
            pause = (pause * 2).min(LONGEST_POLL);
        }
    }
}

/// The lock on a place, until it is dropped.
struct FileGuard {
    file: File,
    place: Place,
}

impl FileGuard {
    /// `None` while another has it.
    fn take(place: Place) -> Result<Option<Self>, Error> {
        let file = place.open_lock()?;
        match file.try_lock() {
            // Whoever deleted the lock file under its holder made room for a second one: only the
            // file that is there counts.
            Ok(()) if place.is_lock(&file) => Ok(Some(Self { file, place })),
            Ok(()) | Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => {
                Err(io_failure(format!("{place} cannot be locked"), error))
            }
        }
    }
}

impl Drop for FileGuard {
    fn drop(&mut self) {
        // Closing would do, but not before a child process that is just being started has closed
        // its copy.
        let _ = self.file.unlock();
    }
}

/// A lock of somebody else's making around ours is taken on trust.
fn check_lock(lock: &StoreLock, place: &Place) -> Result<(), Error> {
    match lock.guard::<FileGuard>() {
        Some(guard) if guard.place != *place => {
            Err(failure(format!("{place} was to be written under the lock of {}", guard.place)))
        }
        Some(guard) if !place.is_lock(&guard.file) => {
            Err(failure(format!("the lock file of {place} was deleted while it was held")))
        }
        None if lock.guard.is_none() => {
            Err(failure(format!("{place} was to be written without its lock")))
        }
        _ => Ok(()),
    }
}

fn unreadable(place: &Place, why: &Unreadable) -> Error {
    failure(format!("{place} {why}"))
}

async fn off_the_async_threads<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(_) => Err(failure("the runtime was shut down before the token file could be used")),
    }
}
