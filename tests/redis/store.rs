//! The guarantees of the Redis store. Each case has its own redis-server.

use std::{
    collections::HashMap,
    error::Error as _,
    io::{BufRead, BufReader, Lines, Write},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use crate::redis_server::Server;
use reqwest_reauth::{Error, ErrorKind, RedisStore, StoreLock, TokenStore, Tokens};
use tokio::time::timeout;

/// Longer than anything here takes, and shorter than the default lease: a test that takes this long
/// has failed.
const LONG: Duration = Duration::from_secs(20);
/// For locks whose holder never comes back.
const SHORT_LEASE: Duration = Duration::from_millis(500);

/// This test binary once more, running nothing but [`child`].
struct Other {
    process: Child,
    lines: Lines<BufReader<ChildStdout>>,
    input: ChildStdin,
}

impl Other {
    fn start(task: &str, url: &str, roots: Option<&Path>) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "store::child", "--nocapture", "--test-threads=1"]);
        command
            .env("REDIS_TEST_TASK", task)
            .env("REDIS_TEST_URL", url)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        if let Some(roots) = roots {
            command.env("SSL_CERT_FILE", roots);
        }
        let mut process = command.spawn().unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let input = process.stdin.take().unwrap();
        Self { process, lines, input }
    }

    /// The next line of the process.
    fn says(&mut self) -> String {
        let mut lines = self.lines.by_ref().map_while(Result::ok);
        lines
            .find_map(|line| line.strip_prefix("> ").map(str::to_owned))
            .expect("the other process ended")
    }

    fn go_on(&mut self) {
        self.input.write_all(b"go on\n").unwrap();
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The other process's part. Does nothing in a usual run. It waits for its input on one thread
/// while the lock is renewed on another.
pub(crate) async fn child() {
    let Ok(task) = std::env::var("REDIS_TEST_TASK") else {
        return;
    };
    let store =
        RedisStore::connect(&std::env::var("REDIS_TEST_URL").unwrap(), "login").await.unwrap();
    let mut input = std::io::stdin().lines();
    match task.as_str() {
        "hold the lock, then save" => {
            let store = store.lease(SHORT_LEASE);
            let lock = store.lock().await.unwrap();
            println!("\n> locked");
            input.next();
            match store.save(&lock, &pair(666)).await {
                Ok(()) => println!("\n> saved"),
                Err(error) => println!("\n> {}", chain(&error)),
            }
            drop(lock);
            let lock = store.lock().await.unwrap();
            println!("\n> {}", number(&store.load().await.unwrap().unwrap()));
            drop(lock);
        }
        "count to 25" => {
            println!("\n> here");
            input.next();
            for _ in 0..25 {
                let lock = store.lock().await.unwrap();
                let next = store.load().await.unwrap().map_or(1, |tokens| number(&tokens) + 1);
                store.save(&lock, &pair(next)).await.unwrap();
            }
            println!("\n> done");
        }
        "load" => match store.load().await {
            Ok(tokens) => println!("\n> {}", number(&tokens.unwrap())),
            Err(error) => println!("\n> {}", chain(&error)),
        },
        "save" => {
            save(&store, &pair(42)).await.unwrap();
            println!("\n> saved");
        }
        _ => panic!("no such task: {task}"),
    }
}

fn pair(n: u64) -> Tokens {
    let tokens = Tokens::new(format!("access-{n}"))
        .and_then(|tokens| tokens.with_refresh_token(format!("refresh-{n}")));
    tokens
        .unwrap()
        .with_expires_at(std::time::UNIX_EPOCH + Duration::new(1_800_000_000 + n, 123_456_789))
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
    assert_eq!(
        tokens.refresh_token().unwrap().expose_secret(),
        format!("refresh-{access}"),
        "both tokens of one save"
    );
    access
}

async fn save(store: &RedisStore, tokens: &Tokens) -> Result<(), Error> {
    let lock = store.lock().await?;
    store.save(&lock, tokens).await
}

async fn stored(store: &RedisStore) -> u64 {
    number(&store.load().await.unwrap().unwrap())
}

async fn locked(store: &RedisStore) -> StoreLock {
    timeout(LONG, store.lock()).await.expect("the lock is not free").unwrap()
}

async fn is_free(store: &RedisStore) -> bool {
    timeout(Duration::from_millis(300), store.lock()).await.is_ok()
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

fn signal(signal: &str, process: &Child) {
    assert!(
        Command::new("kill").args([signal, &process.id().to_string()]).status().unwrap().success()
    );
}

pub(crate) async fn a_save_is_loaded_from_one_hash_slot() {
    let server = Server::start();
    let (store, other) = (server.store().await, server.store().await);
    assert!(store.load().await.unwrap().is_none());
    save(&store, &pair(7)).await.unwrap();
    let loaded = other.load().await.unwrap().unwrap();
    assert_eq!(number(&loaded), 7);
    assert_eq!(loaded.expires_at(), pair(7).expires_at());

    let lock = locked(&other).await;
    let mut keys: Vec<String> = server.ask(&["KEYS", "*"]);
    keys.sort();
    assert_eq!(keys, ["{login}:fence", "{login}:lock", "{login}:tokens"]);
    for (key, expires) in
        [("{login}:fence", false), ("{login}:lock", true), ("{login}:tokens", false)]
    {
        assert_eq!(server.ask::<i64>(&["PTTL", key]) > 0, expires, "{key}");
    }
    other.clear(&lock).await.unwrap();
    assert!(store.load().await.unwrap().is_none());
    assert!(!server.ask::<bool>(&["HEXISTS", "{login}:tokens", "document"]));
}

pub(crate) async fn keys_are_logins_apart() {
    let server = Server::start();
    let one = RedisStore::connect(&server.url(), "one").await.unwrap();
    let two = RedisStore::connect(&server.url(), "two").await.unwrap();
    let (first, second) = (locked(&one).await, locked(&two).await);
    one.save(&first, &pair(1)).await.unwrap();
    two.save(&second, &pair(2)).await.unwrap();
    assert_eq!(stored(&one).await, 1);
    assert_eq!(stored(&two).await, 2);
}

pub(crate) async fn the_lock_excludes_until_it_is_dropped() {
    let server = Server::start();
    let (store, other) =
        (server.store().await.lease(Duration::from_millis(400)), server.store().await);
    let lock = locked(&store).await;
    // Four leases long: it is renewed.
    assert!(timeout(Duration::from_millis(1600), other.lock()).await.is_err());
    assert!(!is_free(&store).await);
    drop(lock);
    // Under the default lease of 30 s, so not by waiting for its end.
    let lock = locked(&other).await;
    drop(lock);
    drop(locked(&store).await);
}

pub(crate) async fn a_dropped_wait_leaves_no_lock() {
    let server = Server::start();
    let store = Arc::new(server.store().await);
    for _ in 0..30 {
        let lock = locked(&store).await;
        let waiters: Vec<_> = (0..4)
            .map(|_| {
                let store = Arc::clone(&store);
                tokio::spawn(async move { store.lock().await })
            })
            .collect();
        tokio::task::yield_now().await;
        drop(lock);
        for waiter in waiters {
            waiter.abort();
            drop(waiter.await);
        }
        drop(locked(&store).await);
    }
}

pub(crate) async fn a_runtime_shut_down_frees_its_lock() {
    // A runtime can neither block nor be dropped on another runtime.
    tokio::task::spawn_blocking(|| {
        let server = Server::start();
        let runtime = || {
            tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()
                .unwrap()
        };
        let (short, long) = (runtime(), runtime());
        let store = short.block_on(server.store());
        let lock = short.block_on(locked(&store));
        drop(short);
        // The store's connection died with the runtime too.
        long.block_on(async {
            drop(locked(&store).await);
            save(&store, &pair(1)).await.unwrap();
            assert_eq!(stored(&store).await, 1);
        });
        drop(lock);
    })
    .await
    .unwrap();
}

pub(crate) async fn a_killed_holder_keeps_one_lease() {
    let server = Server::start();
    let store = server.store().await;
    let mut other = Other::start("hold the lock, then save", &server.url(), None);
    assert_eq!(other.says(), "locked");
    assert!(timeout(SHORT_LEASE * 2, store.lock()).await.is_err(), "renewed while it lives");
    other.process.kill().unwrap();
    let killed = Instant::now();
    drop(locked(&store).await);
    assert!(killed.elapsed() < SHORT_LEASE + Duration::from_secs(2), "{:?}", killed.elapsed());
}

pub(crate) async fn a_stalled_holder_cannot_overwrite() {
    let server = Server::start();
    let store = server.store().await;
    let mut other = Other::start("hold the lock, then save", &server.url(), None);
    assert_eq!(other.says(), "locked");
    signal("-STOP", &other.process);
    save(&store, &pair(2)).await.unwrap();
    other.go_on();
    signal("-CONT", &other.process);
    let said = other.says();
    assert!(said.contains("Store") && said.contains("lost to another holder"), "{said}");
    assert_eq!(stored(&store).await, 2);
    // It continues with the existing data.
    assert_eq!(other.says(), "2");
}

pub(crate) async fn an_old_fence_is_rejected() {
    let server = Server::start();
    let store = server.store().await;
    let first = locked(&store).await;
    store.save(&first, &pair(1)).await.unwrap();
    let stale = StoreLock::none().with_fence(first.fence().unwrap());
    drop(first);

    let second = locked(&store).await;
    assert!(second.fence() > stale.fence());
    let refused = async || {
        for result in [store.save(&stale, &pair(666)).await, store.clear(&stale).await] {
            assert_eq!(result.unwrap_err().kind(), ErrorKind::Store);
        }
    };
    refused().await;
    assert_eq!(stored(&store).await, 1);
    store.save(&second, &pair(2)).await.unwrap();
    refused().await;
    drop(second);
    drop(locked(&store).await);
    refused().await;
    // Even where the count of holders is lost, the document remembers who wrote it.
    server.ask::<u64>(&["DEL", "{login}:fence", "{login}:lock"]);
    refused().await;
    assert_eq!(stored(&store).await, 2);
    assert_eq!(
        store.save(&StoreLock::none(), &pair(666)).await.unwrap_err().kind(),
        ErrorKind::Store
    );
}

pub(crate) async fn a_save_needs_its_lock() {
    let server = Server::start();
    let store = server.store().await;
    let lock = locked(&store).await;
    server.ask::<u64>(&["DEL", "{login}:lock"]);
    assert_eq!(store.save(&lock, &pair(1)).await.unwrap_err().kind(), ErrorKind::Store);
    assert!(store.load().await.unwrap().is_none());
}

pub(crate) async fn two_holders_with_one_fence_are_told_apart() {
    let server = Server::start();
    let store = server.store().await;
    let first = locked(&store).await;
    // Like after a failover to a replica that does not know the first holder.
    let fence = first.fence().unwrap() - 1;
    server.ask::<u64>(&["DEL", "{login}:lock"]);
    server.ask::<()>(&["SET", "{login}:fence", &fence.to_string()]);
    let second = locked(&store).await;
    assert_eq!(first.fence(), second.fence());
    store.save(&second, &pair(2)).await.unwrap();
    assert_eq!(store.save(&first, &pair(1)).await.unwrap_err().kind(), ErrorKind::Store);
    assert_eq!(stored(&store).await, 2);
}

pub(crate) async fn a_fence_that_fell_behind_rises_above_what_was_written() {
    let server = Server::start();
    let store = server.store().await;
    let first = locked(&store).await;
    store.save(&first, &pair(1)).await.unwrap();
    let fence = first.fence().unwrap();
    drop(first);
    server.ask::<()>(&["SET", "{login}:fence", "7"]);
    let second = locked(&store).await;
    assert!(second.fence() > Some(fence));
    store.save(&second, &pair(2)).await.unwrap();
    assert_eq!(stored(&store).await, 2);
}

pub(crate) async fn a_redis_store_conforms() {
    let server = Server::start();
    reqwest_reauth::testing::store_conformance(|| server.store()).await;
}

pub(crate) async fn a_redis_without_resp3_conforms() {
    // The user may not subscribe, so the store polls, as with a server without RESP3.
    let server = Server::start();
    server.ask::<()>(&[
        "ACL",
        "SETUSER",
        "worker",
        "on",
        ">secret",
        "~*",
        "+@all",
        "resetchannels",
    ]);
    let url = server.url().replace("redis://", "redis://worker:secret@");
    reqwest_reauth::testing::store_conformance(async || {
        RedisStore::connect(&url, "login").await.unwrap()
    })
    .await;
}

pub(crate) async fn a_cluster_of_two_nodes_conforms() {
    let nodes = Server::start_cluster();
    // The keys of some logins are on the first node, those of others on the second.
    for key in ["a", "b", "login", "worker-7"] {
        reqwest_reauth::testing::store_conformance(async || {
            RedisStore::connect(&nodes[0].url(), key).await.unwrap()
        })
        .await;
    }
    let counts: Vec<u64> = nodes.iter().map(|node| node.ask(&["DBSIZE"])).collect();
    assert!(counts.iter().all(|count| *count > 0), "both nodes have keys: {counts:?}");
}

pub(crate) async fn dropping_a_runtime_takes_half_a_second_at_most() {
    tokio::task::spawn_blocking(|| {
        let server = Server::start();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let locks = runtime.block_on(async {
            let mut locks = Vec::new();
            for key in 0..20 {
                let store =
                    RedisStore::connect(&server.url(), format!("login-{key}")).await.unwrap();
                locks.push(locked(&store).await);
            }
            locks
        });
        signal("-STOP", &server.process);
        let dropped = Instant::now();
        drop(runtime);
        let took = dropped.elapsed();
        signal("-CONT", &server.process);
        // What the machine itself takes comes on top.
        assert!(took < Duration::from_millis(900), "{took:?}");
        drop(locks);
    })
    .await
    .unwrap();
}

pub(crate) async fn the_fence_survives_restarts_and_losses() {
    let mut server = Server::start();
    let store = server.store().await;
    let mut last = None;
    for round in 0..4 {
        let lock = locked(&store).await;
        assert!(lock.fence() > last, "round {round}: {:?} after {last:?}", lock.fence());
        last = lock.fence();
        store.save(&lock, &pair(1)).await.unwrap();
        store.clear(&lock).await.unwrap();
        drop(lock);
        drop(locked(&store).await);
        match round {
            0 => {}
            1 => {
                server.stop();
                server.start_again();
            }
            _ => server.ask::<()>(&["FLUSHALL"]),
        }
    }
}

pub(crate) async fn a_holder_from_before_a_loss_is_fenced() {
    let server = Server::start();
    let store = server.store().await;
    let before = locked(&store).await;
    server.ask::<()>(&["FLUSHALL"]);
    let after = locked(&store).await;
    assert_eq!(store.save(&before, &pair(666)).await.unwrap_err().kind(), ErrorKind::Store);
    store.save(&after, &pair(1)).await.unwrap();
    assert_eq!(stored(&store).await, 1);
}

pub(crate) async fn four_processes_never_undo_saves() {
    let server = Server::start();
    let mut others: Vec<_> =
        (0..4).map(|_| Other::start("count to 25", &server.url(), None)).collect();
    for other in &mut others {
        assert_eq!(other.says(), "here");
    }
    others.iter_mut().for_each(Other::go_on);
    for other in &mut others {
        assert_eq!(other.says(), "done");
    }
    assert_eq!(stored(&server.store().await).await, 100);
}

pub(crate) async fn calls_fail_soon_while_redis_is_away() {
    let mut server = Server::start();
    let store = server.store().await;
    save(&store, &pair(1)).await.unwrap();
    let lock = locked(&store).await;
    for _ in 0..2 {
        server.stop();
        let begun = Instant::now();
        let results = [
            store.load().await.map(drop),
            store.save(&lock, &pair(2)).await,
            store.lock().await.map(drop),
            store.load().await.map(drop),
        ];
        for result in results {
            assert_eq!(result.unwrap_err().kind(), ErrorKind::Store);
        }
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        server.start_again();
        assert_eq!(stored(&store).await, 1);
    }
    // Its data was on the disk, and so was the lock.
    store.save(&lock, &pair(3)).await.unwrap();
    assert_eq!(stored(&store).await, 3);
}

pub(crate) async fn a_lock_dropped_while_away_is_freed_later() {
    let mut server = Server::start();
    let (store, other) = (server.store().await, server.store().await);
    let lock = locked(&store).await;
    server.stop();
    drop(lock);
    // No process can hold it now, because the release has been attempted by then.
    assert_eq!(store.load().await.unwrap_err().kind(), ErrorKind::Store);
    server.start_again();
    // Under the default lease of 30 s, so not by waiting for its end.
    drop(locked(&other).await);
}

pub(crate) async fn a_restart_between_two_calls_goes_unnoticed() {
    let mut server = Server::start();
    let store = server.store().await;
    let lock = locked(&store).await;
    for n in 1..4 {
        server.stop();
        server.start_again();
        store.save(&lock, &pair(n)).await.unwrap();
        assert_eq!(stored(&store).await, n);
    }
}

pub(crate) async fn a_hanging_redis_is_given_up_in_5_s() {
    let server = Server::start();
    let store = server.store().await;
    save(&store, &pair(1)).await.unwrap();
    signal("-STOP", &server.process);
    for _ in 0..2 {
        // The second one has to make a new connection.
        let begun = Instant::now();
        assert_eq!(store.load().await.unwrap_err().kind(), ErrorKind::Store);
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    }
    // A caller with a shorter timeout.
    assert!(timeout(Duration::from_millis(100), store.load()).await.is_err());
    signal("-CONT", &server.process);
    assert_eq!(stored(&store).await, 1);
}

pub(crate) async fn a_session_starts_before_its_redis() {
    let mut server = Server::start();
    server.stop();
    let store = server.store().await;
    assert_eq!(store.load().await.unwrap_err().kind(), ErrorKind::Store);
    server.start_again();
    save(&store, &pair(1)).await.unwrap();
}

pub(crate) async fn bad_urls_keys_and_passwords_fail_at_once() {
    for url in [
        "",
        "s3cret",
        "http://u:s3cret@127.0.0.1",
        "redis://u:s3cret@127.0.0.1/s3cret",
        "rediss://u:s3cret@127.0.0.1/#insecure",
    ] {
        let error = RedisStore::connect(url, "login").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{url}");
        assert!(!chain(&error).contains("s3cret"), "{}", chain(&error));
    }
    for key in ["", "}login"] {
        assert_eq!(
            RedisStore::connect("redis://127.0.0.1", key).await.unwrap_err().kind(),
            ErrorKind::InvalidConfig
        );
    }

    let server = Server::start_with(&["--requirepass", "right"]);
    let at = |user: &str| format!("redis://{user}127.0.0.1:{}", server.port);
    for user in ["", ":s3cret@", "nobody:s3cret@"] {
        let error = RedisStore::connect(&at(user), "login").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Store, "{user}");
        assert!(!chain(&error).contains("s3cret"), "{}", chain(&error));
    }
    let store = RedisStore::connect(&at(":right@"), "login").await.unwrap();
    save(&store, &pair(1)).await.unwrap();
    assert_eq!(format!("{store:?}"), "RedisStore { lease: 30s, .. }");
    for (asked, given) in [(Duration::ZERO, "100ms"), (Duration::MAX, "86400s")] {
        assert_eq!(
            format!("{:?}", store.clone().lease(asked)),
            format!("RedisStore {{ lease: {given}, .. }}")
        );
    }
}

pub(crate) async fn a_replicas_connection_is_given_up() {
    let server = Server::start();
    let store = server.store().await;
    let lock = locked(&store).await;
    let connections = || {
        let about: String = server.ask(&["INFO", "stats"]);
        let line = about.lines().find_map(|line| line.strip_prefix("total_connections_received:"));
        line.unwrap().trim().parse::<u64>().unwrap()
    };
    let refusing: [(&[&str], u64); 2] = [
        (&["CONFIG", "SET", "min-replicas-to-write", "1"], 0),
        (&["REPLICAOF", "127.0.0.1", "1"], 1),
    ];
    for (words, new) in refusing {
        let _: String = server.ask(words);
        let before = connections();
        assert_eq!(store.save(&lock, &pair(1)).await.unwrap_err().kind(), ErrorKind::Store);
        assert!(store.load().await.unwrap().is_none());
        // The query itself makes a connection.
        assert_eq!(connections(), before + 1 + new, "{words:?}");
    }
}

pub(crate) async fn errors_quote_no_server_text() {
    // A server without scripts quotes the arguments that it does not understand.
    let server = Server::start_with(&["--rename-command", "EVALSHA", ""]);
    let store = server.store().await;
    let lock = StoreLock::none().with_fence(1);
    for result in
        [store.save(&lock, &Tokens::new("s3cret").unwrap()).await, store.load().await.map(drop)]
    {
        let error = result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Store);
        assert!(
            !chain(&error).contains("s3cret") && !chain(&error).contains("login"),
            "{}",
            chain(&error)
        );
    }
}

