use std::{error::Error as StdError, fmt, future::Future, pin::Pin, sync::Arc, time::UNIX_EPOCH};

use aws_lc_rs::{
    encoding::{AsDer, Pkcs8V1Der},
    rand::{SecureRandom, SystemRandom},
    signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair,
        EcdsaSigningAlgorithm, Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256, RSA_PSS_SHA256,
        RsaEncoding, RsaKeyPair,
    },
};
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use http::{HeaderValue, Method};
use rustls_pki_types::{PrivateKeyDer, pem::PemObject as _};
use url::Url;
use zeroize::Zeroizing;

use super::{
    alg::DpopAlg,
    jwk::Jwk,
    proof::{Claims, header, signing_input},
};
use crate::{
    catch_panic::catch_panic,
    error::{Error, ErrorKind},
    time::wall,
};

/// The private key that tokens are bound to (RFC 9449), or a device that holds it. Requires the
/// feature `dpop`.
///
/// Cloning is cheap. `Debug` shows only the thumbprint. The key is wiped when the last clone is
/// dropped.
///
/// A login is only usable with its key. A key from [`generate`](Self::generate) is lost with the
/// process, unless the result of [`to_pem`](Self::to_pem) is stored. Processes that share a login
/// must share its key.
///
/// ```
/// use reqwest_reauth::{DpopAlg, DpopKey, Error};
///
/// fn main() -> Result<(), Error> {
///     let key = DpopKey::generate()?;
///     let pem = key.to_pem()?;
///
///     let restored = DpopKey::from_pem(pem.expose_secret().as_bytes(), DpopAlg::Es256)?;
///     assert_eq!(restored.thumbprint(), key.thumbprint());
///     Ok(())
/// }
/// ```
#[derive(Clone)]
pub struct DpopKey(Arc<Inner>);

struct Inner {
    signer: Signer,
    /// The encoded JOSE header of every proof.
    header: String,
    thumbprint: String,
    signature_length: usize,
    generated: bool,
}

