//! Where a token is sent, and whose responses count: two servers, one of which must never learn
//! anything.

use std::net::SocketAddr;

use crate::raw::{Counter, Reply, Seen, Server};
use crate::support::Events;
use http::{StatusCode, header::AUTHORIZATION};
use reqwest_middleware::{ClientBuilder, ClientWithMiddleware};
use reqwest_reauth::{
    CaptureIgnored, ClientBuilderExt, Error, ErrorKind, Event, NotReplayed, OAuthRefresh, Outcome,
    Session, SessionBuilder, Tokens, testing::AuthServer,
};

const HEADER: &str = "Refreshed-API-Token";

fn builder(origin: impl AsRef<str>, counter: &Counter, events: &Events) -> SessionBuilder {
    Session::builder(Tokens::new("old").unwrap())
        .origin(origin)
        .refresher(counter.clone())
        .on_event(events.listener())
}

fn client(session: &Session) -> ClientWithMiddleware {
    ClientBuilder::new(reqwest::Client::new()).with_session(session.clone()).build()
}

/// Tries everything to get a token, or to give one.
async fn enemy() -> Server {
    Server::simple(|seen| {
        let status = match &*seen.target {
            "/401" => 401,
            "/403" => 403,
            _ => 200,
        };
        let reply = Reply::status(status)
            .header(HEADER, "planted")
            .header("WWW-Authenticate", "Bearer error=\"invalid_token\"");
        if seen.target == "/cookie" { reply.header("Set-Cookie", "JWT=planted") } else { reply }
    })
    .await
}

fn untouched(session: &Session, counter: &Counter) {
    assert_eq!(session.generation(), 1);
    assert_eq!(counter.calls(), 0);
    assert_eq!(session.tokens().unwrap().access_token().unwrap().expose_secret(), "old");
}

/// No secret of the session is in what a server saw.
fn learned_nothing(server: &Server) {
    for seen in server.seen() {
        assert!(seen.all("authorization").is_empty(), "{seen:?}");
        let shown = format!("{seen:?}");
        assert!(!shown.contains("old") && !shown.contains("t1"), "{shown}");
    }
}

#[tokio::test]
async fn another_origin_gets_and_provides_no_token() {
    let (home, enemy) = (Server::simple(|_| Reply::status(200)).await, enemy().await);
    let (counter, events) = (Counter::default(), Events::default());
    let session = builder(home.origin(), &counter, &events).build().unwrap();
    let client = client(&session);
    for path in ["/", "/401", "/403", "/cookie"] {
        let response = client.post(enemy.url(path)).body("x").send().await.unwrap();
        assert!(response.extensions().get::<Outcome>().is_none());
    }
    assert_eq!(enemy.count(), 4);
    assert_eq!(home.count(), 0);
    learned_nothing(&enemy);
    untouched(&session, &counter);
    assert!(events.all().is_empty());
}

/// A client for which every name under `.test` is one of these servers.
fn resolving(session: &Session, names: &[(&str, SocketAddr)]) -> ClientWithMiddleware {
    let http = names
        .iter()
        .fold(reqwest::Client::builder(), |http, (name, address)| http.resolve(name, *address));
    ClientBuilder::new(http.build().unwrap()).with_session(session.clone()).build()
}

