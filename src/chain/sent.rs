//! What a request carries through the chain: its budget, and how it was sent.

use std::panic::{AssertUnwindSafe, catch_unwind};

use http::StatusCode;
use reqwest::Response;

use crate::{
    error::Error,
    outcome::Outcome,
    policy,
    session::{Allowance, Ending, Session, Signature, Since, Waiter},
    time::Now,
};

/// The budget of a logical request. It lives in the request's extensions, which an outer retry
/// keeps.
#[derive(Clone, Default)]
pub(super) struct Budget {
    /// The refresh that the request started last.
    pub(super) refresh: Option<Waiter>,
    pub(super) replayed: bool,
    /// The generation that the API rejected last, and the status of that response.
    pub(super) rejection: Option<(u64, StatusCode)>,
}

impl Budget {
    /// Whether the request may start a refresh. A refresh that failed transiently, or that the
    /// request only joined, does not count: an outer retry that outlasts the cool-down may start
    /// another (contract 1.3).
    pub(super) fn allowance(&self) -> Allowance {
        match self.refresh.as_ref().and_then(Waiter::outcome) {
            None | Some(Ok(Ending::Superseded)) => Allowance::Start,
            Some(Ok(Ending::Refreshed)) => Allowance::JoinOnly,
            Some(Err(error)) if error.is_transient() || error.nothing_to_ask_with() => {
                Allowance::Start
            }
            Some(Err(error)) => Allowance::Failed(error),
        }
    }

    /// Whether a refresh that the request started has obtained a token.
    pub(super) fn is_spent(&self) -> bool {
        matches!(self.allowance(), Allowance::JoinOnly)
    }

    /// Adds the rejection of an earlier attempt to the error of an attempt that was not sent.
    pub(super) fn with_rejection(&self, error: Error) -> Error {
        match self.rejection {
            Some((_, status)) => error.with_api_status(status),
            None => error,
        }
    }
}

/// How a request was sent. [`Authorize`] leaves this note in responses that another middleware has
/// to inspect.
#[derive(Clone)]
pub(super) struct Sent {
    pub(super) session: Session,
    /// The signature of the session's state at that time.
    pub(super) signature: Signature,
    /// The index of the request's origin among the session's origins.
    pub(super) origin: usize,
    /// Whether the response carried a token that the session has adopted, or already replaced.
    pub(super) brought_token: bool,
    /// Whether the response is a rejection, once that is known.
    pub(super) rejected: Option<bool>,
    /// Whether a [`Capture`] has inspected the response, so that an outer one of another chain has
    /// nothing to do.
    pub(super) captured: bool,
    /// What the response says of the request's proof.
    pub(super) proof: Proof,
}

/// What a response says about the proof of its request (RFC 9449).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Proof {
    /// There was no proof, or the response does not object to it.
    Fine,
    /// The proof needs the nonce that the session now has, so the request is sent again.
    #[cfg(feature = "dpop")]
    WantsNonce,
    /// The proof was rejected for a reason that sending again does not resolve.
    #[cfg(feature = "dpop")]
    Rejected,
}

impl Sent {
    /// Takes the note out of a response, and puts it back after the look at both.
    pub(super) fn look<T>(
        response: &mut Response,
        look: impl FnOnce(&mut Self, &mut Response) -> T,
    ) -> Option<T> {
        let mut sent = response.extensions_mut().remove::<Self>()?;
        let looked = look(&mut sent, response);
        response.extensions_mut().insert(sent);
        Some(looked)
    }

    /// Whether the response rejects the token. The result is computed once for each response and
    /// stored in its note.
    pub(super) fn is_rejected(&mut self, response: &Response) -> bool {
        // Such a response concerns only the proof, not the token.
        if self.proof != Proof::Fine {
            return false;
        }
        if let Some(rejected) = self.rejected {
            return rejected;
        }
        let rejected = self.judge(response);
        self.rejected = Some(rejected);
        rejected
    }

    fn judge(&self, response: &Response) -> bool {
        // A redirect across origins dropped the token, so the response there cannot reject it.
        if !self.session.is_of_origin(self.origin, response.url()) {
            return false;
        }
        let since = self.session.load().since(&self.signature, response.status());
        if since == Since::OtherLogin {
            return false;
        }
        let verdict = policy::is_rejection(
            response.status(),
            response.headers(),
            self.session.placement().challenge_scheme(),
            self.brought_token || since == Since::Replaced,
            self.signature.has_expired(Now::read),
        );
        match self.session.rejected_if() {
            Some(rule) => catch_unwind(AssertUnwindSafe(|| rule(response, verdict)))
                .unwrap_or(verdict.rejected),
            None => verdict.rejected,
        }
    }
}

/// Whether the built-in rule can treat a response with this status as a rejection.
pub(super) fn may_be_rejection(status: StatusCode) -> bool {
    matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
}

/// Changes the outcome in a response.
pub(super) fn note_outcome(response: &mut Response, change: impl FnOnce(&mut Outcome)) {
    change(response.extensions_mut().get_or_insert_default());
}
