//! The four middleware as one, for a client that uses them all.

use std::{
    future::{Future, ready},
    time::Duration,
};

use http::Extensions;
use reqwest::{Request, Response};
use reqwest_middleware::{Middleware, Next, Result};
use tokio::time::Instant;

use super::{
    SessionSource, authorize, buffer, capture,
    copy::Copy,
    refresh::{self, Answer, Rejected},
    replay::{self, After, Again, ReplayBody, SendAgain},
    sent::{Proof, Sent},
    signed::Signed,
    source::{Found, Handling, Pinned},
};
use crate::{anonymous::Anonymous, valid_for::ValidFor};

/// The four middleware as one. A request that passes straight through costs one future and one
/// entry in the client's list, instead of four of each.
#[derive(Debug)]
pub(super) struct Chain {
    pub(super) source: SessionSource,
}

impl Middleware for Chain {
    fn handle<'this, 'extensions, 'next, 'future>(
        &'this self,
        mut request: Request,
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
        // Allocated first, because the request would otherwise be moved twice: 55 instructions.
        let room = Box::new_uninit();
        // Each step is a separate function, because anything it borrows here would stay in the
        // future while the request is in progress.
        let future: Box<_> = Box::write(room, async move {
            let mut copy = Copy::default();
            let signed = prepare(source, &mut request, extensions, &mut copy);
            let sending = if signed.is_some() {
                next.clone().run(request, &mut *extensions)
            } else {
                Box::pin(send(source, request, &mut *extensions, next.clone()))
            };
            let rest = {
                // The block ends before the next `await`, so that the response, which is borrowed
                // here, is not stored in the future.
                let mut result = sending.await;
                let Some(signed) = &signed else { return result };
                if is_done(&mut result, signed, source) {
                    return result;
                }
                Box::pin(up(result?, signed, &mut copy, source, extensions, next))
            };
            rest.await
        });
        Box::into_pin(future)
    }
}

/// Does the work of all four before a request, if it can be sent at once, which is almost always.
/// Otherwise does nothing and returns `None`, and the four run one by one.
#[inline]
fn prepare<'a>(
    source: &'a SessionSource,
    request: &mut Request,
    extensions: &Extensions,
    copy: &mut Copy,
) -> Option<Signed<'a>> {
    let session = source.find(extensions).ok()?;
    // Such a URL has no user info, which would take the place of our header.
    let origin = session.plain_origin_of(request.url())?;
    let asks = !extensions.is_empty()
        && (extensions.get::<Anonymous>().is_some()
            || extensions.get::<ReplayBody>().is_some()
            || extensions.get::<ValidFor>().is_some());
    let placement = session.placement();
    if asks || placement.needs_proof() || buffer::is_wanted(&session, request) {
        return None;
    }
    let state = session.load();
    if !state.is_quiet(Instant::now) {
        return None;
    }
    let header = state.header_to_send().ok()?.clone();
    if !copy.fill_and_find(request, Some(placement.name())) {
        request.headers_mut().append(placement.name(), header);
    } else if session.overrides_authorization() {
        request.headers_mut().insert(placement.name(), header);
    } else {
        return None;
    }
    let signature = state.signature();
    drop(state);
    Some(Signed {
        session,
        signature,
        origin,
        #[cfg(feature = "dpop")]
        proving: None,
    })
}

/// Whether none of the four has to inspect the response.
#[inline]
fn is_done(result: &mut Result<Response>, signed: &Signed<'_>, source: &SessionSource) -> bool {
    let Ok(response) = result else { return true };
    signed.check_where_it_went(response);
    if signed.needs_note(response) && !signed.has_no_news(response) {
        return false;
    }
    if let Found::Brought(_) = signed.session {
        capture::conceal_own(source, response);
    }
    true
}

/// Does the work of the four after a request, from the innermost on. Not an `async fn`, which would
/// store each argument twice in its future.
#[cold]
fn up<'a>(
    mut response: Response,
    signed: &Signed<'_>,
    copy: &'a mut Copy,
    source: &'a SessionSource,
    extensions: &'a mut Extensions,
    next: Next<'a>,
) -> impl Future<Output = Result<Response>> + Send + use<'a> {
    let sent = signed.note(Proof::Fine);
    let (sent, rejected) = inspect(source, Some(sent), &mut response, extensions);
    async move {
        let answer = match &rejected {
            Some(rejected) => rejected.end(rejected.wait(copy.timeout()).await, response)?,
            None => response.into(),
        };
        replay(answer, sent, Again::from(copy), source, extensions, next).await
    }
}

/// The path of every other request.
#[cold]
async fn send(
    source: &SessionSource,
    mut request: Request,
    extensions: &mut Extensions,
    next: Next<'_>,
) -> Result<Response> {
    if source.leaves_alone(&request, extensions) {
        source.tell_own_header(&request, extensions);
        replay::give_first_body(&mut request, extensions)?;
        return capture::unsigned(source, request, extensions, next).await;
    }
    buffer::read(source, &mut request, extensions).await?;
    let mut copy = Copy::default();
    let again = Again::of(&mut request, extensions, &mut copy)?;
    let limit = request.timeout().copied();
    let (signed, sending) = sign_and_send(source, request, &mut *extensions, next.clone());
    let response = sending.await?;
    let (sent, received) = receive(source, signed, response, extensions, limit);
    let response = match received {
        Received::Done(response) => response,
        Received::Waits(response) => response.await?,
    };
    replay(response.into(), sent, again, source, extensions, next).await
}

