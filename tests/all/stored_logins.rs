//! What a session takes from its store without a call to the token endpoint, and what it does not
//! send without the store (contract 10.1, 10.3).

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use crate::support::{
    Api, Issuer, ORIGIN, Turn, answer, held, pair,
    store::{Call, FakeStore, Fate},
    texts, url,
};
use async_trait::async_trait;
use reqwest_reauth::{
    Error, ErrorKind, Event, RefreshContext, Refresher, Session, SessionBuilder, SessionState,
    Tokens,
};

const COOLDOWN: Duration = Duration::from_secs(10);

fn builder(tokens: Tokens, issuer: &Issuer, store: &FakeStore) -> SessionBuilder {
    Session::builder(tokens)
        .origin(ORIGIN)
        .cooldown(COOLDOWN)
        .refresher(issuer.clone())
        .store(store.clone())
}

fn adopted(builder: SessionBuilder) -> (SessionBuilder, Arc<Mutex<Vec<u64>>>) {
    let told = Arc::new(Mutex::new(Vec::new()));
    let to = Arc::clone(&told);
    let builder = builder.on_event(move |event| {
        if let Event::StoredLoginAdopted { generation, .. } = event {
            to.lock().unwrap().push(*generation);
        }
    });
    (builder, told)
}

fn dead() -> Turn {
    Turn::Fail(Duration::ZERO, Error::new(ErrorKind::LoginRequired, "dead, as the script says"))
}

/// As `OAuthRefresh` is.
struct NeedsRefreshToken(Issuer);

#[async_trait]
impl Refresher for NeedsRefreshToken {
    async fn refresh(&self, context: &RefreshContext) -> Result<Tokens, Error> {
        self.0.refresh(context).await
    }

    fn can_refresh(&self, tokens: &Tokens) -> bool {
        tokens.refresh_token().is_some()
    }
}

fn ok() -> Api {
    Api::new(|_| async { answer(200) })
}

#[tokio::test(start_paused = true)]
async fn a_stored_login_ends_login_required() {
    let (issuer, store) = (Issuer::new([dead()]), FakeStore::default());
    let (builder, told) =
        adopted(builder(Tokens::from_refresh_token("r0").unwrap(), &issuer, &store));
    let session = builder.build().unwrap();
    let client = ok().client(&session);
    client.get(url("/")).send().await.unwrap_err();
    assert_eq!(session.state(), SessionState::LoginRequired);
    let calls = issuer.asked().len();

    // Nothing is stored: the store is read once per cool-down.
    let loads = || store.ops().iter().filter(|op| **op == crate::support::store::Op::Load).count();
    let before = loads();
    for _ in 0..5 {
        client.get(url("/")).send().await.unwrap_err();
    }
    assert_eq!(loads(), before + 1);

    store.put(pair("new", "rn"));
    tokio::time::advance(COOLDOWN).await;
    assert_eq!(client.get(url("/")).send().await.unwrap().status(), 200);
    assert_eq!(session.state(), SessionState::Active);
    assert_eq!(held(&session), texts("new", "rn"));
    assert_eq!(told.lock().unwrap().len(), 1);
    assert_eq!(issuer.asked().len(), calls, "the token endpoint was not asked");
}

#[tokio::test(start_paused = true)]
async fn an_adopted_login_is_refreshed_and_saved() {
    let (issuer, store) = (Issuer::new([dead()]), FakeStore::default());
    let session = builder(Tokens::from_refresh_token("r0").unwrap(), &issuer, &store);
    let session = session.build().unwrap();
    let client = Api::accepting(|token| token == "t2").client(&session);
    client.get(url("/")).send().await.unwrap_err();
    store.put(pair("new", "rn"));
    tokio::time::advance(COOLDOWN).await;
    // The adopted token is rejected, and renewed like any other.
    assert_eq!(client.get(url("/")).send().await.unwrap().status(), 200);
    assert_eq!(issuer.asked(), [Some("r0".to_owned()), Some("rn".to_owned())]);
    assert_eq!(held(&session), texts("t2", "r2"));
    assert_eq!(store.held(), Some(texts("t2", "r2")));
}

