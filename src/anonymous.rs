//! Requests without a token.

/// Put among a request's extensions, sends it without a token: nothing is captured from it,
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
