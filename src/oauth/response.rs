//! Parses the members of a token response (RFC 6749 §5.1 and §5.2) leniently: a malformed member
//! does not affect the others.

use std::time::Duration;

use serde::Deserializer as _;
use serde_json::value::RawValue;
use zeroize::Zeroizing;

use super::{
    codes::known_code,
    json::{Each, Text, Walk, at, secret},
};
use crate::token::{AccessToken, RefreshToken, trim_token};

/// A longer `expires` is a calendar time, not a number of seconds.
const LONGEST_EXPIRES: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);
/// The relevant members, as far as they could be read.
#[derive(Default)]
pub(super) struct Members {
    access_token: Spelt<AccessToken>,
    refresh_token: Spelt<RefreshToken>,
    token_type: Spelt<String>,
    expires_in: Spelt<Duration>,
    expires: Option<Duration>,
    /// The member `error`, whatever its type, reports an error.
    is_error: bool,
    /// Indexed by [`Place`].
    codes: [Option<Zeroizing<String>>; 7],
    errors: Vec<Zeroizing<String>>,
    descriptions: [Option<Zeroizing<String>>; 4],
    /// The raw values of the token members, valid or not. No text may repeat them.
    echoes: [Option<Zeroizing<String>>; 4],
    /// Whether the text was read to its end.
    pub(super) complete: bool,
}

/// A member in snake case and in camel case.
struct Spelt<T>([Option<T>; 2]);

impl<T> Default for Spelt<T> {
    fn default() -> Self {
        Self([None, None])
    }
}

impl<T> Spelt<T> {
    fn get(&self) -> Option<&T> {
        self.0.iter().flatten().next()
    }
}

/// The places where providers put codes, in order of precedence.
#[derive(Clone, Copy)]
enum Place {
    Error,
    InnerCode,
    InnerType,
    Code,
    ErrorCodeCamel,
    ErrorCodeSnake,
    Status,
}

impl Members {
    /// Reads the JSON object at the start of `body`, or its form-encoded pairs. RFC 6749 §5.1 has
    /// only JSON, but GitHub responds with a form unless the request asks for JSON.
    ///
    /// Anything after the object is ignored. If the text breaks off or becomes invalid, the members
    /// before that point are kept: they may hold the only copy of a new refresh token.
    ///
    /// `is_form` says that the headers announce a form, `is_whole` that nothing is missing at the
    /// end.
    pub(super) fn read(body: &[u8], is_form: bool, is_whole: bool) -> Self {
        let text = Text::of(body);
        let mut members = Self::default();
        if text.trim_start().starts_with('{') {
            members.walk(&text);
        } else if is_form || looks_like_form(&text) {
            members.read_form(text.trim(), is_whole);
        }
        members
    }

    /// Reads the object at this JSON pointer (RFC 6901).
    pub(super) fn read_at(body: &[u8], pointer: &str) -> Self {
        let text = Text::of(body);
        let mut members = Self::default();
        if let Some(found) = at(&text, pointer) {
            members.walk(found);
        }
        members
    }

    /// The first usable access token.
    pub(super) fn access_token(&self) -> Option<&AccessToken> {
        self.access_token.get()
    }

    pub(super) fn refresh_token(&self) -> Option<&RefreshToken> {
        self.refresh_token.get()
    }

    pub(super) fn token_type(&self) -> Option<&str> {
        self.token_type.get().map(String::as_str)
    }

    pub(super) fn lifetime(&self) -> Option<Duration> {
        self.expires_in.get().copied().or(self.expires)
    }

    /// Whether the member `error` reports an error.
    pub(super) fn is_error(&self) -> bool {
        self.is_error
    }

    /// The first known code, in any place that providers use, or else the first text in such a
    /// place.
    pub(super) fn code(&self) -> Option<&str> {
        first_known(self.codes.iter().flatten().chain(&self.errors))
    }

    /// The code in the member `error` alone, known or not.
    pub(super) fn own_code(&self) -> Option<&str> {
        let [text, inner_code, inner_type, ..] = &self.codes;
        let inner = [inner_code, inner_type].into_iter().flatten();
        first_known(text.iter().chain(inner.filter(|code| known_code(code).is_some())))
    }

