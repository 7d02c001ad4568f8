//! `with_session` adds the four as one middleware, which behaves like the four one by one.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use crate::support::{
    Api, Events, Issuer, ORIGIN, Seen, Turn, answer, held, never_asked, pair, settle, unavailable,
    url,
};
use async_trait::async_trait;
use http::Extensions;
use reqwest::{Request, Response};
use reqwest_middleware::{ClientBuilder, ClientWithMiddleware, Middleware, Next, RequestBuilder};
use reqwest_reauth::{
    Anonymous, Authorize, Capture, ClientBuilderExt, OnRefreshFailure, Outcome, Refresh, Replay,
    ReplayBody, Session, SessionBuilder, SessionSource, Tokens,
};

const HOUR: Duration = Duration::from_secs(3600);

/// The state of the session when the request is sent.
#[derive(Clone, Copy, Debug)]
enum Login {
    Good,
    Due,
    Expired,
    Issued,
    OnlyAccess,
    Unrenewable,
    Failing,
    FailingQuietly,
    RuledByUs,
    Cleared,
    Closed,
}

const LOGINS: [Login; 11] = [
    Login::Good,
    Login::Due,
    Login::Expired,
    Login::Issued,
    Login::OnlyAccess,
    Login::Unrenewable,
    Login::Failing,
    Login::FailingQuietly,
    Login::RuledByUs,
    Login::Cleared,
    Login::Closed,
];

impl Login {
    async fn session(self, issuer: &Issuer, events: &Events) -> Session {
        let new =
            |tokens: Tokens| Session::builder(tokens).origin(ORIGIN).on_event(events.listener());
        let renewable = |tokens: Tokens| new(tokens).refresher(issuer.clone());
        let good = || renewable(pair("t0", "r0").with_expires_in(HOUR));
        let builder: SessionBuilder = match self {
            Self::OnlyAccess => new(Tokens::new("t0").unwrap()),
            Self::Unrenewable => renewable(Tokens::new("t0").unwrap()),
            Self::FailingQuietly => good().on_refresh_failure(OnRefreshFailure::ReturnResponse),
            Self::RuledByUs => {
                good().rejected_if(|response, verdict| verdict.rejected || response.status() == 404)
            }
            _ => good(),
        };
        let session = builder.build().unwrap();
        match self {
            Self::Due => tokio::time::advance(Duration::from_secs(3599)).await,
            Self::Expired => tokio::time::advance(Duration::from_secs(3601)).await,
            Self::Issued => drop(session.refresh().await.unwrap()),
            Self::Cleared => session.clear().await.unwrap(),
            Self::Closed => session.close().await.unwrap(),
            _ => {}
        }
        session
    }

