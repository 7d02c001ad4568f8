//! Promises that only a far or a random test held, each broken by a mutant of `tests/mutants.toml`.

use std::{
    future::pending,
    io::{Read, Seek},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use async_trait::async_trait;
use http::{HeaderMap, HeaderValue, StatusCode};
use reqwest_middleware::ClientBuilder;
use reqwest_reauth::{
    Authorize, CaptureFrom, ClientBuilderExt, Credential, Error, ErrorKind, Event, FileStore,
    MemoryStore, NotReplayed, OAuthRefresh, RefreshContext, Refresher, Session, SessionBuilder,
    SessionState, TokenStore, Tokens, ValidFor, refresh_with,
};
use reqwest_retry::{Jitter, RetryTransientMiddleware, policies::ExponentialBackoff};
use tokio::{
    sync::Semaphore,
    time::{Instant, advance, timeout},
};

use crate::raw::{Reply, Server};
use crate::support::{
    Api, Events, Issuer, ORIGIN, Turn, answer, error_of, held, never_asked, outcome_of, pair,
    settle,
    store::{self, Call, FakeStore, Fate},
    texts, unavailable, url,
};

const HEADER: &str = "refreshed-api-token";

fn builder(issuer: &Issuer) -> SessionBuilder {
    Session::builder(pair("t0", "r0")).origin(ORIGIN).refresher(issuer.clone())
}

// ---- the chain

/// Contract 1.6.
#[tokio::test(start_paused = true)]
async fn a_capture_of_the_replay_is_told() {
    let api = Api::new(|seen| async move {
        match seen.token() {
            Some("t0") => answer(401),
            _ => answer(200).header(HEADER, "next"),
        }
    });
    let session = builder(&Issuer::new([])).build().unwrap();
    let response = api.client(&session).get(url("/")).send().await.unwrap();
    let outcome = outcome_of(&response);
    assert!(outcome.replayed);
    assert!(outcome.refreshed);
    assert!(outcome.captured);
    assert_eq!(held(&session).0, "next");
}

/// Contract 1.6.
#[tokio::test(start_paused = true)]
async fn a_new_login_is_no_refresh() {
    let issuer = Issuer::new([Turn::Gated]);
    let api = Api::accepting(|token| token == "given");
    let session = builder(&issuer).build().unwrap();
    let client = api.client(&session);
    let request = tokio::spawn(client.get(url("/")).send());
    issuer.until_called(1).await;
    session.replace_tokens(pair("given", "rg")).await.unwrap();
    let outcome = outcome_of(&request.await.unwrap().unwrap());
    assert!(outcome.replayed);
    assert!(!outcome.refreshed);
}

/// Contract 1.5. Two chains of one session, as where a library wraps a client that has one already.
#[tokio::test(start_paused = true)]
async fn a_chain_above_is_no_caller() {
    let (api, events) = (Api::accepting(|_| true), Events::default());
    let session = builder(&Issuer::new([])).on_event(events.listener()).build().unwrap();
    let client = ClientBuilder::new(never_asked())
        .with_session(session.clone())
        .with_session(session)
        .with(api.clone())
        .build();
    client.get(url("/")).send().await.unwrap();
    assert_eq!(events.count(|event| matches!(event, Event::CallerAuthorization { .. })), 0);
    assert_eq!(api.tokens_seen(), ["t0"]);
}

/// Contract 3.2.
#[tokio::test(start_paused = true)]
async fn a_rule_is_asked_once_a_response() {
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    let api = Api::accepting(|token| token != "t0");
    let session = builder(&Issuer::new([]))
        .rejected_if(move |_, verdict| {
            counted.fetch_add(1, SeqCst);
            verdict.rejected
        })
        .build()
        .unwrap();
    assert_eq!(api.client(&session).get(url("/")).send().await.unwrap().status(), 200);
    assert_eq!(asked.load(SeqCst), api.seen().len());
}

/// Contract 3.2.
#[tokio::test(start_paused = true)]
async fn a_rule_learns_of_the_expiry() {
    let told = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&told);
    let api = Api::new(|_| async { answer(404) });
    let tokens = Tokens::new("t0").unwrap().with_expires_in(Duration::from_secs(60));
    let session = Session::builder(tokens)
        .origin(ORIGIN)
        .rejected_if(move |_, verdict| {
            counted.fetch_add(usize::from(verdict.token_expired), SeqCst);
            false
        })
        .build()
        .unwrap();
    let client = api.client(&session);
    client.get(url("/")).send().await.unwrap();
    assert_eq!(told.load(SeqCst), 0);
    advance(Duration::from_secs(61)).await;
    client.get(url("/")).send().await.unwrap();
    assert_eq!(told.load(SeqCst), 1);
}

