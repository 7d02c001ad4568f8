//! Which responses and which values are captured from the header, and which are not (contract of
//! `Refreshed-API-Token`).

use std::{sync::Arc, time::Duration};

use crate::raw::{Counter, Reply, Server};
use crate::support::Events;
use async_trait::async_trait;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{Extensions, HeaderName, header::AUTHORIZATION};
use reqwest::{Request, Response};
use reqwest_middleware::{ClientBuilder, ClientWithMiddleware, Middleware, Next};
use reqwest_reauth::{
    Anonymous, CaptureIgnored, ClientBuilderExt, Event, NotReplayed, Outcome, Session,
    SessionBuilder, Tokens,
};
use tokio::sync::Semaphore;

const HEADER: &str = "Refreshed-API-Token";

fn session(server: &Server, token: &str, events: &Events) -> SessionBuilder {
    Session::builder(Tokens::new(token).unwrap())
        .origin(server.origin())
        .on_event(events.listener())
}

fn client(session: &Session) -> ClientWithMiddleware {
    ClientBuilder::new(reqwest::Client::new()).with_session(session.clone()).build()
}

fn token(session: &Session) -> String {
    session.tokens().unwrap().access_token().unwrap().expose_secret().to_owned()
}

fn ignored(events: &Events) -> Vec<CaptureIgnored> {
    let reason = |event| match event {
        Event::CaptureIgnored { reason, .. } => Some(reason),
        _ => None,
    };
    events.all().into_iter().filter_map(reason).collect()
}

fn outcome(response: &Response) -> Outcome {
    response.extensions().get::<Outcome>().cloned().unwrap_or_default()
}

#[tokio::test]
async fn any_status_and_header_case_is_captured() {
    const STATUSES: [u16; 18] =
        [200, 201, 202, 204, 206, 300, 304, 400, 402, 404, 405, 409, 410, 418, 422, 429, 500, 503];
    const NAMES: [&str; 3] = [HEADER, "refreshed-api-token", "REFRESHED-API-TOKEN"];
    let server = Server::simple(|seen| {
        let name = NAMES[seen.number % 3];
        Reply::status(STATUSES[seen.number - 1])
            .header(name, format!("n{}", seen.number))
            .body("body")
    })
    .await;
    let events = Events::default();
    let session = session(&server, "n0", &events).build().unwrap();
    let client = client(&session);
    for (index, status) in STATUSES.into_iter().enumerate() {
        let response = client.get(server.url("/")).send().await.unwrap();
        assert_eq!(response.status(), status);
        assert!(outcome(&response).captured, "{status}");
        assert_eq!(token(&session), format!("n{}", index + 1), "{status}");
        let empty = matches!(status, 204 | 304);
        assert_eq!(
            response.text().await.unwrap(),
            if empty { "" } else { "body" },
            "the body is the caller's"
        );
    }
    let sent: Vec<_> = (0..STATUSES.len()).map(|number| Some(format!("n{number}"))).collect();
    assert_eq!(server.tokens(), sent, "each request carries what the answer before it brought");
    assert_eq!(events.count(|event| matches!(event, Event::Captured { .. })), STATUSES.len());
    assert_eq!(events.all().len(), STATUSES.len());
}

/// A common pattern: a response without success becomes an error on its way to the caller.
struct StatusIsError;

#[async_trait]
impl Middleware for StatusIsError {
    async fn handle(
        &self,
        request: Request,
        extensions: &mut Extensions,
        next: Next<'_>,
    ) -> reqwest_middleware::Result<Response> {
        Ok(next.run(request, extensions).await?.error_for_status()?)
    }
}

#[tokio::test]
async fn capture_precedes_error_for_status() {
    let server = Server::simple(|seen| match seen.number {
        1 => Reply::status(404).header(HEADER, "new"),
        _ => Reply::status(200),
    })
    .await;
    let session = session(&server, "old", &Events::default()).build().unwrap();
    let client = ClientBuilder::new(reqwest::Client::new())
        .with(StatusIsError)
        .with_session(session.clone())
        .build();
    let error = client.get(server.url("/")).send().await.unwrap_err();
    assert_eq!(error.status().unwrap(), 404);
    client.get(server.url("/")).send().await.unwrap();
    assert_eq!(server.tokens(), [Some("old".into()), Some("new".into())]);
}

