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
    session::{Ending, Join, OnRefreshFailure, Session},
    telemetry::request_failed,
    valid_for::ValidFor,
};

/// Makes sure that a usable token is there before a request is sent, and renews it when the API
/// refuses it.
///
/// A token near its end is renewed in the background; one that has ended is waited for. All
/// requests of a session wait for the same refresh, which goes on when they are dropped. A rejected
/// answer is returned as it is, with a new token in the session: sending again is
/// [`Replay`](super::Replay)'s part, above it. It needs [`Authorize`](super::Authorize) below it,
/// which notes what was sent.
///
/// When the refresh fails, the caller gets an [`Error`] that names both what the API and what the
/// token endpoint answered, or with [`OnRefreshFailure::ReturnResponse`] the API's own answer.
#[derive(Clone, Debug)]
pub struct Refresh {
    source: SessionSource,
}

impl Refresh {
    /// Refreshes for this session.
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
        Box::pin(async move {
            // A session that is quiet has nothing to ask of any request, its own or not: so almost
            // none is looked at closer.
            if !asks_nothing(source, extensions) {
                return Box::pin(send_after_asking(source, request, extensions, next)).await;
            }
            let limit = request.timeout().copied();
            let response = next.run(request, extensions).await?;
            if response.extensions().get::<Sent>().is_none() {
                return Ok(response);
            }
            Box::pin(up(response, extensions, limit)).await
        })
    }
}

/// Whether a request is sent without a question.
pub(super) fn asks_nothing(source: &SessionSource, extensions: &Extensions) -> bool {
    is_quiet(source, extensions) && extensions.get::<ValidFor>().is_none()
}

fn is_quiet(source: &SessionSource, extensions: &Extensions) -> bool {
    source.find(extensions).is_ok_and(|session| session.load().is_quiet(Instant::now))
}

/// The way of a request that may have to wait before it is sent.
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
    /// The request waited for a refresh that brought it.
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

/// Waits for a refresh where the request cannot be sent without one. `None`: the request is none of
/// ours. Of one that [asks nothing](asks_nothing) it is not asked.
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
        // It would wait for the refresh that waits for it.
        return Ok(Some(Ready { session, refreshed: false }));
    }
    // In a box of its own: almost no request needs it, and it would make them all larger.
    Box::pin(session.look_for_login()).await;
    let mut budget: Budget = extensions.get().cloned().unwrap_or_default();
    let telemetry = session.clone();
    let fails = |budget: &Budget, error: Error| {
        request_failed(Some(telemetry.telemetry()), error.kind());
        Err(budget.with_rejection(error).into())
    };
    let mut refreshed = false;
    // Once more if a new login has superseded the refresh: its token may have to be renewed too,
    // which is another refresh.
    for _ in 0..2 {
        let allowance = budget.allowance();
        let join = match budget.rejection {
            // An earlier attempt was rejected with the token that the session still has.
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
                match session.wait_within(&waiter, limit).await {
                    Ok(Ending::Refreshed) => refreshed = true,
                    Ok(Ending::Superseded) => continue,
                    // Not even the store had something to ask with: it goes with what it has.
                    Err(error) if error.nothing_to_ask_with() => {}
                    // The token does not live long enough, but it is good.
                    Err(_) if valid_for.is_some() && session.load().is_usable(Instant::now()) => {}
                    Err(error) => return fails(&budget, error),
                }
                break;
            }
        }
    }
    Ok(Some(Ready { session, refreshed }))
}

/// Renews the token if the answer refuses it. No `async fn`, which would keep the response twice for
/// as long as the request waits.
#[cold]
pub(super) fn up(
    mut response: Response,
    extensions: &mut Extensions,
    limit: Option<Duration>,
) -> impl Future<Output = Result<Response>> + Send + '_ {
    let joined = join(&mut response, extensions);
    async move {
        let (session, waiter) = match joined {
            None | Some((_, Join::Go { .. })) => return Ok(response),
            Some((session, Join::Fail(error))) => return failed(&session, error, response),
            Some((session, Join::Wait(waiter))) => (session, waiter),
        };
        match session.wait_within(&waiter, limit).await {
            Ok(ending) => {
                if ending == Ending::Refreshed {
                    note_outcome(&mut response, |outcome| outcome.refreshed = true);
                }
                Ok(response)
            }
            // Not even the store had something to ask with: the answer stands.
            Err(error) if error.nothing_to_ask_with() => Ok(response),
            Err(error) => failed(&session, error, response),
        }
    }
}

/// Which refresh the response makes its request wait for; `None` if it is the caller's.
fn join(response: &mut Response, extensions: &mut Extensions) -> Option<(Session, Join)> {
    let mut sent = response.extensions().get::<Sent>().cloned()?;
    let generation = sent.signature.generation();
    if !sent.is_rejected(response) {
        let says_nothing = sent.proof != Proof::Fine || is_inconclusive(response.status());
        if sent.signature.is_on_probation() && !says_nothing {
            sent.session.accepted(generation);
        }
        return None;
    }
    let session = sent.session;
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
    let join = session.after_rejection(generation, &budget.allowance());
    if let Join::Wait(waiter) = &join
        && waiter.started
    {
        budget.refresh = Some(waiter.clone());
    }
    Some((session, join))
}

/// Whether a response says nothing about the token: the server is down, or overloaded.
fn is_inconclusive(status: StatusCode) -> bool {
    status.is_server_error()
        || matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS)
}

/// The API rejected the token, and there is no other.
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
