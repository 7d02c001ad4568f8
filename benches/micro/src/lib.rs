//! The workloads: one request each, with an in-process response instead of a socket, so that only
//! the middleware is measured.

pub mod plot;
pub mod storm;

use std::{
    future::{Future, ready},
    pin::{Pin, pin},
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use http::{Extensions, HeaderMap, HeaderName, HeaderValue, header};
use reqwest::{Request, Response, ResponseBuilderExt, Url};
use reqwest_middleware::{
    ClientBuilder, ClientWithMiddleware, Middleware, Next, RequestBuilder, Result,
};
use reqwest_reauth::{
    Authorize, Capture, ClientBuilderExt, Outcome, Refresh, Replay, Session, SessionBuilder,
    Tokens, refresh_with,
};
use tokio::runtime::{Builder, Runtime};

pub const ORIGIN: &str = "https://api.example.com";

/// The client under all chains. It never sends.
pub fn connection() -> reqwest::Client {
    static CLIENT: LazyLock<reqwest::Client> = LazyLock::new(reqwest::Client::new);
    CLIENT.clone()
}

/// What a caller puts on a request, and what comes back: the second half of a workload's name.
///
/// A number is so many static headers and nothing else. The others have three headers and what they
/// are called after.
#[derive(Clone, Copy, PartialEq)]
enum Shape {
    Headers(usize),
    /// A body of 1 KB.
    Body,
    /// A timeout of the request's own.
    Timeout,
    /// Six headers in the response.
    Answer,
    /// Names and values of headers that are made from text.
    Text,
    /// Body, timeout, six response headers, and headers that are made from text.
    All,
    /// The response brings the token that the session has.
    Again,
}

impl Shape {
    fn named(name: &str) -> Self {
        match name {
            "body" => Self::Body,
            "timeout" => Self::Timeout,
            "answer" => Self::Answer,
            "text" => Self::Text,
            "all" => Self::All,
            "again" => Self::Again,
            number => Self::Headers(number.parse().unwrap()),
        }
    }

    fn is(self, one: Self) -> bool {
        self == one || (self == Self::All && one != Self::Again)
    }
}

/// What servers send.
const ANSWER: [(&str, &str); 6] = [
    ("content-type", "application/json"),
    ("date", "Thu, 26 Nov 2026 12:00:00 GMT"),
    ("server", "nginx/1.27.3"),
    ("cache-control", "no-store"),
    ("vary", "accept-encoding, origin"),
    ("x-request-id", "0f8fad5b-d9cb-469f-a165-70867728950e"),
];

/// The headers that a caller sets: none, the first, or all three.
const HEADERS: [(HeaderName, HeaderValue); 3] = [
    (header::ACCEPT, HeaderValue::from_static("application/json")),
    (header::CONTENT_TYPE, HeaderValue::from_static("application/json")),
    (
        HeaderName::from_static("x-request-id"),
        HeaderValue::from_static("0f8fad5b-d9cb-469f-a165-70867728950e"),
    ),
];

/// The number of requests of [`Workload::run`] when instructions are counted. It is high, so that
/// occasional growth counts in proportion.
pub const REQUESTS: u64 = 100;

/// All workloads by name, in the order of the table.
pub const NAMES: [&str; 30] = [
    "bare_0",
    "bare_1",
    "bare_3",
    "bare_body",
    "bare_timeout",
    "bare_answer",
    "bare_text",
    "bare_all",
    "bare_again",
    "authorize_3",
    "capture_3",
    "refresh_3",
    "replay_3",
    "chain_0",
    "chain_1",
    "chain_3",
    "chain_body",
    "chain_timeout",
    "chain_answer",
    "chain_text",
    "chain_all",
    "chain_again",
    "outcome_3",
    "per_request_3",
    "in_scope_1",
    "in_scope_3",
    "in_scope_all",
    "scope_each_3",
    "bare_rejected",
    "chain_rejected",
];

/// A client, a session and a way to send.
pub struct Workload {
    client: ClientWithMiddleware,
    session: Session,
    url: Url,
    shape: Shape,
    manner: Manner,
    /// For those that wait.
    runtime: Option<Runtime>,
}

/// How a request finds its session, and what happens to its response.
#[derive(Clone, Copy)]
enum Manner {
    Plain,
    /// Looks for an `Outcome` in the response.
    Inspect,
    /// A `Session` among the request's extensions.
    PerRequest,
    /// All requests in one scope.
    InScope,
    /// Every request in a scope of its own.
    ScopeEach,
    /// Two sends and a refresh, without the chain.
    TwiceByHand,
}

impl Workload {
    /// The workload of this name: what is in the chain, and what the requests are like.
    pub fn new(name: &str) -> Self {
        let session = session().build().unwrap();
        let (what, shape) = name.rsplit_once('_').unwrap();
        let client = ClientBuilder::new(connection());
        let own = session.clone();
        let (client, manner) = match what {
            "bare" if shape == "rejected" => (client, Manner::TwiceByHand),
            "bare" => (client, Manner::Plain),
            "authorize" => (client.with(Authorize::new(own)), Manner::Plain),
            "capture" => (client.with(Capture::new(own)), Manner::Plain),
            "refresh" => (client.with(Refresh::new(own)), Manner::Plain),
            "replay" => (client.with(Replay::new(own)), Manner::Plain),
            "chain" => (client.with_session(own), Manner::Plain),
            "outcome" => (client.with_session(own), Manner::Inspect),
            "per_request" => (client.with_session(own), Manner::PerRequest),
            "in_scope" => (client.with_scoped_sessions(), Manner::InScope),
            "scope_each" => (client.with_scoped_sessions(), Manner::ScopeEach),
            _ => panic!("no workload {name}"),
        };
        let url = Url::parse(ORIGIN).unwrap().join("/v1/things?page=2").unwrap();
        let (shape, client, runtime) = match shape {
            "rejected" => {
                let runtime = Builder::new_current_thread().enable_time().build().unwrap();
                (Shape::Headers(1), client.with(EverySecond::default()), Some(runtime))
            }
            shape => {
                let shape = Shape::named(shape);
                (shape, client.with(End::with(shape)), None)
            }
        };
        Self { client: client.build(), session, url, shape, manner, runtime }
    }

    /// Sends this many requests, one after the other.
    pub fn run(&self, requests: u64) {
        // Boxed, so that all variants run the same code.
        let all: Pin<Box<dyn Future<Output = ()> + '_>> = Box::pin(self.send_all(requests));
        match (self.manner, &self.runtime) {
            (Manner::InScope, _) => now(self.session.scope(all)),
            (_, Some(runtime)) => runtime.block_on(all),
            _ => now(all),
        }
    }

    /// Like [`run`](Self::run), for a caller that is already on a runtime.
    pub async fn send_all(&self, requests: u64) {
        for _ in 0..requests {
            match self.manner {
                Manner::Plain | Manner::InScope => drop(self.request().send().await.unwrap()),
                Manner::Inspect => {
                    let response = self.request().send().await.unwrap();
                    assert!(response.extensions().get::<Outcome>().is_none());
                }
                Manner::PerRequest => {
                    drop(self.request().with_extension(self.session.clone()).send().await.unwrap());
                }
                Manner::ScopeEach => drop(self.session.scope(self.request().send()).await.unwrap()),
                Manner::TwiceByHand => {
                    assert_eq!(self.request().send().await.unwrap().status(), 401);
                    self.session.refresh().await.unwrap();
                    assert_eq!(self.request().send().await.unwrap().status(), 200);
                }
            }
        }
    }

    fn request(&self) -> RequestBuilder {
        let mut request = self.client.get(self.url.clone());
        let headers = if let Shape::Headers(number) = self.shape { number } else { 3 };
        for (name, value) in HEADERS.iter().take(headers) {
            request = if self.shape.is(Shape::Text) {
                request.header(name.as_str(), value.to_str().unwrap())
            } else {
                request.header(name, value)
            };
        }
        if self.shape.is(Shape::Body) {
            request = request.body(vec![b'x'; 1024]);
        }
        if self.shape.is(Shape::Timeout) {
            request = request.timeout(Duration::from_secs(10));
        }
        request
    }
}

/// A typical session: it knows when its token expires, and can refresh it.
pub fn session() -> SessionBuilder {
    let tokens = Tokens::new(TOKEN).unwrap().with_refresh_token("a-refresh-token").unwrap();
    let number = AtomicU64::new(0);
    Session::builder(tokens.with_expires_in(Duration::from_secs(3600))).origin(ORIGIN).refresher(
        refresh_with(move |tokens: Tokens| {
            let number = number.fetch_add(1, Ordering::Relaxed);
            let new = Tokens::new(format!("{TOKEN}.{number}")).map(|new| {
                let kept = tokens.refresh_token().unwrap().expose_secret().to_owned();
                new.with_refresh_token(kept).unwrap().with_expires_in(Duration::from_secs(3600))
            });
            async move { new }
        }),
    )
}

const TOKEN: &str = "an.access.token";

/// Answers 200 to everything, with these headers.
#[derive(Default)]
pub struct End(HeaderMap);

impl End {
    fn with(shape: Shape) -> Self {
        let mut headers = HeaderMap::new();
        if shape.is(Shape::Answer) || shape == Shape::Again {
            for (name, value) in ANSWER {
                let value = HeaderValue::from_static(value);
                headers.insert(HeaderName::from_static(name), value);
            }
        }
        if shape == Shape::Again {
            headers.insert("refreshed-api-token", HeaderValue::from_static(TOKEN));
        }
        Self(headers)
    }
}

impl Middleware for End {
    fn handle<'this, 'extensions, 'next, 'future>(
        &'this self,
        request: Request,
        _: &'extensions mut Extensions,
        _: Next<'next>,
    ) -> Pin<Box<dyn Future<Output = Result<Response>> + Send + 'future>>
    where
        'this: 'future,
        'extensions: 'future,
        'next: 'future,
        Self: 'future,
    {
        let mut response = answer(&request, 200);
        if !self.0.is_empty() {
            *response.headers_mut() = self.0.clone();
        }
        Box::pin(ready(Ok(response)))
    }
}

/// Rejects every second request, beginning with the first.
#[derive(Default)]
struct EverySecond(AtomicU64);

impl Middleware for EverySecond {
    fn handle<'this, 'extensions, 'next, 'future>(
        &'this self,
        request: Request,
        _: &'extensions mut Extensions,
        _: Next<'next>,
    ) -> Pin<Box<dyn Future<Output = Result<Response>> + Send + 'future>>
    where
        'this: 'future,
        'extensions: 'future,
        'next: 'future,
        Self: 'future,
    {
        let is_second = self.0.fetch_add(1, Ordering::Relaxed) % 2 == 1;
        Box::pin(ready(Ok(answer(&request, if is_second { 200 } else { 401 }))))
    }
}

/// A response without a body, with the URL of the request.
pub fn answer(request: &Request, status: u16) -> Response {
    let answer = http::Response::builder()
        .status(status)
        .url(request.url().clone())
        .body(reqwest::Body::default());
    answer.unwrap().into()
}

/// Nothing here waits, so a single poll completes it, without the cost of a runtime.
fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("an in-process answer had to be waited for"),
    }
}
