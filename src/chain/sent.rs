//! What a request carries through the chain: what it has spent, and how it was sent.

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

/// What a logical request has spent. It lives in the request's extensions, which an outer retry
/// keeps.
#[derive(Clone, Default)]
pub(super) struct Budget {
    /// The refresh that it started last.
    pub(super) refresh: Option<Waiter>,
    pub(super) replayed: bool,
    /// The generation that the API rejected last, and with which status.
    pub(super) rejection: Option<(u64, StatusCode)>,
}

impl Budget {
    /// Whether it may start a refresh. One that failed for a passing reason, or was only joined,
    /// uses nothing up: an outer retry that outlasts the cool-down gets another (contract 1.3).
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

    /// Whether a refresh that it started has brought a token.
    pub(super) fn is_spent(&self) -> bool {
        matches!(self.allowance(), Allowance::JoinOnly)
    }

    /// Adds the rejection of an earlier attempt to the error of one that was not sent.
    pub(super) fn with_rejection(&self, error: Error) -> Error {
        match self.rejection {
            Some((_, status)) => error.with_api_status(status),
            None => error,
        }
    }
}

/// How a request was sent: left by [`Authorize`] in answers that one of the others has to look at.
#[derive(Clone)]
pub(super) struct Sent {
    pub(super) session: Session,
    /// What the session's state was at that time.
    pub(super) signature: Signature,
    /// Which of the session's origins it was sent to.
    pub(super) origin: usize,
    /// The answer brought a token that the session now has, or one newer still.
    pub(super) brought_token: bool,
    /// Whether the answer is a rejection, once it is known.
    pub(super) rejected: Option<bool>,
    /// A [`Capture`] has looked at the answer. An outer one, of another chain, has nothing to add.
    pub(super) captured: bool,
    /// What the response says of the request's proof.
    pub(super) proof: Proof,
}

/// What a response says of the proof that went with a request (RFC 9449).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Proof {
    /// There was none, or nothing is said against it.
    Fine,
    /// It wants the nonce that the session now has: the request is to be sent again.
    #[cfg(feature = "dpop")]
    WantsNonce,
    /// It is not taken, for a reason that sending again does not mend.
    #[cfg(feature = "dpop")]
    Rejected,
}

impl Sent {
    /// Whether the API refuses the token with this answer. Asked once for each answer, and
    /// remembered.
    pub(super) fn is_rejected(&mut self, response: &mut Response) -> bool {
        // Such a response speaks of the proof alone, and not of the token.
        if self.proof != Proof::Fine {
            return false;
        }
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
        let since = self.session.load().since(&self.signature, response.status());
        if since == Since::OtherLogin {
            return false;
        }
        let verdict = policy::is_rejection(
            response.status(),
            response.headers(),
            self.session.placement().challenge_scheme(),
            self.brought_token || since == Since::Replaced,
            self.signature.has_expired(Now::read()),
        );
        match self.session.rejected_if() {
            Some(rule) => catch_unwind(AssertUnwindSafe(|| rule(response, verdict)))
                .unwrap_or(verdict.rejected),
            None => verdict.rejected,
        }
    }
}

/// Whether an answer with this status can be a rejection by the built-in rule.
pub(super) fn may_be_rejection(status: StatusCode) -> bool {
    matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
}

/// Changes the outcome that a response carries.
pub(super) fn note_outcome(response: &mut Response, change: impl FnOnce(&mut Outcome)) {
    change(response.extensions_mut().get_or_insert_default());
}
