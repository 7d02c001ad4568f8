//! The settings of an [`AuthServer`].

use std::time::Duration;

use serde_json::Value;

use super::{AuthServer, jwt::Claims};

/// How an [`AuthServer`] rejects a token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// 401 with a challenge (RFC 6750 §3).
    #[default]
    Unauthorized401,
    /// 403 with `{"detail":"Invalid auth token"}` and no challenge, like Airflow.
    Forbidden403,
}

/// What happens to a refresh token after use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Rotation {
    /// The token is spent, and the response carries a new one. If the spent token is used again,
    /// the grant is revoked (RFC 9700 §4.14.2).
    #[default]
    SingleUse,
    /// Like `SingleUse`, except that the token spent last can be used again, any number of times,
    /// and always yields the same successor. This suits clients whose response was lost.
    ReuseGrace,
    /// The token stays valid, and the response carries no new one.
    Off,
}

/// The settings of an [`AuthServer`].
///
/// # Defaults
///
/// | setting | default |
/// | --- | --- |
/// | [`lifetime`](Self::lifetime) | one hour |
/// | [`opaque_tokens`](Self::opaque_tokens) | off: access tokens are JWTs |
/// | [`reissue_after`](Self::reissue_after) | never |
/// | [`grace`](Self::grace) | zero |
/// | [`only_newest_token`](Self::only_newest_token) | off: every unexpired token is valid |
/// | [`refusal`](Self::refusal) | [`Refusal::Unauthorized401`] |
/// | [`rotation`](Self::rotation) | [`Rotation::SingleUse`] |
/// | [`claim`](Self::claim) | none |
/// | `dpop` | off: tokens are not bound to keys |
#[derive(Clone, Debug)]
#[must_use]
pub struct AuthServerBuilder {
    pub(super) settings: Settings,
}

#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) lifetime: Duration,
    pub(super) opaque: bool,
    pub(super) reissue_after: Option<f64>,
    pub(super) grace: Duration,
    pub(super) only_newest: bool,
    pub(super) refusal: Refusal,
    pub(super) rotation: Rotation,
    pub(super) claims: Claims,
    #[cfg(feature = "dpop")]
    pub(super) dpop: Option<super::Dpop>,
}

impl AuthServerBuilder {
    pub(super) fn new() -> Self {
        Self {
            settings: Settings {
                lifetime: Duration::from_secs(60 * 60),
                opaque: false,
                reissue_after: None,
                grace: Duration::ZERO,
                only_newest: false,
                refusal: Refusal::default(),
                rotation: Rotation::default(),
                claims: Claims::new(),
                #[cfg(feature = "dpop")]
                dpop: None,
            },
        }
    }

    /// Sets the lifetime of an access token. Fractions of a second are kept. Default: one hour.
    ///
    /// For lifetimes below a minute, and for fractions, `iat`, `exp` and `expires_in` are fractions
    /// of seconds (RFC 7519 §2 allows it). Otherwise they are whole seconds.
    pub fn lifetime(mut self, lifetime: Duration) -> Self {
        self.settings.lifetime = lifetime;
        self
    }

    /// Makes access tokens opaque: only the token endpoint's `expires_in` tells their expiry.
    /// Default: access tokens are JWTs.
    pub fn opaque_tokens(mut self) -> Self {
        self.settings.opaque = true;
        self
    }

    /// Adds a new token in `Refreshed-API-Token` to API responses, whatever their status, once this
    /// fraction of the token's lifetime has passed. Airflow does so at 0.8. Default: never.
    pub fn reissue_after(mut self, fraction: f64) -> Self {
        self.settings.reissue_after = Some(fraction);
        self
    }

    /// Accepts a token for this long after its expiry, and replaces it in `Refreshed-API-Token`.
    /// The signature and every other claim are still verified, and the new token carries the same
    /// claims (apache/airflow#67944). Default: zero.
    pub fn grace(mut self, after_expiry: Duration) -> Self {
        self.settings.grace = after_expiry;
        self
    }

    /// Accepts only the newest access token of a grant, like django-oauth-toolkit. Default: every
    /// unexpired token is valid.
    pub fn only_newest_token(mut self) -> Self {
        self.settings.only_newest = true;
        self
    }

    /// Sets how an invalid token is rejected. Default: [`Refusal::Unauthorized401`].
    pub fn refusal(mut self, refusal: Refusal) -> Self {
        self.settings.refusal = refusal;
        self
    }

    /// Sets what happens to a refresh token after use. Default: [`Rotation::SingleUse`].
    pub fn rotation(mut self, rotation: Rotation) -> Self {
        self.settings.rotation = rotation;
        self
    }

    /// Adds a claim to every access token. The claims `iss`, `aud`, `sub`, `jti`, `iat` and `exp`
    /// are always present and cannot be replaced.
    pub fn claim(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.settings.claims.insert(name.into(), value.into());
        self
    }

    /// Binds tokens to keys (RFC 9449). Both endpoints require a proof with each request and verify
    /// it fully. They issue tokens of the type `DPoP` whose `cnf` claim names the key. The first
    /// proof that is sent with a login's token binds that login to its key. Default: not bound.
    /// Requires the feature `dpop`.
    #[cfg(feature = "dpop")]
    pub fn dpop(mut self, rules: super::Dpop) -> Self {
        self.settings.dpop = Some(rules);
        self
    }

    /// Starts the server on a free port of 127.0.0.1, on the current runtime.
    ///
    /// # Panics
    /// Panics if no port is available.
    pub async fn start(self) -> AuthServer {
        AuthServer::serve(self.settings).await
    }
}
