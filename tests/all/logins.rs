//! The session's tokens and the stored tokens belong to one login, and an expired token never
//! replaces a valid one (contract 10.2, 10.3).

use std::time::Duration;

use crate::support::{
    Api, Issuer, ORIGIN, Turn, answer, held, pair, settle,
    store::{Call, FakeStore, Fate, Op},
    texts, unavailable, url,
};
use reqwest_reauth::{Error, ErrorKind, Session, SessionBuilder, Tokens};
use tokio::time::sleep;

const SECOND: Duration = Duration::from_secs(1);

/// A session with login B, on a store that may hold login A.
fn builder(issuer: &Issuer, store: &FakeStore) -> SessionBuilder {
    let given = pair("b0", "rb").with_expires_in(3600 * SECOND);
    Session::builder(given).origin(ORIGIN).refresher(issuer.clone()).store(store.clone())
}

fn expired() -> Tokens {
    pair("a0", "ra").with_expires_in(Duration::ZERO)
}

fn reissuing(token: &'static str) -> Api {
    Api::new(move |_| async move { answer(200).header("refreshed-api-token", token) })
}

fn dead() -> Error {
    Error::new(ErrorKind::LoginRequired, "scripted")
}

fn asked(refresh: &[&str]) -> Vec<Option<String>> {
    refresh.iter().map(|text| Some((*text).to_owned())).collect()
}

#[tokio::test(start_paused = true)]
async fn a_capture_does_not_mix_logins() {
    let (issuer, store) = (Issuer::new([]), FakeStore::holding(pair("a0", "ra")));
    let session = builder(&issuer, &store).build().unwrap();
    reissuing("b1").client(&session).get(url("/")).send().await.unwrap();
    store.until(|ops| ops.ends_with(&[Op::Unlock])).await;
    assert_eq!(held(&session), texts("b1", "rb"));
    assert_eq!(store.held(), Some(texts("a0", "ra")));
    // The next refresh decides: the store's login.
    session.refresh().await.unwrap();
    assert_eq!(held(&session), texts("a0", "ra"));
    // From then on captures are saved.
    reissuing("a1").client(&session).get(url("/")).send().await.unwrap();
    store.until(|ops| ops.iter().any(|op| matches!(op, Op::Save(..)))).await;
    assert_eq!(store.held(), Some(texts("a1", "ra")));
}

#[tokio::test(start_paused = true)]
async fn restore_without_a_refresher_keeps_it() {
    let store = FakeStore::holding(expired());
    let given = Tokens::new("b0").unwrap().with_expires_in(3600 * SECOND);
    let session =
        Session::builder(given).origin(ORIGIN).store(store.clone()).restore().await.unwrap();
    let api = Api::accepting(|token| token == "b0");
    assert_eq!(api.client(&session).get(url("/")).send().await.unwrap().status(), 200);
}

#[tokio::test(start_paused = true)]
async fn restore_keeps_the_good_token_in_an_outage() {
    let issuer = Issuer::new((0..9).map(|_| Turn::Fail(Duration::ZERO, unavailable())));
    let store = FakeStore::holding(expired());
    let session = builder(&issuer, &store).restore().await.unwrap();
    assert_eq!(held(&session), texts("b0", "rb"));
    let api = Api::accepting(|token| token == "b0");
    assert_eq!(api.client(&session).get(url("/")).send().await.unwrap().status(), 200);
    assert_eq!(issuer.calls(), 0);
}

#[tokio::test(start_paused = true)]
async fn restore_takes_a_good_stored_token() {
    for stored in [pair("a0", "ra"), pair("a0", "ra").with_expires_in(SECOND)] {
        let (issuer, store) = (Issuer::new([]), FakeStore::holding(stored));
        let session = builder(&issuer, &store).restore().await.unwrap();
        assert_eq!(held(&session), texts("a0", "ra"));
    }
    // Nor is there a reason to keep what has expired as well.
    let (issuer, store) = (Issuer::new([]), FakeStore::holding(expired()));
    let given = pair("b0", "rb").with_expires_in(Duration::ZERO);
    let session = Session::builder(given).origin(ORIGIN).refresher(issuer).store(store);
    assert_eq!(held(&session.restore().await.unwrap()), texts("a0", "ra"));
}

