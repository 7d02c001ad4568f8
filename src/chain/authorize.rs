use http::{Extensions, header::Entry};
use reqwest::{Request, Response};
use reqwest_middleware::{Middleware, Next, Result};

#[cfg(feature = "dpop")]
use super::proof;
use super::{
    SessionSource,
    sent::{Proof, Sent, may_be_rejection},
    source::{Found, Handling},
};
#[cfg(feature = "dpop")]
use crate::token::AccessToken;
use crate::{
    anonymous::Anonymous,
    error::Error,
    session::{Session, Signature},
    telemetry::request_failed,
};

/// Puts the token on requests to the session's origins, where the session's
/// [`Placement`](crate::Placement) says, and notes which generation of the token it was.
///
/// The innermost of the four. It knows neither expiry nor rejections: those are
/// [`Refresh`](super::Refresh)'s. A request with an `Authorization` of its own, with [`Anonymous`],
/// or to another origin passes unchanged. A session without a token, or a closed one, fails the
/// request unsent.
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
#[derive(Clone, Debug)]
pub struct Authorize {
    source: SessionSource,
}

impl Authorize {
    /// Signs with the token of this session.
    pub fn new(source: impl Into<SessionSource>) -> Self {
        Self { source: source.into() }
    }
}

impl Middleware for Authorize {
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
        send(&self.source, request, extensions, next)
    }
}

/// No `async fn`, which would keep each argument twice in its future.
pub(super) fn send<'a>(
    source: &'a SessionSource,
    mut request: Request,
    extensions: &'a mut Extensions,
    next: Next<'a>,
) -> Handling<'a> {
    Box::pin(async move {
        let signed = match sign(source, &mut request, extensions) {
            Ok(signed) => signed,
            Err(error) => unsigned(source, &request, extensions, error)?,
        };
        let Some(signed) = signed else {
            return next.run(request, extensions).await;
        };
        #[cfg(feature = "dpop")]
        if signed.session.dpop().is_some() {
            return Box::pin(proof::send(signed, request, extensions, next)).await;
        }
        let mut response = next.run(request, extensions).await?;
        signed.check_where_it_went(&response);
        if signed.needs_note(&response) {
            signed.leave_note(&mut response, Proof::Fine);
        }
        Ok(response)
    })
}

/// The caller's own header is sent whatever speaks against ours. Every other request fails.
#[cold]
fn unsigned<'a>(
    source: &SessionSource,
    request: &Request,
    extensions: &Extensions,
    error: Error,
) -> Result<Option<Signed<'a>>> {
    if source.leaves_alone(request, extensions) {
        return Ok(None);
    }
    let session = source.find(extensions).ok();
    request_failed(session.as_deref().map(Session::telemetry), error.kind());
    Err(error.into())
}

/// Puts the header on, unless the request is none of ours.
fn sign<'a>(
    source: &'a SessionSource,
    request: &mut Request,
    extensions: &Extensions,
) -> std::result::Result<Option<Signed<'a>>, Error> {
    if extensions.get::<Anonymous>().is_some() {
        return Ok(None);
    }
    let Some((session, origin)) = source.for_origin(request, extensions)? else {
        return Ok(None);
    };
    let placement = session.placement();
    let overrides = session.overrides_authorization();
    let taken = placement.is_taken_by_userinfo(request.url()) && !overrides;
    // One look for the caller's own header and for the place of ours.
    let state = session.load();
    match request.headers_mut().entry(placement.name()) {
        Entry::Vacant(place) if !taken => {
            place.insert(state.header_to_send()?.clone());
        }
        Entry::Occupied(mut own) if overrides => {
            own.insert(state.header_to_send()?.clone());
        }
        Entry::Vacant(_) | Entry::Occupied(_) => {
            source.tell_own_header(request, extensions);
            return Ok(None);
        }
    }
    let signature = state.signature();
    #[cfg(feature = "dpop")]
    let proving = session.dpop().and(state.token_to_send().ok().cloned());
    drop(state);
    Ok(Some(Signed {
        session,
        signature,
        origin,
        #[cfg(feature = "dpop")]
        proving,
    }))
}

/// What is remembered of a request while it is out.
pub(super) struct Signed<'a> {
    pub(super) session: Found<'a>,
    pub(super) signature: Signature,
    /// Which of the session's origins it goes to.
    pub(super) origin: usize,
    /// The token, if a proof goes with it.
    #[cfg(feature = "dpop")]
    pub(super) proving: Option<AccessToken>,
}

impl Signed<'_> {
    /// Whether one of the others has to look at this answer. Almost none is.
    #[inline]
    pub(super) fn needs_note(&self, response: &Response) -> bool {
        self.is_judged(response) || self.session.channels().may_bring(response.headers())
    }

    /// Whether it says something of the token that was sent.
    #[inline]
    fn is_judged(&self, response: &Response) -> bool {
        may_be_rejection(response.status())
            || self.signature.is_on_probation()
            || self.session.rejected_if().is_some()
    }

    /// Whether a response that has to be looked at has no more to say than that the token is still
    /// the one that the session has. Some servers say so each time. It is told like any other token
    /// that is ignored.
    #[cold]
    pub(super) fn has_no_news(&self, response: &mut Response) -> bool {
        if self.is_judged(response) || self.session.origin_of(response.url()).is_none() {
            return false;
        }
        self.session.has_already(response.headers_mut())
    }

    /// reqwest carries a header of [`Placement::header`](crate::Placement::header) along when it
    /// follows a redirect to another server.
    pub(super) fn check_where_it_went(&self, response: &Response) {
        if self.session.placement().survives_redirects() {
            self.tell_if_elsewhere(response);
        }
    }

    #[cold]
    fn tell_if_elsewhere(&self, response: &Response) {
        if self.session.origin_of(response.url()).is_none() {
            tracing::error!(
                target: "reqwest_reauth",
                host = response.url().host_str(),
                "a redirect has carried the token to another server: build the client with \
                 same_origin_redirects()"
            );
        }
    }

    #[cold]
    pub(super) fn leave_note(&self, response: &mut Response, proof: Proof) {
        response.extensions_mut().insert(Sent {
            session: self.session.clone(),
            signature: self.signature,
            origin: self.origin,
            brought_token: false,
            rejected: None,
            captured: false,
            proof,
        });
    }
}