#[tokio::test]
async fn origins_are_compared_after_normalisation() {
    let server = Server::simple(|_| Reply::status(200)).await;
    let port = server.address.port();
    let names = [
        "api.test",
        "api.test.",
        "xn--bcher-kva.test",
        "api.test.evil.test",
        "evil.test",
        "localhost",
    ];
    let names = names.map(|name| (name, server.address));
    let table = [
        ("http://api.test", "http://api.test", true),
        ("http://API.Test", "http://api.test", true),
        ("http://api.test", "http://aPI.tEST", true),
        ("http://api.test", "http://%61pi.test", true),
        ("http://api.test", "http://a\u{ff50}i.test", true),
        ("http://bücher.test", "http://xn--bcher-kva.test", true),
        ("http://xn--bcher-kva.test", "http://BÜCHER.test", true),
        ("http://127.0.0.1", "http://2130706433", true),
        ("http://127.0.0.1", "http://0x7f.1", true),
        ("http://api.test", "http://api.test.", false),
        ("http://api.test.", "http://api.test", false),
        ("http://api.test", "http://api.test.evil.test", false),
        ("http://api.test", "http://evil.test", false),
        ("http://127.0.0.1", "http://localhost", false),
        ("http://localhost", "http://127.0.0.1", false),
        ("http://127.0.0.1", "http://127.0.0.2", false),
    ];
    for (origin, target, trusted) in table {
        let (counter, events) = (Counter::default(), Events::default());
        let session = builder(format!("{origin}:{port}/some/path"), &counter, &events)
            .allow_plain_http()
            .build()
            .unwrap();
        let already = server.count();
        // Nothing listens on 127.0.0.2, and a failed connection shows nothing either.
        let sent = resolving(&session, &names).get(format!("{target}:{port}/x")).send().await;
        let token = server.seen().get(already).map(|seen| seen.token().map(str::to_owned));
        assert_eq!(token.clone().flatten().is_some(), trusted, "{origin} {target}");
        assert!(
            sent.is_ok() == token.is_some() && (token.is_some() || target.ends_with(".2")),
            "{origin} {target}"
        );
    }
    // An IPv4 address in IPv6's clothes is another origin, whether or not it can be reached.
    let (counter, events) = (Counter::default(), Events::default());
    let session = builder(server.origin(), &counter, &events).build().unwrap();
    let already = server.count();
    let _ = client(&session).get(format!("http://[::ffff:127.0.0.1]:{port}/")).send().await;
    assert!(server.seen()[already..].iter().all(|seen| seen.all("authorization").is_empty()));
}

#[tokio::test]
async fn a_host_in_the_user_info_is_no_host() {
    let (home, enemy) = (Server::simple(|_| Reply::status(401)).await, enemy().await);
    let (counter, events) = (Counter::default(), Events::default());
    let session = builder(home.origin(), &counter, &events).build().unwrap();
    let client = client(&session);
    for disguise in [
        format!("http://{}@{}/401", home.address, enemy.address),
        format!("http://{}%2f@{}/401", home.address, enemy.address),
        format!("http://{}#@{}/401", enemy.address, home.address),
        format!("http://{}\\@{}/401", enemy.address, home.address),
        format!("http://{}/@{}/401", enemy.address, home.address),
        format!("http://{}?@{}/401", enemy.address, home.address),
    ] {
        let _ = client.get(&disguise).send().await;
    }
    assert_eq!(enemy.count(), 6);
    assert_eq!(home.count(), 0);
    for seen in enemy.seen() {
        assert!(seen.token().is_none() && !format!("{seen:?}").contains("old"));
    }
    untouched(&session, &counter);

    // To our own origin, a name and a password are the caller's own authorization: they win.
    client.get(format!("http://me:pw@{}/", home.address)).send().await.unwrap();
    assert!(home.seen()[0].all("authorization")[0].starts_with("Basic "));
    untouched(&session, &counter);
}

#[tokio::test]
async fn a_redirect_elsewhere_moves_no_token() {
    for status in [301, 302, 303, 307, 308] {
        for path in ["/200", "/401", "/403"] {
            let enemy = enemy().await;
            let target = enemy.url(path);
            let home =
                Server::simple(move |_| Reply::status(status).header("Location", &target)).await;
            let (counter, events) = (Counter::default(), Events::default());
            let session = builder(home.origin(), &counter, &events).build().unwrap();
            let response =
                client(&session).post(home.url("/start")).body("x").send().await.unwrap();
            assert_eq!(response.url().as_str(), enemy.url(path));
            assert_eq!(home.count(), 1, "{status} {path}");
            assert_eq!(enemy.count(), 1, "{status} {path}");
            assert_eq!(home.tokens(), [Some("old".into())]);
            learned_nothing(&enemy);
            untouched(&session, &counter);
            assert!(response.headers()[HEADER].is_sensitive());
            let all = events.all();
            assert!(
                matches!(
                    &all[..],
                    [Event::CaptureIgnored { reason: CaptureIgnored::UntrustedOrigin, .. }]
                ),
                "{status} {path}: {all:?}"
            );
        }
    }
}

