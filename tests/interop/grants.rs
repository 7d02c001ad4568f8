//! Grants without a person's login, and logouts that revoke tokens at the provider.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, SystemTime},
};

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use reqwest_reauth::{BoxError, ErrorKind, Event, OAuthRefresh, Tokens};
use serde_json::json;

use crate::peers::{Peers, REVOCATION, TOKEN, client};

/// For the resource that the API is.
fn paced(peers: &Peers, refresher: OAuthRefresh) -> OAuthRefresh {
    refresher
        .backoff(Duration::from_millis(100), Duration::from_millis(400))
        .scope("api")
        .param("resource", peers.resource())
}

fn service(peers: &Peers) -> OAuthRefresh {
    paced(peers, OAuthRefresh::client_credentials(peers.origin() + TOKEN))
        .client_secret_basic("service-client", "service-secret")
}

/// Signs assertions, each with its own `jti` unless it `reuses` one.
async fn signer(peers: &Peers, name: &str, reuses: bool) -> OAuthRefresh {
    let der = peers.key(name).await;
    let (algorithm, key) = match name {
        "es256" => (Algorithm::ES256, EncodingKey::from_ec_der(&der)),
        _ => (Algorithm::RS256, EncodingKey::from_rsa_der(&der)),
    };
    let (id, audience) = (format!("{name}-client"), peers.direct_origin());
    let (subject, count) = (id.clone(), Arc::new(AtomicU32::new(0)));
    let assertion = move |_| {
        let sign = || -> Result<String, BoxError> {
            let number = if reuses { 0 } else { count.fetch_add(1, Ordering::SeqCst) };
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
            let claims = json!({
                "iss": subject, "sub": subject, "aud": audience,
                "jti": format!("{subject}-{number}"), "iat": now, "exp": now + 60,
            });
            Ok(encode(&Header::new(algorithm), &claims, &key)?)
        };
        std::future::ready(sign())
    };
    paced(peers, OAuthRefresh::client_credentials(peers.origin() + TOKEN))
        .client_assertion_with(id, assertion)
}

pub(crate) async fn each_grant_outlasts_two_502() {
    let peers = Peers::start(&[("TTL", "60")]);
    let grants = [
        ("refresh_token", peers.plain_refresher(), peers.seed("plain").await.refresh_alone()),
        ("client_credentials", service(&peers), Tokens::empty()),
        ("ES256", signer(&peers, "es256", false).await, Tokens::empty()),
        ("RS256", signer(&peers, "rs256", false).await, Tokens::empty()),
    ];
    for (name, refresher, tokens) in grants {
        peers.forget().await;
        peers.fault(TOKEN, "down", 2).await;
        let (builder, events) = peers.builder(tokens, refresher);
        let session = builder.build().unwrap();
        let response = client(&session).get(peers.api()).send().await;
        assert_eq!(response.unwrap_or_else(|e| panic!("{name}: {e:?}")).status(), 200, "{name}");
        assert_eq!(peers.hits("POST /token").await, 3, "{name}");
        let statuses: Vec<_> = events.retries().iter().map(|(status, _)| *status).collect();
        assert_eq!(statuses, [Some(502); 2], "{name}");
    }
}

pub(crate) async fn each_attempt_signs_another_assertion() {
    let peers = Peers::start(&[("TTL", "60")]);
    // The provider has seen the first assertion, and accepts no jti twice.
    peers.fault(TOKEN, "lost", 1).await;
    let refresher = signer(&peers, "es256", false).await;
    let session = peers.builder(Tokens::empty(), refresher).0.build().unwrap();
    session.refresh().await.unwrap();
    assert_eq!(peers.hits("POST /token").await, 2);
    assert_eq!(peers.answered_at_least("POST /token 200", 2).await, 2);

    peers.fault(TOKEN, "lost", 1).await;
    let refresher = signer(&peers, "rs256", true).await;
    let session = peers.builder(Tokens::empty(), refresher).0.build().unwrap();
    let error = session.refresh().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ClientRejected);
    assert_eq!(error.attempts(), 2);
    assert!(!error.possibly_consumed());
}

pub(crate) async fn a_crowd_from_nothing_is_one_call() {
    let peers = Peers::start(&[("TTL", "60")]);
    let session = peers.builder(Tokens::empty(), service(&peers)).0.build().unwrap();
    let client = client(&session);
    let send = |_| {
        // Bypasses nginx, which allows a busy provider only two seconds.
        let request = client.get(peers.resource());
        tokio::spawn(async move { request.send().await.unwrap().status().as_u16() })
    };
    let requests: Vec<_> = (0..256).map(send).collect();
    for request in requests {
        assert_eq!(request.await.unwrap(), 200);
    }
    assert_eq!(peers.hits("POST /token").await, 1);
}

pub(crate) async fn the_provider_hears_of_a_logout() {
    let peers = Peers::start(&[("TTL", "60"), ("FORMAT", "opaque")]);
    let seed = peers.seed("plain").await.tokens();
    let refresher = peers.plain_refresher().revocation_endpoint(peers.revocation());
    peers.fault(REVOCATION, "down", 1).await;
    let (builder, events) = peers.builder(seed.clone(), refresher);
    let session = builder.build().unwrap();
    session.clear().await.unwrap();
    assert_eq!(peers.hits("POST /token/revocation").await, 3);
    assert_eq!(peers.answered_at_least("POST /token/revocation 200", 2).await, 2);
    assert_eq!(events.count(|event| matches!(event, Event::RevocationFailed { .. })), 0);

    let again = peers.builder(seed, peers.plain_refresher()).0.build().unwrap();
    assert_eq!(again.refresh().await.unwrap_err().kind(), ErrorKind::LoginRequired);
}

pub(crate) async fn a_dead_login_falls_back_to_the_service() {
    let peers = Peers::start(&[("TTL", "60")]);
    let dead = Tokens::from_refresh_token("dead").unwrap();
    let refresher = peers.plain_refresher().or_else(service(&peers));
    let (builder, events) = peers.builder(dead, refresher);
    let session = builder.build().unwrap();
    assert_eq!(client(&session).get(peers.api()).send().await.unwrap().status(), 200);
    assert_eq!(peers.hits("POST /token").await, 2);
    assert_eq!(events.count(|event| matches!(event, Event::FellBack { .. })), 1);
    assert!(session.tokens().unwrap().refresh_token().is_none());
}
