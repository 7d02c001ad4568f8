//! The nonces of servers (RFC 9449 §8 and §9): which is the newest, and whether a response demands
//! one.

use std::sync::{Arc, Mutex, PoisonError};

use http::{HeaderMap, HeaderName, StatusCode, header::WWW_AUTHENTICATE};
use http_auth::ChallengeParser;
use url::{Origin, Url};

/// The response header with a nonce.
const DPOP_NONCE: HeaderName = HeaderName::from_static("dpop-nonce");
/// The maximum length of a nonce in bytes.
const LONGEST: usize = 512;
/// The number of servers whose nonces a session remembers.
const MOST: usize = 8;
/// The error code with which either server demands a nonce.
pub(crate) const USE_DPOP_NONCE: &str = "use_dpop_nonce";

/// The role of a server. One origin may have both, with a nonce for each (RFC 9449 §8.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Api,
    /// The token endpoint and the revocation endpoint.
    TokenEndpoint,
}

/// The newest nonce of each server, most recently used first.
#[derive(Default)]
pub(crate) struct Nonces(Mutex<Vec<Entry>>);

struct Entry {
    origin: Origin,
    role: Role,
    nonce: Arc<str>,
}

impl Nonces {
    /// The nonce for the next request to this URL.
    pub(crate) fn get(&self, url: &Url, role: Role) -> Option<Arc<str>> {
        let origin = url.origin();
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let place = entries.iter().position(|entry| entry.is_of(&origin, role))?;
        entries[..=place].rotate_right(1);
        Some(Arc::clone(&entries[0].nonce))
    }

    /// Stores the nonce of a response from this URL, whatever its status. If there are too many,
    /// the least recently used nonce is dropped.
    pub(crate) fn take(&self, url: &Url, role: Role, headers: &HeaderMap) {
        let Some(nonce) = nonce_in(headers) else { return };
        let origin = url.origin();
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = entries.iter().position(|entry| entry.is_of(&origin, role)) {
            entries[..=place].rotate_right(1);
            if *entries[0].nonce != *nonce {
                entries[0].nonce = nonce.into();
            }
            return;
        }
        entries.truncate(MOST - 1);
        entries.insert(0, Entry { origin, role, nonce: nonce.into() });
    }
}

impl Entry {
    fn is_of(&self, origin: &Origin, role: Role) -> bool {
        self.role == role && self.origin == *origin
    }
}

/// The nonce in a response. A nonce that is too long or has characters that RFC 9449 §8.1 forbids
/// counts as absent, and so do two different nonces.
pub(crate) fn nonce_in(headers: &HeaderMap) -> Option<&str> {
    let mut values = headers.get_all(DPOP_NONCE).iter();
    let first = values.next()?;
    if values.any(|other| other != first) {
        return None;
    }
    let allowed = |&byte: &u8| matches!(byte, 0x21 | 0x23..=0x5b | 0x5d..=0x7e);
    let bytes = first.as_bytes();
    let fits = (1..=LONGEST).contains(&bytes.len()) && bytes.iter().all(allowed);
    fits.then(|| first.to_str().ok()).flatten()
}

/// What a response of the API says about the proof.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Challenge {
    /// It demands another nonce.
    UseNonce,
    /// The headers say nothing, so the body has to be checked for a demand.
    AskBody,
    /// It rejects the proof for a reason that a nonce does not resolve.
    InvalidProof,
    /// It does not mention the proof.
    Nothing,
}

/// Reads the challenge of a response of the API. `carried` is the nonce in the request.
pub(crate) fn api_challenge(
    status: StatusCode,
    headers: &HeaderMap,
    carried: Option<&str>,
) -> Challenge {
    if !matches!(status, StatusCode::UNAUTHORIZED | StatusCode::BAD_REQUEST) {
        return Challenge::Nothing;
    }
    match dpop_error(headers) {
        Some(code) if code.eq_ignore_ascii_case(USE_DPOP_NONCE) => Challenge::UseNonce,
        Some(code) if code.eq_ignore_ascii_case("invalid_dpop_proof") => Challenge::InvalidProof,
        // Servers that demand a nonce only in the body send the nonce in the same response
        // (forcedotcom/SalesforceMobileSDK-Android#3011).
        None if nonce_in(headers).is_some_and(|new| carried != Some(new)) && is_json(headers) => {
            Challenge::AskBody
        }
        Some(_) | None => Challenge::Nothing,
    }
}

/// The `error` of the `DPoP` challenge, if there is one.
pub(crate) fn dpop_error(headers: &HeaderMap) -> Option<String> {
    headers.get_all(WWW_AUTHENTICATE).iter().find_map(|value| {
        let text = String::from_utf8_lossy(value.as_bytes());
        ChallengeParser::new(&text)
            .filter_map(Result::ok)
            .filter(|challenge| challenge.scheme.eq_ignore_ascii_case("DPoP"))
            .find_map(|challenge| {
                let error =
                    challenge.params.iter().find(|(name, _)| name.eq_ignore_ascii_case("error"));
                error.map(|(_, value)| value.to_unescaped())
            })
    })
}

/// Whether a JSON body has the `error` `use_dpop_nonce`.
pub(crate) fn says_use_nonce(body: &[u8]) -> bool {
    #[derive(serde::Deserialize)]
    struct Body {
        error: Option<serde_json::Value>,
    }
    let body: Option<Body> = serde_json::from_slice(body).ok();
    let error = body.and_then(|body| body.error);
    error.as_ref().and_then(|error| error.as_str()) == Some(USE_DPOP_NONCE)
}

fn is_json(headers: &HeaderMap) -> bool {
    let media_type = headers.get(http::header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    media_type.is_some_and(|text| {
        let text = text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        text == "application/json" || text.starts_with("application/") && text.ends_with("+json")
    })
}
