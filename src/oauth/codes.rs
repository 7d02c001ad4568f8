//! The meaning of a token endpoint's status and error code (RFC 6749 §5.2, and the codes that
//! providers use instead).

use http::StatusCode;

use super::failure::Failure;

/// Judges a response without usable tokens by its status alone. Returns `None` if the code decides.
pub(super) fn by_status(status: StatusCode) -> Option<Failure> {
    Some(match status.as_u16() {
        // A gateway responded. The token endpoint behind it may have rotated the refresh token.
        408 | 502 | 504 | 520..=524 => Failure::Lost,
        409 | 423 | 425 | 429 | 500 | 503 | 529 => Failure::Busy,
        501 => Failure::Rejected,
        300..=399 => Failure::Unusable("the token endpoint redirects"),
        407 | 500.. => Failure::Down,
        _ => return None,
    })
}

/// Judges a code together with its description.
pub(super) fn by_code(code: &str, description: Option<&str>) -> Option<Failure> {
    let says = |text: &str| {
        description.is_some_and(|description| description.to_ascii_lowercase().contains(text))
    };
    let known = known_code(code)?;
    Some(match known {
        // Salesforce, for a second request while it processes the first
        // (segmentio/action-destinations#2300).
        "invalid_grant" | "unknown_error"
            if says("already being processed") || says("retry your request") =>
        {
            Failure::Busy
        }
        // Microsoft Entra, for a client that sends too many requests.
        "invalid_grant" if says("aadsts50196") => Failure::Throttled,
        "temporarily_unavailable" | "server_error" | "slow_down" | "rate_limit_exceeded" => {
            Failure::Busy
        }
        _ if OVER.contains(&known) => Failure::GrantOver,
        _ => Failure::Rejected,
    })
}

/// The codes that end a login.
const OVER: [&str; 13] = [
    "invalid_grant",
    // GitHub.
    "bad_refresh_token",
    "invalid_refresh_token",
    "refresh_token_expired",
    // Supabase, both.
    "refresh_token_not_found",
    "refresh_token_already_used",
    "token_expired",
    "expired_token",
    "token_revoked",
    "invalid_token",
    // OpenID Connect Core §3.1.2.6. Microsoft Entra's token endpoint uses them too.
    "login_required",
    "interaction_required",
    "consent_required",
];

/// The other codes with a known meaning.
const OTHERS: [&str; 13] = [
    "invalid_request",
    "invalid_client",
    "unauthorized_client",
    "unsupported_grant_type",
    "invalid_scope",
    // RFC 8707 §2.
    "invalid_target",
    // RFC 9449 §5 and §8.
    "invalid_dpop_proof",
    "use_dpop_nonce",
    "temporarily_unavailable",
    "server_error",
    // RFC 8628 §3.5.
    "slow_down",
    "rate_limit_exceeded",
    // Salesforce.
    "unknown_error",
];

/// Returns the known code that this one equals, ignoring case. A known code is safe to print,
/// because no secret is spelled like one.
pub(super) fn known_code(code: &str) -> Option<&'static str> {
    let code = code.trim();
    OVER.into_iter().chain(OTHERS).find(|known| known.eq_ignore_ascii_case(code))
}

/// Returns whether a token of this type is certainly not a bearer token. Providers write many other
/// things for `Bearer` (`bot`, `JWT`, `User Access Token`), so only known other types are rejected.
pub(super) fn is_no_bearer_type(kind: &str) -> bool {
    const OTHERS: [&str; 5] = ["mac", "dpop", "pop", "hok", "N_A"];
    OTHERS.iter().any(|other| kind.trim().eq_ignore_ascii_case(other))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_that_decide_alone() {
        use Failure::{Busy, Down, Lost, Rejected, Unusable};
        let redirects = Unusable("the token endpoint redirects");
        for status in 100..1000 {
            let expected = match status {
                408 | 502 | 504 | 520 | 521 | 522 | 523 | 524 => Some(Lost),
                409 | 423 | 425 | 429 | 500 | 503 | 529 => Some(Busy),
                501 => Some(Rejected),
                300..=399 => Some(redirects),
                407 | 500..=999 => Some(Down),
                _ => None,
            };
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(by_status(status), expected, "{status}");
        }
    }

    #[test]
    fn codes_in_any_case_and_with_their_text() {
        use Failure::{Busy, GrantOver, Rejected, Throttled};
        let busy = "Token request is ALREADY being processed";
        let throttle = "AADSTS50196: The server terminated an operation because of a client loop";
        let table = [
            ("invalid_grant", None, Some(GrantOver)),
            ("INVALID_GRANT", Some("expired"), Some(GrantOver)),
            (" Invalid_Grant ", None, Some(GrantOver)),
            ("invalid_grant", Some(busy), Some(Busy)),
            ("invalid_grant", Some("Please retry your request"), Some(Busy)),
            ("unknown_error", Some("retry your request"), Some(Busy)),
            ("unknown_error", None, Some(Rejected)),
            ("invalid_request", Some(busy), Some(Rejected)),
            ("invalid_grant", Some(throttle), Some(Throttled)),
            ("invalid_request", Some(throttle), Some(Rejected)),
            ("slow_down", None, Some(Busy)),
            ("rate_limit_exceeded", None, Some(Busy)),
            ("invalid_target", None, Some(Rejected)),
            ("odd", Some(busy), None),
            ("", None, None),
        ];
        for (code, description, expected) in table {
            assert_eq!(by_code(code, description), expected, "{code} {description:?}");
        }
        assert!(OVER.iter().all(|code| by_code(code, None) == Some(GrantOver)));
    }

    #[test]
    fn only_known_types_are_no_bearer_types() {
        for kind in ["mac", "MAC", " DPoP ", "pop", "HoK", "n_a"] {
            assert!(is_no_bearer_type(kind), "{kind}");
        }
        for kind in ["Bearer", "bearer ", "", " ", "bot", "JWT", "BearerToken", "User Access Token"]
        {
            assert!(!is_no_bearer_type(kind), "{kind}");
        }
    }
}
