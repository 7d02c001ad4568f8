//! Where responses carry new tokens: other headers, cookies, and refresh tokens beside them.

use std::time::Duration;

use crate::raw::{Reply, Server};
use crate::support::{
    Events, Issuer, ORIGIN, Turn, held, pair,
    store::{FakeStore, Op},
    texts,
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use reqwest_reauth::{
    CaptureFrom, CaptureIgnored, ErrorKind, Event, Session, SessionBuilder, Tokens,
};

async fn answering(headers: &'static [(&'static str, &'static str)]) -> Server {
    Server::simple(move |seen| {
        let reply = Reply::status(if seen.number == 1 { 404 } else { 200 });
        let headers = if seen.number == 1 { headers } else { &[] };
        headers.iter().fold(reply, |reply, (name, value)| reply.header(name, value))
    })
    .await
}

fn builder(server: &Server, events: &Events) -> SessionBuilder {
    Session::builder(pair("a0", "r0")).origin(server.origin()).on_event(events.listener())
}

fn ignored(events: &Events) -> Vec<CaptureIgnored> {
    let reason = |event: &Event| match event {
        Event::CaptureIgnored { reason, .. } => Some(*reason),
        _ => None,
    };
    events.all().iter().filter_map(reason).collect()
}

fn header() -> CaptureFrom {
    CaptureFrom::header("X-New-Access-Token").refresh_header("X-New-Refresh-Token")
}

fn cookie() -> CaptureFrom {
    CaptureFrom::cookie("JWT").refresh_cookie("RT")
}

#[tokio::test]
async fn a_rotated_pair_is_taken_together() {
    type Sent = &'static [(&'static str, &'static str)];
    let table: [(CaptureFrom, Sent, (&str, &str)); 6] = [
        (header(), &[("x-new-access-token", "a1"), ("x-new-refresh-token", "r1")], ("a1", "r1")),
        (header(), &[("x-new-access-token", "a1"), ("x-new-refresh-token", "r 1")], ("a1", "r0")),
        (header(), &[("x-new-refresh-token", "r1")], ("a0", "r0")),
        (header(), &[("x-new-access-token", "a0"), ("x-new-refresh-token", "r1")], ("a0", "r0")),
        (cookie(), &[("set-cookie", "JWT=a1; Path=/"), ("set-cookie", "RT=r1")], ("a1", "r1")),
        (cookie(), &[("set-cookie", "jwt=a1"), ("set-cookie", "RT=r1")], ("a0", "r0")),
    ];
    for (channel, sent, (access, refresh)) in table {
        let server = answering(sent).await;
        let session = builder(&server, &Events::default()).capture(channel).build().unwrap();
        let client = session.wrap(reqwest::Client::new());
        let response = client.get(server.url("/")).send().await.unwrap();
        assert_eq!(response.status(), 404);
        assert_eq!(held(&session), texts(access, refresh), "{sent:?}");
        for (name, value) in response.headers() {
            let secret = sent.iter().any(|(secret, _)| secret == &name.as_str());
            assert_eq!(value.is_sensitive(), secret, "{name}");
        }
        client.get(server.url("/")).send().await.unwrap();
        assert_eq!(server.tokens()[1].as_deref(), Some(access));
    }
}

#[tokio::test]
async fn a_rotated_pair_is_saved_in_one_step() {
    let server = answering(&[("x-new-access-token", "a1"), ("x-new-refresh-token", "r1")]).await;
    let store = FakeStore::default();
    let session = builder(&server, &Events::default())
        .capture(header())
        .store(store.clone())
        .build()
        .unwrap();
    session.wrap(reqwest::Client::new()).get(server.url("/")).send().await.unwrap();
    session.close().await.unwrap();
    let saves: Vec<_> = store.ops().into_iter().filter(|op| matches!(op, Op::Save(..))).collect();
    assert_eq!(saves, [Op::Save("a1".into(), "r1".into())]);
}

#[tokio::test]
async fn channels_that_differ_are_ignored() {
    let server = answering(&[("x-new-access-token", "a1"), ("set-cookie", "JWT=a2")]).await;
    let events = Events::default();
    let session = builder(&server, &events).capture(header()).capture(cookie()).build().unwrap();
    session.wrap(reqwest::Client::new()).get(server.url("/")).send().await.unwrap();
    assert_eq!(held(&session), texts("a0", "r0"));
    assert_eq!(ignored(&events), [CaptureIgnored::Malformed]);
}

#[tokio::test]
async fn a_removed_cookie_is_no_event() {
    let server = answering(&[("set-cookie", "JWT=; Max-Age=0"), ("set-cookie", "x=y")]).await;
    let events = Events::default();
    let session = builder(&server, &events).capture(cookie()).build().unwrap();
    session.wrap(reqwest::Client::new()).get(server.url("/")).send().await.unwrap();
    assert_eq!(held(&session), texts("a0", "r0"));
    assert_eq!(events.all().len(), 0);
}

#[tokio::test]
async fn the_first_call_replaces_the_default() {
    let server = answering(&[("refreshed-api-token", "a1"), ("x-other", "a2")]).await;
    let session = builder(&server, &Events::default())
        .capture(HeaderName::from_static("x-other"))
        .build()
        .unwrap();
    session.wrap(reqwest::Client::new()).get(server.url("/")).send().await.unwrap();
    assert_eq!(held(&session), texts("a2", "r0"));
}

#[tokio::test]
async fn only_the_last_response_of_a_redirect_counts() {
    let server = Server::simple(|seen| match seen.number {
        1 => Reply::status(302).header("location", "/next").header("set-cookie", "JWT=a1"),
        _ => Reply::status(200),
    })
    .await;
    let session = builder(&server, &Events::default()).capture(cookie()).build().unwrap();
    session.wrap(reqwest::Client::new()).get(server.url("/")).send().await.unwrap();
    assert_eq!(held(&session), texts("a0", "r0"));
}

#[tokio::test]
async fn nothing_is_captured_from_other_origins() {
    let elsewhere = answering(&[("set-cookie", "JWT=a1"), ("set-cookie", "RT=r1")]).await;
    let target = elsewhere.url("/");
    let server = Server::simple(move |_| Reply::status(302).header("location", &target)).await;
    let events = Events::default();
    let session = builder(&server, &events).capture(cookie()).build().unwrap();
    session.wrap(reqwest::Client::new()).get(server.url("/")).send().await.unwrap();
    assert_eq!(held(&session), texts("a0", "r0"));
    assert_eq!(ignored(&events), [CaptureIgnored::UntrustedOrigin]);
}

#[tokio::test(start_paused = true)]
async fn a_captured_refresh_token_outlives_a_refresh() {
    // The result of the refresh has no refresh token.
    let second = Duration::from_secs(1);
    let issuer = Issuer::new([Turn::Bring(second, Tokens::new("a2").unwrap())]);
    let session = Session::builder(pair("a0", "r0"))
        .origin(ORIGIN)
        .capture(header())
        .refresher(issuer.clone())
        .build()
        .unwrap();
    let credential = session.credential(ORIGIN).await.unwrap();
    let refreshing = tokio::spawn({
        let session = session.clone();
        async move { session.refresh().await }
    });
    issuer.until_called(1).await;
    let headers = HeaderMap::from_iter([
        (HeaderName::from_static("x-new-access-token"), HeaderValue::from_static("a1")),
        (HeaderName::from_static("x-new-refresh-token"), HeaderValue::from_static("r1")),
    ]);
    assert!(session.observe(&credential, ORIGIN, StatusCode::OK, &headers).captured);
    refreshing.await.unwrap().unwrap();
    assert_eq!(held(&session), texts("a2", "r1"));
}

#[test]
fn a_bad_name_fails_the_build() {
    for bad in [CaptureFrom::header("x y"), CaptureFrom::cookie("a=b"), cookie().refresh_cookie("")]
    {
        let builder = Session::builder(Tokens::new("a").unwrap()).origin("https://a.example");
        let error = builder.capture(bad).build().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidConfig);
    }
}