#[tokio::test]
async fn another_name_is_another_origin() {
    let server = Server::start(|seen| async move {
        let host = seen.all("host")[0].to_owned();
        match &*seen.target {
            "/start" => Reply::status(302).header(
                "Location",
                format!("http://{}/end", host.replace("127.0.0.1", "localhost")),
            ),
            _ => Reply::status(401).header(HEADER, "planted"),
        }
    })
    .await;
    let (counter, events) = (Counter::default(), Events::default());
    let session = builder(server.origin(), &counter, &events).build().unwrap();
    let client = resolving(&session, &[("localhost", server.address)]);
    let response = client.get(server.url("/start")).send().await.unwrap();
    assert_eq!(response.status().as_u16(), 401);
    assert_eq!(server.count(), 2);
    assert_eq!(server.tokens(), [Some("old".into()), None]);
    untouched(&session, &counter);
}

#[tokio::test]
async fn a_round_trip_is_replayed_from_its_start() {
    /// `/start` sends strangers on a trip that ends at `/end`, which wants a token that the trip
    /// has lost.
    fn home(target: String, renewed_stay: bool) -> impl Fn(&Seen) -> Reply {
        move |seen| match (&*seen.target, seen.token()) {
            ("/start", Some("t1")) if renewed_stay => Reply::status(200),
            ("/start", _) => Reply::status(307).header("Location", &target),
            (_, None) => Reply::status(401).header("WWW-Authenticate", "Bearer"),
            _ => Reply::status(200),
        }
    }
    for renewed_stay in [true, false] {
        let back = std::sync::Arc::new(std::sync::OnceLock::<String>::new());
        let enemy = Server::simple({
            let back = std::sync::Arc::clone(&back);
            move |_| {
                Reply::status(307).header("Location", back.get().unwrap()).header(HEADER, "planted")
            }
        })
        .await;
        let home = Server::simple(home(enemy.url("/trip"), renewed_stay)).await;
        back.set(home.url("/end")).unwrap();
        let (counter, events) = (Counter::default(), Events::default());
        let session = builder(home.origin(), &counter, &events).build().unwrap();
        let response = client(&session).put(home.url("/start")).body("whole").send().await.unwrap();
        learned_nothing(&enemy);
        assert_eq!(counter.calls(), 1);
        let targets: Vec<_> = home
            .seen()
            .iter()
            .map(|seen| (seen.target.clone(), seen.token().map(str::to_owned)))
            .collect();
        let hop = |target: &str, token: Option<&str>| (target.to_owned(), token.map(str::to_owned));
        let outcome = response.extensions().get::<Outcome>().cloned().unwrap();
        assert!(outcome.replayed);
        if renewed_stay {
            assert_eq!(response.status(), 200);
            assert_eq!(
                targets,
                [hop("/start", Some("old")), hop("/end", None), hop("/start", Some("t1"))]
            );
        } else {
            assert_eq!(response.status().as_u16(), 401);
            assert_eq!(outcome.not_replayed, Some(NotReplayed::AlreadyReplayed));
            let trip = |token| [hop("/start", Some(token)), hop("/end", None)];
            assert_eq!(targets, [trip("old"), trip("t1")].concat());
        }
        assert!(home.seen().iter().all(|seen| seen.body == b"whole"));
        assert_eq!(session.generation(), 2);
    }
}

#[tokio::test]
async fn a_redirect_within_keeps_token_and_body() {
    for status in [307, 308] {
        let home = Server::simple(move |seen| match (&*seen.target, seen.token()) {
            ("/start", _) => Reply::status(status).header("Location", "/end?x"),
            (_, Some("t1")) => Reply::status(200).header(HEADER, "next"),
            _ => Reply::status(401),
        })
        .await;
        let (counter, events) = (Counter::default(), Events::default());
        let session = builder(home.origin(), &counter, &events).build().unwrap();
        let response =
            client(&session).post(home.url("/start")).body("whole").send().await.unwrap();
        assert_eq!(response.status(), 200);
        let hops: Vec<_> = home
            .seen()
            .iter()
            .map(|seen| format!("{} {}", seen.target, seen.token().unwrap()))
            .collect();
        assert_eq!(hops, ["/start old", "/end?x old", "/start t1", "/end?x t1"]);
        assert!(home.seen().iter().all(|seen| seen.method == "POST" && seen.body == b"whole"));
        assert_eq!(session.tokens().unwrap().access_token().unwrap().expose_secret(), "next");
    }
}

