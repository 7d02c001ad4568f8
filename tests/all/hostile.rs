//! What an attacker or a broken proxy can send through each door: a typed error, or nothing
//! happens. Never a panic, never a hang.

use std::{
    io::Write as _,
    time::{Duration, Instant, SystemTime},
};

use crate::raw::{Counter, Reply, Server};
use crate::support::Events;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use flate2::{Compression, write::GzEncoder};
use reqwest_middleware::{ClientBuilder, ClientWithMiddleware};
use reqwest_reauth::{
    ClientBuilderExt, Error, ErrorKind, Event, OAuthRefresh, Session, SessionState, Tokens,
};

const OLD: &str = "old-refresh-token-of-the-session";

/// Takes every access token but the first.
async fn api() -> Server {
    Server::simple(|seen| Reply::status(if seen.token() == Some("old") { 401 } else { 200 })).await
}

fn client(session: &Session) -> ClientWithMiddleware {
    ClientBuilder::new(reqwest::Client::new()).with_session(session.clone()).build()
}

fn quick(endpoint: &Server) -> OAuthRefresh {
    OAuthRefresh::new(endpoint.url("/token"))
        .backoff(Duration::from_millis(1), Duration::from_millis(1))
        .attempt_timeout(Duration::from_secs(3))
        .max_attempts(2)
}

/// The result for a rejected request when the token endpoint responds like this.
struct Door {
    session: Session,
    client: ClientWithMiddleware,
    api: Server,
    endpoint: Server,
}

impl Door {
    async fn to(reply: Reply) -> Self {
        let (api, endpoint) = (api().await, Server::simple(move |_| reply.clone()).await);
        let tokens = Tokens::new("old").unwrap().with_refresh_token(OLD).unwrap();
        let session = Session::builder(tokens)
            .origin(api.origin())
            .refresher(quick(&endpoint))
            .build()
            .unwrap();
        Self { client: client(&session), session, api, endpoint }
    }

    /// The token that the API took, or the error.
    async fn knock(&self) -> Result<String, Error> {
        match self.client.get(self.api.url("/")).send().await {
            Ok(response) => {
                assert_eq!(response.status(), 200);
                Ok(self.api.seen().last().unwrap().token().unwrap().to_owned())
            }
            Err(error) => {
                assert_eq!(self.api.count(), 1, "never the refused token again, never none");
                assert_eq!(self.tokens(), ("old".into(), OLD.into()), "what is there stays");
                Err(Error::find_in(&error).expect("a typed error").clone())
            }
        }
    }

    fn tokens(&self) -> (String, String) {
        let tokens = self.session.tokens().unwrap();
        let access = tokens.access_token().unwrap().expose_secret().to_owned();
        (access, tokens.refresh_token().unwrap().expose_secret().to_owned())
    }
}

/// Text that is safe to print: bounded, escaped, without the refresh token.
fn assert_printable(error: &Error) {
    let mut link: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = link {
        let text = error.to_string();
        assert!(
            text.len() <= 512 && text.chars().all(|c| c == ' ' || c.is_ascii_graphic()),
            "{text:?}"
        );
        assert!(!text.contains(&OLD[..9]), "{text:?}");
        link = error.source();
    }
    assert!(!format!("{error:?}").contains(&OLD[..9]));
}

