//! The page "Providers" of the guide: what works without a setting, and the rules for what does not.

use std::time::Duration;

use reqwest_middleware::{ClientBuilder, ClientWithMiddleware};
use reqwest_reauth::{
    ClientBuilderExt, Error, ErrorKind, OAuthRefresh, Reading, Session, TokenResponse, Tokens,
};
use serde::Deserialize;

use crate::raw::{Reply, Server};

/// A session with the tokens `T0` and `R0`, an API that accepts every other token, and a token
/// endpoint that responds from a script and then with `T9`.
struct Provider {
    api: Server,
    endpoint: Server,
    session: Session,
    client: ClientWithMiddleware,
}

impl Provider {
    async fn answering(script: Vec<Reply>, set: impl FnOnce(OAuthRefresh) -> OAuthRefresh) -> Self {
        let api = Server::simple(|seen| {
            Reply::status(if seen.token() == Some("T0") { 401 } else { 200 })
        })
        .await;
        let endpoint = Server::simple(move |seen| {
            script.get(seen.number - 1).cloned().unwrap_or_else(|| ok(r#"{"access_token":"T9"}"#))
        })
        .await;
        let refresher = OAuthRefresh::new(endpoint.url("/token"))
            .backoff(Duration::from_millis(1), Duration::from_millis(1));
        let tokens = Tokens::new("T0").unwrap().with_refresh_token("R0").unwrap();
        let session = Session::builder(tokens)
            .origin(api.origin())
            .refresher(set(refresher))
            .build()
            .unwrap();
        let client =
            ClientBuilder::new(reqwest::Client::new()).with_session(session.clone()).build();
        Self { api, endpoint, session, client }
    }

    async fn get(&self) -> Result<u16, Error> {
        match self.client.get(self.api.url("/")).send().await {
            Ok(response) => Ok(response.status().as_u16()),
            Err(error) => Err(Error::find_in(&error).expect("an error of ours").clone()),
        }
    }

    fn held(&self) -> [String; 2] {
        let tokens = self.session.tokens().unwrap();
        [
            tokens.access_token().unwrap().expose_secret().to_owned(),
            tokens.refresh_token().unwrap().expose_secret().to_owned(),
        ]
    }
}

fn ok(body: &str) -> Reply {
    Reply::status(200).json(body)
}

fn plain(refresher: OAuthRefresh) -> OAuthRefresh {
    refresher
}

/// Asserts that the first response is a grant of these tokens.
async fn grants(reply: Reply, access: &str, refresh: &str) {
    let provider = Provider::answering(vec![reply], plain).await;
    assert_eq!(provider.get().await.unwrap(), 200);
    assert_eq!(provider.held(), [access, refresh]);
    assert_eq!(provider.endpoint.count(), 1);
}

/// Asserts that the login is over after one call.
async fn ends(reply: Reply, code: &str, set: impl FnOnce(OAuthRefresh) -> OAuthRefresh) {
    let provider = Provider::answering(vec![reply], set).await;
    let error = provider.get().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LoginRequired);
    assert_eq!(error.oauth_error(), Some(code));
    assert_eq!(provider.endpoint.count(), 1);
}

#[tokio::test]
async fn salesforce() {
    let grant = r#"{"access_token":"00D7!AQ.x","token_type":"Bearer","issued_at":"1278448384422"}"#;
    grants(ok(grant), "00D7!AQ.x", "R0").await;
    let busy = r#"{"error":"invalid_grant","error_description":"token request is already being processed"}"#;
    let busy = Reply::status(400).json(busy);
    let provider = Provider::answering(vec![busy, ok(grant)], plain).await;
    assert_eq!(provider.get().await.unwrap(), 200);
    assert_eq!(provider.held(), ["00D7!AQ.x", "R0"]);
}

#[tokio::test]
async fn github() {
    let form = |body: &str| {
        Reply::status(200).header("content-type", "application/x-www-form-urlencoded").body(body)
    };
    grants(form("access_token=ghu_1&expires_in=28800&refresh_token=ghr_1"), "ghu_1", "ghr_1").await;
    ends(form("error=bad_refresh_token"), "bad_refresh_token", plain).await;
    ends(ok(r#"{"error":"bad_refresh_token"}"#), "bad_refresh_token", plain).await;
}

#[tokio::test]
async fn google() {
    grants(
        ok(r#"{"access_token":"ya29.a0","expires_in":3599,"token_type":"Bearer"}"#),
        "ya29.a0",
        "R0",
    )
    .await;
    let limited = Reply::status(403).json(r#"{"error":"rate_limit_exceeded"}"#);
    let provider = Provider::answering(vec![limited], plain).await;
    assert_eq!(provider.get().await.unwrap(), 200);
    assert_eq!(provider.endpoint.count(), 2);
}

#[tokio::test]
async fn microsoft_entra() {
    for code in ["interaction_required", "login_required", "consent_required"] {
        ends(Reply::status(400).json(format!(r#"{{"error":"{code}"}}"#)), code, plain).await;
    }
    let throttle = r#"{"error":"invalid_grant","error_description":"AADSTS50196: The server terminated an operation because it encountered a client request loop."}"#;
    let provider = Provider::answering(vec![Reply::status(400).json(throttle)], plain).await;
    let error = provider.get().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert_eq!(error.retry_after(), Some(Duration::from_secs(60)));
    assert_eq!(provider.endpoint.count(), 1);
}

#[tokio::test]
async fn slack() {
    let grant =
        r#"{"ok":true,"access_token":"xoxe.xoxb-1","token_type":"bot","refresh_token":"xoxe-1-N"}"#;
    grants(ok(grant), "xoxe.xoxb-1", "xoxe-1-N").await;
    for code in ["invalid_refresh_token", "token_expired", "token_revoked"] {
        ends(ok(&format!(r#"{{"ok":false,"error":"{code}"}}"#)), code, plain).await;
    }
}

#[tokio::test]
async fn ebay() {
    let grant = r#"{"access_token":"v^1.1#i^1#t^U","token_type":"User Access Token"}"#;
    let set = |refresher: OAuthRefresh| {
        refresher
            .client_secret_basic("app", "PRD-a1b2")
            .scope("https://api.ebay.com/oauth/api_scope")
    };
    let provider = Provider::answering(vec![ok(grant)], set).await;
    assert_eq!(provider.get().await.unwrap(), 200);
    assert_eq!(provider.held(), ["v^1.1#i^1#t^U", "R0"]);
    let call = provider.endpoint.seen().remove(0);
    assert_eq!(call.all("authorization"), ["Basic YXBwOlBSRC1hMWIy"]);
}

fn strava(refresher: OAuthRefresh) -> OAuthRefresh {
    #[derive(Deserialize)]
    struct Refusal {
        errors: Vec<Fault>,
    }
    #[derive(Deserialize)]
    struct Fault {
        resource: String,
        code: String,
    }
    let is_over = |refusal: &Refusal| {
        refusal
            .errors
            .iter()
            .any(|fault| fault.resource == "RefreshToken" && fault.code == "invalid")
    };
    refresher.read_response(move |response, reading| match response.json() {
        Some(refusal) if is_over(&refusal) => Reading::LoginRequired,
        _ => reading,
    })
}

#[tokio::test]
async fn strava_says_it_in_its_errors() {
    let over = r#"{"message":"Bad Request","errors":[{"resource":"RefreshToken","field":"refresh_token","code":"invalid"}]}"#;
    ends(Reply::status(400).json(over), "invalid", strava).await;
    let grant = ok(r#"{"token_type":"Bearer","access_token":"a9","refresh_token":"b5"}"#);
    let provider = Provider::answering(vec![grant], strava).await;
    assert_eq!(provider.get().await.unwrap(), 200);
    assert_eq!(provider.held(), ["a9", "b5"]);
}

#[tokio::test]
async fn tiktok_and_others_with_a_member_around_it() {
    let nested = |name: &str| {
        ok(&format!(
            r#"{{"{name}":{{"access_token":"T1","refresh_token":"R1"}},"message":"success"}}"#
        ))
    };
    for (name, pointer) in [("data", "/data"), ("body", "/body")] {
        let set = |refresher: OAuthRefresh| {
            refresher.read_response(|response, _| response.read_at(pointer))
        };
        let provider = Provider::answering(vec![nested(name)], set).await;
        assert_eq!(provider.get().await.unwrap(), 200);
        assert_eq!(provider.held(), ["T1", "R1"]);
        assert_eq!(provider.endpoint.count(), 1);
    }
    ends(ok(r#"{"error":"invalid_grant","log_id":"2022"}"#), "invalid_grant", plain).await;
}

fn zoho(refresher: OAuthRefresh) -> OAuthRefresh {
    #[derive(Deserialize)]
    struct Refusal {
        error: String,
    }
    refresher.read_response(|response, reading| match response.json::<Refusal>() {
        Some(refusal) if refusal.error == "invalid_code" => Reading::LoginRequired,
        Some(refusal) if refusal.error == "Access Denied" => Reading::Retry,
        _ => reading,
    })
}

#[tokio::test]
async fn zoho_says_it_with_200() {
    ends(ok(r#"{"error":"invalid_code"}"#), "invalid_code", zoho).await;
    let denied = ok(r#"{"error":"Access Denied","status":"failure"}"#);
    let provider = Provider::answering(vec![denied], zoho).await;
    assert_eq!(provider.get().await.unwrap(), 200);
    assert_eq!(provider.endpoint.count(), 2);
}

#[tokio::test]
async fn seqera() {
    let cookies = Reply::status(204)
        .header("set-cookie", "JWT=a.b.c; Path=/; HttpOnly")
        .header("set-cookie", "JWT_REFRESH_TOKEN=r1; Path=/oauth; HttpOnly");
    grants(cookies, "a.b.c", "r1").await;
}

#[tokio::test]
async fn airflow() {
    let api = Server::simple(|seen| match seen.token() {
        Some("T0") => Reply::status(404).header("Refreshed-API-Token", "T1"),
        _ => Reply::status(200),
    })
    .await;
    let session =
        Session::builder(Tokens::new("T0").unwrap()).origin(api.origin()).build().unwrap();
    let client = ClientBuilder::new(reqwest::Client::new()).with_session(session).build();
    assert_eq!(client.get(api.url("/")).send().await.unwrap().status(), 404);
    assert_eq!(client.get(api.url("/")).send().await.unwrap().status(), 200);
}

// ---- the rule itself

type Rule = fn(&TokenResponse, Reading) -> Reading;

async fn ruled(script: Vec<Reply>, rule: Rule) -> Provider {
    Provider::answering(script, |refresher| refresher.read_response(rule)).await
}

#[tokio::test]
async fn the_built_in_reading_changes_nothing() {
    let rows = [
        (400, "", ErrorKind::ClientRejected),
        (400, r#"{"error":"invalid_grant"}"#, ErrorKind::LoginRequired),
        (302, "", ErrorKind::BadResponse),
        (505, "", ErrorKind::Unavailable),
        (407, "", ErrorKind::Unavailable),
        (200, "<html>", ErrorKind::BadResponse),
        (200, r#"{"access_token":"T1","token_type":"mac"}"#, ErrorKind::BadResponse),
    ];
    for (status, body, kind) in rows {
        let provider = ruled(vec![Reply::status(status).json(body)], |_, reading| reading).await;
        assert_eq!(provider.get().await.unwrap_err().kind(), kind, "{status} {body}");
        assert_eq!(provider.endpoint.count(), 1, "{status} {body}");
    }
    let rescued = ok(r#"{"refresh_token":"R1"}"#);
    let provider = ruled(vec![Reply::status(502), rescued], |_, reading| reading).await;
    assert_eq!(provider.get().await.unwrap(), 200);
    assert_eq!(provider.held(), ["T9", "R1"]);
}

#[tokio::test]
async fn a_rule_decides_and_a_new_refresh_token_stays() {
    let rows: [(Rule, ErrorKind); 4] = [
        (|_, _| Reading::LoginRequired, ErrorKind::LoginRequired),
        (|_, _| Reading::ClientRejected, ErrorKind::ClientRejected),
        (|_, _| Reading::Unusable, ErrorKind::BadResponse),
        (|_, _| panic!("scripted"), ErrorKind::Internal),
    ];
    crate::support::silence_scripted_panics();
    for (rule, kind) in rows {
        let provider = ruled(vec![ok(r#"{"access_token":"T1","refresh_token":"R1"}"#)], rule).await;
        assert_eq!(provider.get().await.unwrap_err().kind(), kind);
        assert_eq!(provider.held(), ["T0", "R1"], "{kind:?}");
        assert_eq!(provider.endpoint.count(), 1, "{kind:?}");
    }
}

#[tokio::test]
async fn tokens_of_a_rule_are_used_as_they_are() {
    let body = r#"{"token":"T1","refresh_token":"R1","token_type":"mac"}"#;
    let provider = ruled(vec![ok(body)], |_, _| Reading::Tokens(Tokens::new("T1").unwrap())).await;
    assert_eq!(provider.get().await.unwrap(), 200);
    assert_eq!(provider.held(), ["T1", "R1"]);
    // Without an access token it is the useless response.
    let provider = ruled(vec![ok("{}")], |_, _| Reading::Tokens(Tokens::empty())).await;
    assert_eq!(provider.get().await.unwrap_err().kind(), ErrorKind::BadResponse);
}

#[tokio::test]
async fn a_nested_refresh_token_is_kept_and_used() {
    let nested = || ok(r#"{"data":{"refresh_token":"R1"}}"#);
    let script = vec![nested(), ok(r#"{"data":{"access_token":"T2"}}"#)];
    let provider = ruled(script, |response, _| response.read_at("/data")).await;
    assert_eq!(provider.get().await.unwrap(), 200);
    assert_eq!(provider.held(), ["T2", "R1"]);
    // Kept, even if the rule says otherwise.
    let rule: Rule = |response, reading| {
        response.read_at("/data");
        reading
    };
    let provider = ruled(vec![nested()], rule).await;
    assert_eq!(provider.get().await.unwrap_err().kind(), ErrorKind::BadResponse);
    assert_eq!(provider.held(), ["T0", "R1"]);
}

#[test]
fn a_rule_can_be_tested_alone() {
    let headers = http::HeaderMap::new();
    let body = r#"{"data":{"access_token":"T1","expires_in":60},"secret":"s3cret"}"#;
    let response = TokenResponse::new(http::StatusCode::OK, headers, body);
    let Reading::Tokens(tokens) = response.read_at("/data") else { panic!("no tokens") };
    assert_eq!(tokens.access_token().unwrap().expose_secret(), "T1");
    assert!(tokens.expires_at().is_some());
    assert!(matches!(response.read_at(""), Reading::Unusable));
    assert!(matches!(response.read_at("/none"), Reading::Unusable));
    assert_eq!(response.body(), body.as_bytes());
    assert!(!format!("{response:?}").contains("s3cret"));
}
