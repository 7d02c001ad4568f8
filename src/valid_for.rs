//! A request extension for requests that need a long-lived token.

use std::time::Duration;

/// A request extension that asks for a token with at least this much lifetime left, for long
/// downloads and streams. A token that expires sooner is refreshed before the request is sent.
///
/// This refresh counts as the one refresh of the request. It happens at most once per cool-down.
/// After that, or if it fails while the token is still valid, the request is sent with the current
/// token. See [`Session::credential_valid_for`](crate::Session::credential_valid_for).
///
/// ```
/// use std::time::Duration;
///
/// use reqwest_middleware::ClientWithMiddleware;
/// use reqwest_reauth::{ValidFor, reqwest::Response};
///
/// async fn download(client: &ClientWithMiddleware) -> reqwest_middleware::Result<Response> {
///     client
///         .get("https://api.example.com/dump")
///         .with_extension(ValidFor(Duration::from_secs(600)))
///         .send()
///         .await
/// }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ValidFor(pub Duration);
