use std::{future::Future, time::Duration};

use http::{Extensions, StatusCode};
use reqwest::{Request, Response};
use reqwest_middleware::{Middleware, Next, Result};
use tokio::time::Instant;

use super::{
    SessionSource,
    sent::{Budget, Proof, Sent, note_outcome},
    source::{Handling, Pinned},
};
use crate::{
    error::Error,
    session::{Ending, Join, OnRefreshFailure, Session, Waiter},
    telemetry::request_failed,
    valid_for::ValidFor,
};

/// Ensures a usable token before a request is sent, and refreshes it when the API rejects it.
///
/// A token that is about to expire is refreshed in the background. If it has already expired, the
/// request waits. All requests of a session wait for the same refresh, which continues if they are
/// dropped. A rejected response is returned unchanged, after the refresh:
/// [`Replay`](super::Replay), above this middleware, sends the request again. It needs
/// [`Authorize`](super::Authorize) below it, which records what was sent.
///
/// If the refresh fails, the caller gets an [`Error`] that describes the API's response and the
/// token endpoint's response. With [`OnRefreshFailure::ReturnResponse`] the caller gets the API's
/// response instead.
///
/// ```
/// use reqwest_middleware::ClientBuilder;
/// use reqwest_reauth::{
///     Authorize, OAuthRefresh, Outcome, Refresh, Session, testing::AuthServer,
/// };
///
/// #[tokio::main]
/// async fn main() -> Result<(), Box<dyn std::error::Error>> {
///     // A test server (feature `test-util`).
///     let server = AuthServer::start().await;
///     let session = Session::builder(server.login())
///         .origin(server.origin())
///         .refresher(OAuthRefresh::new(server.token_endpoint()))
///         .build()?;
///     let client = ClientBuilder::new(reqwest::Client::new())
///         .with(Refresh::new(session.clone()))
///         .with(Authorize::new(session))
///         .build();
///
///     // Without `Replay` the caller gets the rejection, but the next request has a new token.
///     server.expire_now();
///     let response = client.get(server.url("/jobs")).send().await?;
///     assert_eq!(response.status(), 401);
///     assert!(response.extensions().get::<Outcome>().is_some_and(|outcome| outcome.refreshed));
///     assert_eq!(client.get(server.url("/jobs")).send().await?.status(), 200);
///     Ok(())
/// }
/// ```
///
/// # Defaults
///
/// | setting | default |
/// | --- | --- |
/// | [`refresher`](crate::SessionBuilder::refresher) | none: a rejected response is returned unchanged |
/// | [`refresh_ahead`](crate::SessionBuilder::refresh_ahead) | the last fifth of a token's lifetime, at most 60 s |
/// | [`cooldown`](crate::SessionBuilder::cooldown) | 10 s |
/// | [`wait_timeout`](crate::SessionBuilder::wait_timeout) | none: a request waits until the refresh ends |
/// | [`on_refresh_failure`](crate::SessionBuilder::on_refresh_failure) | [`OnRefreshFailure::ReturnError`] |
#[derive(Clone, Debug)]
pub struct Refresh {
    source: SessionSource,
}

impl Refresh {
    /// Refreshes tokens for this session.
    pub fn new(source: impl Into<SessionSource>) -> Self {
        Self { source: source.into() }
    }
}

impl Middleware for Refresh {
    fn handle<'this, 'extensions, 'next, 'future>(
        &'this self,
        request: Request,
        extensions: &'extensions mut Extensions,
        next: Next<'next>,
    ) -> Handling<'future>
    where
        'this: 'future,
        'extensions: 'future,
        'next: 'future,
        Self: 'future,
    {
        let source = &self.source;
        // Allocated first, because the request would otherwise be moved twice.
        let room = Box::new_uninit();
        let future: Box<_> = Box::write(room, async move {
            // A quiet session has no question about any request, so almost no request is inspected
            // further.
            if !asks_nothing(source, extensions) {
                return Box::pin(send_after_asking(source, request, extensions, next)).await;
            }
            let limit = request.timeout().copied();
            let response = next.run(request, extensions).await?;
            if response.extensions().get::<Sent>().is_none() {
                return Ok(response);
            }
            Box::pin(up(response, extensions, limit)).await
        });
        Box::into_pin(future)
    }
}