enum Signer {
    Ecdsa(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
    Rsa(RsaKeyPair, &'static dyn RsaEncoding),
    Foreign(Box<Sign>),
}

type Signature = Result<Vec<u8>, Box<dyn StdError + Send + Sync>>;
type Sign = dyn Fn(Vec<u8>) -> Pin<Box<dyn Future<Output = Signature> + Send>> + Send + Sync;

impl DpopKey {
    /// Generates a new ES256 key.
    ///
    /// # Errors
    /// [`Internal`](ErrorKind::Internal) if the system's random number generator fails.
    pub fn generate() -> Result<Self, Error> {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING)
            .map_err(|_| Error::new(ErrorKind::Internal, "the DPoP key could not be generated"))?;
        Self::of_pair(Signer::Ecdsa(pair), DpopAlg::Es256, true)
    }

    /// Reads the first private key from unencrypted PEM: PKCS#8, SEC 1 (`EC PRIVATE KEY`) or PKCS#1
    /// (`RSA PRIVATE KEY`).
    ///
    /// # Errors
    /// [`InvalidConfig`](ErrorKind::InvalidConfig) if there is no such key, if it is encrypted, if
    /// it does not fit `alg`, or if it is an RSA key of less than 2048 bits.
    pub fn from_pem(pem: &[u8], alg: DpopAlg) -> Result<Self, Error> {
        let encrypted = pem.windows(b"ENCRYPTED".len()).any(|window| window == b"ENCRYPTED");
        if encrypted {
            return Err(invalid("the DPoP key is encrypted: decrypt it first"));
        }
        let der = PrivateKeyDer::from_pem_slice(pem)
            .map_err(|_| invalid("the PEM text contains no private key"))?;
        // Wipes the memory that the PEM reader has allocated.
        let der = Der(der);
        Self::of_pair(Signer::from_der(&der.0, alg)?, alg, false)
    }

    /// Creates a key whose private half never leaves its device.
    ///
    /// `jwk` is the public key as JSON (RFC 7517). `sign` receives the JWS signing input and
    /// returns the JWS signature. For ECDSA that is r‖s (RFC 7518 §3.4), not DER. A synchronous
    /// signer returns [`std::future::ready`].
    ///
    /// If `sign` fails, the request fails without being sent. The error has the kind of the
    /// [`Error`] in it, if there is one, and otherwise [`Unavailable`](ErrorKind::Unavailable). A
    /// panic, or a signature of the wrong length, is [`Internal`](ErrorKind::Internal). The time of
    /// the signer counts towards the timeout of the request, or of the attempt at the token
    /// endpoint.
    ///
    /// # Errors
    /// [`InvalidConfig`](ErrorKind::InvalidConfig) if `jwk` is not a public key for `alg`, or has
    /// members of a private key.
    pub fn with_signer<F, Fut>(jwk: &str, alg: DpopAlg, sign: F) -> Result<Self, Error>
    where
        F: Fn(Vec<u8>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Signature> + Send + 'static,
    {
        let jwk = Jwk::parse(jwk, alg).map_err(invalid)?;
        let sign = move |input| Box::pin(sign(input)) as Pin<Box<_>>;
        Ok(Self::new(Signer::Foreign(Box::new(sign)), &jwk, alg, false))
    }

    fn of_pair(signer: Signer, alg: DpopAlg, generated: bool) -> Result<Self, Error> {
        let jwk = match &signer {
            Signer::Ecdsa(pair) => Jwk::ec(alg, pair.public_key().as_ref()),
            Signer::Ed25519(pair) => Some(Jwk::ed25519(pair.public_key().as_ref())),
            Signer::Rsa(pair, _) => {
                let public = pair.public_key();
                let exponent = public.exponent().big_endian_without_leading_zero();
                let modulus = public.modulus().big_endian_without_leading_zero();
                Some(Jwk::rsa(exponent, modulus))
            }
            Signer::Foreign(_) => None,
        };
        let jwk = jwk.ok_or_else(|| invalid("the DPoP key's public key cannot be derived"))?;
        Ok(Self::new(signer, &jwk, alg, generated))
    }

    fn new(signer: Signer, jwk: &Jwk, alg: DpopAlg, generated: bool) -> Self {
        Self(Arc::new(Inner {
            signer,
            header: header(alg.name(), &jwk.to_json()),
            thumbprint: jwk.thumbprint(),
            signature_length: jwk.signature_length(),
            generated,
        }))
    }

    /// Returns the SHA-256 thumbprint of the public key (RFC 7638) in base64url. It is the
    /// `dpop_jkt` of an authorization request, and the `jkt` in the `cnf` claim of a bound token
    /// (RFC 9449 §6 and §10).
    pub fn thumbprint(&self) -> &str {
        &self.0.thumbprint
    }

    /// Returns the key as PKCS#8 in PEM. Store it in a keyring or in a file with mode 0600.
    ///
    /// # Errors
    /// [`InvalidConfig`](ErrorKind::InvalidConfig) for a key [with a signer](Self::with_signer).
    pub fn to_pem(&self) -> Result<DpopKeyPem, Error> {
        let failed = |_| Error::new(ErrorKind::Internal, "the DPoP key could not be encoded");
        let der: Zeroizing<Vec<u8>> = match &self.0.signer {
            Signer::Ecdsa(pair) => copied(pair.to_pkcs8v1().map_err(failed)?.as_ref()),
            Signer::Ed25519(pair) => copied(pair.to_pkcs8v1().map_err(failed)?.as_ref()),
            Signer::Rsa(pair, _) => {
                let der = AsDer::<Pkcs8V1Der<'_>>::as_der(pair).map_err(failed)?;
                copied(der.as_ref())
            }
            Signer::Foreign(_) => {
                return Err(invalid("a DPoP key with a signer cannot be exported"));
            }
        };
        Ok(DpopKeyPem::encode(&der))
    }

    /// Signs a proof for a request that this crate does not send, such as the code exchange of a
    /// login. The value is marked sensitive.
    ///
    /// The proof has no `ath` claim. For a request with an access token, use
    /// [`Credential::headers`](crate::Credential::headers).
    ///
    /// # Errors
    /// [`InvalidConfig`](ErrorKind::InvalidConfig) if `url` is not a URL, and the error of the
    /// [signer](Self::with_signer).
    pub async fn proof(
        &self,
        method: &Method,
        url: impl AsRef<str>,
        nonce: Option<&str>,
    ) -> Result<HeaderValue, Error> {
        let url = Url::parse(url.as_ref())
            .map_err(|error| Error::new(ErrorKind::InvalidConfig, error))?;
        self.sign(method, &url, None, nonce).await
    }

    /// Signs a new proof.
    pub(crate) async fn sign(
        &self,
        method: &Method,
        url: &Url,
        ath: Option<&str>,
        nonce: Option<&str>,
    ) -> Result<HeaderValue, Error> {
        let mut random = [0; 16];
        SystemRandom::new()
            .fill(&mut random)
            .map_err(|_| Error::new(ErrorKind::Internal, "the system returned no random bytes"))?;
        let since_1970 = wall().duration_since(UNIX_EPOCH).unwrap_or_default();
        let issued_at = since_1970.as_secs();
        let claims = Claims { method, url, ath, nonce, issued_at, random };
        self.sign_claims(&claims).await
    }

    pub(super) async fn sign_claims(&self, claims: &Claims<'_>) -> Result<HeaderValue, Error> {
        let mut proof = signing_input(&self.0.header, claims);
        let signature = self.signature(proof.as_bytes()).await?;
        if signature.len() != self.0.signature_length {
            let text = "the DPoP key's signer returned a signature of the wrong length";
            return Err(Error::new(ErrorKind::Internal, text));
        }
        proof.push('.');
        URL_SAFE_NO_PAD.encode_string(signature, &mut proof);
        let mut value =
            HeaderValue::try_from(proof).map_err(|error| Error::new(ErrorKind::Internal, error))?;
        value.set_sensitive(true);
        Ok(value)
    }

    async fn signature(&self, input: &[u8]) -> Result<Vec<u8>, Error> {
        let failed = |_| Error::new(ErrorKind::Internal, "the DPoP key could not sign");
        let random = SystemRandom::new();
        match &self.0.signer {
            Signer::Ecdsa(pair) => Ok(pair.sign(&random, input).map_err(failed)?.as_ref().to_vec()),
            Signer::Ed25519(pair) => Ok(pair.try_sign(input).map_err(failed)?.as_ref().to_vec()),
            Signer::Rsa(pair, encoding) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(*encoding, &random, input, &mut signature).map_err(failed)?;
                Ok(signature)
            }
            Signer::Foreign(sign) => foreign(sign, input.to_vec()).await,
        }
    }

    /// Whether the key was generated in this process, so that no other process can have it.
    pub(crate) fn is_generated(&self) -> bool {
        self.0.generated
    }
}

async fn foreign(sign: &Sign, input: Vec<u8>) -> Result<Vec<u8>, Error> {
    // The closure is called inside the future, so that its own panic is caught too.
    let signature = catch_panic(async { sign(input).await }).await;
    match signature {
        Some(Ok(signature)) => Ok(signature),
        Some(Err(error)) => {
            let kind = error.downcast_ref().map_or(ErrorKind::Unavailable, Error::kind);
            Err(Error::new(kind, error))
        }
        None => Err(Error::new(ErrorKind::Internal, "the DPoP key's signer panicked")),
    }
}

impl Signer {
    fn from_der(der: &PrivateKeyDer<'_>, alg: DpopAlg) -> Result<Self, Error> {
        let rejected = |_| {
            invalid("the DPoP key is damaged, of another type than its algorithm, or too short")
        };
        let bytes = der.secret_der();
        let ecdsa = |curve: &'static EcdsaSigningAlgorithm| {
            EcdsaKeyPair::from_private_key_der(curve, bytes).map(Self::Ecdsa).map_err(rejected)
        };
        let rsa = |encoding: &'static dyn RsaEncoding| {
            let pair = match der {
                PrivateKeyDer::Pkcs1(_) => RsaKeyPair::from_der(bytes),
                _ => RsaKeyPair::from_pkcs8(bytes),
            };
            pair.map(|pair| Self::Rsa(pair, encoding)).map_err(rejected)
        };
        match alg {
            DpopAlg::Es256 => ecdsa(&ECDSA_P256_SHA256_FIXED_SIGNING),
            DpopAlg::Es384 => ecdsa(&ECDSA_P384_SHA384_FIXED_SIGNING),
            DpopAlg::EdDsa => {
                Ed25519KeyPair::from_pkcs8(bytes).map(Self::Ed25519).map_err(rejected)
            }
            DpopAlg::Rs256 => rsa(&RSA_PKCS1_SHA256),
            DpopAlg::Ps256 => rsa(&RSA_PSS_SHA256),
        }
    }
}

