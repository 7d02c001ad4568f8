//! An API without a socket, for tests on the paused clock: a socket would let time advance.
#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "each test file uses its own part"
)]

pub mod store;
pub mod world;

use std::{
    collections::VecDeque,
    future::Future,
    pin::Pin,
    sync::{
        Arc, LazyLock, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{Extensions, StatusCode, header};
use reqwest::{Request, Response, ResponseBuilderExt};
use reqwest_middleware::{ClientBuilder, ClientWithMiddleware, Middleware, Next};
use reqwest_reauth::{
    ClientBuilderExt, Error, ErrorKind, Event, RefreshContext, Refresher, Session, SessionState,
    Tokens,
};

pub const ORIGIN: &str = "https://api.example.com";

/// A request as the API saw it.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    pub method: String,
    pub url: String,
    pub authorization: Vec<String>,
    pub body: Option<Vec<u8>>,
}

impl Seen {
    pub fn token(&self) -> Option<&str> {
        self.authorization.first()?.strip_prefix("Bearer ")
    }
}

type Answering =
    dyn Fn(Seen) -> Pin<Box<dyn Future<Output = http::response::Builder> + Send>> + Send + Sync;

/// The end of the chain: responds in place of the connection and records what it saw.
#[derive(Clone)]
pub struct Api {
    seen: Arc<Mutex<Vec<Seen>>>,
    answer: Arc<Answering>,
}

impl Api {
    pub fn new<F, R>(answer: F) -> Self
    where
        F: Fn(Seen) -> R + Send + Sync + 'static,
        R: Future<Output = http::response::Builder> + Send + 'static,
    {
        Self { seen: Arc::default(), answer: Arc::new(move |seen| Box::pin(answer(seen))) }
    }

    /// Accepts these tokens, and rejects all others with 401.
    pub fn accepting(good: impl Fn(&str) -> bool + Send + Sync + 'static) -> Self {
        Self::new(move |seen| {
            let status = if seen.token().is_some_and(&good) { 200 } else { 401 };
            async move { answer(status) }
        })
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    pub fn tokens_seen(&self) -> Vec<String> {
        self.seen().iter().map(|seen| seen.token().unwrap_or_default().to_owned()).collect()
    }

    pub fn client(&self, session: &Session) -> ClientWithMiddleware {
        ClientBuilder::new(never_asked()).with_session(session.clone()).with(self.clone()).build()
    }
}

/// Lets each test read its own log. While a process has at most one subscriber, tracing asks only
/// the thread that first reaches a log line whether anybody listens, and remembers that for all.
pub fn every_thread_may_listen() {
    static KEPT: LazyLock<[tracing::Dispatch; 2]> = LazyLock::new(|| {
        std::array::from_fn(|_| tracing::Dispatch::new(tracing_subscriber::registry()))
    });
    LazyLock::force(&KEPT);
}

/// The client under a faked API. All tests share one, because with TLS each new client reads all of
/// the system's certificates.
pub fn never_asked() -> reqwest::Client {
    static CLIENT: LazyLock<reqwest::Client> = LazyLock::new(reqwest::Client::new);
    CLIENT.clone()
}

#[async_trait]
impl Middleware for Api {
    async fn handle(
        &self,
        request: Request,
        _: &mut Extensions,
        _: Next<'_>,
    ) -> reqwest_middleware::Result<Response> {
        let values = request.headers().get_all(header::AUTHORIZATION);
        let seen = Seen {
            method: request.method().to_string(),
            url: request.url().to_string(),
            authorization: values.iter().map(|value| value.to_str().unwrap().to_owned()).collect(),
            body: request.body().and_then(|body| body.as_bytes()).map(<[u8]>::to_vec),
        };
        self.seen.lock().unwrap().push(seen.clone());
        let answer = (self.answer)(seen).await;
        Ok(answer.url(request.url().clone()).body("").unwrap().into())
    }
}

/// Keeps panics that a script asks for out of the output.
pub fn silence_scripted_panics() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let scripted = info
                .payload()
                .downcast_ref::<&str>()
                .is_some_and(|text| text.contains("as the script says"));
            if !scripted {
                usual(info);
            }
        }));
    });
}

pub fn answer(status: u16) -> http::response::Builder {
    http::Response::builder().status(status)
}

/// A JWT that was issued this many seconds from now, with this lifetime.
pub fn jwt_at(issued: i64, life: i64) -> String {
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let iat = i64::try_from(now).unwrap() + issued;
    let claims = format!(r#"{{"iat":{iat},"exp":{}}}"#, iat + life);
    format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims))
}

/// An access and a refresh token.
pub fn pair(access: &str, refresh: &str) -> Tokens {
    Tokens::new(access).unwrap().with_refresh_token(refresh).unwrap()
}

/// The session's access and refresh token, empty if there is none.
pub fn held(session: &Session) -> (String, String) {
    session.tokens().as_ref().map(store::texts).unwrap_or_default()
}

pub fn texts(access: &str, refresh: &str) -> (String, String) {
    (access.to_owned(), refresh.to_owned())
}

