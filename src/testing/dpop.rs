//! DPoP as a strict server implements it (RFC 9449 §4.3, §8 and §9): each proof is fully verified,
//! and nonces are issued and demanded.

use std::collections::{HashSet, VecDeque};

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA256,
    RSA_PSS_2048_8192_SHA256, RsaPublicKeyComponents, UnparsedPublicKey,
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

pub(super) const DPOP: HeaderName = HeaderName::from_static("dpop");
const DPOP_NONCE: HeaderName = HeaderName::from_static("dpop-nonce");
/// The maximum distance of a proof's `iat` from the server's clock, in seconds.
const MOST_SECONDS_OFF: f64 = 60.0;

/// The nonce rules of an [`AuthServer`](super::AuthServer) that binds tokens to keys. By default,
/// proofs are verified and nonces are not used.
///
/// ```
/// use reqwest_reauth::testing::{AuthServer, Dpop};
///
/// #[tokio::main(flavor = "current_thread")]
/// async fn main() {
///     // Like Bluesky's servers: a new nonce in each response, of which the newest few are valid.
///     let dpop = Dpop::new().api_nonces(8).token_endpoint_nonces(8);
///     let server = AuthServer::builder().dpop(dpop).start().await;
/// }
/// ```
#[derive(Clone, Debug, Default)]
#[must_use]
#[allow(clippy::struct_excessive_bools, reason = "each is a server of its own kind")]
pub struct Dpop {
    api_nonces: Option<usize>,
    token_endpoint_nonces: Option<usize>,
    rotates: Rotates,
    pub(super) in_the_body: bool,
    pub(super) challenges_for_ever: bool,
    pub(super) spends_first: bool,
    pub(super) says_bearer: bool,
}

/// When a new nonce is generated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Rotates {
    #[default]
    EachResponse,
    WhenAsked,
}

impl Dpop {
    /// Requires proofs, but no nonces.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes the API require one of its `good` newest nonces in each proof, and send a new nonce
    /// with each response.
    pub fn api_nonces(mut self, good: usize) -> Self {
        self.api_nonces = Some(good.max(1));
        self
    }

    /// Sets the same rule for the token endpoint.
    pub fn token_endpoint_nonces(mut self, good: usize) -> Self {
        self.token_endpoint_nonces = Some(good.max(1));
        self
    }

    /// Keeps each nonce until [`AuthServer::rotate_nonces`](super::AuthServer::rotate_nonces),
    /// instead of a new nonce for each response. Responses still carry the current nonce.
    pub fn keep_nonces(mut self) -> Self {
        self.rotates = Rotates::WhenAsked;
        self
    }

    /// Makes the API demand a nonce with 400 and a JSON body, without a challenge, like
    /// Salesforce's (forcedotcom/SalesforceMobileSDK-Android#3011).
    pub fn ask_in_the_body(mut self) -> Self {
        self.in_the_body = true;
        self
    }

    /// Makes the API demand a nonce for every proof, even one with a valid nonce
    /// (NotASithLord/peerd#301).
    pub fn challenge_for_ever(mut self) -> Self {
        self.challenges_for_ever = true;
        self
    }

    /// Makes the token endpoint spend the refresh token before it checks the proof
    /// (bluesky-social/atproto#3859).
    pub fn spend_first(mut self) -> Self {
        self.spends_first = true;
        self
    }

    /// Makes the token endpoint report the token type `Bearer`, which is a downgrade.
    pub fn say_bearer(mut self) -> Self {
        self.says_bearer = true;
        self
    }
}

/// The endpoint that a proof is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum At {
    Api,
    TokenEndpoint,
}

/// Why a proof is rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    Invalid(&'static str),
    WantsNonce,
}

/// The parts of a request that its proof covers.
pub(super) struct Proven<'a> {
    pub(super) headers: &'a HeaderMap,
    pub(super) method: &'a Method,
    /// The URL without its query.
    pub(super) url: &'a str,
    pub(super) access_token: Option<&'a str>,
}

/// The proofs and nonces that a server remembers.
pub(super) struct Judge {
    rules: Dpop,
    api: VecDeque<String>,
    token_endpoint: VecDeque<String>,
    seen: HashSet<String>,
    made: u64,
}

impl Judge {
    pub(super) fn new(rules: Dpop) -> Self {
        let (api, token_endpoint, seen) = (VecDeque::new(), VecDeque::new(), HashSet::new());
        let mut judge = Self { rules, api, token_endpoint, seen, made: 0 };
        judge.rotate();
        judge
    }

    /// Generates a new nonce for both endpoints.
    pub(super) fn rotate(&mut self) {
        self.add(At::Api);
        self.add(At::TokenEndpoint);
    }