#[tokio::test]
async fn a_session_can_trust_two_origins() {
    let [first, second] = [(); 2].map(|()| {
        Server::simple(|seen| match (&*seen.target, seen.token()) {
            (_, Some("old")) => Reply::status(401),
            ("/renews", _) => Reply::status(200).header(HEADER, "captured"),
            _ => Reply::status(200),
        })
    });
    let (first, second) = (first.await, second.await);
    let (counter, events) = (Counter::default(), Events::default());
    let session =
        builder(first.origin(), &counter, &events).origin(second.origin()).build().unwrap();
    let client = client(&session);
    assert_eq!(client.get(second.url("/")).send().await.unwrap().status(), 200);
    assert_eq!(client.get(second.url("/renews")).send().await.unwrap().status(), 200);
    assert_eq!(client.get(first.url("/")).send().await.unwrap().status(), 200);
    assert_eq!(second.tokens(), [Some("old".into()), Some("t1".into()), Some("t1".into())]);
    assert_eq!(first.tokens(), [Some("captured".into())]);
    assert_eq!(counter.calls(), 1);
}

#[tokio::test]
async fn a_rejection_across_origins_is_none() {
    let second = Server::simple(|seen| match &*seen.target {
        "/401" => Reply::status(401).header("WWW-Authenticate", "Bearer error=\"invalid_token\""),
        _ => Reply::status(200).header(HEADER, "captured"),
    })
    .await;
    let origin = second.origin();
    let first = Server::simple(move |seen| {
        Reply::status(307).header("Location", format!("{origin}{}", seen.target))
    })
    .await;
    let (counter, events) = (Counter::default(), Events::default());
    let session =
        builder(first.origin(), &counter, &events).origin(second.origin()).build().unwrap();
    let client = client(&session);
    let response = client.get(first.url("/401")).send().await.unwrap();
    // The redirect lost the token, so no token was rejected.
    assert_eq!(response.status().as_u16(), 401);
    assert_eq!(second.tokens(), vec![None]);
    untouched(&session, &counter);
    // What a trusted origin reissues is taken, however the request came there.
    client.get(first.url("/")).send().await.unwrap();
    assert_eq!(session.tokens().unwrap().access_token().unwrap().expose_secret(), "captured");
}

#[tokio::test]
async fn a_redirect_without_end_is_the_callers_error() {
    let home = Server::simple(|_| {
        Reply::status(302).header("Location", "/again").header(HEADER, "on-the-way")
    })
    .await;
    let (counter, events) = (Counter::default(), Events::default());
    let session = builder(home.origin(), &counter, &events).build().unwrap();
    let error = client(&session).get(home.url("/")).send().await.unwrap_err();
    assert!(error.is_redirect() && Error::find_in(&error).is_none());
    untouched(&session, &counter);
}

#[test]
fn plain_http_needs_loopback_or_permission() {
    let build = |origin: &str, allowed: bool| {
        let builder = Session::builder(Tokens::new("old").unwrap()).origin(origin);
        if allowed { builder.allow_plain_http().build() } else { builder.build() }
    };
    for loopback in [
        "http://localhost",
        "http://LOCALHOST:81",
        "http://a.localhost",
        "http://127.0.0.1",
        "http://127.255.0.9:1",
        "http://[::1]:8",
    ] {
        assert!(build(loopback, false).is_ok(), "{loopback}");
    }
    for open in [
        "http://api.example.com",
        "http://10.0.0.1",
        "http://192.168.0.1:8080",
        "http://128.0.0.1",
        "http://0.0.0.0",
        "http://[::]",
        "http://[fe80::1]",
        "http://[::ffff:127.0.0.1]",
        "http://localhost.",
        "http://localhost.example.com",
        "http://127.0.0.1.example.com",
        "HTTP://api.example.com",
        " http://api.example.com",
    ] {
        assert_eq!(build(open, false).unwrap_err().kind(), ErrorKind::InvalidConfig, "{open}");
        assert!(build(open, true).is_ok(), "{open}");
    }
    for never in [
        "",
        "api.example.com",
        "//api.example.com",
        "ftp://api.example.com",
        "ws://localhost",
        "file:///etc/passwd",
        "data:text/plain,x",
        "https://",
        "https://user@api.example.com",
        "https://user:pw@api.example.com",
        "https://:pw@api.example.com",
        "https://api.example.com@evil.example",
        "http://user@localhost",
        "https://a b.example",
        "https://[::1",
        "https://api.example.com:99999",
    ] {
        for allowed in [false, true] {
            assert_eq!(
                build(never, allowed).unwrap_err().kind(),
                ErrorKind::InvalidConfig,
                "{never}"
            );
        }
    }
    assert_eq!(
        Session::builder(Tokens::new("old").unwrap()).build().unwrap_err().kind(),
        ErrorKind::InvalidConfig
    );
    // One bad origin spoils the good ones.
    let mixed = Session::builder(Tokens::new("old").unwrap())
        .origin("https://api.example.com")
        .origin("http://api.example.com");
    assert_eq!(mixed.build().unwrap_err().kind(), ErrorKind::InvalidConfig);
}