pub(crate) async fn documents_over_1_mib_are_errors() {
    let server = Server::start();
    let store = server.store().await;
    let document = |length: usize| {
        let text = r#"{"version":1,"access_token":"access-1","refresh_token":"refresh-1""#;
        format!("{text}{}}}", " ".repeat(length - 1 - text.len()))
    };
    let _: u64 = server.ask(&["HSET", "{login}:tokens", "document", &document(1 << 20)]);
    assert_eq!(stored(&store).await, 1);
    // Even if all of its text is in the first MiB.
    for longer in [document((1 << 20) + 1), format!("{}  ", document((1 << 20) - 1))] {
        let _: u64 = server.ask(&["HSET", "{login}:tokens", "document", &longer]);
        let error = store.load().await.unwrap_err();
        assert!(chain(&error).contains("is over 1 MiB"), "{}", chain(&error));
    }
}

pub(crate) async fn broken_and_newer_documents_are_kept() {
    let server = Server::start();
    let store = server.store().await;
    let put = |document: &str| server.ask::<u64>(&["HSET", "{login}:tokens", "document", document]);
    let document = || server.ask::<String>(&["HGET", "{login}:tokens", "document"]);

    put(r#"{"tenant":[1.50],"version":1,"refresh_token":"old"}"#);
    let lock = locked(&store).await;
    store.save(&lock, &pair(1)).await.unwrap();
    assert!(document().contains(r#""tenant":[1.50]"#));
    assert_eq!(stored(&store).await, 1);
    store.clear(&lock).await.unwrap();
    assert!(store.load().await.unwrap().is_none());
    assert!(document().contains("tenant") && !document().contains("access-"));

    let newer = r#"{"version":2}"#;
    put(newer);
    for result in
        [store.load().await.map(drop), store.save(&lock, &pair(1)).await, store.clear(&lock).await]
    {
        let error = result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Store);
        assert!(chain(&error).contains("version 2"));
    }
    assert_eq!(document(), newer);
    drop(lock);

    let lock = locked(&store).await;
    let huge = format!("\"{}", "s3cret".repeat(300_000));
    let broken = ["", "{\"access_token\":\"s3cret\"", huge.as_str()];
    for document in broken {
        put(document);
        let error = store.load().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Store);
        assert!(!chain(&error).contains("s3cret"));
        store.save(&lock, &pair(3)).await.unwrap();
        assert_eq!(stored(&store).await, 3);
    }
    let fields: HashMap<String, String> = server.ask(&["HGETALL", "{login}:tokens"]);
    let mut kept: Vec<_> = fields
        .iter()
        .filter(|(name, _)| name.starts_with("broken:"))
        .map(|(_, kept)| kept.as_str())
        .collect();
    kept.sort_unstable_by_key(|kept| kept.len());
    assert_eq!(kept, broken);
}

pub(crate) async fn rediss_trusts_system_or_named_roots() {
    let dir = tempfile::tempdir().unwrap();
    let ca_key = rcgen::KeyPair::generate().unwrap();
    let mut ca = rcgen::CertificateParams::new([]).unwrap();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca_pem = ca.self_signed(&ca_key).unwrap().pem();
    let key = rcgen::KeyPair::generate().unwrap();
    let leaf = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap();
    let cert = leaf.signed_by(&key, &rcgen::Issuer::new(ca, ca_key)).unwrap();
    let path = |name: &str| dir.path().join(name);
    for (name, pem) in
        [("ca.pem", ca_pem), ("cert.pem", cert.pem()), ("key.pem", key.serialize_pem())]
    {
        std::fs::write(path(name), pem).unwrap();
    }
    let file = |name: &str| path(name).to_str().unwrap().to_owned();
    let (cert, key, ca) = (file("cert.pem"), file("key.pem"), file("ca.pem"));
    let options = [
        "--tls-cert-file",
        &cert,
        "--tls-key-file",
        &key,
        "--tls-ca-cert-file",
        &ca,
        "--tls-auth-clients",
        "no",
    ];
    let server = Server::start_with(&options);

    let url = format!("rediss://localhost:{}", server.port);
    assert_eq!(Other::start("save", &url, Some(&path("ca.pem"))).says(), "saved");
    assert_eq!(Other::start("load", &url, Some(&path("ca.pem"))).says(), "42");
    // The certificate is for another name, or from an issuer that the system does not trust.
    let elsewhere = format!("rediss://127.0.0.1:{}", server.port);
    let said = Other::start("load", &elsewhere, Some(&path("ca.pem"))).says();
    assert!(said.contains("certificate"), "{said}");
    let said = Other::start("load", &url, None).says();
    assert!(said.contains("redis cannot be reached"), "{said}");
}
