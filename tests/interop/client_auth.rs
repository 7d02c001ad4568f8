//! RFC 6749 §2.3.1, with secrets whose characters matter.

use reqwest_reauth::ErrorKind;

use crate::peers::{Peers, client, refresh_token};

pub(crate) async fn each_client_authentication_works() {
    let peers = Peers::start(&[("TTL", "60")]);
    let ways = [
        ("plain", peers.plain_refresher()),
        ("basic", peers.refresher().client_secret_basic("basic:client", "basic secret:%+/")),
        ("post", peers.refresher().client_secret_post("post-client", "post secret&=+")),
        ("public", peers.refresher().client_id("public-client")),
    ];
    for (name, refresher) in ways {
        peers.forget().await;
        let tokens = peers.seed(name).await.tokens();
        let session = peers.builder(tokens, refresher).0.build().unwrap();
        for expected in 1..=2 {
            session.refresh().await.unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(peers.hits("POST /token").await, expected, "{name}");
            assert_eq!(
                client(&session).get(peers.api()).send().await.unwrap().status(),
                200,
                "{name}"
            );
        }
    }
    assert_eq!(peers.answered("POST /token 200").await, 8);
    assert_eq!(peers.answered("GET /resource/echo 401").await, 0);
}

pub(crate) async fn a_wrong_secret_costs_no_refresh_token() {
    let peers = Peers::start(&[("TTL", "60")]);
    let refresher = peers.refresher().client_secret_basic("plain-client", "wrong");
    let (session, _) = peers.session(refresher).await;
    let before = refresh_token(&session);

    let error = session.refresh().await.unwrap_err();

    assert_eq!(error.kind(), ErrorKind::ClientRejected);
    assert_eq!(error.oauth_error(), Some("invalid_client"));
    assert_eq!(error.status().unwrap(), 401);
    assert_eq!(error.attempts(), 1);
    assert_eq!(peers.hits("POST /token").await, 1);
    assert_eq!(refresh_token(&session), before);

    // It still works with the right secret.
    let right =
        peers.builder(session.tokens().unwrap(), peers.plain_refresher()).0.build().unwrap();
    right.refresh().await.unwrap();
}
