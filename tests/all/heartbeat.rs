//! The heartbeat, on the paused clock (contract: heartbeat).

// Helpers of tests may unwrap as tests do.

use std::{
    collections::HashMap,
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use crate::support::{Issuer, ORIGIN, Turn, answer, never_asked, unavailable, url};
use async_trait::async_trait;
use futures_util::{StreamExt as _, stream};
use http::{Extensions, StatusCode, header, response};
use jsonwebtoken::{EncodingKey, Header};
use reqwest::{Body, Request, Response, ResponseBuilderExt};
use reqwest_middleware::{ClientBuilder, ClientWithMiddleware, Middleware, Next};
use reqwest_reauth::{
    ClientBuilderExt, Error, ErrorKind, OnRefreshFailure, Session, Tokens,
    heartbeat::{Failure, Health, Heartbeat, HeartbeatHandle, Stopped},
};
use serde_json::json;
use tokio::{
    sync::Semaphore,
    time::{Instant, sleep, timeout},
};

pub(super) const SECOND: Duration = Duration::from_secs(1);

type Answer = reqwest_middleware::Result<response::Builder>;
type Answering =
    dyn Fn(usize, String) -> Pin<Box<dyn Future<Output = Answer> + Send>> + Send + Sync;

/// An API without a socket, which notes when it is asked.
#[derive(Clone)]
pub(super) struct Api {
    start: Instant,
    asked: Arc<Mutex<Vec<f64>>>,
    now: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
    answer: Arc<Answering>,
}

impl Api {
    /// `answer` receives the number of the request, counted from 0, and its token.
    pub(super) fn new<R>(answer: impl Fn(usize, String) -> R + Send + Sync + 'static) -> Self
    where
        R: Future<Output = Answer> + Send + 'static,
    {
        Self {
            start: Instant::now(),
            asked: Arc::default(),
            now: Arc::default(),
            most: Arc::default(),
            answer: Arc::new(move |number, token| Box::pin(answer(number, token))),
        }
    }

    pub(super) fn statuses(statuses: impl IntoIterator<Item = u16>) -> Self {
        let statuses: Vec<_> = statuses.into_iter().collect();
        Self::new(move |number, _| {
            let status = statuses.get(number).or(statuses.last()).copied().unwrap_or(200);
            async move { Ok(answer(status)) }
        })
    }

    /// The seconds at which it was asked.
    pub(super) fn times(&self) -> Vec<f64> {
        self.asked.lock().unwrap().clone()
    }

    pub(super) fn client(&self) -> ClientWithMiddleware {
        ClientBuilder::new(never_asked()).with(self.clone()).build()
    }

    pub(super) fn signed_in(&self, session: &Session) -> ClientWithMiddleware {
        ClientBuilder::new(never_asked()).with_session(session.clone()).with(self.clone()).build()
    }
}

#[async_trait]
impl Middleware for Api {
    async fn handle(
        &self,
        request: Request,
        _: &mut Extensions,
        _: Next<'_>,
    ) -> reqwest_middleware::Result<Response> {
        let number = {
            let mut asked = self.asked.lock().unwrap();
            asked.push(self.start.elapsed().as_secs_f64());
            asked.len() - 1
        };
        let at_once = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(at_once, Ordering::SeqCst);
        let token =
            request.headers().get(header::AUTHORIZATION).map(|value| value.to_str().unwrap());
        let token =
            token.and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default().to_owned();
        let answer = (self.answer)(number, token).await;
        self.now.fetch_sub(1, Ordering::SeqCst);
        Ok(answer?.url(request.url().clone()).body("").unwrap().into())
    }
}

pub(super) fn heartbeat(client: ClientWithMiddleware) -> Heartbeat {
    Heartbeat::new(client, |client| client.put(url("/heartbeat")).body("alive"))
}

pub(super) async fn after_beat(handle: &HeartbeatHandle, beat: u64) -> Health {
    handle.health().wait_for(|health| health.beats >= beat).await.unwrap().clone()
}

pub(super) fn session(issuer: &Issuer) -> Session {
    let tokens = Tokens::new("t0").unwrap().with_refresh_token("r0").unwrap();
    Session::builder(tokens).origin(ORIGIN).refresher(issuer.clone()).build().unwrap()
}

/// The status that ended it.
fn told(stopped: &Stopped) -> Option<u16> {
    match stopped {
        Stopped::ByStatus { status, .. } => Some(status.as_u16()),
        _ => None,
    }
}

/// Takes `t1` alone.
pub(super) fn wants_t1() -> Api {
    Api::new(|_, token| async move { Ok(answer(if token == "t1" { 200 } else { 401 })) })
}

#[tokio::test(start_paused = true)]
async fn beats_at_once_and_then_each_period() {
    let api = Api::statuses([200]);
    let handle = heartbeat(api.client()).every(10 * SECOND).spawn().unwrap();
    let health = after_beat(&handle, 101).await;
    assert_eq!(health.beats, 101);
    assert_eq!(health.consecutive_failures, 0);
    assert_eq!(health.last_status, Some(StatusCode::OK));
    assert!(health.last_error.is_none() && health.last_success.unwrap() <= SystemTime::now());

    let times = api.times();
    assert!(times[0] < 0.01, "at once: {}", times[0]);
    let early: Vec<_> =
        (1_u32..=100).zip(&times[1..]).map(|(tick, at)| f64::from(tick) * 10.0 - at).collect();
    assert!(early.iter().all(|&early| (-0.01..=0.51).contains(&early)), "{early:?}");
    let different = early.iter().filter(|&&one| (one - early[0]).abs() > 0.01).count();
    assert!(different > 50, "{early:?}");
}

#[tokio::test(start_paused = true)]
async fn beats_neither_overlap_nor_burst() {
    let api = Api::new(|number, _| async move {
        sleep(if number == 1 { 35 * SECOND } else { SECOND }).await;
        Ok(answer(200))
    });
    let handle = heartbeat(api.client()).every(10 * SECOND).timeout(60 * SECOND).spawn().unwrap();
    after_beat(&handle, 4).await;
    let times = api.times();
    // The second takes from 10 to 45: the ticks at 20, 30 and 40 are left out.
    assert!((9.5..=10.01).contains(&times[1]) && (49.5..=50.01).contains(&times[2]), "{times:?}");
    assert!((59.5..=60.01).contains(&times[3]), "{times:?}");
    assert_eq!(api.most.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn failures_in_a_row_are_counted() {
    let api = Api::new(|number, _| async move {
        match number {
            1 => Err(reqwest_middleware::Error::middleware(std::io::Error::other("no route"))),
            2 => Err(unavailable().into()),
            3 => {
                sleep(60 * SECOND).await;
                Ok(answer(200))
            }
            4 => panic!("a middleware panics, as the test says"),
            5 => Ok(answer(200)),
            _ => Ok(answer(503)),
        }
    });
    let handle = heartbeat(api.client()).every(30 * SECOND).timeout(5 * SECOND).spawn().unwrap();

    let health = after_beat(&handle, 1).await;
    assert!(matches!(health.last_failure, Some(Failure::Status(StatusCode::SERVICE_UNAVAILABLE))));
    assert_eq!(health.consecutive_failures, 1);
    assert_eq!(health.last_status, Some(StatusCode::SERVICE_UNAVAILABLE));
    assert_eq!(health.last_error.as_deref(), Some("the api returned 503 Service Unavailable"));
    assert!(health.last_success.is_none());

    let health = after_beat(&handle, 2).await;
    assert!(matches!(health.last_failure, Some(Failure::Transport(_))));
    assert!(health.last_error.unwrap().contains("no route"));
    assert_eq!(health.consecutive_failures, 2);
    assert_eq!(health.last_status, Some(StatusCode::SERVICE_UNAVAILABLE));

    let health = after_beat(&handle, 3).await;
    assert!(
        matches!(&health.last_failure, Some(Failure::Auth(error)) if error.kind() == ErrorKind::Unavailable)
    );
    assert!(health.last_error.unwrap().contains("token endpoint returned 502"));

    let began = *api.times().last().unwrap();
    let health = after_beat(&handle, 4).await;
    assert!(matches!(health.last_failure, Some(Failure::TimedOut)));
    let took = api.start.elapsed().as_secs_f64() - api.times()[3];
    assert!((4.9..5.1).contains(&took), "{took} from {began}");

    let health = after_beat(&handle, 5).await;
    assert!(matches!(health.last_failure, Some(Failure::Panicked)));
    assert_eq!(health.consecutive_failures, 5);

    let health = after_beat(&handle, 6).await;
    assert_eq!(health.consecutive_failures, 0);
    assert_eq!(health.last_status, Some(StatusCode::OK));
    assert!(
        health.last_failure.is_none()
            && health.last_error.is_none()
            && health.last_success.is_some()
    );

    assert_eq!(after_beat(&handle, 7).await.consecutive_failures, 1);
}

#[tokio::test(start_paused = true)]
async fn a_panicking_closure_is_a_failed_beat() {
    let calls = AtomicUsize::new(0);
    let handle = Heartbeat::new(Api::statuses([200]).client(), move |client| {
        assert!(calls.fetch_add(1, Ordering::SeqCst) > 0, "the closure panics, as the test says");
        client.get(url("/heartbeat"))
    });
    let handle = handle.spawn().unwrap();
    let health = after_beat(&handle, 1).await;
    assert!(matches!(health.last_failure, Some(Failure::Panicked)));
    assert_eq!(after_beat(&handle, 2).await.consecutive_failures, 0);
}

#[tokio::test(start_paused = true)]
async fn ends_with_a_status_of_stop_on() {
    for status in [404, 409, 410, 204] {
        let api = Api::statuses([200, 500, status]);
        let beats = heartbeat(api.client())
            .stop_on(|status| matches!(status.as_u16(), 404 | 409 | 410 | 204));
        let handle = beats.spawn().unwrap();
        assert_eq!(told(&handle.finished().await), Some(status));
        assert_eq!(api.times().len(), 3);
        assert_eq!(handle.health().borrow().beats, 3);
        // It stays over.
        assert_eq!(told(&handle.stop().await), Some(status));
        assert_eq!(handle.beat_now().await.beats, 3);
    }
}

#[tokio::test(start_paused = true)]
async fn ends_after_too_many_failures_in_a_row() {
    let api = Api::statuses([500, 500, 200, 500, 500, 500]);
    let handle = heartbeat(api.client()).max_failures(3).spawn().unwrap();
    let stopped = handle.finished().await;
    assert!(matches!(stopped, Stopped::TooManyFailures { failures: 3, .. }), "{stopped:?}");
    assert_eq!(api.times().len(), 6);
}

#[tokio::test(start_paused = true)]
async fn without_a_limit_it_never_ends() {
    let api = Api::statuses([500]);
    let handle = heartbeat(api.client()).spawn().unwrap();
    assert_eq!(after_beat(&handle, 1000).await.consecutive_failures, 1000);
}

#[tokio::test(start_paused = true)]
async fn a_login_that_is_over_ends_it_at_once() {
    for choice in [OnRefreshFailure::ReturnError, OnRefreshFailure::ReturnResponse] {
        let error = Error::new(ErrorKind::LoginRequired, "scripted");
        let issuer = Issuer::new([Turn::Fail(Duration::ZERO, error)]);
        let tokens = Tokens::new("t0").unwrap().with_refresh_token("r0").unwrap();
        let session = Session::builder(tokens)
            .origin(ORIGIN)
            .refresher(issuer.clone())
            .on_refresh_failure(choice);
        let session = session.build().unwrap();
        let handle = heartbeat(wants_t1().signed_in(&session)).stop_on(|_| true).spawn().unwrap();
        assert_eq!(handle.finished().await, Stopped::LoginRequired, "{choice:?}");
        let health = handle.health().borrow().clone();
        assert_eq!(health.beats, 1, "{choice:?}");
        assert_eq!(health.last_status, Some(StatusCode::UNAUTHORIZED), "{choice:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_endpoint_down_is_a_failed_beat() {
    for choice in [OnRefreshFailure::ReturnError, OnRefreshFailure::ReturnResponse] {
        // It is asked again by itself when the cool-down of ten seconds is over.
        let issuer = Issuer::new([Turn::Fail(SECOND, unavailable()), Turn::Issue(SECOND, None)]);
        let tokens = Tokens::new("t0").unwrap().with_refresh_token("r0").unwrap();
        let session = Session::builder(tokens)
            .origin(ORIGIN)
            .refresher(issuer.clone())
            .on_refresh_failure(choice);
        let api =
            Api::new(|_, token| async move { Ok(answer(if token == "t2" { 200 } else { 401 })) });
        let handle = heartbeat(api.signed_in(&session.build().unwrap()))
            .stop_on(|status| status == 401)
            .spawn()
            .unwrap();
        let health = after_beat(&handle, 1).await;
        let Some(Failure::Auth(error)) = health.last_failure else {
            panic!("{:?}", health.last_failure)
        };
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        let recovered = handle
            .health()
            .wait_for(|health| health.consecutive_failures == 0)
            .await
            .unwrap()
            .clone();
        assert!(recovered.beats >= 3, "{recovered:?}");
        assert_eq!(issuer.calls(), 2);
        assert_eq!(recovered.last_status, Some(StatusCode::OK));
        assert_eq!(handle.stop().await, Stopped::Requested);
    }
}

#[tokio::test(start_paused = true)]
async fn a_beat_that_gives_up_leaves_the_refresh_going() {
    let issuer = Issuer::new([Turn::Issue(8 * SECOND, None)]);
    let session = session(&issuer);
    let handle = heartbeat(wants_t1().signed_in(&session)).timeout(5 * SECOND).spawn().unwrap();
    assert!(matches!(after_beat(&handle, 1).await.last_failure, Some(Failure::TimedOut)));
    let recovered =
        handle.health().wait_for(|health| health.consecutive_failures == 0).await.unwrap().clone();
    assert_eq!(issuer.calls(), 1);
    assert_eq!(recovered.last_status, Some(StatusCode::OK));
}

#[tokio::test(start_paused = true)]
async fn beat_now_returns_after_its_beat() {
    let api = Api::new(|_, _| async {
        sleep(SECOND).await;
        Ok(answer(200))
    });
    let handle = heartbeat(api.client()).every(100 * SECOND).spawn().unwrap();
    after_beat(&handle, 1).await;
    sleep(30 * SECOND).await;
    let health = handle.beat_now().await;
    assert_eq!(health.beats, 2);
    let done = api.start.elapsed().as_secs_f64();
    after_beat(&handle, 3).await;
    let times = api.times();
    assert!(
        (31.0..31.1).contains(&times[1]) && done >= times[1] + 1.0,
        "{times:?}, done at {done}"
    );
    assert!((95.0..=100.1).contains(&times[2]), "{times:?}");
}

#[tokio::test(start_paused = true)]
async fn beat_now_during_a_beat_is_shared() {
    let gate = Arc::new(Semaphore::new(0));
    let api = Api::new({
        let gate = Arc::clone(&gate);
        move |_, _| {
            let gate = Arc::clone(&gate);
            async move {
                gate.acquire().await.unwrap().forget();
                Ok(answer(200))
            }
        }
    });
    let handle = Arc::new(
        heartbeat(api.client()).every(1000 * SECOND).timeout(100 * SECOND).spawn().unwrap(),
    );
    let asking: Vec<_> = (0..5)
        .map(|_| {
            let handle = Arc::clone(&handle);
            tokio::spawn(async move { handle.beat_now().await.beats })
        })
        .collect();
    // The first beat is in progress, and all callers have requested a beat.
    sleep(SECOND).await;
    assert_eq!(api.times().len(), 1);
    gate.add_permits(1);
    sleep(SECOND).await;
    assert_eq!(api.times().len(), 2);
    assert!(asking.iter().all(|asking| !asking.is_finished()));
    gate.add_permits(1);
    for asking in asking {
        assert_eq!(asking.await.unwrap(), 2);
    }
    sleep(SECOND).await;
    assert_eq!(api.times().len(), 2);
    assert_eq!(api.most.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn stopping_waits_for_the_beat_in_progress() {
    let api = Api::new(|_, _| async {
        sleep(3 * SECOND).await;
        Ok(answer(200))
    });
    let handle = heartbeat(api.client()).spawn().unwrap();
    sleep(SECOND).await;
    assert_eq!(handle.stop().await, Stopped::Requested);
    assert!((3.0..3.1).contains(&api.start.elapsed().as_secs_f64()));
    assert_eq!(handle.health().borrow().beats, 1);
    sleep(60 * SECOND).await;
    assert_eq!(api.times().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn dropping_the_handle_stops_the_loop() {
    let api = Api::new(|_, _| async {
        sleep(3 * SECOND).await;
        Ok(answer(200))
    });
    for idle in [false, true] {
        let asked = api.times().len();
        let handle = heartbeat(api.client()).spawn().unwrap();
        let mut health = handle.health();
        sleep(if idle { 4 * SECOND } else { SECOND }).await;
        drop(handle);
        // The beat is done, and then the sender of the health is gone with the loop.
        health.wait_for(|health| health.beats == 1).await.unwrap();
        assert!(health.wait_for(|_| false).await.is_err());
        sleep(60 * SECOND).await;
        assert_eq!(api.times().len(), asked + 1, "idle: {idle}");
    }
}

#[tokio::test(start_paused = true)]
async fn stopped_before_its_first_beat_it_sends_none() {
    let api = Api::statuses([200]);
    assert_eq!(heartbeat(api.client()).spawn().unwrap().stop().await, Stopped::Requested);
    let handle = heartbeat(api.client()).spawn().unwrap();
    let mut health = handle.health();
    drop(handle);
    assert!(health.wait_for(|_| false).await.is_err());
    assert!(api.times().is_empty());
}

/// Responds with chunks of one KiB, and counts how many were read. After the last chunk the body
/// ends or stalls.
struct Pieces {
    most: usize,
    ends: bool,
    read: Arc<AtomicUsize>,
}

#[async_trait]
impl Middleware for Pieces {
    async fn handle(
        &self,
        _: Request,
        _: &mut Extensions,
        _: Next<'_>,
    ) -> reqwest_middleware::Result<Response> {
        let read = Arc::clone(&self.read);
        let pieces = stream::repeat_with(move || {
            read.fetch_add(1, Ordering::SeqCst);
            Ok::<_, std::convert::Infallible>(vec![b'x'; 1024])
        });
        let pieces = pieces.take(self.most);
        let body = if self.ends {
            Body::wrap_stream(pieces)
        } else {
            Body::wrap_stream(pieces.chain(stream::pending()))
        };
        Ok(answer(200).body(body).unwrap().into())
    }
}

#[tokio::test(start_paused = true)]
async fn a_beats_body_is_read_within_bounds() {
    // A piece more than the bound shows that it is over.
    for (most, ends, expected) in [(40, true, 40), (usize::MAX, true, 65), (3, false, 3)] {
        let read = Arc::new(AtomicUsize::new(0));
        let pieces = Pieces { most, ends, read: Arc::clone(&read) };
        let start = Instant::now();
        let handle =
            heartbeat(ClientBuilder::new(never_asked()).with(pieces).build()).spawn().unwrap();
        let health = after_beat(&handle, 1).await;
        assert_eq!(health.consecutive_failures, 0);
        assert_eq!(read.load(Ordering::SeqCst), expected);
        assert_eq!(start.elapsed() >= SECOND / 10, !ends);
        assert!(start.elapsed() < SECOND / 5);
    }
}

#[test]
fn finished_returns_without_its_runtime() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let handle = runtime.block_on(async {
        let api = Api::new(|_, _| async { std::future::pending().await });
        heartbeat(api.client()).timeout(Duration::MAX).spawn().unwrap()
    });
    drop(runtime);
    let other = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    other.block_on(async {
        assert_eq!(timeout(60 * SECOND, handle.finished()).await.unwrap(), Stopped::RuntimeGone);
        assert_eq!(timeout(60 * SECOND, handle.beat_now()).await.unwrap().beats, 0);
        assert_eq!(timeout(60 * SECOND, handle.stop()).await.unwrap(), Stopped::RuntimeGone);
    });
}

#[tokio::test(start_paused = true)]
async fn settings_that_cannot_work_are_rejected() {
    let session = session(&Issuer::new([]));
    let builder = || heartbeat(Api::statuses([200]).client());
    let wrong = [
        builder().every(Duration::ZERO),
        builder().timeout(Duration::ZERO),
        builder().max_failures(0),
        builder().reissue_window(0.8),
        builder().session(session.clone()).reissue_window(0.0),
        builder().session(session.clone()).reissue_window(1.0),
        builder().session(session.clone()).reissue_window(f64::NAN),
        builder().session(session.clone()).reissue_window(-0.5),
    ];
    for builder in wrong {
        let shown = format!("{builder:?}");
        assert_eq!(builder.spawn().unwrap_err().kind(), ErrorKind::InvalidConfig, "{shown}");
    }
    assert!(builder().session(session.clone()).reissue_window(0.8).spawn().is_ok());
    assert!(session.scope(async { builder().reissue_window(0.8).spawn().is_ok() }).await);
    let outside = std::thread::spawn(move || builder().spawn().map(drop)).join().unwrap();
    assert_eq!(outside.unwrap_err().kind(), ErrorKind::InvalidConfig);
}

#[tokio::test(start_paused = true)]
async fn a_scoped_client_knows_the_session_in_the_loop() {
    let api = Api::new(|_, token| async move { Ok(answer(if token == "t0" { 200 } else { 401 })) });
    let client = ClientBuilder::new(never_asked()).with_scoped_sessions().with(api.clone()).build();
    let session = session(&Issuer::new([]));
    let given = heartbeat(client.clone()).session(session.clone()).spawn().unwrap();
    assert_eq!(after_beat(&given, 1).await.consecutive_failures, 0);
    let found = session.scope(async { heartbeat(client.clone()).spawn().unwrap() }).await;
    assert_eq!(after_beat(&found, 1).await.consecutive_failures, 0);
    let none = heartbeat(client).spawn().unwrap();
    let stopped = none.finished().await;
    assert!(matches!(stopped, Stopped::Closed { .. }), "{stopped:?}");
    let health = none.health().borrow().clone();
    assert!(
        matches!(health.last_failure, Some(Failure::Auth(error)) if error.kind() == ErrorKind::NoSession)
    );
}

/// The server of apache/airflow#67939: tokens of ten seconds, reissued by header in their last
/// fifth, 403 once they have expired.
struct Reissuing {
    issued: Mutex<Vec<Instant>>,
}

impl Reissuing {
    const LIFE: Duration = Duration::from_secs(10);

    /// The server, and the session of a job whose first token is this old.
    fn start(age: Duration) -> (Api, Session) {
        let server = Arc::new(Self { issued: Mutex::new(Vec::new()) });
        let first = server.issue(Instant::now() - age);
        let tokens = Tokens::new(first).unwrap().with_expires_in(Self::LIFE.saturating_sub(age));
        let session = Session::builder(tokens).origin(ORIGIN).build().unwrap();
        let api = Api::new(move |_, token| {
            let answer = server.answer(&token);
            async move { Ok(answer) }
        });
        (api, session)
    }

    fn issue(&self, at: Instant) -> String {
        let mut issued = self.issued.lock().unwrap();
        issued.push(at);
        let claims = json!({"iat": 1_700_000_000, "exp": 1_700_000_010, "n": issued.len() - 1});
        jsonwebtoken::encode(&Header::default(), &claims, &EncodingKey::from_secret(b"test"))
            .unwrap()
    }

    fn answer(&self, token: &str) -> response::Builder {
        let claims: serde_json::Value =
            jsonwebtoken::dangerous::insecure_decode_claims(token).unwrap();
        let number = usize::try_from(claims["n"].as_u64().unwrap()).unwrap();
        let age = self.issued.lock().unwrap()[number].elapsed();
        if age >= Self::LIFE {
            answer(403)
        } else if age >= Self::LIFE.mul_f64(0.8) {
            answer(204).header("Refreshed-API-Token", self.issue(Instant::now()))
        } else {
            answer(204)
        }
    }
}

/// Runs a job for this long. Returns when it died, or `None` if it was alive at the end.
async fn job(every: Duration, age: Duration, window: bool, length: Duration) -> (Option<f64>, Api) {
    let (api, session) = Reissuing::start(age);
    let builder = heartbeat(api.signed_in(&session))
        .session(session.clone())
        .every(every)
        .stop_on(|status| status == 403);
    let handle = if window { builder.reissue_window(0.8) } else { builder }.spawn().unwrap();
    match timeout(length, handle.finished()).await {
        Err(_) => (None, api),
        Ok(stopped) => {
            assert_eq!(told(&stopped), Some(403));
            (Some(api.start.elapsed().as_secs_f64()), api)
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_reissue_window_keeps_a_job_alive() {
    // Beats each nine seconds are in time for tokens of ten only as long as the job and its token
    // began together. A job that has waited two seconds for its start asks at the ages of 2 and 11.
    let (died, _) = job(9 * SECOND, 2 * SECOND, false, 2000 * SECOND).await;
    assert!(died.is_some_and(|at| (8.5..9.1).contains(&at)), "{died:?}");
    let (died, api) = job(9 * SECOND, 2 * SECOND, true, 2000 * SECOND).await;
    assert_eq!(died, None);
    // One beat in each window was enough to obtain the next token: 200 of them.
    assert!((200..=240).contains(&api.times().len()), "{}", api.times().len());
}

#[tokio::test(start_paused = true)]
async fn any_period_and_age_meets_the_window() {
    for every in [1, 3, 5, 6, 7, 8, 9, 10, 13, 60, 3600] {
        for age in [0, 1, 2, 5, 7, 9] {
            let (died, _) = job(every * SECOND, age * SECOND, true, 200 * SECOND).await;
            assert_eq!(died, None, "every {every} s, a token {age} s old");
        }
    }
    for (every, age) in [(3600, 0), (13, 0), (10, 0), (7, 0), (6, 0), (9, 2)] {
        assert!(
            job(every * SECOND, age * SECOND, false, 4000 * SECOND).await.0.is_some(),
            "every {every} s, {age} s old"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn two_beats_at_least_fall_into_the_window() {
    // A server that reissues nothing, and a period that is longer than the token's life.
    let api = Api::statuses([204]);
    for every in [2, 9, 100] {
        let asked = api.times().len();
        let start = api.start.elapsed().as_secs_f64();
        let tokens = Tokens::new("t0").unwrap().with_expires_in(10 * SECOND);
        let session = Session::builder(tokens).origin(ORIGIN).build().unwrap();
        let client = api.signed_in(&session);
        let handle = heartbeat(client)
            .session(session)
            .every(every * SECOND)
            .reissue_window(0.8)
            .spawn()
            .unwrap();
        sleep(11 * SECOND).await;
        handle.stop().await;
        let times = api.times();
        let inside =
            times[asked..].iter().filter(|&&at| (8.0..10.0).contains(&(at - start))).count();
        assert!((2..=3).contains(&inside), "every {every} s: {times:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn any_new_token_moves_the_beats() {
    let api = Api::statuses([204]);
    let session = Session::builder(Tokens::new("opaque").unwrap()).origin(ORIGIN).build().unwrap();
    let client = api.signed_in(&session);
    let handle = heartbeat(client)
        .session(session.clone())
        .every(3600 * SECOND)
        .reissue_window(0.8)
        .spawn()
        .unwrap();
    after_beat(&handle, 1).await;
    sleep(100 * SECOND).await;
    session
        .replace_tokens(Tokens::new("short").unwrap().with_expires_in(10 * SECOND))
        .await
        .unwrap();
    sleep(20 * SECOND).await;
    let times = api.times();
    assert_eq!(times.len(), 3, "{times:?}");
    assert!(times[1..].iter().all(|at| (108.0..110.1).contains(at)), "{times:?}");
}

#[tokio::test(start_paused = true)]
async fn an_hour_of_beats_loses_none() {
    // Tokens of a minute, which the API rejects a minute after it first saw them, and a token
    // endpoint that fails every third time. The refresh before the expiry has time for another
    // attempt.
    const MINUTE: Duration = Duration::from_secs(60);
    let turns = (1..1000).map(|turn| match turn % 3 {
        0 => Turn::Fail(SECOND, unavailable()),
        _ => Turn::Issue(SECOND, Some(MINUTE)),
    });
    let issuer = Issuer::new(turns);
    let tokens =
        Tokens::new("t0").unwrap().with_refresh_token("r0").unwrap().with_expires_in(MINUTE);
    let session = Session::builder(tokens)
        .origin(ORIGIN)
        .refresher(issuer.clone())
        .cooldown(SECOND)
        .build()
        .unwrap();
    let seen = Mutex::new(HashMap::new());
    let api = Api::new(move |_, token| {
        let first = *seen.lock().unwrap().entry(token).or_insert_with(Instant::now);
        async move { Ok(answer(if first.elapsed() < MINUTE { 204 } else { 401 })) }
    });
    let handle =
        heartbeat(api.signed_in(&session)).max_failures(1).every(5 * SECOND).spawn().unwrap();
    sleep(60 * MINUTE).await;
    assert_eq!(handle.stop().await, Stopped::Requested);
    let health = handle.health().borrow().clone();
    assert!((720..=722).contains(&health.beats), "{health:?}");
    assert_eq!(api.most.load(Ordering::SeqCst), 1);
    assert!(
        session.generation() >= 60 && issuer.calls() >= 80,
        "{session:?}, {} calls",
        issuer.calls()
    );
}

#[tokio::test(start_paused = true)]
async fn debug_shows_the_settings_and_how_it_goes() {
    let builder = heartbeat(Api::statuses([503]).client())
        .every(7 * SECOND)
        .timeout(3 * SECOND)
        .max_failures(2);
    let shown = format!("{builder:?}");
    for part in
        ["Heartbeat", "every: 7s", "timeout: 3s", "max_failures: Some(2)", "reissue_window: None"]
    {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let handle = builder.spawn().unwrap();
    after_beat(&handle, 1).await;
    let shown = format!("{handle:?}");
    for part in ["HeartbeatHandle", "beats: 1", "consecutive_failures: 1", "last_status: Some(503)"]
    {
        assert!(shown.contains(part), "{part}: {shown}");
    }
}
