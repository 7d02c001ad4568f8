//! Sessions that share a store behave as one (contract 10.8).

use std::time::Duration;

use crate::support::{Api, Issuer, ORIGIN, Turn, answer, held, pair, store::FakeStore, texts, url};
use futures_util::future::join_all;
use http::StatusCode;
use reqwest_reauth::{
    Error, ErrorKind, FileStore, MemoryStore, OAuthRefresh, Refresher, Session, SessionBuilder,
    SessionState, TokenStore, Tokens,
    testing::{Answer, AuthServer, Recorded},
};

const COOLDOWN: Duration = Duration::from_secs(10);
const SECOND: Duration = Duration::from_secs(1);
const MEMBERS: usize = 50;

fn builder(store: impl TokenStore, refresher: impl Refresher) -> SessionBuilder {
    Session::builder(pair("t0", "r0"))
        .origin(ORIGIN)
        .cooldown(COOLDOWN)
        .refresher(refresher)
        .store(store)
}

fn fleet_on(store: &(impl TokenStore + Clone), issuer: &Issuer) -> Vec<Session> {
    (0..MEMBERS).map(|_| builder(store.clone(), issuer.clone()).build().unwrap()).collect()
}

async fn fleet(issuer: &Issuer) -> (MemoryStore, Vec<Session>) {
    let store = MemoryStore::default();
    store.save(&store.lock().await.unwrap(), &pair("t0", "r0")).await.unwrap();
    let members = fleet_on(&store, issuer);
    (store, members)
}

async fn refresh_all(members: &[Session]) -> Vec<Result<Tokens, Error>> {
    join_all(members.iter().map(Session::refresh)).await
}

fn kinds(results: &[Result<Tokens, Error>], kind: ErrorKind) -> usize {
    let is_it =
        |result: &&Result<Tokens, Error>| result.as_ref().is_err_and(|error| error.kind() == kind);
    results.iter().filter(is_it).count()
}

fn down() -> Turn {
    let error = Error::new(ErrorKind::Unavailable, "down").with_status(StatusCode::BAD_GATEWAY);
    Turn::Fail(SECOND, error)
}

// ---- one call

