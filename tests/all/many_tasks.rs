//! One client, many tasks, each with its own token: seen by the servers.

// Helpers of tests may unwrap as tests do.

use std::{
    future::{Future, poll_fn},
    io::Write as _,
    panic::{AssertUnwindSafe, resume_unwind},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::Poll,
    time::Duration,
};

use crate::support::{Api, Issuer, Turn};
use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _, TryStreamExt as _, stream};
use http::{StatusCode, header};
use reqwest::{Body, multipart};
use reqwest_middleware::{ClientBuilder, ClientWithMiddleware};
use reqwest_reauth::{
    Anonymous, ClientBuilderExt, Error, ErrorKind, NotReplayed, OAuthRefresh, Outcome, ReplayBody,
    Session,
    testing::{Answer, AuthServer},
};
use serde_json::Value;
use tokio::{runtime::Builder, sync::watch, task::JoinSet, time::Instant};
use tokio_util::io::ReaderStream;

fn scoped_client() -> ClientWithMiddleware {
    ClientBuilder::new(reqwest::Client::new()).with_scoped_sessions().build()
}

fn own_client(session: &Session) -> ClientWithMiddleware {
    ClientBuilder::new(reqwest::Client::new()).with_session(session.clone()).build()
}

fn sign_in(server: &AuthServer, name: &str) -> Session {
    Session::builder(server.login_as(name))
        .origin(server.origin())
        .refresher(OAuthRefresh::new(server.token_endpoint()).param("task", name))
        .build()
        .unwrap()
}

fn kind(error: &reqwest_middleware::Error) -> ErrorKind {
    Error::find_in(error).unwrap().kind()
}

/// The sender of the newest request, according to the server, and the response.
fn newest(server: &AuthServer) -> (Option<String>, u16) {
    let record = server.requests().pop().unwrap();
    (record.subject, record.status.unwrap().as_u16())
}

fn from(name: &str) -> (Option<String>, u16) {
    (Some(name.to_owned()), 200)
}

// ---- which session

#[tokio::test]
async fn the_sessions_precedence() {
    let server = AuthServer::start().await;
    let [task, inner, request, own] =
        ["task", "inner", "request", "own"].map(|name| sign_in(&server, name));
    let (scoped, fixed) = (scoped_client(), own_client(&own));
    let url = server.url("/");
    let (scoped, fixed, url, request, server) = (&scoped, &fixed, &url, &request, &server);

    task.scope(async {
        scoped.get(url).send().await.unwrap();
        assert_eq!(newest(server), from("task"));
        scoped.get(url).with_extension(request.clone()).send().await.unwrap();
        assert_eq!(newest(server), from("request"));
        fixed.get(url).send().await.unwrap();
        assert_eq!(newest(server), from("own"));
        fixed.get(url).with_extension(request.clone()).send().await.unwrap();
        assert_eq!(newest(server), from("request"));
        inner.scope(scoped.get(url).send()).await.unwrap();
        assert_eq!(newest(server), from("inner"));
        scoped.get(url).send().await.unwrap();
        assert_eq!(newest(server), from("task"));
    })
    .await;
    scoped.get(url).with_extension(request.clone()).send().await.unwrap();
    assert_eq!(newest(server), from("request"));
    fixed.get(url).send().await.unwrap();
    assert_eq!(newest(server), from("own"));
}

