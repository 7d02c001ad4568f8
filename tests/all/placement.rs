//! Where the token goes, whose header wins, and what becomes of either in a redirect.

use std::{
    io,
    sync::{Arc, Mutex},
};

use crate::raw::{Counter, Reply, Server};
use crate::support::{Events, every_thread_may_listen};
use reqwest_reauth::{
    Anonymous, Authorize, Capture, Event, Placement, Refresh, Replay, Session, SessionBuilder,
    Tokens, reqwest_middleware::ClientBuilder, same_origin_redirects,
};

fn builder(server: &Server, events: &Events) -> SessionBuilder {
    Session::builder(Tokens::new("old").unwrap())
        .origin(server.origin())
        .on_event(events.listener())
}

fn own_headers(events: &Events) -> usize {
    events.count(|event| matches!(event, Event::CallerAuthorization { .. }))
}

/// The log of this thread.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn listen(&self) -> tracing::subscriber::DefaultGuard {
        let to = self.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::DEBUG)
            .with_ansi(false)
            .without_time()
            .with_writer(move || to.clone())
            .finish();
        every_thread_may_listen();
        tracing::subscriber::set_default(subscriber)
    }

    fn count(&self, level: &str, text: &str) -> usize {
        let log = self.0.lock().unwrap();
        let log = String::from_utf8_lossy(&log);
        log.lines().filter(|line| line.trim().starts_with(level) && line.contains(text)).count()
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn each_placement_renews_and_replays() {
    let table = [
        (Placement::bearer(), "authorization", "Bearer "),
        (Placement::scheme("Token"), "authorization", "Token "),
        (Placement::header("X-API-Key"), "x-api-key", ""),
    ];
    for (placement, name, before) in table {
        let server = Server::simple(move |seen| {
            let good = format!("{before}t1");
            Reply::status(if seen.all(name) == [good.as_str()] { 200 } else { 401 })
        })
        .await;
        let counter = Counter::default();
        let session = builder(&server, &Events::default())
            .placement(placement)
            .refresher(counter.clone())
            .build()
            .unwrap();
        let client = session.wrap(reqwest::Client::new());
        let response = client.post(server.url("/")).body("x").send().await.unwrap();
        assert_eq!(response.status(), 200, "{name}");
        assert_eq!(counter.calls(), 1, "{name}");
        let sent: Vec<_> = server.seen().iter().map(|seen| seen.all(name).join("|")).collect();
        assert_eq!(sent, [format!("{before}old"), format!("{before}t1")]);
    }
}

#[tokio::test]
async fn an_own_header_wins_and_is_reported() {
    let server = Server::simple(|_| Reply::status(401)).await;
    let (events, log, counter) = (Events::default(), Log::default(), Counter::default());
    let session = builder(&server, &events).refresher(counter.clone()).build().unwrap();
    let client = session.wrap(reqwest::Client::new());
    let _guard = log.listen();
    for _ in 0..3 {
        let request = client.get(server.url("/")).header("authorization", "Basic x");
        assert_eq!(request.send().await.unwrap().status(), 401);
    }
    assert_eq!(counter.calls(), 0);
    assert!(server.seen().iter().all(|seen| seen.all("authorization") == ["Basic x"]));
    assert_eq!(own_headers(&events), 3);
    assert_eq!(log.count("INFO", "header of its own"), 1);
    assert_eq!(log.count("DEBUG", "header of its own"), 2);
}

#[tokio::test]
async fn not_every_own_header_is_reported() {
    let (server, elsewhere) = (
        Server::simple(|_| Reply::status(200)).await,
        Server::simple(|_| Reply::status(200)).await,
    );
    let events = Events::default();
    let session = builder(&server, &events).build().unwrap();
    let client = session.wrap(reqwest::Client::new());
    client.get(server.url("/")).send().await.unwrap();
    let own = || client.get(server.url("/")).header("authorization", "Basic x");
    own().with_extension(Anonymous).send().await.unwrap();
    client.get(elsewhere.url("/")).header("authorization", "Basic x").send().await.unwrap();
    // Two chains of one session, one above the other.
    let twice = ClientBuilder::from_client(session.wrap(reqwest::Client::new()))
        .with(Authorize::new(session.clone()))
        .build();
    twice.get(server.url("/")).send().await.unwrap();
    assert_eq!(own_headers(&events), 0);
    own().send().await.unwrap();
    assert_eq!(own_headers(&events), 1);
}

#[tokio::test]
async fn the_four_report_an_own_header_once() {
    let server = Server::simple(|_| Reply::status(200)).await;
    let events = Events::default();
    let session = builder(&server, &events).build().unwrap();
    let client = ClientBuilder::new(reqwest::Client::new())
        .with(Replay::new(session.clone()))
        .with(Refresh::new(session.clone()))
        .with(Capture::new(session.clone()))
        .with(Authorize::new(session.clone()))
        .build();
    client.get(server.url("/")).header("authorization", "Basic x").send().await.unwrap();
    assert_eq!(own_headers(&events), 1);
}

#[tokio::test]
async fn userinfo_counts_as_an_own_header() {
    let server = Server::simple(|_| Reply::status(200)).await;
    let events = Events::default();
    let session = builder(&server, &events).build().unwrap();
    let client = session.wrap(reqwest::Client::new());
    let mut url = reqwest::Url::parse(&server.url("/")).unwrap();
    url.set_username("me").unwrap();
    // reqwest's builder makes a header of it, a bare request does not.
    client.get(url.clone()).send().await.unwrap();
    client.execute(reqwest::Request::new(http::Method::GET, url)).await.unwrap();
    assert!(server.tokens().iter().all(Option::is_none));
    assert_eq!(own_headers(&events), 2);
}

#[tokio::test]
async fn an_own_header_of_the_placements_name_wins() {
    let server = Server::simple(|_| Reply::status(200)).await;
    let events = Events::default();
    let session =
        builder(&server, &events).placement(Placement::header("x-api-key")).build().unwrap();
    let client = session.wrap(reqwest::Client::new());
    client.get(server.url("/")).header("x-api-key", "mine").send().await.unwrap();
    client.get(server.url("/")).header("authorization", "Basic x").send().await.unwrap();
    let seen = server.seen();
    assert_eq!(seen[0].all("x-api-key"), ["mine"]);
    assert_eq!(seen[1].all("x-api-key"), ["old"]);
    assert_eq!(seen[1].all("authorization"), ["Basic x"]);
    assert_eq!(own_headers(&events), 1);
}

#[tokio::test]
async fn the_sessions_token_can_win() {
    let server =
        Server::simple(|seen| Reply::status(if seen.token() == Some("t1") { 200 } else { 401 }))
            .await;
    let elsewhere = Server::simple(|_| Reply::status(200)).await;
    let (events, counter) = (Events::default(), Counter::default());
    let session = builder(&server, &events)
        .override_authorization()
        .refresher(counter.clone())
        .build()
        .unwrap();
    let client = session.wrap(reqwest::Client::new());
    let request = client.get(server.url("/")).bearer_auth("mine").bearer_auth("again");
    assert_eq!(request.send().await.unwrap().status(), 200);
    let values: Vec<_> = server.seen().iter().map(|seen| seen.all("authorization").len()).collect();
    assert_eq!(values, [1, 1]);
    assert_eq!(server.tokens(), [Some("old".to_owned()), Some("t1".to_owned())]);
    client.get(elsewhere.url("/")).bearer_auth("mine").send().await.unwrap();
    assert_eq!(elsewhere.tokens(), [Some("mine".to_owned())]);
    let anonymous = client.get(server.url("/")).bearer_auth("mine").with_extension(Anonymous);
    anonymous.send().await.unwrap();
    assert_eq!(server.tokens().last(), Some(&Some("mine".to_owned())));
    assert_eq!(own_headers(&events), 0);
}

/// Redirects to the other one.
async fn redirecting(to: &Server) -> Server {
    let target = to.url("/there");
    Server::simple(move |_| Reply::status(307).header("location", &target)).await
}

#[tokio::test]
async fn a_header_that_went_elsewhere_is_an_error() {
    let elsewhere = Server::simple(|_| Reply::status(401)).await;
    let server = redirecting(&elsewhere).await;
    for four in [false, true] {
        let (log, counter) = (Log::default(), Counter::default());
        let session = builder(&server, &Events::default())
            .placement(Placement::header("x-api-key"))
            .refresher(counter.clone())
            .build()
            .unwrap();
        let client = if four {
            ClientBuilder::new(reqwest::Client::new()).with(Authorize::new(session)).build()
        } else {
            session.wrap(reqwest::Client::new())
        };
        let _guard = log.listen();
        let response = client.get(server.url("/")).send().await.unwrap();
        assert_eq!(response.status(), 401);
        assert_eq!(counter.calls(), 0);
        // What reqwest does, and why it is reported.
        assert_eq!(elsewhere.seen().last().unwrap().all("x-api-key"), ["old"]);
        assert_eq!(log.count("ERROR", "127.0.0.1"), 1);
    }
}

#[tokio::test]
async fn authorization_does_not_go_elsewhere() {
    let elsewhere = Server::simple(|_| Reply::status(401)).await;
    let server = redirecting(&elsewhere).await;
    let log = Log::default();
    let session = builder(&server, &Events::default()).build().unwrap();
    let _guard = log.listen();
    session.wrap(reqwest::Client::new()).get(server.url("/")).send().await.unwrap();
    assert!(elsewhere.seen()[0].all("authorization").is_empty());
    assert_eq!(log.count("ERROR", ""), 0);
}

#[tokio::test]
async fn a_client_can_stay_with_its_origin() {
    let elsewhere = Server::simple(|_| Reply::status(200)).await;
    let server = redirecting(&elsewhere).await;
    let log = Log::default();
    let session = builder(&server, &Events::default())
        .placement(Placement::header("x-api-key"))
        .build()
        .unwrap();
    let http = reqwest::Client::builder().redirect(same_origin_redirects()).build().unwrap();
    let _guard = log.listen();
    let response = session.wrap(http).get(server.url("/")).send().await.unwrap();
    assert_eq!(response.status(), 307);
    assert_eq!(elsewhere.count(), 0);
    assert_eq!(log.count("ERROR", ""), 0);
}

#[tokio::test]
async fn ten_redirects_are_followed_and_no_more() {
    for (redirects, ends_well) in [(10, true), (11, false)] {
        let server = Server::simple(move |seen| {
            if seen.number > redirects {
                Reply::status(200)
            } else {
                Reply::status(302).header("location", format!("/{}", seen.number))
            }
        })
        .await;
        let http = reqwest::Client::builder().redirect(same_origin_redirects()).build().unwrap();
        let result = http.get(server.url("/")).send().await;
        assert_eq!(result.is_ok(), ends_well, "{redirects}");
    }
}