#[tokio::test]
async fn the_captured_value_is_sensitive() {
    let server = Server::simple(|seen| match &*seen.target {
        "/malformed" => Reply::status(200).header(HEADER, "hush hush"),
        "/twice" => Reply::status(200).header(HEADER, "hush1").header(HEADER, "hush2"),
        _ => Reply::status(404).header(HEADER, "hush"),
    })
    .await;
    let session = session(&server, "old", &Events::default()).build().unwrap();
    let fixed = client(&session);
    let scoped = ClientBuilder::new(reqwest::Client::new()).with_scoped_sessions().build();
    let requests = [
        fixed.get(server.url("/")),
        fixed.get(server.url("/unchanged")),
        fixed.get(server.url("/malformed")),
        fixed.get(server.url("/twice")),
        fixed.get(server.url("/")).with_extension(Anonymous),
        fixed.get(server.url("/")).header(AUTHORIZATION, "Basic eDp5"),
        scoped.get(server.url("/")),
        scoped.get(server.url("/")).with_extension(Anonymous),
        scoped.get(server.url("/")).with_extension(Anonymous).with_extension(session.clone()),
    ];
    let count = requests.len();
    for request in requests {
        let response = session.scope(request.send()).await.unwrap();
        assert!(response.headers().get_all(HEADER).iter().all(http::HeaderValue::is_sensitive));
        let shown = format!("{response:?} {:?}", response.headers());
        assert!(shown.contains("Sensitive") && !shown.contains("hush"), "{shown}");
    }
    assert_eq!(server.count(), count);
}

#[tokio::test]
async fn late_responses_never_roll_back() {
    let gates = Arc::new([Semaphore::new(0), Semaphore::new(0)]);
    let server = Server::start({
        let gates = Arc::clone(&gates);
        move |seen| {
            let gates = Arc::clone(&gates);
            async move {
                let (gate, token) = match &*seen.target {
                    "/early" => (&gates[0], "early"),
                    "/late" => (&gates[1], "late"),
                    _ => return Reply::status(200),
                };
                gate.acquire().await.unwrap().forget();
                Reply::status(200).header(HEADER, token)
            }
        }
    })
    .await;
    let events = Events::default();
    let session = session(&server, "old", &events).build().unwrap();
    let client = client(&session);
    let [early, late] =
        ["/early", "/late"].map(|path| tokio::spawn(client.get(server.url(path)).send()));

    gates[1].add_permits(1);
    assert!(outcome(&late.await.unwrap().unwrap()).captured);
    assert_eq!(token(&session), "late");
    gates[0].add_permits(1);
    let response = early.await.unwrap().unwrap();
    assert!(!outcome(&response).captured);
    assert_eq!(token(&session), "late");
    assert_eq!(session.generation(), 2);
    assert_eq!(ignored(&events), [CaptureIgnored::Superseded]);

    client.get(server.url("/next")).send().await.unwrap();
    assert_eq!(server.seen().last().unwrap().token(), Some("late"));
}

#[tokio::test]
async fn the_same_token_again_is_unchanged() {
    let server = Server::simple(|_| Reply::status(200).header(HEADER, "Bearer same")).await;
    let events = Events::default();
    let session = session(&server, "same", &events).build().unwrap();
    let response = client(&session).get(server.url("/")).send().await.unwrap();
    assert!(!outcome(&response).captured);
    assert_eq!(session.generation(), 1);
    assert_eq!(ignored(&events), [CaptureIgnored::Unchanged]);
    assert_eq!(events.all().len(), 1);
}

