//! What is replayed after a rejection, and what is not.

use std::{
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use crate::raw::{Counter, Reply, Server};
use crate::support::{Events, pass};
use bytes::Bytes;
use futures_util::stream;
use http::{Method, StatusCode, Version};
use reqwest::{Body, Response};
use reqwest_middleware::{ClientBuilder, ClientWithMiddleware};
use reqwest_reauth::{
    ClientBuilderExt, Error, ErrorKind, Event, NotReplayed, OAuthRefresh, OnRefreshFailure,
    Outcome, ReplayBody, Session, SessionBuilder, Tokens,
    testing::{Answer, AuthServer},
};
use tokio::sync::{Barrier, Semaphore};

/// Rejects all tokens except `t1`, `t2` and so on.
fn strict(seen: &crate::raw::Seen) -> Reply {
    if seen.token().is_some_and(|token| token.starts_with('t')) {
        Reply::status(200).body("served")
    } else {
        Reply::status(401).body("refused")
    }
}

fn builder(server: &Server) -> SessionBuilder {
    Session::builder(Tokens::new("old").unwrap()).origin(server.origin())
}

fn client(session: &Session) -> ClientWithMiddleware {
    ClientBuilder::new(reqwest::Client::new()).with_session(session.clone()).build()
}

fn outcome(response: &Response) -> Outcome {
    response.extensions().get::<Outcome>().cloned().unwrap_or_default()
}

/// Bytes that any re-encoding would change.
fn bytes(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    fastrand::Rng::with_seed(7).fill(&mut bytes);
    bytes
}

fn streamed(parts: Vec<Vec<u8>>) -> Body {
    Body::wrap_stream(stream::iter(
        parts.into_iter().map(|part| Ok::<_, io::Error>(Bytes::from(part))),
    ))
}

#[tokio::test]
async fn every_method_is_replayed_byte_for_byte() {
    let server = Server::simple(strict).await;
    for method in ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PURGE"] {
        for length in [None, Some(0), Some(1), Some(300_000)] {
            let counter = Counter::default();
            let session = builder(&server).refresher(counter.clone()).build().unwrap();
            let already = server.count();
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            let mut request = client(&session)
                .request(method.clone(), server.url("/a%20b/c?q=1&q=2&empty"))
                .header("X-One", "1")
                .header("X-Many", "a")
                .header("X-Many", "b")
                .timeout(Duration::from_secs(60));
            if let Some(length) = length {
                request = request.body(bytes(length));
            }
            let response = request.send().await.unwrap();
            assert_eq!(response.status(), 200, "{method} {length:?}");
            let outcome = outcome(&response);
            assert!(
                outcome.replayed
                    && outcome.refreshed
                    && !outcome.captured
                    && outcome.not_replayed.is_none()
            );

            let seen = &server.seen()[already..];
            assert_eq!(seen.len(), 2, "{method} {length:?}");
            assert_eq!(
                [seen[0].token(), seen[1].token()],
                [Some("old"), Some("t1")],
                "one authorization each"
            );
            assert_eq!(seen[0].rest(), seen[1].rest(), "{method} {length:?}");
            assert_eq!(seen[0].method, method.as_str());
            assert_eq!(seen[0].target, "/a%20b/c?q=1&q=2&empty");
            assert_eq!(seen[0].all("x-many"), ["a", "b"]);
            assert!(seen[0].body == bytes(length.unwrap_or(0)));
            assert_eq!(counter.calls(), 1);
        }
    }
}

#[tokio::test]
async fn headers_of_one_name_are_all_replayed() {
    // Without body and timeout, the copy is made by hand.
    let server = Server::simple(strict).await;
    let session = builder(&server).refresher(Counter::default()).build().unwrap();
    let request = client(&session).get(server.url("/")).header("x-many", "a").header("x-many", "b");
    assert_eq!(request.send().await.unwrap().status(), 200);
    let seen = server.seen();
    assert_eq!(seen[0].all("x-many"), ["a", "b"]);
    assert_eq!(seen[1].all("x-many"), ["a", "b"]);
}

