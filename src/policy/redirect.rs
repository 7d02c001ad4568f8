//! A redirect policy for tokens in headers that reqwest keeps on a redirect.

use reqwest::redirect::{Attempt, Policy};

/// reqwest's default limit.
const MOST_REDIRECTS: usize = 10;

/// Returns a redirect policy for [`reqwest::ClientBuilder::redirect`] that follows at most ten
/// redirects, and none to another origin (scheme, host and port).
///
/// For a redirect to another origin, the caller gets the 3xx response. The eleventh redirect is an
/// error of reqwest. Sessions with [`Placement::header`](crate::Placement::header) need this
/// policy, because reqwest removes only `Authorization` on a redirect to another host.
///
/// ```
/// fn main() -> reqwest::Result<()> {
///     let client = reqwest::Client::builder()
///         .redirect(reqwest_reauth::same_origin_redirects())
///         .build()?;
///     Ok(())
/// }
/// ```
pub fn same_origin_redirects() -> Policy {
    Policy::custom(|attempt: Attempt<'_>| {
        let here = attempt.previous().last().map(reqwest::Url::origin);
        if here.is_some_and(|here| here != attempt.url().origin()) {
            attempt.stop()
        } else if attempt.previous().len() > MOST_REDIRECTS {
            attempt.error("more than ten redirects")
        } else {
            attempt.follow()
        }
    })
}
