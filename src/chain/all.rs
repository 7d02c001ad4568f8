//! The four in one middleware, for a client that has them all.

use std::time::Duration;

use http::Extensions;
use reqwest::{Request, Response};
use reqwest_middleware::{Middleware, Next, Result};
use tokio::time::Instant;

use super::{
    SessionSource,
    authorize::{self, Signed},
    buffer, capture, refresh,
    replay::{self, After, Again, ReplayBody},
    sent::Proof,
    source::{Found, Handling, Pinned, has_own_header},
};
use crate::{anonymous::Anonymous, valid_for::ValidFor};

/// The four as one: a request that none of them has a question about pays for one future and one
/// place in the client's list, not for four of both.
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
        Box::pin(async move {
            let Some((again, signed)) = prepare(source, &mut request, extensions) else {
                return Box::pin(send(source, request, extensions, next)).await;
            };
            let limit = request.timeout().copied();
            let mut response = next.clone().run(request, &mut *extensions).await?;
            signed.check_where_it_went(&response);
            if !signed.needs_note(&response) {
                if let Found::Brought(_) = signed.session {
                    capture::conceal_own(source, &mut response);
                }
                return Ok(response);
            }
            signed.leave_note(&mut response, Proof::Fine);
            Box::pin(up(response, again, limit, source, extensions, next)).await
        })
    }
}

/// What all four do before a request that is sent at once, as almost all are. `None`, and nothing
/// done, for one that they have to look at one by one.
fn prepare<'a>(
    source: &'a SessionSource,
    request: &mut Request,
    extensions: &Extensions,
) -> Option<(Again, Signed<'a>)> {
    let (session, origin) = source.for_origin(request, extensions).ok()??;
    let asks = !extensions.is_empty()
        && (extensions.get::<Anonymous>().is_some()
            || extensions.get::<ReplayBody>().is_some()
            || extensions.get::<ValidFor>().is_some());
    let asks = asks || session.placement().needs_proof();
    if asks || has_own_header(&session, request) || buffer::is_wanted(&session, request) {
        return None;
    }
    let state = session.load_full();
    if !state.is_quiet(Instant::now) {
        return None;
    }
    let header = state.header_to_send().ok()?.clone();
    let again = Again::plain(request);
    request.headers_mut().insert(session.placement().name(), header);
    Some((again, Signed { session, state, origin }))
}

/// What they do after it, from the innermost on.
#[cold]
async fn up(
    mut response: Response,
    again: Again,
    limit: Option<Duration>,
    source: &SessionSource,
    extensions: &mut Extensions,
    next: Next<'_>,
) -> Result<Response> {
    capture::up(source, &mut response);
    let response = refresh::up(response, extensions, limit).await?;
    replay(response, again, source, extensions, next).await
}

/// The way of every other request.
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
    let again = Again::of(&mut request, extensions)?;
    let response = send_once(source, request, extensions, next.clone()).await?;
    replay(response, again, source, extensions, next).await
}

/// `Replay`, with the other three below it.
async fn replay(
    response: Response,
    again: Again,
    source: &SessionSource,
    extensions: &mut Extensions,
    next: Next<'_>,
) -> Result<Response> {
    let (mut response, mut again) = (response, again);
    loop {
        match replay::after(response, &mut again, extensions) {
            After::Return(response) => return Ok(response),
            After::SendAgain(sending) => {
                let (request, sending) = sending.begin().await;
                let mut pinned = Pinned::to(&sending.session, source, extensions);
                let sent = send_once(source, request, &mut pinned, next.clone()).await;
                response = sending.end(sent)?;
            }
        }
    }
}

/// `Refresh`, `Capture` and `Authorize`.
async fn send_once(
    source: &SessionSource,
    request: Request,
    extensions: &mut Extensions,
    next: Next<'_>,
) -> Result<Response> {
    let limit = request.timeout().copied();
    let ready = refresh::before(source, &request, extensions).await?;
    let mut response = match &ready {
        Some(ready) => {
            let mut extensions = Pinned::to(&ready.session, source, extensions);
            authorize::send(source, request, &mut extensions, next).await?
        }
        None => authorize::send(source, request, extensions, next).await?,
    };
    capture::up(source, &mut response);
    if let Some(ready) = ready {
        response = ready.note(response);
    }
    refresh::up(response, extensions, limit).await
}