#[tokio::test]
async fn a_2xx_without_tokens_is_a_bad_response() {
    let deep = |open: &str, close: &str| format!("{}{}", open.repeat(10_000), close.repeat(10_000));
    let utf16 = |bom: &[u8]| {
        let units = r#"{"access_token":"planted"}"#.encode_utf16().flat_map(u16::to_le_bytes);
        bom.iter().copied().chain(units).collect::<Vec<u8>>()
    };
    let mut zipped = GzEncoder::new(Vec::new(), Compression::best());
    zipped.write_all(br#"{"access_token":"planted"}"#).unwrap();
    let json = |text: &str| Reply::status(200).json(text);
    let cases = [
        ("empty", json("")),
        ("blank", json(" \r\n\t ")),
        (
            "html",
            Reply::status(200)
                .header("content-type", "text/html")
                .body("<html>access_token=planted</html>"),
        ),
        ("form in a page", json("<a href=/?access_token=planted&token_type=bearer>")),
        ("null", json("null")),
        ("array", json(r#"[{"access_token":"planted"}]"#)),
        ("nested", json(r#"{"data":{"access_token":"planted"}}"#)),
        ("cut", json(r#"{"access_token":"planted""#)),
        ("NaN", json(r#"{"x":NaN,"access_token":"planted"}"#)),
        ("single quotes", json("{'access_token':'planted'}")),
        ("comment", json(r#"{/**/"access_token":"planted"}"#)),
        ("deep arrays", json(&deep("[", "]"))),
        ("deep objects", json(&deep("{\"access_token\":", "}"))),
        ("UTF-16", json("").body(utf16(b""))),
        ("UTF-16 with BOM", json("").body(utf16(b"\xff\xfe"))),
        ("no UTF-8", json("").body(&b"{\"access_token\":\"planted\xff\"}"[..])),
        ("NUL in the token", json(r#"{"access_token":"plan\u0000ted"}"#)),
        ("header injection", json(r#"{"access_token":"planted\r\nX-Evil: yes"}"#)),
        ("raw line end", json("{\"access_token\":\"plan\nted\"}")),
        ("blank in the token", json(r#"{"access_token":"plan ted"}"#)),
        ("escape", json(r#"{"access_token":"\u001b[31mplanted"}"#)),
        ("non-ASCII token", json(r#"{"access_token":"plänted"}"#)),
        ("empty token", json(r#"{"access_token":""}"#)),
        ("null token", json(r#"{"access_token":null}"#)),
        ("number", json(r#"{"access_token":12345}"#)),
        ("object", json(r#"{"access_token":{"$ne":null}}"#)),
        ("65 KiB token", json(&format!(r#"{{"access_token":"{}"}}"#, "x".repeat(65 << 10)))),
        ("900 KiB token", json(&format!(r#"{{"access_token":"{}"}}"#, "x".repeat(900 << 10)))),
        (
            "over 1 MiB",
            json(&format!(r#"{{"x":"{}","access_token":"planted"}}"#, "x".repeat(1 << 20))),
        ),
        ("another type", json(r#"{"access_token":"planted","token_type":"mac"}"#)),
        ("DPoP", json(r#"{"access_token":"planted","token_type":"DPoP"}"#)),
        (
            "gzip that is called brotli",
            json("").header("content-encoding", "br").body(zipped.finish().unwrap()),
        ),
        (
            "endless body",
            Reply::status(200).header("content-type", "application/json").endless([b' '; 4096]),
        ),
        (
            "endless list",
            Reply::status(200).header("content-type", "application/json").endless([b'['; 4096]),
        ),
    ];
    for (name, reply) in cases {
        let door = Door::to(reply).await;
        let error = door.knock().await.expect_err(name);
        assert_eq!(error.kind(), ErrorKind::BadResponse, "{name}: {error:?}");
        assert_eq!(error.attempts(), 1, "{name}: {error:?}");
        assert_eq!(error.status().unwrap().as_u16(), 200, "{name}");
        assert_eq!(error.api_status().unwrap().as_u16(), 401, "{name}");
        assert_printable(&error);
        assert_eq!(door.session.state(), SessionState::CoolingDown, "{name}");
        assert!(door.endpoint.sent() < 32 << 20, "{name} {}", door.endpoint.sent());
    }
}

#[tokio::test]
async fn odd_but_clear_responses_are_accepted() {
    let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
    let cases = [
        ("BOM", "\u{feff}{\"access_token\":\"good\"}".to_owned()),
        ("trailing text", r#"{"access_token":"good"}<!-- served by proxy -->"#.into()),
        ("trailing NUL", "{\"access_token\":\"good\"}\0\0".into()),
        ("duplicate keys", r#"{"access_token":"bad","access_token":"good"}"#.into()),
        ("escaped key", r#"{"\u0061ccess_token":"good"}"#.into()),
        ("deep neighbour", format!(r#"{{"x":{deep},"access_token":"good"}}"#)),
        (
            "huge number",
            r#"{"x":1e400,"y":-1e400,"z":123456789012345678901234567890,"access_token":"good"}"#
                .into(),
        ),
        ("lone surrogate", r#"{"x":"\ud800","access_token":"good"}"#.into()),
        ("bad refresh tokens", r#"{"refresh_token":"a b","access_token":"good"}"#.into()),
        (
            "long refresh token",
            format!(r#"{{"refresh_token":"{}","access_token":"good"}}"#, "x".repeat(65 << 10)),
        ),
        ("line end in refresh token", r#"{"refresh_token":"a\r\nb","access_token":"good"}"#.into()),
        ("odd type", r#"{"token_type":{"x":1},"access_token":"good"}"#.into()),
        ("empty error", r#"{"error":"","access_token":"good"}"#.into()),
    ];
    for (name, body) in cases {
        let door = Door::to(Reply::status(200).json(body)).await;
        assert_eq!(door.knock().await.expect(name), "good", "{name}");
        assert_eq!(door.tokens().1, OLD, "{name}: a refresh token that is none is as if absent");
    }
}

#[tokio::test]
async fn hostile_lifetimes_are_ignored() {
    for value in [
        "-1",
        "1e400",
        "-1e400",
        "9223372036854775808",
        "18446744073709551616",
        "1e308",
        "null",
        "true",
        "[]",
        "{}",
        r#""never""#,
        r#""-5""#,
        r#""1e999""#,
        r#""NaN""#,
        r#""inf""#,
        r#""""#,
        r#""99999999999999999999""#,
    ] {
        let door = Door::to(
            Reply::status(200).json(format!(r#"{{"access_token":"good","expires_in":{value}}}"#)),
        )
        .await;
        assert_eq!(door.knock().await.expect(value), "good", "{value}");
        assert_eq!(door.session.tokens().unwrap().expires_at(), None, "{value}");
        // The token is still in use.
        assert_eq!(door.knock().await.expect(value), "good");
        assert_eq!(door.endpoint.count(), 1, "{value}");
    }
}

#[tokio::test]
async fn hostile_claims_are_no_hint() {
    let claims = [
        r#"{"exp":"1700000000"}"#,
        r#"{"exp":-1}"#,
        r#"{"exp":1e400}"#,
        r#"{"exp":9223372036854775808}"#,
        r#"{"exp":1e308,"iat":0}"#,
        r#"{"exp":null,"iat":{}}"#,
        r#"{"exp":[1700000000]}"#,
        "[]",
        "null",
        "",
        "{",
        "\u{0}",
        &format!("{}{}", "[".repeat(8000), "]".repeat(3000)),
        &format!(r#"{{"x":{}1{},"exp":1e400}}"#, "[".repeat(5000), "]".repeat(5000)),
    ];
    for claims in claims {
        let shown: String = claims.chars().take(40).collect();
        let token = format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims));
        let answer = token.clone();
        // By the header, by the token endpoint, and by hand.
        let server =
            Server::simple(move |_| Reply::status(200).header("Refreshed-API-Token", &answer))
                .await;
        let session =
            Session::builder(Tokens::new("old").unwrap()).origin(server.origin()).build().unwrap();
        let client = client(&session);
        client.get(server.url("/")).send().await.unwrap();
        client.get(server.url("/")).send().await.unwrap();
        assert_eq!(server.tokens()[1].as_deref(), Some(&*token), "{shown}");
        assert_eq!(session.tokens().unwrap().expires_at(), None, "{shown}");

        let door =
            Door::to(Reply::status(200).json(format!(r#"{{"access_token":"{token}"}}"#))).await;
        assert_eq!(door.knock().await.expect(&shown), token, "{shown}");
        assert_eq!(door.knock().await.expect(&shown), token, "{shown}");
        assert_eq!(door.endpoint.count(), 1, "{shown}");
    }
    let far = SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 40);
    let table = [
        // It has expired, and nothing can renew it.
        (SystemTime::UNIX_EPOCH, SessionState::LoginRequired),
        (far, SessionState::Active),
    ];
    for (at, expected) in table {
        let session = Session::builder(Tokens::new("old").unwrap().with_expires_at(at))
            .origin("https://x.example")
            .build()
            .unwrap();
        assert_eq!(session.state(), expected);
    }
    let longest = Tokens::new("old").unwrap().with_expires_in(Duration::MAX);
    assert_eq!(
        Session::builder(longest).origin("https://x.example").build().unwrap().state(),
        SessionState::Active
    );
}

#[tokio::test]
async fn cookies_are_read_with_the_same_care() {
    let long = format!("JWT={}", "x".repeat(65 << 10));
    let bad: &[&[&[u8]]] = &[
        &[b"JWT="],
        &[b"JWT"],
        &[b"=planted"],
        &[b"JWT=a b"],
        &[b"JWT=pl\xc3\xa4nted"],
        &[b"JWT=\x80"],
        &[b"JWT=deleted"],
        &[b"JWT=planted; Max-Age=0"],
        &[b"JWT=planted; Max-Age=-1"],
        &[b"JWT=planted; Expires=Thu, 01 Jan 1970 00:00:00 GMT"],
        &[b"jwt=planted"],
        &[b"JWT2=planted", b"XJWT=planted"],
        &[b";;;=;JWT=planted"],
        &[long.as_bytes()],
    ];
    for lines in bad {
        let shown: Vec<_> =
            lines.iter().map(|line| String::from_utf8_lossy(&line[..line.len().min(40)])).collect();
        let reply =
            lines.iter().fold(Reply::status(200), |reply, line| reply.header("Set-Cookie", line));
        let error = Door::to(reply).await.knock().await.expect_err(&shown[0]);
        assert_eq!(error.kind(), ErrorKind::BadResponse, "{shown:?}");
        assert_printable(&error);
    }
    let good: [(&[&[u8]], [&str; 2]); 6] = [
        (&[b"JWT=good; Path=/; HttpOnly; Secure"], ["good", OLD]),
        (&[b"  JWT = good ; x"], ["good", OLD]),
        (&[b"JWT=\"good\""], ["good", OLD]),
        (&[b"\x80", b"JWT=good", b"JWT_REFRESH_TOKEN=a b"], ["good", OLD]),
        (
            &[
                b"JWT=good; Max-Age=99999999999999999999999999",
                b"JWT_REFRESH_TOKEN=new; Expires=never",
            ],
            ["good", "new"],
        ),
        (
            &[b"JWT=other; Path=/old", b"JWT=; Max-Age=0; Path=/old", b"JWT=good; Path=/"],
            ["good", OLD],
        ),
    ];
    for (lines, [access, refresh]) in good {
        let shown: Vec<_> = lines.iter().map(|line| String::from_utf8_lossy(line)).collect();
        let reply =
            lines.iter().fold(Reply::status(200), |reply, line| reply.header("Set-Cookie", line));
        let door = Door::to(reply).await;
        assert_eq!(door.knock().await.expect(&shown[0]), access, "{shown:?}");
        assert_eq!(door.tokens(), (access.into(), refresh.into()), "{shown:?}");
    }
}

#[tokio::test]
async fn a_huge_retry_after_ends_the_refresh() {
    for value in [
        "99999999999999999999",
        "18446744073709551615",
        "9223372036854775807",
        "86400",
        "Fri, 31 Dec 9999 23:59:59 GMT",
    ] {
        let door = Door::to(Reply::status(503).header("Retry-After", value)).await;
        let begun = Instant::now();
        let error = door.knock().await.expect_err(value);
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{value}");
        assert_eq!(error.attempts(), 1, "{value}");
        assert!(error.retry_after().unwrap() >= Duration::from_secs(86_400), "{value}");
        assert!(begun.elapsed() < Duration::from_secs(20), "{value}");
        assert_eq!(door.session.state(), SessionState::CoolingDown);
        assert_printable(&error);
        // Rejected once more during the cool-down, so there is no call.
        let error = door.client.get(door.api.url("/")).send().await.unwrap_err();
        assert_eq!(Error::find_in(&error).unwrap().kind(), ErrorKind::CoolingDown);
        assert_eq!(door.endpoint.count(), 1);
    }
    for value in [
        &b"-1"[..],
        b"1e9",
        b"0x10",
        b"",
        b"\x80",
        b"soon",
        b"Fri, 99 Dec 9999 99:99:99 GMT",
        b"1, 2",
    ] {
        let door = Door::to(Reply::status(503).header("Retry-After", value)).await;
        let error = door.knock().await.expect_err("503");
        assert_eq!(error.attempts(), 2, "{:?} is as if absent", String::from_utf8_lossy(value));
        assert_eq!(
            error.retry_after(),
            None,
            "{:?} is as if absent",
            String::from_utf8_lossy(value)
        );
    }
}

#[tokio::test]
async fn server_text_is_bounded_and_escaped() {
    let base64 = URL_SAFE_NO_PAD.encode(OLD);
    let percent: String =
        OLD.bytes().map(|byte| format!("%{byte:02X}")).collect::<Vec<_>>().concat();
    let descriptions = [
        "\\u001b[31mred\\u001b[0m".to_owned(),
        "line\\r\\nline\\u0000\\u0007\\u202e\\u2028".into(),
        "x".repeat(1_000_000),
        "\\u001b".repeat(100_000),
        "\u{1f980}".repeat(200_000),
        OLD.to_owned(),
        format!("the token '{OLD}' is spent"),
        format!("{}{OLD}", "x".repeat(240)),
        format!("the token {base64} is spent"),
        percent,
        OLD[..12].to_owned(),
        format!("{}...", &OLD[8..24]),
    ];
    for description in &descriptions {
        for code in ["invalid_grant", "invalid_client", "made_up"] {
            let reply = Reply::status(400)
                .json(format!(r#"{{"error":"{code}","error_description":"{description}"}}"#));
            let error = Door::to(reply).await.knock().await.expect_err(code);
            let expected = if code == "invalid_grant" {
                ErrorKind::LoginRequired
            } else {
                ErrorKind::ClientRejected
            };
            assert_eq!(error.kind(), expected);
            assert_eq!(error.oauth_error(), Some(code));
            assert_printable(&error);
        }
        // And in place of the code.
        let error = Door::to(Reply::status(400).json(format!(r#"{{"error":"{description}"}}"#)))
            .await
            .knock()
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ClientRejected);
        assert_printable(&error);
    }
}

#[tokio::test]
async fn a_slow_or_broken_endpoint_is_unavailable() {
    let cases = [
        ("headers only", Reply::status(200).stalled(100)),
        (
            "body that stops",
            Reply::status(200).header("content-type", "application/json").stalled(usize::MAX >> 1),
        ),
        ("nothing", Reply::bytes("")),
        ("no HTTP", Reply::bytes("SSH-2.0-OpenSSH_9.9\r\n")),
        ("HTTP/0.9", Reply::bytes("{\"access_token\":\"planted\"}\r\n\r\n")),
        ("bad status", Reply::bytes("HTTP/1.1 999999 OK\r\n\r\n")),
        (
            "bad length",
            Reply::bytes(
                "HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n{\"access_token\":\"planted\"}",
            ),
        ),
        (
            "two lengths",
            Reply::bytes(
                "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 26\r\n\r\n{\"access_token\":\"planted\"}",
            ),
        ),
        (
            "NUL in a header",
            Reply::bytes(
                "HTTP/1.1 200 OK\r\nset-cookie: JWT=pla\0nted\r\ncontent-length: 0\r\n\r\n",
            ),
        ),
        (
            "cut",
            Reply::bytes(
                "HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n{\"access_token\":\"planted\"}",
            ),
        ),
        (
            "1 MiB of header",
            Reply::status(200).header("set-cookie", [b"JWT=", &b"x".repeat(1 << 20)[..]].concat()),
        ),
        (
            "1000 headers",
            (0..1000)
                .fold(Reply::status(200), |reply, _| reply.header("set-cookie", "JWT=planted")),
        ),
    ];
    for (name, reply) in cases {
        let door = Door::to(reply).await;
        let begun = Instant::now();
        let error = door.knock().await.expect_err(name);
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{name} {error:?}");
        assert_printable(&error);
        // Two attempts of three seconds. The rest is for a busy machine.
        assert!(begun.elapsed() < Duration::from_secs(30), "{name}");
    }
}

#[tokio::test]
async fn a_broken_api_spends_no_refresh() {
    let cases = [
        ("no HTTP", Reply::bytes("hello\r\n\r\n")),
        ("1 MiB of token", Reply::status(401).header("Refreshed-API-Token", "x".repeat(1 << 20))),
        (
            "1000 tokens",
            (0..1000).fold(Reply::status(401), |reply, _| {
                reply.header("Refreshed-API-Token", "planted")
            }),
        ),
        (
            "line end in the name",
            Reply::bytes("HTTP/1.1 401 No\r\nRefreshed\n-API-Token: planted\r\n\r\n"),
        ),
        (
            "blank in the name",
            Reply::bytes("HTTP/1.1 401 No\r\nRefreshed-API-Token : planted\r\n\r\n"),
        ),
        ("cut headers", Reply::bytes("HTTP/1.1 401 No\r\nRefreshed-API-Token: plant")),
    ];
    for (name, reply) in cases {
        let server = Server::simple(move |_| reply.clone()).await;
        let (counter, events) = (Counter::default(), Events::default());
        let session = Session::builder(Tokens::new("old").unwrap())
            .origin(server.origin())
            .refresher(counter.clone())
            .on_event(events.listener())
            .build()
            .unwrap();
        let sent = client(&session).get(server.url("/")).send().await;
        let error = sent.expect_err(name);
        assert!(matches!(error, reqwest_middleware::Error::Reqwest(_)), "{name} {error:?}");
        assert_eq!(session.generation(), 1, "{name}");
        assert_eq!(counter.calls(), 0, "{name}");
        assert_eq!(events.all().len(), 0, "{name}");
    }
}

#[tokio::test]
async fn endless_challenges_are_judged_quickly() {
    let fill = |piece: &str| piece.repeat((200 << 10) / piece.len());
    for piece in [
        ",",
        "\"",
        "\\",
        "=",
        "Bearer ",
        "Bearer,",
        "Bearer a=b,",
        "Basic x==, ",
        "a=\"",
        "a=\"\\",
        "\u{e4}",
        "Bearer \"",
        "B a=b c=d,",
    ] {
        let value = fill(piece);
        let server = Server::simple(move |seen| match seen.token() {
            Some("old") => Reply::status(401).header("WWW-Authenticate", &value),
            _ => Reply::status(200),
        })
        .await;
        let session = Session::builder(Tokens::new("old").unwrap())
            .origin(server.origin())
            .refresher(Counter::default())
            .build()
            .unwrap();
        let begun = Instant::now();
        client(&session).get(server.url("/")).send().await.unwrap();
        assert!(begun.elapsed() < Duration::from_secs(20), "{piece:?} {:?}", begun.elapsed());
    }
}

#[tokio::test]
async fn an_api_that_rejects_all_is_no_stampede() {
    let server = Server::simple(|_| Reply::status(401)).await;
    let endpoint = Server::simple(|seen| {
        Reply::status(200).json(format!(r#"{{"access_token":"n{}"}}"#, seen.number))
    })
    .await;
    let events = Events::default();
    let tokens = Tokens::new("old").unwrap().with_refresh_token(OLD).unwrap();
    let session = Session::builder(tokens)
        .origin(server.origin())
        .refresher(quick(&endpoint))
        .on_event(events.listener())
        .build()
        .unwrap();
    let client = client(&session);
    for _ in 0..50 {
        assert_eq!(client.get(server.url("/")).send().await.unwrap().status(), 401);
    }
    assert_eq!(endpoint.count(), 1);
    assert_eq!(server.count(), 51);
    assert_eq!(events.count(|event| matches!(event, Event::RefreshStarted { .. })), 1);
}
