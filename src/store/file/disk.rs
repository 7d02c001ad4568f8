//! The disk operations of a [`FileStore`](super::FileStore). All of them block.

use std::{
    ffi::{OsStr, OsString},
    fmt,
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use zeroize::Zeroizing;

use crate::{
    error::Error,
    store::{
        failure::{failure, io_failure},
        sealed::MAX_SEALED_BYTES,
    },
    time::wall,
};

/// The maximum length of a shared failure in bytes.
const MAX_FAILURE_BYTES: usize = 4096;

/// The real directory of a file, in which only its owner may write, and the file's name there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    dir: PathBuf,
    name: OsString,
}

impl Place {
    /// Returns `None` if the directory does not exist.
    pub(super) fn find(path: &Path) -> Result<Option<Self>, Error> {
        let place = Self::resolve(path)?;
        if !place.dir.try_exists().map_err(|error| cannot_be_used(path, error))? {
            return Ok(None);
        }
        check_directory(&place)?;
        check_file(&place.file()).map_err(|error| cannot_be_used(path, error))?;
        Ok(Some(place))
    }

    /// Creates the directory if it does not exist.
    pub(super) fn make(path: &Path) -> Result<Self, Error> {
        if let Some(place) = Self::find(path)? {
            return Ok(place);
        }
        let dir = &Self::resolve(path)?.dir;
        create_private(dir)
            .map_err(|error| io_failure(format!("{} cannot be created", dir.display()), error))?;
        Self::find(path)?
            .ok_or_else(|| failure(format!("{} was removed while it was in use", dir.display())))
    }

    /// Follows symbolic links, so that a rename does not replace a link, and all names of a file
    /// share one lock.
    fn resolve(path: &Path) -> Result<Self, Error> {
        let real = resolve(path).map_err(|error| cannot_be_used(path, error))?;
        match (real.parent(), real.file_name()) {
            (Some(dir), Some(name)) => {
                Ok(Self { dir: dir.to_path_buf(), name: name.to_os_string() })
            }
            _ => Err(cannot_be_used(path, io::ErrorKind::IsADirectory.into())),
        }
    }

    /// Returns `None` if there is no file.
    pub(super) fn read(&self) -> Result<Option<Zeroizing<Vec<u8>>>, Error> {
        match read_bounded(&self.file(), MAX_SEALED_BYTES) {
            Ok(document) => Ok(Some(document)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io_failure(format!("{self} cannot be read"), error)),
        }
    }

    /// Replaces the document atomically.
    pub(super) fn replace(&self, document: &[u8]) -> Result<(), Error> {
        self.replace_file(&self.file(), document)
    }