#[tokio::test]
async fn bad_tokens_are_ignored_with_one_event() {
    let long = "x".repeat(64 * 1024 + 1);
    let table: &[&[&[u8]]] = &[
        &[b""],
        &[b"   "],
        &[b"Bearer"],
        &[b"bearer "],
        &[b"BEARER\t"],
        &[b"a b"],
        &[b"a\tb"],
        &[b"Bearer a b"],
        &[b"Bearer Bearer a"],
        &[b"Basic abc"],
        &[b"a,b"],
        &[b"a, a"],
        &[b"caf\xc3\xa9"],
        &[b"a\x80"],
        &[b"\xff"],
        &[b"a", b"b"],
        &[b"a", b""],
        &[b"", b"a"],
        &[b"a", b"a", b"b"],
        &[b"a", b"\x80"],
        &[b"a", b"A"],
        &[long.as_bytes()],
        &[b"Bearer ", long.as_bytes()],
    ];
    let rows: Vec<Vec<Vec<u8>>> =
        table.iter().map(|values| values.iter().map(|value| value.to_vec()).collect()).collect();
    let answers = rows.clone();
    let server = Server::simple(move |seen| {
        let values = answers.get(seen.number - 1).into_iter().flatten();
        values.fold(Reply::status(200), |reply, value| reply.header(HEADER, value))
    })
    .await;
    let events = Events::default();
    let session = session(&server, "old", &events).build().unwrap();
    let client = client(&session);
    for (index, values) in rows.iter().enumerate() {
        let shown: Vec<_> = values
            .iter()
            .map(|value| String::from_utf8_lossy(&value[..value.len().min(40)]))
            .collect();
        let response = client.get(server.url("/")).send().await.unwrap();
        assert_eq!(response.status(), 200, "{shown:?}");
        assert!(!outcome(&response).captured, "{shown:?}");
        assert_eq!(token(&session), "old", "{shown:?}");
        assert_eq!(session.generation(), 1, "{shown:?}");
        assert_eq!(ignored(&events), vec![CaptureIgnored::Malformed; index + 1], "{shown:?}");
    }
    assert!(server.tokens().iter().all(|token| token.as_deref() == Some("old")));
}

#[tokio::test]
async fn blanks_and_scheme_are_dropped() {
    let longest = "x".repeat(64 * 1024);
    let table: Vec<(Vec<String>, String)> = vec![
        (vec!["a1".into()], "a1".into()),
        (vec!["  a2\t ".into()], "a2".into()),
        (vec!["Bearer a3".into()], "a3".into()),
        (vec!["bearer a4".into()], "a4".into()),
        (vec!["bEARER \t a5 ".into()], "a5".into()),
        (vec!["a6".into(), "a6".into()], "a6".into()),
        (vec!["a7".into(), "Bearer a7".into(), " a7 ".into()], "a7".into()),
        (vec!["a-._~+/8==".into()], "a-._~+/8==".into()),
        (vec!["Bearerish".into()], "Bearerish".into()),
        (vec!["00D7!AQ.x|y#z^".into()], "00D7!AQ.x|y#z^".into()),
        (vec!["\"a=b;c\"".into()], "\"a=b;c\"".into()),
        (vec![longest.clone()], longest.clone()),
        (vec![format!("Bearer y{}", &longest[1..])], format!("y{}", &longest[1..])),
    ];
    let answers = table.clone();
    let server = Server::simple(move |seen| {
        answers[seen.number - 1]
            .0
            .iter()
            .fold(Reply::status(200), |reply, value| reply.header(HEADER, value))
    })
    .await;
    let events = Events::default();
    let session = session(&server, "old", &events).build().unwrap();
    let client = client(&session);
    for (values, expected) in &table {
        client.get(server.url("/")).send().await.unwrap();
        assert_eq!(&token(&session), expected, "{values:?}");
    }
    assert!(ignored(&events).is_empty());
}

