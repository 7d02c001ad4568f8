//! The four middleware, and the order they stand in.
//!
//! ```text
//! Replay → Refresh → Capture → Authorize → the connection
//! ```
//!
//! A client that has them all, and nothing between them, has them in one middleware, [`Chain`].
//!
//! On the way down they do as little as they can: nothing that a request which is not rejected has
//! to pay for. On the way up they learn what was sent from the [`Sent`] note, which [`Authorize`]
//! leaves in the answer's extensions only when somebody needs it.

mod all;
mod authorize;
mod capture;
mod refresh;
mod replay;

use std::{ops::Deref, sync::Arc};

use http::{Extensions, StatusCode, header::AUTHORIZATION};
use reqwest::{Request, Response};
use reqwest_middleware::{ClientBuilder, Next};

use self::all::Chain;
#[cfg(fuzzing)]
pub(crate) use self::capture::token_in;
pub use self::{
    authorize::Authorize,
    capture::Capture,
    refresh::Refresh,
    replay::{Replay, ReplayBody},
};
use crate::{
    anonymous::Anonymous,
    error::{Error, ErrorKind},
    outcome::Outcome,
    policy,
    session::{Session, State},
};

/// Adds the whole chain to a client.
pub trait ClientBuilderExt: Sized {
    /// Adds [`Replay`], [`Refresh`], [`Capture`] and [`Authorize`], in this order, for one session.
    ///
    /// They are added as one middleware, at half the cost of the four one by one
    /// ([`with`](ClientBuilder::with)), which leave room for others between them.
    fn with_session(self, session: Session) -> Self;

    /// Adds the same four for the session of the task that sends: see [`Session::scope`].
    fn with_scoped_sessions(self) -> Self;
}

impl ClientBuilderExt for ClientBuilder {
    fn with_session(self, session: Session) -> Self {
        self.with(Chain { source: SessionSource::Fixed(session) })
    }

    fn with_scoped_sessions(self) -> Self {
        self.with(Chain { source: SessionSource::Scoped })
    }
}

/// Where a middleware finds its session. A [`Session`] among the request's extensions goes before
/// either.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum SessionSource {
    /// This one, whatever the task's.
    Fixed(Session),
    /// The task's, see [`Session::scope`].
    Scoped,
}

impl From<Session> for SessionSource {
    fn from(session: Session) -> Self {
        Self::Fixed(session)
    }
}

/// Changes the outcome that an answer carries.
fn note_outcome(response: &mut Response, change: impl FnOnce(&mut Outcome)) {
    change(response.extensions_mut().get_or_insert_default());
}

/// What a logical request has spent. It lives in the request's extensions, which an outer retry
/// keeps.
#[derive(Clone, Copy, Default)]
struct Budget {
    /// It has started a refresh in the background. It may wait for that one.
    renewing: bool,
    refreshed: bool,
    replayed: bool,
}

/// How a request was sent: left by [`Authorize`] in answers that one of the others has to look at.
#[derive(Clone)]
struct Sent {
    session: Session,
    /// The session's state at that time.
    state: Arc<State>,
    /// Which of the session's origins it was sent to.
    origin: usize,
    /// The answer brought a token that the session now has, or one newer still.
    brought_token: bool,
    /// Whether the answer is a rejection, once it is known.
    rejected: Option<bool>,
    /// A [`Capture`] has looked at the answer. An outer one, of another chain, has nothing to add.
    captured: bool,
}

impl Sent {
    /// Whether the API refuses the token with this answer. Asked once for each answer, and
    /// remembered.
    fn is_rejected(&mut self, response: &mut Response) -> bool {
        if let Some(rejected) = self.rejected {
            return rejected;
        }
        let rejected = self.judge(response);
        self.rejected = Some(rejected);
        if let Some(note) = response.extensions_mut().get_mut::<Sent>() {
            note.rejected = Some(rejected);
        }
        rejected
    }

    fn judge(&self, response: &Response) -> bool {
        // A redirect across origins has lost the token: what answers there has not rejected it.
        if !self.session.is_of_origin(self.origin, response.url()) {
            return false;
        }
        let expired = self.state.is_expired(tokio::time::Instant::now());
        let verdict = policy::is_rejection(
            response.status(),
            response.headers(),
            self.brought_token,
            expired,
        );
        match self.session.rejected_if() {
            Some(rule) => rule(response, verdict),
            None => verdict.rejected,
        }
    }
}

/// Whether an answer with this status can be a rejection by the built-in rule.
fn may_be_rejection(status: StatusCode) -> bool {
    matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
}

/// A middleware's own session, or one that the request or the task brought.
enum Found<'a> {
    Own(&'a Session),
    Brought(Session),
}

