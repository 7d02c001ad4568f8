//! DPoP proofs for the token endpoint and the revocation endpoint (RFC 9449 §5 and §8).
//!
//! Without the feature `dpop` these types are empty.

#[cfg(feature = "dpop")]
use std::sync::Arc;

use url::Url;

use super::{
    parameters::NotMade,
    wire::{RawResponse, TokenRequest},
};
#[cfg(feature = "dpop")]
use crate::dpop::{DPOP, Dpop, Role, USE_DPOP_NONCE, dpop_error, says_use_nonce};
use crate::refresher::RefreshContext;

/// Signs calls if the session's tokens are bound to a key.
#[derive(Clone, Default)]
pub(super) struct Prover {
    #[cfg(feature = "dpop")]
    dpop: Option<Arc<Dpop>>,
}

/// The nonce in a call.
#[derive(Clone, Default)]
pub(super) struct Carried {
    #[cfg(feature = "dpop")]
    nonce: crate::dpop::Carried,
}

impl Prover {
    /// The prover of a refresh.
    #[cfg_attr(not(feature = "dpop"), allow(unused_variables))]
    pub(super) fn of(context: &RefreshContext) -> Self {
        Self {
            #[cfg(feature = "dpop")]
            dpop: context.dpop().cloned(),
        }
    }

    /// The prover of a logout, which receives only the tokens.
    pub(super) fn of_logout() -> Self {
        Self {
            #[cfg(feature = "dpop")]
            dpop: crate::dpop::of_logout(),
        }
    }

    /// Whether the token endpoint is expected to issue tokens that are bound to a key.
    #[cfg_attr(not(feature = "dpop"), allow(clippy::unused_self))]
    pub(super) fn is_bound(&self) -> bool {
        #[cfg(feature = "dpop")]
        return self.dpop.is_some();
        #[cfg(not(feature = "dpop"))]
        false
    }

    /// Adds a new proof to the request.
    #[cfg_attr(
        not(feature = "dpop"),
        allow(unused_variables, clippy::unused_async, clippy::unused_self)
    )]
    pub(super) async fn prove(&self, request: &mut TokenRequest) -> Result<Carried, NotMade> {
        #[cfg(feature = "dpop")]
        if let Some(dpop) = &self.dpop {
            let method = http::Method::POST;
            let proving = dpop.prove(Role::TokenEndpoint, &method, &request.endpoint, None);
            let (proof, nonce) =
                proving.await.map_err(|error| NotMade::of("DPoP".to_owned(), error))?;
            request.headers.insert(DPOP, proof);
            return Ok(Carried { nonce });
        }
        Ok(Carried::default())
    }

    /// Stores the nonce of a response. Returns whether the response asks for the call to be
    /// repeated with that nonce.
    #[cfg_attr(not(feature = "dpop"), allow(unused_variables, clippy::unused_self))]
    pub(super) fn asks_again(
        &self,
        endpoint: &Url,
        response: &RawResponse,
        carried: &Carried,
    ) -> bool {
        #[cfg(feature = "dpop")]
        if let Some(dpop) = &self.dpop {
            let role = Role::TokenEndpoint;
            dpop.take_nonce(role, endpoint, &response.headers);
            return is_challenge(response) && dpop.has_other_nonce(role, endpoint, &carried.nonce);
        }
        false
    }
}

#[cfg(feature = "dpop")]
fn is_challenge(response: &RawResponse) -> bool {
    let may_be = matches!(response.status.as_u16(), 400 | 401);
    may_be
        && (says_use_nonce(&response.body.bytes)
            || dpop_error(&response.headers)
                .is_some_and(|code| code.eq_ignore_ascii_case(USE_DPOP_NONCE)))
}
