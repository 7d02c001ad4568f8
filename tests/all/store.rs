//! The guarantees of the memory store and the file store, with other processes and crashes.

use std::{
    error::Error as _,
    fs,
    io::{BufRead, BufReader, Lines, Write},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use reqwest_reauth::{Error, ErrorKind, FileStore, MemoryStore, StoreLock, TokenStore, Tokens};
use tokio::time::timeout;

/// Longer than anything here takes: a test that takes this long has failed.
const LONG: Duration = Duration::from_secs(30);

fn pair(n: u64) -> Tokens {
    let tokens = Tokens::new(format!("access-{n}"))
        .and_then(|tokens| tokens.with_refresh_token(format!("refresh-{n}")));
    tokens.unwrap().with_expires_at(UNIX_EPOCH + Duration::new(1_800_000_000 + n, 123_456_789))
}

fn number(tokens: &Tokens) -> u64 {
    let access: u64 = tokens
        .access_token()
        .unwrap()
        .expose_secret()
        .strip_prefix("access-")
        .unwrap()
        .parse()
        .unwrap();
    let refresh = tokens.refresh_token().unwrap().expose_secret();
    assert_eq!(refresh, format!("refresh-{access}"), "both tokens of one save");
    access
}

async fn save(store: &impl TokenStore, tokens: &Tokens) -> Result<(), Error> {
    let lock = store.lock().await?;
    store.save(&lock, tokens).await
}

async fn stored(store: &impl TokenStore) -> u64 {
    number(&store.load().await.unwrap().unwrap())
}

/// The error's own text and those of its causes.
fn chain(error: &Error) -> String {
    let mut text = format!("{error} / {error:?}");
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

async fn is_free(store: &impl TokenStore) -> bool {
    timeout(Duration::from_millis(200), store.lock()).await.is_ok()
}

/// This test binary once more, running nothing but [`child`].
struct Other {
    process: Child,
    lines: Lines<BufReader<ChildStdout>>,
    input: Option<ChildStdin>,
}

impl Other {
    fn start(task: &str, path: &Path) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "store::child", "--nocapture", "--test-threads=1"])
            .env("STORE_TEST_TASK", task)
            .env("STORE_TEST_PATH", path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let input = process.stdin.take();
        Self { process, lines, input }
    }

    /// The next line of the process, or `None` once it is dead.
    fn says(&mut self) -> Option<String> {
        self.lines
            .by_ref()
            .map_while(Result::ok)
            .find_map(|line| line.strip_prefix("> ").map(str::to_owned))
    }

    fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The part of the other process. It does nothing in a normal run.
#[tokio::test]
async fn child() {
    let Ok(task) = std::env::var("STORE_TEST_TASK") else {
        return;
    };
    let mut store = FileStore::new(std::env::var_os("STORE_TEST_PATH").unwrap());
    if task.ends_with(", sealed") {
        store = store.encrypt_with(&[7; 32]);
    }
    match task.as_str() {
        "save until killed" | "save until killed, sealed" => loop {
            let lock = store.lock().await.unwrap();
            let next = store.load().await.unwrap().map_or(1, |tokens| number(&tokens) + 1);
            println!("\n> {next}?");
            store.save(&lock, &pair(next)).await.unwrap();
            println!("\n> {next}");
        },
        "hold the lock" => {
            let _lock = store.lock().await.unwrap();
            println!("\n> locked");
            std::io::stdin().lines().next();
        }
        "count to 50" => {
            println!("\n> here");
            std::io::stdin().lines().next();
            for _ in 0..50 {
                let lock = store.lock().await.unwrap();
                let next = store.load().await.unwrap().map_or(1, |tokens| number(&tokens) + 1);
                store.save(&lock, &pair(next)).await.unwrap();
            }
            println!("\n> done");
        }
        _ => panic!("no such task: {task}"),
    }
}

#[tokio::test]
async fn memory_store_clones_share_all() {
    let store = MemoryStore::default();
    let other = store.clone();
    assert!(store.load().await.unwrap().is_none());
    let lock = store.lock().await.unwrap();
    store.save(&lock, &pair(1)).await.unwrap();
    assert_eq!(stored(&other).await, 1);
    assert!(!is_free(&other).await);
    drop(lock);
    let lock = timeout(LONG, other.lock()).await.unwrap().unwrap();
    other.clear(&lock).await.unwrap();
    assert!(store.load().await.unwrap().is_none());
}

#[tokio::test]
async fn a_shared_store_is_the_one_inside() {
    let shared: Arc<dyn TokenStore> = Arc::new(MemoryStore::default());
    save(&shared, &pair(1)).await.unwrap();
    assert_eq!(stored(&shared).await, 1);
    let lock = shared.lock().await.unwrap();
    assert!(!is_free(&shared).await);
    shared.clear(&lock).await.unwrap();
    assert!(shared.load().await.unwrap().is_none());
}

#[test]
fn a_lock_tells_its_fence_and_a_store_no_token() {
    assert_eq!(StoreLock::none().fence(), None);
    let lock = StoreLock::holding("secret").with_fence(7);
    assert_eq!(lock.fence(), Some(7));
    assert_eq!(format!("{lock:?}"), "StoreLock { fence: Some(7), .. }");
    assert_eq!(format!("{:?}", MemoryStore::default()), "MemoryStore { .. }");
}

#[tokio::test]
async fn a_file_gives_back_what_was_saved() {
    let dir = tempfile::tempdir().unwrap();
    let store = FileStore::new(dir.path().join("tokens.json"));
    assert!(store.load().await.unwrap().is_none());

    save(&store, &pair(7)).await.unwrap();
    let loaded = FileStore::new(dir.path().join("tokens.json")).load().await.unwrap().unwrap();
    assert_eq!(number(&loaded), 7);
    assert_eq!(loaded.expires_at(), pair(7).expires_at());

    save(&store, &Tokens::from_refresh_token("alone").unwrap()).await.unwrap();
    let loaded = store.load().await.unwrap().unwrap();
    assert!(loaded.access_token().is_none());
    assert_eq!(loaded.refresh_token().unwrap().expose_secret(), "alone");
    assert_eq!(loaded.expires_at(), None);

    let lock = store.lock().await.unwrap();
    store.clear(&lock).await.unwrap();
    assert!(store.load().await.unwrap().is_none());
    assert_eq!(names(dir.path()), ["tokens.json.lock"]);
}

#[tokio::test]
async fn an_expiry_in_seconds_is_stored_as_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let store = FileStore::new(dir.path().join("tokens.json"));
    let before = SystemTime::now();
    save(&store, &Tokens::new("a").unwrap().with_expires_in(Duration::from_secs(3600)))
        .await
        .unwrap();
    let at = store.load().await.unwrap().unwrap().expires_at().unwrap();
    assert!(
        at >= before + Duration::from_secs(3600)
            && at <= SystemTime::now() + Duration::from_secs(3600)
    );
}

