//! No secret in any log, error, event, panic or `Debug`: neither plain nor encoded, at any level,
//! of any crate involved.

// What stands beside the tests may unwrap as they do.
#![allow(clippy::unwrap_used)]

#[path = "support/raw.rs"]
mod raw;
#[path = "support/transcript.rs"]
mod transcript;

use std::{io, time::Duration};

use async_trait::async_trait;
use axum::{Router, response::IntoResponse, routing::any};
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE, URL_SAFE_NO_PAD},
};
use http::{Extensions, HeaderMap, StatusCode, header};
use raw::{Reply, Seen, Server};
use reqwest::{Request, Response};
use reqwest_middleware::{ClientBuilder, ClientWithMiddleware, Middleware, Next};
use reqwest_reauth::{
    AccessToken, Anonymous, Authorize, Capture, ClientBuilderExt, Error, ErrorKind, Event,
    FileStore, MemoryStore, OAuthRefresh, OnRefreshFailure, Outcome, Refresh, RefreshContext,
    RefreshToken, Refresher, Replay, ReplayBody, Session, SessionBuilder, SessionSource, StoreLock,
    TokenStore, Tokens,
    heartbeat::Heartbeat,
    refresh_with,
    testing::{Answer, AuthServer},
};
use reqwest_retry::{RetryTransientMiddleware, policies::ExponentialBackoff};
use transcript::{leaks, listen, percent, show, show_error, show_text, writings};

const ACCESS: &str = "access~Sentinel+One/1=";
const ISSUED: &str = "issued~Sentinel+Two/2=";
const CAPTURED: &str = "captured~Sentinel+Three/3=";
const REFRESH: &str = "refresh!Sentinel*Four$4/+~=";
const ROTATED: &str = "rotated!Sentinel*Five$5/+~=";
const ID: &str = "the client";
const SECRET: &str = "client-Sentinel?Six&6=/+%~";
const PARAM: &str = "param-Sentinel/Seven+7&~";

fn basic_blob() -> String {
    let form = |text: &str| form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
    STANDARD.encode(format!("{}:{}", form(ID), form(SECRET)))
}

fn form_body() -> String {
    form_urlencoded::Serializer::new(String::new())
        .extend_pairs([("grant_type", "refresh_token"), ("refresh_token", REFRESH)])
        .finish()
}

fn assert_clean() {
    let (blob, form) = (basic_blob(), form_body());
    let secrets = [ACCESS, ISSUED, CAPTURED, REFRESH, ROTATED, SECRET, PARAM, &blob, &form];
    let found = leaks(&transcript::text(), &secrets);
    assert!(found.is_empty(), "{found}");
}

/// The API: rejects `ACCESS`, accepts all other tokens, and reissues on some paths.
fn api(seen: &Seen) -> Reply {
    match (&*seen.target, seen.token()) {
        ("/reissue", _) => Reply::status(404).header("Refreshed-API-Token", CAPTURED),
        ("/malformed", _) => {
            Reply::status(200).header("Refreshed-API-Token", format!("{CAPTURED} {ISSUED}"))
        }
        ("/two", _) => Reply::status(200)
            .header("Refreshed-API-Token", CAPTURED)
            .header("Refreshed-API-Token", ISSUED),
        ("/echo", Some(token)) => Reply::status(500).body(format!("you sent {token}")),
        (_, Some(ACCESS)) => Reply::status(401)
            .header("WWW-Authenticate", "Bearer error=\"invalid_token\"")
            .body("refused"),
        _ => Reply::status(200),
    }
}

fn tokens() -> Tokens {
    Tokens::new(ACCESS).unwrap().with_refresh_token(REFRESH).unwrap()
}

fn builder(origin: &str) -> SessionBuilder {
    Session::builder(tokens()).origin(origin).on_event(show_event)
}

fn show_event(event: &Event) {
    show(event);
    if let Event::RefreshFailed { error, .. } | Event::StoreFailed { error, .. } = event {
        show_error(error);
    }
}

