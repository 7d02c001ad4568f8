//! Reads the JSON of a token answer (RFC 6749 §5.1 and §5.2), leniently: a member that cannot be
//! read spoils only itself.

use std::{fmt, time::Duration};

use serde::{
    Deserializer as _,
    de::{MapAccess, Visitor},
};
use serde_json::value::RawValue;
use zeroize::Zeroizing;

/// The members that matter, as far as they could be read.
#[derive(Default)]
pub(super) struct Members {
    pub(super) access_token: Option<Zeroizing<String>>,
    pub(super) refresh_token: Option<Zeroizing<String>>,
    pub(super) token_type: Option<String>,
    pub(super) expires_in: Option<Duration>,
    /// Not empty.
    pub(super) error: Option<Zeroizing<String>>,
    pub(super) error_description: Option<Zeroizing<String>>,
    /// Whether the object was read to its end.
    pub(super) complete: bool,
}

impl Members {
    /// Reads the object at the start of `body`; what follows it does not matter. Where the text
    /// breaks off or turns into something that is no JSON, what came before stays: it may be the
    /// only copy of a new refresh token.
    pub(super) fn read(body: &mut [u8]) -> Self {
        // Control characters are not allowed in JSON strings. As blanks they spoil no more than the
        // member they are in: no token has blanks.
        body.iter_mut().filter(|byte| byte.is_ascii_control()).for_each(|byte| *byte = b' ');
        let body = body.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(body);
        let mut members = Self::default();
        match str::from_utf8(body) {
            Ok(text) => members.walk(text),
            Err(_) => members.walk(&Zeroizing::new(String::from_utf8_lossy(body).into_owned())),
        }
        members
    }

    fn walk(&mut self, text: &str) {
        // An error's text could quote a value: only whether there was one is kept, in `complete`.
        self.complete =
            serde_json::Deserializer::from_str(text).deserialize_map(Walk(self)).is_ok();
    }

    fn take(&mut self, name: &str, value: &RawValue) {
        match name {
            "access_token" => set(&mut self.access_token, secret(value)),
            "refresh_token" => set(&mut self.refresh_token, secret(value)),
            "token_type" => set(&mut self.token_type, text(value)),
            "expires_in" => set(&mut self.expires_in, seconds(value)),
            "error" => set(&mut self.error, secret(value).filter(|code| !code.is_empty())),
            "error_description" => set(&mut self.error_description, secret(value)),
            _ => {}
        }
    }
}

/// The last of several wins; one that cannot be read is as if absent.
fn set<T>(member: &mut Option<T>, value: Option<T>) {
    if value.is_some() {
        *member = value;
    }
}

fn text(value: &RawValue) -> Option<String> {
    serde_json::from_str(value.get()).ok()
}

fn secret(value: &RawValue) -> Option<Zeroizing<String>> {
    text(value).map(Zeroizing::new)
}

/// A number of seconds, or a text with one in it: not negative, not infinite.
fn seconds(value: &RawValue) -> Option<Duration> {
    let unquoted = text(value);
    let number = unquoted.as_deref().map_or(value.get(), str::trim);
    Duration::try_from_secs_f64(number.parse().ok()?).ok()
}

