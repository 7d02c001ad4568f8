//! A session and its store (contract §10, the session's side).

use std::time::Duration;

use crate::support::{
    Api, Events, Issuer, ORIGIN, Turn, answer, error_of, held, pair, settle,
    store::{Call, FakeStore, Fate, Op},
    texts, unavailable, until, url,
};
use reqwest_reauth::{
    Error, ErrorKind, Event, RefreshContext, RefreshToken, Refresher, Session, SessionBuilder,
    SessionState, Tokens,
};
use tokio::time::Instant;

const SECOND: Duration = Duration::from_secs(1);

fn builder(issuer: &Issuer, store: &FakeStore) -> SessionBuilder {
    Session::builder(pair("t0", "r0")).origin(ORIGIN).refresher(issuer.clone()).store(store.clone())
}

fn session(issuer: &Issuer, store: &FakeStore) -> Session {
    builder(issuer, store).build().unwrap()
}

fn dead() -> Error {
    Error::new(ErrorKind::LoginRequired, "scripted")
}

fn failures(events: &Events) -> usize {
    events.count(|event| matches!(event, Event::StoreFailed { .. }))
}

/// Responds to all requests with 200 and this token.
fn reissuing(token: &str) -> Api {
    let token = token.to_owned();
    Api::new(move |_| {
        let answer = answer(200).header("refreshed-api-token", &token);
        async move { answer }
    })
}

#[tokio::test(start_paused = true)]
async fn a_grant_is_saved_before_it_is_used() {
    let (issuer, store) = (Issuer::new([]), FakeStore::default());
    store.next(Call::Save, [Fate::Gated]);
    let session = session(&issuer, &store);
    let refresh = tokio::spawn({
        let session = session.clone();
        async move { session.refresh().await }
    });
    issuer.until_called(1).await;
    settle().await;
    assert_eq!(session.generation(), 1);
    assert_eq!(store.held(), None);
    store.open_gate();
    refresh.await.unwrap().unwrap();
    assert_eq!(held(&session), texts("t1", "r1"));
    assert_eq!(store.held(), Some(texts("t1", "r1")));
    store.assert_orderly();
    assert!(store.is_free());
}

#[tokio::test(start_paused = true)]
async fn stored_tokens_precede_given_ones() {
    let (issuer, store) = (Issuer::new([]), FakeStore::holding(pair("s", "rs")));
    let session = session(&issuer, &store);
    let api = Api::accepting(|token| token == "s");
    assert_eq!(api.client(&session).get(url("/")).send().await.unwrap().status(), 200);
    assert_eq!(issuer.calls(), 0);
    assert_eq!(api.tokens_seen(), ["t0", "s"]);
    assert_eq!(held(&session), texts("s", "rs"));
    assert!(store.saves().is_empty());
    session.refresh().await.unwrap();
    assert_eq!(issuer.asked(), [Some("rs".to_owned())]);
}

#[tokio::test(start_paused = true)]
async fn a_dead_stored_token_yields_to_the_given() {
    let issuer = Issuer::new([Turn::Fail(SECOND, dead()), Turn::Issue(SECOND, None)]);
    let store = FakeStore::holding(Tokens::from_refresh_token("rs").unwrap());
    let session = session(&issuer, &store);
    session.refresh().await.unwrap();
    assert_eq!(issuer.asked(), [Some("rs".to_owned()), Some("r0".to_owned())]);
    assert_eq!(store.held(), Some(texts("t2", "r2")));
    store.assert_orderly();
}

#[tokio::test(start_paused = true)]
async fn both_dead_is_login_required() {
    let issuer = Issuer::new([Turn::Fail(SECOND, dead()), Turn::Fail(SECOND, dead())]);
    let store = FakeStore::holding(Tokens::from_refresh_token("rs").unwrap());
    let session = session(&issuer, &store);
    assert_eq!(session.refresh().await.unwrap_err().kind(), ErrorKind::LoginRequired);
    assert_eq!(issuer.calls(), 2);
    assert_eq!(session.state(), SessionState::LoginRequired);

    let issuer = Issuer::new([Turn::Fail(SECOND, dead())]);
    let store = FakeStore::holding(Tokens::from_refresh_token("rs").unwrap());
    let alone = Session::builder(Tokens::empty())
        .origin(ORIGIN)
        .refresher(issuer.clone())
        .store(store)
        .build()
        .unwrap();
    let error = alone.refresh().await.unwrap_err();
    assert!(error.kind() == ErrorKind::LoginRequired && error.possibly_consumed());
}

