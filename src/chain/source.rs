//! Which session a request is sent for, and whether it is sent for one at all.

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

/// A middleware's own session, or one that the request or the task brought.
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
    /// The session for a request.
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

    /// The session that is to sign this request, and which of its origins the request goes to.
    /// `None` for a request that is none of ours: it has a header of its own, is anonymous, or goes
    /// elsewhere.
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

    /// Whether the chain does nothing for this request: the caller's own header wins, and so does
    /// [`Anonymous`]. Where no session says otherwise, `Authorization` is the header.
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

    /// Tells of the caller's own header on a request that would have been signed.
    #[cold]
    pub(super) fn tell_own_header(&self, request: &Request, extensions: &Extensions) {
        if extensions.get::<Anonymous>().is_some() {
            return;
        }
        let Ok(Some((session, _))) = self.for_origin(request, extensions) else {
            return;
        };
        // A chain of the same session may stand above.
        let state = session.load();
        let ours = state.header_to_send().ok();
        if ours.is_none() || ours != request.headers().get(session.placement().name()) {
            session.emit(&Event::CallerAuthorization {});
        }
    }

    /// Likewise, whether the request is left alone or not.
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

/// Whether the request has a header of its own in the token's place, and keeps it.
pub(super) fn has_own_header(session: &Session, request: &Request) -> bool {
    let placement = session.placement();
    (has_header(request.headers(), placement.name())
        || placement.is_taken_by_userinfo(request.url()))
        && !session.overrides_authorization()
}

/// Extensions in which a request that has waited finds the session that it had before: a future
/// that tasks share may by now be polled by another one, whose scope names another session.
///
/// The session is there for one sending alone, also for one that is dropped halfway.
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

/// What [`Middleware::handle`](reqwest_middleware::Middleware::handle) returns. The middleware
/// write it by hand: `async_trait` keeps each argument twice in the future.
pub(super) type Handling<'a> = std::pin::Pin<
    Box<
        dyn std::future::Future<Output = reqwest_middleware::Result<reqwest::Response>> + Send + 'a,
    >,
>;