    pub(super) fn description(&self) -> Option<&str> {
        self.descriptions.iter().flatten().map(|text| text.as_str()).next()
    }

    /// The raw values of the token members.
    pub(super) fn echoes(&self) -> impl Iterator<Item = &str> {
        self.echoes.iter().flatten().map(|text| text.as_str())
    }

    fn walk(&mut self, text: &str) {
        // The parse error is dropped, because its text could quote a value. `complete` records
        // whether there was one.
        let walk = Walk(|name: &str, value: &RawValue| self.take_json(name, value));
        self.complete = serde_json::Deserializer::from_str(text).deserialize_map(walk).is_ok();
    }

    fn take_json(&mut self, name: &str, value: &RawValue) {
        if let Some(text) = secret(value) {
            return self.take_text(name, text);
        }
        match name {
            "error" => self.take_inner_error(value),
            "errors" => self.take_errors(value),
            _ => self.take_number(name, value.get()),
        }
    }

    fn take_text(&mut self, name: &str, text: Zeroizing<String>) {
        match name {
            "access_token" => self.take_access(0, text),
            "accessToken" => self.take_access(1, text),
            "refresh_token" => self.take_refresh(0, text),
            "refreshToken" => self.take_refresh(1, text),
            "token_type" => self.token_type.0[0] = Some(text.to_string()),
            "tokenType" => self.token_type.0[1] = Some(text.to_string()),
            "error" => {
                self.is_error |= !text.trim().is_empty();
                self.take_code(Place::Error, text);
            }
            "code" => self.take_code(Place::Code, text),
            "errorCode" => self.take_code(Place::ErrorCodeCamel, text),
            "error_code" => self.take_code(Place::ErrorCodeSnake, text),
            "status" => self.take_code(Place::Status, text),
            "error_description" => self.descriptions[0] = Some(text),
            "errorDescription" => self.descriptions[1] = Some(text),
            "message" | "msg" => self.descriptions[3] = Some(text),
            _ => self.take_number(name, text.trim()),
        }
    }

    fn take_access(&mut self, spelling: usize, text: Zeroizing<String>) {
        if let Ok(token) = AccessToken::new(trim_token(&text)) {
            self.access_token.0[spelling] = Some(token);
        }
        self.echoes[spelling] = Some(text);
    }

    fn take_refresh(&mut self, spelling: usize, text: Zeroizing<String>) {
        if let Ok(token) = RefreshToken::new(trim_token(&text)) {
            self.refresh_token.0[spelling] = Some(token);
        }
        self.echoes[2 + spelling] = Some(text);
    }

    fn take_code(&mut self, place: Place, text: Zeroizing<String>) {
        if !text.trim().is_empty() {
            self.codes[place as usize] = Some(text);
        }
    }

    /// Takes a number of seconds, or a text that contains one. The number must be finite and not
    /// negative.
    fn take_number(&mut self, name: &str, number: &str) {
        let seconds = || Duration::try_from_secs_f64(number.parse().ok()?).ok();
        match name {
            "expires_in" => set(&mut self.expires_in.0[0], seconds()),
            "expiresIn" => set(&mut self.expires_in.0[1], seconds()),
            "expires" => {
                set(&mut self.expires, seconds().filter(|seconds| *seconds <= LONGEST_EXPIRES));
            }
            _ => {}
        }
    }

    /// Takes `"error": {"code": …, "type": …, "message": …}` and any other `error` that is not a
    /// string.
    fn take_inner_error(&mut self, value: &RawValue) {
        let mut members = 0;
        let walk = Walk(|name: &str, value: &RawValue| {
            members += 1;
            match (name, secret(value)) {
                ("code", Some(text)) => self.take_code(Place::InnerCode, text),
                ("type", Some(text)) => self.take_code(Place::InnerType, text),
                ("message", Some(text)) => self.descriptions[2] = Some(text),
                _ => {}
            }
        });
        let _ = serde_json::Deserializer::from_str(value.get()).deserialize_map(walk);
        let is_number = value.get().parse::<f64>().is_ok_and(|number| number != 0.0);
        self.is_error |= members > 0 || is_number || value.get() == "true";
    }

