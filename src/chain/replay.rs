use std::{
    fmt,
    future::Future,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use http::{Extensions, StatusCode};
use reqwest::{Body, Request, Response};
use reqwest_middleware::{Error, Middleware, Next, Result};
use tokio::time::timeout;
use url::Url;

use super::{
    SessionSource, buffer,
    copy::Copy,
    sent::{Budget, Sent, note_outcome},
    source::{Handling, Pinned},
};
use crate::{
    event::{Event, NotReplayed},
    outcome::Outcome,
    session::{ReplayIf, Session},
};

/// How much of a rejected answer's body is read on, so that its connection can be used again, and
/// for how long.
const DRAIN_BYTES: usize = 64 * 1024;
const DRAIN_TIME: Duration = Duration::from_millis(100);

/// Sends a request once more when the token that was rejected is no longer the session's.
///
/// The outermost of the four. Its question is only: was this answer a rejection, and has the
/// session another token now? Who brought it, [`Refresh`](super::Refresh),
/// [`Capture`](super::Capture) or another request, is all the same to it. It never asks for a token
/// itself, and unlike a retry it does nothing about transport errors or a server's failures.
///
/// Every method is sent again: a rejection means that the request was not executed.
/// [`SessionBuilder::replay_if`](crate::SessionBuilder::replay_if) can say no. A buffered body is
/// shared with the copy. A streamed one is sent once, and never again without a [`ReplayBody`].
#[derive(Clone, Debug)]
pub struct Replay {
    source: SessionSource,
}

impl Replay {
    /// Replays for this session.
    pub fn new(source: impl Into<SessionSource>) -> Self {
        Self { source: source.into() }
    }
}

impl Middleware for Replay {
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
            if source.leaves_alone(&request, extensions) {
                give_first_body(&mut request, extensions)?;
                return next.run(request, extensions).await;
            }
            if buffer::is_stream(&request) {
                Box::pin(buffer::read(source, &mut request, extensions)).await?;
            }
            let mut copy = Copy::default();
            let again = Again::of(&mut request, extensions, &mut copy)?;
            let response = next.clone().run(request, &mut *extensions).await?;
            if response.extensions().get::<Sent>().is_none() {
                return Ok(response);
            }
            Box::pin(up(response, again, source, extensions, next)).await
        })
    }
}

#[cold]
async fn up(
    mut response: Response,
    mut again: Again<'_>,
    source: &SessionSource,
    extensions: &mut Extensions,
    next: Next<'_>,
) -> Result<Response> {
    loop {
        match after(response, &mut again, extensions) {
            After::Return(response) => return Ok(response),
            After::SendAgain(sending) => {
                let (request, sending, drained) = sending.begin();
                drained.await;
                let mut pinned = Pinned::to(&sending.session, source, extensions);
                response = sending.end(next.clone().run(request, &mut pinned).await)?;
            }
        }
    }
}

/// What is done with a response.
pub(super) enum After {
    Return(Response),
    SendAgain(Box<SendAgain>),
}

/// A request that is sent again, and the response that is not the caller's.
pub(super) struct SendAgain {
    session: Session,
    request: Request,
    response: Response,
    why: Why,
}

#[derive(Clone, Copy)]
enum Why {
    /// The API rejected the token, and the session has this generation now.
    Rejected { generation: u64 },
    /// The API wants a nonce in the proof (RFC 9449 §9). This is no replay: the token was not
    /// judged.
    #[cfg(feature = "dpop")]
    WantsNonce,
}

/// Decides whether the request is sent again.
pub(super) fn after(
    mut response: Response,
    again: &mut Again<'_>,
    extensions: &mut Extensions,
) -> After {
    let Some(mut sent) = response.extensions_mut().remove::<Sent>() else {
        return After::Return(response);
    };
    #[cfg(feature = "dpop")]
    if sent.proof == super::sent::Proof::WantsNonce && !again.repeated {
        return with_nonce(sent.session, response, again);
    }
    if !sent.is_rejected(&mut response) {
        return After::Return(response);
    }
    let session = sent.session;
    let budget = extensions.get_or_insert_default::<Budget>();
    if budget.replayed {
        return After::Return(not_replayed(&session, NotReplayed::AlreadyReplayed, response));
    }
    let refresh_failed =
        response.extensions().get::<Outcome>().is_some_and(|done| done.refresh_error.is_some());
    let state = session.load_full();
    if refresh_failed || !state.has_newer_token_than(&sent.signature) {
        let is_spent = !refresh_failed && budget.is_spent();
        return After::Return(if is_spent {
            not_replayed(&session, NotReplayed::AlreadyReplayed, response)
        } else {
            response
        });
    }
    let request = match again.request(&session, response.url()) {
        Ok(request) => request,
        Err(reason) => return After::Return(not_replayed(&session, reason, response)),
    };
    budget.replayed = true;
    again.repeated = false;
    let why = Why::Rejected { generation: state.generation() };
    After::SendAgain(Box::new(SendAgain { session, request, response, why }))
}