#[cfg(unix)]
#[tokio::test]
async fn files_are_the_owners_alone() {
    use std::os::unix::fs::PermissionsExt;

    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("made/for/it");
    let store = FileStore::new(home.join("tokens.json"));
    assert!(store.load().await.unwrap().is_none());
    save(&store, &pair(1)).await.unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&home.join("tokens.json")), 0o600);
    assert_eq!(mode(&home.join("tokens.json.lock")), 0o600);
    assert_eq!(mode(&home), 0o700);

    fs::set_permissions(home.join("tokens.json"), fs::Permissions::from_mode(0o644)).unwrap();
    save(&store, &pair(2)).await.unwrap();
    assert_eq!(mode(&home.join("tokens.json")), 0o600);
}

#[cfg(unix)]
#[tokio::test]
async fn a_directory_others_can_write_is_an_error() {
    use std::os::unix::fs::PermissionsExt;

    let dir = tempfile::tempdir().unwrap();
    let store = FileStore::new(dir.path().join("tokens.json"));
    save(&store, &pair(1)).await.unwrap();
    let lock = store.lock().await.unwrap();
    for (mode, refused) in [
        (0o770, true),
        (0o702, true),
        (0o1777, true),
        (0o2775, true),
        (0o755, false),
        (0o700, false),
    ] {
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(mode)).unwrap();
        let results = [
            store.load().await.map(drop),
            store.save(&lock, &pair(2)).await,
            store.clear(&lock).await,
        ];
        for result in results {
            assert_eq!(result.is_err(), refused, "{mode:o}");
            if let Err(error) = result {
                assert_eq!(error.kind(), ErrorKind::Store);
                let text = chain(&error);
                let dir = dir.path().canonicalize().unwrap();
                assert!(
                    text.contains(dir.to_str().unwrap()) && text.contains(&format!("{mode:04o}")),
                    "{text}"
                );
            }
        }
        assert_eq!(
            timeout(LONG, FileStore::new(dir.path().join("other")).lock()).await.unwrap().is_err(),
            refused,
            "{mode:o}"
        );
        if refused {
            assert!(
                fs::read_to_string(dir.path().join("tokens.json")).unwrap().contains("access-1")
            );
        }
    }
}

