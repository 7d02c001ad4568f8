//! The content of a DPoP proof (RFC 9449 §4.2), as a pure function.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use http::Method;
use serde::Serialize;
use url::{Position, Url};

/// The input of a proof, except for the key.
#[derive(Clone, Copy)]
pub(super) struct Claims<'a> {
    pub(super) method: &'a Method,
    pub(super) url: &'a Url,
    /// The hash of the access token in the request, or `None` at a token endpoint.
    pub(super) ath: Option<&'a str>,
    pub(super) nonce: Option<&'a str>,
    /// The time of the signature in seconds since the epoch.
    pub(super) issued_at: u64,
    /// 128 bits from the system's generator.
    pub(super) random: [u8; 16],
}

#[derive(Serialize)]
struct Payload<'a> {
    jti: String,
    htm: &'a str,
    htu: String,
    iat: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    ath: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nonce: Option<&'a str>,
}

/// Returns the JWS signing input (RFC 7515 §5.1) from the encoded `header` and the claims.
pub(super) fn signing_input(header: &str, claims: &Claims<'_>) -> String {
    let payload = Payload {
        jti: URL_SAFE_NO_PAD.encode(claims.random),
        htm: claims.method.as_str(),
        htu: target(claims.url),
        iat: claims.issued_at,
        ath: claims.ath,
        nonce: claims.nonce,
    };
    // The payload has only texts and a number, so it can always be serialised.
    let json = serde_json::to_vec(&payload).unwrap_or_default();
    let mut input = String::with_capacity(header.len() + 1 + json.len().div_ceil(3) * 4);
    input.push_str(header);
    input.push('.');
    URL_SAFE_NO_PAD.encode_string(json, &mut input);
    input
}

/// Returns the encoded JOSE header of all proofs by one key.
pub(super) fn header(alg: &str, jwk: &str) -> String {
    URL_SAFE_NO_PAD.encode(format!(r#"{{"typ":"dpop+jwt","alg":"{alg}","jwk":{jwk}}}"#))
}

/// The URL as it is sent, without user info, query and fragment (RFC 9449 §4.2).
fn target(url: &Url) -> String {
    let host_and_path = &url[Position::BeforeHost..Position::AfterPath];
    format!("{}://{host_and_path}", url.scheme())
}