/// Contract 3.4.
#[tokio::test(start_paused = true)]
async fn without_a_refresher_nothing_begins() {
    let (api, events) = (Api::accepting(|_| false), Events::default());
    let session = Session::builder(pair("t0", "r0"))
        .origin(ORIGIN)
        .on_event(events.listener())
        .build()
        .unwrap();
    assert_eq!(api.client(&session).get(url("/")).send().await.unwrap().status(), 401);
    assert_eq!(events.all().len(), 0);
    assert_eq!(session.state(), SessionState::Active);
}

/// Contract 2.6. Both tokens of a late response are left.
#[tokio::test(start_paused = true)]
async fn a_late_pair_is_left_whole() {
    let gate = Arc::new(Semaphore::new(0));
    let until = Arc::clone(&gate);
    let api = Api::new(move |_| {
        let until = Arc::clone(&until);
        async move {
            until.acquire().await.unwrap().forget();
            answer(200).header("access", "late").header("refresh", "later")
        }
    });
    let session = builder(&Issuer::new([]))
        .capture(CaptureFrom::header("access").refresh_header("refresh"))
        .build()
        .unwrap();
    let request = tokio::spawn(api.client(&session).get(url("/")).send());
    settle().await;
    session.refresh().await.unwrap();
    gate.add_permits(1);
    request.await.unwrap().unwrap();
    assert_eq!(held(&session), texts("t1", "r1"));
}

/// Contract 1.3. A refresh that it only joined leaves it its own.
#[tokio::test(start_paused = true)]
async fn a_request_that_joined_may_refresh() {
    let issuer = Issuer::new([Turn::Gated]);
    let api = Api::accepting(|token| token == "t2");
    let session = Session::builder(pair("t0", "r0").with_expires_in(Duration::ZERO))
        .origin(ORIGIN)
        .refresher(issuer.clone())
        .cooldown(Duration::ZERO)
        .build()
        .unwrap();
    let first = tokio::spawn({
        let session = session.clone();
        async move { session.refresh().await }
    });
    issuer.until_called(1).await;
    let request = tokio::spawn(api.client(&session).get(url("/")).send());
    settle().await;
    issuer.gate.add_permits(1);
    first.await.unwrap().unwrap();
    assert_eq!(request.await.unwrap().unwrap().status(), 200);
    assert_eq!(api.tokens_seen(), ["t1", "t2"]);
}

/// Contract 1.3.
#[tokio::test(start_paused = true)]
async fn a_refresh_before_sending_is_the_budget() {
    let session = Session::builder(pair("t0", "r0").with_expires_in(Duration::ZERO))
        .origin(ORIGIN)
        .refresher(Issuer::new([]))
        .cooldown(Duration::ZERO)
        .build()
        .unwrap();
    let api = Api::accepting(|_| false);
    let response = api.client(&session).get(url("/")).send().await.unwrap();
    assert_eq!(outcome_of(&response).not_replayed, Some(NotReplayed::AlreadyReplayed));
}

