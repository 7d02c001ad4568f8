//! `testing::AuthServer` as a plain client sees it.

// Helpers of tests may unwrap as tests do.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, SystemTime},
};

use crate::support::pass;
use http::{Method, StatusCode, header};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use reqwest::{Client, Response};
use reqwest_reauth::{
    Tokens,
    testing::{Answer, AuthServer, Refusal, Rotation},
};
use serde_json::{Value, json};

fn client() -> Client {
    Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .build()
        .unwrap()
}

fn access(tokens: &Tokens) -> &str {
    tokens.access_token().unwrap().expose_secret()
}

fn refresh(tokens: &Tokens) -> &str {
    tokens.refresh_token().unwrap().expose_secret()
}

async fn get(server: &AuthServer, path: &str, token: &str) -> Response {
    client().get(server.url(path)).bearer_auth(token).send().await.unwrap()
}

async fn ask(url: String, token: &str) -> reqwest::Result<Response> {
    client()
        .post(url)
        .form(&[("grant_type", "refresh_token"), ("refresh_token", token)])
        .send()
        .await
}

async fn renew(server: &AuthServer, token: &str) -> (StatusCode, Value) {
    let response = ask(server.token_endpoint(), token).await.unwrap();
    (response.status(), response.json().await.unwrap())
}

fn reissued(response: &Response) -> Option<&str> {
    response.headers().get("refreshed-api-token").map(|value| value.to_str().unwrap())
}

fn claims(server: &AuthServer, token: &str) -> Value {
    let mut validation = Validation::new(Algorithm::HS256);
    validation.set_audience(&["api"]);
    validation.validate_exp = false;
    jsonwebtoken::decode(token, &DecodingKey::from_secret(&server.signing_key()), &validation)
        .unwrap()
        .claims
}

fn sign(server: &AuthServer, claims: &Value) -> String {
    jsonwebtoken::encode(
        &Header::default(),
        claims,
        &EncodingKey::from_secret(&server.signing_key()),
    )
    .unwrap()
}

#[tokio::test]
async fn tokens_are_what_jsonwebtoken_would_sign() {
    let seconds = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let server = AuthServer::builder().claim("scope", "execution").start().await;
    let before = seconds();
    let tokens = server.login();
    let claims = claims(&server, access(&tokens));
    assert!((before..=seconds()).contains(&claims["iat"].as_u64().unwrap()), "{claims}");
    assert_eq!(sign(&server, &claims), access(&tokens));
    assert_eq!(claims["exp"].as_u64().unwrap() - claims["iat"].as_u64().unwrap(), 3600);
    assert_eq!(claims["sub"], json!("login-1"));
    assert_eq!(claims["scope"], json!("execution"));
    assert_eq!(get(&server, "/", access(&tokens)).await.status(), 200);
}

#[tokio::test]
async fn a_server_says_where_it_is() {
    let server = AuthServer::start().await;
    let port: u16 = server.origin().strip_prefix("http://127.0.0.1:").unwrap().parse().unwrap();
    assert_eq!(server.url("/jobs"), format!("http://127.0.0.1:{port}/jobs"));
    let shown = format!("{server:?}");
    assert!(shown.contains(server.origin()) && shown.contains("api_hits: 0"), "{shown}");
}

#[tokio::test]
async fn a_body_too_long_is_reported_not_kept() {
    let server = AuthServer::start().await;
    let tokens = server.login();
    let request =
        client()
            .post(server.url("/"))
            .bearer_auth(access(&tokens))
            .body(vec![b'x'; (64 << 20) + 1]);
    let response = request.send().await.unwrap();
    assert_eq!(response.status().as_u16(), 413);
    assert!(response.text().await.unwrap().contains("413 Payload Too Large"));
    assert_eq!(server.api_hits(), 0);
    assert_eq!(server.requests().len(), 0);
}

