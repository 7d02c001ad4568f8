//! Proofs on calls of the token endpoint and the revocation endpoint (RFC 9449 §5 and §8).
//!
//! Without the feature `dpop` there are none, and all of this comes to nothing.

#[cfg(feature = "dpop")]
use std::sync::Arc;

use url::Url;

use super::{grant::TokenRequest, parameters::NotMade, request::Answer};
#[cfg(feature = "dpop")]
use crate::dpop::{DPOP, Dpop, Role, USE_DPOP_NONCE, dpop_error, says_use_nonce};
use crate::refresher::RefreshContext;

/// Signs calls, if the session's tokens are bound to a key.
#[derive(Clone, Default)]
pub(super) struct Prover {
    #[cfg(feature = "dpop")]
    dpop: Option<Arc<Dpop>>,
}

/// The nonce that a call carries.
#[derive(Clone, Default)]
pub(super) struct Carried {
    #[cfg(feature = "dpop")]
    nonce: crate::dpop::Carried,
}

impl Prover {
    /// That of a refresh.
    #[cfg_attr(not(feature = "dpop"), allow(unused_variables))]
    pub(super) fn of(flight: &RefreshContext) -> Self {
        Self {
            #[cfg(feature = "dpop")]
            dpop: flight.dpop().cloned(),
        }
    }

    /// That of a logout, which is told no more than the tokens.
    pub(super) fn of_logout() -> Self {
        Self {
            #[cfg(feature = "dpop")]
            dpop: crate::dpop::of_logout(),
        }
    }

    /// Whether the token endpoint is to issue tokens that are bound to a key.
    #[cfg_attr(not(feature = "dpop"), allow(clippy::unused_self))]
    pub(super) fn is_bound(&self) -> bool {
        #[cfg(feature = "dpop")]
        return self.dpop.is_some();
        #[cfg(not(feature = "dpop"))]
        false
    }

    /// Puts a new proof on the request.
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

    /// Takes the nonce of a response. Whether it asks for the call to be made again with that.
    #[cfg_attr(not(feature = "dpop"), allow(unused_variables, clippy::unused_self))]
    pub(super) fn asks_again(&self, endpoint: &Url, answer: &Answer, carried: &Carried) -> bool {
        #[cfg(feature = "dpop")]
        if let Some(dpop) = &self.dpop {
            let role = Role::TokenEndpoint;
            dpop.take_nonce(role, endpoint, &answer.headers);
            return is_challenge(answer) && dpop.has_other_nonce(role, endpoint, &carried.nonce);
        }
        false
    }
}

#[cfg(feature = "dpop")]
fn is_challenge(answer: &Answer) -> bool {
    let may_be = matches!(answer.status.as_u16(), 400 | 401);
    may_be
        && (says_use_nonce(&answer.body.bytes)
            || dpop_error(&answer.headers)
                .is_some_and(|code| code.eq_ignore_ascii_case(USE_DPOP_NONCE)))
}
