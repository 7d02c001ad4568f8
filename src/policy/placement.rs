//! Where a request carries the access token.

use std::sync::Arc;

use http::{HeaderName, HeaderValue, header};
use url::{Position, Url};

use super::names::is_token;
use crate::{
    error::{Error, ErrorKind},
    token::AccessToken,
};

/// Where a request carries the access token. See
/// [`SessionBuilder::placement`](crate::SessionBuilder::placement).
///
/// The default is [`Placement::bearer`] (RFC 6750 §2.1).
///
/// ```
/// use reqwest_reauth::{Error, Placement, Session, Tokens};
///
/// fn main() -> Result<(), Error> {
///     let session = Session::builder(Tokens::new("0123abcd")?)
///         .origin("https://api.example.com")
///         // Authorization: Token 0123abcd
///         .placement(Placement::scheme("Token"))
///         .build()?;
///     Ok(())
/// }
/// ```
#[derive(Clone, Debug)]
pub struct Placement(Kind);

#[derive(Clone, Debug)]
enum Kind {
    Bearer,
    Scheme(String),
    Header(Result<HeaderName, Arc<http::Error>>),
    #[cfg(feature = "dpop")]
    Dpop(crate::dpop::DpopKey),
}

impl Placement {
    /// Sends `Authorization: Bearer <token>`.
    pub fn bearer() -> Self {
        Self(Kind::Bearer)
    }

    /// Sends `Authorization: <scheme> <token>`, for example `Authorization: Token 0123abcd`.
    ///
    /// A scheme that is not a token (RFC 9110 §11.1) is reported as
    /// [`InvalidConfig`](ErrorKind::InvalidConfig) by [`build`](crate::SessionBuilder::build).
    pub fn scheme(scheme: impl Into<String>) -> Self {
        Self(Kind::Scheme(scheme.into()))
    }

    /// Sends `<name>: <token>` without a scheme, for example `X-API-Key: 0123abcd`.
    ///
    /// **On a redirect to another host, reqwest removes `Authorization` but keeps any other
    /// header.** Build the client with [`same_origin_redirects`](crate::same_origin_redirects), or
    /// the token can reach a server that the session does not trust. If a response does come from
    /// another origin, an error is logged.
    ///
    /// If the request already has a header of that name, that header is sent instead, as with the
    /// caller's own `Authorization` in the other placements. An `Authorization` header is sent in
    /// addition.
    ///
    /// An invalid header name is reported as [`InvalidConfig`](ErrorKind::InvalidConfig) by
    /// [`build`](crate::SessionBuilder::build).
    pub fn header<N>(name: N) -> Self
    where
        N: TryInto<HeaderName>,
        N::Error: Into<http::Error>,
    {
        Self(Kind::Header(name.try_into().map_err(|error| Arc::new(error.into()))))
    }

    /// Sends `Authorization: DPoP <token>`, and a proof in the header `DPoP` that this key signs
    /// for each request (RFC 9449). A stolen token is useless without the key. Requires the feature
    /// `dpop`.
    ///
    /// Calls to the token endpoint carry proofs by the same key, and the nonces of both servers are
    /// kept. If a response demands a nonce (`use_dpop_nonce`), the caller does not see it: the
    /// request is sent again at once, with that nonce.
    ///
    /// A proof is valid for one URL. **reqwest keeps the proof when it follows a redirect**, where
    /// it is not valid. Build the client with [`Policy::none`](reqwest::redirect::Policy::none), or
    /// with [`same_origin_redirects`](crate::same_origin_redirects), which keeps the proof from
    /// other servers. Put retries outside the chain: a retry inside it sends the same proof twice,
    /// which servers reject.
    ///
    /// ```
    /// use reqwest_reauth::{DpopAlg, DpopKey, Error, OAuthRefresh, Placement, Session, Tokens};
    ///
    /// /// `pem` holds the key that the login was made with.
    /// fn bound_session(pem: &str, tokens: Tokens) -> Result<Session, Error> {
    ///     let key = DpopKey::from_pem(pem.as_bytes(), DpopAlg::Es256)?;
    ///     Session::builder(tokens)
    ///         .origin("https://api.example.com")
    ///         .placement(Placement::dpop(key))
    ///         .refresher(OAuthRefresh::new("https://login.example.com/oauth/token"))
    ///         .build()
    /// }
    /// ```
    #[cfg(feature = "dpop")]
    pub fn dpop(key: crate::dpop::DpopKey) -> Self {
        Self(Kind::Dpop(key))
    }

    /// The key that signs the requests.
    #[cfg(feature = "dpop")]
    pub(crate) fn dpop_key(&self) -> Option<&crate::dpop::DpopKey> {
        match &self.0 {
            Kind::Dpop(key) => Some(key),
            _ => None,
        }
    }

