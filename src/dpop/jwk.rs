//! The public half of a key as a JSON Web Key (RFC 7517), and its thumbprint (RFC 7638).

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use super::alg::DpopAlg;

/// Members that only private or symmetric keys have (RFC 7518 §6).
const PRIVATE: [&str; 8] = ["d", "p", "q", "dp", "dq", "qi", "oth", "k"];
/// The minimum size of an RSA key (RFC 7518 §3.3).
const SMALLEST_RSA_MODULUS: usize = 2048 / 8;

/// The required members of a public key, in the order that RFC 7638 hashes them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Jwk {
    Ec { crv: &'static str, x: String, y: String },
    Okp { x: String },
    Rsa { e: String, n: String },
}

impl Jwk {
    /// Builds a key from an uncompressed point, `0x04`, x, y (SEC 1 §2.3.3).
    pub(super) fn ec(alg: DpopAlg, point: &[u8]) -> Option<Self> {
        let (crv, length) = curve(alg)?;
        let (&4, coordinates) = point.split_first()? else { return None };
        let (x, y) = coordinates.split_at_checked(length).filter(|(_, y)| y.len() == length)?;
        Some(Self::Ec { crv, x: encode(x), y: encode(y) })
    }

    pub(super) fn ed25519(public: &[u8]) -> Self {
        Self::Okp { x: encode(public) }
    }

    pub(super) fn rsa(exponent: &[u8], modulus: &[u8]) -> Self {
        Self::Rsa { e: encode(exponent), n: encode(modulus) }
    }

    /// Parses the public key that a caller gives for a signer. The error says what is wrong with
    /// it.
    pub(super) fn parse(text: &str, alg: DpopAlg) -> Result<Self, &'static str> {
        let members: Map<String, Value> =
            serde_json::from_str(text).map_err(|_| "the jwk is not a JSON object")?;
        if PRIVATE.iter().any(|name| members.contains_key(*name)) {
            return Err("the jwk has members of a private key: pass the public key only");
        }
        let text = |name| members.get(name).and_then(Value::as_str);
        if text("alg").is_some_and(|named| named != alg.name()) {
            return Err("the jwk is for another algorithm");
        }
        let bytes = |name| {
            text(name)
                .and_then(|value| URL_SAFE_NO_PAD.decode(value).ok())
                .ok_or("a member of the jwk is missing, or is not base64url without padding")
        };
        match (alg, text("kty")) {
            (DpopAlg::Es256 | DpopAlg::Es384, Some("EC")) => {
                let (crv, length) = curve(alg).ok_or("no such curve")?;
                if text("crv") != Some(crv) {
                    return Err("the jwk's curve does not match the algorithm");
                }
                let (x, y) = (bytes("x")?, bytes("y")?);
                if x.len() != length || y.len() != length {
                    return Err("the jwk's coordinates do not have the length of the curve");
                }
                Ok(Self::Ec { crv, x: encode(&x), y: encode(&y) })
            }
            (DpopAlg::EdDsa, Some("OKP")) => {
                if text("crv") != Some("Ed25519") {
                    return Err("the jwk's curve does not match the algorithm");
                }
                match bytes("x")? {
                    x if x.len() == 32 => Ok(Self::ed25519(&x)),
                    _ => Err("the jwk's x is not 32 bytes long"),
                }
            }
            (DpopAlg::Rs256 | DpopAlg::Ps256, Some("RSA")) => {
                let (exponent, modulus) = (bytes("e")?, bytes("n")?);
                if modulus.len() < SMALLEST_RSA_MODULUS || modulus[0] < 0x80 {
                    return Err("the jwk's RSA modulus is under 2048 bits");
                }
                Ok(Self::rsa(&exponent, &modulus))
            }
            _ => Err("the jwk's key type does not match the algorithm"),
        }
    }

    /// The members in lexicographic order without white space, the input of the hash in RFC 7638
    /// §3.
    pub(super) fn to_json(&self) -> String {
        match self {
            Self::Ec { crv, x, y } => {
                format!(r#"{{"crv":"{crv}","kty":"EC","x":"{x}","y":"{y}"}}"#)
            }
            Self::Okp { x } => format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{x}"}}"#),
            Self::Rsa { e, n } => format!(r#"{{"e":"{e}","kty":"RSA","n":"{n}"}}"#),
        }
    }

    pub(super) fn thumbprint(&self) -> String {
        encode(&Sha256::digest(self.to_json()))
    }

    /// The length in bytes of a JWS signature by this key.
    pub(super) fn signature_length(&self) -> usize {
        match self {
            Self::Ec { crv: "P-384", .. } => 96,
            Self::Ec { .. } | Self::Okp { .. } => 64,
            // The length of the modulus (RFC 8017 §8).
            Self::Rsa { n, .. } => n.len() * 3 / 4,
        }
    }
}

fn curve(alg: DpopAlg) -> Option<(&'static str, usize)> {
    match alg {
        DpopAlg::Es256 => Some(("P-256", 32)),
        DpopAlg::Es384 => Some(("P-384", 48)),
        DpopAlg::EdDsa | DpopAlg::Rs256 | DpopAlg::Ps256 => None,
    }
}

fn encode(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}
