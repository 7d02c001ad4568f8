//! Requests that want a token with some life left.

use std::time::Duration;

/// Put among a request's extensions, asks for a token with at least this much life left: for long
/// downloads and streams. A token that ends sooner is renewed before the request is sent.
///
/// That is the request's one refresh. There is one for this reason a cool-down; after that, or if it
/// fails while the token is good, the request is sent with the token that there is. See
/// [`Session::credential_valid_for`](crate::Session::credential_valid_for).
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
