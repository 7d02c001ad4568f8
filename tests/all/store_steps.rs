//! The disk operations of a `FileStore`: their order, and the lock that they hold.

use std::{
    fs::File,
    path::Path,
    process::{Command, Stdio},
    sync::mpsc,
};

use reqwest_reauth::{FileStore, TokenStore, Tokens};
use tokio::runtime::{Builder, Runtime};

use crate::support::{pair, store::texts};

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().max_blocking_threads(1).build().unwrap()
}

async fn save(store: &FileStore, tokens: &Tokens) {
    let lock = store.lock().await.unwrap();
    store.save(&lock, tokens).await.unwrap();
}

/// The part of the other process. It does nothing in a normal run.
#[test]
fn child() {
    let Some(path) = std::env::var_os("STORE_STEPS_PATH") else { return };
    runtime().block_on(save(&FileStore::new(path), &pair("a", "r")));
}

/// A cancelled caller whose save waits for a thread releases the lock only after the file is
/// written.
#[test]
fn a_save_given_up_keeps_the_lock_till_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokens.json");
    let (ours, theirs) = (FileStore::new(&path), FileStore::new(&path));
    let (busy, others) = (runtime(), runtime());
    let (open, gate) = mpsc::channel::<()>();
    busy.block_on(async {
        let lock = ours.lock().await.unwrap();
        // Occupies the only blocking thread.
        tokio::task::spawn_blocking(move || gate.recv());
        let tokens = pair("a", "r");
        let mut saving = ours.save(&lock, &tokens);
        assert!(futures_util::poll!(&mut saving).is_pending());
    });
    let lock_file = File::open(dir.path().join("tokens.json.lock")).unwrap();
    assert!(lock_file.try_lock().is_err(), "the lock is free before the file is written");
    open.send(()).unwrap();
    others.block_on(async {
        let _lock = theirs.lock().await.unwrap();
        let stored = theirs.load().await.unwrap();
        assert_eq!(stored.as_ref().map(texts), Some(crate::support::texts("a", "r")));
    });
}

fn strace() -> bool {
    let found = Command::new("strace").arg("-V").stdout(Stdio::null()).status().is_ok();
    assert!(found || std::env::var_os("CI").is_none(), "strace is not installed");
    found
}

/// After a power failure either the old or the new document is there, and complete (contract 10.4).
#[cfg(target_os = "linux")]
#[test]
fn a_save_is_on_the_disk_before_its_rename() {
    if !strace() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let real = dir.path().canonicalize().unwrap();
    let (path, log) = (real.join("tokens.json"), real.join("calls"));
    let done = Command::new("strace")
        .args(["-f", "-y", "-e", "trace=/^rename.*,fsync,fdatasync", "-o"])
        .arg(&log)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "store_steps::child", "--test-threads=1"])
        .env("STORE_STEPS_PATH", &path)
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(done.success());
    let calls = std::fs::read_to_string(log).unwrap();
    assert_eq!(steps(&calls, &real), ["flush of the new file", "rename", "flush of the directory"]);
}

/// The operations in this directory, in order.
fn steps(calls: &str, dir: &Path) -> Vec<&'static str> {
    let (file, dir) = (format!("{}/.tokens.json.", dir.display()), format!("{}>", dir.display()));
    let step = |call: &str| {
        let flush = call.contains("fsync(") || call.contains("fdatasync(");
        match (flush, call.contains(&file), call.contains(&dir)) {
            (true, true, _) => Some("flush of the new file"),
            (true, false, true) => Some("flush of the directory"),
            (false, true, _) if call.contains("rename") => Some("rename"),
            _ => None,
        }
    };
    calls.lines().filter_map(step).collect()
}