/// A DER key that is wiped on drop.
struct Der(PrivateKeyDer<'static>);

impl Drop for Der {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.0);
    }
}

impl fmt::Debug for DpopKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DpopKey").field("thumbprint", &self.0.thumbprint).finish_non_exhaustive()
    }
}

/// A private key as PKCS#8 in PEM. `Debug` does not show it, and it is wiped on drop.
pub struct DpopKeyPem(Zeroizing<String>);

impl DpopKeyPem {
    /// RFC 7468 §2: lines of 64 characters.
    fn encode(der: &[u8]) -> Self {
        const BEGIN: &str = "-----BEGIN PRIVATE KEY-----\n";
        const END: &str = "-----END PRIVATE KEY-----\n";
        let base64 = Zeroizing::new(STANDARD.encode(der));
        let length = BEGIN.len() + base64.len() + base64.len().div_ceil(64) + END.len();
        // Allocated once at full size, so that no shorter copy is left unwiped.
        let mut pem = Zeroizing::new(String::with_capacity(length));
        pem.push_str(BEGIN);
        let mut rest = base64.as_str();
        while !rest.is_empty() {
            let (line, after) = rest.split_at(rest.len().min(64));
            pem.push_str(line);
            pem.push('\n');
            rest = after;
        }
        pem.push_str(END);
        Self(pem)
    }

    /// Returns the PEM text. Whoever has it can use every token that is bound to the key.
    pub fn expose_secret(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for DpopKeyPem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DpopKeyPem(..)")
    }
}

fn copied(der: &[u8]) -> Zeroizing<Vec<u8>> {
    Zeroizing::new(der.to_vec())
}

fn invalid(text: &'static str) -> Error {
    Error::new(ErrorKind::InvalidConfig, text)
}
