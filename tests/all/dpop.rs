//! Contract 16: requests whose token is bound to a key (RFC 9449).

use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{HeaderValue, Method};
use reqwest::StatusCode;
use reqwest_middleware::ClientWithMiddleware;
use reqwest_reauth::{
    Anonymous, DpopAlg, DpopKey, Error, ErrorKind, Event, NotReplayed, OAuthRefresh, Outcome,
    Placement, Session, SessionBuilder, Tokens, refresh_with,
    testing::{Answer, AuthServer, Dpop, Recorded},
};
use serde_json::Value;
use tokio::task::JoinSet;

async fn start(rules: Dpop) -> AuthServer {
    AuthServer::builder().dpop(rules).start().await
}

fn bound(server: &AuthServer) -> SessionBuilder {
    Session::builder(server.login())
        .origin(server.origin())
        .placement(Placement::dpop(DpopKey::generate().unwrap()))
}

fn client(session: &Session) -> ClientWithMiddleware {
    let none = reqwest::redirect::Policy::none();
    session.wrap(reqwest::Client::builder().redirect(none).build().unwrap())
}

fn claims(request: &Recorded) -> Value {
    let proof = request.headers["dpop"].to_str().unwrap();
    let payload = proof.split('.').nth(1).unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).unwrap()).unwrap()
}

fn statuses(server: &AuthServer) -> Vec<u16> {
    server.requests().iter().map(|request| request.status.unwrap().as_u16()).collect()
}

#[tokio::test]
async fn each_request_carries_a_proof_of_its_own() {
    let server = start(Dpop::new()).await;
    let client = client(&bound(&server).build().unwrap());
    let url = server.url("/jobs?page=2#top");
    for _ in 0..2 {
        assert_eq!(client.post(&url).body("x").send().await.unwrap().status(), 200);
    }
    let requests = server.requests();
    let [first, second] = &requests[..] else { panic!("{requests:?}") };
    assert!(first.headers["authorization"].to_str().unwrap().starts_with("DPoP "));
    assert_eq!(claims(first)["htu"], server.url("/jobs"));
    assert_eq!(claims(first)["htm"], "POST");
    assert_ne!(claims(first)["jti"], claims(second)["jti"]);
}

#[tokio::test]
async fn a_nonce_is_learned_from_the_challenge() {
    let server = start(Dpop::new().api_nonces(1)).await;
    let session = bound(&server).build().unwrap();
    let response = client(&session).put(server.url("/a")).body("body").send().await.unwrap();
    assert_eq!(response.status(), 200);
    assert!(response.extensions().get::<Outcome>().is_none(), "a repeat is no replay");
    assert_eq!(statuses(&server), [401, 200]);
    let bodies: Vec<_> = server.requests().into_iter().map(|request| request.body).collect();
    assert_eq!(bodies, ["body", "body"]);
}

