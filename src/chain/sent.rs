//! What a request carries through the chain: what it has spent, and how it was sent.

use std::sync::Arc;

use http::StatusCode;
use reqwest::Response;
use tokio::time::Instant;

use crate::{
    outcome::Outcome,
    policy,
    session::{Session, State},
};

/// What a logical request has spent. It lives in the request's extensions, which an outer retry
/// keeps.
#[derive(Clone, Copy, Default)]
pub(super) struct Budget {
    /// It has started a refresh in the background. It may wait for that one.
    pub(super) renewing: bool,
    pub(super) refreshed: bool,
    pub(super) replayed: bool,
}

/// How a request was sent: left by [`Authorize`] in answers that one of the others has to look at.
#[derive(Clone)]
pub(super) struct Sent {
    pub(super) session: Session,
    /// The session's state at that time.
    pub(super) state: Arc<State>,
    /// Which of the session's origins it was sent to.
    pub(super) origin: usize,
    /// The answer brought a token that the session now has, or one newer still.
    pub(super) brought_token: bool,
    /// Whether the answer is a rejection, once it is known.
    pub(super) rejected: Option<bool>,
    /// A [`Capture`] has looked at the answer. An outer one, of another chain, has nothing to add.
    pub(super) captured: bool,
}

impl Sent {
    /// Whether the API refuses the token with this answer. Asked once for each answer, and
    /// remembered.
    pub(super) fn is_rejected(&mut self, response: &mut Response) -> bool {
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
        let expired = self.state.is_expired(Instant::now());
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
pub(super) fn may_be_rejection(status: StatusCode) -> bool {
    matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
}

/// Changes the outcome that a response carries.
pub(super) fn note_outcome(response: &mut Response, change: impl FnOnce(&mut Outcome)) {
    change(response.extensions_mut().get_or_insert_default());
}
