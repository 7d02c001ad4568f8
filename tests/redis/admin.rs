//! What an administrator does to a Redis while sessions live: passwords that change, and memory that
//! runs out. Also a login that is bound to a key (contract 16.5).

use std::sync::{Arc, Mutex};

use crate::redis_server::Server;
use crate::workers::{client, refresh_token, session};
use reqwest_reauth::{
    DpopAlg, DpopKey, Error, ErrorKind, Event, Placement, RedisStore, Session, TokenStore, Tokens,
    testing::{AuthServer, Dpop},
};

async fn login(url: &str, server: &AuthServer, given: &Tokens) -> Result<Session, Error> {
    let store = RedisStore::connect(url, "login").await?;
    session(given.clone(), server.origin(), "member").store(store).restore().await
}

async fn status(session: &Session, server: &AuthServer) -> u16 {
    client(session).get(server.url("/jobs")).send().await.unwrap().status().as_u16()
}

fn held(session: &Session) -> Option<String> {
    session.tokens().as_ref().map(refresh_token)
}

async fn stored(url: &str) -> Option<String> {
    let store = RedisStore::connect(url, "login").await.unwrap();
    store.load().await.unwrap().as_ref().map(refresh_token)
}

/// The password of the user `fleet` changes. Redis keeps open connections signed in, so they are
/// closed here.
pub(crate) async fn a_changed_password_spends_nothing() {
    let redis = Server::start();
    let acl = |password: &str| {
        redis.ask::<()>(&[
            "ACL",
            "SETUSER",
            "fleet",
            "on",
            "resetpass",
            password,
            "~*",
            "&*",
            "+@all",
        ]);
    };
    let url =
        |password: &str| redis.url().replace("redis://", &format!("redis://fleet:{password}@"));
    acl(">0ld-s3cret");
    let server = AuthServer::builder().only_newest_token().start().await;
    let one = login(&url("0ld-s3cret"), &server, &server.login()).await.unwrap();
    one.refresh().await.unwrap();

    // The lock is released behind the refresh. Without the password it would last for its lease.
    while redis.ask::<u64>(&["EXISTS", "{login}:lock"]) > 0 {
        tokio::task::yield_now().await;
    }
    acl(">n3w-s3cret");
    redis.ask::<()>(&["CLIENT", "KILL", "USER", "fleet"]);
    let error = one.refresh().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Store, "{error:?}");
    assert!(error.is_transient());
    assert!(!format!("{error:?}").contains("s3cret"), "{error:?}");
    assert_eq!(status(&one, &server).await, 200, "the access token is good");
    assert_eq!(server.token_calls(), 1, "a rotating token is not sent without the lock");

    let two = login(&url("n3w-s3cret"), &server, &Tokens::empty()).await.unwrap();
    two.refresh().await.unwrap();
    acl(">0ld-s3cret");
    one.refresh().await.unwrap();
    assert_eq!(held(&one), held(&two), "it adopts what was stored in between");
    assert_eq!(server.token_calls(), 2);
    assert_eq!(server.counts().reuses, 0);
}

/// Fills the memory of a Redis until it has evicted every key of the login.
fn evict(redis: &Server) {
    redis.ask::<()>(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]);
    let used: String = redis.ask(&["INFO", "memory"]);
    let used = used.lines().find_map(|line| line.strip_prefix("used_memory:")).unwrap();
    let limit = used.trim().parse::<u64>().unwrap() + (1 << 20);
    redis.ask::<()>(&["CONFIG", "SET", "maxmemory", &limit.to_string()]);
    let filler = "x".repeat(1 << 14);
    for n in 0.. {
        redis.ask::<()>(&["SET", &format!("filler-{n}"), &filler]);
        let left: u64 = redis.ask(&["EXISTS", "{login}:tokens", "{login}:lock", "{login}:fence"]);
        if left == 0 {
            break;
        }
    }
    redis.ask::<()>(&["CONFIG", "SET", "maxmemory", "0"]);
}

