//! What the chain did for a request, for the caller of that request.

use crate::{error::Error, event::NotReplayed};

/// What the chain did for a request. It is among the response's extensions if the chain did
/// anything.
///
/// ```
/// use reqwest_reauth::{Outcome, reqwest::Response};
///
/// fn was_replayed(response: &Response) -> bool {
///     response.extensions().get::<Outcome>().is_some_and(|outcome| outcome.replayed)
/// }
/// ```
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Outcome {
    /// Whether a token was captured from the response header.
    pub captured: bool,
    /// Whether the request waited for a refresh that obtained a token.
    pub refreshed: bool,
    /// Whether the request was rejected and replayed. If so, this is the response to the replay.
    pub replayed: bool,
    /// Why the rejected request was not replayed.
    pub not_replayed: Option<NotReplayed>,
    /// The error of the refresh that failed. The response is then the API's own rejection
    /// ([`OnRefreshFailure::ReturnResponse`](crate::OnRefreshFailure::ReturnResponse)).
    pub refresh_error: Option<Error>,
}

#[cfg(feature = "dpop")]
impl Outcome {
    /// Returns whether the outcome is worth attaching to a response.
    pub(crate) fn is_something(&self) -> bool {
        self.captured || self.refreshed || self.replayed
    }
}