/// Whether a request can be sent without a check.
#[inline]
pub(super) fn asks_nothing(source: &SessionSource, extensions: &Extensions) -> bool {
    is_quiet(source, extensions) && extensions.get::<ValidFor>().is_none()
}

#[inline]
fn is_quiet(source: &SessionSource, extensions: &Extensions) -> bool {
    source.find(extensions).is_ok_and(|session| session.load().is_quiet(Instant::now))
}

/// The path of a request that may have to wait before it is sent.
#[cold]
async fn send_after_asking(
    source: &SessionSource,
    request: Request,
    extensions: &mut Extensions,
    next: Next<'_>,
) -> Result<Response> {
    let Some(ready) = before(source, &request, extensions).await? else {
        return next.run(request, extensions).await;
    };
    let limit = request.timeout().copied();
    let response = {
        let mut extensions = Pinned::to(&ready.session, source, extensions);
        next.run(request, &mut extensions).await?
    };
    up(ready.note(response), extensions, limit).await
}

/// A request whose session has a token for it.
pub(super) struct Ready {
    pub(super) session: Session,
    /// Whether the request waited for the refresh that obtained the token.
    refreshed: bool,
}

impl Ready {
    pub(super) fn note(&self, mut response: Response) -> Response {
        if self.refreshed {
            note_outcome(&mut response, |outcome| outcome.refreshed = true);
        }
        response
    }
}

/// Waits for a refresh if the request cannot be sent without one. Returns `None` if the request
/// does not concern the session. Not called for a request that [asks nothing](asks_nothing).
pub(super) async fn before(
    source: &SessionSource,
    request: &Request,
    extensions: &mut Extensions,
) -> Result<Option<Ready>> {
    let valid_for = extensions.get::<ValidFor>().copied();
    let Some((session, _)) = source
        .signing(request, extensions)
        .inspect_err(|error| request_failed(None, error.kind()))?
    else {
        return Ok(None);
    };
    let session = session.into_session();
    let limit = request.timeout().copied();
    if session.is_within_own_work() {
        // The request would wait for the refresh that waits for it.
        return Ok(Some(Ready { session, refreshed: false }));
    }
    // Boxed, because almost no request needs this future, and it would enlarge the future of every
    // request.
    Box::pin(session.look_for_login()).await;
    let mut budget: Budget = extensions.get().cloned().unwrap_or_default();
    let telemetry = session.clone();
    let fails = |budget: &Budget, error: Error| {
        request_failed(Some(telemetry.telemetry()), error.kind());
        Err(budget.with_rejection(error).into())
    };
    let mut refreshed = false;
    // Repeated once if a new login has superseded the refresh, because its token may need a refresh
    // too.
    for _ in 0..2 {
        let allowance = budget.allowance();
        let join = match budget.rejection {
            // An earlier attempt was rejected with the token that the session still holds.
            Some((generation, _)) if generation == session.generation() => {
                session.after_rejection(generation, &allowance)
            }
            _ => match valid_for {
                Some(ValidFor(at_least)) => session.should_refresh_valid_for(at_least, &allowance),
                None => session.should_refresh(&allowance),
            },
        };
        match join {
            Join::Go { started } => {
                if started.is_some() {
                    budget.refresh = started;
                    extensions.insert(budget);
                }
                break;
            }
            Join::Fail(error) => return fails(&budget, error),
            Join::Wait(waiter) => {
                if waiter.started {
                    budget.refresh = Some(waiter.clone());
                    extensions.insert(budget.clone());
                }
                match session.wait(&waiter, session.wait_limit(limit)).await {
                    Ok(Ending::Refreshed) => refreshed = true,
                    Ok(Ending::Superseded) => continue,
                    // Not even the store holds a refresh token, so the request is sent with the
                    // current token.
                    Err(error) if error.nothing_to_ask_with() => {}
                    // The token is valid, although not for as long as the request asks.
                    Err(_) if valid_for.is_some() && session.load().is_usable(Instant::now()) => {}
                    Err(error) => return fails(&budget, error),
                }
                break;
            }
        }
    }
    Ok(Some(Ready { session, refreshed }))
}

/// Refreshes the token if the response rejects it. Not an `async fn`, which would store the
/// response twice for as long as the request waits.
#[cold]
pub(super) fn up(
    mut response: Response,
    extensions: &mut Extensions,
    limit: Option<Duration>,
) -> impl Future<Output = Result<Response>> + Send + use<> {
    let rejected =
        Sent::look(&mut response, |sent, response| Rejected::of(sent, response, extensions));
    let rejected = rejected.flatten();
    async move {
        match &rejected {
            Some(rejected) => rejected.end(rejected.wait(limit).await, response).map(Answer::noted),
            None => Ok(response),
        }
    }
}

