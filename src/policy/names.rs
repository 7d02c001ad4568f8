//! The syntax of names in HTTP, and the lookup of a header by its name.

use http::{HeaderMap, HeaderName};

/// Up to this many headers, comparing all names takes less time than hashing one.
const FEW: usize = 16;

/// Whether there is a header of this name.
#[inline]
pub(crate) fn has_header(headers: &HeaderMap, name: &HeaderName) -> bool {
    if headers.keys_len() > FEW {
        return headers.contains_key(name);
    }
    headers.keys().any(|other| other == name)
}

/// Whether a text is a `token` (RFC 9110 §5.6.2).
pub(crate) fn is_token(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}
