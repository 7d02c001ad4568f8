use std::sync::Arc;

use http::{Extensions, header::AUTHORIZATION};
use reqwest::{Request, Response};
use reqwest_middleware::Next;

use super::{Found, Future, Sent, SessionSource, may_be_refusal, middleware, unsent};
use crate::session::State;

/// Puts `Authorization: Bearer …` on requests to the session's origins, and notes which generation of the token it was.
///
/// The innermost of the four. It knows neither expiry nor refusals: those are [`Refresh`](super::Refresh)'s. A request with an
/// `Authorization` of its own, with [`Anonymous`](super::Anonymous), or to another origin passes as it is. A session without a
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
        let (session, origin) = match self.source.signing(&request, extensions) {
            Ok(Some(signing)) => signing,
            Ok(None) => return next.run(request, extensions),
            Err(error) => return unsent(error),
        };
        let state = session.load_full();
        match state.token_to_send() {
            Ok(token) => request.headers_mut().insert(AUTHORIZATION, token.header().clone()),
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