/// A response, and what its [`Outcome`](crate::Outcome) does not show yet.
pub(super) struct Answer {
    pub(super) response: Response,
    /// Whether the request waited for a refresh that obtained a token.
    pub(super) refreshed: bool,
}

impl From<Response> for Answer {
    fn from(response: Response) -> Self {
        Self { response, refreshed: false }
    }
}

impl Answer {
    /// Notes in the response that the refresh has obtained a token.
    pub(super) fn noted(self) -> Response {
        let Self { mut response, refreshed } = self;
        if refreshed {
            note_outcome(&mut response, |outcome| outcome.refreshed = true);
        }
        response
    }
}

/// A response for which the session has to get a new token.
pub(super) struct Rejected {
    session: Session,
    /// The refresh to wait for, or why there is none.
    refresh: std::result::Result<Waiter, Error>,
}

impl Rejected {
    /// Starts or joins a refresh. Returns `None` if the response is returned to the caller.
    pub(super) fn of(
        sent: &mut Sent,
        response: &Response,
        extensions: &mut Extensions,
    ) -> Option<Self> {
        let generation = sent.signature.generation();
        if !sent.is_rejected(response) {
            let says_nothing = sent.proof != Proof::Fine || is_inconclusive(response.status());
            if sent.signature.is_on_probation() && !says_nothing {
                sent.session.accepted(generation);
            }
            return None;
        }
        let session = &sent.session;
        let budget = extensions.get_or_insert_default::<Budget>();
        budget.rejection = Some((generation, response.status()));
        if budget.replayed {
            session.mark_rejected(generation);
            session.replay_rejected(generation);
            return None;
        }
        if session.is_within_own_work() {
            session.mark_rejected(generation);
            return None;
        }
        let refresh = match session.after_rejection(generation, &budget.allowance()) {
            Join::Go { .. } => return None,
            Join::Wait(waiter) => Ok(waiter),
            Join::Fail(error) => Err(error),
        };
        if let Ok(waiter) = &refresh
            && waiter.started
        {
            budget.refresh = Some(waiter.clone());
        }
        Some(Self { session: session.clone(), refresh })
    }

    /// Waits for the refresh.
    pub(super) async fn wait(&self, limit: Option<Duration>) -> std::result::Result<Ending, Error> {
        match &self.refresh {
            Ok(waiter) => self.session.wait(waiter, self.session.wait_limit(limit)).await,
            Err(error) => Err(error.clone()),
        }
    }

    /// Waits for the refresh, and notes in the response how it has ended.
    pub(super) async fn finish(
        self,
        response: Response,
        limit: Option<Duration>,
    ) -> Result<Response> {
        self.end(self.wait(limit).await, response).map(Answer::noted)
    }

    /// Decides what the end of the refresh means for the response: it is returned, or the request
    /// fails with the refresh's error.
    pub(super) fn end(
        &self,
        ended: std::result::Result<Ending, Error>,
        response: Response,
    ) -> Result<Answer> {
        let (response, refreshed) = match ended {
            Ok(Ending::Refreshed) => (response, true),
            Ok(Ending::Superseded) => (response, false),
            // Not even the store holds a refresh token, so the response is returned unchanged.
            Err(error) if self.refresh.is_ok() && error.nothing_to_ask_with() => (response, false),
            Err(error) => (failed(&self.session, error, response)?, false),
        };
        Ok(Answer { response, refreshed })
    }
}

/// Whether a response says nothing about the token, because the server is down or overloaded.
fn is_inconclusive(status: StatusCode) -> bool {
    status.is_server_error()
        || matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS)
}

/// Reports a rejected token that could not be refreshed.
fn failed(session: &Session, error: Error, mut response: Response) -> Result<Response> {
    let error = error.with_api_status(response.status());
    request_failed(Some(session.telemetry()), error.kind());
    match session.on_refresh_failure() {
        OnRefreshFailure::ReturnError => Err(error.into()),
        OnRefreshFailure::ReturnResponse => {
            note_outcome(&mut response, |outcome| outcome.refresh_error = Some(error));
            Ok(response)
        }
    }
}