/// Contract 13.4. Where no token lives that long, and an outer retry tries again later.
#[tokio::test(start_paused = true)]
async fn a_long_life_is_asked_for_once() {
    let second = Duration::from_secs(1);
    let issue = || Turn::Issue(Duration::ZERO, Some(10 * second));
    let issuer = Issuer::new([issue(), issue()]);
    let api = Api::new(|_| async { answer(503) });
    let session = Session::builder(pair("t0", "r0").with_expires_in(5 * second))
        .origin(ORIGIN)
        .refresher(issuer.clone())
        .cooldown(Duration::ZERO)
        .build()
        .unwrap();
    // In the second half of the life of what was issued.
    let policy = ExponentialBackoff::builder()
        .retry_bounds(6 * second, 6 * second)
        .jitter(Jitter::None)
        .build_with_max_retries(1);
    let client = ClientBuilder::new(never_asked())
        .with(RetryTransientMiddleware::new_with_policy(policy))
        .with_session(session)
        .with(api.clone())
        .build();
    let request = client.get(url("/")).with_extension(ValidFor(60 * second));
    assert_eq!(request.send().await.unwrap().status(), 503);
    assert_eq!(api.tokens_seen(), ["t1", "t1"]);
    assert_eq!(issuer.calls(), 1);
}

/// Contract 3.6. No replay is needed for it.
#[tokio::test(start_paused = true)]
async fn a_token_that_nobody_accepted_is_kept() {
    let issuer = Issuer::new([]);
    let session = builder(&issuer).build().unwrap();
    let client = Api::accepting(|token| token == "t2").client(&session);
    session.refresh().await.unwrap();
    assert_eq!(client.get(url("/")).send().await.unwrap().status(), 401);
    assert_eq!(issuer.calls(), 1);
    advance(Duration::from_secs(11)).await;
    assert_eq!(client.get(url("/")).send().await.unwrap().status(), 200);
    assert_eq!(issuer.calls(), 2);
}

/// Contract 3.6.
#[tokio::test(start_paused = true)]
async fn an_accepted_token_is_renewed_at_once() {
    let issuer = Issuer::new([]);
    let good = Arc::new(AtomicUsize::new(1));
    let number = Arc::clone(&good);
    let api = Api::accepting(move |token| token == format!("t{}", number.load(SeqCst)));
    let session = builder(&issuer).build().unwrap();
    let client = api.client(&session);
    assert_eq!(client.get(url("/")).send().await.unwrap().status(), 200);
    good.store(2, SeqCst);
    assert_eq!(client.get(url("/")).send().await.unwrap().status(), 200);
    assert_eq!(issuer.calls(), 2);
}

/// Contract 3.6. The pause after a replay that was rejected too ends with the login.
#[tokio::test(start_paused = true)]
async fn a_new_login_is_renewed_at_once() {
    let issuer = Issuer::new([]);
    let api = Api::accepting(|token| token == "t2");
    let session = builder(&issuer).build().unwrap();
    let client = api.client(&session);
    assert_eq!(client.get(url("/")).send().await.unwrap().status(), 401);
    assert_eq!(client.get(url("/")).send().await.unwrap().status(), 401);
    assert_eq!(issuer.calls(), 1);
    session.replace_tokens(pair("given", "rg")).await.unwrap();
    assert_eq!(client.get(url("/")).send().await.unwrap().status(), 200);
    assert_eq!(issuer.calls(), 2);
}

/// Contract 1.1, 1.4.
#[tokio::test(start_paused = true)]
async fn authorize_alone_obeys_a_close() {
    let api = Api::accepting(|_| true);
    let session = builder(&Issuer::new([])).build().unwrap();
    let client = ClientBuilder::new(never_asked())
        .with(Authorize::new(session.clone()))
        .with(api.clone())
        .build();
    session.close().await.unwrap();
    assert_eq!(error_of(client.get(url("/")).send().await).kind(), ErrorKind::Closed);
    assert_eq!(api.seen().len(), 0);
}

// ---- the token endpoint

/// Contract 5.8.
#[tokio::test(start_paused = true)]
async fn the_default_cool_down_is_10_s() {
    let issuer = Issuer::new([
        Turn::Fail(Duration::ZERO, unavailable()),
        Turn::Fail(Duration::ZERO, unavailable()),
    ]);
    let api = Api::accepting(|token| token != "t0");
    let client = api.client(&builder(&issuer).build().unwrap());
    assert_eq!(error_of(client.get(url("/")).send().await).kind(), ErrorKind::Unavailable);
    advance(Duration::from_millis(9_900)).await;
    assert_eq!(error_of(client.get(url("/")).send().await).kind(), ErrorKind::CoolingDown);
    advance(Duration::from_millis(200)).await;
    assert_eq!(error_of(client.get(url("/")).send().await).kind(), ErrorKind::Unavailable);
    assert_eq!(issuer.calls(), 2);
}

