//! Sessions that survive crashes and are shared: in a file by several processes, and in memory by
//! several sessions.

use std::{
    collections::{HashMap, HashSet},
    fs,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use crate::workers::{Job, Worker, caller, client, form, refresh_token, session};
use reqwest::StatusCode;
use reqwest_middleware::ClientWithMiddleware;
use reqwest_reauth::{
    Error, ErrorKind, Event, FileStore, MemoryStore, Session, SessionBuilder, StoreLock,
    TokenStore, Tokens,
    testing::{Answer, AuthServer, Rotation},
};

/// The part of the other process. It does nothing in a normal run.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn worker() {
    if let Some(job) = Job::from_env() {
        let store = FileStore::new(&job.store);
        job.run(store).await;
    }
}

async fn served(client: &ClientWithMiddleware, server: &AuthServer) {
    assert_eq!(client.get(server.url("/jobs")).send().await.unwrap().status(), 200);
}

async fn error_of(client: &ClientWithMiddleware, server: &AuthServer) -> Error {
    let error = client.get(server.url("/jobs")).send().await.unwrap_err();
    Error::find_in(&error).unwrap().clone()
}

/// The refresh tokens that the token endpoint was sent, in their order.
fn asked(server: &AuthServer) -> Vec<String> {
    server.token_requests().iter().map(|call| form(call, "refresh_token").unwrap()).collect()
}

/// A process that dies between the token endpoint's response and its own save.
fn dies_before_its_save(server: &AuthServer, path: &Path) {
    let path = path.to_str().unwrap();
    let mut worker = Worker::start("stall", "dead", server, path, &Tokens::empty());
    assert_eq!(worker.says().as_deref(), Some("issued"));
    worker.kill();
}

async fn stored(store: &impl TokenStore) -> Option<String> {
    store.load().await.unwrap().as_ref().map(refresh_token)
}

// ---- crashes

/// The calls to the token endpoint, by worker and by login.
#[derive(Default)]
struct Asked {
    all: HashSet<String>,
    last_of_login: HashMap<String, String>,
    login_of: HashMap<String, String>,
    by_worker: HashMap<String, Vec<String>>,
}

impl Asked {
    fn note(&mut self, server: &AuthServer) {
        let calls = server.token_requests();
        server.forget_requests();
        for call in calls {
            let (token, login) =
                (form(&call, "refresh_token").unwrap(), call.subject.clone().unwrap());
            self.all.insert(token.clone());
            self.last_of_login.insert(login.clone(), token.clone());
            self.login_of.insert(token.clone(), login);
            self.by_worker.entry(caller(&call)).or_default().push(token);
        }
    }

    /// Whether no worker has spent it, or none got further because the owner of its successor died
    /// before the save.
    fn is_new_or_old(&self, token: &str) -> bool {
        !self.all.contains(token) || self.last_of_login[&self.login_of[token]] == token
    }
}

/// Returns once the server is through with the calls of the dead. One that the dead had just sent
/// may reach it late on a busy machine, even after the next worker's: a real loss, but of the
/// network's making, and it would say nothing of the file.
fn last_calls_are_over(server: &AuthServer) {
    let port: u16 = server.origin().rsplit(':').next().unwrap().parse().unwrap();
    let port = format!(":{port:04X}");
    // The system's table of connections: the server's end goes when the server has read all, and
    // closed it.
    let open = || {
        let table = fs::read_to_string("/proc/net/tcp").unwrap_or_default();
        table.lines().skip(1).any(|line| {
            let mut columns = line.split_whitespace().skip(1);
            let (local, state) = (columns.next().unwrap(), columns.nth(1).unwrap());
            // SYN_RECV, ESTABLISHED, CLOSE_WAIT.
            local.ends_with(&port) && ["03", "01", "08"].contains(&state)
        })
    };
    let begun = Instant::now();
    while open() {
        assert!(begun.elapsed() < Duration::from_secs(20), "a dead worker's connection stays open");
        std::thread::sleep(Duration::from_millis(1));
    }
}

struct Toll {
    kills: usize,
    rotations: u64,
    logins_lost: u32,
    server: AuthServer,
    _dir: tempfile::TempDir,
    path: std::path::PathBuf,
}

