use std::{fmt, sync::Arc};

use bytes::Bytes;
use http::HeaderValue;
use zeroize::Zeroizing;

use crate::error::{Error, ErrorKind};

/// The longest token that is taken anywhere, in bytes.
const MAX_TOKEN_BYTES: usize = 16 * 1024;
const SCHEME: &str = "Bearer ";

/// A bearer token, as RFC 6750 §2.1 (`b64token`) allows it: letters, digits, `-._~+/`, then any
/// number of `=`.
///
/// Its text is in no `Debug`, and is wiped from memory when the last clone is dropped. Clones share
/// it.
#[derive(Clone)]
pub struct AccessToken {
    text: Arc<Bearer>,
    header: HeaderValue,
}

/// `Bearer <token>`: one text serves the header and [`AccessToken::expose_secret`].
struct Bearer(Zeroizing<String>);

struct Shared(Arc<Bearer>);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        self.0.0.as_bytes()
    }
}

impl AccessToken {
    /// Takes a token after checking it.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidToken`] for one that is empty, over 16 KiB, or has other characters than
    /// a `b64token`.
    pub fn new(value: impl Into<String>) -> Result<Self, Error> {
        let value = Zeroizing::new(value.into());
        if value.len() > MAX_TOKEN_BYTES {
            return Err(Error::new(ErrorKind::InvalidToken, "the access token is over 16 KiB"));
        }
        if !is_b64token(value.as_bytes()) {
            return Err(Error::new(
                ErrorKind::InvalidToken,
                "the access token is no RFC 6750 b64token",
            ));
        }
        // Allocated once at its full size, so that no shorter copy stays behind unwiped.
        let mut bearer = String::with_capacity(SCHEME.len() + value.len());
        bearer.push_str(SCHEME);
        bearer.push_str(&value);
        let text = Arc::new(Bearer(Zeroizing::new(bearer)));
        let mut header =
            HeaderValue::from_maybe_shared(Bytes::from_owner(Shared(Arc::clone(&text)))).map_err(
                |_| Error::new(ErrorKind::InvalidToken, "the access token does not fit a header"),
            )?;
        header.set_sensitive(true);
        Ok(Self { text, header })
    }

    /// The token itself. Keep it out of logs.
    pub fn expose_secret(&self) -> &str {
        &self.text.0[SCHEME.len()..]
    }

    /// `Bearer <token>`, marked sensitive, shared with all its copies.
    pub(crate) fn header(&self) -> &HeaderValue {
        &self.header
    }
}

impl PartialEq for AccessToken {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.text, &other.text) || self.text.0 == other.text.0
    }
}

impl fmt::Debug for AccessToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AccessToken(..)")
    }
}

/// A refresh token: visible ASCII characters (RFC 6749 §A.17 without the blank).
///
/// Its text is in no `Debug`, and is wiped from memory when the last clone is dropped. Clones share
/// it.
#[derive(Clone)]
pub struct RefreshToken(Arc<Zeroizing<String>>);

impl RefreshToken {
    /// Takes a token after checking it.
    ///
    /// Servers in the field put more into refresh tokens than RFC 6750 allows in access tokens
    /// (`!`, `*`, `$`); since they travel in a form body and not in a header, every visible ASCII
    /// character is taken.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidToken`] for one that is empty, over 16 KiB, or has blanks, control or
    /// non-ASCII characters.
    pub fn new(value: impl Into<String>) -> Result<Self, Error> {
        let value = Zeroizing::new(value.into());
        if value.len() > MAX_TOKEN_BYTES {
            return Err(Error::new(ErrorKind::InvalidToken, "the refresh token is over 16 KiB"));
        }
        if value.is_empty() || !value.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Error::new(
                ErrorKind::InvalidToken,
                "the refresh token is empty or not visible ASCII",
            ));
        }
        Ok(Self(Arc::new(value)))
    }

    /// The token itself. Keep it out of logs.
    pub fn expose_secret(&self) -> &str {
        &self.0
    }
}

impl PartialEq for RefreshToken {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.0 == other.0
    }
}

impl fmt::Debug for RefreshToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RefreshToken(..)")
    }
}

/// RFC 6750 §2.1: `1*( ALPHA / DIGIT / "-" / "." / "_" / "~" / "+" / "/" ) *"="`.
fn is_b64token(value: &[u8]) -> bool {
    let body = value.iter().rposition(|&byte| byte != b'=').map_or(0, |last| last + 1);
    body > 0
        && value[..body].iter().all(|&byte| {
            byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~' | b'+' | b'/')
        })
}