#[tokio::test]
async fn the_version_is_the_same_too() {
    let server = Server::simple(strict).await;
    for body in [false, true] {
        let session = builder(&server).refresher(Counter::default()).build().unwrap();
        let already = server.count();
        let mut request = client(&session).get(server.url("/")).version(Version::HTTP_10);
        if body {
            request = request.body("x");
        }
        assert_eq!(request.send().await.unwrap().status(), 200);
        assert!(server.seen()[already..].iter().all(|seen| seen.version == "HTTP/1.0"));
        assert_eq!(server.count() - already, 2);
    }
}

#[tokio::test]
async fn a_buffered_body_is_shared_and_not_copied() {
    /// Where each body begins in memory, seen below the chain.
    #[derive(Clone, Default)]
    struct Addresses(Arc<Mutex<Vec<usize>>>);
    #[async_trait::async_trait]
    impl reqwest_middleware::Middleware for Addresses {
        async fn handle(
            &self,
            request: reqwest::Request,
            extensions: &mut http::Extensions,
            next: reqwest_middleware::Next<'_>,
        ) -> reqwest_middleware::Result<Response> {
            let body = request.body().and_then(Body::as_bytes).unwrap();
            self.0.lock().unwrap().push(body.as_ptr() as usize);
            next.run(request, extensions).await
        }
    }
    let server = Server::simple(strict).await;
    let session = builder(&server).refresher(Counter::default()).build().unwrap();
    let addresses = Addresses::default();
    let client = ClientBuilder::new(reqwest::Client::new())
        .with_session(session)
        .with(addresses.clone())
        .build();
    let body = Bytes::from(bytes(100_000));
    let start = body.as_ptr() as usize;
    client.post(server.url("/")).body(body).send().await.unwrap();
    assert_eq!(*addresses.0.lock().unwrap(), [start, start]);
}

#[tokio::test]
async fn a_streamed_body_is_sent_once_and_whole() {
    let server = Server::simple(strict).await;
    let events = Events::default();
    let counter = Counter::default();
    let session =
        builder(&server).refresher(counter.clone()).on_event(events.listener()).build().unwrap();
    let client = client(&session);
    let parts: Vec<_> = (0..20).map(|part| bytes(1000 + part)).collect();

    let response =
        client.post(server.url("/upload")).body(streamed(parts.clone())).send().await.unwrap();
    assert_eq!(response.status(), 401);
    let outcome = outcome(&response);
    assert_eq!(outcome.not_replayed, Some(NotReplayed::BodyNotReplayable));
    assert!(outcome.refreshed);
    assert!(!outcome.replayed);
    assert_eq!(
        response.text().await.unwrap(),
        "refused",
        "the refusal is the caller's, body and all"
    );
    assert_eq!(
        events.count(|event| matches!(
            event,
            Event::NotReplayed { reason: NotReplayed::BodyNotReplayable, .. }
        )),
        1
    );

    let response =
        client.post(server.url("/upload")).body(streamed(parts.clone())).send().await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(server.tokens(), [Some("old".into()), Some("t1".into())]);
    assert!(
        server.seen().iter().all(|seen| seen.body == parts.concat()),
        "never empty, never half"
    );
    assert_eq!(counter.calls(), 1);
}

