use std::{
    fmt,
    future::{Future as _, poll_fn},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::Arc,
    task::Poll,
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
    refresh::Answer,
    sent::{Budget, Sent, note_outcome},
    source::{Handling, Pinned},
};
use crate::{
    event::{Event, NotReplayed},
    outcome::Outcome,
    session::{ReplayIf, Session},
};

/// How much of a rejected response's body is read so that its connection can be reused, and for how
/// long.
const DRAIN_BYTES: usize = 64 * 1024;
const DRAIN_TIME: Duration = Duration::from_millis(100);

/// Sends a rejected request once more if the session has another token by then.
///
/// This is the outermost of the four. It checks two things: whether the response is a rejection,
/// and whether the session now holds another token. It does not matter whether
/// [`Refresh`](super::Refresh), [`Capture`](super::Capture) or another request obtained that token.
/// `Replay` never requests a token itself. Unlike a retry, it does not react to transport errors or
/// server failures.
///
/// Requests are replayed whatever their method, because a rejected request was not executed.
/// [`SessionBuilder::replay_if`](crate::SessionBuilder::replay_if) can exclude requests. A buffered
/// body is shared with the replay. A streamed body is sent once, unless the request has a
/// [`ReplayBody`] or the session [buffers bodies](crate::SessionBuilder::buffer_bodies).
///
/// ```
/// use reqwest_middleware::ClientBuilder;
/// use reqwest_reauth::{
///     Authorize, Capture, OAuthRefresh, Refresh, Replay, Session, testing::AuthServer,
/// };
///
/// #[tokio::main]
/// async fn main() -> Result<(), Box<dyn std::error::Error>> {
///     // A test server (feature `test-util`).
///     let server = AuthServer::start().await;
///     let session = Session::builder(server.login())
///         .origin(server.origin())
///         .refresher(OAuthRefresh::new(server.token_endpoint()))
///         .build()?;
///     // `session.wrap(reqwest::Client::new())` does the same in one call.
///     let client = ClientBuilder::new(reqwest::Client::new())
///         .with(Replay::new(session.clone()))
///         .with(Refresh::new(session.clone()))
///         .with(Capture::new(session.clone()))
///         .with(Authorize::new(session))
///         .build();
///
///     // The API rejects the token. The caller sees only the response to the replay.
///     server.expire_now();
///     let response = client.get(server.url("/jobs")).send().await?;
///     assert_eq!(response.status(), 200);
///     assert_eq!(server.api_hits(), 2);
///     assert_eq!(server.token_calls(), 1);
///     Ok(())
/// }
/// ```
///
/// # Defaults
///
/// | setting | default |
/// | --- | --- |
/// | replays of a request | at most one |
/// | [`replay_if`](crate::SessionBuilder::replay_if) | every request |
/// | [`buffer_bodies`](crate::SessionBuilder::buffer_bodies) | off: a streamed body is sent once |
#[derive(Clone, Debug)]
pub struct Replay {
    source: SessionSource,
}

impl Replay {
    /// Replays requests of this session.
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
        // Allocated first, because the request would otherwise be moved twice.
        let room = Box::new_uninit();
        let future: Box<_> = Box::write(room, async move {
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
        });
        Box::into_pin(future)
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
        let sent = response.extensions_mut().remove::<Sent>();
        match after(response.into(), sent, &mut again, extensions) {
            After::Return(response) => return Ok(response),
            After::SendAgain(mut sending) => {
                drain(&mut sending.response).await;
                drop(sending.response);
                let mut pinned = Pinned::to(&sending.resend.session, source, extensions);
                let sent = next.clone().run(sending.request, &mut pinned);
                response = sending.resend.end(sent.await)?;
            }
        }
    }
}

/// What happens to a response.
#[allow(clippy::large_enum_variant, reason = "it is moved into a future at once")]
pub(super) enum After {
    Return(Response),
    SendAgain(SendAgain),
}

/// A request to send again, and the response that the caller does not get.
pub(super) struct SendAgain {
    pub(super) request: Request,
    pub(super) response: Response,
    pub(super) resend: Resend,
}