#[tokio::test]
async fn malformed_http_changes_nothing() {
    for value in ["a\0b", "a\x01", "a\rb", "a\x7f"] {
        let server = Server::simple(move |_| {
            Reply::bytes(format!(
                "HTTP/1.1 200 OK\r\n{HEADER}: {value}\r\ncontent-length: 0\r\n\r\n"
            ))
        })
        .await;
        let events = Events::default();
        let session = session(&server, "old", &events).build().unwrap();
        let error = client(&session).get(server.url("/")).send().await.unwrap_err();
        assert!(
            error.is_request() && reqwest_reauth::Error::find_in(&error).is_none(),
            "{value:?}"
        );
        assert_eq!(token(&session), "old", "{value:?}");
        assert_eq!(events.all().len(), 0, "{value:?}");
    }
    // A line end begins another header: the value before it is the whole one.
    let server =
        Server::simple(|_| Reply::status(200).header(HEADER, "first\nX-Other: second")).await;
    let session = session(&server, "old", &Events::default()).build().unwrap();
    client(&session).get(server.url("/")).send().await.unwrap();
    assert_eq!(token(&session), "first");
}

#[tokio::test]
async fn a_rejection_with_a_token_is_replayed() {
    let challenges = [
        None,
        Some("Bearer"),
        Some("Bearer error=\"invalid_token\""),
        Some("Bearer error=\"insufficient_scope\""),
        Some("Basic realm=\"x\""),
    ];
    for status in [401, 403] {
        for challenge in challenges {
            let server = Server::simple(move |seen| match seen.token() {
                Some("old") => {
                    let reply = Reply::status(status).header(HEADER, "new").body("refused");
                    challenge.map_or(reply.clone(), |challenge| {
                        reply.header("WWW-Authenticate", challenge)
                    })
                }
                _ => Reply::status(200),
            })
            .await;
            let (events, counter) = (Events::default(), Counter::default());
            let session =
                session(&server, "old", &events).refresher(counter.clone()).build().unwrap();
            let response =
                client(&session).post(server.url("/x")).body("whole").send().await.unwrap();
            let outcome = outcome(&response);
            assert_eq!(response.status().as_u16(), 200);
            assert!(outcome.captured);
            assert!(outcome.replayed);
            assert!(!outcome.refreshed);
            assert_eq!(
                server.tokens(),
                [Some("old".into()), Some("new".into())],
                "{status} {challenge:?}"
            );
            assert!(server.seen().iter().all(|seen| seen.body == b"whole"));
            assert_eq!(counter.calls(), 0, "{status} {challenge:?}");
        }
    }
}

#[tokio::test]
async fn endless_new_tokens_are_one_replay() {
    let server =
        Server::simple(|seen| Reply::status(403).header(HEADER, format!("n{}", seen.number))).await;
    let (events, counter) = (Events::default(), Counter::default());
    let session = session(&server, "old", &events).refresher(counter.clone()).build().unwrap();
    let response = client(&session).get(server.url("/")).send().await.unwrap();
    assert_eq!(response.status(), 403);
    assert_eq!(outcome(&response).not_replayed, Some(NotReplayed::AlreadyReplayed));
    assert_eq!(server.count(), 2);
    assert_eq!(counter.calls(), 0);
    assert_eq!(token(&session), "n2");
}

/// The budget of a request is one replay, whatever brought its token.
#[tokio::test]
async fn a_rejected_captured_token_asks_nobody() {
    for status in [401, 403] {
        let server = Server::simple(move |seen| match seen.token() {
            Some("old") => Reply::status(status).header(HEADER, "new"),
            _ => Reply::status(401).header("WWW-Authenticate", "Bearer error=\"invalid_token\""),
        })
        .await;
        let counter = Counter::default();
        let session =
            session(&server, "old", &Events::default()).refresher(counter.clone()).build().unwrap();
        let response = client(&session).get(server.url("/")).send().await.unwrap();
        assert_eq!(response.status(), 401, "{status}");
        assert_eq!(outcome(&response).not_replayed, Some(NotReplayed::AlreadyReplayed));
        assert_eq!(server.tokens(), [Some("old".into()), Some("new".into())]);
        assert_eq!(counter.calls(), 0, "{status}");
    }
}

#[tokio::test]
async fn a_rejection_without_a_new_token_refreshes() {
    for value in ["old", "no token", ""] {
        let server = Server::simple(move |seen| match seen.token() {
            Some("t1") => Reply::status(200),
            _ => Reply::status(401).header(HEADER, value),
        })
        .await;
        let counter = Counter::default();
        let session =
            session(&server, "old", &Events::default()).refresher(counter.clone()).build().unwrap();
        let response = client(&session).get(server.url("/")).send().await.unwrap();
        assert_eq!(response.status().as_u16(), 200, "{value:?}");
        assert_eq!(counter.calls(), 1, "{value:?}");
        assert!(!outcome(&response).captured);
    }
}

