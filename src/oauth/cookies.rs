//! Tokens in cookies, as Seqera Platform sends them: `JWT` and `JWT_REFRESH_TOKEN`.

use std::time::{Duration, SystemTime};

use cookie::Cookie;
use http::{HeaderMap, header::SET_COOKIE};

use crate::token::{AccessToken, RefreshToken, trim_token};

#[derive(Default)]
pub(super) struct TokenCookies {
    pub(super) access: Option<AccessToken>,
    pub(super) refresh: Option<RefreshToken>,
}

impl TokenCookies {
    /// Reads the tokens that a browser would hold after this response. `now` is the server's clock
    /// if it is known, because `Expires` refers to that clock.
    pub(super) fn read(headers: &HeaderMap, now: SystemTime) -> Self {
        Self {
            access: held(headers, now, "JWT", |value| AccessToken::new(trim_token(value)).ok()),
            refresh: held(headers, now, "JWT_REFRESH_TOKEN", |value| {
                RefreshToken::new(trim_token(value)).ok()
            }),
        }
    }
}

/// The domain and path, which together with the name identify a cookie.
#[derive(PartialEq)]
struct Place {
    domain: Option<String>,
    path: Option<String>,
}

/// Returns the last token. A cookie that removes another one removes only a cookie with the same
/// domain and path (RFC 6265 §5.3), so a server may clear an older path in the same response.
fn held<T>(
    headers: &HeaderMap,
    now: SystemTime,
    name: &str,
    token: impl Fn(&str) -> Option<T>,
) -> Option<T> {
    let mut held: Option<(Place, T)> = None;
    for line in headers.get_all(SET_COOKIE).iter().filter_map(|value| value.to_str().ok()) {
        let Ok(cookie) = Cookie::parse(line) else {
            continue;
        };
        if cookie.name() != name {
            continue;
        }
        let place = Place {
            domain: cookie.domain().map(str::to_ascii_lowercase),
            path: cookie.path().map(str::to_owned),
        };
        if !is_logout(&cookie, now) {
            if let Some(token) = token(cookie.value_trimmed()) {
                held = Some((place, token));
            }
        } else if held.as_ref().is_some_and(|(at, _)| *at == place) {
            held = None;
        }
    }
    held.map(|(_, token)| token)
}

/// RFC 6265 §4.1.2.2: `Max-Age` takes precedence over `Expires`.
fn is_logout(cookie: &Cookie<'_>, now: SystemTime) -> bool {
    let over = match (cookie.max_age(), cookie.expires_datetime()) {
        (Some(age), _) => !age.is_positive(),
        (None, Some(at)) => {
            let at = u64::try_from(at.unix_timestamp()).unwrap_or(0);
            SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(at)).is_some_and(|at| at <= now)
        }
        (None, None) => false,
    };
    over || matches!(cookie.value_trimmed(), "" | "deleted")
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn jwt(lines: &[&str]) -> Option<String> {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(SET_COOKIE, HeaderValue::from_bytes(line.as_bytes()).unwrap());
        }
        let now = httpdate::parse_http_date("Wed, 01 Jan 2025 00:00:00 GMT").unwrap();
        TokenCookies::read(&headers, now).access.map(|token| token.expose_secret().to_owned())
    }

    #[test]
    fn a_cookie_is_a_token_unless_it_says_goodbye() {
        let table: [(&[&str], Option<&str>); 24] = [
            (&["JWT=a.b.c; Path=/; HttpOnly"], Some("a.b.c")),
            (&["JWT=\"a.b.c\"; Secure"], Some("a.b.c")),
            (&["JWT= a ; Max-Age=3600"], Some("a")),
            (&["JWT=a; Max-Age=99999999999999999999"], Some("a")),
            (&["JWT=a; Max-Age=x"], Some("a")),
            (&["JWT=a; Expires=Thu, 01 Jan 2026 00:00:00 GMT"], Some("a")),
            (&["JWT=a; Max-Age=60; Expires=Thu, 01 Jan 1970 00:00:00 GMT"], Some("a")),
            (&["JWT=a; Expires=soon"], Some("a")),
            (&["JWT="], None),
            (&["JWT=\"\""], None),
            (&["JWT=deleted"], None),
            (&["JWT=a; Max-Age=0"], None),
            (&["JWT=a; Max-Age=-1"], None),
            (&["JWT=a; Expires=Thu, 01 Jan 1970 00:00:00 GMT"], None),
            (&["JWT=a; Expires=Wed, 01 Jan 2025 00:00:00 GMT"], None),
            (&["JWT=a; Max-Age=0; Expires=Thu, 01 Jan 2026 00:00:00 GMT"], None),
            (&["JWT=a b"], None),
            (&["JWT=ä"], None),
            (&["jwt=a"], None),
            (&["session=x", "JWT=a", "JWT=b"], Some("b")),
            (&["JWT=; Path=/old; Max-Age=0", "JWT=a; Path=/"], Some("a")),
            (&["JWT=a; Path=/", "JWT=; Path=/old; Max-Age=0"], Some("a")),
            (&["JWT=a; Path=/", "JWT=; Path=/; Max-Age=0"], None),
            (&[], None),
        ];
        for (lines, expected) in table {
            assert_eq!(jwt(lines).as_deref(), expected, "{lines:?}");
        }
    }
}
