//! Single-use refresh tokens, and what happens if one is used twice.

use std::{collections::HashSet, time::Duration};

use reqwest_reauth::{Error, ErrorKind, SessionState};

use crate::peers::{Peers, client, refresh_token};

pub(crate) async fn each_refresh_uses_the_last_refresh_token() {
    for (rotate, distinct) in [("1", 4), ("0", 1)] {
        let peers = Peers::start(&[("TTL", "60"), ("ROTATE", rotate)]);
        let (session, _) = peers.session(peers.plain_refresher()).await;
        let mut seen = HashSet::from([refresh_token(&session)]);
        for _ in 0..3 {
            session.refresh().await.unwrap();
            seen.insert(refresh_token(&session));
        }
        assert_eq!(seen.len(), distinct);
        assert_eq!(session.generation(), 4);
        assert_eq!(peers.answered("POST /token 200").await, 3);
    }
}

pub(crate) async fn sixty_four_rejections_are_one_call() {
    let peers = Peers::start(&[("TTL", "60"), ("FORMAT", "opaque")]);
    let (session, _) = peers.session(peers.plain_refresher()).await;
    peers.expire(session.tokens().unwrap().access_token().unwrap().expose_secret()).await;
    let client = client(&session);
    let requests = (0..64).map(|n| {
        let request = client.post(peers.api()).body(format!("body {n}"));
        tokio::spawn(async move {
            let response = request.send().await.unwrap();
            assert_eq!(response.status(), 200);
            let echo: serde_json::Value = response.json().await.unwrap();
            assert_eq!(echo["body"], format!("body {n}"));
        })
    });
    for request in requests.collect::<Vec<_>>() {
        request.await.unwrap();
    }

    assert_eq!(peers.answered("POST /resource/echo 200").await, 64);
    assert!((1..=64).contains(&peers.answered("POST /resource/echo 401").await));
    assert_eq!(peers.hits("POST /token").await, 1);
    assert_eq!(peers.answered("POST /token 200").await, 1);
    session.refresh().await.unwrap();
}

pub(crate) async fn a_grant_revoked_for_reuse_is_not_retried() {
    for format in ["jwt", "opaque"] {
        let peers = Peers::start(&[("TTL", "60"), ("FORMAT", format)]);
        let (session, _) = peers.session(peers.plain_refresher()).await;
        let copy =
            peers.builder(session.tokens().unwrap(), peers.plain_refresher()).0.build().unwrap();
        session.refresh().await.unwrap();

        // A thief, or a forgotten copy: the provider revokes the grant of both.
        let error = copy.refresh().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::LoginRequired);
        assert_eq!(error.oauth_error(), Some("invalid_grant"));
        assert!(!error.possibly_consumed());
        let error = session.refresh().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::LoginRequired);
        assert_eq!(error.oauth_error(), Some("invalid_grant"));
        assert_eq!(session.state(), SessionState::LoginRequired);

        let calls = peers.hits("POST /token").await;
        assert_eq!(calls, 3);
        for _ in 0..3 {
            assert_eq!(session.refresh().await.unwrap_err().kind(), ErrorKind::LoginRequired);
            let sent = client(&session).get(peers.api()).send().await;
            if format == "jwt" {
                // A signed token cannot be revoked. It is valid until it expires.
                assert_eq!(sent.unwrap().status(), 200);
            } else {
                let error = sent.unwrap_err();
                let error = Error::find_in(&error).unwrap();
                assert_eq!(error.kind(), ErrorKind::LoginRequired);
                assert_eq!(error.api_status().unwrap().as_u16(), 401);
            }
        }
        assert_eq!(peers.hits("POST /token").await, calls);

        // A new login ends it.
        session.replace_tokens(peers.seed("plain").await.tokens()).await.unwrap();
        assert_eq!(client(&session).get(peers.api()).send().await.unwrap().status(), 200);
        session.refresh().await.unwrap();
    }
}

pub(crate) async fn an_expired_refresh_token_wants_a_new_login() {
    let peers = Peers::start(&[("TTL", "1"), ("REFRESH_TTL", "1")]);
    let (session, _) = peers.session(peers.plain_refresher()).await;
    // The provider's clock is the real one, and counts whole seconds.
    tokio::time::sleep(Duration::from_millis(2100)).await;

    let error = client(&session).get(peers.api()).send().await.unwrap_err();

    let error = Error::find_in(&error).unwrap();
    assert_eq!(error.kind(), ErrorKind::LoginRequired);
    assert_eq!(error.oauth_error(), Some("invalid_grant"));
    assert!(!error.possibly_consumed());
    // The token had expired, so nothing was sent to the API.
    assert_eq!(error.api_status(), None);
    assert_eq!(peers.hits("POST /token").await, 1);
    assert_eq!(peers.hits("GET /resource/echo").await, 0);
    let error = client(&session).get(peers.api()).send().await.unwrap_err();
    assert_eq!(Error::find_in(&error).unwrap().kind(), ErrorKind::LoginRequired);
    assert_eq!(peers.hits("POST /token").await, 1);
}
