//! Requests without a token.

/// A request extension that opts one request out of the session.
///
/// The request is sent without a token. Nothing is captured from its response, and nothing is
/// refreshed or replayed for it.
///
/// ```no_run
/// # async fn f(client: reqwest_middleware::ClientWithMiddleware) -> reqwest_middleware::Result<()> {
/// use reqwest_reauth::Anonymous;
///
/// let health = client.get("https://api.example.com/health").with_extension(Anonymous).send().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Anonymous;
