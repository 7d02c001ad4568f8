#[cfg(feature = "dpop")]
use std::sync::OnceLock;
use std::{
    fmt,
    hash::{BuildHasher, RandomState},
    sync::{Arc, LazyLock},
};

use bytes::Bytes;
use http::HeaderValue;
use zeroize::Zeroizing;

use crate::error::{Error, ErrorKind};

/// The maximum length of a token in bytes.
pub(crate) const MAX_TOKEN_BYTES: usize = 64 * 1024;
const SCHEME: &str = "Bearer ";

/// An access token: visible ASCII characters, at most 64 KiB.
///
/// RFC 6750 §2.1 (`b64token`) allows fewer characters, but providers use others: Salesforce's
/// tokens contain `!`, Facebook's `|`, and eBay's `^` and `#`.
///
/// `Debug` does not show the text. Clones share it, and it is wiped from memory when the last clone
/// is dropped.
#[derive(Clone)]
pub struct AccessToken {
    text: Arc<Bearer>,
    header: HeaderValue,
    fingerprint: u64,
}

/// `Bearer <token>`. The same text serves the header and [`AccessToken::expose_secret`].
struct Bearer {
    text: Zeroizing<String>,
    /// The hash of the token alone, computed on first use.
    #[cfg(feature = "dpop")]
    hash: OnceLock<Box<str>>,
}

impl Bearer {
    fn new(text: String) -> Self {
        Self {
            text: Zeroizing::new(text),
            #[cfg(feature = "dpop")]
            hash: OnceLock::new(),
        }
    }
}

struct Shared(Arc<Bearer>);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        self.0.text.as_bytes()
    }
}

impl AccessToken {
    /// Validates a token.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidToken`] if the token is empty, longer than 64 KiB, or contains a blank,
    /// a control character or a non-ASCII character. The error's text shows that character and its
    /// position, and nothing else of the token.
    pub fn new(value: impl Into<String>) -> Result<Self, Error> {
        let value = Zeroizing::new(value.into());
        check("access token", &value)?;
        // Allocated once at full size, so that no shorter copy is left unwiped.
        let mut bearer = String::with_capacity(SCHEME.len() + value.len());
        bearer.push_str(SCHEME);
        bearer.push_str(&value);
        let text = Arc::new(Bearer::new(bearer));
        let mut header =
            HeaderValue::from_maybe_shared(Bytes::from_owner(Shared(Arc::clone(&text)))).map_err(
                |_| Error::new(ErrorKind::InvalidToken, "the access token does not fit a header"),
            )?;
        header.set_sensitive(true);
        let fingerprint = fingerprint(&value);
        Ok(Self { text, header, fingerprint })
    }

    /// Returns the token itself. Keep it out of logs.
    pub fn expose_secret(&self) -> &str {
        &self.text.text[SCHEME.len()..]
    }

    /// The SHA-256 hash of the token in base64url: the `ath` of a proof (RFC 9449 §4.2). It is
    /// computed once for a token, because hashing a long token takes a fifth of the time of a
    /// signature.
    #[cfg(feature = "dpop")]
    pub(crate) fn hash(&self) -> &str {
        use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
        use sha2::{Digest as _, Sha256};

        self.text
            .hash
            .get_or_init(|| URL_SAFE_NO_PAD.encode(Sha256::digest(self.expose_secret())).into())
    }

    /// A number that identifies the token within this process. It is hashed with a random key, so
    /// it reveals nothing about the token.
    pub(crate) fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    /// `Bearer <token>`, marked sensitive. All copies share the memory.
    pub(crate) fn header(&self) -> &HeaderValue {
        &self.header
    }

    /// The token without a scheme, marked sensitive, in the same memory.
    pub(crate) fn bare_header(&self) -> HeaderValue {
        let bytes = Bytes::from_owner(Shared(Arc::clone(&self.text))).slice(SCHEME.len()..);
        self.header_of(bytes)
    }

    /// `<scheme> <token>`, marked sensitive. It is wiped when its last copy is dropped.
    pub(crate) fn header_with_scheme(&self, scheme: &str) -> HeaderValue {
        let token = self.expose_secret();
        let mut text = String::with_capacity(scheme.len() + 1 + token.len());
        text.push_str(scheme);
        text.push(' ');
        text.push_str(token);
        let text = Arc::new(Bearer::new(text));
        self.header_of(Bytes::from_owner(Shared(text)))
    }

    /// Tokens and schemes are visible ASCII, which is always a valid header value.
    fn header_of(&self, bytes: Bytes) -> HeaderValue {
        HeaderValue::from_maybe_shared(bytes).map_or_else(
            |_| self.header.clone(),
            |mut header| {
                header.set_sensitive(true);
                header
            },
        )
    }
}

impl PartialEq for AccessToken {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.text, &other.text) || self.text.text == other.text.text
    }
}

impl Eq for AccessToken {}

impl fmt::Debug for AccessToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AccessToken(..)")
    }
}

/// A refresh token: visible ASCII characters (RFC 6749 §A.17 without the space), at most 64 KiB.
///
/// `Debug` does not show the text. Clones share it, and it is wiped from memory when the last clone
/// is dropped.
#[derive(Clone)]
pub struct RefreshToken(Arc<Zeroizing<String>>);