fn oauth(endpoint: &str) -> OAuthRefresh {
    OAuthRefresh::new(endpoint)
        .backoff(Duration::from_millis(1), Duration::from_millis(1))
        .attempt_timeout(Duration::from_millis(300))
        .max_attempts(2)
        .param("resource", PARAM)
}

/// Prints what passes, as tracing middleware of other crates does: outside the chain the responses
/// too, inside only the requests.
#[derive(PartialEq)]
enum Prints {
    Outside,
    Inside,
}

#[async_trait]
impl Middleware for Prints {
    async fn handle(
        &self,
        request: Request,
        extensions: &mut Extensions,
        next: Next<'_>,
    ) -> reqwest_middleware::Result<Response> {
        show(&request);
        show(request.headers());
        let answer = next.run(request, extensions).await;
        if *self == Self::Outside {
            show(&answer);
        }
        answer
    }
}

fn client(session: &Session) -> ClientWithMiddleware {
    ClientBuilder::new(reqwest::Client::new())
        .with(Prints::Outside)
        .with_session(session.clone())
        .with(Prints::Inside)
        .build()
}

/// Sends a request, and shows everything that its caller can see.
async fn send(session: &Session, client: &ClientWithMiddleware, url: &str) -> Option<Error> {
    let sent = client.get(url).send().await;
    show(session);
    show(&session.state());
    show(&session.tokens());
    match sent {
        Ok(response) => {
            show(&response);
            show(response.headers());
            show(&response.extensions().get::<Outcome>());
            if let Some(outcome) = response.extensions().get::<Outcome>()
                && let Some(error) = &outcome.refresh_error
            {
                show_error(error);
            }
            None
        }
        Err(error) => {
            let found = Error::find_in(&error).cloned();
            if let Some(found) = &found {
                show_error(found);
            }
            show_error(&error);
            if let reqwest_middleware::Error::Middleware(error) = &error {
                show(error);
                show_text(error);
            }
            found
        }
    }
}

