//! Which answers of the API refuse the token, by status and challenge (RFC 9110 §11.6.1, RFC 6750
//! §3).

use http::{HeaderMap, StatusCode, header::WWW_AUTHENTICATE};
use http_auth::ChallengeParser;

use super::reply::Reply;

/// What the built-in rule says of an answer, and whether the token that was sent has run out by its
/// own expiry. Given to the rule of
/// [`SessionBuilder::rejected_if`](crate::SessionBuilder::rejected_if).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[allow(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub struct Verdict {
    /// The built-in rule takes this answer for a rejection of the token.
    pub rejected: bool,
    /// The token that was sent has run out by its own expiry.
    pub token_expired: bool,
    /// The response brought a token that the session has adopted
    /// ([`Session::observe`](crate::Session::observe)).
    pub captured: bool,
    /// The response brought a nonce that the request did not carry
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

    /// Of a response that has nothing to do with the session.
    pub(crate) fn unrelated(status: StatusCode) -> Self {
        Self::new(status)
    }

    /// What [`Session::with_credential`](crate::Session::with_credential) wants to know of a call,
    /// with the call's value: [`Rejected`](Reply::Rejected); otherwise [`Again`](Reply::Again) for a
    /// new nonce; otherwise [`Inconclusive`](Reply::Inconclusive) for 5xx, 408 and 429; otherwise
    /// [`Accepted`](Reply::Accepted).
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

/// The server is down or overloaded, which says nothing about the token.
pub(crate) fn is_inconclusive(status: StatusCode) -> bool {
    status.is_server_error()
        || matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS)
}

/// Whether the API refuses the token with this answer.
///
/// `brought_token`: the answer carried a new token in the capture header that the session now has,
/// or one newer still.
pub(crate) fn is_rejection(
    status: StatusCode,
    headers: &HeaderMap,
    brought_token: bool,
    token_expired: bool,
) -> Verdict {
    let rejected = match status {
        StatusCode::UNAUTHORIZED => {
            brought_token || {
                let said = Challenges::read(headers);
                said.bearer && !said.needs_more
            }
        }
        // Airflow answers a plain 403 to expired tokens, without a challenge.
        StatusCode::FORBIDDEN => {
            brought_token || token_expired || Challenges::read(headers).invalid_token
        }
        _ => false,
    };
    Verdict { rejected, token_expired, ..Verdict::new(status) }
}

/// What all challenges of an answer say together.
#[derive(Debug, Default, PartialEq)]
struct Challenges {
    /// A bearer token is asked for. No challenge at all counts as that.
    bearer: bool,
    /// A bearer challenge says `invalid_token`.
    invalid_token: bool,
    /// A bearer challenge says that the token is good but not enough (RFC 6750 §3.1, RFC 9470 §3).
    needs_more: bool,
}

const NEEDS_MORE: [&str; 3] =
    ["insufficient_scope", "insufficient_user_authentication", "insufficient_claims"];

impl Challenges {
    fn read(headers: &HeaderMap) -> Self {
        let unasked = headers
            .get_all(WWW_AUTHENTICATE)
            .iter()
            .all(|value| value.as_bytes().trim_ascii().is_empty());
        let mut said = Self { bearer: unasked, ..Self::default() };
        for value in headers.get_all(WWW_AUTHENTICATE) {
            let text = String::from_utf8_lossy(value.as_bytes());
            for challenge in ChallengeParser::new(&text) {
                match challenge {
                    Ok(challenge) if challenge.scheme.eq_ignore_ascii_case("Bearer") => {
                        said.bearer = true;
                        for (name, value) in &challenge.params {
                            if name.eq_ignore_ascii_case("error") {
                                said.hears(&value.to_unescaped());
                            }
                        }
                    }
                    Ok(_) => {}
                    // The field is full of challenges that the grammar does not allow.
                    Err(_) => said.reads_loosely(&text),
                }
            }
        }
        said
    }

    fn hears(&mut self, error: &str) {
        let error = error.trim();
        self.invalid_token |= error.eq_ignore_ascii_case("invalid_token");
        self.needs_more |= NEEDS_MORE.iter().any(|code| error.eq_ignore_ascii_case(code));
    }

    /// `Bearer` as a word outside quotes is a bearer challenge; its error code is any word of the
    /// text.
    fn reads_loosely(&mut self, text: &str) {
        let is_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
        let outside_quotes = text.split('"').step_by(2);
        if outside_quotes
            .flat_map(|part| part.split(|c| !is_word(c)))
            .any(|word| word.eq_ignore_ascii_case("Bearer"))
        {
            self.bearer = true;
            for word in text.split(|c| !is_word(c)) {
                self.hears(word);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn headers(challenges: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for challenge in challenges {
            headers
                .append(WWW_AUTHENTICATE, HeaderValue::from_bytes(challenge.as_bytes()).unwrap());
        }
        headers
    }

    #[test]
    fn a_401_is_a_refusal_unless_its_challenges_say_otherwise() {
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
        ];
        for (challenges, expected) in table {
            let verdict =
                is_rejection(StatusCode::UNAUTHORIZED, &headers(challenges), false, false);
            assert_eq!(verdict.rejected, *expected, "{challenges:?}");
        }
    }

    #[test]
    fn a_403_is_a_refusal_only_for_a_reason() {
        let rejected = |challenges: &[&str], brought, expired| {
            is_rejection(StatusCode::FORBIDDEN, &headers(challenges), brought, expired).rejected
        };
        assert!(!rejected(&[], false, false));
        assert!(!rejected(&["Bearer"], false, false));
        assert!(!rejected(&["Bearer error=\"insufficient_scope\""], false, false));
        assert!(!rejected(&["Basic error=\"invalid_token\""], false, false));
        assert!(rejected(&["Bearer error=\"invalid_token\""], false, false));
        assert!(rejected(&[], true, false));
        assert!(rejected(&[], false, true));
        assert!(rejected(&["Bearer error=\"insufficient_scope\""], true, false));
    }

    #[test]
    fn a_token_beside_a_401_outweighs_its_challenge() {
        assert!(
            is_rejection(StatusCode::UNAUTHORIZED, &headers(&["Basic realm=\"x\""]), true, false)
                .rejected
        );
    }

    #[test]
    fn no_other_status_refuses_a_token() {
        for status in (100..600).filter(|status| !matches!(status, 401 | 403)) {
            let status = StatusCode::from_u16(status).unwrap();
            assert!(
                !is_rejection(status, &headers(&["Bearer error=\"invalid_token\""]), true, true)
                    .rejected,
                "{status}"
            );
        }
    }
}
