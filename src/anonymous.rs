//! Requests without a token.

/// A request extension that opts one request out of the session.
///
/// The request is sent without a token. Nothing is captured from its response, and nothing is
/// refreshed or replayed for it.
///
/// ```
/// use reqwest_middleware::ClientWithMiddleware;
/// use reqwest_reauth::{Anonymous, reqwest::Response};
///
/// async fn health(client: &ClientWithMiddleware) -> reqwest_middleware::Result<Response> {
///     client.get("https://api.example.com/health").with_extension(Anonymous).send().await
/// }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Anonymous;