/// Responses of the token endpoint: valid ones, invalid ones, and those that echo the request.
fn answers() -> Vec<Reply> {
    let json = |status: u16, body: String| Reply::status(status).json(body);
    let form = form_body();
    let percent: String = percent(REFRESH);
    let echoes = [
        REFRESH.to_owned(),
        format!("the token {REFRESH} is spent"),
        format!("{}{REFRESH}", "x".repeat(235)),
        format!("{}{SECRET}", "x".repeat(242)),
        ACCESS.to_owned(),
        SECRET.to_owned(),
        PARAM.to_owned(),
        basic_blob(),
        percent,
        form,
        STANDARD.encode(REFRESH),
        URL_SAFE.encode(format!("a{REFRESH}")),
        URL_SAFE_NO_PAD.encode(format!("ab{REFRESH}c")),
        STANDARD.encode(form_body()),
        REFRESH[..REFRESH.len() / 2].to_owned(),
    ];
    let mut all = vec![
        json(
            200,
            format!(
                r#"{{"access_token":"{ISSUED}","refresh_token":"{ROTATED}","expires_in":3600}}"#
            ),
        ),
        Reply::status(200)
            .header("Set-Cookie", format!("JWT={ISSUED}; Path=/"))
            .header("Set-Cookie", format!("JWT_REFRESH_TOKEN={ROTATED}")),
        // Responses with tokens that are no token responses.
        json(200, format!(r#"{{"access_token":"{ISSUED} x","refresh_token":"{ROTATED}"}}"#)),
        json(200, format!(r#"{{"access_token":"{ISSUED}\r\n","x":"{REFRESH}"}}"#)),
        json(200, format!(r#"{{"access_token":"{ISSUED}","token_type":"mac"}}"#)),
        json(200, format!(r#"{{"access_token":"{ISSUED}","token_type":"{REFRESH}"}}"#)),
        json(200, format!(r#"{{"access_token":"{ISSUED}","error":"{REFRESH}"}}"#)),
        json(200, format!(r#"{{"access_token":{{"{ISSUED}":1}},"expires_in":"{ISSUED}"}}"#)),
        json(200, format!(r#"{{"access_token":"{ISSUED}"#)),
        json(200, format!("<html>{REFRESH}</html>")),
        json(200, ISSUED.to_owned()),
        Reply::status(200).header("Set-Cookie", format!("JWT={ISSUED} {REFRESH}")),
        Reply::status(200).header("Set-Cookie", format!("JWT={ISSUED}; Max-Age=0")),
        // Lost, slow, and from another origin.
        Reply::bytes(format!(
            "HTTP/1.1 200 OK\r\ncontent-length: 9999\r\n\r\n{{\"access_token\":\"{ISSUED}\",\"refresh_token\":\"{ROTATED}\","
        )),
        Reply::bytes(format!("HTTP/1.1 200 OK\r\ncontent-length: {REFRESH}\r\n\r\n")),
        Reply::bytes(format!("{REFRESH}\r\n\r\n")),
        Reply::bytes(format!("HTTP/1.1 200 OK\r\nset-cookie: JWT={ISSUED}\0\r\n\r\n")),
        Reply::bytes(""),
        Reply::status(200).header("x-echo", REFRESH).stalled(100),
        Reply::status(302).header("Location", format!("https://evil.example/?token={REFRESH}")),
        Reply::status(307).header(
            "Location",
            format!("https://{}@evil.example/", URL_SAFE_NO_PAD.encode(REFRESH)),
        ),
        // Failures.
        Reply::status(502).body(format!("<html>{REFRESH}</html>")),
        Reply::status(503).header("Retry-After", "99999999").body(REFRESH),
        Reply::status(503).header("Retry-After", REFRESH),
        Reply::status(505).body(REFRESH),
        Reply::status(404).body(REFRESH),
    ];
    for echo in &echoes {
        let echo = serde_json::to_string(echo).unwrap();
        for code in ["invalid_grant", "invalid_client", "temporarily_unavailable"] {
            all.push(json(400, format!(r#"{{"error":"{code}","error_description":{echo}}}"#)));
        }
        all.push(json(400, format!(r#"{{"error":{echo}}}"#)));
        all.push(json(
            400,
            format!(r#"{{"error":{echo},"error_description":{echo},"error_uri":{echo}}}"#),
        ));
    }
    all
}

#[tokio::test]
async fn token_endpoint_responses_leak_nothing() {
    listen();
    let home = Server::simple(api).await;
    for reply in answers() {
        for basic in [true, false] {
            let reply = reply.clone();
            let endpoint = Server::simple(move |_| reply.clone()).await;
            let refresher = oauth(&endpoint.url("/token"));
            let refresher = if basic {
                refresher.client_secret_basic(ID, SECRET)
            } else {
                refresher.client_secret_post(ID, SECRET)
            };
            show(&refresher);
            let choice = if basic {
                OnRefreshFailure::ReturnError
            } else {
                OnRefreshFailure::ReturnResponse
            };
            let session = builder(&home.origin())
                .refresher(refresher)
                .on_refresh_failure(choice)
                .build()
                .unwrap();
            let client = client(&session);
            show(&client);
            send(&session, &client, &home.url("/")).await;
            // During the cool-down, or after the login is over.
            send(&session, &client, &home.url("/")).await;
            if let Err(error) = session.refresh().await {
                show_error(&error);
            }
            assert!(endpoint.count() >= 1, "the secrets were sent");
            assert!(endpoint.seen()[0].body.starts_with(form_body().as_bytes()));
        }
    }
    assert_clean();
    let text = transcript::text();
    for target in ["reqwest_reauth", "hyper", "reqwest::", "reqwest_retry"] {
        assert!(text.contains(target), "nothing was heard of {target}");
    }
}

#[tokio::test]
async fn captures_and_replays_leak_nothing() {
    listen();
    let home = Server::simple(api).await;
    let mint = || refresh_with(|_| async { Tokens::new(ISSUED)?.with_refresh_token(ROTATED) });
    for path in ["/", "/reissue", "/malformed", "/two", "/echo"] {
        let session = builder(&home.origin()).refresher(mint()).build().unwrap();
        let client = client(&session);
        send(&session, &client, &home.url(path)).await;
        send(&session, &client, &home.url(path)).await;
        let anonymous = client.get(home.url(path)).with_extension(Anonymous).send().await.unwrap();
        show(&anonymous);
    }
    assert!(home.tokens().iter().flatten().any(|token| token == CAPTURED));
    // Streams, and bodies that cannot be produced again.
    let session = builder(&home.origin()).refresher(mint()).build().unwrap();
    let failing = ReplayBody::try_new(|| Err(io::Error::other("no body")));
    show(&failing);
    let stream = reqwest::Body::wrap_stream(futures_util::stream::iter([Ok::<_, io::Error>("x")]));
    show(&client(&session).post(home.url("/")).body(stream).with_extension(failing).send().await);
    // The API is gone, and so is the response to the replay.
    let gone =
        Server::simple(|seen| if seen.number == 1 { api(seen) } else { Reply::bytes("") }).await;
    let session = builder(&gone.origin()).refresher(mint()).build().unwrap();
    send(&session, &client(&session), &gone.url("/")).await;
    drop(gone);
    assert_clean();
}

#[tokio::test]
async fn no_kind_of_error_shows_a_secret() {
    listen();
    let home = Server::simple(api).await;
    let mut kinds = Vec::new();
    let mut expect = |error: Option<Error>, kind: ErrorKind| {
        let error = error.unwrap_or_else(|| panic!("no {kind:?}"));
        show_error(&error);
        assert_eq!(error.kind(), kind);
        kinds.push(kind);
    };

    // Invalid tokens.
    for bad in [format!("{ACCESS}\n"), format!("{ACCESS} {ISSUED}"), ACCESS.repeat(4000)] {
        expect(AccessToken::new(bad.clone()).err(), ErrorKind::InvalidToken);
        expect(RefreshToken::new(format!("{bad} ")).err(), ErrorKind::InvalidToken);
        expect(Tokens::new(bad.clone()).err(), ErrorKind::InvalidToken);
        expect(
            Tokens::empty().with_refresh_token(format!("{bad} ")).err(),
            ErrorKind::InvalidToken,
        );
    }
    // Settings with secrets in the wrong place.
    for origin in [
        format!("https://user:{}@api.example.com", URL_SAFE_NO_PAD.encode(SECRET)),
        format!("https://{}@api.example.com", percent(SECRET)),
        format!("https://{} x/", URL_SAFE_NO_PAD.encode(SECRET)),
        SECRET.to_owned(),
    ] {
        expect(Session::builder(tokens()).origin(&origin).build().err(), ErrorKind::InvalidConfig);
        let refresher = OAuthRefresh::new(&origin).client_secret_post(ID, SECRET);
        show(&refresher);
        expect(
            Session::builder(tokens())
                .origin("https://x.example")
                .refresher(refresher)
                .build()
                .err(),
            ErrorKind::InvalidConfig,
        );
    }
    let doubled = OAuthRefresh::new("https://x.example").param("refresh_token", PARAM);
    expect(
        Session::builder(tokens()).origin("https://x.example").refresher(doubled).build().err(),
        ErrorKind::InvalidConfig,
    );

    // States of a session.
    let session = builder(&home.origin()).build().unwrap();
    let client_ = client(&session);
    session.clear().await.unwrap();
    expect(send(&session, &client_, &home.url("/")).await, ErrorKind::LoginRequired);
    session.close().await.unwrap();
    expect(send(&session, &client_, &home.url("/")).await, ErrorKind::Closed);
    let scoped = ClientBuilder::new(reqwest::Client::new()).with_scoped_sessions().build();
    expect(send(&session, &scoped, &home.url("/")).await, ErrorKind::NoSession);

    // A token endpoint that does not exist, with a key in its address.
    // Bound and not listening: connections are refused, and nobody else gets the port.
    let unheard = tokio::net::TcpSocket::new_v4().unwrap();
    unheard.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let port = unheard.local_addr().unwrap().port();
    let refresher = oauth(&format!(
        "http://127.0.0.1:{port}/{}?key={}",
        "token",
        URL_SAFE_NO_PAD.encode(PARAM)
    ));
    show(&refresher);
    let session = builder(&home.origin()).refresher(refresher).build().unwrap();
    let client_ = client(&session);
    expect(send(&session, &client_, &home.url("/")).await, ErrorKind::Unavailable);
    expect(send(&session, &client_, &home.url("/")).await, ErrorKind::CoolingDown);

    // Under an outer retry, and inside anyhow.
    let policy = ExponentialBackoff::builder().build_with_max_retries(1);
    let retried = ClientBuilder::new(reqwest::Client::new())
        .with(RetryTransientMiddleware::new_with_policy(policy))
        .with_session(session.clone())
        .build();
    expect(send(&session, &retried, &home.url("/")).await, ErrorKind::CoolingDown);

    // An endpoint that never responds.
    let hanging = Server::start(|_| std::future::pending()).await;
    let session = builder(&home.origin())
        .refresher(oauth(&hanging.url("/")).attempt_timeout(Duration::from_secs(60)))
        .build()
        .unwrap();
    let error = client(&session)
        .get(home.url("/"))
        .timeout(Duration::from_millis(200))
        .send()
        .await
        .unwrap_err();
    expect(Error::find_in(&error).cloned(), ErrorKind::TimedOut);
    session.clear().await.unwrap();

    // Refreshers that panic, and that fail with their own texts.
    let panics = refresh_with(|tokens: Tokens| async move {
        panic!("foreign panic with {}", tokens.refresh_token().unwrap().expose_secret())
    });
    let session = builder(&home.origin()).refresher(panics).build().unwrap();
    expect(send(&session, &client(&session), &home.url("/")).await, ErrorKind::Internal);
    let fails = refresh_with(|_| async { Err(Error::new(ErrorKind::ClientRejected, "no")) });
    let session = builder(&home.origin()).refresher(fails).build().unwrap();
    expect(send(&session, &client(&session), &home.url("/")).await, ErrorKind::ClientRejected);

    // A listener that panics.
    let session = builder(&home.origin())
        .on_event(|_| panic!("foreign panic"))
        .refresher(refresh_with(|_| async { Tokens::new(ISSUED) }))
        .build()
        .unwrap();
    assert!(send(&session, &client(&session), &home.url("/")).await.is_none());
    assert_clean();
}

/// Fails with everything that it sees, as a user's client may.
struct TellsAll(bool);

#[async_trait]
impl Middleware for TellsAll {
    async fn handle(
        &self,
        request: Request,
        _: &mut Extensions,
        _: Next<'_>,
    ) -> reqwest_middleware::Result<Response> {
        let body = String::from_utf8_lossy(
            request.body().and_then(|body| body.as_bytes()).unwrap_or_default(),
        )
        .into_owned();
        let authorization = request
            .headers()
            .get(header::AUTHORIZATION)
            .map(|value| value.to_str().unwrap().to_owned());
        let text = format!("foreign panic: failed with {body} and {authorization:?}");
        assert!(!self.0, "{text}");
        Err(reqwest_middleware::Error::middleware(io::Error::other(text)))
    }
}

#[tokio::test]
async fn a_passed_in_clients_errors_leak_nothing() {
    listen();
    let home = Server::simple(api).await;
    for panics in [false, true] {
        for basic in [true, false] {
            let http = ClientBuilder::new(reqwest::Client::new()).with(TellsAll(panics)).build();
            let refresher = oauth("https://sso.example.com/token").http_client(http);
            let refresher = if basic {
                refresher.client_secret_basic(ID, SECRET)
            } else {
                refresher.client_secret_post(ID, SECRET)
            };
            let session = builder(&home.origin()).refresher(refresher).build().unwrap();
            let error = send(&session, &client(&session), &home.url("/")).await.unwrap();
            assert_eq!(
                error.kind(),
                if panics { ErrorKind::Internal } else { ErrorKind::Unavailable }
            );
        }
    }
    assert_clean();
}

/// A store that puts its input into its errors, and fails.
struct Failing;

#[async_trait]
impl TokenStore for Failing {
    async fn load(&self) -> Result<Option<Tokens>, Error> {
        Err(Error::new(ErrorKind::Store, "down"))
    }
    async fn save(&self, lock: &StoreLock, tokens: &Tokens) -> Result<(), Error> {
        show(lock);
        show(tokens);
        Err(Error::new(ErrorKind::Store, "down"))
    }
    async fn clear(&self, _: &StoreLock) -> Result<(), Error> {
        Err(Error::new(ErrorKind::Store, "down"))
    }
    async fn lock(&self) -> Result<StoreLock, Error> {
        Ok(StoreLock::holding(tokens()).with_fence(7))
    }
}

#[tokio::test]
async fn stores_and_their_failures_show_nothing() {
    listen();
    let home = Server::simple(api).await;
    let directory = tempfile::tempdir().unwrap();
    let documents = [
        String::new(),
        REFRESH.to_owned(),
        format!(r#"{{"version":1,"access_token":"{ACCESS}","refresh_token":"{REFRESH}"}}"#),
        format!(r#"{{"version":1,"access_token":"{ACCESS}","refresh_token":"{REFRESH}""#),
        format!(r#"{{"version":1,"access_token":"{ACCESS} ","refresh_token":["{REFRESH}"]}}"#),
        format!(r#"{{"version":"{REFRESH}","access_token":"{ACCESS}"}}"#),
        format!(r#"{{"version":99,"access_token":"{ACCESS}","{REFRESH}":"{REFRESH}"}}"#),
        format!(r#"["{REFRESH}"]"#),
        format!(r#"{{"version":1,"expires_at":"{REFRESH}"}}"#),
    ];
    for (index, document) in documents.iter().enumerate() {
        let path = directory.path().join(format!("{index}.json"));
        std::fs::write(&path, document).unwrap();
        let store = FileStore::new(&path);
        show(&store);
        match store.load().await {
            Ok(found) => show(&found),
            Err(error) => show_error(&error),
        }
        let mint = refresh_with(|_| async { Tokens::new(ISSUED)?.with_refresh_token(ROTATED) });
        let session = builder(&home.origin()).store(store).refresher(mint).build().unwrap();
        let client = client(&session);
        send(&session, &client, &home.url("/")).await;
        send(&session, &client, &home.url("/reissue")).await;
        for ended in
            [session.replace_tokens(tokens()).await, session.clear().await, session.close().await]
        {
            if let Err(error) = ended {
                show_error(&error);
            }
        }
    }
    let memory = MemoryStore::default();
    memory.save(&memory.lock().await.unwrap(), &tokens()).await.unwrap();
    show(&memory);
    show(&memory.lock().await.unwrap());
    let mint = refresh_with(|_| async { Tokens::new(ISSUED)?.with_refresh_token(ROTATED) });
    let session = builder(&home.origin()).store(Failing).refresher(mint).build().unwrap();
    send(&session, &client(&session), &home.url("/")).await;
    for ended in [session.replace_tokens(tokens()).await, session.clear().await] {
        show_error(&ended.unwrap_err());
    }
    assert_clean();
}

/// Prints the refresh context too.
struct Looking;

#[async_trait]
impl Refresher for Looking {
    async fn refresh(&self, context: &RefreshContext) -> Result<Tokens, Error> {
        show(context);
        show(&context.tokens());
        context.keep(RefreshToken::new(ROTATED)?).await;
        show(&context.tokens());
        context.retrying(1, Duration::ZERO, Some(StatusCode::BAD_GATEWAY));
        Tokens::new(ISSUED)
    }
}

#[tokio::test]
async fn no_public_value_shows_a_secret() {
    listen();
    let home = Server::simple(api).await;
    show(&tokens());
    show(&tokens().with_expires_in(Duration::from_secs(9)));
    show(&tokens().access_token());
    show(&tokens().refresh_token());
    let session = builder(&home.origin()).refresher(Looking).build().unwrap();
    for source in [SessionSource::from(session.clone()), SessionSource::Scoped] {
        show(&source);
        show(&Replay::new(source.clone()));
        show(&Refresh::new(source.clone()));
        show(&Capture::new(source.clone()));
        show(&Authorize::new(source));
    }
    show(&session.subscribe());
    send(&session, &client(&session), &home.url("/")).await;
    session.scope(async { show(&Session::current()) }).await;

    let beats = Heartbeat::new(client(&session), {
        let url = home.url("/echo");
        move |client| client.get(&url)
    });
    let handle =
        beats.session(session).every(Duration::from_secs(60)).max_failures(1).spawn().unwrap();
    show(&handle.beat_now().await);
    show(&handle.health());
    show(&handle.finished().await);

    let server = AuthServer::start().await;
    let login = server.login();
    let refresh = login.refresh_token().unwrap().expose_secret().to_owned();
    let session = Session::builder(login)
        .origin(server.origin())
        .refresher(oauth(&server.token_endpoint()).client_secret_basic(ID, SECRET))
        .on_event(show_event)
        .build()
        .unwrap();
    server.expire_now();
    server.script_token_endpoint([Answer::Status(502)]);
    send(&session, &client(&session), &server.url("/")).await;
    assert_eq!(server.token_calls(), 2);
    show(&server);
    show(&server.requests());
    show(&server.token_requests());
    let found = leaks(&transcript::text(), &[&refresh]);
    assert!(found.is_empty(), "{found}");
    assert_clean();
}

async fn api_2(headers: HeaderMap) -> impl IntoResponse {
    let token = headers.get(header::AUTHORIZATION).map(http::HeaderValue::as_bytes);
    if token == Some(format!("Bearer {ACCESS}").as_bytes()) {
        return (StatusCode::UNAUTHORIZED, [("x-none", String::new())]);
    }
    (StatusCode::OK, [("refreshed-api-token", CAPTURED.to_owned())])
}

async fn token_2(headers: HeaderMap, body: String) -> impl IntoResponse {
    assert!(body.starts_with(&form_body()) && headers.contains_key(header::AUTHORIZATION));
    let body = format!(r#"{{"access_token":"{ISSUED}","refresh_token":"{ROTATED}"}}"#);
    ([("set-cookie", format!("JWT_REFRESH_TOKEN={ROTATED}"))], body)
}

#[tokio::test]
async fn http_2_shows_nothing_either() {
    listen();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let origin = format!("http://{}", listener.local_addr().unwrap());
    let router = Router::new().route("/token", any(token_2)).fallback(api_2);
    let server = tokio::spawn(async move { axum::serve(listener, router).await });

    let http = || reqwest::Client::builder().http2_prior_knowledge().build().unwrap();
    let refresher =
        oauth(&format!("{origin}/token")).client_secret_basic(ID, SECRET).http_client(http());
    let session = builder(&origin).refresher(refresher).build().unwrap();
    let client = ClientBuilder::new(http())
        .with(Prints::Outside)
        .with_session(session.clone())
        .with(Prints::Inside)
        .build();
    assert!(send(&session, &client, &format!("{origin}/")).await.is_none());
    assert_eq!(session.tokens().unwrap().access_token().unwrap().expose_secret(), CAPTURED);
    assert_clean();
    assert!(transcript::text().contains("h2::"), "nothing was heard of h2");
    server.abort();
}

#[test]
fn the_search_finds_every_encoding() {
    let secret = "s3cret~Sentinel+/x=";
    let pairs = [("a", secret), ("b", "")];
    let form = form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish();
    for text in [
        format!("x{secret}y"),
        form,
        STANDARD.encode(secret),
        URL_SAFE.encode(format!("1{secret}")),
        URL_SAFE_NO_PAD.encode(format!("12{secret}2")),
        STANDARD.encode(format!("id:{secret}\n")),
        format!("{:?}", secret.as_bytes()),
        secret[..9].to_owned() + "...",
    ] {
        assert!(!leaks(&text, &[secret]).is_empty(), "{text}");
    }
    assert!(leaks("nothing here", &[secret]).is_empty());
    assert!(writings(secret).iter().all(|writing| writing.len() >= 9));
}
