//! What is kept of a request while it is in progress, and what its response means for the rest of
//! the chain.

use reqwest::Response;

use super::{
    sent::{Proof, Sent, may_be_rejection},
    source::Found,
};
use crate::session::Signature;
#[cfg(feature = "dpop")]
use crate::token::AccessToken;

/// What is kept of a request while it is in progress.
pub(super) struct Signed<'a> {
    pub(super) session: Found<'a>,
    pub(super) signature: Signature,
    /// The index of the request's origin among the session's origins.
    pub(super) origin: usize,
    /// The token, if a proof goes with it.
    #[cfg(feature = "dpop")]
    pub(super) proving: Option<AccessToken>,
}

impl Signed<'_> {
    /// The note on the response, if another middleware needs it. Reports a response from a server
    /// that should not have seen the token.
    pub(super) fn inspect(&self, response: &Response) -> Option<Sent> {
        self.check_where_it_went(response);
        self.needs_note(response).then(|| self.note(Proof::Fine))
    }

    /// Whether one of the other middleware has to inspect this response. That is rare.
    #[inline]
    pub(super) fn needs_note(&self, response: &Response) -> bool {
        self.is_judged(response) || self.session.channels().may_bring(response.headers())
    }

    /// Whether the response says something about the token that was sent.
    #[inline]
    fn is_judged(&self, response: &Response) -> bool {
        may_be_rejection(response.status())
            || self.signature.is_on_probation()
            || self.session.rejected_if().is_some()
    }

    /// Whether a response only repeats the token that the session already holds, as some servers
    /// always do. It is reported like any other ignored token.
    #[cold]
    pub(super) fn has_no_news(&self, response: &mut Response) -> bool {
        if self.is_judged(response) || self.session.origin_of(response.url()).is_none() {
            return false;
        }
        self.session.has_already(response.headers_mut())
    }

    /// reqwest keeps a header of [`Placement::header`](crate::Placement::header) when it follows a
    /// redirect to another server.
    #[inline]
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
    pub(super) fn note(&self, proof: Proof) -> Sent {
        Sent {
            session: self.session.clone(),
            signature: self.signature,
            origin: self.origin,
            brought_token: false,
            rejected: None,
            captured: false,
            proof,
        }
    }
}