#[tokio::test]
async fn the_header_can_have_another_name() {
    let server = Server::simple(|seen| match seen.number {
        1 => Reply::status(200).header(HEADER, "wrong").header("X-New-Token", "right"),
        _ => Reply::status(200).header(HEADER, "wrong"),
    })
    .await;
    let events = Events::default();
    let session = session(&server, "old", &events)
        .capture(HeaderName::from_static("x-new-token"))
        .build()
        .unwrap();
    let client = client(&session);
    let response = client.get(server.url("/")).send().await.unwrap();
    assert!(response.headers()["x-new-token"].is_sensitive());
    client.get(server.url("/")).send().await.unwrap();
    assert_eq!(token(&session), "right");
    assert_eq!(events.all().len(), 1);
}

#[tokio::test]
async fn a_token_with_an_earlier_exp_is_taken() {
    let jwt = |lifetime: u64| {
        let now =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        format!(
            "e30.{}.c2ln",
            URL_SAFE_NO_PAD.encode(format!(r#"{{"iat":{now},"exp":{}}}"#, now + lifetime))
        )
    };
    let (long, short) = (jwt(86_400), jwt(600));
    let server = Server::simple({
        let short = short.clone();
        move |_| Reply::status(200).header(HEADER, &short)
    })
    .await;
    let session = session(&server, &long, &Events::default()).build().unwrap();
    let before = session.tokens().unwrap().expires_at().unwrap();
    client(&session).get(server.url("/")).send().await.unwrap();
    assert_eq!(token(&session), short);
    let after = session.tokens().unwrap().expires_at().unwrap();
    assert!(before.duration_since(after).unwrap() > Duration::from_secs(80_000));
}

#[tokio::test]
async fn only_the_signing_session_captures() {
    let server = Server::simple(|seen| {
        Reply::status(200).header(HEADER, format!("{}-new", seen.token().unwrap_or("none")))
    })
    .await;
    let events = Events::default();
    let own = session(&server, "own", &events).build().unwrap();
    let other = session(&server, "other", &Events::default()).build().unwrap();
    let client = client(&own);

    client.get(server.url("/")).with_extension(other.clone()).send().await.unwrap();
    client.get(server.url("/")).with_extension(Anonymous).send().await.unwrap();
    client.get(server.url("/")).bearer_auth("mine").send().await.unwrap();
    assert_eq!(token(&own), "own");
    assert_eq!(token(&other), "other-new");
    assert_eq!(server.tokens(), [Some("other".into()), None, Some("mine".into())]);
    let captures =
        |event: &Event| matches!(event, Event::Captured { .. } | Event::CaptureIgnored { .. });
    assert_eq!(events.count(captures), 0);
}

#[tokio::test]
async fn concurrent_captures_leave_one_token() {
    const REQUESTS: usize = 64;
    let here = Arc::new(tokio::sync::Barrier::new(REQUESTS));
    let server = Server::start(move |seen| {
        let here = Arc::clone(&here);
        async move {
            here.wait().await;
            Reply::status(200).header(HEADER, format!("n{}", seen.number))
        }
    })
    .await;
    let events = Events::default();
    let session = session(&server, "old", &events).build().unwrap();
    let client = client(&session);
    let requests: Vec<_> =
        (0..REQUESTS).map(|_| tokio::spawn(client.get(server.url("/")).send())).collect();
    let mut captured = 0;
    for request in requests {
        captured += usize::from(outcome(&request.await.unwrap().unwrap()).captured);
    }
    // All were sent with the same generation, so the first response wins and the others are late.
    assert_eq!(captured, 1);
    assert_eq!(session.generation(), 2);
    assert_eq!(ignored(&events), vec![CaptureIgnored::Superseded; REQUESTS - 1]);
}
