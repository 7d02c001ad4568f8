//! The ownership rules for files and links.
//!
//! The owner of a link decides where it leads, and the owner of a file decides what it contains.
//! Both must be this user, or root, who can do everything anyway.

use std::{
    ffi::OsString,
    fs::{self, File, Metadata, OpenOptions},
    io,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Component, Path, PathBuf},
};

use rustix::{fs::OFlags, process::geteuid};

/// The same limit as Linux.
const MOST_LINKS: usize = 40;

/// Resolves a path through symbolic links of this user and of root. Missing components are kept as
/// written, so that a link is followed even if its target does not exist yet.
pub(super) fn resolve(path: &Path) -> io::Result<PathBuf> {
    let mut pending: Vec<OsString> = Vec::new();
    push_components(&mut pending, path);
    let mut real = PathBuf::from("/");
    let mut links = 0;
    while let Some(name) = pending.pop() {
        if name == ".." {
            real.pop();
            continue;
        }
        let next = real.join(&name);
        match fs::symlink_metadata(&next) {
            Ok(about) if about.file_type().is_symlink() => {
                check_owner("symbolic link", &next, &about)?;
                links += 1;
                if links > MOST_LINKS {
                    return Err(io::Error::other(format!(
                        "{} leads through too many symbolic links",
                        path.display()
                    )));
                }
                let target = fs::read_link(&next)?;
                if target.is_absolute() {
                    real = PathBuf::from("/");
                }
                push_components(&mut pending, &target);
            }
            Ok(about) if !about.is_dir() && !pending.is_empty() => {
                return Err(io::ErrorKind::NotADirectory.into());
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(_) | Err(_) => real = next,
        }
    }
    Ok(real)
}

/// Opens a file that [`resolve`] found. If it has since been replaced by a link or a pipe, opening
/// fails. The owner of the open file is checked.
pub(super) fn open(path: &Path, options: &mut OpenOptions) -> io::Result<(File, Metadata)> {
    #[allow(clippy::cast_possible_wrap, reason = "flags of open(2) are an int")]
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC).bits() as i32;
    let file = options.custom_flags(flags).open(path)?;
    let about = file.metadata()?;
    check_owner("file", path, &about)?;
    if !about.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    Ok((file, about))
}

/// Fails if another user owns the file at this path. A missing file passes.
pub(super) fn check_file(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(about) => check_owner("file", path, &about),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

fn check_owner(what: &str, path: &Path, about: &Metadata) -> io::Result<()> {
    let (owner, own) = (about.uid(), geteuid().as_raw());
    if is_trusted(owner, own) {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::PermissionDenied,
        format!(
            "the {what} {} belongs to user {owner}, and only files of user {own} and root are used",
            path.display()
        ),
    ))
}

fn is_trusted(owner: u32, own: u32) -> bool {
    owner == own || owner == 0
}

/// Pushes in reverse order: the next component comes last.
fn push_components(pending: &mut Vec<OsString>, path: &Path) {
    pending.extend(path.components().rev().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_os_string()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    }));
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn files_of_this_user_and_root_are_used() {
        let table = [(1000, 1000, true), (0, 1000, true), (1001, 1000, false), (1000, 0, false)];
        for (owner, own, trusted) in table {
            assert_eq!(is_trusted(owner, own), trusted, "file of {owner}, process of {own}");
        }
    }

    #[test]
    fn links_are_followed_to_what_is_missing() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        symlink(dir.join("volume/below/t"), dir.join("absolute")).unwrap();
        symlink("volume/../other/t", dir.join("relative")).unwrap();
        symlink("absolute", dir.join("twice")).unwrap();
        symlink("endless", dir.join("endless")).unwrap();
        let table = [
            ("t", "t"),
            ("absolute", "volume/below/t"),
            ("relative", "other/t"),
            ("twice", "volume/below/t"),
            ("x/../twice", "volume/below/t"),
        ];
        for (path, real) in table {
            assert_eq!(resolve(&dir.join(path)).unwrap(), dir.join(real), "{path}");
        }
        assert!(resolve(&dir.join("endless")).is_err());
        fs::write(dir.join("file"), "").unwrap();
        assert!(resolve(&dir.join("file/t")).is_err());
    }
}