    fn script(self) -> Vec<Turn> {
        match self {
            Self::Failing | Self::FailingQuietly => vec![Turn::Fail(Duration::ZERO, unavailable())],
            _ => vec![],
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Asked {
    Plainly,
    WithBody,
    WithStream,
    WithReplayBody,
    WithTimeout,
    WithItsOwnHeader,
    Anonymously,
    Elsewhere,
    ForItsOwnSession,
}

const REQUESTS: [Asked; 9] = [
    Asked::Plainly,
    Asked::WithBody,
    Asked::WithStream,
    Asked::WithReplayBody,
    Asked::WithTimeout,
    Asked::WithItsOwnHeader,
    Asked::Anonymously,
    Asked::Elsewhere,
    Asked::ForItsOwnSession,
];

impl Asked {
    fn request(self, client: &ClientWithMiddleware, session: &Session) -> RequestBuilder {
        let post =
            || client.post(url("/things")).header("x-request-id", "7").header("x-request-id", "8");
        let stream = || {
            reqwest::Body::wrap_stream(futures_util::stream::once(async {
                Ok::<_, std::io::Error>("streamed")
            }))
        };
        match self {
            Self::Plainly => post(),
            Self::WithBody => post().body("buffered"),
            Self::WithStream => post().body(stream()),
            Self::WithReplayBody => post().with_extension(ReplayBody::new(|| "made".into())),
            Self::WithTimeout => post().timeout(Duration::from_secs(5)),
            Self::WithItsOwnHeader => post().header("authorization", "Bearer own"),
            Self::Anonymously => post().with_extension(Anonymous),
            Self::Elsewhere => client.post("https://elsewhere.example/things"),
            Self::ForItsOwnSession => post().with_extension(session.clone()),
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Manner {
    Accepts,
    Reissues,
    RefusesEverySecond,
    RefusesAndReissues,
    RefusesAlways,
    Forbids,
}

const APIS: [Manner; 6] = [
    Manner::Accepts,
    Manner::Reissues,
    Manner::RefusesEverySecond,
    Manner::RefusesAndReissues,
    Manner::RefusesAlways,
    Manner::Forbids,
];

impl Manner {
    fn api(self) -> Api {
        let count = AtomicUsize::new(0);
        Api::new(move |_| {
            let first = count.fetch_add(1, Ordering::SeqCst).is_multiple_of(2);
            async move {
                match self {
                    Self::RefusesEverySecond if first => answer(401),
                    Self::RefusesAndReissues if first => {
                        answer(401).header("refreshed-api-token", "c1")
                    }
                    Self::RefusesAlways => answer(401),
                    Self::Reissues => answer(404).header("refreshed-api-token", "c1"),
                    Self::Forbids => answer(403)
                        .header("www-authenticate", "Bearer error=\"insufficient_scope\""),
                    _ => answer(200),
                }
            }
        })
    }
}

/// Status, outcome and whether the reissued token is marked sensitive, or the error.
type Answered = Result<(u16, String, Option<bool>), String>;

/// Everything that can be observed of two requests.
#[derive(Debug, PartialEq)]
struct Witnessed {
    answers: [Answered; 2],
    seen: Vec<Seen>,
    calls: usize,
    held: (String, String),
    generation: u64,
    events: String,
}

async fn witness(login: Login, asked: Asked, api: Manner, scoped: bool, whole: bool) -> Witnessed {
    let issuer = Issuer::new(login.script());
    let events = Events::default();
    let session = login.session(&issuer, &events).await;
    let api = api.api();
    let source = if scoped { SessionSource::Scoped } else { SessionSource::Fixed(session.clone()) };
    let [one, four] = each_way(|| ClientBuilder::new(never_asked()), &source);
    let client = if whole { one } else { four }.with(api.clone()).build();
    // The second request shows what the first has left behind.
    let first = answer_of(session.scope(asked.request(&client, &session).send()).await);
    settle().await;
    let second = answer_of(session.scope(asked.request(&client, &session).send()).await);
    settle().await;
    Witnessed {
        answers: [first, second],
        seen: api.seen(),
        calls: issuer.calls(),
        held: held(&session),
        generation: session.generation(),
        events: format!("{:?}", events.all()),
    }
}

fn answer_of(answer: reqwest_middleware::Result<Response>) -> Answered {
    let response = answer.map_err(|error| format!("{error:#?}"))?;
    let concealed =
        response.headers().get("refreshed-api-token").map(http::HeaderValue::is_sensitive);
    Ok((
        response.status().as_u16(),
        format!("{:?}", response.extensions().get::<Outcome>()),
        concealed,
    ))
}

#[tokio::test(start_paused = true)]
async fn all_four_in_one_do_what_the_four_do() {
    for login in LOGINS {
        for asked in REQUESTS {
            for api in APIS {
                for scoped in [false, true] {
                    let one = witness(login, asked, api, scoped, true).await;
                    let four = witness(login, asked, api, scoped, false).await;
                    assert_eq!(one, four, "{login:?}, asked {asked:?}, {api:?}, scoped: {scoped}");
                }
            }
        }
    }
}

/// A client with all four as one, and a client with the four one by one.
fn each_way(outside: impl Fn() -> ClientBuilder, source: &SessionSource) -> [ClientBuilder; 2] {
    let whole = match source {
        SessionSource::Fixed(session) => outside().with_session(session.clone()),
        _ => outside().with_scoped_sessions(),
    };
    let four = outside()
        .with(Replay::new(source.clone()))
        .with(Refresh::new(source.clone()))
        .with(Capture::new(source.clone()))
        .with(Authorize::new(source.clone()));
    [whole, four]
}

fn tenant(token: &str) -> Session {
    Session::builder(Tokens::new(token).unwrap()).origin(ORIGIN).build().unwrap()
}

/// Sends for another tenant than the task's.
struct For(Session);

#[async_trait]
impl Middleware for For {
    async fn handle(
        &self,
        request: Request,
        extensions: &mut Extensions,
        next: Next<'_>,
    ) -> reqwest_middleware::Result<Response> {
        // Made outside of the scope, and polled inside.
        self.0.scope(next.run(request, extensions)).await
    }
}

#[tokio::test]
async fn the_scope_at_the_poll_decides() {
    let (task, other) = (tenant("task"), tenant("other"));
    let outside = || ClientBuilder::new(never_asked()).with(For(other.clone()));
    let two = outside()
        .with(Capture::new(SessionSource::Scoped))
        .with(Authorize::new(SessionSource::Scoped));
    for client in each_way(outside, &SessionSource::Scoped).into_iter().chain([two]) {
        let api = Api::accepting(|_| true);
        let client = client.with(api.clone()).build();
        task.scope(client.get(url("/")).send()).await.unwrap();
        assert_eq!(api.tokens_seen(), ["other"]);
    }
}

/// Sends for one tenant and, if there is no response in time, for another.
struct Either(Session, Session);

#[async_trait]
impl Middleware for Either {
    async fn handle(
        &self,
        request: Request,
        extensions: &mut Extensions,
        next: Next<'_>,
    ) -> reqwest_middleware::Result<Response> {
        let copy = request.try_clone().unwrap();
        let first = self.0.scope(next.clone().run(copy, extensions));
        match tokio::time::timeout(Duration::from_secs(1), first).await {
            Ok(answer) => answer,
            Err(_) => self.1.scope(next.run(request, extensions)).await,
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_dropped_request_leaves_no_session() {
    let issuer = Issuer::new([]);
    // It waits for a token first.
    let first = Session::builder(pair("t0", "r0").with_expires_in(Duration::ZERO))
        .origin(ORIGIN)
        .refresher(issuer);
    let (first, second) = (first.build().unwrap(), tenant("second"));
    let outside = || ClientBuilder::new(never_asked()).with(Either(first.clone(), second.clone()));
    for (times, client) in (1..).zip(each_way(outside, &SessionSource::Scoped)) {
        let api = Api::new(|seen| async move {
            if seen.token() != Some("second") {
                std::future::pending::<()>().await;
            }
            answer(200)
        });
        let client = client.with(api.clone()).build();
        let _ = tokio::time::timeout(HOUR, client.get(url("/")).send()).await;
        assert_eq!(api.tokens_seen(), [format!("t{times}"), "second".to_owned()]);
        first.replace_tokens(pair("t0", "r0").with_expires_in(Duration::ZERO)).await.unwrap();
    }
}

#[tokio::test]
async fn a_captured_header_is_always_sensitive() {
    let own = tenant("own");
    let other = Session::builder(Tokens::new("other").unwrap())
        .origin(ORIGIN)
        .capture(http::HeaderName::from_static("x-other"))
        .build()
        .unwrap();
    for status in [200, 401] {
        let api =
            Api::new(move |_| async move { answer(status).header("refreshed-api-token", "c1") });
        for client in
            each_way(|| ClientBuilder::new(never_asked()), &SessionSource::Fixed(own.clone()))
        {
            let client = client.with(api.clone()).build();
            let response = client.get(url("/")).with_extension(other.clone()).send().await.unwrap();
            assert!(response.headers()["refreshed-api-token"].is_sensitive(), "{status}");
        }
        assert_eq!(api.tokens_seen(), ["other", "other"]);
    }
}

/// Sends each request twice, as a retry does.
struct Twice;

#[async_trait]
impl Middleware for Twice {
    async fn handle(
        &self,
        request: Request,
        extensions: &mut Extensions,
        next: Next<'_>,
    ) -> reqwest_middleware::Result<Response> {
        next.clone().run(request.try_clone().unwrap(), extensions).await?;
        next.run(request, extensions).await
    }
}

#[tokio::test(start_paused = true)]
async fn a_retry_keeps_the_requests_own_session() {
    let issuer = Issuer::new([]);
    // It waits for a token first.
    let own = Session::builder(pair("t0", "r0").with_expires_in(Duration::ZERO))
        .origin(ORIGIN)
        .refresher(issuer);
    let (own, task) = (own.build().unwrap(), tenant("task"));
    for (times, client) in (1..)
        .zip(each_way(|| ClientBuilder::new(never_asked()).with(Twice), &SessionSource::Scoped))
    {
        let api = Api::accepting(|_| true);
        let client = client.with(api.clone()).build();
        task.scope(client.get(url("/")).with_extension(own.clone()).send()).await.unwrap();
        assert_eq!(api.tokens_seen(), [format!("t{times}"), format!("t{times}")]);
        own.replace_tokens(pair("t0", "r0").with_expires_in(Duration::ZERO)).await.unwrap();
    }
}
