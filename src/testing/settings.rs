//! The settings of an [`AuthServer`].

use std::time::Duration;

use serde_json::Value;

use super::{AuthServer, jwt::Claims};

/// How an [`AuthServer`] says that it does not take a token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// 401 with a challenge, as RFC 6750 §3 has it.
    #[default]
    Unauthorized401,
    /// 403 with `{"detail":"Invalid auth token"}` and no challenge, as Airflow has it.
    Forbidden403,
}

/// What becomes of a refresh token that was used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Rotation {
    /// It is spent and a new one comes with the answer. If it comes again, the grant is revoked
    /// (RFC 9700 §4.14.2).
    #[default]
    SingleUse,
    /// As `SingleUse`, but the one spent last is taken once more and as often as it comes, and
    /// brings the same successor. For clients whose answer was lost.
    ReuseGrace,
    /// It stays good, and the answer has none.
    Off,
}

/// Settings of an [`AuthServer`]. Those not set are: tokens are JWTs that live one hour, each of
/// them is taken until it expires, expired ones are refused with 401, refresh tokens are
/// single-use, and nothing is reissued by header.
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

    /// How long an access token lives; fractions of a second are kept. Default: one hour.
    ///
    /// Times below a minute, and fractions, are told as fractions of seconds in `iat`, `exp` and
    /// `expires_in` (RFC 7519 §2 allows it), others in whole seconds.
    pub fn lifetime(mut self, lifetime: Duration) -> Self {
        self.settings.lifetime = lifetime;
        self
    }

    /// Access tokens are no JWTs: their expiry is told by the token endpoint's `expires_in` alone.
    /// Default: they are.
    pub fn opaque_tokens(mut self) -> Self {
        self.settings.opaque = true;
        self
    }

    /// Answers of the API, whatever their status, bring a new token in `Refreshed-API-Token` once
    /// this fraction of the token's life has passed, as Airflow's do at 0.8. Default: never.
    pub fn reissue_after(mut self, fraction: f64) -> Self {
        self.settings.reissue_after = Some(fraction);
        self
    }

    /// For this long after its expiry a token is still taken and replaced in `Refreshed-API-Token`:
    /// the signature and every other claim are verified, only the expiry is relaxed, and the new
    /// token carries the same claims (apache/airflow#67944). Default: zero.
    pub fn grace(mut self, after_expiry: Duration) -> Self {
        self.settings.grace = after_expiry;
        self
    }

    /// Only the access token of a grant that was issued last is taken, as by django-oauth-toolkit.
    /// Default: all that live.
    pub fn only_newest_token(mut self) -> Self {
        self.settings.only_newest = true;
        self
    }

    /// How a token that is not taken is refused. Default: [`Refusal::Unauthorized401`].
    pub fn refusal(mut self, refusal: Refusal) -> Self {
        self.settings.refusal = refusal;
        self
    }

    /// What becomes of used refresh tokens. Default: [`Rotation::SingleUse`].
    pub fn rotation(mut self, rotation: Rotation) -> Self {
        self.settings.rotation = rotation;
        self
    }

    /// A claim that every access token carries, beside `iss`, `aud`, `sub`, `jti`, `iat` and `exp`,
    /// which cannot be replaced.
    pub fn claim(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.settings.claims.insert(name.into(), value.into());
        self
    }

    /// Tokens are bound to keys (RFC 9449): both endpoints want a proof with each request, verify
    /// it in full, and issue tokens of the type `DPoP` whose `cnf` names the key. A login's tokens
    /// are bound to the key of the first proof that comes with one of them. Default: they are not.
    /// Feature `dpop`.
    #[cfg(feature = "dpop")]
    pub fn dpop(mut self, rules: super::Dpop) -> Self {
        self.settings.dpop = Some(rules);
        self
    }

    /// Starts the server on a free port of 127.0.0.1, on the runtime that this is called on.
    ///
    /// # Panics
    /// If no port can be had.
    pub async fn start(self) -> AuthServer {
        AuthServer::serve(self.settings).await
    }
}
