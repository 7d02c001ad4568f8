//! A session and its store when something goes wrong between two steps (contract §6.5, §10.1,
//! §10.2).

use std::time::Duration;

use crate::support::{
    Api, Issuer, ORIGIN, Turn, answer, held, pair, settle,
    store::{Call, FakeStore, Fate, Op},
    texts, until, url,
};
use reqwest_reauth::{ErrorKind, Session, SessionState, Tokens};

const SECOND: Duration = Duration::from_secs(1);

fn session(issuer: &Issuer, store: &FakeStore) -> Session {
    Session::builder(pair("t0", "r0"))
        .origin(ORIGIN)
        .refresher(issuer.clone())
        .store(store.clone())
        .build()
        .unwrap()
}

fn reissuing(token: &'static str) -> Api {
    Api::new(move |_| async move { answer(200).header("refreshed-api-token", token) })
}

#[tokio::test(start_paused = true)]
async fn a_capture_overwrites_nothing_unseen() {
    let (issuer, store) = (Issuer::new([]), FakeStore::holding(pair("other", "ro")));
    store.next(Call::Load, [Fate::Down]);
    let session = session(&issuer, &store);
    reissuing("c1").client(&session).get(url("/")).send().await.unwrap();
    store.until(|ops| ops.ends_with(&[Op::Unlock])).await;
    assert_eq!(store.held(), Some(texts("other", "ro")));
    reissuing("c2").client(&session).get(url("/")).send().await.unwrap();
    let unlocks = |ops: &[Op]| ops.iter().filter(|op| **op == Op::Unlock).count();
    store.until(|ops| unlocks(ops) == 2).await;
    assert_eq!(store.held(), Some(texts("other", "ro")));
    assert_eq!(held(&session), texts("c2", "r0"));
}

#[tokio::test(start_paused = true)]
async fn an_unsaved_login_survives_the_old_one() {
    let (issuer, store) = (Issuer::new([]), FakeStore::holding(pair("old", "ro")));
    let session = session(&issuer, &store);
    store.next(Call::Lock, [Fate::Down]);
    assert_eq!(
        session.replace_tokens(pair("new", "rn")).await.unwrap_err().kind(),
        ErrorKind::Store
    );
    assert_eq!(held(&session), texts("new", "rn"));
    session.refresh().await.unwrap();
    assert_eq!(issuer.asked(), [Some("rn".to_owned())]);
    assert_eq!(store.saves(), [texts("new", "rn"), texts("t1", "r1")]);
    store.assert_orderly();
}

#[tokio::test(start_paused = true)]
async fn a_refresh_never_adopts_the_old_login() {
    let (issuer, store) = (Issuer::new([]), FakeStore::holding(pair("old", "ro")));
    let session = session(&issuer, &store);
    let other = store.occupy().await;
    let refresh = tokio::spawn({
        let session = session.clone();
        async move {
            session.refresh().await.unwrap();
            session.refresh().await
        }
    });
    until(&session, SessionState::Refreshing).await;
    settle().await;
    let replace = tokio::spawn({
        let session = session.clone();
        async move { session.replace_tokens(pair("new", "rn")).await }
    });
    settle().await;
    drop(other);
    refresh.await.unwrap().unwrap();
    replace.await.unwrap().unwrap();
    assert_eq!(issuer.asked(), vec![Some("rn".to_owned())]);
    assert_eq!(held(&session), texts("t1", "r1"));
    assert_eq!(store.held(), Some(texts("t1", "r1")));
}

#[tokio::test(start_paused = true)]
async fn a_dropped_logins_save_precedes_its_use() {
    let (issuer, store) = (Issuer::new([]), FakeStore::default());
    let session = session(&issuer, &store);
    store.next(Call::Save, [Fate::Hang]);
    let replace = tokio::time::timeout(SECOND, session.replace_tokens(pair("new", "rn")));
    replace.await.unwrap_err();
    assert_eq!(store.held(), None);
    session.refresh().await.unwrap();
    assert_eq!(store.saves(), [texts("new", "rn"), texts("t1", "r1")]);
}

#[tokio::test(start_paused = true)]
async fn a_superseded_refresh_saves_nothing() {
    let (issuer, store) = (Issuer::new([]), FakeStore::default());
    let session = session(&issuer, &store);
    // The refresh has no lock, and waits for one when it wants to save. The save of the new login
    // gets it first.
    store.next(Call::Lock, [Fate::Down, Fate::Gated]);
    let refresh = tokio::spawn({
        let session = session.clone();
        async move { session.refresh().await }
    });
    issuer.until_called(1).await;
    settle().await;
    session.replace_tokens(pair("new", "rn")).await.unwrap();
    store.open_gate();
    refresh.await.unwrap().unwrap();
    session.close().await.unwrap();
    assert_eq!(store.held(), Some(texts("new", "rn")));
    assert_eq!(held(&session), texts("new", "rn"));
}