/// Contract 5.7. It was never sent.
#[tokio::test(start_paused = true)]
async fn a_captured_refresh_token_has_no_mark() {
    let dead = Error::new(ErrorKind::LoginRequired, "scripted");
    let issuer = Issuer::new([Turn::Hang, Turn::Fail(Duration::ZERO, dead)]);
    let api = Api::new(|_| async { answer(200).header("access", "t1").header("refresh", "r1") });
    let session = builder(&issuer)
        .refresh_timeout(Duration::from_secs(1))
        .capture(CaptureFrom::header("access").refresh_header("refresh"))
        .build()
        .unwrap();
    assert!(session.refresh().await.unwrap_err().possibly_consumed());
    api.client(&session).get(url("/")).send().await.unwrap();
    assert_eq!(held(&session), texts("t1", "r1"));
    let error = session.refresh().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LoginRequired);
    assert!(!error.possibly_consumed());
}

/// Contract 14.3.
#[tokio::test(start_paused = true)]
async fn a_parameter_that_hangs_is_cut_off() {
    let refresher = OAuthRefresh::new("https://auth.example.com/token")
        .param_with("assertion", pending::<Result<String, _>>)
        .attempt_timeout(Duration::from_secs(3))
        .max_attempts(1);
    let session =
        Session::builder(pair("t0", "r0")).origin(ORIGIN).refresher(refresher).build().unwrap();
    let begun = Instant::now();
    let error = session.refresh().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(!error.possibly_consumed());
    assert_eq!(begun.elapsed(), Duration::from_secs(3));
}

/// Contract 14.2. A refresh token goes to the endpoint that issued it alone.
#[tokio::test]
async fn a_fallback_sees_no_refresh_token() {
    let dead = || Reply::status(400).json(r#"{"error":"invalid_grant"}"#);
    let server = Server::simple(move |_| dead()).await;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&seen);
    let other = refresh_with(move |tokens| {
        told.lock().unwrap().push(store::texts(&tokens));
        async { Tokens::new("t1") }
    });
    let refresher = OAuthRefresh::new(server.url("/token")).or_else(other);
    let session =
        Session::builder(pair("t0", "r0")).origin(ORIGIN).refresher(refresher).build().unwrap();
    session.refresh().await.unwrap();
    assert_eq!(*seen.lock().unwrap(), [texts("t0", "")]);
}

