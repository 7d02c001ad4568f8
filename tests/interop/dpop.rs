//! Tokens that are bound to a key (RFC 9449), with a provider that demands a nonce in each proof.
//! The API is the provider's own userinfo endpoint.

use reqwest_middleware::ClientWithMiddleware;
use reqwest_reauth::{
    DpopAlg, DpopKey, Error, ErrorKind, FileStore, Placement, Session, SessionBuilder, Tokens,
};

use crate::peers::{Events, Peers, REVOCATION, TOKEN, refresh_token};

const API: &str = "/me";

fn start() -> Peers {
    Peers::start(&[("DPOP", "1"), ("TTL", "36000"), ("REFRESH_TTL", "36000")])
}

fn key() -> DpopKey {
    DpopKey::generate().unwrap()
}

fn bound(peers: &Peers, key: &DpopKey, tokens: Tokens) -> (SessionBuilder, Events) {
    let (builder, events) = peers.builder(tokens, peers.plain_refresher());
    (builder.placement(Placement::dpop(key.clone())), events)
}

async fn login(peers: &Peers, key: &DpopKey) -> Session {
    let tokens = peers.bound_seed(key.thumbprint()).await.tokens();
    bound(peers, key, tokens).0.build().unwrap()
}

fn client(session: &Session) -> ClientWithMiddleware {
    let none = reqwest::redirect::Policy::none();
    session.wrap(reqwest::Client::builder().redirect(none).build().unwrap())
}

async fn get(peers: &Peers, session: &Session) -> u16 {
    let response = client(session).get(peers.origin() + API).send().await.unwrap();
    response.status().as_u16()
}

pub(crate) async fn a_refresh_learns_the_providers_nonce() {
    let peers = start();
    let key = key();
    let session = login(&peers, &key).await;
    assert_eq!(get(&peers, &session).await, 200, "the token of the login");
    for _ in 0..3 {
        let before = refresh_token(&session);
        session.refresh().await.unwrap();
        assert_ne!(refresh_token(&session), before);
        assert_eq!(get(&peers, &session).await, 200);
    }
    assert_eq!(peers.answered("GET /me 401").await, 1, "the first proof of all had no nonce");
    assert_eq!(peers.answered("GET /me 200").await, 4);
    assert_eq!(peers.answered("POST /token 400").await, 1);
    assert_eq!(peers.answered("POST /token 200").await, 3);
}

pub(crate) async fn nonces_that_end_cost_one_request_each() {
    let peers = start();
    let session = login(&peers, &key()).await;
    session.refresh().await.unwrap();
    assert_eq!(get(&peers, &session).await, 200);
    // The next nonce arrives with a response before the first one expires.
    for _ in 0..3 {
        peers.later(60).await;
        session.refresh().await.unwrap();
        assert_eq!(get(&peers, &session).await, 200);
    }
    assert_eq!(peers.answered("GET /me 401").await, 1);
    assert_eq!(peers.answered("POST /token 400").await, 1);
    // No request was sent for a while.
    peers.later(3600).await;
    session.refresh().await.unwrap();
    assert_eq!(get(&peers, &session).await, 200);
    assert_eq!(peers.answered("GET /me 401").await, 2);
    assert_eq!(peers.answered("POST /token 400").await, 2);
    assert_eq!(peers.answered("POST /token 200").await, 5);
}

pub(crate) async fn a_login_of_another_key_is_over() {
    let peers = start();
    let tokens = peers.bound_seed(key().thumbprint()).await.tokens();
    let (builder, _) = bound(&peers, &key(), tokens);
    let session = builder.build().unwrap();
    let error = client(&session).get(peers.origin() + API).send().await.unwrap_err();
    let error = Error::find_in(&error).unwrap();
    assert_eq!(error.kind(), ErrorKind::LoginRequired);
    assert_eq!(error.oauth_error(), Some("invalid_grant"));
    assert_eq!(error.api_status().unwrap().as_u16(), 401);
}

pub(crate) async fn a_restart_needs_the_login_and_its_key() {
    let peers = start();
    let folder = tempfile::tempdir().unwrap();
    let store = || FileStore::new(folder.path().join("tokens.json"));
    let pem = {
        let key = key();
        let tokens = peers.bound_seed(key.thumbprint()).await.tokens();
        let session = bound(&peers, &key, tokens).0.store(store()).build().unwrap();
        session.refresh().await.unwrap();
        key.to_pem().unwrap()
    };
    let calls = peers.hits("POST /token").await;

    let (builder, _) = bound(&peers, &key(), Tokens::empty());
    let stranger = builder.store(store()).restore().await.unwrap();
    let error = client(&stranger).get(peers.origin() + API).send().await.unwrap_err();
    assert_eq!(Error::find_in(&error).unwrap().kind(), ErrorKind::LoginRequired);
    assert_eq!(peers.hits("POST /token").await, calls, "its refresh token is not sent");

    let key = DpopKey::from_pem(pem.expose_secret().as_bytes(), DpopAlg::Es256).unwrap();
    let (builder, _) = bound(&peers, &key, Tokens::empty());
    let session = builder.store(store()).restore().await.unwrap();
    assert_eq!(get(&peers, &session).await, 200);
    session.refresh().await.unwrap();
    assert_eq!(get(&peers, &session).await, 200);
}

pub(crate) async fn each_retry_of_a_refresh_is_signed_anew() {
    let peers = start();
    let session = login(&peers, &key()).await;
    // The provider rejects a repeated proof.
    for fault in ["down", "reset", "status 503"] {
        peers.fault(TOKEN, fault, 2).await;
        session.refresh().await.unwrap();
        assert_eq!(get(&peers, &session).await, 200, "{fault}");
    }
    assert_eq!(peers.answered("POST /token 200").await, 3);
}

pub(crate) async fn a_bound_login_is_revoked() {
    let peers = start();
    let key = key();
    let tokens = peers.bound_seed(key.thumbprint()).await.tokens();
    let refresher = peers.plain_refresher().revocation_endpoint(peers.revocation());
    let (builder, events) = peers.builder(tokens.clone(), refresher);
    let session = builder.placement(Placement::dpop(key.clone())).build().unwrap();
    assert_eq!(get(&peers, &session).await, 200);
    session.clear().await.unwrap();
    assert_eq!(peers.answered(&format!("POST {REVOCATION} 200")).await, 2);
    assert_eq!(
        events.count(|event| matches!(event, reqwest_reauth::Event::RevocationFailed { .. })),
        0
    );
    let (builder, _) = bound(&peers, &key, tokens);
    let error = builder.build().unwrap().refresh().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LoginRequired);
}