#[tokio::test(start_paused = true)]
async fn without_the_lock_newer_tokens_stay() {
    let (issuer, store) = (Issuer::new([Turn::Gated]), FakeStore::holding(pair("t0", "r0")));
    let session = session(&issuer, &store);
    store.next(Call::Lock, [Fate::Down]);
    let refresh = tokio::spawn({
        let session = session.clone();
        async move { session.refresh().await }
    });
    issuer.until_called(1).await;
    store.put(pair("other", "ro"));
    issuer.gate.add_permits(1);
    refresh.await.unwrap().unwrap();
    assert_eq!(store.held(), Some(texts("other", "ro")));
    assert_eq!(held(&session), texts("t1", "r1"));
    // The next refresh uses the tokens of the other process.
    session.refresh().await.unwrap();
    assert_eq!(held(&session), texts("other", "ro"));
    assert_eq!(issuer.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn clear_empties_the_store_for_good() {
    let (issuer, store) = (Issuer::new([]), FakeStore::holding(pair("t0", "r0")));
    let session = session(&issuer, &store);
    store.next(Call::Save, [Fate::Gated]);
    reissuing("c1").client(&session).get(url("/")).send().await.unwrap();
    settle().await;
    let clear = tokio::spawn({
        let session = session.clone();
        async move { session.clear().await }
    });
    settle().await;
    store.open_gate();
    clear.await.unwrap().unwrap();
    session.close().await.unwrap();
    assert_eq!(store.held(), None);
    assert!(session.tokens().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_failing_clear_still_logs_out() {
    let (issuer, store) = (Issuer::new([]), FakeStore::holding(pair("t0", "r0")));
    let session = session(&issuer, &store);
    store.next(Call::Clear, [Fate::Down]);
    assert_eq!(session.clear().await.unwrap_err().kind(), ErrorKind::Store);
    assert_eq!(session.state(), SessionState::LoginRequired);
    assert!(session.tokens().is_none());
    assert_eq!(session.refresh().await.unwrap_err().kind(), ErrorKind::LoginRequired);
    assert_eq!(issuer.calls(), 0);
}

#[tokio::test(start_paused = true)]
async fn close_tries_a_failed_save_once_more() {
    let (issuer, store) = (Issuer::new([]), FakeStore::default());
    let session = session(&issuer, &store);
    store.next(Call::Save, [Fate::Down]);
    session.refresh().await.unwrap();
    assert_eq!(store.held(), None);
    reissuing("c1").client(&session).get(url("/")).send().await.unwrap();
    session.close().await.unwrap();
    assert_eq!(store.held(), Some(texts("c1", "r1")));

    let (issuer, store) = (Issuer::new([]), FakeStore::default());
    let session = Session::builder(Tokens::from_refresh_token("r0").unwrap())
        .origin(ORIGIN)
        .refresher(issuer)
        .store(store.clone());
    let session = session.build().unwrap();
    store.next(Call::Save, [Fate::Down]);
    session.refresh().await.unwrap();
    session.close().await.unwrap();
    assert_eq!(store.held(), Some(texts("t1", "r1")));
}

#[tokio::test(start_paused = true)]
async fn a_replaced_given_token_is_no_fallback() {
    let dead = reqwest_reauth::Error::new(ErrorKind::LoginRequired, "scripted");
    let kept = Tokens::from_refresh_token("k1").unwrap();
    let issuer = Issuer::new([Turn::Bring(SECOND, kept), Turn::Fail(SECOND, dead)]);
    let store = FakeStore::default();
    store.always(Call::Save, Fate::Down);
    let session = session(&issuer, &store);
    assert_eq!(session.refresh().await.unwrap_err().kind(), ErrorKind::BadResponse);
    assert_eq!(session.refresh().await.unwrap_err().kind(), ErrorKind::LoginRequired);
    assert_eq!(issuer.asked(), [Some("r0".to_owned()), Some("k1".to_owned())]);
}

#[tokio::test(start_paused = true)]
async fn a_login_after_a_failed_clear_stays() {
    let (issuer, store) = (Issuer::new([]), FakeStore::default());
    let session = session(&issuer, &store);
    session.refresh().await.unwrap();
    store.next(Call::Lock, [Fate::Down, Fate::Down]);
    session.clear().await.unwrap_err();
    session.replace_tokens(pair("new", "rn")).await.unwrap_err();
    session.close().await.unwrap();
    assert_eq!(store.held(), Some(texts("new", "rn")));
    assert_eq!(held(&session), texts("new", "rn"));
}

#[tokio::test(start_paused = true)]
async fn a_spent_given_token_is_no_fallback() {
    let dead = reqwest_reauth::Error::new(ErrorKind::LoginRequired, "scripted");
    let (issuer, store) =
        (Issuer::new([Turn::Issue(SECOND, None), Turn::Fail(SECOND, dead)]), FakeStore::default());
    store.always(Call::Save, Fate::Down);
    let session = session(&issuer, &store);
    session.refresh().await.unwrap();
    assert_eq!(session.refresh().await.unwrap_err().kind(), ErrorKind::LoginRequired);
    assert_eq!(issuer.asked(), [Some("r0".to_owned()), Some("r1".to_owned())]);
}

#[tokio::test(start_paused = true)]
async fn an_unsaved_login_yields_to_a_newer_one() {
    for store in [FakeStore::default(), FakeStore::holding(pair("t0", "r0"))] {
        let issuer = Issuer::new([]);
        let session = Session::builder(pair("t0", "r0"))
            .origin(ORIGIN)
            .refresher(issuer.clone())
            .store(store.clone());
        // It has read the store, so anything that it finds later is newer.
        let session = session.restore().await.unwrap();
        store.next(Call::Lock, [Fate::Down]);
        session.replace_tokens(pair("new", "rn")).await.unwrap_err();
        store.put(pair("other", "ro"));
        session.refresh().await.unwrap();
        assert_eq!(issuer.calls(), 0);
        assert_eq!(held(&session), texts("other", "ro"));
        assert_eq!(store.held(), Some(texts("other", "ro")));
    }
}

#[tokio::test(start_paused = true)]
async fn a_failed_save_yields_to_a_newer_login() {
    let (issuer, store) = (Issuer::new([]), FakeStore::holding(pair("t0", "r0")));
    let session = session(&issuer, &store);
    store.next(Call::Save, [Fate::Down]);
    session.replace_tokens(pair("new", "rn")).await.unwrap_err();
    store.put(pair("other", "ro"));
    session.refresh().await.unwrap();
    assert_eq!(issuer.calls(), 0);
    assert_eq!(held(&session), texts("other", "ro"));
    assert_eq!(store.held(), Some(texts("other", "ro")));
}

#[tokio::test(start_paused = true)]
async fn a_late_lock_still_saves() {
    // Tokens that are there, or arrive in the meantime, with the spent refresh token are older.
    for meanwhile in [pair("t0", "r0"), pair("c1", "r0")] {
        let (issuer, store) = (Issuer::new([Turn::Gated]), FakeStore::holding(pair("t0", "r0")));
        let session = session(&issuer, &store);
        store.next(Call::Lock, [Fate::Down]);
        let refresh = tokio::spawn({
            let session = session.clone();
            async move { session.refresh().await }
        });
        issuer.until_called(1).await;
        store.put(meanwhile);
        issuer.gate.add_permits(1);
        refresh.await.unwrap().unwrap();
        assert_eq!(store.held(), Some(texts("t1", "r1")));
        assert_eq!(held(&session), texts("t1", "r1"));
        store.assert_orderly();
    }
}

#[tokio::test(start_paused = true)]
async fn a_blind_refresh_saves_over_what_it_finds() {
    let (issuer, store) = (Issuer::new([]), FakeStore::holding(pair("old", "ro")));
    let session = session(&issuer, &store);
    store.next(Call::Lock, [Fate::Down]);
    store.next(Call::Load, [Fate::Down]);
    session.refresh().await.unwrap();
    // The session's own login is valid. Nothing is known about the other.
    assert_eq!(issuer.asked(), vec![Some("r0".to_owned())]);
    assert_eq!(store.held(), Some(texts("t1", "r1")));
    store.assert_orderly();
}

#[tokio::test(start_paused = true)]
async fn a_saved_login_yields_without_a_look() {
    let (issuer, store) = (Issuer::new([]), FakeStore::holding(pair("t0", "r0")));
    let session = session(&issuer, &store);
    store.next(Call::Load, [Fate::Down]);
    session.replace_tokens(pair("new", "rn")).await.unwrap();
    assert_eq!(store.held(), Some(texts("new", "rn")));
    store.put(pair("other", "ro"));
    session.refresh().await.unwrap();
    assert_eq!(issuer.calls(), 0);
    assert_eq!(held(&session), texts("other", "ro"));
}

#[tokio::test(start_paused = true)]
async fn a_replaced_capture_is_not_saved() {
    let (issuer, store) = (Issuer::new([]), FakeStore::default());
    let session = session(&issuer, &store);
    store.next(Call::Save, [Fate::Gated]);
    for token in ["c1", "c2"] {
        reissuing(token).client(&session).get(url("/")).send().await.unwrap();
        settle().await;
    }
    let replace = tokio::spawn({
        let session = session.clone();
        async move { session.replace_tokens(pair("new", "rn")).await }
    });
    settle().await;
    store.open_gate();
    replace.await.unwrap().unwrap();
    session.close().await.unwrap();
    assert_eq!(store.saves(), [texts("c1", "r0"), texts("new", "rn")]);
}

#[tokio::test(start_paused = true)]
async fn a_slow_save_is_waited_for() {
    let (issuer, store) = (Issuer::new([Turn::Issue(89 * SECOND, None)]), FakeStore::default());
    store.always(Call::Save, Fate::Hang);
    let session = session(&issuer, &store);
    assert_eq!(session.refresh().await.unwrap().access_token().unwrap().expose_secret(), "t1");
}

#[tokio::test(start_paused = true)]
async fn a_capture_replaces_a_broken_document() {
    let store = FakeStore::default();
    store.always(Call::Load, Fate::Down);
    let session = Session::builder(Tokens::new("t0").unwrap())
        .origin(ORIGIN)
        .store(store.clone())
        .build()
        .unwrap();
    reissuing("c1").client(&session).get(url("/")).send().await.unwrap();
    session.close().await.unwrap();
    assert_eq!(store.held(), Some(texts("c1", "")));
}

#[tokio::test(start_paused = true)]
async fn after_a_logout_a_saver_saves_nothing() {
    let (issuer, store) = (Issuer::new([]), FakeStore::holding(pair("t0", "r0")));
    let session = session(&issuer, &store);
    store.next(Call::Lock, [Fate::Gated]);
    reissuing("c1").client(&session).get(url("/")).send().await.unwrap();
    settle().await;
    session.clear().await.unwrap();
    store.open_gate();
    session.close().await.unwrap();
    assert_eq!(store.saves(), vec![]);
    assert_eq!(store.held(), None);
}

#[test]
fn the_next_refresh_saves_an_orphaned_capture() {
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap()
    };
    let (issuer, store) = (Issuer::new([]), FakeStore::default());
    let session = session(&issuer, &store);
    store.next(Call::Lock, [Fate::Gated]);
    runtime().block_on(async {
        reissuing("c1").client(&session).get(url("/")).send().await.unwrap();
        settle().await;
    });
    runtime().block_on(async {
        session.refresh().await.unwrap();
        session.close().await.unwrap();
    });
    assert_eq!(store.saves(), [texts("c1", "r0"), texts("t1", "r1")]);
    store.assert_orderly();
}

#[tokio::test(start_paused = true)]
async fn a_lone_refresh_token_keeps_the_given_one() {
    let dead = reqwest_reauth::Error::new(ErrorKind::LoginRequired, "scripted");
    let kept = Tokens::from_refresh_token("k1").unwrap();
    let issuer = Issuer::new([Turn::Bring(SECOND, kept), Turn::Fail(SECOND, dead)]);
    let session = session(&issuer, &FakeStore::holding(Tokens::from_refresh_token("s0").unwrap()));
    assert_eq!(session.refresh().await.unwrap_err().kind(), ErrorKind::BadResponse);
    session.refresh().await.unwrap();
    assert_eq!(issuer.asked(), ["s0", "k1", "r0"].map(|token| Some(token.to_owned())));
}

#[tokio::test(start_paused = true)]
async fn a_live_stored_login_ends_the_fallback() {
    let dead = reqwest_reauth::Error::new(ErrorKind::LoginRequired, "scripted");
    let issuer = Issuer::new([Turn::Issue(SECOND, None), Turn::Fail(SECOND, dead)]);
    let session = session(&issuer, &FakeStore::holding(Tokens::from_refresh_token("s0").unwrap()));
    session.refresh().await.unwrap();
    assert_eq!(session.refresh().await.unwrap_err().kind(), ErrorKind::LoginRequired);
    assert_eq!(issuer.asked(), ["s0", "r1"].map(|token| Some(token.to_owned())));
}