#[tokio::test]
async fn the_api_echoes_what_it_saw() {
    let server = AuthServer::start().await;
    let tokens = server.login_as("somebody");
    let request =
        client().put(server.url("/jobs/7?status=409")).bearer_auth(access(&tokens)).body("abc");
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), 409);
    let expected = json!({
        "method": "PUT", "path": "/jobs/7", "query": "status=409", "subject": "somebody", "body_length": 3,
        "body_sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
    });
    assert_eq!(response.json::<Value>().await.unwrap(), expected);

    let seen = &server.requests()[0];
    assert_eq!(seen.method, Method::PUT);
    assert_eq!(seen.uri.path(), "/jobs/7");
    assert_eq!(seen.body[..], b"abc"[..]);
    assert_eq!(seen.subject.as_deref(), Some("somebody"));
    assert_eq!(seen.token_id.as_deref(), Some("somebody#1"));
    assert_eq!(seen.status, Some(StatusCode::CONFLICT));
    assert!(!seen.refused);
    assert!(!seen.reissued);
    assert!(!format!("{seen:?}").contains(access(&tokens)));

    let request = client().post(server.url("/?echo")).bearer_auth(access(&tokens)).body("abc");
    assert_eq!(request.send().await.unwrap().text().await.unwrap(), "abc");
    let response =
        get(&server, "/?status=307&location=http%3A%2F%2Felsewhere.example%2F", access(&tokens))
            .await;
    assert_eq!(response.status().as_u16(), 307);
    assert_eq!(response.headers()[header::LOCATION], "http://elsewhere.example/");
    for status in [204, 304] {
        let response = get(&server, &format!("/?status={status}"), access(&tokens)).await;
        assert_eq!(response.headers().get(header::CONTENT_LENGTH), None);
        assert_eq!(response.status().as_u16(), status);
        assert_eq!(response.bytes().await.unwrap().len(), 0);
    }
    // Also on the same connections: nothing was sent that would be taken for the next response.
    let client = client();
    for path in ["/?status=204", "/", "/?status=304", "/"] {
        for method in [Method::HEAD, Method::GET] {
            let request =
                client.request(method.clone(), server.url(path)).bearer_auth(access(&tokens));
            let response = request.send().await.unwrap();
            let length = response
                .headers()
                .get(header::CONTENT_LENGTH)
                .map(|length| length.to_str().unwrap().to_owned());
            let text = response.text().await.unwrap();
            assert_eq!(
                text.is_empty(),
                method == Method::HEAD || path != "/",
                "{method} {path}: {text}"
            );
            // The response to a HEAD describes that of a GET (RFC 9110 §9.3.2).
            assert!(path != "/" || length.is_some_and(|length| length != "0"), "{method} {path}");
        }
    }
}

