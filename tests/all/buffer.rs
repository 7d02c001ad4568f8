//! Streams that are buffered before they are sent, so that they can be replayed.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use crate::raw::{Counter, Reply, Server};
use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use reqwest::Body;
use reqwest_reauth::{NotReplayed, Outcome, Session, SessionBuilder, Tokens};

const LIMIT: usize = 10;

/// Rejects all but `t1`, `t2` and so on.
async fn strict() -> Server {
    Server::simple(|seen| {
        let good = seen.token().is_some_and(|token| token.starts_with('t'));
        Reply::status(if good { 200 } else { 401 })
    })
    .await
}

fn builder(server: &Server) -> SessionBuilder {
    Session::builder(Tokens::new("old").unwrap())
        .origin(server.origin())
        .refresher(Counter::default())
        .buffer_bodies(LIMIT)
}

fn streamed(parts: &[&'static str]) -> Body {
    let parts: Vec<_> =
        parts.iter().map(|part| Ok::<_, io::Error>(Bytes::from_static(part.as_bytes()))).collect();
    Body::wrap_stream(stream::iter(parts))
}

#[tokio::test]
async fn a_stream_within_the_limit_is_replayed() {
    let parts: [&[&str]; 4] = [&[], &["0123456789"], &["01234", "", "56789"], &["0", "1", "2"]];
    for parts in parts {
        let server = strict().await;
        let client = builder(&server).build().unwrap().wrap(reqwest::Client::new());
        let request = client.put(server.url("/")).body(streamed(parts));
        assert_eq!(request.send().await.unwrap().status(), 200, "{parts:?}");
        let bodies: Vec<_> = server.seen().into_iter().map(|seen| seen.body).collect();
        assert_eq!(bodies, [parts.concat().as_bytes(), parts.concat().as_bytes()]);
    }
}

#[tokio::test]
async fn a_longer_stream_is_sent_once_and_whole() {
    for parts in [&["0123456789", "x"][..], &["0123456789x"], &["01234", "56789", "x", "yz"]] {
        let server = strict().await;
        let client = builder(&server).build().unwrap().wrap(reqwest::Client::new());
        let response = client.put(server.url("/")).body(streamed(parts)).send().await.unwrap();
        assert_eq!(response.status(), 401, "{parts:?}");
        let outcome = response.extensions().get::<Outcome>().unwrap();
        assert_eq!(outcome.not_replayed, Some(NotReplayed::BodyNotReplayable));
        let bodies: Vec<_> = server.seen().into_iter().map(|seen| seen.body).collect();
        assert_eq!(bodies, [parts.concat().as_bytes()]);
    }
}

/// A stream that counts how often it is polled before the request reaches the server.
fn counted(polls: &Arc<AtomicUsize>, parts: usize) -> Body {
    let polls = Arc::clone(polls);
    Body::wrap_stream(stream::iter(0..parts).map(move |_| {
        polls.fetch_add(1, Ordering::SeqCst);
        Ok::<_, io::Error>(Bytes::from_static(b"x"))
    }))
}

#[tokio::test]
async fn a_declared_length_over_the_limit_is_not_read() {
    let server = strict().await;
    let polls = Arc::new(AtomicUsize::new(0));
    // Without a token nothing is sent, so that only the buffering could have polled it.
    let session = builder(&server).build().unwrap();
    session.close().await.unwrap();
    let client = session.wrap(reqwest::Client::new());
    let request = |length: usize| {
        client
            .put(server.url("/"))
            .header("content-length", length)
            .body(counted(&polls, length))
            .send()
    };
    request(LIMIT + 1).await.unwrap_err();
    assert_eq!(polls.load(Ordering::SeqCst), 0);
    request(LIMIT).await.unwrap_err();
    assert_eq!(polls.load(Ordering::SeqCst), LIMIT);
}

#[tokio::test]
async fn only_the_sessions_streams_are_buffered() {
    let (server, elsewhere) = (strict().await, strict().await);
    let polls = Arc::new(AtomicUsize::new(0));
    let endless = || {
        let polls = Arc::clone(&polls);
        Body::wrap_stream(stream::once(async move {
            polls.fetch_add(1, Ordering::SeqCst);
            Err::<Bytes, _>(io::Error::other("read"))
        }))
    };
    let client = builder(&server).build().unwrap().wrap(reqwest::Client::new());
    // A stream that fails while it is sent has reached the connection.
    let _ = client.put(elsewhere.url("/")).body(endless()).send().await;
    let own = client.put(server.url("/")).bearer_auth("mine").body(endless());
    let _ = own.send().await;
    assert!(server.count() + elsewhere.count() <= 2);
    let before = polls.load(Ordering::SeqCst);
    client.put(server.url("/")).body(endless()).send().await.unwrap_err();
    assert_eq!(polls.load(Ordering::SeqCst), before + 1);
}

#[tokio::test]
async fn a_stream_that_fails_fails_the_request_unsent() {
    let server = strict().await;
    let client = builder(&server).build().unwrap().wrap(reqwest::Client::new());
    let parts = [Ok(Bytes::from_static(b"x")), Err(io::Error::other("gone"))];
    let body = Body::wrap_stream(stream::iter(parts));
    let error = client.put(server.url("/")).body(body).send().await.unwrap_err();
    assert!(format!("{error:?}").contains("gone"), "{error:?}");
    assert_eq!(server.connections(), 0);
}

/// A part, then the rest after the release.
fn slow(rest: tokio::sync::oneshot::Receiver<()>) -> Body {
    let first = stream::once(async { Ok::<_, io::Error>(Bytes::from_static(b"a")) });
    let last = stream::once(async {
        rest.await.unwrap();
        Ok(Bytes::from_static(b"b"))
    });
    Body::wrap_stream(first.chain(last))
}

/// How long an endless stream was read before it was sent.
async fn read_for(timeout: Option<Duration>) -> Duration {
    let server = strict().await;
    let client = builder(&server).build().unwrap().wrap(reqwest::Client::new());
    let (let_go, rest) = tokio::sync::oneshot::channel();
    let mut request = client.put(server.url("/")).body(slow(rest));
    if let Some(timeout) = timeout {
        request = request.timeout(timeout);
    }
    let sending = tokio::spawn(request.send());
    // The connection shows that the buffering ended.
    let begun = std::time::Instant::now();
    while server.connections() == 0 && !sending.is_finished() {
        tokio::task::yield_now().await;
    }
    let took = begun.elapsed();
    let_go.send(()).unwrap();
    match sending.await.unwrap() {
        Ok(response) => assert_eq!(response.status(), 401),
        Err(error) if timeout.is_some() && error.is_timeout() => return Duration::MAX,
        Err(error) => panic!("{error:?}"),
    }
    assert_eq!(server.seen()[0].body, b"ab");
    took
}

#[tokio::test]
async fn a_slow_stream_is_sent_as_a_stream() {
    assert!(read_for(None).await >= Duration::from_millis(900));
    // With a timeout of less than a second, unless the machine itself is slow.
    let timeout = Some(Duration::from_millis(500));
    for tries in 1.. {
        if read_for(timeout).await < Duration::from_millis(900) {
            break;
        }
        assert!(tries < 10, "the timeout does not bound the reading");
    }
}

#[tokio::test]
async fn without_a_limit_no_stream_is_read() {
    let server = strict().await;
    let session = Session::builder(Tokens::new("old").unwrap())
        .origin(server.origin())
        .refresher(Counter::default())
        .build()
        .unwrap();
    let client = session.wrap(reqwest::Client::new());
    let response = client.put(server.url("/")).body(streamed(&["x"])).send().await.unwrap();
    assert_eq!(response.status(), 401);
}
