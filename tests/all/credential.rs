//! Tokens for other clients: which token they get, and what they can report.

use std::{sync::Arc, time::Duration};

use crate::raw::{Counter, Reply as Response, Server};
use crate::support::{
    Api, Events, Issuer, ORIGIN, Turn, answer, held, pair, settle, texts, unavailable, url,
};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use reqwest_reauth::{
    Credential, Error, ErrorKind, Event, OnRefreshFailure, Placement, Reply, Session,
    SessionBuilder, Tokens, ValidFor,
};
use tokio::{sync::Barrier, time::advance};

const HOUR: Duration = Duration::from_secs(3600);
const COOLDOWN: Duration = Duration::from_secs(10);
const MOMENT: Duration = Duration::from_millis(1);

fn builder(issuer: &Issuer) -> SessionBuilder {
    Session::builder(pair("t0", "r0").with_expires_in(HOUR))
        .origin(ORIGIN)
        .refresher(issuer.clone())
}

fn session(script: impl IntoIterator<Item = Turn>) -> (Session, Issuer) {
    let issuer = Issuer::new(script);
    (builder(&issuer).build().unwrap(), issuer)
}

fn text(credential: &Credential) -> String {
    credential.access_token().expose_secret().to_owned()
}

async fn token(session: &Session) -> Result<String, ErrorKind> {
    session.credential(ORIGIN).await.map(|given| text(&given)).map_err(|error| error.kind())
}

fn fail() -> Turn {
    Turn::Fail(Duration::ZERO, unavailable())
}

#[tokio::test(start_paused = true)]
async fn a_valid_token_is_returned_unchanged() {
    let (session, issuer) = session([]);
    let credential = session.credential(url("/any?x=y")).await.unwrap();
    assert_eq!(text(&credential), "t0");
    assert_eq!(credential.generation(), 1);
    let (ends, expected) = (credential.expires_at(), session.tokens().unwrap().expires_at());
    let apart = expected.unwrap().duration_since(ends.unwrap()).unwrap_or_default();
    assert!(apart < HOUR / 60, "{apart:?}");
    let (name, value) = credential.header();
    assert_eq!(name, "authorization");
    assert_eq!(value, "Bearer t0");
    assert!(value.is_sensitive());
    let headers = credential.headers(&Method::GET, url("/")).await.unwrap();
    assert_eq!(headers.len(), 1);
    assert_eq!(headers["authorization"], "Bearer t0");
    assert!(headers["authorization"].is_sensitive());
    assert!(!format!("{credential:?}").contains("t0"));
    assert_eq!(issuer.calls(), 0);
}

#[tokio::test(start_paused = true)]
async fn placements_hold_here_too() {
    let issuer = Issuer::new([]);
    let session = builder(&issuer).placement(Placement::header("X-API-Key")).build().unwrap();
    let credential = session.credential(ORIGIN).await.unwrap();
    let (name, value) = credential.header();
    assert_eq!(name.as_str(), "x-api-key");
    assert_eq!(value.to_str().unwrap(), "t0");
}

#[tokio::test(start_paused = true)]
async fn other_origins_get_no_credential() {
    let (session, issuer) = session([]);
    advance(HOUR).await;
    for url in ["https://api.example.com.evil.example/", "http://api.example.com/", "no url", ""] {
        let error = session.credential(url).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UntrustedOrigin, "{url}");
        let error = session.credential_valid_for(url, HOUR).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UntrustedOrigin, "{url}");
        let called = session.with_credential(url, |_| async { Reply::Accepted(()) }).await;
        assert_eq!(called.unwrap_err().kind(), ErrorKind::UntrustedOrigin, "{url}");
    }
    assert_eq!(issuer.calls(), 0);
    let credential = session.credential(ORIGIN).await.unwrap();
    let elsewhere = credential.headers(&Method::GET, "https://evil.example").await;
    assert_eq!(elsewhere.unwrap_err().kind(), ErrorKind::UntrustedOrigin);
}

