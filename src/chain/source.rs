//! Which session a request is sent for, if any.

use std::ops::{Deref, DerefMut};

use http::{Extensions, header::AUTHORIZATION};
use reqwest::Request;

use super::SessionSource;
use crate::{
    anonymous::Anonymous,
    error::{Error, ErrorKind},
    event::Event,
    policy::{Placement, has_header},
    session::Session,
};

/// The middleware's own session, or the session of the request or the task.
pub(super) enum Found<'a> {
    Own(&'a Session),
    Brought(Session),
}

impl Found<'_> {
    pub(super) fn into_session(self) -> Session {
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
    /// Finds the session for a request.
    #[inline]
    pub(super) fn find(&self, extensions: &Extensions) -> Result<Found<'_>, Error> {
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

    /// The session that signs this request, and the index of the request's origin. Returns `None`
    /// for a request that does not concern the session: it has its own header, is anonymous, or
    /// goes to another origin.
    pub(super) fn signing(
        &self,
        request: &Request,
        extensions: &Extensions,
    ) -> Result<Option<(Found<'_>, usize)>, Error> {
        if self.leaves_alone(request, extensions) {
            return Ok(None);
        }
        self.for_origin(request, extensions)
    }

    /// Whether the chain leaves this request alone, because of the caller's own header or of
    /// [`Anonymous`]. Without a session that says otherwise, the header is `Authorization`.
    pub(super) fn leaves_alone(&self, request: &Request, extensions: &Extensions) -> bool {
        if extensions.get::<Anonymous>().is_some() {
            return true;
        }
        match self.find(extensions) {
            Ok(session) => has_own_header(&session, request),
            Err(_) => {
                request.headers().contains_key(AUTHORIZATION)
                    || Placement::bearer().is_taken_by_userinfo(request.url())
            }
        }
    }

    /// Reports the caller's own header on a request that would otherwise have been signed.
    #[cold]
    pub(super) fn tell_own_header(&self, request: &Request, extensions: &Extensions) {
        if extensions.get::<Anonymous>().is_some() {
            return;
        }
        let Ok(Some((session, _))) = self.for_origin(request, extensions) else {
            return;
        };
        // A chain of the same session may be above this one.
        let state = session.load();
        let ours = state.header_to_send().ok();
        if ours.is_none() || ours != request.headers().get(session.placement().name()) {
            session.emit(&Event::CallerAuthorization {});
        }
    }

    /// Like [`signing`](Self::signing), even if the request is left alone.
    pub(super) fn for_origin(
        &self,
        request: &Request,
        extensions: &Extensions,
    ) -> Result<Option<(Found<'_>, usize)>, Error> {
        let session = self.find(extensions)?;
        let origin = session.origin_of(request.url());
        Ok(origin.map(|origin| (session, origin)))
    }
}

/// Whether the request has its own header in the token's place, and keeps it.
pub(super) fn has_own_header(session: &Session, request: &Request) -> bool {
    let placement = session.placement();
    (has_header(request.headers(), placement.name())
        || placement.is_taken_by_userinfo(request.url()))
        && !session.overrides_authorization()
}

/// Pins a request that has waited to the session that it had before. Tasks can share a future, so
/// another task, whose scope names another session, may poll it by now.
///
/// The session is pinned for one send only, even if the send is dropped halfway.
pub(super) struct Pinned<'a> {
    extensions: &'a mut Extensions,
    added: bool,
}

impl<'a> Pinned<'a> {
    pub(super) fn to(
        session: &Session,
        source: &SessionSource,
        extensions: &'a mut Extensions,
    ) -> Self {
        let added =
            matches!(source, SessionSource::Scoped) && extensions.get::<Session>().is_none();
        if added {
            extensions.insert(session.clone());
        }
        Self { extensions, added }
    }
}

impl Deref for Pinned<'_> {
    type Target = Extensions;

    fn deref(&self) -> &Extensions {
        self.extensions
    }
}

impl DerefMut for Pinned<'_> {
    fn deref_mut(&mut self) -> &mut Extensions {
        self.extensions
    }
}

impl Drop for Pinned<'_> {
    fn drop(&mut self) {
        if self.added {
            self.extensions.remove::<Session>();
        }
    }
}

/// The return type of [`Middleware::handle`](reqwest_middleware::Middleware::handle). It is written
/// by hand, because `async_trait` stores each argument twice in the future.
pub(super) type Handling<'a> = std::pin::Pin<
    Box<
        dyn std::future::Future<Output = reqwest_middleware::Result<reqwest::Response>> + Send + 'a,
    >,
>;