#[tokio::test]
async fn a_body_that_can_be_made_anew_is_replayed() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes(200_000)).unwrap();
    let path = file.path().to_owned();
    let parts = vec![bytes(10), bytes(70_000), bytes(3)];
    let whole = parts.concat();
    let form = "--frontier\r\ncontent-disposition: form-data; name=\"f\"; filename=\"x\"\r\n\r\nbinary\x01\r\n--frontier--\r\n";
    let stream = ReplayBody::new({
        let parts = parts.clone();
        move || streamed(parts.clone())
    });
    let from_file = ReplayBody::try_new(move || {
        Ok(Body::from(tokio::fs::File::from_std(std::fs::File::open(&path)?)))
    });
    let multipart =
        ReplayBody::new(move || streamed(form.as_bytes().chunks(7).map(<[u8]>::to_vec).collect()));
    let cases = [
        ("stream", stream, whole, "application/octet-stream"),
        ("file", from_file, bytes(200_000), "application/octet-stream"),
        (
            "multipart",
            multipart,
            form.as_bytes().to_vec(),
            "multipart/form-data; boundary=frontier",
        ),
    ];
    for (name, replay_body, expected, kind) in cases {
        // The request's own body is sent first. Without one, the first body comes from the closure
        // too.
        for own in [true, false] {
            let server = Server::simple(strict).await;
            let session = builder(&server).refresher(Counter::default()).build().unwrap();
            let mut request = client(&session)
                .put(server.url("/"))
                .header("content-type", kind)
                .with_extension(replay_body.clone());
            if own {
                request =
                    request.body(streamed(expected.chunks(999).map(<[u8]>::to_vec).collect()));
            }
            let response = request.send().await.unwrap();
            assert_eq!(response.status().as_u16(), 200, "{name} {own}");
            assert!(outcome(&response).replayed, "{name} {own}");
            let seen = server.seen();
            assert_eq!(seen.len(), 2, "{name} {own}");
            assert!(
                seen.iter().all(|seen| seen.body == expected && seen.all("content-type") == [kind]),
                "{name} {own}"
            );
        }
    }
}