#[tokio::test]
async fn a_save_moves_a_broken_file_aside() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokens.json");
    let store = FileStore::new(&path);
    for (n, broken) in
        [r#"{"version":1,"access_token":"s3cret"#, "", r#"{"not":"ours"}"#].into_iter().enumerate()
    {
        fs::write(&path, broken).unwrap();
        let error = store.load().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Store);
        assert!(chain(&error).contains("tokens.json"), "{}", chain(&error));
        assert!(!chain(&error).contains("s3cret"), "{}", chain(&error));
        assert_eq!(fs::read_to_string(&path).unwrap(), broken);

        save(&store, &pair(1)).await.unwrap();
        assert_eq!(stored(&store).await, 1);
        let aside =
            if n == 0 { "tokens.json.broken".into() } else { format!("tokens.json.broken.{n}") };
        assert_eq!(fs::read_to_string(dir.path().join(aside)).unwrap(), broken);
    }
    let kept = [
        "tokens.json",
        "tokens.json.broken",
        "tokens.json.broken.1",
        "tokens.json.broken.2",
        "tokens.json.lock",
    ];
    assert_eq!(names(dir.path()), kept);
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_broken_file_that_stays_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    // A name of 255 bytes is the longest: there is room for `.lock`, and none for `.broken`.
    let path = dir.path().join("t".repeat(249));
    fs::write(&path, "broken").unwrap();
    let error = timeout(LONG, save(&FileStore::new(&path), &pair(1))).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Store);
    assert!(chain(&error).contains("cannot be moved aside"), "{}", chain(&error));
    assert_eq!(fs::read_to_string(&path).unwrap(), "broken");
}

#[tokio::test]
async fn an_unreadable_file_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("folder")).unwrap();
    fs::write(dir.path().join("file"), "").unwrap();
    for path in ["folder", "file/tokens.json"] {
        let error = FileStore::new(dir.path().join(path)).load().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Store);
        assert!(chain(&error).contains(path), "{}", chain(&error));
    }
    let missing = FileStore::new(dir.path().join("missing/tokens.json"));
    assert!(missing.load().await.unwrap().is_none());
    missing.clear(&missing.lock().await.unwrap()).await.unwrap();
}

#[tokio::test]
async fn an_endless_file_is_not_read_to_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokens.json");
    fs::File::create(&path).unwrap().set_len(1 << 40).unwrap();
    let error = timeout(LONG, FileStore::new(&path).load()).await.unwrap().unwrap_err();
    assert!(chain(&error).contains("1 MiB"), "{}", chain(&error));
}

#[tokio::test]
async fn a_file_of_a_later_version_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokens.json");
    let newer = r#"{"version":2,"vault":"elsewhere"}"#;
    fs::write(&path, newer).unwrap();
    let store = FileStore::new(&path);
    let lock = store.lock().await.unwrap();
    for result in
        [store.load().await.map(drop), store.save(&lock, &pair(1)).await, store.clear(&lock).await]
    {
        let error = result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Store);
        assert!(chain(&error).contains("version 2"), "{}", chain(&error));
    }
    assert_eq!(fs::read_to_string(&path).unwrap(), newer);
}