#[tokio::test(start_paused = true)]
async fn invalid_grant_looks_into_the_store() {
    let (issuer, store) =
        (Issuer::new([Turn::Fail(SECOND, dead())]), FakeStore::holding(pair("t0", "r0")));
    let session = session(&issuer, &store);
    let refresh = tokio::spawn({
        let session = session.clone();
        async move { session.refresh().await }
    });
    issuer.until_called(1).await;
    store.put(pair("other", "ro"));
    refresh.await.unwrap().unwrap();
    assert_eq!(issuer.calls(), 1);
    assert_eq!(held(&session), texts("other", "ro"));
}

#[tokio::test(start_paused = true)]
async fn restore_serves_the_first_request() {
    let (issuer, store) = (Issuer::new([]), FakeStore::holding(pair("s", "rs")));
    let session = builder(&issuer, &store).restore().await.unwrap();
    let api = Api::accepting(|token| token == "s");
    assert_eq!(api.client(&session).get(url("/")).send().await.unwrap().status(), 200);
    assert_eq!(api.seen().len(), 1);
    assert_eq!(issuer.calls(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_expired_restored_token_is_renewed() {
    let ended = pair("s", "rs").with_expires_at(std::time::SystemTime::now() - SECOND);
    let (issuer, store) = (Issuer::new([]), FakeStore::holding(ended));
    let given = Tokens::from_refresh_token("r0").unwrap();
    let session = Session::builder(given).origin(ORIGIN).refresher(issuer.clone());
    let session = session.store(store.clone()).restore().await.unwrap();
    let api = Api::accepting(|_| true);
    assert_eq!(api.client(&session).get(url("/")).send().await.unwrap().status(), 200);
    assert_eq!(api.tokens_seen(), ["t1"]);
    assert_eq!(issuer.asked(), vec![Some("rs".into())]);
}

#[tokio::test(start_paused = true)]
async fn restore_fails_only_without_tokens() {
    let (issuer, store, events) = (Issuer::new([]), FakeStore::default(), Events::default());
    store.always(Call::Load, Fate::Hang);
    let begun = Instant::now();
    let given = builder(&issuer, &store).on_event(events.listener()).restore().await.unwrap();
    assert_eq!(held(&given), texts("t0", "r0"));
    assert_eq!(begun.elapsed(), 5 * SECOND);
    assert_eq!(failures(&events), 1);
    let none = Session::builder(Tokens::empty()).origin(ORIGIN).store(store).restore().await;
    assert_eq!(none.unwrap_err().kind(), ErrorKind::Store);
}

#[tokio::test(start_paused = true)]
async fn a_broken_store_fails_no_request() {
    for fate in [Fate::Down, Fate::Hang, Fate::Panic] {
        for call in [Call::Load, Call::Save, Call::Lock] {
            if (call, fate) == (Call::Lock, Fate::Hang) {
                continue; // A lock that another holds is waited for.
            }
            let (issuer, store, events) =
                (Issuer::new([]), FakeStore::default(), Events::default());
            store.always(call, fate);
            let session = builder(&issuer, &store).on_event(events.listener()).build().unwrap();
            let api = Api::accepting(|token| token == "t1");
            let response = api.client(&session).get(url("/")).send().await;
            assert_eq!(response.unwrap().status(), 200, "{call:?} {fate:?}");
            assert_eq!(held(&session), texts("t1", "r1"), "{call:?} {fate:?}");
            assert_eq!(issuer.calls(), 1, "{call:?} {fate:?}");
            assert!(failures(&events) > 0, "{call:?} {fate:?}");
            assert!(store.is_free(), "{call:?} {fate:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_unsaved_token_is_saved_before_use() {
    let (issuer, store, events) = (Issuer::new([]), FakeStore::default(), Events::default());
    store.next(Call::Save, [Fate::Down]);
    let session = builder(&issuer, &store).on_event(events.listener()).build().unwrap();
    session.refresh().await.unwrap();
    assert_eq!(store.held(), None);
    assert_eq!(failures(&events), 1);
    session.refresh().await.unwrap();
    assert_eq!(store.saves(), [texts("t1", "r1"), texts("t2", "r2")]);
    assert_eq!(issuer.asked(), [Some("r0".to_owned()), Some("r1".to_owned())]);
    store.assert_orderly();
}

#[tokio::test(start_paused = true)]
async fn unsaved_tokens_yield_to_newer_ones() {
    let (issuer, store) = (Issuer::new([]), FakeStore::holding(pair("t0", "r0")));
    store.next(Call::Save, [Fate::Down]);
    let session = session(&issuer, &store);
    session.refresh().await.unwrap();
    store.put(pair("other", "ro"));
    session.refresh().await.unwrap();
    assert_eq!(held(&session), texts("other", "ro"));
    assert_eq!(issuer.calls(), 1);
    assert!(store.saves().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_save_that_claims_failure_is_recognised() {
    let (issuer, store) = (Issuer::new([]), FakeStore::default());
    store.next(Call::Save, [Fate::Lies]);
    let session = session(&issuer, &store);
    session.refresh().await.unwrap();
    session.refresh().await.unwrap();
    assert_eq!(issuer.calls(), 2);
    assert_eq!(held(&session), texts("t2", "r2"));
    assert_eq!(issuer.asked(), [Some("r0".to_owned()), Some("r1".to_owned())]);
}

#[tokio::test(start_paused = true)]
async fn after_the_lock_a_newer_token_is_adopted() {
    let (issuer, store) = (Issuer::new([]), FakeStore::default());
    let session = session(&issuer, &store);
    let other = store.occupy().await;
    let refresh = tokio::spawn({
        let session = session.clone();
        async move { session.refresh().await }
    });
    until(&session, SessionState::Refreshing).await;
    tokio::time::sleep(30 * SECOND).await;
    store.put(pair("other", "ro"));
    drop(other);
    refresh.await.unwrap().unwrap();
    assert_eq!(issuer.calls(), 0);
    assert_eq!(held(&session), texts("other", "ro"));
}

#[tokio::test(start_paused = true)]
async fn a_lock_never_free_ends_the_refresh() {
    let (issuer, store) = (Issuer::new([]), FakeStore::default());
    let session = session(&issuer, &store);
    let other = store.occupy().await;
    let begun = Instant::now();
    let api = Api::accepting(|_| false);
    let error = error_of(api.client(&session).get(url("/")).send().await);
    assert_eq!(error.kind(), ErrorKind::Store);
    assert_eq!(error.api_status().unwrap().as_u16(), 401);
    assert_eq!(begun.elapsed(), 90 * SECOND);
    assert_eq!(issuer.calls(), 0);
    assert_eq!(session.state(), SessionState::CoolingDown);
    drop(other);
    assert!(store.is_free());
}

#[tokio::test(start_paused = true)]
async fn captures_are_saved_in_order_behind() {
    let (issuer, store) = (Issuer::new([]), FakeStore::default());
    let session = session(&issuer, &store);
    store.next(Call::Save, [Fate::Gated]);
    for token in ["c1", "c2", "c3"] {
        reissuing(token).client(&session).get(url("/")).send().await.unwrap();
        settle().await;
    }
    assert_eq!(held(&session), texts("c3", "r0"));
    assert_eq!(store.held(), None);
    store.open_gate();
    store.until(|ops| ops.ends_with(&[Op::Save("c3".into(), "r0".into()), Op::Unlock])).await;
    assert_eq!(store.saves(), [texts("c1", "r0"), texts("c3", "r0")]);
    store.assert_orderly();
    assert_eq!(issuer.calls(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_capture_never_undoes_a_rotation() {
    let (issuer, store) = (Issuer::new([]), FakeStore::holding(pair("t0", "r0")));
    let session = session(&issuer, &store);
    store.put(pair("other", "ro"));
    reissuing("c1").client(&session).get(url("/")).send().await.unwrap();
    store.until(|ops| ops.ends_with(&[Op::Unlock])).await;
    // The stored tokens stay, and are not mixed with those of this session.
    assert_eq!(store.held(), Some(texts("other", "ro")));
    assert_eq!(held(&session), texts("c1", "r0"));
    // The next refresh decides.
    session.refresh().await.unwrap();
    assert_eq!(held(&session), texts("other", "ro"));
    assert_eq!(issuer.calls(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_late_save_is_recognised() {
    let (issuer, store) = (Issuer::new([]), FakeStore::default());
    store.next(Call::Save, [Fate::Lies, Fate::Down, Fate::Down]);
    let session = builder(&issuer, &store).refresh_without_store().build().unwrap();
    session.refresh().await.unwrap();
    store.next(Call::Load, [Fate::Down]);
    session.refresh().await.unwrap();
    assert_eq!(store.held(), Some(texts("t1", "r1")));
    assert_eq!(held(&session), texts("t2", "r2"));
    session.refresh().await.unwrap();
    let asked = ["r0", "r1", "r2"].map(|refresh| Some(refresh.to_owned()));
    assert_eq!(issuer.asked(), asked.to_vec());
    assert_eq!(held(&session), texts("t3", "r3"));
}

#[tokio::test(start_paused = true)]
async fn a_capture_keeps_the_given_refresh_token() {
    let issuer = Issuer::new([Turn::Fail(SECOND, dead()), Turn::Issue(SECOND, None)]);
    let store = FakeStore::holding(pair("old", "ro"));
    let session = session(&issuer, &store);
    reissuing("c1").client(&session).get(url("/")).send().await.unwrap();
    store.until(|ops| ops.ends_with(&[Op::Unlock])).await;
    assert_eq!(store.held(), Some(texts("old", "ro")));
    // The session tries the stored access token, then its refresh token, then the given one.
    session.refresh().await.unwrap();
    assert_eq!(held(&session), texts("old", "ro"));
    session.refresh().await.unwrap();
    assert_eq!(issuer.asked(), [Some("ro".to_owned()), Some("r0".to_owned())]);
}

/// A token that is known but unusable: it has expired, and there is no refresh token.
fn ended() -> Tokens {
    Tokens::new("ended").unwrap().with_expires_in(Duration::ZERO)
}

#[tokio::test(start_paused = true)]
async fn a_private_dead_token_was_not_consumed() {
    for (store, adopts) in [
        (FakeStore::default(), false),
        (FakeStore::holding(ended()), false),
        (FakeStore::holding(Tokens::new("alone").unwrap()), true),
    ] {
        let issuer = Issuer::new([Turn::Fail(SECOND, dead())]);
        let session = session(&issuer, &store);
        if adopts {
            session.refresh().await.unwrap();
            assert_eq!(held(&session), texts("alone", "r0"));
            assert_eq!(issuer.calls(), 0);
        }
        let error = session.refresh().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::LoginRequired);
        assert_eq!(issuer.asked(), vec![Some("r0".to_owned())]);
        assert!(!error.possibly_consumed());
    }
}

#[tokio::test(start_paused = true)]
async fn a_stored_dead_token_may_be_consumed() {
    // Taken from there.
    let issuer = Issuer::new([Turn::Fail(SECOND, unavailable()), Turn::Fail(SECOND, dead())]);
    let store = FakeStore::holding(Tokens::from_refresh_token("rs").unwrap());
    let taking = Session::builder(Tokens::empty())
        .origin(ORIGIN)
        .refresher(issuer.clone())
        .store(store.clone());
    let taking = taking.build().unwrap();
    assert_eq!(taking.refresh().await.unwrap_err().kind(), ErrorKind::Unavailable);
    store.put(ended());
    assert!(taking.refresh().await.unwrap_err().possibly_consumed());
    assert_eq!(issuer.asked(), ["rs", "rs"].map(|refresh| Some(refresh.to_owned())));

    // Put there.
    let issuer = Issuer::new([Turn::Issue(SECOND, None), Turn::Fail(SECOND, dead())]);
    let store = FakeStore::default();
    let putting = session(&issuer, &store);
    putting.refresh().await.unwrap();
    store.put(ended());
    assert!(putting.refresh().await.unwrap_err().possibly_consumed());
    assert_eq!(issuer.asked(), ["r0", "r1"].map(|refresh| Some(refresh.to_owned())));
}

#[tokio::test(start_paused = true)]
async fn an_outage_keeps_the_given_token_unused() {
    let issuer = Issuer::new([Turn::Fail(SECOND, unavailable())]);
    let store = FakeStore::holding(Tokens::from_refresh_token("rs").unwrap());
    let session = session(&issuer, &store);
    assert_eq!(session.refresh().await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(issuer.asked(), [Some("rs".to_owned())]);
}

#[tokio::test(start_paused = true)]
async fn a_dead_restored_token_yields_to_the_given() {
    let issuer = Issuer::new([Turn::Fail(SECOND, dead()), Turn::Issue(SECOND, None)]);
    let store = FakeStore::holding(Tokens::from_refresh_token("rs").unwrap());
    let session = builder(&issuer, &store).restore().await.unwrap();
    session.refresh().await.unwrap();
    assert_eq!(issuer.asked(), [Some("rs".to_owned()), Some("r0".to_owned())]);
}

#[tokio::test(start_paused = true)]
async fn a_stored_given_token_is_no_fallback() {
    // Found there.
    let (issuer, store) =
        (Issuer::new([Turn::Fail(SECOND, dead())]), FakeStore::holding(pair("t0", "r0")));
    let restored = builder(&issuer, &store).restore().await.unwrap();
    store.put(Tokens::from_refresh_token("ro").unwrap());
    assert_eq!(restored.refresh().await.unwrap_err().kind(), ErrorKind::LoginRequired);
    assert_eq!(issuer.asked(), [Some("ro".to_owned())]);

    // Put there.
    let (issuer, store) = (Issuer::new([Turn::Fail(SECOND, dead())]), FakeStore::default());
    let capturing = session(&issuer, &store);
    reissuing("c1").client(&capturing).get(url("/")).send().await.unwrap();
    store.until(|ops| ops.ends_with(&[Op::Save("c1".into(), "r0".into()), Op::Unlock])).await;
    store.put(Tokens::from_refresh_token("ro").unwrap());
    assert_eq!(capturing.refresh().await.unwrap_err().kind(), ErrorKind::LoginRequired);
    assert_eq!(issuer.asked(), [Some("ro".to_owned())]);
}

#[tokio::test(start_paused = true)]
async fn a_saver_leaves_what_it_found_to_the_refresh() {
    let (issuer, store) = (Issuer::new([]), FakeStore::holding(pair("t0", "r0")));
    let session = session(&issuer, &store);
    let other = store.occupy().await;
    // The save is ahead of the refresh in the queue for the lock.
    reissuing("c1").client(&session).get(url("/")).send().await.unwrap();
    settle().await;
    let refresh = tokio::spawn({
        let session = session.clone();
        async move { session.refresh().await }
    });
    until(&session, SessionState::Refreshing).await;
    settle().await;
    store.put(pair("other", "ro"));
    drop(other);
    refresh.await.unwrap().unwrap();
    assert_eq!(held(&session), texts("other", "ro"));
    assert!(issuer.asked().is_empty() && store.saves().is_empty());
}

#[tokio::test(start_paused = true)]
async fn saved_tokens_are_not_saved_again() {
    let (issuer, store) = (Issuer::new([]), FakeStore::default());
    let session = session(&issuer, &store);
    session.refresh().await.unwrap();
    session.refresh().await.unwrap();
    session.close().await.unwrap();
    assert_eq!(store.saves(), [texts("t1", "r1"), texts("t2", "r2")]);
}

#[tokio::test(start_paused = true)]
async fn the_kept_refresh_token_is_the_dead_one() {
    /// Returns a new refresh token without an access token, and then gets an `invalid_grant`.
    struct KeepsThenFails;

    #[async_trait::async_trait]
    impl Refresher for KeepsThenFails {
        async fn refresh(&self, context: &RefreshContext) -> Result<Tokens, Error> {
            context.keep(RefreshToken::new("r1")?).await;
            Err(dead())
        }
    }

    let store = FakeStore::default();
    let session = Session::builder(pair("t0", "r0"))
        .origin(ORIGIN)
        .refresher(KeepsThenFails)
        .store(store.clone());
    let error = session.build().unwrap().refresh().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LoginRequired);
    assert_eq!(store.held(), Some(texts("t0", "r1")));
    // It was in the store, where another process may have found and spent it.
    assert!(error.possibly_consumed());
}

#[tokio::test(start_paused = true)]
async fn close_waits_for_a_captures_save() {
    let (issuer, store) = (Issuer::new([]), FakeStore::default());
    let session = session(&issuer, &store);
    reissuing("c1").client(&session).get(url("/")).send().await.unwrap();
    let begun = Instant::now();
    session.close().await.unwrap();
    assert_eq!(store.saves(), vec![texts("c1", "r0")]);
    assert_eq!(begun.elapsed(), Duration::ZERO);
}