#[tokio::test(start_paused = true)]
async fn those_who_wait_adopt_without_the_lock() {
    let issuer = Issuer::new([Turn::Issue(SECOND, None)]);
    let (store, members) = fleet(&issuer).await;
    let first = members[0].clone();
    let first = tokio::spawn(async move { first.refresh().await });
    issuer.until_called(1).await;
    let mut others = std::pin::pin!(refresh_all(&members[1..]));
    assert!(tokio::time::timeout(SECOND / 2, &mut others).await.is_err(), "they wait");
    // The next waiter holds the lock forever, but no session needs it.
    let stuck = store.clone();
    tokio::spawn(async move {
        let _lock = stuck.lock().await.unwrap();
        std::future::pending::<()>().await;
    });
    first.await.unwrap().unwrap();
    let results = tokio::time::timeout(SECOND, others).await.unwrap();
    assert!(results.iter().all(Result::is_ok), "{results:?}");
    assert!(members.iter().all(|member| held(member) == texts("t1", "r1")));
    assert_eq!(issuer.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_store_with_the_defaults_is_watched_too() {
    let issuer = Issuer::new([Turn::Issue(SECOND, None)]);
    let store = FakeStore::holding(pair("t0", "r0"));
    let members = fleet_on(&store, &issuer);
    let results = refresh_all(&members).await;
    assert!(results.iter().all(Result::is_ok), "{results:?}");
    assert_eq!(issuer.calls(), 1);
}

#[tokio::test]
async fn a_holder_that_dies_is_replaced() {
    let issuer = Issuer::new([Turn::Hang]);
    let (_store, members) = fleet(&issuer).await;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let first = members[0].clone();
    runtime.spawn(async move { first.refresh().await });
    issuer.until_called(1).await;
    let mut others = std::pin::pin!(refresh_all(&members[1..]));
    assert!(tokio::time::timeout(SECOND / 10, &mut others).await.is_err(), "they wait");
    runtime.shutdown_background();
    let results = others.await;
    assert!(results.iter().all(Result::is_ok), "{results:?}");
    assert_eq!(issuer.calls(), 2);
}

// ---- failures that concern all processes

#[tokio::test(start_paused = true)]
async fn an_outage_is_one_refresh_a_cooldown() {
    let issuer = Issuer::new([down(), down()]);
    let (_store, members) = fleet(&issuer).await;
    for calls in [1, 2] {
        let results = refresh_all(&members).await;
        assert_eq!(issuer.calls(), calls);
        assert_eq!(kinds(&results, ErrorKind::Unavailable), 1, "{results:?}");
        assert_eq!(kinds(&results, ErrorKind::CoolingDown), MEMBERS - 1, "{results:?}");
        assert!(members.iter().all(|member| member.state() == SessionState::CoolingDown));
        tokio::time::advance(COOLDOWN).await;
    }
    assert!(refresh_all(&members).await.iter().all(Result::is_ok));
    assert_eq!(issuer.calls(), 3);
}

#[tokio::test(start_paused = true)]
async fn who_comes_during_an_outage_asks_nobody() {
    let issuer = Issuer::new([down()]);
    let (store, members) = fleet(&issuer).await;
    members[0].refresh().await.unwrap_err();
    let late = builder(store.clone(), issuer.clone()).build().unwrap();
    tokio::time::advance(COOLDOWN / 2).await;
    let error = late.refresh().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::CoolingDown);
    assert!(error.is_transient());
    assert_eq!(error.status(), Some(StatusCode::BAD_GATEWAY));
    assert_eq!(issuer.calls(), 1);
    tokio::time::advance(COOLDOWN).await;
    late.refresh().await.unwrap();
    assert_eq!(held(&late), texts("t2", "r2"));
    // The token endpoint works again, and the earlier failure delays no session.
    let later = builder(store.clone(), issuer.clone()).build().unwrap();
    later.refresh().await.unwrap();
    assert!(store.load_failure().await.unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_wish_of_the_endpoint_is_the_fleets() {
    let wish = Error::new(ErrorKind::Unavailable, "busy")
        .with_status(StatusCode::TOO_MANY_REQUESTS)
        .with_retry_after(COOLDOWN * 6);
    let issuer = Issuer::new([Turn::Fail(SECOND, wish)]);
    let (_store, members) = fleet(&issuer).await;
    let results = refresh_all(&members).await;
    assert_eq!(kinds(&results, ErrorKind::CoolingDown), MEMBERS - 1, "{results:?}");
    tokio::time::advance(COOLDOWN * 5).await;
    assert!(members.iter().all(|member| member.state() == SessionState::CoolingDown));
    tokio::time::advance(COOLDOWN).await;
    assert!(members.iter().all(|member| member.state() == SessionState::Active));
    assert_eq!(issuer.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_a_person_has_to_do_is_shared_for_a_while() {
    let error = Error::new(ErrorKind::LoginRequired, "ask").with_oauth_error("consent_required");
    let issuer = Issuer::new([Turn::Fail(SECOND, error)]);
    let (_store, members) = fleet(&issuer).await;
    let results = refresh_all(&members).await;
    assert_eq!(issuer.calls(), 1);
    assert_eq!(kinds(&results, ErrorKind::LoginRequired), 1, "{results:?}");
    assert_eq!(kinds(&results, ErrorKind::CoolingDown), MEMBERS - 1, "{results:?}");
    tokio::time::advance(COOLDOWN).await;
    members[MEMBERS - 1].refresh().await.unwrap();
    assert_eq!(issuer.calls(), 2);
}

// ---- failures that concern one process

#[tokio::test(start_paused = true)]
async fn a_members_own_trouble_is_not_shared() {
    for kind in [ErrorKind::ClientRejected, ErrorKind::Unavailable, ErrorKind::InvalidConfig] {
        // A failed connection, which has no status.
        let issuer = Issuer::new([Turn::Fail(SECOND, Error::new(kind, "its own"))]);
        let (_store, members) = fleet(&issuer).await;
        let results = refresh_all(&members).await;
        assert_eq!(kinds(&results, kind), 1, "{results:?}");
        assert_eq!(results.iter().filter(|result| result.is_ok()).count(), MEMBERS - 1);
        assert_eq!(issuer.calls(), 2, "{kind:?}: the next one has its turn");
        let failed = results.iter().position(Result::is_err).unwrap();
        tokio::time::advance(COOLDOWN * 9 / 5).await;
        assert_eq!(members[failed].state(), SessionState::CoolingDown, "{kind:?}");
        tokio::time::advance(SECOND * 2).await;
        assert_eq!(members[failed].state(), SessionState::Active, "{kind:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_of_one_session_has_one_cooldown() {
    let error = Error::new(ErrorKind::ClientRejected, "its own");
    let issuer = Issuer::new([Turn::Fail(SECOND, error)]);
    let alone = builder(MemoryStore::default(), issuer.clone()).refresh_without_store();
    let alone = alone.build().unwrap();
    alone.refresh().await.unwrap_err();
    tokio::time::advance(COOLDOWN).await;
    assert_eq!(alone.state(), SessionState::Active);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_keeps_no_failures_shares_none() {
    let issuer = Issuer::new((0..MEMBERS).map(|_| down()));
    let store = FakeStore::holding(pair("t0", "r0"));
    let members = fleet_on(&store, &issuer);
    let results = refresh_all(&members).await;
    assert_eq!(kinds(&results, ErrorKind::Unavailable), MEMBERS, "{results:?}");
    assert_eq!(issuer.calls(), MEMBERS, "one after the other, as before");
    assert_eq!(issuer.most(), 1);
}

// ---- the end of a login

fn oauth(server: &AuthServer) -> OAuthRefresh {
    OAuthRefresh::new(server.token_endpoint()).client_id("fleet")
}

fn member(server: &AuthServer, store: &MemoryStore, given: &Tokens) -> SessionBuilder {
    Session::builder(given.clone())
        .origin(server.origin())
        .refresher(oauth(server))
        .store(store.clone())
}

async fn dead_fleet(server: &AuthServer) -> (MemoryStore, Tokens) {
    let (store, given) = (MemoryStore::default(), server.login());
    store.save(&store.lock().await.unwrap(), &given).await.unwrap();
    server.revoke("login-1");
    (store, given)
}

fn grant_type(call: &Recorded) -> String {
    crate::workers::form(call, "grant_type").unwrap()
}

#[tokio::test]
async fn a_dead_token_is_sent_once_by_a_fleet() {
    let server = AuthServer::start().await;
    let (store, given) = dead_fleet(&server).await;
    let members: Vec<_> =
        (0..MEMBERS).map(|_| member(&server, &store, &given).build().unwrap()).collect();
    for result in refresh_all(&members).await {
        let error = result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::LoginRequired);
        assert_eq!(error.oauth_error(), Some("invalid_grant"));
    }
    assert!(members.iter().all(|member| member.state() == SessionState::LoginRequired));
    assert_eq!(server.token_calls(), 1);
    let late = member(&server, &store, &given).restore().await.unwrap();
    assert_eq!(late.refresh().await.unwrap_err().kind(), ErrorKind::LoginRequired);
    assert_eq!(server.token_calls(), 1, "for good");

    // The caller asks for another try.
    members[0].replace_tokens(given.clone()).await.unwrap();
    assert_eq!(members[0].refresh().await.unwrap_err().kind(), ErrorKind::LoginRequired);
    assert_eq!(server.token_calls(), 2);
}

#[tokio::test]
async fn replace_tokens_frees_the_others() {
    let server = AuthServer::start().await;
    let (store, given) = dead_fleet(&server).await;
    let first = member(&server, &store, &given).build().unwrap();
    first.refresh().await.unwrap_err();
    first.replace_tokens(given.clone()).await.unwrap();
    let late = member(&server, &store, &given).build().unwrap();
    late.refresh().await.unwrap_err();
    assert_eq!(server.token_calls(), 2, "it has asked");
}

#[tokio::test]
async fn a_dead_token_of_other_clients_is_not_heeded() {
    let server = AuthServer::start().await;
    let (store, given) = dead_fleet(&server).await;
    member(&server, &store, &given).build().unwrap().refresh().await.unwrap_err();
    let others = [
        oauth(&server).client_id("other"),
        oauth(&server).scope("other"),
        OAuthRefresh::new(server.token_endpoint() + "?tenant=other").client_id("fleet"),
    ];
    for (calls, other) in (2..).zip(others) {
        let session = member(&server, &store, &given).refresher(other).build().unwrap();
        session.refresh().await.unwrap_err();
        assert_eq!(server.token_calls(), calls);
    }
}

#[tokio::test]
async fn a_dead_token_is_passed_over_by_or_else() {
    let server = AuthServer::start().await;
    let (store, given) = dead_fleet(&server).await;
    member(&server, &store, &given).build().unwrap().refresh().await.unwrap_err();
    let fresh = serde_json::json!({"access_token": "fresh", "token_type": "Bearer"});
    server.script_token_endpoint([Answer::Json(fresh)]);
    let other = OAuthRefresh::client_credentials(server.token_endpoint());
    let session = member(&server, &store, &given)
        .refresher(oauth(&server).or_else(other.client_secret_basic("service", "secret")));
    let session = session.build().unwrap();
    session.refresh().await.unwrap();
    assert_eq!(held(&session).0, "fresh");
    let asked: Vec<_> = server.token_requests().iter().map(grant_type).collect();
    assert_eq!(asked, ["refresh_token", "client_credentials"]);
}

#[tokio::test]
async fn a_given_token_is_tried_after_a_dead_one() {
    let server = AuthServer::start().await;
    let (store, dead) = dead_fleet(&server).await;
    member(&server, &store, &dead).build().unwrap().refresh().await.unwrap_err();
    let session = member(&server, &store, &server.login()).restore().await.unwrap();
    session.refresh().await.unwrap();
    assert_eq!(server.token_calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_logout_reaches_the_fleet() {
    let issuer = Issuer::new([]);
    let (store, members) = fleet(&issuer).await;
    for member in &members[..3] {
        member.refresh().await.unwrap();
    }
    members[0].clear().await.unwrap();
    let error = members[1].refresh().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LoginRequired);
    assert_eq!(members[1].state(), SessionState::LoginRequired);
    assert_eq!(issuer.calls(), 1, "nobody has asked for the login that is over");
    // A session with another login is not affected.
    let other = Session::builder(pair("other", "ro")).origin(ORIGIN).refresher(issuer.clone());
    let other = other.store(store.clone()).build().unwrap();
    other.refresh().await.unwrap();
    assert_eq!(issuer.asked().last().unwrap().as_deref(), Some("ro"));
    // The new login ends it.
    tokio::time::advance(COOLDOWN).await;
    members[1].refresh().await.unwrap();
    assert_eq!(held(&members[1]), held(&other));
}

// ---- a token that another process has just obtained

#[tokio::test(start_paused = true)]
async fn a_token_that_another_brought_is_on_trial() {
    let issuer = Issuer::new([]);
    let (_store, members) = fleet(&issuer).await;
    members[0].refresh().await.unwrap();
    // Adopts the token of the first session, which the API rejects too.
    let api = Api::new(|_| async { answer(401) });
    for calls in [1, 2] {
        let client = api.client(&members[1]);
        for _ in 0..3 {
            assert_eq!(client.get(url("/")).send().await.unwrap().status(), 401);
            assert_eq!(issuer.calls(), calls, "no two members take turns in renewing");
        }
        tokio::time::advance(COOLDOWN).await;
    }
}

// ---- on a file

/// A cool-down in real time that outlasts the test, however busy the machine is.
const LONG: Duration = Duration::from_secs(300);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fleet_on_a_file_makes_one_call() {
    let (server, dir) = (AuthServer::start().await, tempfile::tempdir().unwrap());
    let path = dir.path().join("tokens.json");
    let given = server.login();
    let hold = server.hold_token_calls();
    let members: Vec<_> = (0..20)
        .map(|_| {
            Session::builder(given.clone())
                .origin(server.origin())
                .refresher(oauth(&server))
                .store(FileStore::new(&path))
                .build()
                .unwrap()
        })
        .collect();
    let tasks: Vec<_> = members
        .iter()
        .map(|member| {
            let member = member.clone();
            tokio::spawn(async move { member.refresh().await })
        })
        .collect();
    hold.waiting(1).await;
    hold.release();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    assert_eq!(server.token_calls(), 1);
    assert_eq!(server.counts().reuses, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fleet_on_a_file_shares_an_outage() {
    let (server, dir) = (AuthServer::start().await, tempfile::tempdir().unwrap());
    let path = dir.path().join("tokens.json");
    let given = server.login();
    server.script_token_endpoint((0..40).map(|_| Answer::Status(503)));
    let attempts = 2;
    let session = || {
        let refresher = oauth(&server).max_attempts(attempts);
        let refresher = refresher.backoff(Duration::from_millis(1), Duration::from_millis(1));
        let builder = Session::builder(given.clone()).origin(server.origin());
        builder.cooldown(LONG).refresher(refresher).store(FileStore::new(&path)).build().unwrap()
    };
    let members: Vec<_> = (0..20).map(|_| session()).collect();
    let results = refresh_all(&members).await;
    assert_eq!(kinds(&results, ErrorKind::CoolingDown), 19, "{results:?}");
    assert_eq!(session().refresh().await.unwrap_err().kind(), ErrorKind::CoolingDown);
    assert_eq!(server.token_calls(), u64::from(attempts));
}

#[tokio::test]
async fn an_old_failure_on_a_file_counts_no_more() {
    let (server, dir) = (AuthServer::start().await, tempfile::tempdir().unwrap());
    let path = dir.path().join("tokens.json");
    let session = || {
        let builder = Session::builder(server.login()).origin(server.origin());
        let refresher = oauth(&server).max_attempts(1);
        builder.cooldown(LONG).refresher(refresher).store(FileStore::new(&path)).build().unwrap()
    };
    server.script_token_endpoint([Answer::Status(503)]);
    session().refresh().await.unwrap_err();
    assert_eq!(session().refresh().await.unwrap_err().kind(), ErrorKind::CoolingDown);
    let file =
        std::fs::File::options().write(true).open(dir.path().join("tokens.json.failure")).unwrap();
    file.set_modified(std::time::SystemTime::now() - LONG * 2).unwrap();
    session().refresh().await.unwrap();
}