    /// The text of the shared failure, and its age. `None` if there is no failure.
    pub(super) fn read_failure(&self) -> Result<Option<(Vec<u8>, Duration)>, Error> {
        match read_bounded(&self.failure_file(), MAX_FAILURE_BYTES) {
            Ok(mut text) => {
                let written = fs::metadata(self.failure_file()).and_then(|about| about.modified());
                // A time in the future means that the clock was set back, so the failure counts as
                // new.
                let age = written.ok().and_then(|written| wall().duration_since(written).ok());
                Ok(Some((std::mem::take(&mut text), age.unwrap_or_default())))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => {
                Err(io_failure(format!("{} cannot be read", self.failure_file().display()), error))
            }
        }
    }

    /// Replaces the shared failure, or removes it with `None`.
    pub(super) fn replace_failure(&self, text: Option<&[u8]>) -> Result<(), Error> {
        let file = self.failure_file();
        check_file(&file).map_err(|error| cannot_be_used(&file, error))?;
        match text {
            Some(text) => self.replace_file(&file, text),
            None => match fs::remove_file(&file) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    Err(io_failure(format!("{} cannot be removed", file.display()), error))
                }
                _ => Ok(()),
            },
        }
    }

    /// A value that changes with each save of tokens or failure, because every save creates a new
    /// file.
    pub(super) fn stamp(&self) -> [Option<(u64, Option<SystemTime>, u64)>; 2] {
        [self.file(), self.failure_file()].map(|file| {
            let about = fs::symlink_metadata(file).ok()?;
            Some((inode(&about), about.modified().ok(), about.len()))
        })
    }

    fn replace_file(&self, file: &Path, document: &[u8]) -> Result<(), Error> {
        self.remove_leftovers();
        let temporary = self.dir.join(self.temporary_name(fastrand::u64(..)));
        let written =
            write_private(&temporary, document).and_then(|()| fs::rename(&temporary, file));
        if let Err(error) = written {
            let _ = fs::remove_file(&temporary);
            return Err(io_failure(format!("{self} cannot be written"), error));
        }
        self.flush_directory()
    }

    pub(super) fn remove(&self) -> Result<(), Error> {
        self.remove_leftovers();
        match fs::remove_file(self.file()) {
            Ok(()) => self.flush_directory(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(io_failure(format!("{self} cannot be removed"), error)),
        }
    }

    /// Renames the file to an unused name beside it, so that the next [`replace`](Self::replace)
    /// destroys nothing.
    pub(super) fn move_aside(&self) -> Result<(), Error> {
        let mut names = std::iter::once(self.beside(".broken"))
            .chain((1_u32..).map(|n| self.beside(&format!(".broken.{n}"))));
        let moved = names.find_map(|aside| match rename_to_new(&self.file(), &aside) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => None,
            done => Some(done),
        });
        match moved {
            Some(Err(error)) => {
                Err(io_failure(format!("{self} is broken, and cannot be moved aside"), error))
            }
            _ => Ok(()),
        }
    }

    /// Opens the lock file. It is never removed, because another process may be waiting for it.
    pub(super) fn open_lock(&self) -> Result<File, Error> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        resolve(&self.lock_file())
            .and_then(|real| open(&real, private(&mut options)))
            .map(|(file, _)| file)
            .map_err(|error| io_failure(format!("the lock file of {self} cannot be opened"), error))
    }

    /// Whether this is still the file that other processes would lock.
    pub(super) fn is_lock(&self, file: &File) -> bool {
        same_file(file, &self.lock_file())
    }

    fn file(&self) -> PathBuf {
        self.dir.join(&self.name)
    }

    fn lock_file(&self) -> PathBuf {
        self.beside(".lock")
    }

    fn failure_file(&self) -> PathBuf {
        self.beside(".failure")
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        let mut name = self.name.clone();
        name.push(suffix);
        self.dir.join(name)
    }

    fn temporary_name(&self, number: u64) -> OsString {
        let mut name = OsString::from(".");
        name.push(&self.name);
        name.push(format!(".{number:016x}.tmp"));
        name
    }

    fn is_temporary(&self, name: &OsStr) -> bool {
        let name = name.as_encoded_bytes();
        let number = name
            .strip_prefix(b".")
            .and_then(|name| name.strip_prefix(self.name.as_encoded_bytes()))
            .and_then(|name| name.strip_prefix(b"."))
            .and_then(|name| name.strip_suffix(b".tmp"));
        number.is_some_and(|number| number.len() == 16 && number.iter().all(u8::is_ascii_hexdigit))
    }

    /// Removes temporary files. Their writers are dead, because this process holds the lock. They
    /// contain tokens, but a failure to remove them does not fail the save.
    fn remove_leftovers(&self) {
        let Ok(entries) = fs::read_dir(&self.dir) else {
            return;
        };
        for entry in entries.flatten().filter(|entry| self.is_temporary(&entry.file_name())) {
            let _ = fs::remove_file(entry.path());
        }
    }

    /// A rename survives a power failure only after the directory is flushed.
    fn flush_directory(&self) -> Result<(), Error> {
        match flush(&self.dir) {
            // Some file systems do not support it, and report that.
            Err(error)
                if !matches!(
                    error.kind(),
                    io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported
                ) =>
            {
                Err(io_failure(format!("{} cannot be flushed", self.dir.display()), error))
            }
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.file().display().fmt(f)
    }
}

fn cannot_be_used(path: &Path, error: io::Error) -> Error {
    // The text of the error names the link or file, and its owner.
    io_failure(format!("{} cannot be used", path.display()), error)
}

fn read_bounded(path: &Path, most: usize) -> io::Result<Zeroizing<Vec<u8>>> {
    let (file, about) = open(path, OpenOptions::new().read(true))?;
    let limit = most + 1;
    // Allocated once at full size, because a growing buffer leaves copies behind.
    let room = usize::try_from(about.len()).unwrap_or(limit).min(limit) + 1;
    let mut document = Zeroizing::new(Vec::with_capacity(room));
    file.take(limit as u64).read_to_end(&mut document)?;
    Ok(document)
}

fn write_private(path: &Path, document: &[u8]) -> io::Result<()> {
    let mut file = private(OpenOptions::new().write(true).create_new(true)).open(path)?;
    file.write_all(document)?;
    file.sync_all()
}