impl RefreshToken {
    /// Validates a token.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidToken`], as for [`AccessToken::new`].
    pub fn new(value: impl Into<String>) -> Result<Self, Error> {
        let value = Zeroizing::new(value.into());
        check("refresh token", &value)?;
        Ok(Self(Arc::new(value)))
    }

    /// Returns the token itself. Keep it out of logs.
    pub fn expose_secret(&self) -> &str {
        &self.0
    }
}

impl PartialEq for RefreshToken {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.0 == other.0
    }
}

impl Eq for RefreshToken {}

impl fmt::Debug for RefreshToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RefreshToken(..)")
    }
}

fn fingerprint(token: &str) -> u64 {
    static KEY: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    KEY.hash_one(token)
}

/// Checks whether a token may be sent. Every visible ASCII character occurs in some provider's
/// tokens.
fn check(what: &str, value: &str) -> Result<(), Error> {
    let invalid = |why: String| Err(Error::new(ErrorKind::InvalidToken, why));
    if value.is_empty() {
        return invalid(format!("the {what} is empty"));
    }
    if value.len() > MAX_TOKEN_BYTES {
        return invalid(format!("the {what} is over 64 KiB"));
    }
    let mut characters = value.char_indices().enumerate();
    match characters.find(|(_, (_, char))| !char.is_ascii_graphic()) {
        None => Ok(()),
        Some((before, (offset, char))) => invalid(format!(
            "the {what} has U+{:04X} as its character {} (byte offset {offset}), where only \
             visible ASCII is allowed",
            u32::from(char),
            before + 1,
        )),
    }
}

/// Trims a token as servers write it: surrounding blanks, and a leading `Bearer ` in any case.
pub(crate) fn trim_token(text: &str) -> &str {
    let text = text.trim_matches([' ', '\t', '\r', '\n']);
    let scheme = SCHEME.trim_end();
    match text.get(..scheme.len()) {
        Some(start) if start.eq_ignore_ascii_case(scheme) => match &text[scheme.len()..] {
            "" => "",
            rest if rest.starts_with([' ', '\t']) => rest.trim_start_matches([' ', '\t']),
            _ => text,
        },
        _ => text,
    }
}

/// The content of a header that should carry a token.
#[derive(Debug, PartialEq)]
pub(crate) enum Trimmed<'a> {
    Token(&'a str),
    Nothing,
}

/// Trims surrounding blanks and a leading `Bearer ` in any case. `Bearer` alone counts as empty.
/// Returns `None` for anything but ASCII text.
pub(crate) fn trim_header(value: &HeaderValue) -> Option<Trimmed<'_>> {
    let token = trim_token(value.to_str().ok()?);
    Some(if token.is_empty() { Trimmed::Nothing } else { Trimmed::Token(token) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_visible_ascii() {
        let all: String = (0x21..=0x7e).map(char::from).collect();
        let longest = "x".repeat(64 * 1024);
        let good = [
            "a",
            "=",
            "a=b",
            "a,b;c\"d",
            "eyJ.eyJ.sig-_~+/=",
            "00D7F0000001I8v!ARgAQOG9W.wPt01KwmHU58D15",
            "1234567890|AbCdEf_gh",
            "v^1.1#i^1#p^3#r^1#I^3#f^0#t^Ul41Xzg6Rj77",
            "abc%2Bdef%3D",
            &all,
            &longest,
        ];
        for text in good {
            assert_eq!(AccessToken::new(text).unwrap().expose_secret(), text);
            assert_eq!(RefreshToken::new(text).unwrap().expose_secret(), text);
        }
    }

    #[test]
    fn errors_name_the_character_alone() {
        let too_long = "x".repeat(64 * 1024 + 1);
        let table = [
            ("", "is empty"),
            ("a b", "has U+0020 as its character 2 (byte offset 1)"),
            (" a", "has U+0020 as its character 1 (byte offset 0)"),
            ("secret\n", "has U+000A as its character 7 (byte offset 6)"),
            ("a\u{0}", "has U+0000 as its character 2 (byte offset 1)"),
            ("a\u{7f}", "has U+007F as its character 2 (byte offset 1)"),
            ("ä", "has U+00E4 as its character 1 (byte offset 0)"),
            ("s3cr€t\u{1f511}", "has U+20AC as its character 5 (byte offset 4)"),
            (&too_long, "is over 64 KiB"),
        ];
        for (text, why) in table {
            for (what, error) in [
                ("access token", AccessToken::new(text).unwrap_err()),
                ("refresh token", RefreshToken::new(text).unwrap_err()),
            ] {
                assert_eq!(error.kind(), ErrorKind::InvalidToken, "{text:?}");
                let cause = std::error::Error::source(&error).unwrap().to_string();
                assert!(cause.starts_with(&format!("the {what} {why}")), "{cause}");
                assert!(!cause.contains("secret") && !cause.contains("s3cr"), "{cause}");
            }
        }
    }

    #[test]
    fn headers_lie_in_the_wiped_memory() {
        // The bytes must not be copied, because a copy would be left unwiped.
        let token = AccessToken::new("a-secret").unwrap();
        let secret = token.expose_secret().as_bytes().as_ptr_range();
        let header = token.header().as_bytes().as_ptr_range();
        assert_eq!(header.end, secret.end);
        assert_eq!(token.bare_header().as_bytes().as_ptr_range(), secret);
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
            // A text as long as the scheme, and another scheme of the same length.
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