    /// Takes `"errors": [{"code": …, "errorType": …, "type": …, "message": …}]`.
    fn take_errors(&mut self, value: &RawValue) {
        let each = Each(|element: &RawValue| {
            let [mut code, mut error_type, mut kind] = [None, None, None];
            let walk = Walk(|name: &str, value: &RawValue| match name {
                "code" => code = secret(value),
                "errorType" => error_type = secret(value),
                "type" => kind = secret(value),
                "message" => set(&mut self.descriptions[3], secret(value)),
                _ => {}
            });
            let _ = serde_json::Deserializer::from_str(element.get()).deserialize_map(walk);
            let codes = [code, error_type, kind].into_iter().flatten();
            self.errors.extend(codes.filter(|code| !code.trim().is_empty()));
        });
        let _ = serde_json::Deserializer::from_str(value.get()).deserialize_seq(each);
    }

    fn read_form(&mut self, text: &str, is_whole: bool) {
        let mut pairs = text.split('&').peekable();
        while let Some(pair) = pairs.next() {
            // The last pair of a truncated body may be half a token.
            if pairs.peek().is_none() && !is_whole {
                return;
            }
            for (name, value) in form_urlencoded::parse(pair.as_bytes()) {
                let value = Zeroizing::new(value.into_owned());
                self.take_text(&name, value);
            }
        }
        self.complete = is_whole;
    }
}

/// Whether a text can be form-encoded pairs. An HTML page with such pairs in a link does not count.
fn looks_like_form(text: &str) -> bool {
    let text = text.trim();
    text.contains('=')
        && !text.contains(|char: char| {
            char.is_whitespace() || matches!(char, '<' | '>' | '"' | '{' | '}' | '\'')
        })
}

fn first_known<'c>(codes: impl Iterator<Item = &'c Zeroizing<String>>) -> Option<&'c str> {
    let mut first = None;
    for code in codes {
        if let Some(known) = known_code(code) {
            return Some(known);
        }
        first = first.or(Some(code.as_str()));
    }
    first
}