impl Found<'_> {
    fn into_session(self) -> Session {
        match self {
            Self::Own(session) => session.clone(),
            Self::Brought(session) => session,
        }
    }
}

impl Deref for Found<'_> {
    type Target = Session;

    fn deref(&self) -> &Session {
        match self {
            Self::Own(session) => session,
            Self::Brought(session) => session,
        }
    }
}

impl SessionSource {
    /// The session for a request.
    fn find(&self, extensions: &Extensions) -> Result<Found<'_>, Error> {
        if let Some(session) = extensions.get::<Session>() {
            return Ok(Found::Brought(session.clone()));
        }
        match self {
            Self::Fixed(session) => Ok(Found::Own(session)),
            Self::Scoped => Session::current()
                .map(Found::Brought)
                .ok_or_else(|| Error::of(ErrorKind::NoSession)),
        }
    }

    /// The session that is to sign this request, and which of its origins the request goes to.
    /// `None` for a request that is none of ours: it has an `Authorization` of its own, is
    /// anonymous, or goes elsewhere.
    fn signing(
        &self,
        request: &Request,
        extensions: &Extensions,
    ) -> Result<Option<(Found<'_>, usize)>, Error> {
        if is_left_alone(request, extensions) {
            return Ok(None);
        }
        self.for_origin(request, extensions)
    }

    /// Likewise, whether the request is left alone or not.
    fn for_origin(
        &self,
        request: &Request,
        extensions: &Extensions,
    ) -> Result<Option<(Found<'_>, usize)>, Error> {
        let session = self.find(extensions)?;
        let origin = session.origin_of(request.url());
        Ok(origin.map(|origin| (session, origin)))
    }
}

/// Sends a request that has waited, for the session that it had before: a future that tasks share
/// may by now be polled by another one, whose scope says otherwise.
async fn run_for(
    session: Session,
    source: &SessionSource,
    request: Request,
    extensions: &mut Extensions,
    below: Below<'_>,
) -> reqwest_middleware::Result<Response> {
    if matches!(source, SessionSource::Fixed(_)) || extensions.get::<Session>().is_some() {
        drop(session);
        return below.run(request, extensions).await;
    }
    extensions.insert(session);
    let marked = Marked(extensions);
    below.run(request, &mut *marked.0).await
}

/// Extensions with a session that is there for this sending alone, also for one that is dropped
/// halfway.
struct Marked<'a>(&'a mut Extensions);

impl Drop for Marked<'_> {
    fn drop(&mut self) {
        self.0.remove::<Session>();
    }
}

/// The caller's own `Authorization` wins, and so does [`Anonymous`].
fn is_left_alone(request: &Request, extensions: &Extensions) -> bool {
    request.headers().contains_key(AUTHORIZATION) || extensions.get::<Anonymous>().is_some()
}

type Future<'a> = std::pin::Pin<
    Box<dyn std::future::Future<Output = reqwest_middleware::Result<Response>> + Send + 'a>,
>;

/// The way down of one of the four.
type Down = for<'a> fn(&'a SessionSource, Request, &'a mut Extensions, Below<'a>) -> Future<'a>;

/// What one of the four sends to: those that stand below it in the same middleware, then the next
/// one.
#[derive(Clone)]
struct Below<'a> {
    layers: &'static [Down],
    source: &'a SessionSource,
    next: Next<'a>,
}

impl<'a> Below<'a> {
    fn run(self, request: Request, extensions: &'a mut Extensions) -> Future<'a> {
        match self.layers.split_first() {
            Some((down, layers)) => down(self.source, request, extensions, Self { layers, ..self }),
            None => self.next.run(request, extensions),
        }
    }
}

/// `handle` of a middleware, written without `async_trait`, which would put the way down's box into
/// another. Nothing is done before the future is polled: whoever made it may poll it in another
/// scope, or later.
macro_rules! middleware {
    ($layer:ident, $down:ident) => {
        impl reqwest_middleware::Middleware for $layer {
            fn handle<'this, 'extensions, 'next, 'future>(
                &'this self,
                request: reqwest::Request,
                extensions: &'extensions mut http::Extensions,
                next: reqwest_middleware::Next<'next>,
            ) -> std::pin::Pin<
                Box<
                    dyn std::future::Future<Output = reqwest_middleware::Result<reqwest::Response>>
                        + Send
                        + 'future,
                >,
            >
            where
                'this: 'future,
                'extensions: 'future,
                'next: 'future,
                Self: 'future,
            {
                $down(
                    &self.source,
                    request,
                    extensions,
                    super::Below { layers: &[], source: &self.source, next },
                )
            }
        }
    };
}
use middleware;
