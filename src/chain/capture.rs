use http::Extensions;
use reqwest::{Request, Response};
use reqwest_middleware::{Middleware, Next, Result};

use super::{
    SessionSource,
    sent::{Sent, note_outcome},
    source::{Found, Handling},
};

/// Captures new tokens from every response, whatever its status: from the header
/// `Refreshed-API-Token`, or as set with
/// [`SessionBuilder::capture`](crate::SessionBuilder::capture).
///
/// It must be inside any middleware that turns a status into an error, so that a 404 or 409 can
/// carry a new token too (apache/airflow#67939). A token is captured only from the session's
/// origins, only if the same session signed the request, and only if the session has received no
/// other token since the request was sent: a late response never undoes a newer token. The captured
/// header is marked sensitive to keep it out of logs.
///
/// Unlike [`Refresh`](super::Refresh), it never requests a token. It needs
/// [`Authorize`](super::Authorize) below it, which records what was sent.
///
/// ```
/// use reqwest_middleware::ClientBuilder;
/// use reqwest_reauth::{Authorize, Capture, Outcome, Session, testing::AuthServer};
///
/// #[tokio::main]
/// async fn main() -> Result<(), Box<dyn std::error::Error>> {
///     // A test server (feature `test-util`).
///     let server = AuthServer::start().await;
///     let session = Session::builder(server.login()).origin(server.origin()).build()?;
///     let client = ClientBuilder::new(reqwest::Client::new())
///         .with(Capture::new(session.clone()))
///         .with(Authorize::new(session.clone()))
///         .build();
///
///     // The next response carries a new token in `Refreshed-API-Token`.
///     server.reissue_next(1);
///     let response = client.get(server.url("/jobs")).send().await?;
///     assert!(response.extensions().get::<Outcome>().is_some_and(|outcome| outcome.captured));
///     Ok(())
/// }
/// ```
///
/// # Defaults
///
/// | setting | default |
/// | --- | --- |
/// | [`SessionBuilder::capture`](crate::SessionBuilder::capture) | the response header `Refreshed-API-Token` |
#[derive(Clone, Debug)]
pub struct Capture {
    source: SessionSource,
}

impl Capture {
    /// Captures tokens for this session.
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
        // Allocated first, because the request would otherwise be moved twice.
        let room = Box::new_uninit();
        let future: Box<_> = Box::write(room, async move {
            if source.leaves_alone(&request, extensions) {
                return Box::pin(unsigned(source, request, extensions, next)).await;
            }
            let mut response = next.run(request, extensions).await?;
            conceal_own(source, &mut response);
            Sent::look(&mut response, take_from);
            Ok(response)
        });
        Box::into_pin(future)
    }
}

/// Takes the token that a response may bring.
pub(super) fn take_from(sent: &mut Sent, response: &mut Response) {
    if std::mem::replace(&mut sent.captured, true) {
        return;
    }
    if sent.session.channels().may_bring(response.headers()) {
        take(sent, response);
    }
}

/// The response does not belong to this session, so its header is not captured. It is still marked
/// sensitive to keep it out of logs.
pub(super) fn conceal_own(source: &SessionSource, response: &mut Response) {
    if let SessionSource::Fixed(session) = source {
        session.channels().conceal(response.headers_mut());
    }
}

/// Sends a request that the session does not sign. The header of its response is not captured, but
/// still marked sensitive.
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
fn take(sent: &mut Sent, response: &mut Response) {
    let session = &sent.session;
    session.channels().conceal(response.headers_mut());
    let taken = session.take(sent.signature.generation(), response.url(), response.headers());
    // A rejection that carries a new token is superseded by that token, or by a newer one from
    // another response.
    sent.brought_token = taken.replaced;
    if taken.adopted {
        note_outcome(response, |outcome| outcome.captured = true);
    }
}