/// Sets a member: the last readable value wins.
fn set<T>(member: &mut Option<T>, value: Option<T>) {
    if value.is_some() {
        *member = value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: impl AsRef<[u8]>) -> Members {
        Members::read(body.as_ref(), false, true)
    }

    fn access(members: &Members) -> Option<&str> {
        members.access_token().map(AccessToken::expose_secret)
    }

    fn refresh(members: &Members) -> Option<&str> {
        members.refresh_token().map(RefreshToken::expose_secret)
    }

    #[test]
    fn an_unreadable_member_spoils_only_itself() {
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
            for name in ["x", "scope", "token_type", "refresh_token", "errors", "\\ud800"] {
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
            (r#""1h""#, None),
            (r#""""#, None),
            ("null", None),
            ("[60]", None),
            ("true", None),
        ];
        for (value, expected) in table {
            for name in ["expires_in", "expiresIn", "expires"] {
                let members = read(format!(r#"{{"{name}":{value},"access_token":"a"}}"#));
                assert_eq!(members.lifetime(), expected.map(Duration::from_secs_f64), "{value}");
                assert_eq!(access(&members), Some("a"), "{value}");
            }
        }
        let both = read(r#"{"expires":5183999,"expiresIn":60,"expires_in":30}"#);
        assert_eq!(both.lifetime(), Some(Duration::from_secs(30)));
        for (expires, expected) in [(5_183_999, true), (315_360_000, true), (315_360_001, false)] {
            let members = read(format!(r#"{{"expires":{expires}}}"#));
            assert_eq!(members.lifetime().is_some(), expected, "{expires}");
        }
        assert!(read(r#"{"expires_in":1700000000}"#).lifetime().is_some());
    }

    #[test]
    fn the_last_usable_of_several_wins() {
        assert_eq!(access(&read(r#"{"access_token":"a","access_token":"b"}"#)), Some("b"));
        for spoilt in ["null", "7", r#""""#, r#""b c""#] {
            let body = format!(r#"{{"access_token":"a","access_token":{spoilt}}}"#);
            assert_eq!(access(&read(body)), Some("a"), "{spoilt}");
        }
        assert_eq!(access(&read(r#"{"access\u005ftoken":"escaped"}"#)), Some("escaped"));
    }

    #[test]
    fn snake_case_comes_before_camel_case() {
        let members = read(r#"{"refreshToken":"c","accessToken":"a","tokenType":"t"}"#);
        assert_eq!(access(&members), Some("a"));
        assert_eq!(refresh(&members), Some("c"));
        assert_eq!(members.token_type(), Some("t"));
        let members = read(r#"{"refresh_token":"s","refreshToken":"c","access_token":" "}"#);
        assert_eq!(access(&members), None);
        assert_eq!(refresh(&members), Some("s"));
        assert_eq!(refresh(&read(r#"{"refresh_token":"","refreshToken":"c"}"#)), Some("c"));
    }

    #[test]
    fn blanks_and_scheme_are_cut_from_a_token() {
        for text in ["T1", "Bearer T1", "bearer  T1 ", " T1\\n", "\\tT1"] {
            let members = read(format!(r#"{{"access_token":"{text}","refresh_token":"{text}"}}"#));
            assert_eq!(access(&members), Some("T1"), "{text}");
            assert_eq!(refresh(&members), Some("T1"), "{text}");
        }
        for text in ["Bearer", "Basic T1", "Bearer T1 T2", "T\\u0000"] {
            assert_eq!(access(&read(format!(r#"{{"access_token":"{text}"}}"#))), None, "{text}");
        }
    }

    #[test]
    fn bom_and_trailing_text_do_not_matter() {
        for body in [
            "\u{feff}{\"access_token\":\"a\"}",
            r#"{"access_token":"a"} and more"#,
            "\r\n\t{\"access_token\":\"a\"}\0\0",
        ] {
            let members = read(body);
            assert_eq!(access(&members), Some("a"), "{body:?}");
            assert!(members.complete, "{body:?}");
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
            assert_eq!(refresh(&members), Some("new"), "{body}");
            assert_eq!(access(&members), None, "{body}");
            assert!(!members.complete, "{body}");
        }
        assert_eq!(refresh(&read(r#"{"refresh_token":"ne"#)), None);
    }

    #[test]
    fn only_objects_and_forms_have_members() {
        let utf16: Vec<u8> =
            r#"{"access_token":"a"}"#.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let deep = "[".repeat(10_000).into_bytes();
        let others = [
            "",
            "null",
            "[]",
            "\"access_token\"",
            "<html>",
            "<a href=/?x&access_token=a&y>",
            "go to /?access_token=a",
            "{'access_token':'a'}",
            r#"[{"access_token":"a"}]"#,
        ];
        for body in others.map(|text| text.as_bytes().to_vec()).into_iter().chain([utf16, deep]) {
            let members = read(&body);
            assert!(members.access_token().is_none(), "{body:?}");
        }
    }

    #[test]
    fn forms_are_read_to_their_last_closed_pair() {
        let body = "access_token=ghu_%2B1&expires_in=28800&refresh_token=ghr_1&scope=&token_type=b";
        for is_form in [true, false] {
            let members = Members::read(body.as_bytes(), is_form, true);
            assert_eq!(access(&members), Some("ghu_+1"));
            assert_eq!(refresh(&members), Some("ghr_1"));
            assert_eq!(members.lifetime(), Some(Duration::from_secs(28_800)));
            assert_eq!(members.token_type(), Some("b"));
            assert!(members.complete);
        }
        let cut = Members::read(b"refresh_token=r&access_token=half", false, false);
        assert_eq!(access(&cut), None);
        assert_eq!(refresh(&cut), Some("r"));
        assert!(!cut.complete);
        let cut = Members::read(b"refresh_token=half", false, false);
        assert_eq!(refresh(&cut), None);
        let error = read("error=bad_refresh_token&error_description=so+it+is\n");
        assert_eq!(error.code(), Some("bad_refresh_token"));
        assert_eq!(error.description(), Some("so it is"));
        assert!(error.is_error());
        // If its type is declared, a form may contain characters that it should have encoded.
        assert_eq!(access(&Members::read(b"scope=a b&access_token=a", true, true)), Some("a"));
    }

    #[test]
    fn codes_are_found_wherever_providers_put_them() {
        let known = Some("invalid_grant");
        let table = [
            (r#"{"error":"invalid_grant"}"#, known),
            (r#"{"error":"Invalid_Grant"}"#, known),
            (r#"{"error":{"code":"invalid_grant","message":"x"}}"#, known),
            (r#"{"error":{"type":"invalid_grant"}}"#, known),
            (r#"{"code":"invalid_grant","message":"x"}"#, known),
            (r#"{"errorCode":"invalid_grant"}"#, known),
            (r#"{"error_code":"invalid_grant"}"#, known),
            (r#"{"status":"INVALID_GRANT"}"#, known),
            (r#"{"errors":[{"errorType":"invalid_grant"}],"success":false}"#, known),
            (r#"{"errors":[{"code":7},{"code":"x"},{"code":"invalid_grant"}]}"#, known),
            (r#"{"errors":[{"type":"invalid_grant"}]}"#, known),
            (r#"{"error":"odd","code":"invalid_grant"}"#, known),
            (r#"{"code":"invalid_grant","error":"invalid_client"}"#, Some("invalid_client")),
            (r#"{"error_code":"invalid_grant","error":"odd"}"#, known),
            (r#"{"error":"odd","code":"other"}"#, Some("odd")),
            (r#"{"code":400,"error_code":"conflict"}"#, Some("conflict")),
            (r#"{"error":"","code":" "}"#, None),
            (r#"{"errors":"invalid_grant"}"#, None),
            (r#"{"errors":{"code":"invalid_grant"}}"#, None),
        ];
        for (body, expected) in table {
            assert_eq!(read(body).code(), expected, "{body}");
        }
    }

    #[test]
    fn the_member_error_alone_counts_beside_a_token() {
        let table = [
            (r#"{"error":"odd"}"#, Some("odd")),
            (r#"{"error":{"code":"invalid_grant"}}"#, Some("invalid_grant")),
            (r#"{"error":{"code":"ok"}}"#, None),
            (r#"{"code":"invalid_grant"}"#, None),
            (r#"{"errors":[{"code":"invalid_grant"}]}"#, None),
        ];
        for (body, expected) in table {
            assert_eq!(read(body).own_code(), expected, "{body}");
        }
    }

    #[test]
    fn an_empty_error_is_none() {
        let table = [
            (r#""""#, false),
            (r#"["x"]"#, false),
            ("null", false),
            ("false", false),
            ("0", false),
            ("{}", false),
            (r#""x""#, true),
            ("true", true),
            ("40013", true),
            (r#"{"x":1}"#, true),
        ];
        for (value, expected) in table {
            assert_eq!(read(format!(r#"{{"error":{value}}}"#)).is_error(), expected, "{value}");
        }
    }

    #[test]
    fn descriptions_are_found_too() {
        let table = [
            (r#"{"message":"m","error_description":"d"}"#, Some("d")),
            (r#"{"errorDescription":"d","msg":"m"}"#, Some("d")),
            (r#"{"error":{"message":"i"},"message":"m"}"#, Some("i")),
            (r#"{"msg":"m"}"#, Some("m")),
            (r#"{"errors":[{"message":"e"}]}"#, Some("e")),
            ("{}", None),
        ];
        for (body, expected) in table {
            assert_eq!(read(body).description(), expected, "{body}");
        }
    }

    #[test]
    fn a_pointer_finds_the_member_it_names() {
        let body = br#"{"data":{"access_token":"a","x":1e400},"a/b":[{"~":{"access_token":"b"}}],
            "data":{"access_token":"c"}} more"#;
        for (pointer, expected) in [
            ("/data", Some("c")),
            ("/a~1b/0/~0", Some("b")),
            ("", None),
            ("/none", None),
            ("data", None),
            ("/a~1b/1", None),
            ("/a~1b/x", None),
            ("/data/access_token", None),
        ] {
            assert_eq!(access(&Members::read_at(body, pointer)), expected, "{pointer}");
        }
        // A value that is complete before the break is found.
        let cut = br#"{"data":{"refresh_token":"r"},"x":"#;
        assert_eq!(refresh(&Members::read_at(cut, "/data")), Some("r"));
    }
}