#[test]
fn each_plain_http_switch_has_one_side() {
    let session = |origin: &str, endpoint: OAuthRefresh| {
        Session::builder(Tokens::new("old").unwrap()).origin(origin).refresher(endpoint)
    };
    let plain = "http://sso.example.com/token";
    let kind = |builder: SessionBuilder| builder.build().map_err(|error| error.kind()).err();
    let invalid = Some(ErrorKind::InvalidConfig);
    assert_eq!(kind(session("https://api.example.com", OAuthRefresh::new(plain))), invalid);
    assert_eq!(
        kind(session("https://api.example.com", OAuthRefresh::new(plain)).allow_plain_http()),
        invalid
    );
    assert_eq!(
        kind(session("https://api.example.com", OAuthRefresh::new(plain).allow_plain_http())),
        None
    );
    assert_eq!(
        kind(session("http://api.example.com", OAuthRefresh::new(plain).allow_plain_http())),
        invalid
    );
    assert_eq!(
        kind(session("https://api.example.com", OAuthRefresh::new("http://localhost:1/token"))),
        None
    );
    for endpoint in [
        "https://user:pw@sso.example.com/token",
        "https://user@sso.example.com",
        "ftp://sso.example.com",
        "sso",
        "",
    ] {
        assert_eq!(
            kind(session(
                "https://api.example.com",
                OAuthRefresh::new(endpoint).allow_plain_http()
            )),
            invalid,
            "{endpoint}"
        );
    }
}

#[tokio::test]
async fn token_endpoint_redirects_are_not_followed() {
    for status in [301, 302, 303, 307, 308] {
        let (api, enemy) = (AuthServer::start().await, enemy().await);
        let target = enemy.url("/steal");
        let endpoint = Server::simple(move |_| {
            Reply::status(status)
                .header("Location", &target)
                .json(r#"{"access_token":"planted","refresh_token":"planted"}"#)
        })
        .await;
        let tokens = api.login();
        let refresh = tokens.refresh_token().unwrap().expose_secret().to_owned();
        let session = Session::builder(tokens)
            .origin(api.origin())
            .refresher(OAuthRefresh::new(endpoint.url("/token")).client_secret_post("id", "secret"))
            .build()
            .unwrap();
        api.expire_now();
        let error = client(&session).get(api.url("/")).send().await.unwrap_err();
        let error = Error::find_in(&error).unwrap();
        assert_eq!(error.kind(), ErrorKind::BadResponse);
        assert_eq!(error.status().unwrap().as_u16(), status);
        assert_eq!(error.api_status(), Some(StatusCode::UNAUTHORIZED));
        assert_eq!(endpoint.count(), 1, "{status}");
        assert_eq!(enemy.count(), 0, "{status}");
        assert_eq!(
            session.tokens().unwrap().refresh_token().unwrap().expose_secret(),
            refresh,
            "the refresh token is kept"
        );
    }
}

#[tokio::test]
async fn own_authorization_goes_anywhere() {
    let home = Server::simple(|_| Reply::status(401).header(HEADER, "planted")).await;
    let (counter, events) = (Counter::default(), Events::default());
    let session = builder(home.origin(), &counter, &events).build().unwrap();
    let response =
        client(&session).get(home.url("/")).header(AUTHORIZATION, "Digest x").send().await.unwrap();
    assert_eq!(response.status().as_u16(), 401);
    assert_eq!(home.count(), 1);
    assert_eq!(home.seen()[0].all("authorization"), ["Digest x"]);
    untouched(&session, &counter);
    // It disables the chain for this request, which is reported.
    let told = events.all();
    assert!(matches!(&told[..], [Event::CallerAuthorization { .. }]), "{told:?}");
}
