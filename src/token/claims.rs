//! Reads `exp` and `iat` of an access token that is a JWT. The claims are only scheduling hints: no
//! signature is checked, and an unreadable claim counts as absent.

use std::{
    fmt,
    time::{Duration, SystemTime},
};

use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, Visitor},
};
use serde_json::value::RawValue;

use super::AccessToken;
use crate::time::wall;

/// The claims that matter. Members stay raw, because `serde_json` rejects the whole document for
/// one number out of range.
#[derive(Default)]
struct Claims {
    exp: Option<Box<RawValue>>,
    iat: Option<Box<RawValue>>,
}

/// The `exp` claim (RFC 7519 §4.1.4) on the local clock.
pub(super) fn expires_at(token: &AccessToken) -> Option<SystemTime> {
    SystemTime::UNIX_EPOCH.checked_add(numeric_date(read(token)?.exp.as_deref())?)
}

/// `exp − iat`: zero if the token was already expired when it was issued, `None` if either is
/// missing.
pub(super) fn lifetime(token: &AccessToken) -> Option<Duration> {
    let claims = read(token)?;
    let exp = numeric_date(claims.exp.as_deref())?;
    match numeric_date(claims.iat.as_deref()) {
        Some(iat) => Some(exp.saturating_sub(iat)),
        // Without `iat`, only the local clock remains to compare `exp` with.
        None => Some(
            SystemTime::UNIX_EPOCH.checked_add(exp)?.duration_since(wall()).unwrap_or_default(),
        ),
    }
}

fn read(token: &AccessToken) -> Option<Claims> {
    jsonwebtoken::dangerous::insecure_decode_claims(token.expose_secret()).ok()
}

/// Written by hand, because a derived implementation also accepts an array of the members. The last
/// of several members with the same name wins (RFC 7519 §4).
impl<'de> Deserialize<'de> for Claims {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Walk;

        impl<'de> Visitor<'de> for Walk {
            type Value = Claims;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Claims, A::Error> {
                let mut claims = Claims::default();
                while let Some(name) = map.next_key::<String>()? {
                    match &*name {
                        "exp" => claims.exp = Some(map.next_value()?),
                        "iat" => claims.iat = Some(map.next_value()?),
                        _ => drop(map.next_value::<IgnoredAny>()?),
                    }
                }
                Ok(claims)
            }
        }

        deserializer.deserialize_map(Walk)
    }
}

/// A `NumericDate` (RFC 7519 §2): seconds since the epoch, possibly with a fraction. Negative and
/// infinite values are rejected.
fn numeric_date(raw: Option<&RawValue>) -> Option<Duration> {
    let seconds: f64 = raw?.get().parse().ok()?;
    Duration::try_from_secs_f64(seconds).ok()
}

#[cfg(test)]
mod tests {
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

    use super::*;

    fn jwt(claims: &str) -> AccessToken {
        AccessToken::new(format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims))).unwrap()
    }

    #[test]
    fn exp_is_read_leniently() {
        let at = |seconds: f64| Some(SystemTime::UNIX_EPOCH + Duration::from_secs_f64(seconds));
        let table = [
            (r#"{"exp":100}"#, at(100.0)),
            (r#"{"exp":100.5,"iat":"x"}"#, at(100.5)),
            (r#"{"exp":1e2}"#, at(100.0)),
            (r#"{"exp":"100"}"#, None),
            (r#"{"exp":-1}"#, None),
            (r#"{"exp":1e400}"#, None),
            (r#"{"exp":9223372036854775808}"#, None),
            (r#"{"exp":null}"#, None),
            (r#"{"iat":1e400,"exp":7}"#, at(7.0)),
            (r"{}", None),
            (r"[]", None),
            (r"[100, 50]", None),
            (r#"{"exp":1,"exp":100}"#, at(100.0)),
            ("", None),
        ];
        for (claims, expected) in table {
            assert_eq!(expires_at(&jwt(claims)), expected, "{claims}");
        }
        for opaque in ["opaque", "a.b", "a.b.c", "..."] {
            assert_eq!(expires_at(&AccessToken::new(opaque).unwrap()), None, "{opaque}");
        }
    }

    #[test]
    fn the_lifetime_is_exp_minus_iat() {
        assert_eq!(lifetime(&jwt(r#"{"iat":1000,"exp":1600}"#)), Some(Duration::from_secs(600)));
        assert_eq!(lifetime(&jwt(r#"{"iat":1600,"exp":1000}"#)), Some(Duration::ZERO));
        assert_eq!(lifetime(&jwt(r#"{"exp":1000}"#)), Some(Duration::ZERO));
        assert_eq!(lifetime(&jwt(r#"{"iat":1000}"#)), None);
    }
}
