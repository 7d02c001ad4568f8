//! Which responses of the API reject the token, by status and challenge (RFC 9110 §11.6.1, RFC 6750
//! §3).

use http::{HeaderMap, StatusCode};

use super::{challenge::Challenges, reply::Reply};

/// The built-in rule's verdict on a response. It is passed to the rule of
/// [`SessionBuilder::rejected_if`](crate::SessionBuilder::rejected_if), and
/// [`Session::observe`](crate::Session::observe) returns it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[allow(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub struct Verdict {
    /// Whether the response rejects the token.
    pub rejected: bool,
    /// Whether the token that was sent has passed its own expiry.
    pub token_expired: bool,
    /// Whether the response carried a token that the session has adopted
    /// ([`Session::observe`](crate::Session::observe)).
    pub captured: bool,
    /// Whether the response carried a nonce that the request did not have
    /// ([`Session::observe`](crate::Session::observe)).
    pub new_nonce: bool,
    /// The response says nothing about the token.
    pub(crate) inconclusive: bool,
}

impl Verdict {
    fn new(status: StatusCode) -> Self {
        Self {
            rejected: false,
            token_expired: false,
            captured: false,
            new_nonce: false,
            inconclusive: is_inconclusive(status),
        }
    }

    /// The verdict on a response that does not concern the session.
    pub(crate) fn unrelated(status: StatusCode) -> Self {
        Self::new(status)
    }

    /// Converts the verdict into the result of a call of
    /// [`Session::with_credential`](crate::Session::with_credential), with the call's value.
    ///
    /// The result is, in this order: [`Rejected`](Reply::Rejected) for a rejected token,
    /// [`Again`](Reply::Again) for a new nonce, [`Inconclusive`](Reply::Inconclusive) for 5xx, 408
    /// and 429, and otherwise [`Accepted`](Reply::Accepted).
    pub fn reply<T>(self, value: T) -> Reply<T> {
        if self.rejected {
            Reply::Rejected(value)
        } else if self.new_nonce {
            Reply::Again(value)
        } else if self.inconclusive {
            Reply::Inconclusive(value)
        } else {
            Reply::Accepted(value)
        }
    }
}

/// Whether the server is down or overloaded, which says nothing about the token.
pub(crate) fn is_inconclusive(status: StatusCode) -> bool {
    status.is_server_error()
        || matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS)
}

/// Whether the API rejects the token with this response.
///
/// `replaced` says that the session holds another token than the one that was sent, from this
/// response or another source. `own_scheme` is the scheme that the token was sent with.
pub(crate) fn is_rejection(
    status: StatusCode,
    headers: &HeaderMap,
    own_scheme: Option<&str>,
    replaced: bool,
    token_expired: bool,
) -> Verdict {
    let rejected = match status {
        StatusCode::UNAUTHORIZED => {
            replaced || {
                let said = Challenges::read(headers, own_scheme);
                said.satisfiable && !said.needs_more
            }
        }
        // Airflow sends a 403 without a challenge for an expired token, and for a token that it has
        // replaced (apache/airflow#60108).
        StatusCode::FORBIDDEN => {
            replaced || token_expired || Challenges::read(headers, own_scheme).invalid_token
        }
        _ => false,
    };
    Verdict { rejected, token_expired, ..Verdict::new(status) }
}

#[cfg(test)]
mod tests {
    use http::{HeaderValue, header::WWW_AUTHENTICATE};

    use super::*;

    const OWN: Option<&str> = Some("Bearer");

    fn headers(challenges: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for challenge in challenges {
            headers
                .append(WWW_AUTHENTICATE, HeaderValue::from_bytes(challenge.as_bytes()).unwrap());
        }
        headers
    }

