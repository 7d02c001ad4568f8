//! What was done for a request, as its caller sees it.

use crate::{error::Error, event::NotReplayed};

/// What the chain did for a request: among the answer's extensions, if it did anything.
///
/// ```no_run
/// # async fn f(client: reqwest_middleware::ClientWithMiddleware) -> reqwest_middleware::Result<()> {
/// use reqwest_reauth::Outcome;
///
/// let answer = client.get("https://api.example.com/jobs").send().await?;
/// if answer.extensions().get::<Outcome>().is_some_and(|outcome| outcome.replayed) {
///     println!("the first token was rejected");
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Outcome {
    /// A token was taken from the response header.
    pub captured: bool,
    /// The request waited for a refresh that brought a token.
    pub refreshed: bool,
    /// The request was rejected and sent again: this is the second answer.
    pub replayed: bool,
    /// The request was rejected and not sent again, and why.
    pub not_replayed: Option<NotReplayed>,
    /// The refresh failed: this is the API's own answer
    /// ([`OnRefreshFailure::ReturnResponse`](crate::OnRefreshFailure::ReturnResponse)).
    pub refresh_error: Option<Error>,
}

#[cfg(feature = "dpop")]
impl Outcome {
    /// Whether anything happened that is to be told of the whole request.
    pub(crate) fn is_something(&self) -> bool {
        self.captured || self.refreshed || self.replayed
    }
}