#[tokio::test]
async fn a_thousand_requests_meet_one_challenge() {
    let server = start(Dpop::new().api_nonces(1)).await;
    let client = client(&bound(&server).build().unwrap());
    for _ in 0..1000 {
        assert_eq!(client.get(server.url("/a")).send().await.unwrap().status(), 200);
    }
    let challenged = statuses(&server).into_iter().filter(|status| *status == 401).count();
    assert_eq!(challenged, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_at_once_share_the_newest_nonces() {
    let server = start(Dpop::new().api_nonces(512)).await;
    let client = client(&bound(&server).build().unwrap());
    assert_eq!(client.get(server.url("/first")).send().await.unwrap().status(), 200);
    let mut tasks = JoinSet::new();
    for _ in 0..64 {
        let sending = client.get(server.url("/a"));
        tasks.spawn(async move { sending.send().await.unwrap().status() });
    }
    let answers = tasks.join_all().await;
    assert!(answers.iter().all(|status| *status == 200));
    let challenged = statuses(&server).into_iter().filter(|status| *status == 401).count();
    assert_eq!(challenged, 1, "only the first request of all");
    let requests = server.requests();
    let ids: HashSet<_> = requests.iter().map(|request| claims(request)["jti"].clone()).collect();
    assert_eq!(ids.len(), requests.len());
}

#[tokio::test]
async fn a_nonce_that_has_gone_costs_one_more_request() {
    let server = start(Dpop::new().api_nonces(1).keep_nonces()).await;
    let client = client(&bound(&server).build().unwrap());
    client.get(server.url("/a")).send().await.unwrap();
    server.rotate_nonces();
    assert_eq!(client.get(server.url("/b")).send().await.unwrap().status(), 200);
    assert_eq!(statuses(&server), [401, 200, 401, 200]);
}

#[tokio::test]
async fn a_nonce_demand_in_the_body_is_obeyed() {
    let server = start(Dpop::new().api_nonces(1).ask_in_the_body()).await;
    let session = bound(&server).build().unwrap();
    assert_eq!(client(&session).get(server.url("/a")).send().await.unwrap().status(), 200);
    assert_eq!(statuses(&server), [400, 200]);
}

#[tokio::test]
async fn a_body_that_was_looked_into_comes_whole() {
    let server = start(Dpop::new()).await;
    let client = client(&bound(&server).build().unwrap());
    let body = serde_json::json!({"error": "invalid_request", "text": "x".repeat(200_000)});
    let response = http::Response::builder()
        .status(400)
        .header("content-type", "application/json")
        .header("dpop-nonce", "new")
        .body(bytes::Bytes::from(body.to_string()))
        .unwrap();
    server.script_api([Answer::Response(response)]);
    let response = client.get(server.url("/a")).send().await.unwrap();
    assert_eq!(response.status(), 400);
    assert_eq!(response.url().as_str(), server.url("/a"));
    assert_eq!(response.json::<Value>().await.unwrap(), body);
    assert_eq!(server.api_hits(), 1);
}

#[tokio::test]
async fn an_endless_nonce_demand_is_followed_once() {
    let server = start(Dpop::new().challenge_for_ever()).await;
    let renewed = refresh_with(|_| async { Tokens::new("another") });
    let session = bound(&server).refresher(renewed).build().unwrap();
    let response = client(&session).get(server.url("/a")).send().await.unwrap();
    assert_eq!(response.status(), 401);
    assert_eq!(server.api_hits(), 2);
    assert_eq!(session.generation(), 1, "a challenge is no rejection");
}

#[tokio::test]
async fn a_stream_is_not_sent_again_for_a_nonce() {
    let server = start(Dpop::new().api_nonces(1)).await;
    let session = bound(&server).build().unwrap();
    let chunks = futures_util::stream::iter([Ok::<_, std::io::Error>("chunk")]);
    let body = reqwest::Body::wrap_stream(chunks);
    let response = client(&session).put(server.url("/a")).body(body).send().await.unwrap();
    assert_eq!(response.status(), 401);
    let outcome = response.extensions().get::<Outcome>().unwrap();
    assert_eq!(outcome.not_replayed, Some(NotReplayed::BodyNotReplayable));
    assert_eq!(server.api_hits(), 1);
}

#[tokio::test]
async fn a_replay_has_a_new_proof_and_nonce() {
    let server = start(Dpop::new().api_nonces(1)).await;
    let login = server.login();
    let subject = "login-1";
    let newer = Arc::new(Mutex::new(None));
    let renewed = {
        let newer = Arc::clone(&newer);
        refresh_with(move |_| {
            let tokens: Option<Tokens> = newer.lock().unwrap().take();
            async move { Ok(tokens.unwrap()) }
        })
    };
    let session = Session::builder(login)
        .origin(server.origin())
        .placement(Placement::dpop(DpopKey::generate().unwrap()))
        .refresher(renewed)
        .build()
        .unwrap();
    *newer.lock().unwrap() = Some(server.login_as(subject));
    let response = client(&session).get(server.url("/a")).send().await.unwrap();
    assert_eq!(response.status(), 200);
    assert!(response.extensions().get::<Outcome>().unwrap().replayed);
    let requests = server.requests();
    // Challenge, rejection of the old token, and the replay with the nonce of the rejection.
    assert_eq!(statuses(&server), [401, 401, 200]);
    let ids: HashSet<_> = requests.iter().map(|request| claims(request)["jti"].clone()).collect();
    assert_eq!(ids.len(), 3);
    assert_ne!(claims(&requests[1])["ath"], claims(&requests[2])["ath"]);
}

#[tokio::test]
async fn an_invalid_proof_is_the_callers() {
    let server = start(Dpop::new()).await;
    // The login is bound to another key than the session's.
    let login = server.login();
    let session = |tokens: &Tokens| {
        Session::builder(tokens.clone())
            .origin(server.origin())
            .placement(Placement::dpop(DpopKey::generate().unwrap()))
            .refresher(refresh_with(|_| async { Tokens::new("another") }))
            .build()
            .unwrap()
    };
    let signing = DpopKey::with_signer(
        r#"{"kty":"EC","x":"l8tFrhx-34tV3hRICRDY9zCkDlpBhF42UQUfWVAWBFs","y":"9VE4jf_Ok_o64zbTTlcuNJajHmt6v9TDVrU0CdvGRDA","crv":"P-256"}"#,
        DpopAlg::Es256,
        |_| std::future::ready(Ok(vec![1; 64])),
    );
    let wrong = Session::builder(login.clone())
        .origin(server.origin())
        .placement(Placement::dpop(signing.unwrap()))
        .refresher(refresh_with(|_| async { Tokens::new("another") }))
        .build()
        .unwrap();
    let response = client(&wrong).get(server.url("/a")).send().await.unwrap();
    assert_eq!(response.status(), 401);
    assert_eq!(server.api_hits(), 1, "neither repeated nor replayed");
    assert_eq!(wrong.generation(), 1);
    assert_eq!(client(&session(&login)).get(server.url("/a")).send().await.unwrap().status(), 200);
}

#[tokio::test]
async fn own_headers_and_other_servers() {
    let server = start(Dpop::new()).await;
    let elsewhere = start(Dpop::new().api_nonces(1)).await;
    let session = bound(&server).build().unwrap();
    let client = client(&session);
    // With an own Authorization no proof is made, and an own DPoP header stays.
    let own = client.get(server.url("/own")).bearer_auth("own").header("dpop", "mine");
    own.send().await.unwrap();
    client.get(server.url("/anonymous")).with_extension(Anonymous).send().await.unwrap();
    // An own DPoP header alone is replaced.
    client.get(server.url("/proof")).header("dpop", "mine").send().await.unwrap();
    let requests = server.requests();
    assert_eq!(requests[0].headers["dpop"], "mine");
    assert!(!requests[1].headers.contains_key("dpop"));
    assert_eq!(requests[2].status, Some(StatusCode::OK));
    client.get(elsewhere.url("/a")).send().await.unwrap();
    assert!(!elsewhere.requests()[0].headers.contains_key("dpop"));
}

#[tokio::test]
async fn a_signer_that_fails_fails_the_request_unsent() {
    let server = start(Dpop::new()).await;
    let key = DpopKey::with_signer(
        r#"{"kty":"EC","x":"l8tFrhx-34tV3hRICRDY9zCkDlpBhF42UQUfWVAWBFs","y":"9VE4jf_Ok_o64zbTTlcuNJajHmt6v9TDVrU0CdvGRDA","crv":"P-256"}"#,
        DpopAlg::Es256,
        |_| std::future::ready(Err(Error::new(ErrorKind::LoginRequired, "PIN").into())),
    );
    let session = Session::builder(server.login())
        .origin(server.origin())
        .placement(Placement::dpop(key.unwrap()))
        .build()
        .unwrap();
    let error = client(&session).get(server.url("/a")).send().await.unwrap_err();
    assert_eq!(Error::find_in(&error).unwrap().kind(), ErrorKind::LoginRequired);
    assert_eq!(server.api_hits(), 0);
}

#[tokio::test]
async fn a_challenge_may_bring_a_token() {
    let server = start(Dpop::new().api_nonces(1)).await;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&seen);
    let session = bound(&server)
        .on_event(move |event: &Event| told.lock().unwrap().push(format!("{event:?}")))
        .build()
        .unwrap();
    let client = client(&session);
    client.get(server.url("/a")).send().await.unwrap();
    server.reissue_next(1);
    let response = client.get(server.url("/b")).send().await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(session.generation(), 2);
    assert_eq!(client.get(server.url("/c")).send().await.unwrap().status(), 200);
    assert!(seen.lock().unwrap().iter().all(|event| !event.contains("Replayed")));
}

#[tokio::test]
async fn a_credential_has_both_headers_for_its_request() {
    let server = start(Dpop::new().api_nonces(1)).await;
    let session = bound(&server).build().unwrap();
    let url = server.url("/grpc?x=1");
    let http = reqwest::Client::new();
    let calls = Arc::new(Mutex::new(0));
    let status = session
        .with_credential(&url, |credential| {
            let (session, http, url) = (session.clone(), http.clone(), url.clone());
            *calls.lock().unwrap() += 1;
            async move {
                let headers = credential.headers(&Method::POST, &url).await.unwrap();
                assert!(headers.values().all(HeaderValue::is_sensitive));
                let response = http.post(&url).headers(headers).send().await.unwrap();
                let (status, headers) = (response.status(), response.headers());
                session.observe(&credential, &url, status, headers).reply(status)
            }
        })
        .await
        .unwrap();
    assert_eq!(status, 200);
    assert_eq!(*calls.lock().unwrap(), 2, "once more with the nonce");
    assert_eq!(statuses(&server), [401, 200]);
}

#[tokio::test]
async fn a_credential_is_asked_again_for_a_nonce_once() {
    let server = start(Dpop::new().challenge_for_ever()).await;
    let session = bound(&server).build().unwrap();
    let url = server.url("/a");
    let http = reqwest::Client::new();
    let status = session
        .with_credential(&url, |credential| {
            let (session, http, url) = (session.clone(), http.clone(), url.clone());
            async move {
                let headers = credential.headers(&Method::GET, &url).await.unwrap();
                let response = http.get(&url).headers(headers).send().await.unwrap();
                let (status, headers) = (response.status(), response.headers());
                session.observe(&credential, &url, status, headers).reply(status)
            }
        })
        .await
        .unwrap();
    assert_eq!(status, 401);
    assert_eq!(server.api_hits(), 2);
}

fn renewing(server: &AuthServer) -> SessionBuilder {
    bound(server).refresher(OAuthRefresh::new(server.token_endpoint()))
}

#[tokio::test]
async fn a_refresh_learns_its_nonce_within_one_attempt() {
    let server = start(Dpop::new().api_nonces(4).token_endpoint_nonces(1)).await;
    let events = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&events);
    let session = renewing(&server)
        .on_event(move |event: &Event| told.lock().unwrap().push(format!("{event:?}")))
        .build()
        .unwrap();
    session.refresh().await.unwrap();
    assert_eq!(server.token_calls(), 2);
    let calls = server.token_requests();
    assert!(claims(&calls[1]).get("nonce").is_some());
    assert!(claims(&calls[1]).get("ath").is_none());
    assert_eq!(claims(&calls[1])["htu"], server.token_endpoint());
    assert_ne!(claims(&calls[0])["jti"], claims(&calls[1])["jti"]);
    let events = events.lock().unwrap().join(" ");
    assert!(events.contains("attempts: 1"), "{events}");
    assert!(!events.contains("RefreshRetrying"), "{events}");
    // The nonce that came with the grant is the next call's.
    session.refresh().await.unwrap();
    assert_eq!(server.token_calls(), 3);
    assert_eq!(client(&session).get(server.url("/a")).send().await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_failed_attempt_brings_a_nonce_too() {
    let server = start(Dpop::new().token_endpoint_nonces(1)).await;
    server.script_token_endpoint([Answer::Status(503)]);
    let refresher =
        OAuthRefresh::new(server.token_endpoint()).backoff(Duration::ZERO, Duration::ZERO);
    let session = bound(&server).refresher(refresher).build().unwrap();
    session.refresh().await.unwrap();
    assert_eq!(server.token_calls(), 2, "the second carries the nonce of the first's response");
}

#[tokio::test]
async fn a_challenge_that_spent_a_token_is_marked() {
    let server = start(Dpop::new().token_endpoint_nonces(1).spend_first()).await;
    let session = renewing(&server).build().unwrap();
    let error = session.refresh().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LoginRequired);
    assert!(error.possibly_consumed());
    assert_eq!(server.token_calls(), 2);
}

#[tokio::test]
async fn endless_challenges_are_client_rejected() {
    let server = start(Dpop::new()).await;
    let challenge = |nonce: &'static str| {
        let response = http::Response::builder()
            .status(400)
            .header("content-type", "application/json")
            .header("dpop-nonce", nonce)
            .body(bytes::Bytes::from_static(br#"{"error":"use_dpop_nonce"}"#));
        Answer::Response(response.unwrap())
    };
    server.script_token_endpoint([challenge("one"), challenge("two")]);
    let session = renewing(&server).build().unwrap();
    let error = session.refresh().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ClientRejected);
    assert_eq!(error.oauth_error(), Some("use_dpop_nonce"));
    assert!(session.tokens().unwrap().refresh_token().is_some());
    assert_eq!(server.token_calls(), 2);
}

#[tokio::test]
async fn a_downgrade_to_bearer_is_not_taken() {
    let server = start(Dpop::new().say_bearer()).await;
    let session = renewing(&server).build().unwrap();
    let before = session.tokens().unwrap();
    let error = session.refresh().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BadResponse);
    let after = session.tokens().unwrap();
    assert_eq!(after.access_token(), before.access_token());
    assert_ne!(after.refresh_token(), before.refresh_token(), "the new one is kept");
    assert_eq!(server.token_calls(), 1);
}

#[tokio::test]
async fn a_clock_that_is_off_is_named() {
    let server = start(Dpop::new()).await;
    let response = http::Response::builder()
        .status(400)
        .header("content-type", "application/json")
        .header("date", "Thu, 01 Jan 2026 00:00:00 GMT")
        .body(bytes::Bytes::from_static(br#"{"error":"invalid_dpop_proof"}"#));
    server.script_token_endpoint([Answer::Response(response.unwrap())]);
    let session = renewing(&server).build().unwrap();
    let error = session.refresh().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ClientRejected);
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("ahead of the server's"), "{cause}");
}