    #[test]
    fn a_401_is_judged_by_its_challenges() {
        let table: &[(&[&str], bool)] = &[
            (&[], true),
            (&["Bearer"], true),
            (&["bEaReR realm=\"x\""], true),
            (&["Bearer error=\"invalid_token\""], true),
            (
                &[
                    "Bearer realm=\"a, b=c\", error=\"invalid_token\", error_description=\"x \\\"y\\\", z\"",
                ],
                true,
            ),
            (&["Basic realm=\"x\""], false),
            (&["Basic realm=\"Bearer\""], false),
            (&["Basic realm=\"x, Bearer y\""], false),
            (&["Basic realm=\"x\", Bearer"], true),
            (&["Basic realm=\"x\"", "Bearer realm=\"y\""], true),
            (&["Negotiate", "NTLM"], false),
            (&["Bearer error=\"insufficient_scope\""], false),
            (&["Bearer error=insufficient_scope, scope=\"a b\""], false),
            (&["Bearer ERROR=\"Insufficient_Scope\""], false),
            (&["Bearer error=\"insufficient_user_authentication\", max_age=\"5\""], false),
            (&["Bearer error=\"insufficient_claims\""], false),
            (&["Basic realm=\"x\", Bearer error=\"insufficient_scope\""], false),
            (&["Bearer error_description=\"insufficient_scope\""], true),
            (&["Basic error=\"insufficient_scope\", Bearer"], true),
            (&["Bearer realm=\"unclosed"], true),
            (&["Bearer error=\"insufficient_scope\", realm=\"unclosed"], false),
            (&["Bearer eyJ=token68=, error=invalid"], true),
            (&["Basic realm=\"Bearer, unclosed"], false),
            (&["b\u{e4}rer, Bearer"], true),
            (&[""], true),
            // wso2/product-apim#9110.
            (&["OAuth2 realm=\"WSO2 API Manager\", error=\"invalid_token\""], true),
            // TwitchLib/TwitchLib#298.
            (&["OAuth realm='TwitchTV', error='invalid_token'"], true),
            (&["OAuth \"Facebook Platform\" \"invalid_token\" \"Session has expired\""], true),
            // planningcenter/developers#624.
            (&["Token"], true),
            (&["JWT"], true),
            (&["Unheard-Of realm=\"x\""], true),
            (&["OAuth error='insufficient_scope'"], false),
            (&["Bearer error='insufficient_scope', error_description='more, please'"], false),
            (&["Bearer realm=\"x\" error=\"insufficient_scope\""], false),
            (&["error=\"insufficient_scope\""], false),
            (&["Basic realm='Bearer'"], false),
            (&["Basic realm='a, Bearer'"], false),
            (&["Basic realm=Bob's, Bearer"], true),
            (&["DPoP error=\"invalid_token\""], false),
            (&["Digest nonce=\"x\"", "HOBA", "Mutual", "Kerberos"], false),
            (&["SCRAM-SHA-256 realm=\"x\"", "scram-sha-1"], false),
            (&["AWS4-HMAC-SHA256 Credential=x"], false),
            (&["Basic", "OAuth2"], true),
            (&["Basic error=\"insufficient_scope\"", "OAuth2 realm=\"x\""], true),
            (&[], true),
            (&["bearer"], true),
            (&["BEARER realm=\"x\""], true),
            (&["Bearer error=\"invalid_request\""], true),
            (&["Bearer realm=\"a, b=c; d\", error=\"invalid_token\""], true),
            (&["Bearer realm=\"she said \\\"Basic\\\", twice\""], true),
            (
                &[
                    "Bearer realm=\"x\",error=\"invalid_token\",error_description=\"the \\\"exp\\\" is over, sorry\"",
                ],
                true,
            ),
            (&["Basic realm=\"x, Bearer realm=y\""], false),
            (&["Basic realm=\"x \\\", Bearer \\\"\""], false),
            (&["Digest realm=\"x\", qop=\"auth,auth-int\", nonce=\"n==\""], false),
            (&["Negotiate"], false),
            (&["Negotiate YII=", "NTLM"], false),
            (&["BearerToken realm=\"x\""], true),
            (&["X-Bearer realm=\"x\""], true),
            (&["Basic realm=\"x\", Bearer realm=\"y\""], true),
            (&["Bearer realm=\"y\", Basic realm=\"x\""], true),
            (&["Negotiate", "Basic realm=\"x\"", "bEARER"], true),
            (&["Bearer error=insufficient_scope"], false),
            (&["Bearer scope=\"a b\", error=\"insufficient_scope\""], false),
            (&["bearer ERROR=\"INSUFFICIENT_SCOPE\""], false),
            (&["Bearer error=\"insufficient_\\scope\""], false),
            (
                &[
                    "Bearer error=\"insufficient_user_authentication\", acr_values=\"x\", max_age=\"5\"",
                ],
                false,
            ),
            (&["Bearer error=\"insufficient_claims\", claims=\"e30=\""], false),
            (&["Bearer realm=\"y\"", "Bearer error=\"insufficient_scope\""], false),
            (&["Bearer realm=\"insufficient_scope\", error=\"invalid_token\""], true),
            (&["Bearer realm=\"error=insufficient_scope\""], true),
            (&["Bearer realm=\"unclosed, error=\"insufficient_scope\""], false),
            (&[",,, Bearer"], true),
            (&["=,=\"\""], true),
            (&["Bearer realm=\"caf\u{e9}\""], true),
            (&["bearer: error=\"insufficient_scope\""], false),
        ];
        for (challenges, expected) in table {
            let verdict =
                is_rejection(StatusCode::UNAUTHORIZED, &headers(challenges), OWN, false, false);
            assert_eq!(verdict.rejected, *expected, "{challenges:?}");
        }
    }

