//! `FileStore` when another user owns the directory, a link or a file. Tests that need another
//! user's files run only as root, and are skipped otherwise.

use std::{
    error::Error as _,
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink},
    path::Path,
};

use reqwest_reauth::{Error, ErrorKind, FileStore, TokenStore, Tokens};

/// The user `nobody`, who is not us.
const STRANGER: u32 = 65534;

fn tokens() -> Tokens {
    Tokens::new("access-1").unwrap()
}

async fn save(store: &FileStore) -> Result<(), Error> {
    let lock = store.lock().await?;
    store.save(&lock, &tokens()).await
}

fn said(error: &Error) -> String {
    assert_eq!(error.kind(), ErrorKind::Store);
    let cause = error.source().unwrap();
    format!("{cause}: {}", cause.source().map(ToString::to_string).unwrap_or_default())
}

/// A directory of another user, or `None` if this user cannot create one.
fn strangers_dir(dir: &Path) -> Option<std::path::PathBuf> {
    let theirs = dir.join("theirs");
    fs::create_dir(&theirs).unwrap();
    fs::set_permissions(&theirs, fs::Permissions::from_mode(0o755)).unwrap();
    if chown(&theirs, Some(STRANGER), Some(STRANGER)).is_err() {
        eprintln!("skipped: only root can give files away");
        return None;
    }
    Some(theirs)
}

fn give_away(path: &Path) {
    std::os::unix::fs::lchown(path, Some(STRANGER), Some(STRANGER)).unwrap();
}

/// Neither loaded nor locked; the error names the file and its owner.
async fn is_refused(store: &FileStore, what: &Path) {
    for error in [store.load().await.unwrap_err(), store.lock().await.unwrap_err()] {
        let said = said(&error);
        assert!(said.contains(what.to_str().unwrap()) && said.contains("user 65534"), "{said}");
    }
}

#[tokio::test]
async fn a_strangers_link_is_not_followed() {
    let dir = tempfile::tempdir().unwrap();
    let Some(theirs) = strangers_dir(dir.path()) else { return };
    let ours = dir.path().join("authorized_keys");
    fs::write(&ours, "ssh-ed25519 AAAA").unwrap();
    let link = theirs.join("tokens.json");
    symlink(&ours, &link).unwrap();
    give_away(&link);
    is_refused(&FileStore::new(&link), &link).await;
    assert_eq!(fs::read_to_string(&ours).unwrap(), "ssh-ed25519 AAAA");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "nothing was moved or made");

    // A link among the directories of the path.
    let way = theirs.join("way");
    symlink(dir.path(), &way).unwrap();
    give_away(&way);
    is_refused(&FileStore::new(way.join("tokens.json")), &way).await;
}

#[tokio::test]
async fn a_strangers_file_is_not_used() {
    let dir = tempfile::tempdir().unwrap();
    let Some(theirs) = strangers_dir(dir.path()) else { return };
    let path = theirs.join("tokens.json");
    fs::write(&path, r#"{"version":1,"access_token":"theirs"}"#).unwrap();
    give_away(&path);
    is_refused(&FileStore::new(&path), &path).await;
    fs::remove_file(&path).unwrap();

    let lock = theirs.join("tokens.json.lock");
    fs::write(&lock, "").unwrap();
    give_away(&lock);
    let said = said(&FileStore::new(&path).lock().await.unwrap_err());
    assert!(said.contains("tokens.json.lock") && said.contains("user 65534"), "{said}");
    fs::remove_file(&lock).unwrap();

    // Anyone may own the directory itself.
    save(&FileStore::new(&path)).await.unwrap();
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
}

#[tokio::test]
async fn an_own_link_to_nothing_is_followed() {
    let dir = tempfile::tempdir().unwrap();
    let link = dir.path().join("tokens.json");
    let target = dir.path().join("volume/below/real.json");
    symlink(&target, &link).unwrap();
    let store = FileStore::new(&link);
    assert!(store.load().await.unwrap().is_none());
    save(&store).await.unwrap();
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink(), "the link stays");
    assert!(fs::symlink_metadata(&target).unwrap().is_file());
    let made = fs::metadata(target.parent().unwrap()).unwrap().mode() & 0o7777;
    assert_eq!(made, 0o700);
    assert!(store.load().await.unwrap().is_some());
}

#[tokio::test]
async fn a_volume_that_others_write_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    for (mode, who) in [(0o777, "everybody"), (0o2775, "its group"), (0o1777, "everybody")] {
        let volume = dir.path().join(format!("volume-{mode:o}"));
        fs::create_dir(&volume).unwrap();
        fs::set_permissions(&volume, fs::Permissions::from_mode(mode)).unwrap();
        let said = said(&FileStore::new(volume.join("tokens.json")).lock().await.unwrap_err());
        let advice = volume.join("tokens/tokens.json");
        for part in [who, "mode 0700", advice.to_str().unwrap()] {
            assert!(said.contains(part), "{said}");
        }
        // The advice in the error works.
        save(&FileStore::new(&advice)).await.unwrap();
        assert_eq!(fs::metadata(volume.join("tokens")).unwrap().mode() & 0o777, 0o700);
    }
}
