use http::Extensions;
use reqwest::{Request, Response};
use reqwest_middleware::{Middleware, Next, Result};

use super::{
    SessionSource,
    sent::{Sent, note_outcome},
    source::{Found, Handling},
};
use crate::session::Session;

/// Takes new tokens from every response, whatever its status: from the header
/// `Refreshed-API-Token`, or where [`SessionBuilder::capture`](crate::SessionBuilder::capture) says.
///
/// It stands inside everything that turns a status into an error, so that a 404 or 409 renews the
/// token too (apache/airflow#67939). A token is taken only from the session's origins, only for the
/// session that signed the request, and only if the session has had no other token since: a late
/// response never undoes a newer one. What was captured is marked sensitive, so that nothing outside
/// prints it.
///
/// Unlike [`Refresh`](super::Refresh) it never asks for a token. It needs
/// [`Authorize`](super::Authorize) below it, which notes what was sent.
#[derive(Clone, Debug)]
pub struct Capture {
    source: SessionSource,
}

impl Capture {
    /// Captures for this session.
    pub fn new(source: impl Into<SessionSource>) -> Self {
        Self { source: source.into() }
    }
}

impl Middleware for Capture {
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
            if source.leaves_alone(&request, extensions) {
                return Box::pin(unsigned(source, request, extensions, next)).await;
            }
            let mut response = next.run(request, extensions).await?;
            up(source, &mut response);
            Ok(response)
        })
    }
}

pub(super) fn up(source: &SessionSource, response: &mut Response) {
    conceal_own(source, response);
    let Some(sent) = response.extensions_mut().get_mut::<Sent>() else {
        return;
    };
    if std::mem::replace(&mut sent.captured, true) {
        return;
    }
    let (session, generation) = (sent.session.clone(), sent.signature.generation());
    if session.channels().may_bring(response.headers()) {
        take(&session, generation, response);
    }
}

/// Nobody's request, another session's, or one that went elsewhere: nothing is taken, but nothing
/// is to be printed either.
pub(super) fn conceal_own(source: &SessionSource, response: &mut Response) {
    if let SessionSource::Fixed(session) = source {
        session.channels().conceal(response.headers_mut());
    }
}

/// A request that is not the session's: nothing is taken from its response, but nothing of that is
/// to be printed either.
#[cold]
pub(super) async fn unsigned(
    source: &SessionSource,
    request: Request,
    extensions: &mut Extensions,
    next: Next<'_>,
) -> Result<Response> {
    let session = source.find(extensions).ok().map(Found::into_session);
    let mut response = next.run(request, extensions).await?;
    if let Some(session) = session {
        session.channels().conceal(response.headers_mut());
    }
    Ok(response)
}

#[cold]
fn take(session: &Session, sent: u64, response: &mut Response) {
    session.channels().conceal(response.headers_mut());
    let taken = session.take(sent, response.url(), response.headers());
    // A rejection that brings a token is superseded by that token, or by a newer one that another
    // response brought.
    if let Some(sent) = response.extensions_mut().get_mut::<Sent>() {
        sent.brought_token = taken.replaced;
    }
    if taken.adopted {
        note_outcome(response, |outcome| outcome.captured = true);
    }
}