/// A point in a rotation of the worker whose calls the server remembers, however busy the machine
/// is. Returns `false` for a worker whose login is lost, and which therefore makes no call.
fn a_moment_of_rotation(server: &AuthServer) -> bool {
    let enough = fastrand::usize(0..4);
    let begun = Instant::now();
    loop {
        let calls = server.token_requests();
        let answered = |status| calls.iter().filter(|call| call.status == Some(status)).count();
        if answered(StatusCode::BAD_REQUEST) > 0 {
            return false;
        }
        if answered(StatusCode::OK) >= enough {
            break;
        }
        assert!(
            begun.elapsed() < Duration::from_secs(20),
            "a worker neither rotates nor is refused"
        );
        std::thread::sleep(Duration::from_micros(200));
    }
    std::thread::sleep(Duration::from_micros(fastrand::u64(0..10_000)));
    true
}

/// Two hundred times: a worker that rotates all the time, killed at a random moment; then the next
/// one, on the same file.
async fn kill_two_hundred(rotation: Rotation) -> Toll {
    const KILLS: usize = 200;
    let server = AuthServer::builder().rotation(rotation).start().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokens.json");
    let (mut asked, mut logins_lost) = (Asked::default(), 0);
    let store = FileStore::new(&path);
    let lock = store.lock().await.unwrap();
    store.save(&lock, &server.login()).await.unwrap();
    drop(lock);
    let (mut given, mut dead) = (Tokens::empty(), None);
    for number in 0..KILLS {
        let name = number.to_string();
        let mut worker = Worker::start("rotate", &name, &server, path.to_str().unwrap(), &given);
        assert_eq!(worker.says().as_deref(), Some("ready"));
        let rotates = a_moment_of_rotation(&server);
        // If it were killed before it reports the loss, the next worker would lose the same login,
        // and so on.
        let mut said: Vec<_> = if rotates { None } else { worker.says() }.into_iter().collect();
        said.extend(worker.kill());
        last_calls_are_over(&server);
        asked.note(&server);

        let whole: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert_eq!(whole["version"], 1);
        let tokens = store.load().await.unwrap().unwrap();
        assert!(tokens.access_token().is_some());
        assert!(
            asked.is_new_or_old(&refresh_token(&tokens)),
            "worker {number} left a token from before"
        );

        // A lost login is not given to a worker again, because the file says that it is invalid and
        // it is not sent.
        let is_left = dead.as_ref() == Some(&refresh_token(&tokens));
        given = if is_left { server.login() } else { Tokens::empty() };
        let Some((lost, before)) = said.split_last().filter(|(last, _)| *last != "rotated") else {
            continue;
        };
        // Once, and the error says what may have happened.
        assert_eq!(lost, "LoginRequired true 1", "worker {number}");
        assert!(before.is_empty(), "{before:?}");
        let calls = &asked.by_worker[&name];
        assert_eq!(calls.len(), 1, "worker {number}");
        logins_lost += 1;
        dead = Some(refresh_token(&tokens));
        given = server.login();
    }
    let rotations = server.counts().tokens_issued;
    Toll { kills: KILLS, rotations, logins_lost, server, _dir: dir, path }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_with_a_reuse_grace_lose_no_login() {
    let toll = kill_two_hundred(Rotation::ReuseGrace).await;
    eprintln!("{} kills in {} rotations", toll.kills, toll.rotations);
    assert_eq!(toll.logins_lost, 0);
    assert_eq!(toll.server.counts().reuses, 0);
    assert!(toll.rotations > 50);
    carries_on(&toll).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_without_a_grace_are_reported() {
    let toll = kill_two_hundred(Rotation::SingleUse).await;
    eprintln!(
        "{} kills in {} rotations, {} logins lost",
        toll.kills, toll.rotations, toll.logins_lost
    );
    assert!(toll.rotations > 50);
    carries_on(&toll).await;
}

/// A new login over whatever the last crash left, and nothing of the dead is left beside it.
async fn carries_on(toll: &Toll) {
    let session = session(toll.server.login(), toll.server.origin(), "last")
        .store(FileStore::new(&toll.path));
    let session = session.restore().await.unwrap();
    session.refresh().await.unwrap();
    served(&client(&session), &toll.server).await;
    assert_eq!(
        stored(&FileStore::new(&toll.path)).await,
        session.tokens().as_ref().map(refresh_token)
    );
    let mut names: Vec<_> = fs::read_dir(toll.path.parent().unwrap())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["tokens.json", "tokens.json.lock"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_holder_frees_the_file_at_once() {
    let server = AuthServer::start().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokens.json");
    let day_one = server.login();
    server.script_token_endpoint([Answer::Hang]);
    let hold = server.hold_token_calls();
    let worker = Worker::start("rotate", "first", &server, path.to_str().unwrap(), &day_one);
    hold.waiting(1).await;
    hold.release();

    let session =
        session(day_one, server.origin(), "second").store(FileStore::new(&path)).build().unwrap();
    let client = client(&session);
    server.expire_now();
    let waiting = tokio::spawn(client.get(server.url("/jobs")).send());
    session
        .subscribe()
        .wait_for(|state| *state == reqwest_reauth::SessionState::Refreshing)
        .await
        .unwrap();
    assert!(
        tokio::time::timeout(Duration::from_millis(300), session.refresh()).await.is_err(),
        "the lock keeps others out"
    );
    assert_eq!(server.token_calls(), 1);
    worker.kill();
    let killed = Instant::now();
    assert_eq!(waiting.await.unwrap().unwrap().status(), 200);
    assert!(killed.elapsed() < Duration::from_secs(5), "{:?}", killed.elapsed());
    assert_eq!(server.token_calls(), 2);
    assert_eq!(server.counts().reuses, 0);
}

// ---- a fleet

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_processes_refresh_one_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    crate::workers::four_processes_refresh_once_an_expiry(
        dir.path().join("tokens.json").to_str().unwrap(),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_memory_store_shares_one_login() {
    let server = AuthServer::builder().only_newest_token().start().await;
    let (store, day_one) = (MemoryStore::default(), server.login());
    let sessions = ["one", "two", "three"].map(|name| {
        let session = session(day_one.clone(), server.origin(), name).store(store.clone());
        session.build().unwrap()
    });
    let clients = sessions.each_ref().map(client);
    for round in 1..=20 {
        server.expire_now();
        let requests: Vec<_> = clients
            .iter()
            .flat_map(|client| [client, client])
            .map(|client| tokio::spawn(client.get(server.url("/jobs")).send()))
            .collect();
        for request in requests {
            assert_eq!(request.await.unwrap().unwrap().status(), 200);
        }
        assert_eq!(server.token_calls(), round);
    }
    assert_eq!(server.counts().reuses, 0);
    assert_eq!(server.concurrent_token_calls_max(), 1);
    for session in &sessions {
        assert_eq!(session.tokens().as_ref().map(refresh_token), stored(&store).await);
    }
}

// ---- started again

async fn started(session: SessionBuilder, restore: bool) -> Session {
    if restore { session.restore().await.unwrap() } else { session.build().unwrap() }
}

/// A file whose login has gone through three rotations since these tokens.
async fn worked_on(server: &AuthServer, path: &Path) -> Tokens {
    let day_one = server.login();
    let session = session(day_one.clone(), server.origin(), "earlier")
        .store(FileStore::new(path))
        .build()
        .unwrap();
    for _ in 0..3 {
        server.expire_now();
        served(&client(&session), server).await;
    }
    session.close().await.unwrap();
    assert_eq!(server.token_calls(), 3);
    day_one
}

#[tokio::test]
async fn initial_tokens_yield_to_stored_ones() {
    for restore in [true, false] {
        let server = AuthServer::builder().only_newest_token().start().await;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokens.json");
        let day_one = worked_on(&server, &path).await;
        let refused = server.refused();

        let session = started(
            session(day_one, server.origin(), "again").store(FileStore::new(&path)),
            restore,
        )
        .await;
        let client = client(&session);
        served(&client, &server).await;
        // `restore` reads the store at once, and `build` when the old token is rejected. Neither
        // calls the token endpoint.
        assert_eq!(server.refused() - refused, u64::from(!restore));
        assert_eq!(server.token_calls(), 3);
        server.expire_now();
        served(&client, &server).await;
        assert_eq!(server.token_calls(), 4);
        assert_eq!(server.counts().reuses, 0);
        assert_eq!(
            stored(&FileStore::new(&path)).await,
            session.tokens().as_ref().map(refresh_token)
        );
    }
}

#[tokio::test]
async fn a_dead_stored_login_blocks_no_new_one() {
    for restore in [true, false] {
        let server = AuthServer::start().await;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokens.json");
        worked_on(&server, &path).await;
        let store = FileStore::new(&path);
        let dead = stored(&store).await.unwrap();
        server.revoke("login-1");
        server.forget_requests();
        if !restore {
            // At the first rejection its claimed lifetime would be believed.
            let tokens =
                store.load().await.unwrap().unwrap().with_expires_at(std::time::UNIX_EPOCH);
            store.save(&store.lock().await.unwrap(), &tokens).await.unwrap();
        }

        let new = server.login();
        server.expire_now();
        let session = started(
            session(new.clone(), server.origin(), "new").store(FileStore::new(&path)),
            restore,
        )
        .await;
        served(&client(&session), &server).await;
        assert_eq!(asked(&server), [dead, refresh_token(&new)]);
        assert_eq!(
            stored(&FileStore::new(&path)).await,
            session.tokens().as_ref().map(refresh_token)
        );
        assert_eq!(server.requests().last().unwrap().subject.as_deref(), Some("login-2"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_spent_by_the_dead_is_reported() {
    for restore in [true, false] {
        for with_day_one in [true, false] {
            let server = AuthServer::start().await;
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("tokens.json");
            let day_one = worked_on(&server, &path).await;
            let in_store = stored(&FileStore::new(&path)).await.unwrap();
            dies_before_its_save(&server, &path);
            server.forget_requests();
            server.expire_now();

            let given = if with_day_one { day_one.clone() } else { Tokens::empty() };
            let session = started(
                session(given, server.origin(), "again")
                    .store(FileStore::new(&path))
                    // The tokens of the dead worker are no longer on probation.
                    .cooldown(Duration::from_millis(1)),
                restore,
            )
            .await;
            let client = client(&session);
            if !restore {
                // The stored access token says that it is good: only the API's word shows that it
                // is not.
                assert_eq!(client.get(server.url("/jobs")).send().await.unwrap().status(), 401);
            }
            for _ in 0..3 {
                let error = error_of(&client, &server).await;
                assert_eq!(error.kind(), ErrorKind::LoginRequired, "{error:?}");
                assert!(error.possibly_consumed(), "{error:?}");
            }
            // Each token once: the store's first, and what the worker was given.
            let mut once = vec![in_store];
            once.extend(with_day_one.then(|| refresh_token(&day_one)));
            assert_eq!(asked(&server), once);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn survivors_report_possibly_consumed() {
    let server = AuthServer::start().await;
    let store = MemoryStore::default();
    let alive =
        session(server.login(), server.origin(), "alive").store(store.clone()).build().unwrap();
    alive.refresh().await.unwrap();
    // Another one dies between the token endpoint's processing and its response.
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let dead = session(Tokens::empty(), server.origin(), "dead").store(store.clone());
    let dead = dead.restore().await.unwrap();
    server.script_token_endpoint([Answer::Late(Duration::from_secs(60))]);
    runtime.spawn(async move { dead.refresh().await });
    while server.counts().tokens_issued < 2 {
        tokio::task::yield_now().await;
    }
    runtime.shutdown_background();
    let error = alive.refresh().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LoginRequired);
    assert!(error.possibly_consumed());
    assert_eq!(server.token_calls(), 3);
}

/// A store that fails on demand.
#[derive(Clone, Default)]
struct Moody {
    store: MemoryStore,
    loads_to_fail: Arc<AtomicUsize>,
    saves_to_fail: Arc<AtomicUsize>,
}

impl Moody {
    fn fails(left: &AtomicUsize) -> Result<(), Error> {
        match left.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)) {
            Ok(_) => Err(Error::new(ErrorKind::Store, "in a mood")),
            Err(_) => Ok(()),
        }
    }
}

#[async_trait::async_trait]
impl TokenStore for Moody {
    async fn load(&self) -> Result<Option<Tokens>, Error> {
        Self::fails(&self.loads_to_fail)?;
        self.store.load().await
    }

    async fn save(&self, lock: &StoreLock, tokens: &Tokens) -> Result<(), Error> {
        Self::fails(&self.saves_to_fail)?;
        self.store.save(lock, tokens).await
    }

    async fn clear(&self, lock: &StoreLock) -> Result<(), Error> {
        self.store.clear(lock).await
    }

    async fn lock(&self) -> Result<StoreLock, Error> {
        self.store.lock().await
    }
}

#[tokio::test]
async fn unreadable_documents_are_not_overwritten() {
    let server = AuthServer::start().await;
    let store = Moody::default();
    let session = session(server.login(), server.origin(), "moody")
        .store(store.clone())
        .refresh_without_store()
        .build()
        .unwrap();
    store.saves_to_fail.store(1, SeqCst);
    session.refresh().await.unwrap();
    // In the meantime there was a new login.
    let new = server.login();
    store.store.save(&StoreLock::none(), &new).await.unwrap();
    server.revoke("login-1");
    store.loads_to_fail.store(1, SeqCst);
    session.refresh().await.unwrap();
    assert_eq!(stored(&store).await, Some(refresh_token(&new)));
    assert_eq!(session.tokens().as_ref().map(refresh_token), Some(refresh_token(&new)));
    served(&client(&session), &server).await;
}

#[tokio::test]
async fn a_capture_moves_a_broken_file_aside() {
    let server = AuthServer::start().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokens.json");
    fs::write(&path, "{broken").unwrap();
    // As with Airflow: nothing to rotate, so nothing that another process can have put in the place
    // of ours.
    let access = server.login().access_token().unwrap().expose_secret().to_owned();
    let session = Session::builder(Tokens::new(access).unwrap())
        .origin(server.origin())
        .store(FileStore::new(&path))
        .build()
        .unwrap();
    server.reissue_next(1);
    served(&client(&session), &server).await;
    session.close().await.unwrap();
    let kept = FileStore::new(&path).load().await.unwrap().unwrap();
    assert_eq!(
        kept.access_token().unwrap().expose_secret(),
        session.tokens().unwrap().access_token().unwrap().expose_secret()
    );
    assert_eq!(fs::read_to_string(dir.path().join("tokens.json.broken")).unwrap(), "{broken");
}

#[cfg(unix)]
#[tokio::test]
async fn a_store_that_is_down_fails_no_request() {
    use std::os::unix::fs::PermissionsExt;

    let server = AuthServer::start().await;
    let dir = tempfile::tempdir().unwrap();
    let mode = |mode| fs::set_permissions(dir.path(), fs::Permissions::from_mode(mode)).unwrap();
    let store = FileStore::new(dir.path().join("tokens.json"));
    let failures = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&failures);
    let session = session(server.login(), server.origin(), "alone").store(store.clone()).on_event(
        move |event| {
            if let Event::StoreFailed { error, .. } = event {
                heard.lock().unwrap().push(error.kind());
            }
        },
    );
    mode(0o770);
    // Otherwise a rotating refresh token waits for the store.
    let session = session.refresh_without_store().restore().await.unwrap();
    let client = client(&session);
    for _ in 0..3 {
        server.expire_now();
        let before = failures.lock().unwrap().len();
        served(&client, &server).await;
        assert!(failures.lock().unwrap()[before..].contains(&ErrorKind::Store));
    }
    mode(0o700);
    assert_eq!(stored(&store).await, None);
    // What could not be saved is saved before it is spent.
    let unsaved = session.tokens().as_ref().map(refresh_token);
    let hold = server.hold_token_calls();
    server.expire_now();
    let request = tokio::spawn(client.get(server.url("/jobs")).send());
    hold.waiting(1).await;
    assert_eq!(stored(&store).await, unsaved);
    hold.release();
    assert_eq!(request.await.unwrap().unwrap().status(), 200);
    assert_eq!(stored(&store).await, session.tokens().as_ref().map(refresh_token));
    assert_eq!(server.token_calls(), 4);
    assert_eq!(server.counts().reuses, 0);
}
