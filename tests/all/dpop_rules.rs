//! Contract 16.1 to 16.4 and 16.7 in detail, against scripted servers.

use std::{
    collections::{HashSet, VecDeque},
    future::pending,
    process::Command,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{Extensions, Method};
use reqwest::{Request, Response, ResponseBuilderExt as _};
use reqwest_middleware::{ClientBuilder, ClientWithMiddleware, Middleware, Next};
use reqwest_reauth::{
    BoxError, ClientBuilderExt as _, DpopAlg, DpopKey, Error, ErrorKind, OAuthRefresh, Outcome,
    Placement, Reading, RefreshContext, Refresher, Session, SessionBuilder, Tokens, refresh_with,
    testing::{AuthServer, Dpop},
};
use serde_json::Value;
use tokio::task::JoinSet;

use crate::{
    raw::{Reply, Seen, Server},
    support::{error_of, held, never_asked, pair, texts},
};

const JWK: &str = r#"{"kty":"EC","x":"l8tFrhx-34tV3hRICRDY9zCkDlpBhF42UQUfWVAWBFs","y":"9VE4jf_Ok_o64zbTTlcuNJajHmt6v9TDVrU0CdvGRDA","crv":"P-256"}"#;

/// Sends these responses in order, separately for each path, and then 200.
async fn server<const N: usize>(scripts: [(&'static str, Vec<Reply>); N]) -> Server {
    let scripts = scripts.map(|(path, replies)| (path, Mutex::new(VecDeque::from(replies))));
    Server::simple(move |seen| {
        let script = scripts.iter().find(|(path, _)| *path == seen.target);
        let next = script.and_then(|(_, replies)| replies.lock().unwrap().pop_front());
        next.unwrap_or_else(|| Reply::status(200))
    })
    .await
}

/// 401 with a challenge that demands this nonce.
fn ask(nonce: &str) -> Reply {
    challenge("use_dpop_nonce").header("dpop-nonce", nonce)
}

fn challenge(error: &str) -> Reply {
    Reply::status(401).header("www-authenticate", format!(r#"DPoP error="{error}""#))
}

fn token_endpoint_asks(nonce: &str) -> Reply {
    Reply::status(400).header("dpop-nonce", nonce).json(r#"{"error":"use_dpop_nonce"}"#)
}

fn grant(token_type: &str) -> Reply {
    let body = r#"{"access_token":"t1","refresh_token":"r1","token_type":"#;
    Reply::status(200).json(format!("{body}\"{token_type}\"}}"))
}

fn bound(server: &Server) -> SessionBuilder {
    Session::builder(pair("t0", "r0"))
        .origin(server.origin())
        .placement(Placement::dpop(DpopKey::generate().unwrap()))
}

fn renewing(server: &Server) -> OAuthRefresh {
    OAuthRefresh::new(server.url("/token")).backoff(Duration::ZERO, Duration::ZERO)
}

fn client(session: &Session) -> ClientWithMiddleware {
    let none = reqwest::redirect::Policy::none();
    session.wrap(reqwest::Client::builder().redirect(none).build().unwrap())
}

fn of_path(server: &Server, path: &str) -> Vec<Seen> {
    server.seen().into_iter().filter(|seen| seen.target == path).collect()
}

/// The claims of the only proof.
fn claims(seen: &Seen) -> Value {
    let [proof] = seen.all("dpop")[..] else { panic!("{seen:?}") };
    let payload = proof.split('.').nth(1).unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).unwrap()).unwrap()
}

fn nonces(seen: &[Seen]) -> Vec<Option<String>> {
    seen.iter().map(|seen| claims(seen)["nonce"].as_str().map(str::to_owned)).collect()
}

fn some(nonces: &[&str]) -> Vec<Option<String>> {
    nonces.iter().map(|nonce| (!nonce.is_empty()).then(|| (*nonce).to_owned())).collect()
}

// ---- requests

#[tokio::test]
async fn a_request_is_sent_four_times_at_most() {
    let rejected = challenge("invalid_token").header("dpop-nonce", "two");
    let server = server([("/a", vec![ask("one"), rejected, ask("three"), ask("four")])]).await;
    let renewed = refresh_with(|_| async { Tokens::new("t1") });
    let session = bound(&server).refresher(renewed).build().unwrap();
    let response = client(&session).get(server.url("/a")).send().await.unwrap();
    assert_eq!(response.status(), 401);
    assert_eq!(nonces(&server.seen()), some(&["", "one", "two", "three"]));
    let tokens: Vec<_> =
        server.seen().iter().map(|seen| seen.all("authorization")[0].to_owned()).collect();
    assert_eq!(tokens, ["DPoP t0", "DPoP t0", "DPoP t1", "DPoP t1"]);
}

#[tokio::test]
async fn a_nonce_that_was_carried_is_not_sent_again() {
    let first = Reply::status(200).header("dpop-nonce", "one");
    let server = server([("/a", vec![first, ask("one")])]).await;
    let session = bound(&server).build().unwrap();
    let client = client(&session);
    assert_eq!(client.get(server.url("/a")).send().await.unwrap().status(), 200);
    assert_eq!(client.get(server.url("/a")).send().await.unwrap().status(), 401);
    assert_eq!(nonces(&server.seen()), some(&["", "one"]));
}

#[tokio::test]
async fn a_repeat_asks_replay_if() {
    let server = server([("/a", vec![ask("one")])]).await;
    let session = bound(&server).replay_if(|_| false).build().unwrap();
    let response = client(&session).get(server.url("/a")).send().await.unwrap();
    assert_eq!(response.status(), 401);
    assert_eq!(server.count(), 1);
}

#[tokio::test]
async fn rejected_if_sees_the_repeat_alone() {
    let server = server([("/a", vec![ask("one")])]).await;
    let judged = Arc::new(Mutex::new(Vec::new()));
    let to = Arc::clone(&judged);
    let session = bound(&server)
        .rejected_if(move |response, verdict| {
            to.lock().unwrap().push(response.status().as_u16());
            verdict.rejected
        })
        .build()
        .unwrap();
    client(&session).get(server.url("/a")).send().await.unwrap();
    assert_eq!(*judged.lock().unwrap(), [200]);
}

#[tokio::test]
async fn a_redirected_response_is_not_repeated() {
    let moved = Reply::status(307).header("location", "/b");
    let server = server([("/a", vec![moved]), ("/b", vec![ask("one")])]).await;
    let session = bound(&server).build().unwrap();
    // A client that the documentation advises against.
    let client = session.wrap(reqwest::Client::new());
    assert_eq!(client.get(server.url("/a")).send().await.unwrap().status(), 401);
    assert_eq!(server.count(), 2, "the request and its redirect");
    client.get(server.url("/c")).send().await.unwrap();
    assert_eq!(nonces(&of_path(&server, "/c")), some(&["one"]), "its nonce is taken");
}

#[tokio::test]
async fn overriding_replaces_both_headers() {
    let server = server([]).await;
    let session = bound(&server).override_authorization().build().unwrap();
    let own = client(&session).get(server.url("/a")).bearer_auth("own").header("dpop", "mine");
    own.send().await.unwrap();
    let seen = &server.seen()[0];
    assert_eq!(seen.all("authorization"), ["DPoP t0"]);
    assert_eq!(claims(seen)["htu"], server.url("/a"));
}

#[tokio::test]
async fn a_signer_has_the_requests_time() {
    let server = server([]).await;
    let limit = Duration::from_millis(50);
    let hangs = || DpopKey::with_signer(JWK, DpopAlg::Es256, |_| pending()).unwrap();
    let session = || bound(&server).placement(Placement::dpop(hangs()));
    let request = |session: &Session| client(session).get(server.url("/a"));
    let own = request(&session().build().unwrap()).timeout(limit).send().await;
    assert_eq!(error_of(own).kind(), ErrorKind::TimedOut);
    let waiting = session().wait_timeout(limit).build().unwrap();
    assert_eq!(error_of(request(&waiting).send().await).kind(), ErrorKind::TimedOut);
    let credential = waiting.credential(server.url("/a")).await.unwrap();
    let error = credential.headers(&Method::GET, server.url("/a")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    assert_eq!(server.count(), 0);
}

#[tokio::test]
async fn a_proof_is_for_the_sessions_servers() {
    let server = server([]).await;
    let session = bound(&server).build().unwrap();
    let credential = session.credential(server.url("/a")).await.unwrap();
    let error = credential.headers(&Method::GET, "https://other.example.com/a").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UntrustedOrigin);
}

#[tokio::test]
async fn a_challenge_accepts_no_token() {
    let rejected = challenge("invalid_token");
    let server = server([
        ("/a", vec![ask("one"), ask("two"), rejected]),
        ("/token", vec![grant("DPoP"), grant("DPoP")]),
    ])
    .await;
    let session = bound(&server).refresher(renewing(&server)).build().unwrap();
    session.refresh().await.unwrap();
    // The server demands a nonce twice, and never checks the new token.
    for _ in 0..2 {
        let response = client(&session).get(server.url("/a")).send().await.unwrap();
        assert_eq!(response.status(), 401);
    }
    assert_eq!(of_path(&server, "/a").len(), 3);
    assert_eq!(of_path(&server, "/token").len(), 1, "another token would not help");
}

#[tokio::test]
async fn a_rejection_by_another_scheme_is_one() {
    let bearer = Reply::status(401).header("www-authenticate", r#"Bearer error="invalid_token""#);
    let scope = challenge("insufficient_scope");
    let server = server([("/a", vec![bearer]), ("/b", vec![scope])]).await;
    let renewed = refresh_with(|_| async { Tokens::new("t1") });
    let session = bound(&server).refresher(renewed).build().unwrap();
    let client = client(&session);
    assert_eq!(client.get(server.url("/b")).send().await.unwrap().status(), 401);
    assert_eq!(session.generation(), 1, "more scope is no other token");
    assert_eq!(client.get(server.url("/a")).send().await.unwrap().status(), 200);
    assert_eq!(session.generation(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_costs_one_repeat_a_request() {
    const AT_ONCE: u64 = 64;
    let rules = Dpop::new().api_nonces(1).keep_nonces();
    let server = AuthServer::builder().dpop(rules).start().await;
    let session = Session::builder(server.login())
        .origin(server.origin())
        .placement(Placement::dpop(DpopKey::generate().unwrap()))
        .build()
        .unwrap();
    let client = client(&session);
    client.get(server.url("/first")).send().await.unwrap();
    server.rotate_nonces();
    let before = server.api_hits();
    let mut tasks = JoinSet::new();
    for _ in 0..AT_ONCE {
        let sending = client.get(server.url("/a"));
        tasks.spawn(async move { sending.send().await.unwrap().status() });
    }
    assert!(tasks.join_all().await.iter().all(|status| *status == 200));
    let repeats = server.api_hits() - before - AT_ONCE;
    assert!((1..=AT_ONCE).contains(&repeats), "{repeats}");
    client.get(server.url("/last")).send().await.unwrap();
    assert_eq!(server.api_hits(), before + AT_ONCE + repeats + 1);
}

/// Rejects every tenth token, and records the `jti` of each proof.
#[derive(Clone, Default)]
struct Counting {
    ids: Arc<Mutex<Vec<String>>>,
}

#[async_trait]
impl Middleware for Counting {
    async fn handle(
        &self,
        request: Request,
        _: &mut Extensions,
        _: Next<'_>,
    ) -> reqwest_middleware::Result<Response> {
        let proof = request.headers()["dpop"].to_str().unwrap();
        let payload = URL_SAFE_NO_PAD.decode(proof.split('.').nth(1).unwrap()).unwrap();
        let claims: Value = serde_json::from_slice(&payload).unwrap();
        let count = {
            let mut ids = self.ids.lock().unwrap();
            ids.push(claims["jti"].as_str().unwrap().to_owned());
            ids.len()
        };
        let status = if count % 11 == 10 { 401 } else { 200 };
        let response = http::Response::builder().status(status).url(request.url().clone());
        Ok(response.body("").unwrap().into())
    }
}

#[tokio::test]
async fn ten_thousand_requests_repeat_no_jti() {
    let issued = Arc::new(Mutex::new(0_u32));
    let renewed = refresh_with(move |_| {
        let mut issued = issued.lock().unwrap();
        *issued += 1;
        let tokens = Tokens::new(format!("t{issued}"));
        async move { tokens }
    });
    let session = Session::builder(Tokens::new("t0").unwrap())
        .origin(crate::support::ORIGIN)
        .placement(Placement::dpop(DpopKey::generate().unwrap()))
        .refresher(renewed)
        .build()
        .unwrap();
    let api = Counting::default();
    let client =
        ClientBuilder::new(never_asked()).with_session(session.clone()).with(api.clone()).build();
    let mut replays = 0;
    for _ in 0..10_000 {
        let response = client.get(crate::support::url("/a")).send().await.unwrap();
        assert_eq!(response.status(), 200);
        replays += usize::from(
            response.extensions().get::<Outcome>().is_some_and(|outcome| outcome.replayed),
        );
    }
    let ids = api.ids.lock().unwrap();
    assert_eq!(ids.len(), 10_000 + replays);
    assert_eq!(replays, 1_000);
    let distinct: HashSet<_> = ids.iter().collect();
    assert_eq!(distinct.len(), ids.len());
    let length = URL_SAFE_NO_PAD.decode(&ids[0]).unwrap().len();
    assert_eq!(length, 16, "128 bits");
}

// ---- the token endpoint

#[tokio::test]
async fn a_token_endpoint_may_ask_by_its_header() {
    let server = server([("/token", vec![ask("one"), grant("DPoP")])]).await;
    let session = bound(&server).refresher(renewing(&server)).build().unwrap();
    session.refresh().await.unwrap();
    assert_eq!(nonces(&server.seen()), some(&["", "one"]));
    assert_eq!(held(&session), texts("t1", "r1"));
}

#[tokio::test]
async fn a_repeated_call_is_made_anew() {
    let server = server([("/token", vec![token_endpoint_asks("one"), grant("DPoP")])]).await;
    let made = Arc::new(Mutex::new(0));
    let makes = Arc::clone(&made);
    let read = Arc::new(Mutex::new(Vec::new()));
    let reads = Arc::clone(&read);
    let refresher = renewing(&server)
        .param_with("assertion", move || {
            let mut made = makes.lock().unwrap();
            *made += 1;
            let assertion = format!("a{made}");
            async move { Ok(assertion) }
        })
        .read_response(move |response, reading| {
            reads.lock().unwrap().push(response.status().as_u16());
            reading
        });
    let session = bound(&server).refresher(refresher).build().unwrap();
    session.refresh().await.unwrap();
    let forms: Vec<_> = server
        .seen()
        .iter()
        .map(|seen| String::from_utf8_lossy(&seen.body).contains("assertion=a1"))
        .collect();
    assert_eq!(forms, [true, false]);
    assert_eq!(*made.lock().unwrap(), 2);
    assert_eq!(*read.lock().unwrap(), [200], "the rule sees what follows alone");
}

#[tokio::test]
async fn a_response_lost_after_a_challenge() {
    let script = vec![token_endpoint_asks("one"), Reply::bytes(""), grant("DPoP")];
    let server = server([("/token", script)]).await;
    let session = bound(&server).refresher(renewing(&server)).build().unwrap();
    session.refresh().await.unwrap();
    let seen = server.seen();
    let with_token =
        seen.iter().filter(|seen| String::from_utf8_lossy(&seen.body).contains("refresh_token=r0"));
    assert_eq!(with_token.count(), 3);
    let ids: HashSet<_> = seen.iter().map(|seen| claims(seen)["jti"].to_string()).collect();
    assert_eq!(ids.len(), 3);
    assert_eq!(held(&session), texts("t1", "r1"));
}

#[tokio::test]
async fn each_kind_of_downgrade_is_refused() {
    let untyped = || Reply::status(200).json(r#"{"access_token":"t1","refresh_token":"r1"}"#);
    for (reply, is_taken) in [
        (grant("DPoP"), true),
        (grant("dpop"), true),
        (grant("Bearer"), false),
        (grant(" "), false),
        (grant("mac"), false),
        (untyped(), false),
    ] {
        let server = server([("/token", vec![reply.clone()])]).await;
        let session = bound(&server).refresher(renewing(&server)).build().unwrap();
        let refreshed = session.refresh().await;
        assert_eq!(refreshed.is_ok(), is_taken, "{reply:?}");
        if let Err(error) = refreshed {
            assert_eq!(error.kind(), ErrorKind::BadResponse, "{reply:?}");
            assert_eq!(held(&session), texts("t0", "r1"), "the new refresh token is kept");
        }
        assert_eq!(server.count(), 1, "{reply:?}");
    }
    let server = server([("/token", vec![grant("Bearer")])]).await;
    let rule = renewing(&server).read_response(|_, _| Reading::Tokens(pair("own", "rule")));
    let session = bound(&server).refresher(rule).build().unwrap();
    session.refresh().await.unwrap();
    assert_eq!(held(&session), texts("own", "rule"), "what a rule returns is not judged");
}

#[tokio::test]
async fn a_signer_fails_as_a_parameter_does() {
    let server = server([("/token", vec![grant("DPoP")])]).await;
    let calls = Arc::new(Mutex::new(0));
    let key = |fails: fn(u32) -> Option<BoxError>| {
        let calls = Arc::clone(&calls);
        *calls.lock().unwrap() = 0;
        let key = DpopKey::with_signer(JWK, DpopAlg::Es256, move |_| {
            let mut calls = calls.lock().unwrap();
            *calls += 1;
            std::future::ready(fails(*calls).map_or(Ok(vec![1; 64]), Err))
        });
        Placement::dpop(key.unwrap())
    };
    let refresh = async |placement| {
        let builder = bound(&server).placement(placement);
        builder.refresher(renewing(&server)).build().unwrap().refresh().await
    };
    let once = key(|call| (call == 1).then(|| "unplugged".into()));
    refresh(once).await.unwrap();
    assert_eq!(server.count(), 1, "the attempt that was not signed was not sent");
    let always = refresh(key(|_| Some("unplugged".into()))).await.unwrap_err();
    assert_eq!(always.kind(), ErrorKind::Unavailable);
    let wrong = key(|_| Some(Error::new(ErrorKind::InvalidConfig, "no such key").into()));
    assert_eq!(refresh(wrong).await.unwrap_err().kind(), ErrorKind::InvalidConfig);
    assert_eq!(*calls.lock().unwrap(), 1, "not tried again");
}

#[tokio::test]
async fn the_other_grant_is_signed_too() {
    let dead = Reply::status(400).json(r#"{"error":"invalid_grant"}"#);
    let server = server([("/token", vec![dead]), ("/other", vec![grant("DPoP")])]).await;
    let other = OAuthRefresh::client_credentials(server.url("/other"));
    let session = bound(&server).refresher(renewing(&server).or_else(other)).build().unwrap();
    session.refresh().await.unwrap();
    let seen = of_path(&server, "/other");
    assert_eq!(claims(&seen[0])["htu"], server.url("/other"));
}

#[tokio::test]
async fn a_revocation_is_signed() {
    let server = server([("/revoke", vec![token_endpoint_asks("one")])]).await;
    let refresher = renewing(&server).revocation_endpoint(server.url("/revoke"));
    let session = bound(&server).refresher(refresher).build().unwrap();
    session.clear().await.unwrap();
    let seen = of_path(&server, "/revoke");
    assert_eq!(nonces(&seen), some(&["", "one", "one"]), "two tokens and a repeat");
    for call in &seen {
        assert_eq!(claims(call)["htu"], server.url("/revoke"));
        assert_eq!(claims(call).get("ath"), None);
    }
}

#[tokio::test]
async fn a_refresher_of_ones_own_has_the_key() {
    struct Own(Arc<Mutex<Option<String>>>);

    #[async_trait]
    impl Refresher for Own {
        async fn refresh(&self, context: &RefreshContext) -> Result<Tokens, Error> {
            *self.0.lock().unwrap() = context.dpop_key().map(|key| key.thumbprint().to_owned());
            Tokens::new("t1")
        }
    }

    let key = DpopKey::generate().unwrap();
    let told = Arc::new(Mutex::new(None));
    let session = Session::builder(pair("t0", "r0"))
        .origin(crate::support::ORIGIN)
        .placement(Placement::dpop(key.clone()))
        .refresher(Own(Arc::clone(&told)))
        .build()
        .unwrap();
    session.refresh().await.unwrap();
    assert_eq!(told.lock().unwrap().as_deref(), Some(key.thumbprint()));
}

// ---- the build

#[test]
fn no_crypto_of_jsonwebtoken_is_chosen() {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(["tree", "--locked", "--offline", "--all-features", "--edges", "no-dev"])
        .args(["--prefix", "none", "--format", "{p} [{f}]"])
        .output()
        .unwrap();
    let tree = String::from_utf8(output.stdout).unwrap();
    let found: Vec<_> = tree.lines().filter(|line| line.starts_with("jsonwebtoken ")).collect();
    assert!(!found.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    for line in found {
        assert!(line.trim_end_matches(" (*)").ends_with("[]"), "{line}");
    }
}
