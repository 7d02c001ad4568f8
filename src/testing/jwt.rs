//! HS256 signatures (RFC 7515) with a key of the server.
//!
//! `jsonwebtoken::encode` takes its cryptography from a feature that is global to the build, and
//! panics if two or none are enabled. A test server that enabled one would break a user's build
//! that enables the other. HMAC with SHA-256 is all that is needed, so this module uses `hmac` and
//! `sha2`. `tests/all/auth_server.rs` compares the result with `jsonwebtoken::encode`, byte for byte.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use hmac::{Hmac, Mac as _};
use serde_json::{Map, Value};
use sha2::Sha256;

pub(super) type Claims = Map<String, Value>;

/// The block size of SHA-256, the length of key that HMAC uses unchanged.
const KEY_BYTES: usize = 64;

/// An HMAC key, generated at random for each server.
pub(super) struct Key([u8; KEY_BYTES]);

impl Key {
    pub(super) fn random() -> Self {
        let mut key = [0; KEY_BYTES];
        fastrand::fill(&mut key);
        Self(key)
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Signs a JWT with these claims.
    pub(super) fn jwt(&self, claims: &Claims) -> String {
        let header = BASE64.encode(r#"{"typ":"JWT","alg":"HS256"}"#);
        let message = format!("{header}.{}", BASE64.encode(json(claims)));
        let signature = BASE64.encode(self.mac(&message).finalize().into_bytes());
        format!("{message}.{signature}")
    }

    /// Returns the claims of a JWT that was signed with this key.
    pub(super) fn verify_jwt(&self, token: &str) -> Option<Claims> {
        let (message, signature) = token.rsplit_once('.')?;
        self.check(message, signature)?;
        let (_, claims) = message.split_once('.')?;
        serde_json::from_slice(&BASE64.decode(claims).ok()?).ok()
    }

    /// Signs an opaque token. It contains `~` in place of a JWT's dots, so that it cannot be
    /// mistaken for a JWT.
    pub(super) fn opaque(&self, kind: &str, text: &str) -> String {
        let message = format!("{kind}~{}", BASE64.encode(text));
        let signature = BASE64.encode(self.mac(&message).finalize().into_bytes());
        format!("{message}~{signature}")
    }

    /// Returns the text of an opaque token of this kind that was signed with this key.
    pub(super) fn verify_opaque(&self, kind: &str, token: &str) -> Option<String> {
        let (message, signature) = token.rsplit_once('~')?;
        self.check(message, signature)?;
        let text = message.strip_prefix(kind)?.strip_prefix('~')?;
        String::from_utf8(BASE64.decode(text).ok()?).ok()
    }

    fn mac(&self, message: &str) -> Hmac<Sha256> {
        Hmac::<Sha256>::new((&self.0).into()).chain_update(message)
    }

    fn check(&self, message: &str, signature: &str) -> Option<()> {
        self.mac(message).verify_slice(&BASE64.decode(signature).ok()?).ok()
    }
}

pub(super) fn json(claims: &Claims) -> String {
    Value::Object(claims.clone()).to_string()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_the_key_has_signed_is_verified() {
        let (key, other) = (Key::random(), Key::random());
        let claims = json!({"sub": "a", "exp": 1.5}).as_object().unwrap().clone();
        let jwt = key.jwt(&claims);
        assert_eq!(key.verify_jwt(&jwt), Some(claims.clone()));
        assert_eq!(other.verify_jwt(&jwt), None);
        let forged = format!("{}x", &jwt[..jwt.len() - 1]);
        assert!(forged == jwt || key.verify_jwt(&forged).is_none());
        for odd in ["", ".", "..", "a.b.c", "~"] {
            assert_eq!(key.verify_jwt(odd), None, "{odd}");
        }

        let opaque = key.opaque("at", "text");
        assert_eq!(key.verify_opaque("at", &opaque).as_deref(), Some("text"));
        assert_eq!(key.verify_opaque("rt", &opaque), None);
        assert_eq!(other.verify_opaque("at", &opaque), None);
    }
}