/// Contract 15.1.
#[tokio::test]
async fn an_error_names_its_token_endpoint() {
    let server = Server::simple(|_| Reply::status(401).json(r#"{"error":"invalid_client"}"#)).await;
    let session = Session::builder(pair("t0", "r0"))
        .origin(ORIGIN)
        .refresher(OAuthRefresh::new(server.url("/tenant/token")))
        .build()
        .unwrap();
    let error = session.refresh().await.unwrap_err().to_string();
    let host = server.origin().replace("http://", "");
    assert!(error.contains(&format!("token endpoint {host} ")), "{error}");
    assert!(!error.contains("tenant"), "{error}");
}

// ---- stores

/// Contract 10.1. An earlier version of this crate, which shares the store, writes no such mark.
#[tokio::test(start_paused = true)]
async fn rotation_is_not_unlearned_by_a_document() {
    let (issuer, store) = (Issuer::new([]), FakeStore::default());
    let session = builder(&issuer).store(store.clone()).build().unwrap();
    session.refresh().await.unwrap();
    assert_eq!(held(&session), texts("t1", "r1"));
    store.put(pair("theirs", "r9"));
    session.refresh().await.unwrap();
    assert_eq!(held(&session), texts("theirs", "r9"));
    store.always(Call::Lock, Fate::Down);
    assert_eq!(session.refresh().await.unwrap_err().kind(), ErrorKind::Store);
    assert_eq!(issuer.calls(), 1);
}

/// Contract 10.3. The logout before it has nothing to say of the login after it.
#[tokio::test(start_paused = true)]
async fn a_login_after_a_logout_looks_again() {
    let dead = Error::new(ErrorKind::LoginRequired, "scripted");
    let (issuer, store) = (Issuer::new([Turn::Fail(Duration::ZERO, dead)]), FakeStore::default());
    let api = Api::accepting(|token| token == "theirs");
    let session = builder(&issuer).store(store.clone()).build().unwrap();
    let client = api.client(&session);
    session.clear().await.unwrap();
    session.replace_tokens(pair("given", "rg")).await.unwrap();
    assert_eq!(error_of(client.get(url("/")).send().await).kind(), ErrorKind::LoginRequired);
    store.put(pair("theirs", "r9"));
    advance(Duration::from_secs(11)).await;
    assert_eq!(client.get(url("/")).send().await.unwrap().status(), 200);
}

/// Contract 10.8. One that stands still has the lock, and the next has what it needs.
#[tokio::test(start_paused = true)]
async fn a_stuck_waiter_holds_nobody_up() {
    let issuer = Issuer::new([Turn::Issue(Duration::from_secs(1), None)]);
    let store = MemoryStore::default();
    let member = || builder(&issuer).store(store.clone()).build().unwrap();
    let (first, second) = (member(), member());
    let first = tokio::spawn(async move { first.refresh().await });
    issuer.until_called(1).await;
    tokio::spawn({
        let store = store.clone();
        async move {
            let _lock = store.lock().await.unwrap();
            pending::<()>().await;
        }
    });
    settle().await;
    let others = timeout(Duration::from_secs(5), second.refresh()).await;
    others.expect("it waits for the lock").unwrap();
    first.await.unwrap().unwrap();
    assert_eq!(held(&second), texts("t1", "r1"));
    assert_eq!(issuer.calls(), 1);
}

/// Contract 10.4. Whoever has the old file open, or finds it after a crash, has all of it.
#[tokio::test]
async fn a_save_leaves_the_old_file_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("login.json");
    let store = FileStore::new(&path);
    let lock = store.lock().await.unwrap();
    store.save(&lock, &pair("first", "r1")).await.unwrap();
    let before = std::fs::read_to_string(&path).unwrap();
    let mut open = std::fs::File::open(&path).unwrap();
    store.save(&lock, &pair("second", "r2")).await.unwrap();
    let mut read = String::new();
    open.rewind().unwrap();
    open.read_to_string(&mut read).unwrap();
    assert_eq!(read, before);
    assert_ne!(std::fs::read_to_string(&path).unwrap(), before);
}

/// Contract 6.5. What a refresh brought is being saved when another login is given.
#[tokio::test(start_paused = true)]
async fn a_login_given_during_a_save_stays() {
    let (issuer, store) = (Issuer::new([]), FakeStore::default());
    store.next(Call::Save, [Fate::Gated]);
    let session = builder(&issuer).store(store.clone()).build().unwrap();
    let refresh = tokio::spawn({
        let session = session.clone();
        async move { session.refresh().await }
    });
    issuer.until_called(1).await;
    settle().await;
    let given = tokio::spawn({
        let session = session.clone();
        async move { session.replace_tokens(pair("given", "rg")).await }
    });
    settle().await;
    store.open_gate();
    given.await.unwrap().unwrap();
    refresh.await.unwrap().unwrap();
    session.close().await.unwrap();
    assert_eq!(held(&session), texts("given", "rg"));
    assert_eq!(store.saves(), [texts("t1", "r1"), texts("given", "rg")]);
}

/// A session that is being refreshed, and one request of which has brought a token. The store did
/// not take it.
async fn unsaved_during_a_refresh(store: &FakeStore) -> Session {
    let issuer = Issuer::new([Turn::Hang]);
    let api = Api::new(|_| async { answer(200).header(HEADER, "captured") });
    let session = builder(&issuer).store(store.clone()).build().unwrap();
    tokio::spawn({
        let session = session.clone();
        async move { session.refresh().await }
    });
    issuer.until_called(1).await;
    store.always(Call::Save, Fate::Down);
    api.client(&session).get(url("/")).send().await.unwrap();
    settle().await;
    assert_eq!(held(&session).0, "captured");
    assert_eq!(store.saves(), []);
    session
}

/// Contract 12.4.
#[tokio::test(start_paused = true)]
async fn a_shutdown_saves_before_the_call_ends() {
    let store = FakeStore::default();
    let session = unsaved_during_a_refresh(&store).await;
    store.heal();
    let error = session.close_within(Duration::from_secs(1)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut, "the call is still out");
    assert_eq!(store.saves(), [texts("captured", "r0")]);
}

/// Contract 12.4.
#[tokio::test(start_paused = true)]
async fn a_store_down_at_the_end_is_told() {
    let store = FakeStore::default();
    store.always(Call::Save, Fate::Down);
    let api = Api::new(|_| async { answer(200).header(HEADER, "captured") });
    let session = builder(&Issuer::new([])).store(store.clone()).build().unwrap();
    api.client(&session).get(url("/")).send().await.unwrap();
    let error = session.close_within(Duration::from_secs(5)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    assert_eq!(store.saves(), []);
}

// ---- tokens for other clients

fn rejects_with_403(session: &Session, credential: &Credential) -> bool {
    session.observe(credential, url("/"), StatusCode::FORBIDDEN, &HeaderMap::new()).rejected
}

/// Contract 16.6, 2.5.
#[tokio::test(start_paused = true)]
async fn a_foreign_403_to_a_renewed_token_rejects() {
    let session = builder(&Issuer::new([])).build().unwrap();
    let old = session.credential(url("/")).await.unwrap();
    assert!(!rejects_with_403(&session, &old));
    session.refresh().await.unwrap();
    assert!(rejects_with_403(&session, &old));
    let new = session.credential(url("/")).await.unwrap();
    assert!(!rejects_with_403(&session, &new));
}

/// Contract 16.6.
#[tokio::test(start_paused = true)]
async fn observe_is_of_the_credentials_session() {
    let session = builder(&Issuer::new([])).build().unwrap();
    let other = builder(&Issuer::new([])).build().unwrap();
    let foreign = other.credential(url("/")).await.unwrap();
    let headers =
        HeaderMap::from_iter([(HEADER.parse().unwrap(), HeaderValue::from_static("captured"))]);
    let verdict = session.observe(&foreign, url("/"), StatusCode::UNAUTHORIZED, &headers);
    assert!(!verdict.rejected);
    assert!(!verdict.captured);
    assert_eq!(held(&session), texts("t0", "r0"));
    assert!(other.observe(&foreign, url("/"), StatusCode::UNAUTHORIZED, &headers).rejected);
}

// ---- logout

/// Revokes for ever.
struct Revoker;

#[async_trait]
impl Refresher for Revoker {
    async fn refresh(&self, _: &RefreshContext) -> Result<Tokens, Error> {
        Err(unavailable())
    }

    fn can_revoke(&self) -> bool {
        true
    }

    async fn revoke(&self, _: &Tokens) -> Result<(), Error> {
        pending().await
    }
}

/// Contract 14.5.
#[tokio::test(start_paused = true)]
async fn a_logout_forgets_before_it_revokes() {
    let store = FakeStore::holding(pair("t0", "r0"));
    let session = Session::builder(pair("t0", "r0"))
        .origin(ORIGIN)
        .refresher(Revoker)
        .store(store.clone())
        .build()
        .unwrap();
    let begun = Instant::now();
    let logout = tokio::spawn({
        let session = session.clone();
        async move { session.clear().await }
    });
    settle().await;
    assert_eq!(begun.elapsed(), Duration::ZERO);
    assert!(!logout.is_finished());
    assert_eq!(held(&session), texts("", ""));
    assert_eq!(store.held(), None);
    logout.await.unwrap().unwrap();
}