/// Values are looked at raw: `serde_json` skips them without recursion, and refuses none for its
/// size. They are borrowed from the body, so that no copy of a secret is left unwiped.
struct Walk<'m>(&'m mut Members);

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some((name, value)) = map.next_entry::<&RawValue, &RawValue>()? {
            if let Some(name) = text(name) {
                self.0.take(&name, value);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: impl AsRef<[u8]>) -> Members {
        Members::read(&mut body.as_ref().to_vec())
    }

    fn access(members: &Members) -> Option<&str> {
        members.access_token.as_deref().map(String::as_str)
    }

    #[test]
    fn a_member_that_cannot_be_read_spoils_only_itself() {
        let bad = [
            "1e400",
            "-1e400",
            "1e-400",
            "123456789012345678901234567890",
            "null",
            "true",
            "[]",
            "{}",
            r#"{"access_token":"inner"}"#,
            r#""\ud800""#,
            "\"a\u{1}b\"",
            "\"a\nb\"",
            &format!("{}{}", "[".repeat(10_000), "]".repeat(10_000)),
            &format!("{}1{}", r#"{"a":"#.repeat(10_000), "}".repeat(10_000)),
        ];
        for value in bad {
            for name in ["x", "scope", "token_type", "refresh_token", "\\ud800"] {
                let members = read(format!(r#"{{"{name}":{value},"access_token":"good"}}"#));
                assert_eq!(access(&members), Some("good"), "{name}: {value:.40}");
                assert!(members.complete);
            }
        }
        let invalid_utf8 =
            [br#"{"x":""#, &b"\xff\xfe"[..], br#"","access_token":"good"}"#].concat();
        assert_eq!(access(&read(invalid_utf8)), Some("good"));
    }

    #[test]
    fn expiry_is_a_number_or_a_text_with_one() {
        let table = [
            ("3600", Some(3600.0)),
            ("0", Some(0.0)),
            ("0.5", Some(0.5)),
            ("1e3", Some(1000.0)),
            (r#""3600""#, Some(3600.0)),
            (r#"" 60 ""#, Some(60.0)),
            ("-1", None),
            (r#""-1""#, None),
            ("1e400", None),
            ("1e300", None),
            (r#""inf""#, None),
            (r#""NaN""#, None),
            (r#""soon""#, None),
            (r#""""#, None),
            ("null", None),
            ("[60]", None),
            ("true", None),
        ];
        for (value, expected) in table {
            let members = read(format!(r#"{{"expires_in":{value},"access_token":"a"}}"#));
            assert_eq!(members.expires_in, expected.map(Duration::from_secs_f64), "{value}");
            assert_eq!(access(&members), Some("a"), "{value}");
        }
    }

    #[test]
    fn the_last_readable_of_several_wins() {
        assert_eq!(access(&read(r#"{"access_token":"a","access_token":"b"}"#)), Some("b"));
        assert_eq!(access(&read(r#"{"access_token":"a","access_token":null}"#)), Some("a"));
        assert_eq!(access(&read(r#"{"access\u005ftoken":"escaped"}"#)), Some("escaped"));
    }

    #[test]
    fn bom_and_trailing_text_do_not_matter() {
        for body in [
            "\u{feff}{\"access_token\":\"a\"}",
            r#"{"access_token":"a"} and more"#,
            "\r\n\t{\"access_token\":\"a\"}\0\0",
        ] {
            let members = read(body);
            assert_eq!((access(&members), members.complete), (Some("a"), true), "{body:?}");
        }
    }

    #[test]
    fn what_came_before_a_break_stays() {
        for body in [
            r#"{"refresh_token":"new","access_token":"cut"#,
            r#"{"refresh_token":"new","#,
            r#"{"refresh_token":"new""#,
            r#"{"refresh_token":"new","x":NaN,"access_token":"a"}"#,
        ] {
            let members = read(body);
            assert_eq!(members.refresh_token.as_deref().map(String::as_str), Some("new"), "{body}");
            assert_eq!((access(&members), members.complete), (None, false), "{body}");
        }
        assert!(read(r#"{"refresh_token":"ne"#).refresh_token.is_none());
    }

    #[test]
    fn what_is_no_object_has_no_members() {
        let utf16: Vec<u8> =
            r#"{"access_token":"a"}"#.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let deep = "[".repeat(10_000).into_bytes();
        let others = [
            "",
            "null",
            "[]",
            "\"access_token\"",
            "<html>",
            "access_token=a",
            r#"[{"access_token":"a"}]"#,
        ];
        for body in others.map(|text| text.as_bytes().to_vec()).into_iter().chain([utf16, deep]) {
            let members = read(&body);
            assert!(members.access_token.is_none(), "{body:?}");
        }
    }

    #[test]
    fn an_empty_error_is_none() {
        for (value, expected) in
            [(r#""""#, false), (r#"["x"]"#, false), ("null", false), (r#""x""#, true)]
        {
            assert_eq!(
                read(format!(r#"{{"error":{value}}}"#)).error.is_some(),
                expected,
                "{value}"
            );
        }
    }
}
