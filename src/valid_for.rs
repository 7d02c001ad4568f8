//! A request extension for requests that need a long-lived token.

use std::time::Duration;

/// A request extension that asks for a token with at least this much lifetime left, for long
/// downloads and streams. A token that expires sooner is refreshed before the request is sent.
///
/// This refresh counts as the one refresh of the request. It happens at most once per cool-down.
/// After that, or if it fails while the token is still valid, the request is sent with the current
/// token. See [`Session::credential_valid_for`](crate::Session::credential_valid_for).
///
/// ```no_run
/// # async fn f(client: reqwest_middleware::ClientWithMiddleware) -> reqwest_middleware::Result<()> {
/// use std::time::Duration;
/// use reqwest_reauth::ValidFor;
///
/// let download = client
///     .get("https://api.example.com/dump")
///     .with_extension(ValidFor(Duration::from_secs(600)))
///     .send()
///     .await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ValidFor(pub Duration);