#[tokio::test]
async fn a_scoped_client_without_a_session_fails() {
    let server = AuthServer::start().await;
    let (client, task) = (scoped_client(), sign_in(&server, "task"));
    let send = || client.get(server.url("/")).send();
    assert_eq!(kind(&send().await.unwrap_err()), ErrorKind::NoSession);
    let spawned = task.scope(async { tokio::spawn(send()).await.unwrap() });
    assert_eq!(kind(&spawned.await.unwrap_err()), ErrorKind::NoSession);
    // Made inside the scope, and sent after it.
    let made_inside = task.scope(poll_fn(|_| Poll::Ready(send()))).await;
    assert_eq!(kind(&made_inside.await.unwrap_err()), ErrorKind::NoSession);
    assert_eq!(server.api_hits(), 0);

    let tokens = server.login_as("caller");
    let own = tokens.access_token().unwrap().expose_secret();
    assert_eq!(client.get(server.url("/")).bearer_auth(own).send().await.unwrap().status(), 200);
    assert_eq!(newest(&server), from("caller"));
    assert_eq!(
        client.get(server.url("/")).with_extension(Anonymous).send().await.unwrap().status(),
        401
    );
    assert_eq!(newest(&server), (None, 401));
    assert_eq!(server.api_hits(), 2);
}

#[tokio::test]
async fn a_closed_session_sends_nothing() {
    let server = AuthServer::start().await;
    let [closed, open] = ["closed", "open"].map(|name| sign_in(&server, name));
    let (scoped, fixed) = (scoped_client(), own_client(&closed));
    closed.close().await.unwrap();
    let url = server.url("/");
    let ways = [
        scoped.get(&url).with_extension(closed.clone()).send().await,
        closed.scope(scoped.get(&url).send()).await,
        // It is not passed over for the outer one.
        open.scope(closed.scope(scoped.get(&url).send())).await,
        fixed.get(&url).send().await,
        open.scope(fixed.get(&url).send()).await,
    ];
    for way in ways {
        assert_eq!(kind(&way.unwrap_err()), ErrorKind::Closed);
    }
    assert_eq!(server.api_hits(), 0);

    fixed.get(&url).with_extension(Anonymous).send().await.unwrap();
    fixed.get(&url).with_extension(open.clone()).send().await.unwrap();
    assert_eq!(newest(&server), from("open"));
    assert_eq!(server.api_hits(), 2);
}

#[tokio::test]
async fn a_requests_own_session_does_it_all() {
    let server = AuthServer::start().await;
    let [task, request] = ["task", "request"].map(|name| sign_in(&server, name));
    let client = scoped_client();
    let send = || task.scope(client.get(server.url("/")).with_extension(request.clone()).send());

    server.reissue_next(1);
    let answer = send().await.unwrap();
    assert!(answer.extensions().get::<Outcome>().unwrap().captured);
    assert_eq!(task.generation(), 1);
    assert_eq!(request.generation(), 2);

    server.refuse_next(1, StatusCode::UNAUTHORIZED);
    let answer = send().await.unwrap();
    let outcome = answer.extensions().get::<Outcome>().unwrap();
    assert!(outcome.refreshed && outcome.replayed);
    assert_eq!(answer.status().as_u16(), 200);
    assert_eq!(newest(&server), from("request"));
    assert_eq!(task.generation(), 1);
    assert_eq!(request.generation(), 3);
    assert_eq!(server.counts_of("task").api_hits, 0);
    assert_eq!(server.counts_of("task").token_calls, 0);
}

/// Any of the tasks that share a future may poll it.
#[tokio::test]
async fn a_request_moved_to_a_task_keeps_its_own() {
    let server = AuthServer::start().await;
    let [first, second] = ["first", "second"].map(|name| sign_in(&server, name));
    let client = scoped_client();
    let hold = server.hold_token_calls();
    server.refuse_next(1, StatusCode::UNAUTHORIZED);

    let request =
        client.get(server.url("/")).send().map(|answer| answer.unwrap().status()).boxed().shared();
    tokio::select! {
        status = first.scope(request.clone()) => panic!("answered {status} without a refresh"),
        () = hold.waiting(1) => {}
    }
    hold.release();
    assert_eq!(second.scope(request).await, 200);
    let seen: Vec<_> =
        server.requests().into_iter().map(|record| record.subject.unwrap()).collect();
    assert_eq!(seen, ["first", "first"]);

    // The same for a request that waits before it is sent at all.
    let expired = server.login_as("third").with_expires_in(Duration::ZERO);
    let third = Session::builder(expired).origin(server.origin());
    let third = third.refresher(OAuthRefresh::new(server.token_endpoint())).build().unwrap();
    let hold = server.hold_token_calls();
    let request =
        client.get(server.url("/")).send().map(|answer| answer.unwrap().status()).boxed().shared();
    tokio::select! {
        status = third.scope(request.clone()) => panic!("answered {status} without a refresh"),
        () = hold.waiting(1) => {}
    }
    hold.release();
    assert_eq!(second.scope(request).await, 200);
    assert_eq!(newest(&server), from("third"));
    assert_eq!(server.counts_of("second").api_hits, 0);
}