#[tokio::test(start_paused = true)]
async fn a_refresh_adopts_a_login_without_a_call() {
    let (issuer, store) = (Issuer::new([dead()]), FakeStore::default());
    let session = builder(Tokens::from_refresh_token("r0").unwrap(), &issuer, &store);
    let session = session.build().unwrap();
    session.refresh().await.unwrap_err();
    store.put(pair("new", "rn"));
    tokio::time::advance(COOLDOWN).await;
    let tokens = session.refresh().await.unwrap();
    assert_eq!(tokens.access_token().unwrap().expose_secret(), "new");
    assert_eq!(issuer.asked().len(), 1);
    session.refresh().await.unwrap();
    assert_eq!(issuer.asked().last().unwrap().as_deref(), Some("rn"));
}

#[tokio::test(start_paused = true)]
async fn the_dead_login_is_not_adopted() {
    let (issuer, store) = (Issuer::new([dead()]), FakeStore::holding(pair("t0", "r0")));
    let session = builder(pair("t0", "r0"), &issuer, &store).build().unwrap();
    session.refresh().await.unwrap_err();
    for _ in 0..3 {
        tokio::time::advance(COOLDOWN).await;
        assert_eq!(session.refresh().await.unwrap_err().kind(), ErrorKind::LoginRequired);
    }
    assert_eq!(issuer.asked().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_logout_is_not_undone_by_the_store() {
    let (issuer, store) = (Issuer::new([]), FakeStore::default());
    let session = builder(pair("t0", "r0"), &issuer, &store).build().unwrap();
    session.clear().await.unwrap();
    store.put(pair("other", "ro"));
    tokio::time::advance(COOLDOWN).await;
    let error = session.refresh().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LoginRequired);
    assert_eq!(session.tokens().map(|_| ()), None);
}

#[tokio::test(start_paused = true)]
async fn restore_with_nothing_is_login_required() {
    let (issuer, store) = (Issuer::new([]), FakeStore::default());
    let builder = builder(Tokens::empty(), &issuer, &store);
    let session = builder.refresher(NeedsRefreshToken(issuer.clone())).restore().await.unwrap();
    assert_eq!(session.state(), SessionState::LoginRequired);
    store.put(pair("new", "rn"));
    assert_eq!(ok().client(&session).get(url("/")).send().await.unwrap().status(), 200);
    assert_eq!(session.state(), SessionState::Active);
    assert_eq!(issuer.asked().len(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_rotating_token_waits_for_its_store() {
    let (issuer, store) = (Issuer::new([]), FakeStore::default());
    let session = builder(pair("t0", "r0"), &issuer, &store).build().unwrap();
    session.refresh().await.unwrap();
    assert_eq!(issuer.asked().len(), 1, "a grant has brought another refresh token");
    for call in [Call::Lock, Call::Load] {
        store.always(call, Fate::Down);
        let error = session.refresh().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Store, "{call:?}");
        assert!(error.is_transient(), "{call:?}");
        assert_eq!(issuer.asked().len(), 1, "{call:?}: not sent");
        assert_eq!(session.state(), SessionState::CoolingDown);
        store.heal();
    }
    session.refresh().await.unwrap();
    assert_eq!(issuer.asked().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_store_of_one_session_is_not_waited_for() {
    let (issuer, store) = (Issuer::new([]), FakeStore::default());
    let session =
        builder(pair("t0", "r0"), &issuer, &store).refresh_without_store().build().unwrap();
    session.refresh().await.unwrap();
    store.always(Call::Lock, Fate::Down);
    session.refresh().await.unwrap();
    assert_eq!(issuer.asked().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_unrotated_token_is_sent_without_the_store() {
    let (issuer, store) = (Issuer::new([]), FakeStore::default());
    store.always(Call::Lock, Fate::Down);
    let session = builder(pair("t0", "r0"), &issuer, &store).build().unwrap();
    session.refresh().await.unwrap();
    assert_eq!(issuer.asked().len(), 1);
}
