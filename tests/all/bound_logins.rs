//! Contract 16.5: a stored login that is bound to a key belongs to sessions with that key.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use reqwest_reauth::{
    DpopAlg, DpopKey, Error, ErrorKind, Event, FileStore, MemoryStore, OAuthRefresh, Placement,
    RefreshContext, Refresher, Session, SessionBuilder, SessionState, TokenStore, Tokens,
    testing::{AuthServer, Dpop},
};

use crate::{
    beats::Log,
    support::{Api, Issuer, ORIGIN, answer, error_of, held, pair, store::FakeStore, texts, url},
};

const COOLDOWN: Duration = Duration::from_secs(10);

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

/// From PEM, as a key that is kept is.
fn key() -> DpopKey {
    let generated = DpopKey::generate().unwrap();
    DpopKey::from_pem(generated.to_pem().unwrap().expose_secret().as_bytes(), DpopAlg::Es256)
        .unwrap()
}

fn of(key: &DpopKey, access: &str, refresh: &str) -> Tokens {
    pair(access, refresh).with_key_thumbprint(key.thumbprint())
}

/// With the thumbprints of the stored logins that it ignored.
fn session(
    tokens: Tokens,
    key: Option<&DpopKey>,
    issuer: &Issuer,
    store: impl TokenStore,
) -> (SessionBuilder, Arc<Mutex<Vec<String>>>) {
    let told = Arc::new(Mutex::new(Vec::new()));
    let to = Arc::clone(&told);
    let placement = key.map_or_else(Placement::bearer, |key| Placement::dpop(key.clone()));
    let builder = Session::builder(tokens)
        .origin(ORIGIN)
        .cooldown(COOLDOWN)
        .placement(placement)
        .refresher(NeedsRefreshToken(issuer.clone()))
        .store(store)
        .on_event(move |event| {
            if let Event::StoredLoginIgnored { thumbprint, .. } = event {
                to.lock().unwrap().push(thumbprint.clone());
            }
        });
    (builder, told)
}

async fn send(session: &Session) -> Result<u16, Error> {
    let client = Api::new(|_| async { answer(200) }).client(session);
    match client.get(url("/")).send().await {
        Ok(response) => Ok(response.status().as_u16()),
        failed => Err(error_of(failed)),
    }
}

