use http::{Extensions, HeaderName, HeaderValue, header::GetAll};
use reqwest::{Request, Response};
use reqwest_middleware::{Middleware, Next, Result};

use super::{
    SessionSource,
    sent::{Sent, note_outcome},
    source::{Handling, is_left_alone},
};
use crate::{
    event::{CaptureIgnored, Event},
    session::{Captured, Session},
    token::{AccessToken, Trimmed, trim_header},
};

/// Takes a new token off the `Refreshed-API-Token` header of every answer, whatever its status.
///
/// It stands inside everything that turns a status into an error, so that a 404 or 409 renews the
/// token too (apache/airflow#67939). A token is taken only from the session's origins, only for the
/// session that signed the request, and only if the session has had no other token since: a late
/// answer never undoes a newer one. The header's value is marked sensitive, so that nothing outside
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
            if is_left_alone(&request, extensions) {
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
    let (session, generation) = (sent.session.clone(), sent.state.generation());
    if response.headers().contains_key(session.capture_header()) {
        take(&session, generation, response);
    }
}

/// Nobody's request, another session's, or one that went elsewhere: nothing is taken, but nothing
/// is to be printed either.
pub(super) fn conceal_own(source: &SessionSource, response: &mut Response) {
    if let SessionSource::Fixed(session) = source
        && response.headers().contains_key(session.capture_header())
    {
        conceal(session.capture_header(), response);
    }
}

/// A request that is not the session's: nothing is taken from its answer, but nothing of that is to
/// be printed either.
#[cold]
pub(super) async fn unsigned(
    source: &SessionSource,
    request: Request,
    extensions: &mut Extensions,
    next: Next<'_>,
) -> Result<Response> {
    let name = source.find(extensions).ok().map(|session| session.capture_header().clone());
    let mut response = next.run(request, extensions).await?;
    if let Some(name) = name {
        conceal(&name, &mut response);
    }
    Ok(response)
}

#[cold]
fn take(session: &Session, sent: u64, response: &mut Response) {
    conceal(session.capture_header(), response);
    let captured = match read(session, response) {
        Ok(token) => session.capture(sent, &token),
        Err(reason) => return session.emit(&Event::CaptureIgnored { reason }),
    };
    // A rejection that brings a token is superseded by that token, or by a newer one that another
    // answer brought.
    let brought_token = session.generation() != sent;
    if let Some(sent) = response.extensions_mut().get_mut::<Sent>() {
        sent.brought_token = brought_token;
    }
    match captured {
        Captured::Adopted { generation } => {
            note_outcome(response, |outcome| outcome.captured = true);
            session.emit(&Event::Captured { generation });
        }
        Captured::Unchanged => {
            session.emit(&Event::CaptureIgnored { reason: CaptureIgnored::Unchanged });
        }
        Captured::Superseded => {
            session.emit(&Event::CaptureIgnored { reason: CaptureIgnored::Superseded });
        }
    }
}

/// The token in the header, if it is one and comes from where it may.
fn read(
    session: &Session,
    response: &Response,
) -> std::result::Result<AccessToken, CaptureIgnored> {
    if session.origin_of(response.url()).is_none() {
        return Err(CaptureIgnored::UntrustedOrigin);
    }
    token_in(response.headers().get_all(session.capture_header()))
}

/// The one token that all the values agree on.
#[allow(clippy::needless_pass_by_value, reason = "it is what `get_all` gives")]
pub(crate) fn token_in(
    values: GetAll<'_, HeaderValue>,
) -> std::result::Result<AccessToken, CaptureIgnored> {
    let mut values = values.iter();
    let first = values.next().and_then(trim_header).ok_or(CaptureIgnored::Malformed)?;
    if values.any(|other| trim_header(other).as_ref() != Some(&first)) {
        return Err(CaptureIgnored::Malformed);
    }
    match first {
        // A list of several values in one (RFC 9110 §5.3) is no token.
        Trimmed::Token(text) if !text.contains(',') => {
            AccessToken::new(text).map_err(|_| CaptureIgnored::Malformed)
        }
        Trimmed::Token(_) | Trimmed::Nothing => Err(CaptureIgnored::Malformed),
    }
}

fn conceal(name: &HeaderName, response: &mut Response) {
    if let http::header::Entry::Occupied(mut values) = response.headers_mut().entry(name) {
        values.iter_mut().for_each(|value| value.set_sensitive(true));
    }
}