/// What a header that should carry a token carries.
#[derive(Debug, PartialEq)]
pub(crate) enum Trimmed<'a> {
    Token(&'a str),
    Nothing,
}

/// Outer blanks and a leading `Bearer ` in any case go; a `Bearer` alone is nothing. `None` for
/// what is not ASCII text.
pub(crate) fn trim_header(value: &HeaderValue) -> Option<Trimmed<'_>> {
    let text = value.to_str().ok()?.trim_matches([' ', '\t']);
    let scheme = SCHEME.trim_end();
    let token = match text.get(..scheme.len()) {
        Some(start) if start.eq_ignore_ascii_case(scheme) => match &text[scheme.len()..] {
            "" => "",
            rest if rest.starts_with([' ', '\t']) => rest.trim_start_matches([' ', '\t']),
            _ => text,
        },
        _ => text,
    };
    Some(if token.is_empty() { Trimmed::Nothing } else { Trimmed::Token(token) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn access_tokens_are_b64tokens() {
        for good in ["a", "a==", "eyJ.eyJ.sig-_~+/=", &"x".repeat(16 * 1024)] {
            assert_eq!(AccessToken::new(good).unwrap().expose_secret(), good);
        }
        for bad in [
            "",
            "=",
            "a=b",
            "a b",
            " a",
            "a,b",
            "a\"",
            "a\n",
            "a\u{0}",
            "ä",
            "a;b",
            &"x".repeat(MAX_TOKEN_BYTES + 1),
        ] {
            assert_eq!(
                AccessToken::new(bad).unwrap_err().kind(),
                ErrorKind::InvalidToken,
                "{bad:?}"
            );
        }
    }

    #[test]
    fn refresh_tokens_are_visible_ascii() {
        for good in ["a", "1//0g-x", "M.C1!*$$", "a|b:c"] {
            assert_eq!(RefreshToken::new(good).unwrap().expose_secret(), good);
        }
        for bad in ["", "a b", "a\n", "ä", "\u{7f}", &"x".repeat(MAX_TOKEN_BYTES + 1)] {
            assert_eq!(
                RefreshToken::new(bad).unwrap_err().kind(),
                ErrorKind::InvalidToken,
                "{bad:?}"
            );
        }
    }

    #[test]
    fn tokens_are_equal_if_their_texts_are() {
        let (access, refresh) = (AccessToken::new("a").unwrap(), RefreshToken::new("r").unwrap());
        assert!(access == access.clone() && access == AccessToken::new("a").unwrap());
        assert!(refresh == refresh.clone() && refresh == RefreshToken::new("r").unwrap());
        assert!(
            access != AccessToken::new("b").unwrap() && refresh != RefreshToken::new("s").unwrap()
        );
    }

    #[test]
    fn headers_are_shared_and_sensitive() {
        let token = AccessToken::new("secret").unwrap();
        assert!(token.header().is_sensitive());
        assert_eq!(token.header().as_bytes(), b"Bearer secret");
        assert_eq!(token.header().as_bytes().as_ptr(), token.clone().header().as_bytes().as_ptr());
        assert_eq!(
            format!("{token:?} {:?}", RefreshToken::new("secret").unwrap()),
            "AccessToken(..) RefreshToken(..)"
        );
    }

    #[test]
    fn captured_headers_are_trimmed() {
        let table: [(&'static [u8], Option<Trimmed<'_>>); 13] = [
            (b"abc", Some(Trimmed::Token("abc"))),
            (b" \tabc ", Some(Trimmed::Token("abc"))),
            (b"Bearer abc", Some(Trimmed::Token("abc"))),
            (b"bEARER   abc", Some(Trimmed::Token("abc"))),
            (b"Bearer", Some(Trimmed::Nothing)),
            (b"bearer  ", Some(Trimmed::Nothing)),
            (b"", Some(Trimmed::Nothing)),
            (b"Bearerabc", Some(Trimmed::Token("Bearerabc"))),
            (b"a b", Some(Trimmed::Token("a b"))),
            (b"Beare", Some(Trimmed::Token("Beare"))),
            // As long as the scheme, and another scheme as long.
            (b"abcdef", Some(Trimmed::Token("abcdef"))),
            (b"Digest abc", Some(Trimmed::Token("Digest abc"))),
            (b"a\x80", None),
        ];
        for (value, expected) in table {
            assert_eq!(
                trim_header(&HeaderValue::from_bytes(value).unwrap()),
                expected,
                "{value:?}"
            );
        }
    }
}