#[tokio::test(start_paused = true)]
async fn an_expired_token_is_renewed_once_for_all() {
    let (session, issuer) = session([Turn::Issue(Duration::from_secs(1), Some(HOUR))]);
    advance(HOUR).await;
    let barrier = Arc::new(Barrier::new(64));
    let tasks: Vec<_> = (0..64)
        .map(|_| {
            let (session, barrier) = (session.clone(), Arc::clone(&barrier));
            tokio::spawn(async move {
                barrier.wait().await;
                token(&session).await
            })
        })
        .collect();
    for task in tasks {
        assert_eq!(task.await.unwrap(), Ok("t1".to_owned()));
    }
    assert_eq!(issuer.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_dead_endpoint_is_called_once() {
    let (session, issuer) = session([fail(), fail()]);
    advance(HOUR).await;
    assert_eq!(token(&session).await, Err(ErrorKind::Unavailable));
    for _ in 1..50 {
        assert_eq!(token(&session).await, Err(ErrorKind::CoolingDown));
    }
    assert_eq!(issuer.calls(), 1);
    advance(COOLDOWN).await;
    assert_eq!(token(&session).await, Err(ErrorKind::Unavailable));
    assert_eq!(issuer.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_token_near_its_end_is_renewed_behind() {
    let (session, issuer) = session([]);
    advance(HOUR.saturating_sub(Duration::from_secs(1))).await;
    assert_eq!(token(&session).await, Ok("t0".to_owned()));
    settle().await;
    assert_eq!(issuer.calls(), 1);
    assert_eq!(token(&session).await, Ok("t1".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn without_a_refresher_the_token_is_returned() {
    let tokens = Tokens::new("t0").unwrap().with_expires_in(HOUR);
    let session = Session::builder(tokens).origin(ORIGIN).build().unwrap();
    advance(2 * HOUR).await;
    let credential = session.credential(ORIGIN).await.unwrap();
    session.reject(&credential);
    assert_eq!(token(&session).await, Ok("t0".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn an_ended_session_gives_no_credential() {
    let (one, _) = session([]);
    one.clear().await.unwrap();
    assert_eq!(token(&one).await, Err(ErrorKind::LoginRequired));
    let (other, _) = session([]);
    other.close().await.unwrap();
    assert_eq!(token(&other).await, Err(ErrorKind::Closed));
}

#[tokio::test(start_paused = true)]
async fn a_rejected_token_is_renewed_by_the_next() {
    let (session, issuer) = session([]);
    let credential = session.credential(ORIGIN).await.unwrap();
    session.reject(&credential);
    settle().await;
    assert_eq!(issuer.calls(), 0);
    assert_eq!(token(&session).await, Ok("t1".to_owned()));
    assert_eq!(issuer.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_rejected_token_is_renewed_by_the_chain_too() {
    let api = Api::accepting(|_| true);
    let (session, issuer) = session([]);
    let credential = session.credential(ORIGIN).await.unwrap();
    session.reject(&credential);
    api.client(&session).get(url("/")).send().await.unwrap();
    assert_eq!(api.tokens_seen(), ["t1"]);
    assert_eq!(issuer.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn rejecting_an_old_token_costs_nothing() {
    let (session, issuer) = session([]);
    let old = session.credential(ORIGIN).await.unwrap();
    session.refresh().await.unwrap();
    session.reject(&old);
    assert_eq!(token(&session).await, Ok("t1".to_owned()));
    assert_eq!(issuer.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn another_sessions_credential_is_ignored() {
    let ((one, issuer), (other, _)) = (session([]), session([]));
    one.reject(&other.credential(ORIGIN).await.unwrap());
    assert_eq!(token(&one).await, Ok("t0".to_owned()));
    assert_eq!(issuer.calls(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_rejected_token_is_never_given_again() {
    let (session, issuer) = session([fail()]);
    session.reject(&session.credential(ORIGIN).await.unwrap());
    assert_eq!(token(&session).await, Err(ErrorKind::Unavailable));
    // It has not expired: the chain still sends it (6.3).
    assert_eq!(token(&session).await, Err(ErrorKind::CoolingDown));
    let api = Api::accepting(|_| true);
    api.client(&session).get(url("/")).send().await.unwrap();
    assert_eq!(api.tokens_seen(), ["t0"]);
    advance(COOLDOWN).await;
    assert_eq!(token(&session).await, Ok("t2".to_owned()));
    assert_eq!(issuer.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_token_rejected_in_the_chain_is_withheld() {
    let (session, issuer) = session([fail()]);
    let api = Api::accepting(|token| token != "t0");
    api.client(&session).get(url("/")).send().await.unwrap_err();
    assert_eq!(token(&session).await, Err(ErrorKind::CoolingDown));
    advance(COOLDOWN).await;
    assert_eq!(token(&session).await, Ok("t2".to_owned()));
    assert_eq!(issuer.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_rejected_new_token_is_not_renewed() {
    let (session, issuer) = session([]);
    session.reject(&session.credential(ORIGIN).await.unwrap());
    let second = session.credential(ORIGIN).await.unwrap();
    session.reject(&second);
    for _ in 0..10 {
        assert_eq!(token(&session).await, Err(ErrorKind::CoolingDown));
    }
    // The chain may still send it.
    let api = Api::accepting(|_| true);
    api.client(&session).get(url("/")).send().await.unwrap();
    settle().await;
    assert_eq!(issuer.calls(), 1);
    assert_eq!(api.tokens_seen(), ["t1"]);
}

#[tokio::test(start_paused = true)]
async fn a_token_can_be_wanted_for_long() {
    let (session, issuer) = session([Turn::Issue(Duration::ZERO, Some(HOUR))]);
    let wanted =
        async |at_least| text(&session.credential_valid_for(ORIGIN, at_least).await.unwrap());
    assert_eq!(wanted(HOUR).await, "t0");
    advance(HOUR / 4).await;
    assert_eq!(wanted(HOUR / 2).await, "t0");
    assert_eq!(issuer.calls(), 0);
    assert_eq!(wanted(HOUR).await, "t1");
    assert_eq!(wanted(HOUR).await, "t1");
    advance(MOMENT).await;
    // At most one such refresh per cool-down.
    assert_eq!(wanted(HOUR).await, "t1");
    assert_eq!(issuer.calls(), 1);
    advance(COOLDOWN).await;
    assert_eq!(wanted(HOUR).await, "t2");
    assert_eq!(issuer.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_failed_refresh_returns_the_valid_token() {
    let (session, issuer) = session([fail()]);
    advance(HOUR / 4).await;
    for _ in 0..5 {
        let given = session.credential_valid_for(ORIGIN, HOUR).await.unwrap();
        assert_eq!(text(&given), "t0");
    }
    assert_eq!(issuer.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn short_lives_are_renewed_at_half() {
    let short = HOUR / 10;
    let issue = || Turn::Issue(Duration::ZERO, Some(short));
    let (session, issuer) = session([issue(), issue()]);
    session.refresh().await.unwrap();
    let wanted = async || text(&session.credential_valid_for(ORIGIN, HOUR).await.unwrap());
    advance((short / 2).saturating_sub(MOMENT)).await;
    assert_eq!(wanted().await, "t1");
    advance(MOMENT).await;
    assert_eq!(wanted().await, "t2");
    assert_eq!(issuer.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_request_can_want_a_long_life() {
    let api = Api::accepting(|_| true);
    let (session, issuer) = session([Turn::Issue(Duration::ZERO, Some(HOUR)), fail()]);
    let client = api.client(&session);
    let send = async |at_least| {
        client.get(url("/")).with_extension(ValidFor(at_least)).send().await.unwrap();
    };
    advance(HOUR / 4).await;
    send(HOUR / 2).await;
    send(HOUR).await;
    advance(COOLDOWN).await;
    // The refresh fails, but the token is still valid.
    send(HOUR).await;
    assert_eq!(api.tokens_seen(), ["t0", "t1", "t1"]);
    assert_eq!(issuer.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_long_life_is_the_requests_one_refresh() {
    let api = Api::accepting(|_| false);
    let (session, issuer) = session([]);
    advance(HOUR / 4).await;
    let request = api.client(&session).get(url("/")).with_extension(ValidFor(HOUR));
    assert_eq!(request.send().await.unwrap().status(), 401);
    assert_eq!(issuer.calls(), 1);
}

/// Calls with a server that accepts these tokens.
async fn call(session: &Session, good: &[&str]) -> (Result<String, Error>, Vec<String>) {
    let seen = std::sync::Mutex::new(Vec::new());
    let result = session
        .with_credential(ORIGIN, |credential| {
            let token = text(&credential);
            seen.lock().unwrap().push(token.clone());
            let accepted = good.contains(&token.as_str());
            async move { if accepted { Reply::Accepted(token) } else { Reply::Rejected(token) } }
        })
        .await;
    (result, seen.into_inner().unwrap())
}

#[tokio::test(start_paused = true)]
async fn a_rejected_call_is_made_again() {
    let (session, issuer) = session([]);
    let (result, seen) = call(&session, &["t1"]).await;
    assert_eq!(result.unwrap(), "t1");
    assert_eq!(seen, ["t0", "t1"]);
    assert_eq!(issuer.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_second_value_is_the_callers() {
    let (session, issuer) = session([]);
    let (result, seen) = call(&session, &[]).await;
    assert_eq!(result.unwrap(), "t1");
    assert_eq!(seen, ["t0", "t1"]);
    assert_eq!(token(&session).await, Err(ErrorKind::CoolingDown));
    assert_eq!(issuer.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_failed_refresh_ends_the_call() {
    let (session, _) = session([fail()]);
    let (result, seen) = call(&session, &[]).await;
    assert_eq!(result.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(seen, ["t0"]);
}

#[tokio::test(start_paused = true)]
async fn a_failed_refresh_can_return_the_value() {
    let issuer = Issuer::new([fail()]);
    let session =
        builder(&issuer).on_refresh_failure(OnRefreshFailure::ReturnResponse).build().unwrap();
    let (result, seen) = call(&session, &[]).await;
    assert_eq!(result.unwrap(), "t0");
    assert_eq!(seen, ["t0"]);
}

#[tokio::test(start_paused = true)]
async fn without_another_token_the_first_value_returns() {
    let session = Session::builder(Tokens::new("t0").unwrap()).origin(ORIGIN).build().unwrap();
    let (result, seen) = call(&session, &[]).await;
    assert_eq!(result.unwrap(), "t0");
    assert_eq!(seen, ["t0"]);
}

#[tokio::test(start_paused = true)]
async fn an_accepted_call_ends_the_probation() {
    let (session, issuer) = session([]);
    session.refresh().await.unwrap();
    let (_, seen) = call(&session, &["t1"]).await;
    assert_eq!(seen, ["t1"]);
    // Inside the cool-down, but an API has accepted it.
    let (result, _) = call(&session, &["t2"]).await;
    assert_eq!(result.unwrap(), "t2");
    assert_eq!(issuer.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_inconclusive_call_says_nothing() {
    let (session, issuer) = session([]);
    session.refresh().await.unwrap();
    let reply = session.with_credential(ORIGIN, |_| async { Reply::Inconclusive(7) }).await;
    assert_eq!(reply.unwrap(), 7);
    let (result, seen) = call(&session, &[]).await;
    assert_eq!(result.unwrap(), "t1");
    assert_eq!(seen, ["t1"]);
    assert_eq!(issuer.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_call_is_repeated_once_for_each_token() {
    let (session, issuer) = session([]);
    let mut seen = Vec::new();
    let result = session
        .with_credential(ORIGIN, |credential| {
            seen.push(text(&credential));
            let reply = match seen.len() {
                2 => Reply::Rejected(2),
                calls => Reply::Again(calls),
            };
            async move { reply }
        })
        .await;
    assert_eq!(result.unwrap(), 4);
    assert_eq!(seen, ["t0", "t0", "t1", "t1"]);
    assert_eq!(issuer.calls(), 1);
}

#[tokio::test]
async fn a_call_can_be_spawned() {
    let (session, _) = session([]);
    let call = async move {
        session.with_credential(ORIGIN, |given| async move { Reply::Accepted(text(&given)) }).await
    };
    assert_eq!(tokio::spawn(call).await.unwrap().unwrap(), "t0");
}

fn reissue(token: &'static str) -> HeaderMap {
    HeaderMap::from_iter([(
        http::HeaderName::from_static("refreshed-api-token"),
        HeaderValue::from_static(token),
    )])
}

#[tokio::test(start_paused = true)]
async fn observe_judges_like_the_chain() {
    let elsewhere = "https://evil.example/";
    let none = HeaderMap::new;
    let table = [
        (ORIGIN, 200, none(), false, "accepted"),
        (ORIGIN, 404, none(), false, "accepted"),
        (ORIGIN, 401, none(), false, "rejected"),
        (ORIGIN, 403, none(), false, "accepted"),
        (ORIGIN, 403, reissue("t9"), true, "rejected"),
        (ORIGIN, 404, reissue("t9"), true, "accepted"),
        (ORIGIN, 404, reissue("t 9"), false, "accepted"),
        (ORIGIN, 503, none(), false, "inconclusive"),
        (ORIGIN, 408, none(), false, "inconclusive"),
        (ORIGIN, 429, none(), false, "inconclusive"),
        (elsewhere, 401, reissue("t9"), false, "accepted"),
    ];
    for (url, status, headers, captured, expected) in table {
        let (session, _) = session([]);
        let credential = session.credential(ORIGIN).await.unwrap();
        let code = StatusCode::from_u16(status).unwrap();
        let verdict = session.observe(&credential, url, code, &headers);
        assert_eq!(verdict.captured, captured, "{url} {status}");
        assert_eq!(verdict.rejected, expected == "rejected", "{url} {status}");
        let reply = match verdict.reply(()) {
            Reply::Accepted(()) => "accepted",
            Reply::Rejected(()) => "rejected",
            Reply::Inconclusive(()) => "inconclusive",
            _ => "again",
        };
        assert_eq!(reply, expected, "{url} {status}");
        // Observing a rejection does not reject the token.
        assert_eq!(token(&session).await, Ok(if captured { "t9" } else { "t0" }.to_owned()));
    }
}

#[tokio::test(start_paused = true)]
async fn a_pair_is_captured_from_a_foreign_reply() {
    let issuer = Issuer::new([]);
    let events = Events::default();
    let session = builder(&issuer)
        .capture(reqwest_reauth::CaptureFrom::cookie("JWT").refresh_cookie("RT"))
        .on_event(events.listener())
        .build()
        .unwrap();
    let credential = session.credential(ORIGIN).await.unwrap();
    let mut headers = HeaderMap::new();
    headers.append("set-cookie", HeaderValue::from_static("JWT=t9; Path=/"));
    headers.append("set-cookie", HeaderValue::from_static("RT=r9; Path=/"));
    session.observe(&credential, ORIGIN, StatusCode::OK, &headers);
    assert_eq!(held(&session), texts("t9", "r9"));
    assert_eq!(events.count(|event| matches!(event, Event::Captured { .. })), 1);
}

#[tokio::test(start_paused = true)]
async fn rejected_if_applies_to_observe() {
    let issuer = Issuer::new([]);
    let session = builder(&issuer)
        .rejected_if(|response, _| {
            response.status() == 419
                && response.headers().contains_key("x-why")
                && response.url().path() == "/jobs"
        })
        .build()
        .unwrap();
    let credential = session.credential(ORIGIN).await.unwrap();
    let status = StatusCode::from_u16(419).unwrap();
    let headers = HeaderMap::from_iter([(
        http::HeaderName::from_static("x-why"),
        HeaderValue::from_static("expired"),
    )]);
    assert!(session.observe(&credential, url("/jobs"), status, &headers).rejected);
    assert!(!session.observe(&credential, url("/"), status, &headers).rejected);
}

#[tokio::test]
async fn credentials_work_with_another_client() {
    let server =
        Server::simple(|seen| Response::status(if seen.token() == Some("t1") { 200 } else { 401 }))
            .await;
    let counter = Counter::default();
    let session = Session::builder(Tokens::new("old").unwrap())
        .origin(server.origin())
        .refresher(counter.clone())
        .build()
        .unwrap();
    let (http, url) = (reqwest::Client::new(), server.url("/jobs"));
    let response = session
        .with_credential(&url, |credential| {
            let (session, http, url) = (session.clone(), http.clone(), url.clone());
            async move {
                let headers = credential.headers(&Method::GET, &url).await.unwrap();
                let response = http.get(&url).headers(headers).send().await.unwrap();
                session
                    .observe(&credential, response.url(), response.status(), response.headers())
                    .reply(response)
            }
        })
        .await
        .unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(server.tokens(), [Some("old".to_owned()), Some("t1".to_owned())]);
    assert_eq!(counter.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn chain_and_foreign_clients_share_a_refresh() {
    let api = Api::new(|seen| {
        let good = seen.token() == Some("t1");
        async move { answer(if good { 200 } else { 401 }) }
    });
    let (session, issuer) = session([Turn::Issue(Duration::from_secs(1), Some(HOUR))]);
    advance(HOUR).await;
    let client = api.client(&session);
    let (given, sent) = tokio::join!(token(&session), async {
        client.get(url("/")).send().await.unwrap().status()
    });
    assert_eq!(given, Ok("t1".to_owned()));
    assert_eq!(sent, 200);
    assert_eq!(issuer.calls(), 1);
}