/// Renames without overwriting: fails with `AlreadyExists`. It creates a hard link first and then
/// renames over the old name, so that the file exists at every moment.
fn rename_to_new(from: &Path, to: &Path) -> io::Result<()> {
    match fs::hard_link(from, to) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            // A file system without hard links. No other process renames here, because this one
            // holds the lock.
            if fs::symlink_metadata(to).is_ok() {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            fs::rename(from, to)
        }
        done => done,
    }
}

#[cfg(unix)]
fn private(options: &mut OpenOptions) -> &mut OpenOptions {
    std::os::unix::fs::OpenOptionsExt::mode(options, 0o600)
}

#[cfg(unix)]
fn create_private(dir: &Path) -> io::Result<()> {
    std::os::unix::fs::DirBuilderExt::mode(fs::DirBuilder::new().recursive(true), 0o700).create(dir)
}

/// Whoever can write to a directory can replace any file in it, whatever its mode. The sticky bit
/// of a shared directory prevents that, but does not keep others from creating our lock file first.
#[cfg(unix)]
fn check_directory(place: &Place) -> Result<(), Error> {
    use std::os::unix::fs::MetadataExt;

    let dir = &place.dir;
    let mode = fs::metadata(dir).map_err(|error| cannot_be_used(dir, error))?.mode() & 0o7777;
    let others = match (mode & 0o020 != 0, mode & 0o002 != 0) {
        (false, false) => return Ok(()),
        (true, false) => "its group",
        (_, true) => "everybody",
    };
    let below = dir.join("tokens").join(&place.name);
    Err(failure(format!(
        "the directory {} can be written by {others} (mode {mode:04o}), and tokens are kept only \
         where its owner alone can write: use a directory of its own below it, such as {}, which \
         is made with mode 0700",
        dir.display(),
        below.display()
    )))
}

#[cfg(unix)]
use super::trust::{check_file, open, resolve};

#[cfg(unix)]
fn inode(about: &fs::Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::ino(about)
}

#[cfg(unix)]
fn same_file(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;

    let id = |about: fs::Metadata| (about.dev(), about.ino());
    file.metadata().ok().map(id) == fs::metadata(path).ok().map(id)
}

#[cfg(unix)]
fn flush(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(not(unix))]
fn private(options: &mut OpenOptions) -> &mut OpenOptions {
    options
}

#[cfg(not(unix))]
fn create_private(dir: &Path) -> io::Result<()> {
    fs::create_dir_all(dir)
}

#[cfg(not(unix))]
fn resolve(path: &Path) -> io::Result<PathBuf> {
    match fs::canonicalize(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let name = path.file_name().ok_or(io::ErrorKind::InvalidFilename)?;
            let dir = path.parent().unwrap_or(path);
            Ok(fs::canonicalize(dir).unwrap_or_else(|_| dir.to_path_buf()).join(name))
        }
        real => real,
    }
}

#[cfg(not(unix))]
fn open(path: &Path, options: &mut OpenOptions) -> io::Result<(File, fs::Metadata)> {
    if fs::metadata(path).is_ok_and(|about| !about.is_file()) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    let file = options.open(path)?;
    let about = file.metadata()?;
    Ok((file, about))
}

#[cfg(not(unix))]
fn check_file(_: &Path) -> io::Result<()> {
    Ok(())
}

#[cfg(not(unix))]
fn inode(_: &fs::Metadata) -> u64 {
    0
}

#[cfg(not(unix))]
fn check_directory(_: &Place) -> Result<(), Error> {
    Ok(())
}

#[cfg(not(unix))]
fn same_file(_: &File, path: &Path) -> bool {
    path.exists()
}

#[cfg(not(unix))]
fn flush(_: &Path) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_temporaries_are_leftovers() {
        let place = Place { dir: PathBuf::from("d"), name: OsString::from("tokens.json") };
        assert!(place.is_temporary(&place.temporary_name(0)));
        assert!(place.is_temporary(&place.temporary_name(u64::MAX)));
        for other in [
            "tokens.json",
            "tokens.json.lock",
            ".tokens.json.tmp",
            ".tokens.json.0123456789abcde.tmp",
            ".tokens.json.0123456789abcdeg.tmp",
            ".other.json.0123456789abcdef.tmp",
            "..tokens.json.0123456789abcdef.tmp",
            ".tokens.json.0123456789abcdef.tmp~",
        ] {
            assert!(!place.is_temporary(OsStr::new(other)), "{other}");
        }
    }
}