impl SendAgain {
    fn new(session: Session, request: Request, answer: Answer, why: Why) -> Self {
        let Answer { response, refreshed } = answer;
        let mut before = response.extensions().get::<Outcome>().cloned().unwrap_or_default();
        before.refreshed |= refreshed;
        let resend = Resend { session, status: response.status(), before, why };
        Self { request, response, resend }
    }
}

#[derive(Clone, Copy)]
enum Why {
    /// The API rejected the token, and the session now holds this generation.
    Rejected { generation: u64 },
    /// The API demands a nonce in the proof (RFC 9449 §9). This does not count as a replay, because
    /// the token was not judged.
    #[cfg(feature = "dpop")]
    WantsNonce,
}

/// Decides whether the request is sent again. If it is not, its response gets its [`Outcome`].
pub(super) fn after(
    answer: Answer,
    sent: Option<Sent>,
    again: &mut Again<'_>,
    extensions: &mut Extensions,
) -> After {
    let Some(mut sent) = sent else { return After::Return(answer.noted()) };
    match decide(&mut sent, &answer.response, again, extensions) {
        None => After::Return(answer.noted()),
        Some(Ok((request, why))) => {
            After::SendAgain(SendAgain::new(sent.session, request, answer, why))
        }
        Some(Err(reason)) => After::Return(not_replayed(&sent.session, reason, answer.noted())),
    }
}

/// Returns the request to send again, or why a rejected request is not sent again. `None` means that
/// the response is returned as it is.
fn decide(
    sent: &mut Sent,
    response: &Response,
    again: &mut Again<'_>,
    extensions: &mut Extensions,
) -> Option<std::result::Result<(Request, Why), NotReplayed>> {
    #[cfg(feature = "dpop")]
    if sent.proof == super::sent::Proof::WantsNonce && !again.repeated {
        return Some(with_nonce(&sent.session, response, again));
    }
    if !sent.is_rejected(response) {
        return None;
    }
    let budget = extensions.get_or_insert_default::<Budget>();
    if budget.replayed {
        return Some(Err(NotReplayed::AlreadyReplayed));
    }
    let refresh_failed =
        response.extensions().get::<Outcome>().is_some_and(|done| done.refresh_error.is_some());
    if refresh_failed {
        return None;
    }
    let (generation, has_newer_token) = {
        let state = sent.session.load();
        (state.generation(), state.has_newer_token_than(&sent.signature))
    };
    if !has_newer_token {
        return budget.is_spent().then_some(Err(NotReplayed::AlreadyReplayed));
    }
    let request = match again.request(&sent.session, response.url()) {
        Ok(request) => request,
        Err(reason) => return Some(Err(reason)),
    };
    budget.replayed = true;
    again.repeated = false;
    Some(Ok((request, Why::Rejected { generation })))
}

/// Repeats each send once with a nonce. A server that demands a nonce again would otherwise cause
/// an endless loop (NotASithLord/peerd#301).
#[cfg(feature = "dpop")]
#[cold]
fn with_nonce(
    session: &Session,
    response: &Response,
    again: &mut Again<'_>,
) -> std::result::Result<(Request, Why), NotReplayed> {
    again.repeated = true;
    let request = again.request(session, response.url())?;
    session.telemetry().nonce_repeat();
    Ok((request, Why::WantsNonce))
}

/// What is kept of the first response while the request is sent again.
pub(super) struct Resend {
    pub(super) session: Session,
    status: StatusCode,
    before: Outcome,
    why: Why,
}

