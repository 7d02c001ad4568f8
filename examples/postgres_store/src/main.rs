//! Checks both stores: the conformance suite, and what is particular to each. Starts its own
//! PostgreSQL.

mod server;

use std::{
    error::Error as StdError,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use reqwest_reauth::{
    ErrorKind, OAuthRefresh, Session, StoredFailure, TokenStore, Tokens, reqwest,
    testing::{AuthServer, store_conformance},
};
use reqwest_reauth_stores::{PostgresStore, SecretStore};
use tokio::task::JoinSet;
use tokio_postgres::NoTls;

use self::server::Server;

type BoxError = Box<dyn StdError + Send + Sync>;
type Result<T = ()> = std::result::Result<T, BoxError>;

const COOLDOWN: Duration = Duration::from_millis(200);
/// The time within which a condition has to come true.
const SOON: Duration = Duration::from_secs(20);

#[tokio::main]
async fn main() -> Result {
    let postgres = Server::start()?;
    administer(&postgres, PostgresStore::SCHEMA).await?;
    let store = |login: &str| PostgresStore::new(postgres.config(), login);

    store_conformance(|| async { store("conformance") }).await;
    passed("PostgreSQL: the conformance suite");
    keeps_the_key(&store("key")).await?;
    passed("PostgreSQL: a bound login names its key");
    keeps_failures(&store("failures")).await?;
    passed("PostgreSQL: a failure is kept, and ends by itself");
    waits_with_a_limit(&store("wait"), &store("wait").longest_wait(COOLDOWN)).await?;
    passed("PostgreSQL: a wait for the lock has its limit");
    an_abandoned_wait_leaves_the_queue(&postgres).await?;
    passed("PostgreSQL: a wait that is abandoned leaves the queue");
    a_lost_connection_frees_the_lock(&postgres).await?;
    passed("PostgreSQL: a lost connection frees the lock, and its holder writes nothing");
    a_late_save_is_refused(&postgres).await?;
    passed("PostgreSQL: a save under a lock that was lost is refused");
    two_sessions_make_one_call(store("two"), store("two")).await?;
    passed("PostgreSQL: two sessions on two stores make one call");
    a_restart_is_survived(&postgres).await?;
    passed("PostgreSQL: stopped and started, the session goes on");
    a_stop_during_a_refresh_is_survived(&postgres).await?;
    passed("PostgreSQL: stopped during a refresh, the new login is saved later");

    let dir = tempfile::tempdir()?;
    let secret = |name: &str| SecretStore::new(dir.path().join(name));
    store_conformance(|| async { secret("conformance") }).await;
    passed("secret: the conformance suite");
    keeps_the_key(&secret("key")).await?;
    passed("secret: a bound login names its key");
    two_sessions_make_one_call(secret("two"), secret("two")).await?;
    passed("secret: two sessions on two stores make one call");
    has_the_layout_of_a_secret(&dir.path().join("layout")).await?;
    passed("secret: the layout, the modes, and what a crash leaves behind");
    a_reader_sees_no_gap(&dir.path().join("readers")).await?;
    passed("secret: a reader finds a login at any time");
    println!("15 passed, 0 failed");
    Ok(())
}

fn passed(what: &str) {
    println!("{what}: ok");
}

/// Runs statements outside the store.
async fn administer(postgres: &Server, statements: &str) -> Result {
    let (client, connection) = postgres.config().connect(NoTls).await?;
    let connection = tokio::spawn(connection);
    client.batch_execute(statements).await?;
    drop(client);
    Ok(connection.await??)
}

async fn keeps_the_key(store: &impl TokenStore) -> Result {
    let bound = Tokens::new("a")?.with_key_thumbprint("of-the-key");
    store.save(&store.lock().await?, &bound).await?;
    let found = store.load().await?;
    assert_eq!(found.as_ref().and_then(Tokens::key_thumbprint), Some("of-the-key"));
    Ok(())
}

async fn keeps_failures(store: &PostgresStore) -> Result {
    let pause = |ms: u32| {
        let text =
            format!(r#"{{"id":"a","says":{{"pause":{{"for_ms":{ms},"kind":"unavailable"}}}}}}"#);
        StoredFailure::from_text(text)
    };
    let lock = store.lock().await?;
    store.save_failure(&lock, &pause(60_000)).await?;
    assert_eq!(store.load_failure().await?, Some(pause(60_000)));
    store.save_failure(&lock, &pause(100)).await?;
    until("a failure ends with its lifetime", async || Ok(store.load_failure().await?.is_none()))
        .await
}

async fn waits_with_a_limit(one: &PostgresStore, other: &PostgresStore) -> Result {
    let lock = one.lock().await?;
    let begun = Instant::now();
    let error = other.lock().await.expect_err("the lock has a holder");
    assert_eq!(error.kind(), ErrorKind::Store);
    assert!(begun.elapsed() >= COOLDOWN, "{:?}", begun.elapsed());
    drop(lock);
    other.lock().await?;
    Ok(())
}

async fn an_abandoned_wait_leaves_the_queue(postgres: &Server) -> Result {
    let store = |()| PostgresStore::new(postgres.config(), "queue");
    let (one, other) = (store(()), store(()));
    let lock = one.lock().await?;
    let (client, connection) = postgres.config().connect(NoTls).await?;
    let connection = tokio::spawn(connection);
    let waiting = async || -> Result<i64> {
        let query = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted";
        Ok(client.query_one(query, &[]).await?.try_get(0)?)
    };
    let wait = tokio::spawn(async move { other.lock().await.map(drop) });
    until("the other waits", async || Ok(waiting().await? == 1)).await?;
    wait.abort();
    until("nobody waits", async || Ok(waiting().await? == 0)).await?;
    assert!(lock.is_held());
    connection.abort();
    Ok(())
}

async fn a_lost_connection_frees_the_lock(postgres: &Server) -> Result {
    let store = |()| PostgresStore::new(postgres.config(), "lost");
    let (one, other) = (store(()), store(()));
    let first = one.lock().await?;
    one.save(&first, &Tokens::new("first")?).await?;
    assert!(first.is_held());
    let end = "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'";
    administer(postgres, end).await?;
    let second = tokio::time::timeout(SOON, other.lock()).await??;
    assert!(second.fence() > first.fence());
    until("a lost lock is noticed", async || Ok(!first.is_held())).await?;
    other.save(&second, &Tokens::new("second")?).await?;
    let error = one.save(&first, &Tokens::new("late")?).await.expect_err("the lock is lost");
    assert_eq!(error.kind(), ErrorKind::Store);
    assert_eq!(access_token(&one).await?.as_deref(), Some("second"));
    Ok(())
}

/// The lock is lost, and its connection is not, as behind a proxy that shares connections.
async fn a_late_save_is_refused(postgres: &Server) -> Result {
    let store = PostgresStore::new(postgres.config(), "late");
    let lock = store.lock().await?;
    store.save(&lock, &Tokens::new("first")?).await?;
    let next_holder =
        "UPDATE reauth_logins SET generation = generation + 1, access_token = 'second'
                       WHERE login = 'late'";
    administer(postgres, next_holder).await?;
    let error = store.save(&lock, &Tokens::new("late")?).await.expect_err("the lock is lost");
    assert_eq!(error.kind(), ErrorKind::Store);
    store.clear(&lock).await.expect_err("the lock is lost");
    assert_eq!(access_token(&store).await?.as_deref(), Some("second"));
    let other = PostgresStore::new(postgres.config(), "other");
    store.save(&other.lock().await?, &Tokens::new("x")?).await.expect_err("another login's lock");
    Ok(())
}

async fn two_sessions_make_one_call(one: impl TokenStore, other: impl TokenStore) -> Result {
    const ROUNDS: u64 = 10;
    let server = AuthServer::start().await;
    let one = session(&server, one, server.login()).await?;
    one.refresh().await?;
    // The second has no tokens but those that the first has stored.
    let other = session(&server, other, Tokens::empty()).await?;
    let clients = [&one, &other].map(|session| session.wrap(reqwest::Client::new()));
    for round in 0..=ROUNDS {
        // A token that was never accepted has a cool-down, so round 0 uses what is there.
        if round > 0 {
            server.expire_now();
        }
        let send = |n: usize| clients[n].get(server.url("/jobs")).send();
        let (first, second) = tokio::join!(send(0), send(1));
        assert_eq!(first?.status(), 200);
        assert_eq!(second?.status(), 200);
        assert_eq!(server.token_calls(), 1 + round, "calls by round {round}");
    }
    assert_eq!(server.counts().reuses, 0);
    Ok(())
}

async fn a_restart_is_survived(postgres: &Server) -> Result {
    let store = PostgresStore::new(postgres.config(), "restart");
    let reader = PostgresStore::new(postgres.config(), "restart");
    let server = AuthServer::start().await;
    let session = session(&server, store, server.login()).await?;
    // Only a token that is known to rotate waits for its store, and the first refresh tells.
    session.refresh().await?;
    let client = session.wrap(reqwest::Client::new());
    assert_eq!(client.get(server.url("/jobs")).send().await?.status(), 200);
    assert_eq!(access_token(&reader).await?, current(&session));

    postgres.stop()?;
    for _ in 0..3 {
        assert_eq!(client.get(server.url("/jobs")).send().await?.status(), 200);
    }
    server.expire_now();
    let error = session.refresh().await.expect_err("the store cannot be locked");
    assert_eq!(error.kind(), ErrorKind::Store);
    assert!(error.is_transient());
    assert_eq!(server.token_calls(), 1, "a rotating token is not sent without the lock");

    postgres.begin()?;
    until("requests succeed again", async || {
        Ok(client
            .get(server.url("/jobs"))
            .send()
            .await
            .is_ok_and(|response| response.status() == 200))
    })
    .await?;
    assert_eq!(server.token_calls(), 2);
    assert_eq!(server.counts().reuses, 0);
    assert_eq!(access_token(&reader).await?, current(&session), "the reader connects again");
    Ok(())
}

/// The worst moment: the old refresh token is spent, and the new one cannot be saved.
async fn a_stop_during_a_refresh_is_survived(postgres: &Server) -> Result {
    let store = || PostgresStore::new(postgres.config(), "stopped");
    let server = AuthServer::start().await;
    let session = session(&server, store(), server.login()).await?;
    let held = server.hold_token_calls();
    let refresh = tokio::spawn({
        let session = session.clone();
        async move { session.refresh().await }
    });
    held.waiting(1).await;
    postgres.stop()?;
    held.release();
    refresh.await??;
    let client = session.wrap(reqwest::Client::new());
    assert_eq!(client.get(server.url("/jobs")).send().await?.status(), 200);
    let unsaved = current(&session);

    postgres.begin()?;
    assert_ne!(access_token(&store()).await?, unsaved);
    server.expire_now();
    until("requests succeed again", async || {
        Ok(client
            .get(server.url("/jobs"))
            .send()
            .await
            .is_ok_and(|response| response.status() == 200))
    })
    .await?;
    assert_eq!(server.token_calls(), 2);
    assert_eq!(server.counts().reuses, 0);
    assert_eq!(access_token(&store()).await?, current(&session));
    Ok(())
}

async fn has_the_layout_of_a_secret(dir: &Path) -> Result {
    let store = SecretStore::new(dir);
    let lock = store.lock().await?;
    store.save(&lock, &Tokens::new("first")?).await?;
    // What a save that was killed leaves behind.
    fs::create_dir(dir.join("..1.left"))?;
    std::os::unix::fs::symlink("..1.left", dir.join("..data_tmp"))?;
    store.save(&lock, &Tokens::new("second")?).await?;

    let link = |name: &str| fs::read_link(dir.join(name));
    assert_eq!(link("login.json")?, Path::new("..data/login.json"));
    assert!(fs::read_to_string(dir.join("login.json"))?.contains("second"));
    let mut names: Vec<_> = fs::read_dir(dir)?.flatten().map(|entry| entry.file_name()).collect();
    names.sort();
    let version = link("..data")?.into_os_string();
    assert_eq!(
        names,
        [version.as_os_str(), "..data".as_ref(), ".lock".as_ref(), "login.json".as_ref()]
    );
    let mode = |path: &Path| fs::metadata(path).map(|found| found.permissions().mode() & 0o777);
    assert_eq!(mode(dir)?, 0o700);
    assert_eq!(mode(&dir.join("login.json"))?, 0o600);

    let other = SecretStore::new(dir.with_file_name("other")).lock().await?;
    store.save(&other, &Tokens::new("x")?).await.expect_err("another directory's lock");
    fs::remove_file(dir.join(".lock"))?;
    store.save(&lock, &Tokens::new("late")?).await.expect_err("the lock file was deleted");
    assert_eq!(access_token(&store).await?.as_deref(), Some("second"));
    Ok(())
}

async fn a_reader_sees_no_gap(dir: &Path) -> Result {
    const READERS: usize = 8;
    let writer = SecretStore::new(dir);
    let lock = writer.lock().await?;
    writer.save(&lock, &Tokens::new("0")?).await?;
    let saves = Arc::new(AtomicBool::new(true));
    let mut readers = JoinSet::new();
    for _ in 0..READERS {
        let (reader, saves) = (SecretStore::new(dir), Arc::clone(&saves));
        readers.spawn(async move {
            let mut last = 0;
            while saves.load(Ordering::Relaxed) {
                let found = access_token(&reader).await?.ok_or("a login is missing")?;
                let found = found.parse::<u32>()?;
                assert!(found >= last, "{found} after {last}");
                last = found;
            }
            Result::Ok(())
        });
    }
    for n in 1..=300 {
        writer.save(&lock, &Tokens::new(n.to_string())?).await?;
    }
    saves.store(false, Ordering::Relaxed);
    while let Some(reader) = readers.join_next().await {
        reader??;
    }
    Ok(())
}

async fn session(server: &AuthServer, store: impl TokenStore, tokens: Tokens) -> Result<Session> {
    let builder = Session::builder(tokens)
        .origin(server.origin())
        .refresher(OAuthRefresh::new(server.token_endpoint()))
        .cooldown(COOLDOWN)
        .store(store);
    Ok(builder.restore().await?)
}

fn current(session: &Session) -> Option<String> {
    Some(session.tokens()?.access_token()?.expose_secret().to_owned())
}

async fn access_token(store: &impl TokenStore) -> Result<Option<String>> {
    let tokens = store.load().await?;
    Ok(tokens.and_then(|tokens| Some(tokens.access_token()?.expose_secret().to_owned())))
}

async fn until(what: &str, condition: impl AsyncFn() -> Result<bool>) -> Result {
    let begun = Instant::now();
    while !condition().await? {
        if begun.elapsed() > SOON {
            return Err(format!("{what}: not within {SOON:?}").into());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}