#[tokio::test]
async fn unknown_members_survive_saves_and_a_clear() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokens.json");
    fs::write(&path, r#"{"tenant":{"id":[1,2.50]},"version":1,"access_token":"old","huge":1e400}"#)
        .unwrap();
    let store = FileStore::new(&path);
    save(&store, &pair(1)).await.unwrap();
    save(&store, &pair(2)).await.unwrap();
    assert_eq!(stored(&store).await, 2);
    let text = fs::read_to_string(&path).unwrap();
    assert!(
        text.contains(r#""tenant":{"id":[1,2.50]}"#) && text.contains(r#""huge":1e400"#),
        "{text}"
    );

    let lock = store.lock().await.unwrap();
    store.clear(&lock).await.unwrap();
    assert!(store.load().await.unwrap().is_none());
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains("tenant") && !text.contains("access-"), "{text}");
}

#[tokio::test]
async fn a_save_removes_leftovers_only() {
    let dir = tempfile::tempdir().unwrap();
    let store = FileStore::new(dir.path().join("tokens.json"));
    for name in
        [".tokens.json.0123456789abcdef.tmp", ".other.json.0123456789abcdef.tmp", "tokens.json.tmp"]
    {
        fs::write(dir.path().join(name), "x").unwrap();
    }
    save(&store, &pair(1)).await.unwrap();
    let left =
        [".other.json.0123456789abcdef.tmp", "tokens.json", "tokens.json.lock", "tokens.json.tmp"];
    assert_eq!(names(dir.path()), left);
}

#[cfg(unix)]
#[tokio::test]
async fn a_link_is_followed_and_shares_the_lock() {
    let dir = tempfile::tempdir().unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    fs::write(elsewhere.path().join("real.json"), r#"{"version":1}"#).unwrap();
    std::os::unix::fs::symlink(elsewhere.path().join("real.json"), dir.path().join("link.json"))
        .unwrap();
    let (link, real) = (
        FileStore::new(dir.path().join("link.json")),
        FileStore::new(elsewhere.path().join("real.json")),
    );
    let lock = link.lock().await.unwrap();
    assert!(!is_free(&real).await);
    link.save(&lock, &pair(3)).await.unwrap();
    assert_eq!(stored(&real).await, 3);
    assert!(fs::symlink_metadata(dir.path().join("link.json")).unwrap().is_symlink());
}

#[cfg(unix)]
#[tokio::test]
async fn a_link_to_itself_is_an_error_and_stays() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokens.json");
    std::os::unix::fs::symlink("tokens.json", &path).unwrap();
    let store = FileStore::new(&path);
    for error in [store.load().await.unwrap_err(), store.lock().await.unwrap_err()] {
        assert_eq!(error.kind(), ErrorKind::Store);
        assert!(chain(&error).contains("cannot be used"), "{}", chain(&error));
    }
    assert_eq!(names(dir.path()), ["tokens.json"]);
}

#[tokio::test]
async fn two_stores_on_one_file_exclude_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokens.json");
    let (one, two) = (FileStore::new(&path), FileStore::new(&path));
    let lock = one.lock().await.unwrap();
    assert!(!is_free(&two).await);
    assert!(!is_free(&one).await);
    drop(lock);
    assert!(timeout(LONG, two.lock()).await.unwrap().is_ok());
}

#[tokio::test]
async fn a_dropped_wait_leaves_no_lock() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(FileStore::new(dir.path().join("tokens.json")));
    for _ in 0..50 {
        let lock = store.lock().await.unwrap();
        let waiters: Vec<_> = (0..4)
            .map(|_| {
                tokio::spawn({
                    let store = Arc::clone(&store);
                    async move { store.lock().await }
                })
            })
            .collect();
        tokio::task::yield_now().await;
        drop(lock);
        for waiter in waiters {
            waiter.abort();
            drop(waiter.await);
        }
        drop(timeout(LONG, store.lock()).await.unwrap().unwrap());
    }
}