#[tokio::test]
async fn bad_tokens_are_rejected_as_in_rfc_6750() {
    let server = AuthServer::start().await;
    let tokens = server.login();

    let response = client().get(server.url("/")).send().await.unwrap();
    assert_eq!(response.status(), 401);
    assert_eq!(response.headers()[header::WWW_AUTHENTICATE], r#"Bearer realm="api""#);

    let refused = |response: Response| {
        assert_eq!(response.status(), 401);
        assert!(
            response.headers()[header::WWW_AUTHENTICATE]
                .to_str()
                .unwrap()
                .contains(r#"error="invalid_token""#)
        );
    };
    refused(get(&server, "/", "unknown").await);
    refused(get(&server, "/", access(&AuthServer::start().await.login())).await);
    refused(get(&server, "/", refresh(&tokens)).await);
    server.expire_now();
    refused(get(&server, "/", access(&tokens)).await);
    assert_eq!(get(&server, "/", access(&server.login())).await.status(), 200);
    assert_eq!(server.api_hits(), 6);
    assert_eq!(server.refused(), 5);
    assert_eq!(server.counts_of("login-1").refused, 1);
}

#[tokio::test]
async fn airflow_rejects_with_a_bare_403() {
    let server =
        AuthServer::builder().refusal(Refusal::Forbidden403).lifetime(Duration::ZERO).start().await;
    let response = get(&server, "/", access(&server.login())).await;
    assert_eq!(response.status().as_u16(), 403);
    assert_eq!(response.headers().get(header::WWW_AUTHENTICATE), None);
    assert_eq!(response.text().await.unwrap(), r#"{"detail":"Invalid auth token"}"#);
    assert_eq!(client().get(server.url("/")).send().await.unwrap().status(), 401);
}

#[tokio::test]
async fn late_in_life_any_status_reissues() {
    // The window is the whole life, so that no clock matters.
    let server = AuthServer::builder().reissue_after(0.0).claim("scope", "execution").start().await;
    let tokens = server.login();
    for status in [200, 204, 404, 409, 422, 500] {
        let response = get(&server, &format!("/?status={status}"), access(&tokens)).await;
        assert_eq!(response.status(), status);
        let new = claims(&server, reissued(&response).unwrap());
        assert_eq!(new["sub"], json!("login-1"));
        assert_eq!(new["scope"], json!("execution"));
        assert_ne!(new["jti"], claims(&server, access(&tokens))["jti"]);
    }
    assert_eq!(server.reissued(), 6);
    assert_eq!(server.counts_of("login-1").reissued, 6);
    // The login's own token is still taken: this server is not strict.
    assert_eq!(get(&server, "/", access(&tokens)).await.status(), 200);

    let plain = AuthServer::start().await;
    assert_eq!(reissued(&get(&plain, "/", access(&plain.login())).await), None);
}

#[tokio::test]
async fn in_grace_an_expired_token_is_reissued() {
    let expired = || {
        AuthServer::builder()
            .refusal(Refusal::Forbidden403)
            .lifetime(Duration::ZERO)
            .claim("scope", "execution")
    };
    let server = expired().grace(Duration::from_secs(60)).start().await;
    let tokens = server.login();
    let response = get(&server, "/?status=404", access(&tokens)).await;
    assert_eq!(response.status(), 404);
    let (old, mut new) =
        (claims(&server, access(&tokens)), claims(&server, reissued(&response).unwrap()));
    for name in ["iat", "exp", "jti"] {
        new[name] = old[name].clone();
    }
    assert_eq!(old, new);

    for (name, value) in [
        ("aud", json!("other")),
        ("iss", json!("other")),
        ("sub", json!("nobody")),
        ("nbf", json!(9e12)),
    ] {
        let mut claims = old.clone();
        claims[name] = value;
        let response = get(&server, "/", &sign(&server, &claims)).await;
        assert_eq!(response.status().as_u16(), 403, "{name}");
        assert_eq!(reissued(&response), None, "{name}");
    }
    let forged =
        jsonwebtoken::encode(&Header::default(), &old, &EncodingKey::from_secret(b"guess"))
            .unwrap();
    assert_eq!(get(&server, "/", &forged).await.status(), 403);

    let without = expired().start().await;
    let response = get(&without, "/", access(&without.login())).await;
    assert_eq!(response.status().as_u16(), 403);
    assert_eq!(reissued(&response), None);
}

#[tokio::test]
async fn reuse_of_a_refresh_token_revokes_the_grant() {
    let server = AuthServer::start().await;
    let (tokens, other) = (server.login(), server.login());
    let (status, answer) = renew(&server, refresh(&tokens)).await;
    assert_eq!(status.as_u16(), 200);
    assert_eq!(answer["token_type"], json!("Bearer"));
    assert_eq!(answer["expires_in"], json!(3600));
    assert_eq!(get(&server, "/", answer["access_token"].as_str().unwrap()).await.status(), 200);
    let (status, refused) = renew(&server, refresh(&tokens)).await;
    assert_eq!(status.as_u16(), 400);
    assert_eq!(refused["error"], json!("invalid_grant"));
    assert_eq!(
        renew(&server, answer["refresh_token"].as_str().unwrap()).await.1["error"],
        "invalid_grant"
    );
    assert_eq!(get(&server, "/", answer["access_token"].as_str().unwrap()).await.status(), 401);
    assert!(server.is_revoked("login-1") && !server.is_revoked("login-2"));
    // One after the other.
    assert_eq!(server.concurrent_token_calls_max(), 1);
    assert_eq!(renew(&server, refresh(&other)).await.0, 200);

    let counts = server.counts_of("login-1");
    assert_eq!(counts.token_calls, 3);
    assert_eq!(counts.tokens_issued, 1);
    assert_eq!(counts.reuses, 1);
    assert_eq!(server.token_calls(), 4);
    assert_eq!(server.token_requests().len(), 4);
}

#[tokio::test]
async fn rotation_can_be_lenient_or_off() {
    let server = AuthServer::builder().rotation(Rotation::ReuseGrace).start().await;
    let tokens = server.login();
    let first = renew(&server, refresh(&tokens)).await.1;
    let again = renew(&server, refresh(&tokens)).await.1;
    assert_eq!(first["refresh_token"], again["refresh_token"]);
    assert_ne!(first["access_token"], again["access_token"]);

    let server = AuthServer::builder().rotation(Rotation::Off).start().await;
    let tokens = server.login();
    for _ in 0..2 {
        assert_eq!(renew(&server, refresh(&tokens)).await.1.get("refresh_token"), None);
    }
}

#[tokio::test]
async fn a_strict_server_takes_the_newest_token() {
    let server = AuthServer::builder().only_newest_token().opaque_tokens().start().await;
    let tokens = server.login();
    assert!(!access(&tokens).contains('.') && tokens.expires_at().is_some());
    let new = renew(&server, refresh(&tokens)).await.1;
    assert_eq!(get(&server, "/", access(&tokens)).await.status(), 401);
    assert_eq!(get(&server, "/", new["access_token"].as_str().unwrap()).await.status(), 200);
}

#[tokio::test]
async fn the_other_endpoint_responds_with_cookies() {
    let server = AuthServer::start().await;
    let response = ask(server.cookie_token_endpoint(), refresh(&server.login())).await.unwrap();
    let cookies: Vec<_> = response
        .headers()
        .get_all(header::SET_COOKIE)
        .iter()
        .map(|value| value.to_str().unwrap())
        .collect();
    let value = |name| {
        cookies.iter().find_map(|cookie| cookie.strip_prefix(name)?.split(';').next()).unwrap()
    };
    assert_eq!(get(&server, "/", value("JWT=")).await.status(), 200);
    assert_eq!(renew(&server, value("JWT_REFRESH_TOKEN=")).await.0, 200);
}

#[tokio::test]
async fn only_refresh_requests_get_a_grant() {
    let server = AuthServer::start().await;
    let token = server.login();
    let post =
        |form: Vec<(&'static str, &str)>| client().post(server.token_endpoint()).form(&form).send();
    let table = [
        (vec![("grant_type", "password"), ("refresh_token", "x")], "unsupported_grant_type"),
        (vec![("refresh_token", "x")], "invalid_request"),
        (vec![("grant_type", "refresh_token")], "invalid_request"),
        (vec![("grant_type", "refresh_token"), ("refresh_token", "x")], "invalid_grant"),
        (vec![("grant_type", "refresh_token"), ("refresh_token", access(&token))], "invalid_grant"),
    ];
    for (form, error) in table {
        let response = post(form).await.unwrap();
        assert_eq!(response.status().as_u16(), 400);
        assert_eq!(response.json::<Value>().await.unwrap()["error"], json!(error));
    }
    assert_eq!(client().get(server.token_endpoint()).send().await.unwrap().status(), 405);
    assert_eq!(renew(&server, refresh(&token)).await.0, 200);
}

#[tokio::test]
async fn the_next_requests_can_be_rejected() {
    let server = AuthServer::start().await;
    let tokens = server.login();
    server.refuse_next(0, StatusCode::IM_A_TEAPOT);
    server.refuse_next(2, StatusCode::FORBIDDEN);
    server.reissue_next(1);
    let response = get(&server, "/", access(&tokens)).await;
    assert_eq!(response.status().as_u16(), 403);
    assert!(reissued(&response).is_some());
    let response = get(&server, "/", access(&tokens)).await;
    assert_eq!(response.status().as_u16(), 403);
    assert!(reissued(&response).is_none());
    assert!(response.headers().contains_key(header::WWW_AUTHENTICATE));
    assert_eq!(get(&server, "/", access(&tokens)).await.status(), 200);
}

#[tokio::test]
async fn each_call_takes_one_scripted_response() {
    let server = AuthServer::start().await;
    let tokens = server.login();
    server.script_token_endpoint([
        Answer::Status(502),
        Answer::StatusRetryAfter(503, Duration::from_secs(30)),
        Answer::Html200,
        Answer::Json(json!({"error": "server_error"})),
        Answer::Response(
            http::Response::builder().status(418).header("x-odd", "1").body("tea".into()).unwrap(),
        ),
    ]);
    let call = || ask(server.token_endpoint(), refresh(&tokens));
    let response = call().await.unwrap();
    assert_eq!(response.status(), 502);
    assert!(
        response
            .text()
            .await
            .unwrap()
            .contains("<h1>502 Bad Gateway</h1></center>\r\n<hr><center>nginx/")
    );
    let response = call().await.unwrap();
    assert_eq!(response.status().as_u16(), 503);
    assert_eq!(response.headers()[header::RETRY_AFTER], "30");
    let response = call().await.unwrap();
    assert_eq!(response.status().as_u16(), 200);
    assert_eq!(response.headers()[header::CONTENT_TYPE], "text/html");
    assert_eq!(call().await.unwrap().text().await.unwrap(), r#"{"error":"server_error"}"#);
    let response = call().await.unwrap();
    assert_eq!(response.status().as_u16(), 418);
    assert_eq!(response.headers()["x-odd"], "1");
    assert_eq!(response.text().await.unwrap(), "tea");
    // Nothing was done until now: the refresh token is still good.
    assert_eq!(call().await.unwrap().status(), 200);
    assert_eq!(server.token_calls(), 6);
    assert_eq!(server.counts().tokens_issued, 1);

    server.script_api([Answer::Status(503)]);
    assert_eq!(get(&server, "/", access(&tokens)).await.status(), 503);
    assert_eq!(get(&server, "/", access(&tokens)).await.status(), 200);
}

fn is_reset(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut link = Some(error);
    while let Some(error) = link {
        if error
            .downcast_ref::<std::io::Error>()
            .is_some_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset)
        {
            return true;
        }
        link = error.source();
    }
    false
}

#[tokio::test]
async fn lost_responses_spend_the_token() {
    let server = AuthServer::builder().rotation(Rotation::ReuseGrace).start().await;
    let tokens = server.login();
    server.script_token_endpoint([Answer::Reset, Answer::Lost, Answer::Cut]);
    for issued in [0, 1] {
        let error = ask(server.token_endpoint(), refresh(&tokens)).await.unwrap_err();
        assert!(is_reset(&error), "{error:?}");
        assert_eq!(server.counts().tokens_issued, issued);
    }
    let mut response = ask(server.token_endpoint(), refresh(&tokens)).await.unwrap();
    assert_eq!(response.status().as_u16(), 200);
    assert_eq!(server.counts().tokens_issued, 2);
    let promised = response.content_length().unwrap();
    let mut arrived = 0;
    let broken = loop {
        match response.chunk().await {
            Ok(Some(chunk)) => arrived += chunk.len() as u64,
            Ok(None) => break false,
            Err(_) => break true,
        }
    };
    assert!(broken);
    assert_eq!(arrived, promised / 2);
}

#[tokio::test]
async fn delays_precede_and_late_responses_follow() {
    let server = AuthServer::start().await;
    let tokens = server.login();
    let long = Duration::from_secs(3600);
    server.script_token_endpoint([
        Answer::Delay(long),
        Answer::Hang,
        Answer::Late(long),
        Answer::Delay(Duration::from_millis(1)),
    ]);
    let patience = Duration::from_secs(600);
    let client = Client::builder().timeout(patience).build().unwrap();
    for (calls, issued) in [(1, 0), (2, 0), (3, 1)] {
        let form = [("grant_type", "refresh_token"), ("refresh_token", refresh(&tokens))];
        let call = client.post(server.token_endpoint()).form(&form).send();
        let passing = async {
            while server.token_calls() < calls || server.counts().tokens_issued < issued {
                tokio::task::yield_now().await;
            }
            pass(patience).await;
        };
        assert!(tokio::join!(call, passing).0.unwrap_err().is_timeout());
        assert_eq!(server.counts().tokens_issued, issued);
    }
    assert_eq!(renew(&server, refresh(&tokens)).await.0, 400);
}

#[tokio::test]
async fn a_dropped_server_cuts_its_connections() {
    let server = AuthServer::start().await;
    server.script_api([Answer::Hang]);
    let url = server.url("/");
    let hold = server.hold_api();
    let hanging = tokio::spawn(client().get(&url).send());
    hold.waiting(1).await;
    hold.release();
    drop(server);
    assert!(is_reset(&hanging.await.unwrap().unwrap_err()));
    assert!(client().get(&url).send().await.is_err());
}

#[tokio::test]
async fn held_calls_wait_for_their_release() {
    let server = Arc::new(AuthServer::start().await);
    let hold = server.hold_token_calls();
    let calls: Vec<_> = (0..3)
        .map(|_| {
            let (url, token) = (server.token_endpoint(), server.login());
            tokio::spawn(async move { ask(url, refresh(&token)).await.unwrap().status() })
        })
        .collect();
    hold.waiting(3).await;
    assert_eq!(server.token_calls(), 3);
    assert_eq!(server.counts().tokens_issued, 0);
    hold.release();
    for call in calls {
        assert_eq!(call.await.unwrap(), 200);
    }
    assert_eq!(server.concurrent_token_calls_max(), 3);
}

#[tokio::test]
async fn a_revoked_login_gets_no_token() {
    let server = AuthServer::start().await;
    let tokens = server.login();
    server.revoke("login-1");
    server.reissue_next(1);
    let response = get(&server, "/", access(&tokens)).await;
    assert_eq!(response.status().as_u16(), 401);
    assert_eq!(reissued(&response), None);
    // It was not counted either.
    assert!(reissued(&get(&server, "/", access(&server.login())).await).is_some());
}

#[tokio::test]
async fn logins_are_independent() {
    let server = AuthServer::start().await;
    let (a, b) = (server.login_as("a"), server.login_as("b"));
    server.revoke("a");
    assert_eq!(get(&server, "/", access(&a)).await.status(), 401);
    assert_eq!(renew(&server, refresh(&a)).await.1["error"], "invalid_grant");
    assert_eq!(get(&server, "/", access(&b)).await.status(), 200);
    let again = server.login_as("a");
    assert_eq!(get(&server, "/", access(&again)).await.status(), 200);
    assert_eq!(get(&server, "/", access(&a)).await.status(), 401);

    let ids: HashSet<_> = server.requests().into_iter().map(|request| request.token_id).collect();
    assert_eq!(ids.len(), 3);
    server.forget_requests();
    assert_eq!(server.requests().len(), 0);
    assert_eq!(server.api_hits(), 4);
}
