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
    // The flight has no lock, and waits for one when it wants to save. The user's save gets it
    // first.
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

#[tokio::test(start_paused = true)]
async fn the_refresh_token_that_was_given_is_not_tried_again_once_it_was_spent() {
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
async fn a_new_login_that_could_not_be_saved_gives_way_to_what_somebody_else_has_stored_since() {
    for store in [FakeStore::default(), FakeStore::holding(pair("t0", "r0"))] {
        let issuer = Issuer::new([]);
        let session = Session::builder(pair("t0", "r0"))
            .origin(ORIGIN)
            .refresher(issuer.clone())
            .store(store.clone());
        // It has looked: what it finds later and did not see then is newer.
        let session = session.restore().await.unwrap();
        store.next(Call::Lock, [Fate::Down]);
        session.replace_tokens(pair("new", "rn")).await.unwrap_err();
        store.put(pair("other", "ro"));
        session.refresh().await.unwrap();
        assert_eq!(
            (issuer.calls(), held(&session), store.held()),
            (0, texts("other", "ro"), Some(texts("other", "ro")))
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_new_login_whose_save_failed_gives_way_to_what_somebody_else_has_stored_since() {
    let (issuer, store) = (Issuer::new([]), FakeStore::holding(pair("t0", "r0")));
    let session = session(&issuer, &store);
    store.next(Call::Save, [Fate::Down]);
    session.replace_tokens(pair("new", "rn")).await.unwrap_err();
    store.put(pair("other", "ro"));
    session.refresh().await.unwrap();
    assert_eq!(
        (issuer.calls(), held(&session), store.held()),
        (0, texts("other", "ro"), Some(texts("other", "ro")))
    );
}

#[tokio::test(start_paused = true)]
async fn a_flight_that_gets_the_lock_late_saves_what_it_brought() {
    // What is there, or comes meanwhile with the refresh token that was spent, is older.
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
        assert_eq!((store.held(), held(&session)), (Some(texts("t1", "r1")), texts("t1", "r1")));
        store.assert_orderly();
    }
}

#[tokio::test(start_paused = true)]
async fn a_flight_that_could_not_look_before_saves_what_it_brought_over_what_it_finds() {
    let (issuer, store) = (Issuer::new([]), FakeStore::holding(pair("old", "ro")));
    let session = session(&issuer, &store);
    store.next(Call::Lock, [Fate::Down]);
    store.next(Call::Load, [Fate::Down]);
    session.refresh().await.unwrap();
    // The login that it has is alive; of the other nothing is known.
    assert_eq!(
        (issuer.asked(), store.held()),
        (vec![Some("r0".to_owned())], Some(texts("t1", "r1")))
    );
    store.assert_orderly();
}

#[tokio::test(start_paused = true)]
async fn a_new_login_that_was_saved_gives_way_to_a_newer_one_though_the_store_could_not_be_looked_into()
 {
    let (issuer, store) = (Issuer::new([]), FakeStore::holding(pair("t0", "r0")));
    let session = session(&issuer, &store);
    store.next(Call::Load, [Fate::Down]);
    session.replace_tokens(pair("new", "rn")).await.unwrap();
    assert_eq!(store.held(), Some(texts("new", "rn")));
    store.put(pair("other", "ro"));
    session.refresh().await.unwrap();
    assert_eq!((issuer.calls(), held(&session)), (0, texts("other", "ro")));
}

#[tokio::test(start_paused = true)]
async fn a_captured_token_that_a_new_login_has_replaced_is_not_saved() {
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
async fn a_flight_is_waited_for_while_a_slow_store_saves_what_it_brought() {
    let (issuer, store) = (Issuer::new([Turn::Issue(89 * SECOND, None)]), FakeStore::default());
    store.always(Call::Save, Fate::Hang);
    let session = session(&issuer, &store);
    assert_eq!(session.refresh().await.unwrap().access_token().unwrap().expose_secret(), "t1");
}

#[tokio::test(start_paused = true)]
async fn a_captured_token_is_saved_over_a_broken_store_where_no_refresh_token_can_be_lost() {
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
async fn a_saver_that_gets_the_lock_after_a_logout_saves_nothing() {
    let (issuer, store) = (Issuer::new([]), FakeStore::holding(pair("t0", "r0")));
    let session = session(&issuer, &store);
    store.next(Call::Lock, [Fate::Gated]);
    reissuing("c1").client(&session).get(url("/")).send().await.unwrap();
    settle().await;
    session.clear().await.unwrap();
    store.open_gate();
    session.close().await.unwrap();
    assert_eq!((store.saves(), store.held()), (vec![], None));
}

#[test]
fn a_captured_token_whose_savers_runtime_is_gone_is_saved_once_by_the_next_flight() {
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
async fn a_refresh_token_that_came_without_an_access_token_is_no_reason_to_forget_the_one_that_was_given()
 {
    let dead = reqwest_reauth::Error::new(ErrorKind::LoginRequired, "scripted");
    let kept = Tokens::from_refresh_token("k1").unwrap();
    let issuer = Issuer::new([Turn::Bring(SECOND, kept), Turn::Fail(SECOND, dead)]);
    let session = session(&issuer, &FakeStore::holding(Tokens::from_refresh_token("s0").unwrap()));
    assert_eq!(session.refresh().await.unwrap_err().kind(), ErrorKind::BadResponse);
    session.refresh().await.unwrap();
    assert_eq!(issuer.asked(), ["s0", "k1", "r0"].map(|token| Some(token.to_owned())));
}

#[tokio::test(start_paused = true)]
async fn the_refresh_token_that_was_given_is_not_tried_once_the_stored_login_has_proved_alive() {
    let dead = reqwest_reauth::Error::new(ErrorKind::LoginRequired, "scripted");
    let issuer = Issuer::new([Turn::Issue(SECOND, None), Turn::Fail(SECOND, dead)]);
    let session = session(&issuer, &FakeStore::holding(Tokens::from_refresh_token("s0").unwrap()));
    session.refresh().await.unwrap();
    assert_eq!(session.refresh().await.unwrap_err().kind(), ErrorKind::LoginRequired);
    assert_eq!(issuer.asked(), ["s0", "r1"].map(|token| Some(token.to_owned())));
}