#[tokio::test]
async fn a_body_is_made_no_oftener_than_it_is_sent() {
    let server = Server::simple(strict).await;
    let session = builder(&server).refresher(Counter::default()).build().unwrap();
    let client = client(&session);
    let made = Arc::new(AtomicUsize::new(0));
    let body = ReplayBody::new({
        let made = Arc::clone(&made);
        move || {
            made.fetch_add(1, Ordering::SeqCst);
            streamed(vec![b"x".to_vec()])
        }
    });
    client.post(server.url("/")).with_extension(body.clone()).send().await.unwrap();
    assert_eq!(made.load(Ordering::SeqCst), 2);
    client.post(server.url("/")).with_extension(body.clone()).send().await.unwrap();
    assert_eq!(made.load(Ordering::SeqCst), 3);
    client.post(server.url("/")).with_extension(body).body("own").send().await.unwrap();
    assert_eq!(made.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn a_body_that_cannot_be_made_is_no_replay() {
    let server = Server::simple(strict).await;
    let session = builder(&server).refresher(Counter::default()).build().unwrap();
    let client = client(&session);
    let fails_from = |first: usize| {
        let made = AtomicUsize::new(0);
        ReplayBody::try_new(move || {
            if made.fetch_add(1, Ordering::SeqCst) + 1 >= first {
                Err(io::Error::other("gone"))
            } else {
                Ok("body".into())
            }
        })
    };
    let error =
        client.post(server.url("/")).with_extension(fails_from(1)).send().await.unwrap_err();
    assert!(format!("{error:#}").contains("gone") && error.is_middleware(), "{error:?}");
    assert_eq!(server.count(), 0);

    let response = client.post(server.url("/")).with_extension(fails_from(2)).send().await.unwrap();
    assert_eq!(response.status().as_u16(), 401);
    assert_eq!(server.count(), 1);
    assert_eq!(outcome(&response).not_replayed, Some(NotReplayed::BodyNotReplayable));
}

#[tokio::test]
async fn a_rule_of_the_user_can_forbid_the_replay() {
    let server = Server::simple(strict).await;
    for (method, replayed) in [(Method::POST, false), (Method::GET, true)] {
        let events = Events::default();
        let counter = Counter::default();
        let session = builder(&server)
            .refresher(counter.clone())
            .replay_if(|request| request.method() != Method::POST)
            .on_event(events.listener())
            .build()
            .unwrap();
        let already = server.count();
        let response = client(&session).request(method, server.url("/")).send().await.unwrap();
        let outcome = outcome(&response);
        assert_eq!(outcome.replayed, replayed);
        assert_eq!(outcome.not_replayed, (!replayed).then_some(NotReplayed::RuledOut));
        assert_eq!(
            events.count(|event| matches!(
                event,
                Event::NotReplayed { reason: NotReplayed::RuledOut, .. }
            )),
            usize::from(!replayed)
        );
        assert_eq!(server.count() - already, 1 + usize::from(replayed));
        assert_eq!(counter.calls(), 1);
        assert!(outcome.refreshed, "the next request has the new token");
    }
}

#[tokio::test]
async fn an_endless_rejection_delays_no_replay() {
    let refusals = [
        ("endless", Reply::status(401).endless([b'x'; 4096])),
        ("trickling", Reply::status(401).header("x", "y").endless("x")),
        ("stalled", Reply::status(401).stalled(1000)),
        ("huge and stalled", Reply::status(401).stalled(usize::MAX >> 1)),
    ];
    for (name, refusal) in refusals {
        let server = Server::simple(move |seen| {
            if seen.token() == Some("old") { refusal.clone() } else { strict(seen) }
        })
        .await;
        let session = builder(&server).refresher(Counter::default()).build().unwrap();
        let begun = Instant::now();
        let response = client(&session).get(server.url("/")).send().await.unwrap();
        assert_eq!(response.status(), 200, "{name}");
        // The promise is a tenth of a second. The rest is for a busy machine.
        assert!(begun.elapsed() < Duration::from_secs(20), "{name} {:?}", begun.elapsed());
        assert_eq!(server.count(), 2, "{name}");
        assert_eq!(server.connections(), 2, "{name}");
        // What was read, and what the sockets hold.
        assert!(server.sent() < 32 << 20, "{name} {}", server.sent());
    }
}

#[tokio::test]
async fn a_short_rejection_keeps_its_connection() {
    let refusals = [
        ("none", Reply::status(401)),
        ("short", Reply::status(401).body("x".repeat(100))),
        ("60 KiB", Reply::status(401).body("x".repeat(60 << 10))),
        ("chunked", Reply::status(401).repeated([b'x'; 512], 100)),
    ];
    for (name, refusal) in refusals {
        let server = Server::simple(move |seen| {
            if seen.token() == Some("old") { refusal.clone() } else { strict(seen) }
        })
        .await;
        let session = builder(&server).refresher(Counter::default()).build().unwrap();
        assert_eq!(client(&session).get(server.url("/")).send().await.unwrap().status(), 200);
        assert_eq!(server.count(), 2, "{name}");
        assert_eq!(server.connections(), 1, "{name}");
    }
}

#[tokio::test]
async fn the_replays_response_is_the_callers() {
    for status in [204, 302, 404, 409, 500, 503] {
        let server =
            Server::simple(move |seen| Reply::status(if seen.number == 1 { 401 } else { status }))
                .await;
        let counter = Counter::default();
        let session = builder(&server).refresher(counter.clone()).build().unwrap();
        let response = client(&session).get(server.url("/")).send().await.unwrap();
        assert_eq!(response.status().as_u16(), status);
        assert_eq!(server.count(), 2);
        assert_eq!(counter.calls(), 1);
    }
}

#[tokio::test]
async fn a_rejected_replay_is_not_replayed() {
    let server = Server::simple(|_| Reply::status(401).body("no")).await;
    let events = Events::default();
    let counter = Counter::default();
    let session =
        builder(&server).refresher(counter.clone()).on_event(events.listener()).build().unwrap();
    let response = client(&session).get(server.url("/")).send().await.unwrap();
    assert_eq!(response.status().as_u16(), 401);
    assert_eq!(server.count(), 2);
    assert_eq!(counter.calls(), 1);
    let outcome = outcome(&response);
    assert!(outcome.replayed);
    assert_eq!(outcome.not_replayed, Some(NotReplayed::AlreadyReplayed));
    assert_eq!(
        events.count(|event| matches!(
            event,
            Event::NotReplayed { reason: NotReplayed::AlreadyReplayed, .. }
        )),
        1
    );
}

#[tokio::test]
async fn the_replays_transport_error_is_the_end() {
    let server = Server::simple(|seen| {
        if seen.number == 1 { Reply::status(401).body("x") } else { Reply::bytes("") }
    })
    .await;
    let counter = Counter::default();
    let session = builder(&server).refresher(counter.clone()).build().unwrap();
    let error = client(&session).post(server.url("/")).body("x").send().await.unwrap_err();
    assert!(
        matches!(&error, reqwest_middleware::Error::Reqwest(error) if error.is_request()),
        "{error:?}"
    );
    assert!(Error::find_in(&error).is_none());
    assert_eq!(server.count(), 2);
    assert_eq!(counter.calls(), 1);
}

#[tokio::test]
async fn a_transport_error_is_never_replayed() {
    let server = Server::simple(|_| Reply::bytes("")).await;
    let counter = Counter::default();
    let session = builder(&server).refresher(counter.clone()).build().unwrap();
    client(&session).post(server.url("/")).body("x").send().await.unwrap_err();
    assert_eq!(server.count(), 1);
    assert_eq!(counter.calls(), 0);
    assert_eq!(session.generation(), 1);
}

async fn until(is_so: impl Fn() -> bool) {
    while !is_so() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_requests_own_timeout_is_per_send() {
    // Both sends together take longer than the timeout, each of them less.
    let gate = Arc::new(Semaphore::new(0));
    let opened = Arc::clone(&gate);
    let server = Server::start(move |seen| {
        let gate = Arc::clone(&opened);
        async move {
            gate.acquire().await.unwrap().forget();
            strict(&seen)
        }
    })
    .await;
    let session = builder(&server).refresher(Counter::default()).build().unwrap();
    let request = client(&session).get(server.url("/")).timeout(Duration::from_secs(500)).send();
    let passing = async {
        for sends in 1..=2 {
            until(|| server.count() == sends).await;
            pass(Duration::from_secs(300)).await;
            gate.add_permits(1);
        }
    };
    let response = tokio::join!(request, passing).0.unwrap();
    assert_eq!(response.status().as_u16(), 200);
    assert_eq!(server.count(), 2);
}

#[tokio::test]
async fn a_requests_own_timeout_bounds_its_replay() {
    let server = Server::start(|seen| async move {
        if seen.token() == Some("old") { Reply::status(401) } else { std::future::pending().await }
    })
    .await;
    let session = builder(&server).refresher(Counter::default()).build().unwrap();
    let limit = Duration::from_secs(600);
    let request = client(&session).get(server.url("/")).timeout(limit).send();
    let passing = async {
        until(|| server.count() == 2).await;
        pass(limit).await;
    };
    let error = tokio::join!(request, passing).0.unwrap_err();
    assert!(error.is_timeout() && Error::find_in(&error).is_none(), "{error:?}");
    assert_eq!(server.count(), 2);
}

#[tokio::test]
async fn a_timeout_bounds_the_wait_for_a_refresh() {
    for choice in [OnRefreshFailure::ReturnError, OnRefreshFailure::ReturnResponse] {
        let server = AuthServer::start().await;
        let (limit, longer) = (Duration::from_secs(60), Duration::from_secs(600));
        let refresher = OAuthRefresh::new(server.token_endpoint());
        let session = Session::builder(server.login())
            .origin(server.origin())
            .refresher(refresher.attempt_timeout(longer).deadline(longer))
            .refresh_timeout(longer)
            .on_refresh_failure(choice)
            .build()
            .unwrap();
        let client = client(&session);
        server.expire_now();
        let hold = server.hold_token_calls();
        let request = client.post(server.url("/")).body("x").timeout(limit).send();
        let passing = async {
            hold.waiting(1).await;
            pass(limit).await;
        };
        let sent = tokio::join!(request, passing).0;
        let error = match sent {
            Ok(response) => {
                assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
                assert_eq!(choice, OnRefreshFailure::ReturnResponse);
                outcome(&response).refresh_error.unwrap()
            }
            Err(error) => {
                assert_eq!(choice, OnRefreshFailure::ReturnError);
                Error::find_in(&error).unwrap().clone()
            }
        };
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        assert_eq!(error.api_status(), Some(StatusCode::UNAUTHORIZED));
        assert_eq!(server.api_hits(), 1);
        assert_eq!(server.token_calls(), 1);
        assert_eq!(session.generation(), 1);
        hold.release();
        // Its result is available to the next request.
        assert_eq!(client.get(server.url("/")).send().await.unwrap().status(), 200);
        assert_eq!(server.token_calls(), 1);
        assert_eq!(server.refused(), 1);
        assert_eq!(session.generation(), 2);
    }
}

#[tokio::test]
async fn a_failed_refresh_is_no_replay() {
    for choice in [OnRefreshFailure::ReturnError, OnRefreshFailure::ReturnResponse] {
        let server = AuthServer::start().await;
        let refresher = OAuthRefresh::new(server.token_endpoint()).max_attempts(1);
        let session = Session::builder(server.login())
            .origin(server.origin())
            .refresher(refresher)
            .on_refresh_failure(choice)
            .build()
            .unwrap();
        server.expire_now();
        server.script_token_endpoint([Answer::Status(502)]);
        let sent = client(&session).get(server.url("/")).send().await;
        let error = match sent {
            Ok(response) => {
                let error = outcome(&response).refresh_error.unwrap();
                assert!(
                    response.text().await.unwrap().contains("Invalid auth token"),
                    "the body is unread"
                );
                error
            }
            Err(error) => Error::find_in(&error).unwrap().clone(),
        };
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert_eq!(error.status().unwrap().as_u16(), 502);
        assert_eq!(error.api_status().unwrap().as_u16(), 401);
        assert_eq!(server.api_hits(), 1);
        assert_eq!(server.token_calls(), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_rejections_are_one_refresh() {
    const REQUESTS: usize = 256;
    let server = AuthServer::builder().only_newest_token().start().await;
    let tokens = server.login_as("storm");
    let (old, events) =
        (tokens.access_token().unwrap().expose_secret().to_owned(), Events::default());
    let refresher = OAuthRefresh::new(server.token_endpoint())
        .backoff(Duration::from_millis(1), Duration::from_millis(2));
    let session = Session::builder(tokens)
        .origin(server.origin())
        .refresher(refresher)
        .on_event(events.listener())
        .build()
        .unwrap();
    let client = client(&session);
    server.expire_now();
    server.script_token_endpoint([Answer::Status(502), Answer::Status(502), Answer::Work]);

    let hold = server.hold_api();
    let start = Arc::new(Barrier::new(REQUESTS));
    let requests: Vec<_> = (0..REQUESTS)
        .map(|number| {
            let (client, start, url) =
                (client.clone(), Arc::clone(&start), server.url(&format!("/{number}?echo")));
            tokio::spawn(async move {
                start.wait().await;
                client.post(url).body(format!("body {number}")).send().await
            })
        })
        .collect();
    hold.waiting(REQUESTS).await;
    hold.release();
    for (number, request) in requests.into_iter().enumerate() {
        let response = request.await.unwrap().unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert!(outcome(&response).replayed);
        assert_eq!(response.text().await.unwrap(), format!("body {number}"));
    }
    assert_eq!(server.token_calls(), 3);
    assert_eq!(server.concurrent_token_calls_max(), 1);
    assert_eq!(server.api_hits(), 2 * REQUESTS as u64);
    assert_eq!(server.refused(), REQUESTS as u64);
    assert_eq!(events.count(|event| matches!(event, Event::Replayed { .. })), REQUESTS);
    assert_eq!(events.count(|event| matches!(event, Event::RefreshRetrying { .. })), 2);
    let mut paths = std::collections::HashMap::<_, Vec<_>>::new();
    for request in server.requests() {
        let old = request.headers["authorization"].to_str().unwrap().ends_with(&old);
        paths.entry(request.uri.path().to_owned()).or_default().push((old, request.body));
    }
    assert_eq!(paths.len(), REQUESTS);
    for (path, sends) in paths {
        assert!(
            matches!(&sends[..], [(true, first), (false, second)] if first == second),
            "{path}"
        );
    }
}

#[test]
fn a_replay_body_shows_nothing_of_itself() {
    assert_eq!(format!("{:?}", ReplayBody::new(|| "secret".into())), "ReplayBody(..)");
}