/// Once for each send: a server that asks again is not asked for ever (NotASithLord/peerd#301).
#[cfg(feature = "dpop")]
#[cold]
fn with_nonce(session: Session, response: Response, again: &mut Again<'_>) -> After {
    again.repeated = true;
    match again.request(&session, response.url()) {
        Ok(request) => {
            session.telemetry().nonce_repeat();
            let why = Why::WantsNonce;
            After::SendAgain(Box::new(SendAgain { session, request, response, why }))
        }
        Err(reason) => After::Return(not_replayed(&session, reason, response)),
    }
}

impl SendAgain {
    /// The request that is to be sent, once the response has been read to its end.
    pub(super) fn begin(self) -> (Request, SendingAgain, impl Future<Output = ()> + Send) {
        let Self { session, request, response, why } = self;
        let before = response.extensions().get::<Outcome>().cloned().unwrap_or_default();
        let status = response.status();
        (request, SendingAgain { session, status, before, why }, drain(response))
    }
}

/// What is remembered of the first response while the request is out again.
pub(super) struct SendingAgain {
    pub(super) session: Session,
    status: StatusCode,
    before: Outcome,
    why: Why,
}

impl SendingAgain {
    pub(super) fn end(self, result: Result<Response>) -> Result<Response> {
        let Self { session, status, before, why } = self;
        let mut response = result.map_err(|error| with_rejection(error, status))?;
        let replayed = match why {
            Why::Rejected { generation } => {
                session.emit(&Event::Replayed { generation, status: response.status() });
                true
            }
            #[cfg(feature = "dpop")]
            Why::WantsNonce if !before.is_something() => return Ok(response),
            #[cfg(feature = "dpop")]
            Why::WantsNonce => before.replayed,
        };
        note_outcome(&mut response, |outcome| {
            outcome.replayed |= replayed;
            outcome.captured |= before.captured;
            outcome.refreshed |= before.refreshed;
        });
        Ok(response)
    }
}

/// The session was closed, say, while the rejection was read to its end: the request was not sent
/// again, but it was once.
#[cold]
fn with_rejection(error: Error, rejection: StatusCode) -> Error {
    match error {
        Error::Middleware(error) => match error.downcast::<crate::Error>() {
            Ok(error) => error.with_api_status(rejection).into(),
            Err(other) => Error::Middleware(other),
        },
        error @ Error::Reqwest(_) => error,
    }
}

fn not_replayed(session: &Session, reason: NotReplayed, mut response: Response) -> Response {
    note_outcome(&mut response, |outcome| outcome.not_replayed = Some(reason));
    session.emit(&Event::NotReplayed { reason });
    response
}

/// Keeps the connection, where a little reading is all that it takes.
#[allow(clippy::disallowed_methods, reason = "nothing is decided by it")]
async fn drain(mut response: Response) {
    let read = async {
        let mut left = DRAIN_BYTES;
        while let Ok(Some(chunk)) = response.chunk().await
            && let Some(rest) = left.checked_sub(chunk.len())
        {
            left = rest;
        }
    };
    let _ = timeout(DRAIN_TIME, read).await;
}

/// What a request is sent again from.
pub(super) struct Again<'a> {
    pub(super) copy: &'a Copy,
    pub(super) body: Option<ReplayBody>,
    /// The last send has been repeated with a nonce.
    #[cfg_attr(not(feature = "dpop"), allow(dead_code))]
    pub(super) repeated: bool,
}