#[tokio::test(start_paused = true)]
async fn a_login_of_another_key_is_login_required() {
    let (own, other) = (key(), key());
    for own in [Some(&own), None] {
        for restored in [true, false] {
            let (issuer, store) = (Issuer::new([]), FakeStore::holding(of(&other, "a", "r")));
            let (builder, told) = session(Tokens::empty(), own, &issuer, store.clone());
            let session =
                if restored { builder.restore().await.unwrap() } else { builder.build().unwrap() };
            let error = send(&session).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::LoginRequired);
            let text = format!("{error}: {}", std::error::Error::source(&error).unwrap());
            assert!(text.contains(other.thumbprint()), "{text}");
            let says = own.map_or("has none", DpopKey::thumbprint);
            assert!(text.contains(says), "{text}");
            assert_eq!(session.state(), SessionState::LoginRequired);
            assert_eq!(issuer.asked().len(), 0, "its refresh token is not sent");
            tokio::time::advance(COOLDOWN).await;
            send(&session).await.unwrap_err();
            assert_eq!(*told.lock().unwrap(), [other.thumbprint()], "it is told once");
            assert_eq!(store.held(), Some(texts("a", "r")));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_session_with_tokens_saves_nothing() {
    let (own, other) = (key(), key());
    let (issuer, store) = (Issuer::new([]), FakeStore::holding(of(&other, "a", "r")));
    let (builder, told) = session(pair("t0", "r0"), Some(&own), &issuer, store.clone());
    let session = builder.restore().await.unwrap();
    assert_eq!(held(&session), texts("t0", "r0"));
    session.refresh().await.unwrap();
    assert_eq!(send(&session).await.unwrap(), 200);
    session.refresh().await.unwrap();
    assert_eq!(issuer.asked(), [Some("r0".to_owned()), Some("r1".to_owned())]);
    assert_eq!(store.saves(), []);
    assert_eq!(*told.lock().unwrap(), [other.thumbprint()]);
    session.close_within(Duration::from_secs(1)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_capture_overwrites_no_other_keys_login() {
    let (own, other) = (key(), key());
    for given in [pair("t0", "r0"), Tokens::new("t0").unwrap()] {
        let (issuer, store) = (Issuer::new([]), FakeStore::holding(of(&other, "a", "r")));
        let (builder, _) = session(given, Some(&own), &issuer, store.clone());
        let session = builder.build().unwrap();
        let api = Api::new(|_| async { answer(200).header("refreshed-api-token", "t1") });
        api.client(&session).get(url("/")).send().await.unwrap();
        session.close_within(Duration::from_secs(1)).await.unwrap();
        assert_eq!(store.saves(), []);
        assert_eq!(store.held(), Some(texts("a", "r")));
    }
}

#[tokio::test(start_paused = true)]
async fn a_new_login_and_a_logout_replace_it() {
    let (own, other) = (key(), key());
    let (issuer, store) = (Issuer::new([]), FakeStore::holding(of(&other, "a", "r")));
    let (builder, _) = session(Tokens::empty(), Some(&own), &issuer, store.clone());
    let session = builder.restore().await.unwrap();
    session.replace_tokens(pair("b", "s")).await.unwrap();
    assert_eq!(store.held(), Some(texts("b", "s")));
    assert_eq!(store.stored().unwrap().key_thumbprint(), Some(own.thumbprint()));
    session.refresh().await.unwrap();
    assert_eq!(store.saves().len(), 2, "and what follows is saved");
    store.put(of(&other, "a", "r"));
    session.clear().await.unwrap();
    assert_eq!(store.held(), None);
}

#[tokio::test(start_paused = true)]
async fn a_login_of_the_own_key_ends_the_wait() {
    let (own, other) = (key(), key());
    let (issuer, store) = (Issuer::new([]), FakeStore::holding(of(&other, "a", "r")));
    let (builder, _) = session(Tokens::empty(), Some(&own), &issuer, store.clone());
    let session = builder.restore().await.unwrap();
    send(&session).await.unwrap_err();
    store.put(of(&own, "b", "s"));
    tokio::time::advance(COOLDOWN).await;
    assert_eq!(send(&session).await.unwrap(), 200);
    assert_eq!(held(&session), texts("b", "s"));
}

#[tokio::test(start_paused = true)]
async fn a_login_without_a_key_is_adopted_and_bound() {
    let own = key();
    let (issuer, store) = (Issuer::new([]), FakeStore::holding(pair("a", "r")));
    let (builder, told) = session(Tokens::empty(), Some(&own), &issuer, store.clone());
    let session = builder.restore().await.unwrap();
    assert_eq!(held(&session), texts("a", "r"));
    session.refresh().await.unwrap();
    assert_eq!(store.stored().unwrap().key_thumbprint(), Some(own.thumbprint()));
    assert!(told.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_generated_key_and_a_store_is_a_warning() {
    let generated = DpopKey::generate().unwrap();
    for (own, has_store, expected) in
        [(&generated, true, 1), (&generated, false, 0), (&key(), true, 0)]
    {
        let log = Log::default();
        let _guard = log.here();
        let builder = Session::builder(pair("t0", "r0"))
            .origin(ORIGIN)
            .placement(Placement::dpop(own.clone()));
        let builder = if has_store { builder.store(FakeStore::default()) } else { builder };
        builder.build().unwrap();
        assert_eq!(log.lines("WARN").len(), expected, "{:?}", log.lines("WARN"));
    }
}

#[tokio::test]
async fn every_store_keeps_the_key() {
    let own = key();
    let folder = tempfile::tempdir().unwrap();
    let (plain, sealed) = (folder.path().join("plain.json"), folder.path().join("sealed.json"));
    let stores: [Box<dyn TokenStore>; 3] = [
        Box::new(MemoryStore::default()),
        Box::new(FileStore::new(&plain)),
        Box::new(FileStore::new(&sealed).encrypt_with(&[7; 32])),
    ];
    for store in stores {
        let lock = store.lock().await.unwrap();
        store.save(&lock, &of(&own, "a", "r")).await.unwrap();
        let found = store.load().await.unwrap().unwrap();
        assert_eq!(found.key_thumbprint(), Some(own.thumbprint()));
        store.save(&lock, &pair("a", "r")).await.unwrap();
        let found = store.load().await.unwrap().unwrap();
        assert_eq!(found.key_thumbprint(), None);
    }
    FileStore::new(&plain)
        .save(&FileStore::new(&plain).lock().await.unwrap(), &of(&own, "a", "r"))
        .await
        .unwrap();
    let document: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&plain).unwrap()).unwrap();
    assert_eq!(document["version"], 2);
    assert_eq!(document["cnf"]["jkt"], own.thumbprint());
}

#[tokio::test]
async fn a_login_outlives_a_restart_with_its_key() {
    let server = AuthServer::builder().dpop(Dpop::new().api_nonces(1)).start().await;
    let store = MemoryStore::default();
    let own = key();
    let start = |tokens: Tokens, key: &DpopKey| {
        Session::builder(tokens)
            .origin(server.origin())
            .placement(Placement::dpop(key.clone()))
            .refresher(OAuthRefresh::new(server.token_endpoint()))
            .store(store.clone())
    };
    let first = start(server.login(), &own).build().unwrap();
    first.refresh().await.unwrap();
    drop(first);
    let wrong = start(Tokens::empty(), &key()).restore().await.unwrap();
    assert_eq!(wrong.refresh().await.unwrap_err().kind(), ErrorKind::LoginRequired);
    let second = start(Tokens::empty(), &own).restore().await.unwrap();
    second.refresh().await.unwrap();
    let none = reqwest::redirect::Policy::none();
    let client = second.wrap(reqwest::Client::builder().redirect(none).build().unwrap());
    assert_eq!(client.get(server.url("/a")).send().await.unwrap().status(), 200);
}
