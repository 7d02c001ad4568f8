//! The workloads: one request each, answered in process without a socket, so that what is measured
//! is the middleware.

pub mod plot;
pub mod storm;

use std::{
    future::{Future, ready},
    pin::{Pin, pin},
    sync::LazyLock,
    task::{Context, Poll, Waker},
    time::Duration,
};

use http::{Extensions, HeaderName, HeaderValue, header};
use reqwest::{Request, Response, ResponseBuilderExt, Url};
use reqwest_middleware::{
    ClientBuilder, ClientWithMiddleware, Middleware, Next, RequestBuilder, Result,
};
use reqwest_reauth::{
    Authorize, Capture, ClientBuilderExt, Error, Outcome, Refresh, Replay, Session, SessionBuilder,
    Tokens, refresh_with,
};

pub const ORIGIN: &str = "https://api.example.com";

/// The client under all chains. It is never asked to send.
pub fn connection() -> reqwest::Client {
    static CLIENT: LazyLock<reqwest::Client> = LazyLock::new(reqwest::Client::new);
    CLIENT.clone()
}

/// The headers that a caller puts on: none, the first, or all three.
const HEADERS: [(HeaderName, HeaderValue); 3] = [
    (header::ACCEPT, HeaderValue::from_static("application/json")),
    (header::CONTENT_TYPE, HeaderValue::from_static("application/json")),
    (
        HeaderName::from_static("x-request-id"),
        HeaderValue::from_static("0f8fad5b-d9cb-469f-a165-70867728950e"),
    ),
];

/// How many requests [`Workload::run`] is asked for where single instructions are counted: many, so
/// that what grows once in a while counts with its share.
pub const REQUESTS: u64 = 100;

/// All workloads by name, in the order of the table.
pub const NAMES: [&str; 14] = [
    "bare_0",
    "bare_1",
    "bare_3",
    "authorize_3",
    "capture_3",
    "refresh_3",
    "replay_3",
    "chain_0",
    "chain_1",
    "chain_3",
    "outcome_3",
    "per_request_3",
    "in_scope_3",
    "scope_each_3",
];

/// A client, a session and a way to send.
pub struct Workload {
    client: ClientWithMiddleware,
    session: Session,
    url: Url,
    headers: usize,
    manner: Manner,
}

/// How a request finds its session, and what is done with its answer.
enum Manner {
    Plain,
    /// Looks for an `Outcome` in the answer.
    Inspect,
    /// A `Session` among the request's extensions.
    PerRequest,
    /// All requests in one scope.
    InScope,
    /// Every request in a scope of its own.
    ScopeEach,
}

impl Workload {
    /// The workload of this name: what is in the chain, and how many headers the caller puts on.
    pub fn new(name: &str) -> Self {
        let session = session().build().unwrap();
        let (what, headers) = name.rsplit_once('_').unwrap();
        let client = ClientBuilder::new(connection());
        let own = session.clone();
        let (client, manner) = match what {
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
        Self {
            client: client.with(End).build(),
            session,
            url,
            headers: headers.parse().unwrap(),
            manner,
        }
    }

    /// Sends this many requests, one after the other.
    pub fn run(&self, requests: u64) {
        // Boxed, so that all manners run the same code.
        let all: Pin<Box<dyn Future<Output = ()> + '_>> = Box::pin(self.send_all(requests));
        match self.manner {
            Manner::InScope => now(self.session.scope(all)),
            _ => now(all),
        }
    }

    /// Likewise, for a runtime.
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
            }
        }
    }

    fn request(&self) -> RequestBuilder {
        let request = self.client.get(self.url.clone());
        HEADERS
            .iter()
            .take(self.headers)
            .fold(request, |request, (name, value)| request.header(name, value))
    }
}

/// A session as most are: it knows when its token ends, and can renew it.
pub fn session() -> SessionBuilder {
    let tokens =
        Tokens::new("an.access.token").unwrap().with_refresh_token("a-refresh-token").unwrap();
    Session::builder(tokens.with_expires_in(Duration::from_secs(3600)))
        .origin(ORIGIN)
        .refresher(refresh_with(|tokens| async move { Ok::<_, Error>(tokens) }))
}

/// Answers 200 to everything.
pub struct End;

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
        Box::pin(ready(Ok(answer(&request, 200))))
    }
}

/// An answer without a body, from where the request went.
pub fn answer(request: &Request, status: u16) -> Response {
    let answer = http::Response::builder()
        .status(status)
        .url(request.url().clone())
        .body(reqwest::Body::default());
    answer.unwrap().into()
}

/// Nothing here waits: one poll does it, without a runtime's share.
fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("an in-process answer had to be waited for"),
    }
}