/// `Replay`, above the other three. The replay has a separate future, so that requests that wait
/// for a refresh do not hold memory for it.
fn replay<'a>(
    answer: Answer,
    sent: Option<Sent>,
    mut again: Again<'a>,
    source: &'a SessionSource,
    extensions: &'a mut Extensions,
    next: Next<'a>,
) -> Handling<'a> {
    match replay::after(answer, sent, &mut again, extensions) {
        After::Return(response) => Box::pin(ready(Ok(response))),
        After::SendAgain(sending) => {
            // Allocated first, because the request would otherwise be moved twice.
            let room = Box::new_uninit();
            let future = send_again(sending, again, source, extensions, next);
            let future: Box<_> = Box::write(room, future);
            Box::into_pin(future)
        }
    }
}

#[allow(clippy::manual_async_fn, reason = "an async fn would store each argument twice")]
fn send_again<'a>(
    mut sending: SendAgain,
    mut again: Again<'a>,
    source: &'a SessionSource,
    extensions: &'a mut Extensions,
    next: Next<'a>,
) -> impl Future<Output = Result<Response>> + Send + 'a {
    async move {
        loop {
            replay::drain(&mut sending.response).await;
            drop(sending.response);
            let limit = sending.request.timeout().copied();
            let mut pinned = Pinned::to(&sending.resend.session, source, extensions);
            let (signed, response) =
                sign_and_send(source, sending.request, &mut pinned, next.clone());
            let response = match response.await {
                Ok(response) => response,
                Err(error) => return sending.resend.end(Err(error)),
            };
            let (sent, received) = receive(source, signed, response, &mut pinned, limit);
            let result = match received {
                Received::Done(response) => Ok(response),
                Received::Waits(response) => response.await,
            };
            drop(pinned);
            let response = sending.resend.end(result)?;
            match replay::after(response.into(), sent, &mut again, extensions) {
                After::Return(response) => return Ok(response),
                After::SendAgain(next_one) => sending = next_one,
            }
        }
    }
}

/// `Refresh` and `Authorize` on the way to the server.
fn sign_and_send<'a: 'b, 'b>(
    source: &'a SessionSource,
    request: Request,
    extensions: &'b mut Extensions,
    next: Next<'b>,
) -> (Option<Signed<'a>>, Handling<'b>) {
    if refresh::asks_nothing(source, extensions) {
        authorize::start(source, request, extensions, next)
    } else {
        (None, Box::pin(ask_and_send(source, request, extensions, next)))
    }
}

#[cold]
async fn ask_and_send(
    source: &SessionSource,
    request: Request,
    extensions: &mut Extensions,
    next: Next<'_>,
) -> Result<Response> {
    let Some(ready) = refresh::before(source, &request, extensions).await? else {
        return authorize::send(source, request, extensions, next).await;
    };
    let mut extensions = Pinned::to(&ready.session, source, extensions);
    let response = authorize::send(source, request, &mut extensions, next).await?;
    Ok(ready.note(response))
}

/// A response that went through `Authorize`, `Capture` and `Refresh`.
enum Received {
    Done(Response),
    /// It was rejected, and waits for a refresh.
    Waits(Handling<'static>),
}

/// `Authorize`, `Capture` and `Refresh` on the way back. Takes the response by value, because what
/// is borrowed stays in the caller's future.
fn receive(
    source: &SessionSource,
    signed: Option<Signed<'_>>,
    mut response: Response,
    extensions: &mut Extensions,
    limit: Option<Duration>,
) -> (Option<Sent>, Received) {
    let sent = signed.and_then(|signed| signed.inspect(&response));
    let (sent, rejected) = inspect(source, sent, &mut response, extensions);
    let received = match rejected {
        Some(rejected) => Received::Waits(Box::pin(rejected.finish(response, limit))),
        None => Received::Done(response),
    };
    (sent, received)
}

/// `Capture` and `Refresh` on the way back. `sent` is the chain's own note on the response, which
/// does not have to go through the response. Returns what `Replay` needs.
fn inspect(
    source: &SessionSource,
    sent: Option<Sent>,
    response: &mut Response,
    extensions: &mut Extensions,
) -> (Option<Sent>, Option<Rejected>) {
    // A middleware of this crate below the chain may have left one too.
    let below = response.extensions_mut().remove::<Sent>();
    let mut sent = sent.or(below);
    capture::conceal_own(source, response);
    let rejected = sent.as_mut().and_then(|sent| {
        capture::take_from(sent, response);
        Rejected::of(sent, response, extensions)
    });
    (sent, rejected)
}