/// The tokens and the lock of a refresh in progress are evicted. What it brings is stored again, and
/// the others adopt it.
pub(crate) async fn an_evicted_login_is_stored_again() {
    let redis = Server::start();
    let server = AuthServer::builder().only_newest_token().start().await;
    let given = server.login();
    let one = login(&redis.url(), &server, &given).await.unwrap();
    one.refresh().await.unwrap();
    let two = login(&redis.url(), &server, &Tokens::empty()).await.unwrap();

    let call = server.hold_token_calls();
    let refresh = tokio::spawn({
        let one = one.clone();
        async move { one.refresh().await }
    });
    call.waiting(1).await;
    evict(&redis);
    call.release();
    refresh.await.unwrap().unwrap();
    assert_eq!(stored(&redis.url()).await, held(&one));
    two.refresh().await.unwrap();
    assert_eq!(held(&two), held(&one));
    assert_eq!(server.token_calls(), 2);
    assert_eq!(server.counts().reuses, 0);
}

/// A Redis that is full and evicts nothing rejects the lock, so the refresh token is not spent.
pub(crate) async fn a_full_redis_spends_nothing() {
    let redis = Server::start();
    let server = AuthServer::builder().only_newest_token().start().await;
    let one = login(&redis.url(), &server, &server.login()).await.unwrap();
    one.refresh().await.unwrap();
    redis.ask::<()>(&["CONFIG", "SET", "maxmemory", "1"]);
    let error = one.refresh().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Store, "{error:?}");
    assert!(error.is_transient());
    assert_eq!(status(&one, &server).await, 200);
    assert_eq!(server.token_calls(), 1);
    redis.ask::<()>(&["CONFIG", "SET", "maxmemory", "0"]);
    one.refresh().await.unwrap();
    assert_eq!(server.token_calls(), 2);
    assert_eq!(stored(&redis.url()).await, held(&one));
}

/// Waiters adopt a bound login. A session with another key neither sends nor overwrites it.
pub(crate) async fn a_bound_login_is_shared_by_its_key() {
    let redis = Server::start();
    let server = AuthServer::builder().dpop(Dpop::new()).start().await;
    let key = || {
        let pem = DpopKey::generate().unwrap().to_pem().unwrap();
        DpopKey::from_pem(pem.expose_secret().as_bytes(), DpopAlg::Es256).unwrap()
    };
    let (own, other) = (key(), key());
    let ignored = Arc::new(Mutex::new(Vec::new()));
    let given = server.login();
    let member = async |key: &DpopKey, given: &Tokens| {
        let heard = Arc::clone(&ignored);
        let builder = session(given.clone(), server.origin(), "member")
            .placement(Placement::dpop(key.clone()))
            .store(redis.store().await)
            .on_event(move |event| {
                if let Event::StoredLoginIgnored { thumbprint, .. } = event {
                    heard.lock().unwrap().push(thumbprint.clone());
                }
            });
        builder.restore().await.unwrap()
    };
    let (one, two) = (member(&own, &given).await, member(&own, &given).await);
    let call = server.hold_token_calls();
    let refreshes = tokio::spawn({
        let (one, two) = (one.clone(), two.clone());
        async move { tokio::join!(one.refresh(), two.refresh()) }
    });
    call.waiting(1).await;
    call.release();
    let (first, second) = refreshes.await.unwrap();
    first.unwrap();
    second.unwrap();
    assert_eq!(server.token_calls(), 1);
    assert_eq!(held(&one), held(&two));

    let stranger = member(&other, &Tokens::empty()).await;
    let error = stranger.refresh().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LoginRequired);
    assert_eq!(*ignored.lock().unwrap(), [own.thumbprint()]);
    let found = redis.store().await.load().await.unwrap().unwrap();
    assert_eq!(found.key_thumbprint(), Some(own.thumbprint()));
    assert_eq!(status(&two, &server).await, 200);
    assert_eq!(server.token_calls(), 1);
}