#[tokio::test(start_paused = true)]
async fn the_stored_refresh_token_is_tried_first() {
    for restores in [false, true] {
        let script = [Turn::Fail(Duration::ZERO, unavailable()), Turn::Issue(SECOND, None)];
        let (issuer, store) = (Issuer::new(script), FakeStore::holding(expired()));
        let builder = builder(&issuer, &store);
        let session =
            if restores { builder.restore().await.unwrap() } else { builder.build().unwrap() };
        session.refresh().await.unwrap_err();
        // The session adopts it only together with the tokens that it obtains.
        assert_eq!(held(&session), texts("b0", "rb"), "{restores}");
        session.refresh().await.unwrap();
        assert_eq!(issuer.asked(), asked(&["ra", "ra"]), "{restores}");
        assert_eq!(held(&session), texts("t2", "r2"), "{restores}");
        assert_eq!(store.held(), Some(texts("t2", "r2")), "{restores}");
        session.refresh().await.unwrap();
        assert_eq!(issuer.asked(), asked(&["ra", "ra", "r2"]), "{restores}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_dead_stored_refresh_token_yields() {
    let script = [
        Turn::Fail(Duration::ZERO, dead()),
        Turn::Fail(Duration::ZERO, unavailable()),
        Turn::Issue(SECOND, None),
    ];
    let (issuer, store) = (Issuer::new(script), FakeStore::holding(expired()));
    let session = builder(&issuer, &store).restore().await.unwrap();
    session.refresh().await.unwrap_err();
    assert_eq!(held(&session), texts("b0", "rb"));
    session.refresh().await.unwrap();
    assert_eq!(issuer.asked(), asked(&["ra", "rb", "rb"]));
    assert_eq!(store.held(), Some(texts("t3", "r3")));
}

#[tokio::test(start_paused = true)]
async fn a_grant_alone_keeps_the_stored_refresh_token() {
    let bring = Turn::Bring(Duration::ZERO, Tokens::new("a1").unwrap());
    let (issuer, store) = (Issuer::new([bring]), FakeStore::holding(expired()));
    let session = builder(&issuer, &store).restore().await.unwrap();
    session.refresh().await.unwrap();
    assert_eq!(held(&session), texts("a1", "ra"));
    assert_eq!(store.held(), Some(texts("a1", "ra")));
}

#[tokio::test(start_paused = true)]
async fn a_new_login_forgets_the_stored_one() {
    let (issuer, store) = (Issuer::new([]), FakeStore::holding(expired()));
    let session = builder(&issuer, &store).restore().await.unwrap();
    session.replace_tokens(pair("c0", "rc")).await.unwrap();
    session.refresh().await.unwrap();
    assert_eq!(issuer.asked(), asked(&["rc"]));
}

#[tokio::test(start_paused = true)]
async fn a_stored_twin_brings_its_refresh_token() {
    // What another process leaves that has kept a refresh token and got no access token.
    let (issuer, store) = (Issuer::new([]), FakeStore::holding(pair("b0", "kept")));
    let session = builder(&issuer, &store).build().unwrap();
    session.refresh().await.unwrap();
    assert_eq!(issuer.asked(), asked(&["kept"]));
}

#[tokio::test(start_paused = true)]
async fn a_late_logout_spares_the_new_login() {
    let (issuer, store) = (Issuer::new([]), FakeStore::holding(pair("b0", "rb")));
    let session = builder(&issuer, &store).build().unwrap();
    let other = store.occupy().await;
    let logout = tokio::spawn({
        let session = session.clone();
        async move { session.clear().await }
    });
    settle().await;
    let login = tokio::spawn({
        let session = session.clone();
        async move { session.replace_tokens(pair("c0", "rc")).await }
    });
    settle().await;
    drop(other);
    logout.await.unwrap().unwrap();
    login.await.unwrap().unwrap();
    assert_eq!(store.held(), Some(texts("c0", "rc")));
    assert_eq!(held(&session), texts("c0", "rc"));
    assert!(!store.ops().contains(&Op::Clear));
}

#[tokio::test(start_paused = true)]
async fn close_saves_a_capture_that_met_a_lock_down() {
    let (issuer, store) = (Issuer::new([]), FakeStore::default());
    let session = builder(&issuer, &store).build().unwrap();
    store.next(Call::Lock, [Fate::Down]);
    reissuing("b1").client(&session).get(url("/")).send().await.unwrap();
    settle().await;
    assert_eq!(store.held(), None);
    session.close().await.unwrap();
    assert_eq!(store.held(), Some(texts("b1", "rb")));
}

#[tokio::test(start_paused = true)]
async fn the_old_refresh_token_is_saved_beside() {
    let bring = Turn::Bring(Duration::ZERO, Tokens::new("b1").unwrap());
    let (issuer, store) = (Issuer::new([bring]), FakeStore::default());
    let session = builder(&issuer, &store).build().unwrap();
    session.refresh().await.unwrap();
    assert_eq!(store.held(), Some(texts("b1", "rb")));
}

#[tokio::test(start_paused = true)]
async fn a_refresh_ends_after_its_save() {
    let (issuer, store) = (Issuer::new([]), FakeStore::default());
    store.next(Call::Save, [Fate::Gated]);
    let session = builder(&issuer, &store).build().unwrap();
    let refresh = |session: &Session| {
        let session = session.clone();
        tokio::spawn(async move { session.refresh().await })
    };
    let first = refresh(&session);
    issuer.until_called(1).await;
    settle().await;
    // The slot is taken until the tokens are saved: this one joins.
    let second = refresh(&session);
    settle().await;
    assert!(!first.is_finished());
    store.open_gate();
    first.await.unwrap().unwrap();
    second.await.unwrap().unwrap();
    assert_eq!(issuer.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn each_token_that_was_sent_may_be_spent() {
    // The stored one may have been spent by another process, the given one was not.
    let script = [Turn::Fail(Duration::ZERO, dead()), Turn::Fail(Duration::ZERO, dead())];
    let store = FakeStore::holding(Tokens::from_refresh_token("ra").unwrap());
    let issuer = Issuer::new(script);
    let session = builder(&issuer, &store).build().unwrap();
    let error = session.refresh().await.unwrap_err();
    assert_eq!(issuer.asked(), asked(&["ra", "rb"]));
    assert!(error.possibly_consumed());
}

/// When each of a fleet renews a token of 100 s, in tenths of a second.
async fn renewals(captured: bool) -> std::collections::BTreeSet<u128> {
    let mut renewals = std::collections::BTreeSet::new();
    for _ in 0..20 {
        let script = [Turn::Issue(Duration::ZERO, Some(100 * SECOND))];
        let issuer = Issuer::new(script);
        let session = Session::builder(pair("t0", "r0")).origin(ORIGIN).refresher(issuer.clone());
        let session = session.build().unwrap();
        let mut before = 0;
        if captured {
            let jwt = crate::support::jwt_at(0, 100);
            let api = Api::new(move |_| {
                let jwt = jwt.clone();
                async move { answer(200).header("refreshed-api-token", jwt) }
            });
            api.client(&session).get(url("/")).send().await.unwrap();
        } else {
            session.refresh().await.unwrap();
            before = 1;
        }
        let api = Api::new(|_| async { answer(200) });
        let begun = tokio::time::Instant::now();
        while issuer.calls() == before {
            sleep(SECOND / 10).await;
            api.client(&session).get(url("/")).send().await.unwrap();
            settle().await;
        }
        renewals.insert(begun.elapsed().as_millis() / 100);
    }
    renewals
}

#[tokio::test(start_paused = true)]
async fn each_kind_of_token_is_renewed_with_jitter() {
    for captured in [false, true] {
        let renewals = renewals(captured).await;
        assert!(renewals.len() > 3, "{captured}: {renewals:?}");
        assert!(renewals.iter().all(|at| (795..=825).contains(at)), "{captured}: {renewals:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_captured_jwt_ends_after_its_lifetime() {
    // Its clock is an hour behind: exp is long past here, exp - iat is not.
    let issuer = Issuer::new([]);
    let session = Session::builder(pair("t0", "r0")).origin(ORIGIN).refresher(issuer.clone());
    let session = session.build().unwrap();
    let jwt = crate::support::jwt_at(-3600, 100);
    let api = Api::new(move |_| {
        let jwt = jwt.clone();
        async move { answer(200).header("refreshed-api-token", jwt) }
    });
    api.client(&session).get(url("/")).send().await.unwrap();
    sleep(70 * SECOND).await;
    let plain = Api::new(|_| async { answer(200) });
    plain.client(&session).get(url("/")).send().await.unwrap();
    settle().await;
    assert_eq!(issuer.calls(), 0);
    sleep(31 * SECOND).await;
    plain.client(&session).get(url("/")).send().await.unwrap();
    assert_eq!(issuer.calls(), 1);
}