    #[test]
    fn the_sessions_own_scheme_is_satisfiable() {
        let rejected = |own: Option<&str>, challenge: &str| {
            let headers = headers(&[challenge]);
            is_rejection(StatusCode::UNAUTHORIZED, &headers, own, false, false).rejected
        };
        for scheme in ["Basic", "DPoP", "Token", "SCRAM-x"] {
            assert!(rejected(Some(scheme), &scheme.to_ascii_uppercase()), "{scheme}");
        }
        assert!(!rejected(Some("DPoP"), "DPoP error=\"insufficient_scope\""));
        assert!(rejected(Some("DPoP"), "Bearer"));
        assert!(!rejected(None, "Basic"));
    }

    #[test]
    fn a_403_rejects_only_for_a_reason() {
        let rejected = |challenges: &[&str], brought, expired| {
            is_rejection(StatusCode::FORBIDDEN, &headers(challenges), OWN, brought, expired)
                .rejected
        };
        assert!(!rejected(&[], false, false));
        assert!(!rejected(&["Bearer"], false, false));
        assert!(!rejected(&["Bearer error=\"insufficient_scope\""], false, false));
        assert!(!rejected(&["Basic error=\"invalid_token\""], false, false));
        assert!(rejected(&["Bearer error=\"invalid_token\""], false, false));
        assert!(rejected(&["OAuth realm='TwitchTV', error='invalid_token'"], false, false));
        assert!(rejected(&["OAuth \"Facebook Platform\" \"invalid_token\" \"x\""], false, false));
        assert!(rejected(&["bearer realm=\"x\", ERROR=invalid_token"], false, false));
        assert!(rejected(&["Basic realm=\"x\"", "Bearer error=\"invalid_token\""], false, false));
        assert!(!rejected(&["Basic realm=\"invalid_token\""], false, false));
        assert!(!rejected(&["Bearer error_description=\"invalid_token\""], false, false));
        assert!(!rejected(&["Bearer realm=\"x\", error_uri=\"invalid_token\""], false, false));
        assert!(rejected(&[], true, false));
        assert!(rejected(&[], false, true));
        assert!(rejected(&["Bearer error=\"insufficient_scope\""], true, false));
    }

    #[test]
    fn a_token_beside_a_401_outweighs_its_challenge() {
        assert!(
            is_rejection(
                StatusCode::UNAUTHORIZED,
                &headers(&["Basic realm=\"x\""]),
                OWN,
                true,
                false
            )
            .rejected
        );
    }

    #[test]
    fn no_other_status_is_a_rejection() {
        for status in (100..600).filter(|status| !matches!(status, 401 | 403)) {
            let status = StatusCode::from_u16(status).unwrap();
            assert!(
                !is_rejection(
                    status,
                    &headers(&["Bearer error=\"invalid_token\""]),
                    OWN,
                    true,
                    true
                )
                .rejected,
                "{status}"
            );
        }
    }
}
