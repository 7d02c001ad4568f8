//! What the challenges of a response say about the token (RFC 9110 §11.6.1, RFC 6750 §3).
//!
//! Real servers send challenges that the grammar does not allow: single quotes (Twitch), values
//! without names (Facebook), parameters without commas. A hand-written parser accepts them.

use http::{HeaderMap, header::WWW_AUTHENTICATE};

/// The combined result of all challenges of a response.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Challenges {
    /// A new token may satisfy at least one challenge. A response without challenges counts as
    /// satisfiable.
    pub(super) satisfiable: bool,
    /// A satisfiable challenge has the error `invalid_token`.
    pub(super) invalid_token: bool,
    /// A satisfiable challenge reports a valid but insufficient token (RFC 6750 §3.1, RFC 9470 §3).
    pub(super) needs_more: bool,
}

const NEEDS_MORE: [&str; 3] =
    ["insufficient_scope", "insufficient_user_authentication", "insufficient_claims"];

/// Schemes that no bearer token ever satisfies.
fn is_never_satisfied(scheme: &str) -> bool {
    const SCHEMES: [&str; 9] = [
        "Basic",
        "Digest",
        "Negotiate",
        "NTLM",
        "Kerberos",
        "DPoP",
        "HOBA",
        "Mutual",
        "AWS4-HMAC-SHA256",
    ];
    SCHEMES.iter().any(|other| scheme.eq_ignore_ascii_case(other))
        || scheme.get(..6).is_some_and(|start| start.eq_ignore_ascii_case("SCRAM-"))
}

impl Challenges {
    /// Reads the challenges. `own` is the scheme that the session's token is sent with.
    pub(super) fn read(headers: &HeaderMap, own: Option<&str>) -> Self {
        let mut said = Self::default();
        let mut any = false;
        for value in headers.get_all(WWW_AUTHENTICATE) {
            let text = String::from_utf8_lossy(value.as_bytes());
            // Parameters before any scheme count as a challenge of an unknown scheme.
            let mut satisfiable = true;
            for item in items(&text) {
                any = true;
                let (scheme, params) = split(item);
                if let Some(scheme) = scheme {
                    let is_own = own.is_some_and(|own| scheme.eq_ignore_ascii_case(own));
                    satisfiable = is_own || !is_never_satisfied(scheme);
                }
                if satisfiable {
                    said.satisfiable = true;
                    params_of(params, |name, value| said.hears(name, value));
                }
            }
        }
        said.satisfiable |= !any;
        said
    }

    /// Takes a parameter. A value without a name may be an error code too.
    fn hears(&mut self, name: Option<&str>, value: &str) {
        if name.is_none_or(|name| name.eq_ignore_ascii_case("error")) {
            let value: String = value.chars().filter(|&char| char != '\\').collect();
            let error = value.trim();
            self.invalid_token |= error.eq_ignore_ascii_case("invalid_token");
            self.needs_more |= NEEDS_MORE.iter().any(|code| error.eq_ignore_ascii_case(code));
        }
    }
}

/// The length of the quoted string at the start, including its quotes. An unclosed double quote
/// reaches to the end. An unclosed single quote does not count as a quote.
fn quoted(text: &str) -> Option<usize> {
    let quote = text.chars().next().filter(|char| matches!(char, '"' | '\''))?;
    let mut escaped = false;
    for (at, char) in text.char_indices().skip(1) {
        match char {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if char == quote => return Some(at + 1),
            _ => {}
        }
    }
    (quote == '"').then_some(text.len())
}

/// Whether a quote may open after this character. An apostrophe inside a word does not.
fn may_open(before: Option<char>, quote: char) -> bool {
    quote == '"'
        || before.is_none_or(|before| before.is_ascii_whitespace() || "=,".contains(before))
}

/// Splits a text at its unquoted commas and trims the parts.
fn items(text: &str) -> impl Iterator<Item = &str> {
    let mut items = Vec::new();
    let (mut start, mut at, mut before) = (0, 0, None);
    while let Some(char) = text[at..].chars().next() {
        if matches!(char, '"' | '\'')
            && may_open(before, char)
            && let Some(length) = quoted(&text[at..])
        {
            (at, before) = (at + length, Some(char));
            continue;
        }
        if char == ',' {
            items.push(&text[start..at]);
            start = at + 1;
        }
        (at, before) = (at + char.len_utf8(), Some(char));
    }
    items.push(&text[start..]);
    items.into_iter().map(str::trim).filter(|item| !item.is_empty())
}

/// Splits an item into its scheme, if it starts a challenge, and its parameters.
fn split(item: &str) -> (Option<&str>, &str) {
    let end = item
        .find(|char: char| char.is_ascii_whitespace() || matches!(char, '=' | '"' | '\''))
        .unwrap_or(item.len());
    let (word, rest) = item.split_at(end);
    if word.is_empty() || rest.trim_start().starts_with('=') {
        (None, item)
    } else {
        (Some(word.trim_end_matches(':')), rest)
    }
}

/// Visits each parameter, with its name if it has one.
fn params_of(text: &str, mut take: impl FnMut(Option<&str>, &str)) {
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let name_end = rest
            .find(|char: char| char.is_ascii_whitespace() || matches!(char, '=' | '"'))
            .unwrap_or(rest.len());
        let (name, after) = rest.split_at(name_end);
        let name = match after.trim_start().strip_prefix('=') {
            Some(value) if !name.is_empty() => {
                rest = value.trim_start();
                Some(name)
            }
            _ => None,
        };
        let end = quoted(rest).unwrap_or_else(|| {
            // Advances by at least one character, so that the loop terminates.
            let first = rest.chars().next().map_or(0, char::len_utf8);
            let length = rest[first..].find(char::is_whitespace);
            length.map_or(rest.len(), |length| first + length)
        });
        let (value, after) = rest.split_at(end);
        take(name, value.trim_matches(['"', '\'']));
        rest = after.trim_start();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_end_at_commas_that_are_not_quoted() {
        let table: [(&str, &[&str]); 8] = [
            ("", &[]),
            (" , ,", &[]),
            ("a, b", &["a", "b"]),
            (r#"a="x, y", b"#, &[r#"a="x, y""#, "b"]),
            ("a='x, y', b", &["a='x, y'", "b"]),
            (r#"a="x \" , y", b"#, &[r#"a="x \" , y""#, "b"]),
            (r#"a="open, b"#, &[r#"a="open, b"#]),
            ("a=Bob's, b='open, c", &["a=Bob's", "b='open", "c"]),
        ];
        for (text, expected) in table {
            assert_eq!(items(text).collect::<Vec<_>>(), expected, "{text}");
        }
    }

    #[test]
    fn parameters_with_and_without_names() {
        let mut seen = Vec::new();
        let text = r#" realm="a b" error = 'x y' "Facebook Platform" token68== e=1 ="#;
        params_of(text, |name, value| seen.push((name.map(str::to_owned), value.to_owned())));
        let named = |name: &str, value: &str| (Some(name.to_owned()), value.to_owned());
        let bare = |value: &str| (None, value.to_owned());
        let expected = [
            named("realm", "a b"),
            named("error", "x y"),
            bare("Facebook Platform"),
            named("token68", "="),
            named("e", "1"),
            bare("="),
        ];
        assert_eq!(seen, expected);
    }
}