#[tokio::test]
async fn a_save_needs_the_lock_of_its_own_file() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) =
        (FileStore::new(dir.path().join("one.json")), FileStore::new(dir.path().join("two.json")));
    let lock = two.lock().await.unwrap();
    for (wrong, why) in [(&lock, "under the lock of"), (&StoreLock::none(), "without its lock")] {
        for error in
            [one.save(wrong, &pair(1)).await.unwrap_err(), one.clear(wrong).await.unwrap_err()]
        {
            assert_eq!(error.kind(), ErrorKind::Store);
            assert!(chain(&error).contains(why), "{}", chain(&error));
        }
    }
    assert!(one.load().await.unwrap().is_none());
    // A store that wraps this one and its lock is responsible for the lock.
    let wrapped = StoreLock::holding(one.lock().await.unwrap());
    one.save(&wrapped, &pair(1)).await.unwrap();
    assert_eq!(stored(&one).await, 1);
}

#[cfg(unix)]
#[tokio::test]
async fn a_lock_whose_file_was_deleted_no_longer_saves() {
    let dir = tempfile::tempdir().unwrap();
    let store = FileStore::new(dir.path().join("tokens.json"));
    let lost = store.lock().await.unwrap();
    fs::remove_file(dir.path().join("tokens.json.lock")).unwrap();
    save(&store, &pair(2)).await.unwrap();
    assert_eq!(store.save(&lost, &pair(1)).await.unwrap_err().kind(), ErrorKind::Store);
    assert_eq!(stored(&store).await, 2);
}

#[cfg(unix)]
#[tokio::test]
async fn a_killed_holder_frees_its_lock() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokens.json");
    let store = FileStore::new(&path);
    let mut other = Other::start("hold the lock", &path);
    assert_eq!(other.says().as_deref(), Some("locked"));
    assert!(!is_free(&store).await);
    other.kill();
    timeout(LONG, save(&store, &pair(1))).await.unwrap().unwrap();
}

#[tokio::test]
async fn four_processes_never_undo_saves() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokens.json");
    let mut others: Vec<_> = (0..4).map(|_| Other::start("count to 50", &path)).collect();
    for other in &mut others {
        assert_eq!(other.says().as_deref(), Some("here"));
    }
    for other in &mut others {
        other.input.take().unwrap().write_all(b"go\n").unwrap();
    }
    for other in &mut others {
        assert_eq!(other.says().as_deref(), Some("done"));
    }
    assert_eq!(stored(&FileStore::new(&path)).await, 200);
}

/// Two hundred moments between the start of one save and the end of one a few later.
#[cfg(unix)]
#[tokio::test]
async fn a_killed_save_leaves_old_or_new() {
    survives_kills("save until killed", |path| FileStore::new(path)).await;
}

#[cfg(unix)]
#[tokio::test]
async fn a_sealed_file_survives_200_kills() {
    survives_kills("save until killed, sealed", |path| FileStore::new(path).encrypt_with(&[7; 32]))
        .await;
}

#[cfg(unix)]
async fn survives_kills(task: &str, open: impl Fn(&Path) -> FileStore) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokens.json");
    let store = open(&path);
    let mut last = 0;
    let (mut old, mut new) = (0, 0);
    for _ in 0..200 {
        let mut other = Other::start(task, &path);
        assert_eq!(other.says(), Some(format!("{}?", last + 1)));
        // Not a wait for anything: the moment itself.
        std::thread::sleep(Duration::from_micros(fastrand::u64(..6000)));
        other.kill();
        let (mut begun, mut ended) = (last + 1, last);
        while let Some(line) = other.says() {
            match line.strip_suffix('?') {
                Some(next) => begun = next.parse().unwrap(),
                None => ended = line.parse().unwrap(),
            }
        }
        let found = store.load().await.unwrap().map_or(0, |tokens| number(&tokens));
        assert!(found == ended || found == begun, "{found} is neither {ended} nor {begun}");
        if begun != ended {
            *if found == ended { &mut old } else { &mut new } += 1;
        }
        last = found;
    }
    println!("killed inside a save: {old} times the old file, {new} times the new");
    assert!(old + new > 0, "no save was hit");
    save(&store, &pair(last + 1)).await.unwrap();
    assert_eq!(names(dir.path()), ["tokens.json", "tokens.json.lock"]);
}
