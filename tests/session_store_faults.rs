//! A session and its store when something goes wrong between two steps (contract §6.5, §10.1, §10.2).

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may")]

mod support;

use std::time::Duration;

use reqwest_reauth::{ErrorKind, Session, SessionState, Tokens};
use support::{
    Api, Issuer, ORIGIN, Turn, answer, held, pair, settle,
    store::{Call, FakeStore, Fate, Op},
    texts, until, url,
};

const SECOND: Duration = Duration::from_secs(1);

fn session(issuer: &Issuer, store: &FakeStore) -> Session {
    Session::builder(pair("t0", "r0")).origin(ORIGIN).refresher(issuer.clone()).store(store.clone()).build().unwrap()
}

fn reissuing(token: &'static str) -> Api {
    Api::new(move |_| async move { answer(200).header("refreshed-api-token", token) })
}

#[tokio::test(start_paused = true)]
async fn a_capture_does_not_save_over_what_it_could_not_look_at() {
    let (issuer, store) = (Issuer::new([]), FakeStore::holding(pair("other", "ro")));
    store.next(Call::Load, [Fate::Down]);
    let session = session(&issuer, &store);
    reissuing("c1").client(&session).get(url("/")).send().await.unwrap();
    store.until(|ops| ops.ends_with(&[Op::Unlock])).await;
    assert_eq!(store.held(), Some(texts("other", "ro")));
    reissuing("c2").client(&session).get(url("/")).send().await.unwrap();
    store.until(|ops| matches!(ops, [.., Op::Save(..), Op::Unlock])).await;
    assert_eq!(store.held(), Some(texts("c2", "ro")));
}

#[tokio::test(start_paused = true)]
async fn a_new_login_that_could_not_be_saved_is_not_undone_by_the_old_one_on_disk() {
    let (issuer, store) = (Issuer::new([]), FakeStore::holding(pair("old", "ro")));
    let session = session(&issuer, &store);
    store.next(Call::Lock, [Fate::Down]);
    assert_eq!(session.replace_tokens(pair("new", "rn")).await.unwrap_err().kind(), ErrorKind::Store);
    assert_eq!(held(&session), texts("new", "rn"));
    session.refresh().await.unwrap();
    assert_eq!(issuer.asked(), [Some("rn".to_owned())]);
    assert_eq!(store.saves(), [texts("new", "rn"), texts("t1", "r1")]);
    store.assert_orderly();
}

#[tokio::test(start_paused = true)]
async fn a_flight_that_begins_before_a_new_login_is_saved_does_not_take_the_old_one() {
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
    assert_eq!((issuer.asked(), held(&session)), (vec![Some("rn".to_owned())], texts("t1", "r1")));
    assert_eq!(store.held(), Some(texts("t1", "r1")));
}

#[tokio::test(start_paused = true)]
async fn a_new_login_whose_caller_is_dropped_is_saved_before_it_is_spent() {
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
async fn an_overtaken_flight_does_not_save_over_the_users_word() {
    let (issuer, store) = (Issuer::new([]), FakeStore::default());
    let session = session(&issuer, &store);
    // The flight has no lock, and waits for one when it wants to save. The user's save gets it first.
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
    assert_eq!((store.held(), held(&session)), (Some(texts("new", "rn")), texts("new", "rn")));
}

#[tokio::test(start_paused = true)]
async fn a_flight_without_the_lock_does_not_save_over_what_came_meanwhile() {
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
    assert_eq!((store.held(), held(&session)), (Some(texts("other", "ro")), texts("t1", "r1")));
    // The next flight takes theirs.
    session.refresh().await.unwrap();
    assert_eq!((held(&session), issuer.calls()), (texts("other", "ro"), 1));
}

#[tokio::test(start_paused = true)]
async fn clear_empties_the_store_and_a_saver_under_way_does_not_fill_it_again() {
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
    assert_eq!((store.held(), session.tokens().is_none()), (None, true));
}

#[tokio::test(start_paused = true)]
async fn a_failing_clear_says_so_and_the_session_is_logged_out_all_the_same() {
    let (issuer, store) = (Issuer::new([]), FakeStore::holding(pair("t0", "r0")));
    let session = session(&issuer, &store);
    store.next(Call::Clear, [Fate::Down]);
    assert_eq!(session.clear().await.unwrap_err().kind(), ErrorKind::Store);
    assert_eq!((session.state(), session.tokens().is_none()), (SessionState::LoginRequired, true));
    assert_eq!(session.refresh().await.unwrap_err().kind(), ErrorKind::LoginRequired);
    assert_eq!(issuer.calls(), 0);
}

#[tokio::test(start_paused = true)]
async fn close_waits_for_the_save_behind_a_capture_and_tries_once_more_what_failed() {
    let (issuer, store) = (Issuer::new([]), FakeStore::default());
    let session = session(&issuer, &store);
    store.next(Call::Save, [Fate::Down]);
    session.refresh().await.unwrap();
    assert_eq!(store.held(), None);
    reissuing("c1").client(&session).get(url("/")).send().await.unwrap();
    session.close().await.unwrap();
    assert_eq!(store.held(), Some(texts("c1", "r1")));

    let (issuer, store) = (Issuer::new([]), FakeStore::default());
    let session =
        Session::builder(Tokens::from_refresh_token("r0").unwrap()).origin(ORIGIN).refresher(issuer).store(store.clone());
    let session = session.build().unwrap();
    store.next(Call::Save, [Fate::Down]);
    session.refresh().await.unwrap();
    session.close().await.unwrap();
    assert_eq!(store.held(), Some(texts("t1", "r1")));
}

#[tokio::test(start_paused = true)]
async fn the_refresh_token_that_was_given_is_not_tried_again_once_another_has_taken_its_place() {
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
async fn a_new_login_after_a_clear_that_failed_is_not_undone_by_what_was_left() {
    let (issuer, store) = (Issuer::new([]), FakeStore::default());
    let session = session(&issuer, &store);
    session.refresh().await.unwrap();
    store.next(Call::Lock, [Fate::Down, Fate::Down]);
    session.clear().await.unwrap_err();
    session.replace_tokens(pair("new", "rn")).await.unwrap_err();
    session.close().await.unwrap();
    assert_eq!((store.held(), held(&session)), (Some(texts("new", "rn")), texts("new", "rn")));
}
