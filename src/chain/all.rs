//! The four in one middleware, for a client that has them all.

use std::time::Duration;

use http::{Extensions, header::AUTHORIZATION};
use reqwest::{Request, Response};
use reqwest_middleware::Result;
use tokio::time::Instant;

use super::{
    Below, Down, Found, Future, ReplayBody, SessionSource,
    authorize::{self, Signed},
    capture, is_left_alone, middleware, refresh,
    replay::{self, Again},
};

/// Outermost first.
const LAYERS: [Down; 4] = [replay::down, refresh::down, capture::down, authorize::down];

/// The four as one: a request that none of them has a question about pays for one future and one
/// place in the client's list, not for four of both.
#[derive(Debug)]
pub(super) struct Chain {
    pub(super) source: SessionSource,
}

middleware!(Chain, down);

fn down<'a>(
    source: &'a SessionSource,
    mut request: Request,
    extensions: &'a mut Extensions,
    below: Below<'a>,
) -> Future<'a> {
    Box::pin(async move {
        let Some((again, signed)) = prepare(source, &mut request, extensions) else {
            return Below { layers: &LAYERS, ..below }.run(request, extensions).await;
        };
        let limit = request.timeout().copied();
        let mut response = below.clone().run(request, &mut *extensions).await?;
        if !signed.needs_note(&response) {
            if let Found::Brought(_) = signed.session {
                capture::conceal_own(source, &mut response);
            }
            return Ok(response);
        }
        signed.leave_note(&mut response);
        Box::pin(up(response, again, limit, extensions, below)).await
    })
}

/// What all four do on the way down with a request that goes out as it is, as almost all do.
/// `None`, and nothing done, for one that they have to look at one by one.
fn prepare<'a>(
    source: &'a SessionSource,
    request: &mut Request,
    extensions: &Extensions,
) -> Option<(Again, Signed<'a>)> {
    if is_left_alone(request, extensions) || extensions.get::<ReplayBody>().is_some() {
        return None;
    }
    let (session, origin) = source.for_origin(request, extensions).ok()??;
    let state = session.load_full();
    if !state.is_quiet(Instant::now) {
        return None;
    }
    let header = state.token_to_send().ok()?.header().clone();
    let again = Again::plain(request);
    request.headers_mut().insert(AUTHORIZATION, header);
    Some((again, Signed { session, state, origin }))
}

/// What they do on the way up, from the innermost on.
#[cold]
async fn up(
    mut response: Response,
    again: Again,
    limit: Option<Duration>,
    extensions: &mut Extensions,
    below: Below<'_>,
) -> Result<Response> {
    capture::up(below.source, &mut response);
    let response = refresh::up(response, extensions, limit).await?;
    replay::up(response, again, below.source, extensions, Below { layers: &LAYERS[1..], ..below })
        .await
}
