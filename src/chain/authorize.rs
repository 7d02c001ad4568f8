use std::future::ready;

use http::{Extensions, header::Entry};
use reqwest::Request;
use reqwest_middleware::{Middleware, Next, Result};

#[cfg(feature = "dpop")]
use super::proof;
use super::{SessionSource, signed::Signed, source::Handling};
use crate::{anonymous::Anonymous, error::Error, session::Session, telemetry::request_failed};

/// Attaches the token to requests to the session's origins, in the session's
/// [`Placement`](crate::Placement), and records which generation of the token was sent.
///
/// This is the innermost of the four. It does not check expiry and does not react to rejected
/// tokens; [`Refresh`](super::Refresh) does. A request passes unchanged if it has its own
/// `Authorization` header, has [`Anonymous`], or goes to another origin. If the session has no
/// token or is closed, the request fails without being sent.
///
/// ```
/// use reqwest_middleware::ClientBuilder;
/// use reqwest_reauth::{Authorize, Session, Tokens, testing::AuthServer};
///
/// #[tokio::main]
/// async fn main() -> Result<(), Box<dyn std::error::Error>> {
///     // A test server (feature `test-util`).
///     let server = AuthServer::start().await;
///     let session = Session::builder(server.login()).origin(server.origin()).build()?;
///     let client =
///         ClientBuilder::new(reqwest::Client::new()).with(Authorize::new(session)).build();
///
///     let response = client.get(server.url("/jobs")).send().await?;
///     assert_eq!(response.status(), 200);
///     Ok(())
/// }
/// ```
#[derive(Clone, Debug)]
pub struct Authorize {
    source: SessionSource,
}

impl Authorize {
    /// Attaches the token of this session.
    pub fn new(source: impl Into<SessionSource>) -> Self {
        Self { source: source.into() }
    }
}

impl Middleware for Authorize {
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
        send(&self.source, request, extensions, next)
    }
}

/// Not an `async fn`, which would store each argument twice in its future.
pub(super) fn send<'a>(
    source: &'a SessionSource,
    mut request: Request,
    extensions: &'a mut Extensions,
    next: Next<'a>,
) -> Handling<'a> {
    // Allocated first, because the request would otherwise be moved twice.
    let room = Box::new_uninit();
    let future: Box<_> = Box::write(room, async move {
        let signed = match sign(source, &mut request, extensions) {
            Ok(signed) => signed,
            Err(error) => unsigned(source, &request, extensions, error)?,
        };
        let Some(signed) = signed else {
            return next.run(request, extensions).await;
        };
        #[cfg(feature = "dpop")]
        if signed.session.dpop().is_some() {
            return Box::pin(proof::send(signed, request, extensions, next)).await;
        }
        let mut response = next.run(request, extensions).await?;
        if let Some(sent) = signed.inspect(&response) {
            response.extensions_mut().insert(sent);
        }
        Ok(response)
    });
    Box::into_pin(future)
}

/// Starts to send a request at once, without memory of its own. The response must be
/// [inspected](Signed::inspect) if there is something to inspect it with.
pub(super) fn start<'a: 'b, 'b>(
    source: &'a SessionSource,
    mut request: Request,
    extensions: &'b mut Extensions,
    next: Next<'b>,
) -> (Option<Signed<'a>>, Handling<'b>) {
    let signed = sign(source, &mut request, extensions)
        .or_else(|error| unsigned(source, &request, extensions, error));
    match signed {
        #[cfg(feature = "dpop")]
        Ok(Some(signed)) if signed.session.dpop().is_some() => {
            (None, Box::pin(proof::send(signed, request, extensions, next)))
        }
        Ok(signed) => (signed, next.run(request, extensions)),
        Err(error) => (None, Box::pin(ready(Err(error)))),
    }
}

/// Handles a request that the session cannot sign. If the caller has set the header, the request is
/// sent with it; otherwise it fails.
#[cold]
fn unsigned<'a>(
    source: &SessionSource,
    request: &Request,
    extensions: &Extensions,
    error: Error,
) -> Result<Option<Signed<'a>>> {
    if source.leaves_alone(request, extensions) {
        return Ok(None);
    }
    let session = source.find(extensions).ok();
    request_failed(session.as_deref().map(Session::telemetry), error.kind());
    Err(error.into())
}

/// Sets the header, unless the request does not concern the session.
fn sign<'a>(
    source: &'a SessionSource,
    request: &mut Request,
    extensions: &Extensions,
) -> std::result::Result<Option<Signed<'a>>, Error> {
    if extensions.get::<Anonymous>().is_some() {
        return Ok(None);
    }
    let Some((session, origin)) = source.for_origin(request, extensions)? else {
        return Ok(None);
    };
    let placement = session.placement();
    let overrides = session.overrides_authorization();
    let taken = placement.is_taken_by_userinfo(request.url()) && !overrides;
    // A single lookup checks for the caller's own header and finds the place for ours.
    let state = session.load();
    match request.headers_mut().entry(placement.name()) {
        Entry::Vacant(place) if !taken => {
            place.insert(state.header_to_send()?.clone());
        }
        Entry::Occupied(mut own) if overrides => {
            own.insert(state.header_to_send()?.clone());
        }
        Entry::Vacant(_) | Entry::Occupied(_) => {
            source.tell_own_header(request, extensions);
            return Ok(None);
        }
    }
    let signature = state.signature();
    #[cfg(feature = "dpop")]
    let proving = session.dpop().and(state.token_to_send().ok().cloned());
    drop(state);
    Ok(Some(Signed {
        session,
        signature,
        origin,
        #[cfg(feature = "dpop")]
        proving,
    }))
}