// ---- left alone

/// A response that would make the chain do everything that it can.
fn tempting() -> Answer {
    let answer = http::Response::builder()
        .status(401)
        .header(header::WWW_AUTHENTICATE, r#"Bearer error="invalid_token""#)
        .header("refreshed-api-token", "bait")
        .body(Bytes::from_static(b"no"));
    Answer::Response(answer.unwrap())
}

#[tokio::test]
async fn own_authorization_and_anonymous_are_kept() {
    let server = AuthServer::start().await;
    let session = sign_in(&server, "task");
    for client in [scoped_client(), own_client(&session)] {
        for own in [Some("Bearer of-the-caller"), Some("basic dTpw"), Some(""), None] {
            server.forget_requests();
            server.script_api([tempting()]);
            let request = client.post(server.url("/")).body("once");
            let request = match own {
                Some(own) => request.header(header::AUTHORIZATION, own),
                None => request.with_extension(Anonymous),
            };
            let answer = session.scope(request.send()).await.unwrap();
            assert_eq!(answer.status(), 401);
            assert!(answer.extensions().get::<Outcome>().is_none());
            let records = server.requests();
            let seen: Vec<_> = records
                .iter()
                .flat_map(|record| record.headers.get_all(header::AUTHORIZATION))
                .collect();
            assert_eq!(records.len(), 1);
            assert_eq!(seen, own.into_iter().collect::<Vec<_>>());
        }
    }
    assert_eq!(session.generation(), 1);
    assert_eq!(server.token_calls(), 0);
    // Both at once, and the session on top: still the caller's.
    let both = scoped_client()
        .get(server.url("/"))
        .with_extension(Anonymous)
        .with_extension(session.clone());
    both.header(header::AUTHORIZATION, "Basic x").send().await.unwrap();
    assert_eq!(server.requests().pop().unwrap().headers[header::AUTHORIZATION], "Basic x");
}

// ---- bodies that are made anew

/// A file part of a multipart form, without its content: what stands before it and after it on the
/// wire.
struct Frame {
    content_type: String,
    head: Bytes,
    tail: Bytes,
}

impl Frame {
    /// `form` ends with a part whose content is empty: that is where the file goes.
    async fn of(form: multipart::Form) -> Self {
        let boundary = form.boundary().to_owned();
        let whole = encoded(form).await;
        // RFC 2046 §5.1.1: what ends the last part.
        let tail = Bytes::from(format!("\r\n--{boundary}--\r\n"));
        let head = whole.slice(..whole.len() - tail.len());
        assert!(whole.ends_with(&tail));
        Self { content_type: format!("multipart/form-data; boundary={boundary}"), head, tail }
    }
}

async fn encoded(form: multipart::Form) -> Bytes {
    let chunks: Vec<Bytes> = form.into_stream().try_collect().await.unwrap();
    chunks.concat().into()
}

/// More than one buffer of any layer on the way.
fn report() -> (tempfile::NamedTempFile, Vec<u8>) {
    let content: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).take(1_000_000).collect();
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&content).unwrap();
    (file, content)
}

