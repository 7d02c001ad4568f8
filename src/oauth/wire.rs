//! What is sent to an endpoint, and what comes back.

use http::{HeaderMap, StatusCode};
use url::Url;
use zeroize::Zeroizing;

use super::body::Body;

/// A request to the token endpoint or the revocation endpoint, ready to be sent.
pub(super) struct TokenRequest {
    pub(super) endpoint: Url,
    pub(super) headers: HeaderMap,
    pub(super) form: Zeroizing<String>,
    /// The computed values in the form. No text may repeat them.
    pub(super) made: Vec<Zeroizing<String>>,
}

pub(super) struct RawResponse {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Body,
    /// Whether the tokens are bound to a key, so that another token type is a downgrade (RFC 9449
    /// §5).
    pub(super) is_bound: bool,
    /// Whether the endpoint demanded a nonce before it accepted the call.
    pub(super) was_challenged: bool,
}

impl RawResponse {
    pub(super) fn new(status: StatusCode, headers: HeaderMap, body: Body) -> Self {
        Self { status, headers, body, is_bound: false, was_challenged: false }
    }
}
