//! Sender-constrained tokens (RFC 9449): keys, proofs, and the nonces of servers.
//!
//! `key` holds a private key or a signer, `jwk` is its public half, `proof` builds the signing
//! input, and `nonce` keeps the newest nonce of each server. All decisions are pure. Only a
//! signature is awaited, because a signer may be a device.

mod alg;
mod jwk;
mod key;
mod nonce;
mod proof;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use url::Url;

use self::nonce::Nonces;
pub(crate) use self::nonce::{
    Challenge, Role, USE_DPOP_NONCE, api_challenge, dpop_error, says_use_nonce,
};
pub use self::{
    alg::DpopAlg,
    key::{DpopKey, DpopKeyPem},
};
use crate::{error::Error, token::AccessToken};

/// The request header that carries a proof.
pub(crate) const DPOP: HeaderName = HeaderName::from_static("dpop");

/// The DPoP state of a session: its key, and the nonces of its servers.
pub(crate) struct Dpop {
    key: DpopKey,
    nonces: Nonces,
}

/// The nonce in a request, if its server has issued one.
pub(crate) type Carried = Option<Arc<str>>;

tokio::task_local! {
    /// Set while the refresher of a session revokes, because
    /// [`Refresher::revoke`](crate::Refresher::revoke) receives only the tokens.
    static OF_LOGOUT: Option<Arc<Dpop>>;
}

/// Runs the future with this as the value of [`of_logout`].
pub(crate) fn for_logout<F: Future>(
    dpop: Option<Arc<Dpop>>,
    future: F,
) -> impl Future<Output = F::Output> {
    OF_LOGOUT.scope(dpop, future)
}

pub(crate) fn of_logout() -> Option<Arc<Dpop>> {
    OF_LOGOUT.try_with(Clone::clone).unwrap_or_default()
}

impl Dpop {
    pub(crate) fn new(key: DpopKey) -> Self {
        Self { key, nonces: Nonces::default() }
    }

    pub(crate) fn key(&self) -> &DpopKey {
        &self.key
    }

    /// Signs a new proof for a request, with the newest nonce of its server.
    pub(crate) async fn prove(
        &self,
        role: Role,
        method: &Method,
        url: &Url,
        access_token: Option<&AccessToken>,
    ) -> Result<(HeaderValue, Carried), Error> {
        let nonce = self.nonces.get(url, role);
        let proof = self
            .key
            .sign(method, url, access_token.map(AccessToken::hash), nonce.as_deref())
            .await?;
        Ok((proof, nonce))
    }

    /// Stores the nonce of a response.
    pub(crate) fn take_nonce(&self, role: Role, url: &Url, headers: &HeaderMap) {
        self.nonces.take(url, role, headers);
    }

    /// Whether the server has issued another nonce than the one in the request.
    pub(crate) fn has_other_nonce(&self, role: Role, url: &Url, carried: &Carried) -> bool {
        let newest = self.nonces.get(url, role);
        newest.is_some() && newest != *carried
    }
}