    /// Verifies a proof and returns the thumbprint of its key. `now` is in seconds since the epoch.
    pub(super) fn check(
        &mut self,
        at: At,
        request: &Proven<'_>,
        now: f64,
    ) -> Result<String, Fault> {
        let (thumbprint, claims) = verified(request.headers).map_err(Fault::Invalid)?;
        let text = |name: &str| claims.get(name).and_then(Value::as_str);
        let invalid = |text| Err(Fault::Invalid(text));
        if text("htm") != Some(request.method.as_str()) {
            return invalid("htm is another method");
        }
        if text("htu") != Some(request.url) {
            return invalid("htu is another URL");
        }
        let issued_at = claims.get("iat").and_then(Value::as_u64);
        // Seconds since the epoch are far below 2^53.
        #[allow(clippy::cast_precision_loss)]
        let is_fresh = issued_at.is_some_and(|at| (at as f64 - now).abs() <= MOST_SECONDS_OFF);
        if !is_fresh {
            return invalid("iat is not now");
        }
        let hash = |token| URL_SAFE_NO_PAD.encode(Sha256::digest(token));
        if text("ath").map(str::to_owned) != request.access_token.map(hash) {
            return invalid("ath is of another access token");
        }
        if !text("jti").is_some_and(|id| !id.is_empty() && self.seen.insert(id.to_owned())) {
            return invalid("jti has been seen");
        }
        if at == At::Api && self.rules.challenges_for_ever {
            return Err(Fault::WantsNonce);
        }
        let (wanted, nonces) = match at {
            At::Api => (self.rules.api_nonces, &self.api),
            At::TokenEndpoint => (self.rules.token_endpoint_nonces, &self.token_endpoint),
        };
        let good = |nonce: &str| nonces.iter().any(|known| known == nonce);
        if wanted.is_some() && !text("nonce").is_some_and(good) {
            return Err(Fault::WantsNonce);
        }
        Ok(thumbprint)
    }

    /// Adds the current nonce to a response.
    pub(super) fn add_nonce(&mut self, at: At, headers: &mut HeaderMap) {
        let wanted = match at {
            At::Api => self.rules.api_nonces.is_some() || self.rules.challenges_for_ever,
            At::TokenEndpoint => self.rules.token_endpoint_nonces.is_some(),
        };
        if !wanted {
            return;
        }
        if self.rules.rotates == Rotates::EachResponse {
            self.add(at);
        }
        let nonces = if at == At::Api { &self.api } else { &self.token_endpoint };
        if let Some(value) = nonces.back().and_then(|nonce| HeaderValue::from_str(nonce).ok()) {
            headers.insert(DPOP_NONCE, value);
        }
    }

    fn add(&mut self, at: At) {
        self.made += 1;
        let nonce = format!("{:?}-{}-{:08x}", at, self.made, fastrand::u32(..));
        let (good, nonces) = match at {
            At::Api => (self.rules.api_nonces, &mut self.api),
            At::TokenEndpoint => (self.rules.token_endpoint_nonces, &mut self.token_endpoint),
        };
        nonces.push_back(nonce);
        while nonces.len() > good.unwrap_or(1) {
            nonces.pop_front();
        }
    }
}

/// The claims of the only proof of a request and the thumbprint of its key, if the signature is
/// valid.
fn verified(headers: &HeaderMap) -> Result<(String, Value), &'static str> {
    let mut values = headers.get_all(DPOP).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return Err("one DPoP header is wanted");
    };
    let proof = value.to_str().map_err(|_| "the proof is no text")?;
    let (input, signature) = proof.rsplit_once('.').ok_or("the proof is no JWS")?;
    let (header, payload) = input.split_once('.').ok_or("the proof is no JWS")?;
    let (header, claims) = (json(header)?, json(payload)?);
    let signature = decoded(signature)?;
    if header["typ"] != "dpop+jwt" {
        return Err("typ is not dpop+jwt");
    }
    let jwk = &header["jwk"];
    if jwk.get("d").is_some() {
        return Err("jwk is a private key");
    }
    let member = |name: &str| jwk[name].as_str().ok_or("the jwk lacks a member");
    let bytes = |name| member(name).and_then(decoded);
    let message = input.as_bytes();
    let (is_right, members) = match header["alg"].as_str() {
        Some(alg @ ("ES256" | "ES384")) => {
            let point = [&[4][..], &bytes("x")?, &bytes("y")?].concat();
            let curve =
                if alg == "ES256" { &ECDSA_P256_SHA256_FIXED } else { &ECDSA_P384_SHA384_FIXED };
            let is_right = UnparsedPublicKey::new(curve, point).verify(message, &signature);
            (is_right, vec!["crv", "kty", "x", "y"])
        }
        Some("EdDSA") => {
            let key = UnparsedPublicKey::new(&ED25519, bytes("x")?);
            (key.verify(message, &signature), vec!["crv", "kty", "x"])
        }
        Some(alg @ ("RS256" | "PS256")) => {
            let key = RsaPublicKeyComponents { n: bytes("n")?, e: bytes("e")? };
            let padding = if alg == "RS256" {
                &RSA_PKCS1_2048_8192_SHA256
            } else {
                &RSA_PSS_2048_8192_SHA256
            };
            (key.verify(padding, message, &signature), vec!["e", "kty", "n"])
        }
        _ => return Err("the algorithm is unknown"),
    };
    is_right.map_err(|_| "the signature is wrong")?;
    let text = |name| member(name).map(|value| format!(r#""{name}":"{value}""#));
    let members: Result<Vec<_>, _> = members.into_iter().map(text).collect();
    let canonical = format!("{{{}}}", members?.join(","));
    Ok((URL_SAFE_NO_PAD.encode(Sha256::digest(canonical)), claims))
}

fn decoded(part: &str) -> Result<Vec<u8>, &'static str> {
    URL_SAFE_NO_PAD.decode(part).map_err(|_| "the proof is not base64url")
}

fn json(part: &str) -> Result<Value, &'static str> {
    serde_json::from_slice(&decoded(part)?).map_err(|_| "the proof is no JSON")
}