impl Resend {
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

/// Adds the rejection to the error of a replay that was not sent, for example because the session
/// was closed in the meantime.
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

/// Reads a short rest of the body, so that the connection can be reused.
#[allow(clippy::disallowed_methods, reason = "nothing is decided by it")]
pub(super) async fn drain(response: &mut Response) {
    let mut read = pin!(async {
        let mut left = DRAIN_BYTES;
        while let Ok(Some(chunk)) = response.chunk().await
            && let Some(rest) = left.checked_sub(chunk.len())
        {
            left = rest;
        }
    });
    // Most of these bodies have arrived with their head, and need no timer.
    let has_ended = poll_fn(|context| Poll::Ready(read.as_mut().poll(context).is_ready())).await;
    if !has_ended {
        let _ = timeout(DRAIN_TIME, read).await;
    }
}

/// The material for sending a request again.
pub(super) struct Again<'a> {
    pub(super) copy: &'a Copy,
    pub(super) body: Option<ReplayBody>,
    /// Whether the last send was repeated with a nonce.
    #[cfg_attr(not(feature = "dpop"), allow(dead_code))]
    pub(super) repeated: bool,
}

impl<'a> Again<'a> {
    /// Copies the request before it is sent, because `reqwest` takes it by value.
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

    /// `answered` is the URL of the response that the caller does not get.
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

/// Gives a request without a body its first body from its [`ReplayBody`], even if the request will
/// not be replayed.
pub(super) fn give_first_body(request: &mut Request, extensions: &Extensions) -> Result<()> {
    if request.body().is_none()
        && let Some(body) = extensions.get::<ReplayBody>()
    {
        *request.body_mut() = Some(body.make().map_err(Error::middleware)?);
    }
    Ok(())
}

/// A request extension that produces a fresh body for every attempt, so that streamed uploads can
/// be replayed.
///
/// If the request has a body, that body is sent first. If it has none, the first body comes from
/// the closure too. Such a request passes through an outer retry that rejects streams.
///
/// Do not use it for a `multipart::Form`: each form has a random boundary, which would not match
/// the request's `Content-Type`. The guide has a [recipe for multipart
/// forms](crate::guide::recipes#multipart-forms-that-can-be-replayed).
///
/// ```no_run
/// use reqwest_reauth::{OAuthRefresh, ReplayBody, Session, Tokens};
///
/// #[tokio::main]
/// async fn main() -> Result<(), Box<dyn std::error::Error>> {
///     let tokens = Tokens::new("access-token")?.with_refresh_token("refresh-token")?;
///     let session = Session::builder(tokens)
///         .origin("https://api.example.com")
///         .refresher(OAuthRefresh::new("https://api.example.com/oauth/token"))
///         .build()?;
///     let client = session.wrap(reqwest::Client::new());
///
///     let upload = ReplayBody::try_new(|| Ok(std::fs::read("report.pdf")?.into()));
///     client.put("https://api.example.com/report").with_extension(upload).send().await?;
///     Ok(())
/// }
/// ```
#[derive(Clone)]
pub struct ReplayBody(Arc<dyn Fn() -> io::Result<Body> + Send + Sync>);

impl ReplayBody {
    /// Calls the closure. A panic becomes an error.
    fn make(&self) -> io::Result<Body> {
        catch_unwind(AssertUnwindSafe(|| (self.0)()))
            .unwrap_or_else(|_| Err(io::Error::other("the closure of a ReplayBody panicked")))
    }

    /// Takes bodies from a closure that cannot fail.
    pub fn new(make: impl Fn() -> Body + Send + Sync + 'static) -> Self {
        Self::try_new(move || Ok(make()))
    }

    /// Takes bodies from a closure that can fail. If it fails for a replay, the caller gets the
    /// rejected response, with [`NotReplayed::BodyNotReplayable`] in its [`Outcome`].
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

    /// The clock is paused, so only the number of bytes ends the reading.
    #[tokio::test(start_paused = true)]
    async fn a_rejections_body_is_read_for_64_kib() {
        const CHUNK: usize = 4096;
        let read = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&read);
        let chunks = stream::repeat(vec![b'x'; CHUNK]).take(1000).map(move |chunk| {
            counted.fetch_add(chunk.len(), Ordering::Relaxed);
            Ok::<_, io::Error>(chunk)
        });
        drain(&mut http::Response::new(Body::wrap_stream(chunks)).into()).await;
        let read = read.load(Ordering::Relaxed);
        assert!(read >= DRAIN_BYTES, "{read}");
        assert!(read <= DRAIN_BYTES + 2 * CHUNK, "{read}");
    }
}