    /// Whether each request needs its own proof beside the token.
    #[cfg_attr(not(feature = "dpop"), allow(clippy::unused_self))]
    #[inline]
    pub(crate) fn needs_proof(&self) -> bool {
        #[cfg(feature = "dpop")]
        return matches!(self.0, Kind::Dpop(_));
        #[cfg(not(feature = "dpop"))]
        false
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        match &self.0 {
            Kind::Scheme(scheme) if !is_token(scheme) => Err(Error::new(
                ErrorKind::InvalidConfig,
                "the scheme of a placement is not a token (RFC 9110)",
            )),
            Kind::Header(Err(error)) => {
                Err(Error::new(ErrorKind::InvalidConfig, Arc::clone(error)))
            }
            _ => Ok(()),
        }
    }

    /// The name of the header.
    #[inline]
    pub(crate) fn name(&self) -> &HeaderName {
        match &self.0 {
            Kind::Header(Ok(name)) => name,
            _ => &header::AUTHORIZATION,
        }
    }

    /// The value of the header, marked sensitive and wiped with the last copy of the token.
    pub(crate) fn value(&self, token: &AccessToken) -> HeaderValue {
        match &self.0 {
            Kind::Scheme(scheme) => token.header_with_scheme(scheme),
            Kind::Header(_) => token.bare_header(),
            Kind::Bearer => token.header().clone(),
            #[cfg(feature = "dpop")]
            Kind::Dpop(_) => token.header_with_scheme("DPoP"),
        }
    }

    /// The scheme of the API's challenges for this token, or `None` for a header without a scheme.
    pub(crate) fn challenge_scheme(&self) -> Option<&str> {
        match &self.0 {
            Kind::Bearer => Some("Bearer"),
            Kind::Scheme(scheme) => Some(scheme),
            Kind::Header(_) => None,
            #[cfg(feature = "dpop")]
            Kind::Dpop(_) => Some("DPoP"),
        }
    }

    /// Whether reqwest keeps the header on a redirect to another host.
    #[inline]
    pub(crate) fn survives_redirects(&self) -> bool {
        matches!(&self.0, Kind::Header(Ok(name)) if is_kept_on_redirect(name))
    }

    /// Whether user info in the URL takes the place of this header, because reqwest turns it into
    /// an `Authorization` header.
    pub(crate) fn is_taken_by_userinfo(&self, url: &Url) -> bool {
        // A fast path for almost all URLs: nothing precedes the host.
        url[Position::AfterScheme..Position::BeforeHost] != *"://"
            && *self.name() == header::AUTHORIZATION
            && (!url.username().is_empty() || url.password().is_some())
    }
}

impl Default for Placement {
    fn default() -> Self {
        Self::bearer()
    }
}

#[cold]
fn is_kept_on_redirect(name: &HeaderName) -> bool {
    ![header::AUTHORIZATION, header::COOKIE, header::PROXY_AUTHORIZATION].contains(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_placement_has_its_header() {
        let token = AccessToken::new("secret").unwrap();
        let table = [
            (Placement::bearer(), "authorization", "Bearer secret", false),
            (Placement::default(), "authorization", "Bearer secret", false),
            (Placement::scheme("Token"), "authorization", "Token secret", false),
            (Placement::header("X-API-Key"), "x-api-key", "secret", true),
            (Placement::header("Authorization"), "authorization", "secret", false),
        ];
        for (placement, name, value, survives) in table {
            placement.check().unwrap();
            assert_eq!(placement.name(), name);
            let header = placement.value(&token);
            assert_eq!(header, value);
            assert!(header.is_sensitive(), "{value}");
            assert_eq!(placement.survives_redirects(), survives, "{name}");
        }
    }

    #[test]
    fn a_bad_name_is_an_invalid_config() {
        for bad in [
            Placement::scheme(""),
            Placement::scheme("To ken"),
            Placement::scheme("T\u{f6}ken"),
            Placement::scheme("Token:"),
            Placement::header(""),
            Placement::header("x key"),
            Placement::header("x-k\u{f6}y"),
        ] {
            assert_eq!(bad.check().unwrap_err().kind(), ErrorKind::InvalidConfig, "{bad:?}");
        }
    }

    #[test]
    fn userinfo_takes_the_place_of_authorization() {
        let table = [
            ("https://user@api.example.com/", true),
            ("https://:word@api.example.com/", true),
            ("https://api.example.com/user@x", false),
        ];
        for (url, taken) in table {
            let url = Url::parse(url).unwrap();
            assert_eq!(Placement::bearer().is_taken_by_userinfo(&url), taken, "{url}");
            assert_eq!(Placement::scheme("Token").is_taken_by_userinfo(&url), taken, "{url}");
            assert!(!Placement::header("x-api-key").is_taken_by_userinfo(&url), "{url}");
        }
    }
}
