use std::sync::Arc;

use http::{
    Extensions,
    header::{AUTHORIZATION, Entry},
};
use reqwest::{Request, Response};
use reqwest_middleware::Next;

use super::{Found, Future, Sent, SessionSource, is_left_alone, may_be_refusal, middleware, unsent};
use crate::{anonymous::Anonymous, error::Error, session::State};

/// Puts `Authorization: Bearer …` on requests to the session's origins, and notes which generation of the token it was.
///
/// The innermost of the four. It knows neither expiry nor refusals: those are [`Refresh`](super::Refresh)'s. A request with an
/// `Authorization` of its own, with [`Anonymous`], or to another origin passes as it is. A session without a
/// token, or a closed one, fails the request unsent.
///
/// ```
/// # use reqwest_reauth::{Error, Session, Tokens};
/// use reqwest_middleware::ClientBuilder;
/// use reqwest_reauth::Authorize;
///
/// # fn main() -> Result<(), Error> {
/// let session = Session::builder(Tokens::new("token")?).origin("https://api.example.com").build()?;
/// let client = ClientBuilder::new(reqwest::Client::new()).with(Authorize::new(session)).build();
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Authorize {
    source: SessionSource,
}

middleware!(Authorize, down);

impl Authorize {
    /// Signs with the token of this session.
    pub fn new(source: impl Into<SessionSource>) -> Self {
        Self { source: source.into() }
    }

    fn down<'a>(&'a self, mut request: Request, extensions: &'a mut Extensions, next: Next<'a>) -> Future<'a> {
        let (session, origin, state) = match self.sign(&mut request, extensions) {
            Ok(Some(signed)) => signed,
            Ok(None) => return next.run(request, extensions),
            // The caller's own header is sent whatever speaks against ours.
            Err(_) if is_left_alone(&request, extensions) => return next.run(request, extensions),
            Err(error) => return unsent(error),
        };
        let answer = next.run(request, extensions);
        Box::pin(async move {
            let mut response = answer.await?;
            if needs_note(&session, &state, &response) {
                leave_note(session, state, origin, &mut response);
            }
            Ok(response)
        })
    }

    /// Puts the header on, unless the request is none of ours.
    fn sign(&self, request: &mut Request, extensions: &Extensions) -> Result<Option<(Found<'_>, usize, Arc<State>)>, Error> {
        if extensions.get::<Anonymous>().is_some() {
            return Ok(None);
        }
        let Some((session, origin)) = self.source.for_origin(request, extensions)? else { return Ok(None) };
        let state = session.load_full();
        let header = state.token_to_send()?.header();
        // One look for the caller's own header and for the place of ours.
        match request.headers_mut().entry(AUTHORIZATION) {
            Entry::Occupied(_) => return Ok(None),
            Entry::Vacant(place) => place.insert(header.clone()),
        };
        Ok(Some((session, origin, state)))
    }
}

/// Whether one of the others has to look at this answer. Almost none is.
fn needs_note(session: &Found<'_>, state: &State, response: &Response) -> bool {
    may_be_refusal(response.status())
        || state.is_on_probation()
        || session.rejected_if().is_some()
        || response.headers().contains_key(session.capture_header())
}

#[cold]
fn leave_note(session: Found<'_>, state: Arc<State>, origin: usize, response: &mut Response) {
    response.extensions_mut().insert(Sent {
        session: session.into_session(),
        state,
        origin,
        brought_token: false,
        refused: None,
        captured: false,
        refreshed: false,
    });
}