/// This crate's error inside a request's error.
pub fn error_of(result: reqwest_middleware::Result<Response>) -> Error {
    let error = result.expect_err("an answer came");
    Error::find_in(&error).unwrap_or_else(|| panic!("not ours: {error:?}")).clone()
}

pub fn outcome_of(response: &Response) -> reqwest_reauth::Outcome {
    response.extensions().get().cloned().unwrap_or_default()
}

pub async fn until(session: &Session, state: SessionState) {
    session.subscribe().wait_for(|now| *now == state).await.unwrap();
}

/// Advances tokio's clock without waiting. The clock continues from there.
pub async fn pass(span: Duration) {
    tokio::time::pause();
    tokio::time::advance(span).await;
    tokio::time::resume();
}

/// Runs everything that can run without time advancing.
pub async fn settle() {
    for _ in 0..64 {
        tokio::task::yield_now().await;
    }
}

pub fn url(path: &str) -> String {
    format!("{ORIGIN}{path}")
}

/// A token endpoint without a socket. It counts its calls and follows a script.
#[derive(Clone)]
pub struct Issuer {
    script: Arc<Mutex<VecDeque<Turn>>>,
    calls: Arc<AtomicUsize>,
    now: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
    asked: Arc<Mutex<Vec<Option<String>>>>,
    begun: tokio::sync::watch::Sender<usize>,
    pub gate: Arc<tokio::sync::Semaphore>,
}

pub enum Turn {
    /// `t<n>` for the n-th call, with this lifetime, after this delay.
    Issue(Duration, Option<Duration>),
    Fail(Duration, Error),
    Panic,
    Hang,
    /// Issues tokens once the gate has a permit.
    Gated,
    /// These tokens, after this delay.
    Bring(Duration, Tokens),
}

impl Issuer {
    pub fn new(script: impl IntoIterator<Item = Turn>) -> Self {
        Self {
            script: Arc::new(Mutex::new(script.into_iter().collect())),
            calls: Arc::default(),
            now: Arc::default(),
            most: Arc::default(),
            asked: Arc::default(),
            begun: tokio::sync::watch::Sender::new(0),
            gate: Arc::new(tokio::sync::Semaphore::new(0)),
        }
    }

    pub fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }

    /// Waits until this many calls have started.
    pub async fn until_called(&self, times: usize) {
        self.begun.subscribe().wait_for(|calls| *calls >= times).await.unwrap();
    }

    /// Discards the rest of the script. All further calls succeed.
    pub fn recover(&self) {
        self.script.lock().unwrap().clear();
    }

    /// The highest number of simultaneous calls.
    pub fn most(&self) -> usize {
        self.most.load(Ordering::SeqCst)
    }

    /// The refresh tokens of the calls.
    pub fn asked(&self) -> Vec<Option<String>> {
        self.asked.lock().unwrap().clone()
    }
}

struct Busy(Arc<AtomicUsize>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[async_trait]
impl Refresher for Issuer {
    async fn refresh(&self, context: &RefreshContext) -> Result<Tokens, Error> {
        let call = self.calls.fetch_add(1, Ordering::SeqCst) + 1;
        let at_once = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        let _busy = Busy(Arc::clone(&self.now));
        self.most.fetch_max(at_once, Ordering::SeqCst);
        let tokens = context.tokens();
        self.asked
            .lock()
            .unwrap()
            .push(tokens.refresh_token().map(|token| token.expose_secret().to_owned()));
        self.begun.send_replace(call);
        let turn = self.script.lock().unwrap().pop_front();
        let (delay, lifetime) = match turn {
            None => (Duration::ZERO, None),
            Some(Turn::Issue(delay, lifetime)) => (delay, lifetime),
            Some(Turn::Fail(delay, error)) => {
                tokio::time::sleep(delay).await;
                return Err(error);
            }
            Some(Turn::Bring(delay, tokens)) => {
                tokio::time::sleep(delay).await;
                return Ok(tokens);
            }
            Some(Turn::Panic) => panic!("the refresher panics, as the script says"),
            Some(Turn::Hang) => std::future::pending().await,
            Some(Turn::Gated) => {
                self.gate.acquire().await.unwrap().forget();
                (Duration::ZERO, None)
            }
        };
        tokio::time::sleep(delay).await;
        let tokens = Tokens::new(format!("t{call}"))?.with_refresh_token(format!("r{call}"))?;
        Ok(match lifetime {
            Some(lifetime) => tokens.with_expires_in(lifetime),
            None => tokens,
        })
    }
}

pub fn unavailable() -> Error {
    Error::new(ErrorKind::Unavailable, "scripted").with_status(StatusCode::BAD_GATEWAY)
}

/// The events of a session, in order.
#[derive(Clone, Default)]
pub struct Events(Arc<Mutex<Vec<Event>>>);

impl Events {
    pub fn listener(&self) -> impl Fn(&Event) + Send + Sync + 'static {
        let events = Arc::clone(&self.0);
        move |event| events.lock().unwrap().push(event.clone())
    }

    pub fn all(&self) -> Vec<Event> {
        self.0.lock().unwrap().clone()
    }

    pub fn count(&self, wanted: impl Fn(&Event) -> bool) -> usize {
        self.all().iter().filter(|event| wanted(event)).count()
    }
}