impl<'a> Again<'a> {
    /// `reqwest` takes the request by value, so that the copy has to be made beforehand.
    pub(super) fn of(
        request: &mut Request,
        extensions: &Extensions,
        copy: &'a mut Copy,
    ) -> Result<Self> {
        let Some(body) = extensions.get::<ReplayBody>() else {
            copy.fill(request);
            return Ok(Self::from(copy));
        };
        let first = request.body_mut().take();
        copy.fill(request);
        *request.body_mut() = first;
        give_first_body(request, extensions)?;
        Ok(Self { body: Some(body.clone()), ..Self::from(copy) })
    }

    /// `answered`: the URL of the response that is not the caller's.
    fn request(
        &self,
        session: &Session,
        answered: &Url,
    ) -> std::result::Result<Request, NotReplayed> {
        let mut request = self.copy.request(answered).ok_or(NotReplayed::BodyNotReplayable)?;
        let allows =
            |rule: &ReplayIf| catch_unwind(AssertUnwindSafe(|| rule(&request))).unwrap_or(true);
        if session.replay_if().is_some_and(|rule| !allows(rule)) {
            return Err(NotReplayed::RuledOut);
        }
        if let Some(body) = &self.body {
            let body = body.make().map_err(|error| {
                tracing::warn!(target: "reqwest_reauth", %error, "no fresh body for the replay");
                NotReplayed::BodyNotReplayable
            })?;
            *request.body_mut() = Some(body);
        }
        Ok(request)
    }
}

impl<'a> From<&'a mut Copy> for Again<'a> {
    fn from(copy: &'a mut Copy) -> Self {
        Self { copy, body: None, repeated: false }
    }
}

/// A request without a body of its own gets its first from its [`ReplayBody`], also where it will
/// not be sent again.
pub(super) fn give_first_body(request: &mut Request, extensions: &Extensions) -> Result<()> {
    if request.body().is_none()
        && let Some(body) = extensions.get::<ReplayBody>()
    {
        *request.body_mut() = Some(body.make().map_err(Error::middleware)?);
    }
    Ok(())
}

/// Put among a request's extensions, makes its body anew when it is sent again: for streams, files
/// and multipart forms.
///
/// The request's own body, if it has one, is the first that is sent. Without one, the first is made
/// here too, so that a request passes through an outer retry that refuses streams.
///
/// ```no_run
/// # async fn f(client: reqwest_middleware::ClientWithMiddleware) -> reqwest_middleware::Result<()> {
/// use reqwest_reauth::ReplayBody;
///
/// let upload = ReplayBody::try_new(|| Ok(std::fs::read("report.pdf")?.into()));
/// client.put("https://api.example.com/report").with_extension(upload).send().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct ReplayBody(Arc<dyn Fn() -> io::Result<Body> + Send + Sync>);

impl ReplayBody {
    /// A panic of the closure is an error like any other.
    fn make(&self) -> io::Result<Body> {
        catch_unwind(AssertUnwindSafe(|| (self.0)()))
            .unwrap_or_else(|_| Err(io::Error::other("the closure of a ReplayBody panicked")))
    }

    /// Bodies from a closure that cannot fail.
    pub fn new(make: impl Fn() -> Body + Send + Sync + 'static) -> Self {
        Self::try_new(move || Ok(make()))
    }

    /// Bodies from a closure that can fail. If it fails when the request is to be sent again, the
    /// caller gets the rejection, with [`NotReplayed::BodyNotReplayable`] in its [`Outcome`].
    pub fn try_new(make: impl Fn() -> io::Result<Body> + Send + Sync + 'static) -> Self {
        Self(Arc::new(make))
    }
}

impl fmt::Debug for ReplayBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ReplayBody(..)")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::{StreamExt as _, stream};

    use super::*;

    /// The time does not run: the number of bytes alone ends it.
    #[tokio::test(start_paused = true)]
    async fn a_rejections_body_is_read_for_64_kib() {
        const CHUNK: usize = 4096;
        let read = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&read);
        let chunks = stream::repeat(vec![b'x'; CHUNK]).take(1000).map(move |chunk| {
            counted.fetch_add(chunk.len(), Ordering::Relaxed);
            Ok::<_, io::Error>(chunk)
        });
        drain(http::Response::new(Body::wrap_stream(chunks)).into()).await;
        let read = read.load(Ordering::Relaxed);
        assert!(read >= DRAIN_BYTES, "{read}");
        assert!(read <= DRAIN_BYTES + 2 * CHUNK, "{read}");
    }
}