/// Asserts that the rejected request and the next one differ only in the token. Returns the second.
fn sent_twice(server: &AuthServer) -> reqwest_reauth::testing::Recorded {
    let records = server.requests();
    let [first, second] = &records[..] else { panic!("{records:?}") };
    assert!(first.refused && !second.refused);
    assert_eq!(first.method, second.method);
    assert_eq!(first.uri, second.uri);
    assert_eq!(first.body, second.body);
    assert_ne!(first.token_id, second.token_id);
    let headers = |record: &reqwest_reauth::testing::Recorded| {
        let mut headers = record.headers.clone();
        headers.remove(header::AUTHORIZATION);
        headers
    };
    assert_eq!(headers(first), headers(second));
    second.clone()
}

#[tokio::test]
async fn a_file_is_opened_anew_for_the_replay() {
    let server = AuthServer::start().await;
    let session = sign_in(&server, "task");
    let (file, content) = report();
    let opened = Arc::new(AtomicUsize::new(0));
    let body = {
        let (path, opened) = (file.path().to_owned(), Arc::clone(&opened));
        ReplayBody::try_new(move || {
            opened.fetch_add(1, Ordering::SeqCst);
            Ok(Body::from(tokio::fs::File::from_std(std::fs::File::open(&path)?)))
        })
    };
    server.refuse_next(1, StatusCode::UNAUTHORIZED);
    let answer = session
        .scope(scoped_client().put(server.url("/report")).with_extension(body).send())
        .await
        .unwrap();
    assert_eq!(answer.status(), 200);
    assert!(answer.extensions().get::<Outcome>().unwrap().replayed);
    assert_eq!(sent_twice(&server).body, content);
    assert_eq!(opened.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_multipart_file_keeps_its_boundary() {
    let server = AuthServer::start().await;
    let session = sign_in(&server, "task");
    let (file, content) = report();
    let form = multipart::Form::new().text("title", "numbers");
    let frame = Frame::of(
        form.part("report", multipart::Part::bytes(Vec::new()).file_name("report \"1\".bin")),
    )
    .await;
    let length = frame.head.len() + content.len() + frame.tail.len();
    let body = {
        let (path, head, tail) = (file.path().to_owned(), frame.head, frame.tail);
        ReplayBody::try_new(move || {
            let file = tokio::fs::File::from_std(std::fs::File::open(&path)?);
            let before = stream::iter([Ok(head.clone())]);
            let after = stream::iter([Ok(tail.clone())]);
            Ok(Body::wrap_stream(before.chain(ReaderStream::new(file)).chain(after)))
        })
    };
    server.refuse_next(1, StatusCode::UNAUTHORIZED);
    let request = scoped_client()
        .post(server.url("/reports"))
        .header(header::CONTENT_TYPE, &frame.content_type)
        .header(header::CONTENT_LENGTH, length)
        .with_extension(body);
    let answer = session.scope(request.send()).await.unwrap();
    assert_eq!(answer.status(), 200);

    let seen = sent_twice(&server);
    assert_eq!(seen.headers[header::CONTENT_TYPE], frame.content_type);
    assert_eq!(seen.headers[header::CONTENT_LENGTH], length.to_string().as_str());
    let boundary = frame.content_type.rsplit_once('=').unwrap().1.to_owned();
    let parts = read_form(&seen.body, &boundary);
    let names: Vec<_> =
        parts.iter().map(|(head, _)| head.split("; ").nth(1).unwrap().trim_end()).collect();
    assert_eq!(names, ["name=\"title\"", "name=\"report\""]);
    assert_eq!(parts[0].1.as_slice(), &b"numbers"[..]);
    assert_eq!(parts[1].1.as_slice(), &content[..]);
}

/// Head and content of each part.
fn read_form(body: &[u8], boundary: &str) -> Vec<(String, Vec<u8>)> {
    let find = |bytes: &[u8], wanted: &[u8]| {
        bytes.windows(wanted.len()).position(|window| window == wanted)
    };
    let delimiter = format!("\r\n--{boundary}");
    let mut rest = body.strip_prefix(&delimiter.as_bytes()[2..]).unwrap();
    let mut parts = Vec::new();
    while rest != b"--\r\n" {
        let part = rest.strip_prefix(b"\r\n").unwrap();
        let end = find(part, delimiter.as_bytes()).unwrap();
        let split = find(part, b"\r\n\r\n").unwrap();
        parts.push((
            String::from_utf8(part[..split].to_vec()).unwrap(),
            part[split + 4..end].to_vec(),
        ));
        rest = &part[end + delimiter.len()..];
    }
    parts
}

#[tokio::test]
async fn a_small_multipart_form_is_buffered() {
    let server = AuthServer::start().await;
    let session = sign_in(&server, "task");
    let form = multipart::Form::new()
        .text("title", "numbers")
        .part("note", multipart::Part::text("hello").file_name("note.txt"));
    let boundary = form.boundary().to_owned();
    server.refuse_next(1, StatusCode::UNAUTHORIZED);
    let request = scoped_client()
        .post(server.url("/notes"))
        .header(header::CONTENT_TYPE, format!("multipart/form-data; boundary={boundary}"))
        .body(encoded(form).await);
    assert_eq!(session.scope(request.send()).await.unwrap().status(), 200);
    let parts = read_form(&sent_twice(&server).body, &boundary);
    assert_eq!(
        parts.into_iter().map(|(_, content)| content).collect::<Vec<_>>(),
        [&b"numbers"[..], b"hello"]
    );
}

#[tokio::test]
async fn a_streamed_form_is_sent_once_and_whole() {
    let server = AuthServer::start().await;
    let session = sign_in(&server, "task");
    let client = scoped_client();
    let form = || multipart::Form::new().text("title", "numbers");
    server.refuse_next(1, StatusCode::UNAUTHORIZED);
    let answer =
        session.scope(client.post(server.url("/")).multipart(form()).send()).await.unwrap();
    assert_eq!(answer.status(), 401);
    let outcome = answer.extensions().get::<Outcome>().unwrap();
    assert!(outcome.refreshed);
    assert_eq!(outcome.not_replayed, Some(NotReplayed::BodyNotReplayable));

    let answer =
        session.scope(client.post(server.url("/")).multipart(form()).send()).await.unwrap();
    assert_eq!(answer.status().as_u16(), 200);
    assert_eq!(server.token_calls(), 1);
    let records = server.requests();
    assert_eq!(records.len(), 2);
    for record in records {
        let boundary = record.headers[header::CONTENT_TYPE]
            .to_str()
            .unwrap()
            .rsplit_once('=')
            .unwrap()
            .1
            .to_owned();
        assert_eq!(read_form(&record.body, &boundary).pop().unwrap().1, b"numbers");
    }
}

#[tokio::test]
async fn a_file_gone_at_the_replay_is_no_replay() {
    let server = AuthServer::start().await;
    let session = sign_in(&server, "task");
    let (file, content) = report();
    let path = file.path().to_owned();
    let body = ReplayBody::try_new(move || Ok(std::fs::read(&path)?.into()));
    let hold = server.hold_token_calls();
    server.refuse_next(1, StatusCode::UNAUTHORIZED);
    let request = tokio::spawn(
        session.scope(scoped_client().put(server.url("/")).with_extension(body).send()),
    );
    hold.waiting(1).await;
    drop(file);
    hold.release();
    let answer = request.await.unwrap().unwrap();
    assert_eq!(answer.status(), 401);
    assert_eq!(
        answer.extensions().get::<Outcome>().unwrap().not_replayed,
        Some(NotReplayed::BodyNotReplayable)
    );
    let records = server.requests();
    assert_eq!(records.len(), 1);
    assert_eq!(records[0].body[..], content[..]);
}

// ---- independent

#[tokio::test]
async fn a_waiting_tenant_delays_nobody() {
    let (server, elsewhere) = (AuthServer::start().await, AuthServer::start().await);
    let client = scoped_client();
    let [slow, fast] = ["slow", "fast"].map(|name| sign_in(&server, name));
    let other = sign_in(&elsewhere, "other");
    let hold = server.hold_token_calls();
    server.refuse_next(1, StatusCode::UNAUTHORIZED);
    let waits = tokio::spawn(slow.scope(client.get(server.url("/slow")).send()));
    hold.waiting(1).await;

    for _ in 0..100 {
        assert_eq!(fast.scope(client.get(server.url("/fast")).send()).await.unwrap().status(), 200);
    }
    elsewhere.refuse_next(1, StatusCode::UNAUTHORIZED);
    let answer = other.scope(client.get(elsewhere.url("/other")).send()).await.unwrap();
    assert!(answer.extensions().get::<Outcome>().unwrap().replayed);

    assert!(!waits.is_finished());
    let mut seen: Vec<_> =
        server.requests().into_iter().map(|record| record.subject.unwrap()).collect();
    assert_eq!(seen.len(), 101);
    assert_eq!(seen.remove(0), "slow");
    hold.release();
    let answer = waits.await.unwrap().unwrap();
    assert_eq!(answer.status().as_u16(), 200);
    assert_eq!(newest(&server), from("slow"));
}

/// Only the delays of the servers advance the clock: 10 ms for a response of the API, and two
/// seconds for a token.
#[tokio::test(start_paused = true)]
async fn a_slow_refresh_leaves_others_latency() {
    let api = Api::new(|seen| async move {
        tokio::time::sleep(Duration::from_millis(10)).await;
        crate::support::answer(if seen.token() == Some("old") { 401 } else { 200 })
    });
    let client =
        ClientBuilder::new(reqwest::Client::new()).with_scoped_sessions().with(api.clone()).build();
    let tenant = |token: &str, issuer: &Issuer| {
        let tokens = reqwest_reauth::Tokens::new(token).unwrap();
        Session::builder(tokens)
            .origin(crate::support::ORIGIN)
            .refresher(issuer.clone())
            .build()
            .unwrap()
    };
    let issuer = Issuer::new([Turn::Issue(Duration::from_secs(2), None)]);
    let slow = tenant("old", &issuer);
    let timed = async |session: &Session| {
        let begun = Instant::now();
        assert_eq!(
            session.scope(client.get(crate::support::url("/")).send()).await.unwrap().status(),
            200
        );
        begun.elapsed()
    };
    let others: Vec<_> = (0..20).map(|number| tenant(&format!("good-{number}"), &issuer)).collect();
    let everybody = async || {
        let mut longest = Duration::ZERO;
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(3) {
            let latencies = futures_util::future::join_all(others.iter().map(&timed)).await;
            longest = longest.max(latencies.into_iter().max().unwrap());
        }
        longest
    };
    let before = everybody().await;
    let (refreshing, beside) = tokio::join!(timed(&slow), everybody());
    assert_eq!(refreshing, Duration::from_millis(2020));
    assert_eq!(before, Duration::from_millis(10));
    assert_eq!(beside, Duration::from_millis(10));
    assert_eq!(issuer.calls(), 1);
}

// ---- the storm

const TASKS: usize = 200;
const REQUESTS_VARIABLE: &str = "REAUTH_STORM_REQUESTS";

/// How many requests each task starts.
fn storm_requests() -> usize {
    std::env::var(REQUESTS_VARIABLE).map_or(50, |text| text.parse().unwrap())
}

/// A session without effective time limits or cool-down.
fn patient(server: &AuthServer, name: &str) -> Session {
    const LONG: Duration = Duration::from_secs(3600);
    let refresher = OAuthRefresh::new(server.token_endpoint()).param("task", name);
    Session::builder(server.login_as(name))
        .origin(server.origin())
        .refresher(refresher.attempt_timeout(LONG).deadline(LONG))
        .refresh_timeout(LONG)
        .cooldown(Duration::ZERO)
        .build()
        .unwrap()
}

/// Polls a future this many times, and then lets it be dropped, or panics in the middle of it.
async fn interrupted<F: Future>(future: F, polls: usize, panics: bool) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut left = polls;
    poll_fn(|context| {
        let done = future.as_mut().poll(context).map(Some);
        if done.is_pending() && left == 0 {
            if panics {
                // As a panic does, without its message.
                resume_unwind(Box::new("planned"));
            }
            return Poll::Ready(None);
        }
        left = left.saturating_sub(1);
        done
    })
    .await
}

#[derive(Default)]
struct Tally {
    served: AtomicUsize,
    refreshed: AtomicUsize,
    captured: AtomicUsize,
    panics: AtomicUsize,
    cancels: AtomicUsize,
}

impl Tally {
    fn add(count: &AtomicUsize, more: bool) {
        count.fetch_add(usize::from(more), Ordering::Relaxed);
    }
}

/// One request of a task, which knows nothing of tokens. It may end in any way, but a response must
/// be the task's own.
async fn request(client: &ClientWithMiddleware, url: &str, name: &str, tally: &Tally) {
    let answer = client.get(url).send().await.unwrap();
    let outcome = answer.extensions().get::<Outcome>().cloned().unwrap_or_default();
    Tally::add(&tally.refreshed, outcome.refreshed);
    Tally::add(&tally.captured, outcome.captured);
    // Rejected twice, because all tokens were revoked twice in the meantime.
    if answer.status() == 401 {
        return;
    }
    assert_eq!(answer.status(), 200);
    let seen: Value = answer.json().await.unwrap();
    assert_eq!(seen["subject"], name);
    Tally::add(&tally.served, true);
}

/// A supervisor's loop for one task: what panics is started again in a fresh tokio task.
async fn supervise(
    client: ClientWithMiddleware,
    session: Session,
    url: String,
    name: String,
    seed: u64,
    tally: Arc<Tally>,
    weather: Arc<Weather>,
) {
    let mut random = fastrand::Rng::with_seed(seed);
    let started = Arc::new(AtomicUsize::new(0));
    loop {
        let burst = random
            .usize(1..10)
            .min(storm_requests().saturating_sub(started.load(Ordering::Relaxed)));
        if burst == 0 {
            return;
        }
        let (client, url, name, mut random) =
            (client.clone(), url.clone(), name.clone(), random.fork());
        let (renews, started, counts) = (session.clone(), Arc::clone(&started), Arc::clone(&tally));
        let weather = Arc::clone(&weather);
        let work = async move {
            for _ in 0..burst {
                started.fetch_add(1, Ordering::Relaxed);
                weather.moves_on();
                let request = request(&client, &url, &name, &counts);
                match random.usize(..10) {
                    0 => Tally::add(
                        &counts.cancels,
                        interrupted(request, random.usize(..4), false).await.is_none(),
                    ),
                    1 => drop(interrupted(request, random.usize(..4), true).await),
                    2 => drop(
                        AssertUnwindSafe(interrupted(request, random.usize(..4), true))
                            .catch_unwind()
                            .await,
                    ),
                    3 => {
                        renews.refresh().await.unwrap();
                        request.await;
                    }
                    _ => request.await,
                }
            }
        };
        if let Err(error) = tokio::spawn(session.scope(work)).await {
            // Only what was planned.
            assert_eq!(error.into_panic().downcast_ref::<&str>(), Some(&"planned"));
            Tally::add(&tally.panics, true);
        }
    }
}

/// Has no session, and runs on the same threads. It would send anything that a scope left behind.
/// It tries after each request of the storm.
async fn prowl(client: ClientWithMiddleware, url: String, mut storm: watch::Receiver<usize>) {
    while storm.changed().await.is_ok() {
        assert_eq!(kind(&client.get(&url).send().await.unwrap_err()), ErrorKind::NoSession);
    }
}

/// Holds every request and every token call against the name in its path and its form.
fn assert_none_crossed(server: &AuthServer) {
    for record in server.requests() {
        let name = record.uri.path().trim_start_matches('/');
        assert_eq!(record.subject.as_deref(), Some(name), "{record:?}");
    }
    for call in server.token_requests() {
        let form: Vec<_> = form_urlencoded::parse(&call.body).into_owned().collect();
        let name =
            form.into_iter().find_map(|(name, value)| (name == "task").then_some(value)).unwrap();
        assert_eq!(call.subject, Some(name));
    }
}

/// The server keeps this many records.
const KEPT: usize = 16 * 1024;

/// The server's side of a storm. It counts each request of a task, which drives it on.
struct Weather {
    server: AuthServer,
    begun: watch::Sender<usize>,
}

impl Weather {
    /// Has tokens reissued, revokes all of them now and then, and checks the records before the
    /// oldest ones are dropped.
    fn moves_on(&self) {
        let mut begun = 0;
        self.begun.send_modify(|count| {
            *count += 1;
            begun = *count;
        });
        if begun % 5 == 0 {
            self.server.reissue_next(1);
        }
        if begun % (TASKS * storm_requests() / 10) == 0 {
            self.server.expire_now();
        }
        if begun % (KEPT / 4) == 0 {
            assert_none_crossed(&self.server);
        }
    }
}

async fn storm(workers: usize) {
    let server = AuthServer::start().await;
    let weather = Arc::new(Weather { server, begun: watch::Sender::new(0) });
    let server = &weather.server;
    let client = scoped_client();
    let tally = Arc::<Tally>::default();
    let prowlers: Vec<_> = (0..workers * 2)
        .map(|_| {
            tokio::spawn(prowl(client.clone(), server.url("/nobody"), weather.begun.subscribe()))
        })
        .collect();

    let mut tasks = JoinSet::new();
    for number in 0..TASKS {
        let name = format!("task-{number}");
        let (session, url) = (patient(server, &name), server.url(&format!("/{name}")));
        tasks.spawn(supervise(
            client.clone(),
            session,
            url,
            name,
            number as u64,
            Arc::clone(&tally),
            Arc::clone(&weather),
        ));
    }
    while let Some(task) = tasks.join_next().await {
        task.unwrap();
    }
    assert_none_crossed(server);
    // The storm is over, so no further request starts.
    let Ok(Weather { server, begun }) = Arc::try_unwrap(weather) else { panic!("a task is left") };
    drop(begun);
    for prowler in prowlers {
        prowler.await.unwrap();
    }

    let count = |count: &AtomicUsize| count.load(Ordering::Relaxed);
    println!(
        "{workers} workers: {} requests seen, {} served, {} refused, {} refreshed, {} captured, {} panics, {} cancels, {} token calls",
        server.api_hits(),
        count(&tally.served),
        server.refused(),
        count(&tally.refreshed),
        count(&tally.captured),
        count(&tally.panics),
        count(&tally.cancels),
        server.token_calls(),
    );
    assert_eq!(server.counts().reuses, 0);
    assert_eq!(server.requests().iter().filter(|record| record.uri.path() == "/nobody").count(), 0);
    // It was a storm.
    for happened in
        [&tally.served, &tally.refreshed, &tally.captured, &tally.panics, &tally.cancels]
    {
        assert!(count(happened) > TASKS / 10);
    }
}

fn run_storm(workers: usize) {
    Builder::new_multi_thread()
        .worker_threads(workers)
        .enable_all()
        .build()
        .unwrap()
        .block_on(storm(workers));
}

#[test]
fn tasks_on_one_thread_never_cross_tokens() {
    run_storm(1);
}

#[test]
fn tasks_on_four_threads_never_cross_tokens() {
    run_storm(4);
}
