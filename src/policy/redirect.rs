//! A redirect policy for tokens in headers that reqwest carries along.

use reqwest::redirect::{Attempt, Policy};

/// reqwest's own default limit.
const MOST_REDIRECTS: usize = 10;

/// A redirect policy for [`reqwest::ClientBuilder::redirect`]: follows at most ten redirects, none
/// to another origin (scheme, host and port).
///
/// A redirect elsewhere is not followed: the 3xx response is the caller's. The eleventh redirect is
/// an error of reqwest's. Clients of a session with [`Placement::header`](crate::Placement::header)
/// need it, since reqwest removes only `Authorization` from a request that is redirected elsewhere.
///
/// ```
/// let client = reqwest::Client::builder()
///     .redirect(reqwest_reauth::same_origin_redirects())
///     .build();
/// # client.unwrap();
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
