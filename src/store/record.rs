//! The JSON document of the file store and the Redis store:
//! `{"version":1,"access_token":…,"refresh_token":…,"expires_at":<unix seconds>}`.
//!
//! Tokens that are bound to a key have `"version":2` and `"cnf":{"jkt":…}` (RFC 7800, RFC 9449
//! §6.1). The first edition, which has no keys, leaves such documents alone.

use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde_json::value::RawValue;
use zeroize::Zeroizing;

use crate::token::{AccessToken, RefreshToken, Tokens, trim_token};

const VERSION: u64 = 1;
/// The version of a document with a key.
const BOUND: u64 = 2;
/// The maximum length of a thumbprint in bytes. A SHA-256 thumbprint has 43.
const MAX_THUMBPRINT: usize = 128;
/// The maximum length of a document in bytes.
pub(super) const MAX_BYTES: usize = 1024 * 1024;

/// A document: the tokens, and the members beside them.
#[derive(Debug, Default)]
pub(super) struct Record {
    pub(super) tokens: Tokens,
    pub(super) rest: Rest,
}

/// Members that this version does not know. They survive a rewrite.
#[derive(Default)]
pub(super) struct Rest(BTreeMap<String, Box<RawValue>>);

/// Why a document cannot be used.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unreadable {
    /// It is not a document of this crate, or it is damaged.
    Broken(String),
    /// A later version of this crate wrote it, so it must not be changed.
    Newer(u64),
}

impl Record {
    /// Parses a document. A malformed `expires_at` counts as unknown. A malformed token makes the
    /// document unreadable.
    pub(super) fn parse(document: &[u8]) -> Result<Self, Unreadable> {
        if document.len() > MAX_BYTES {
            return Err(broken("is over 1 MiB"));
        }
        // Members stay borrowed from the document, so that no copy of a token is left unwiped. They
        // are parsed one by one, so that a number out of range affects only its own member.
        let members: BTreeMap<String, &RawValue> =
            serde_json::from_slice(document).map_err(|error| {
                // The parser's own text quotes values.
                broken(format!(
                    "is not a JSON object (line {}, column {})",
                    error.line(),
                    error.column()
                ))
            })?;
        let bound_to = thumbprint(members.get("cnf").copied())?;
        check_version(members.get("version").copied(), bound_to.is_some())?;
        let access = token(&members, "access_token", AccessToken::new)?;
        let refresh = token(&members, "refresh_token", RefreshToken::new)?;
        let expires_at = members.get("expires_at").and_then(|value| parse_time(value.get()));
        let mut tokens = Tokens::of(access, refresh);
        if let Some(at) = expires_at {
            tokens = tokens.with_expires_at(at);
        }
        let issued_at = members.get("issued_at").and_then(|value| parse_time(value.get()));
        tokens = tokens.with_issued_at(issued_at);
        let rotates = members.get("rotates").is_some_and(|value| value.get() == "true");
        tokens = tokens.with_rotates(rotates).bound_to(bound_to.as_deref());
        let rest = members
            .into_iter()
            .filter(|(name, _)| !is_ours(name) && (*name != "cnf" || bound_to.is_none()))
            .map(|(name, value)| (name, value.to_owned()));
        Ok(Self { tokens, rest: Rest(rest.collect()) })
    }

    /// Returns the tokens, if there are any.
    pub(super) fn into_tokens(self) -> Option<Tokens> {
        (!self.is_empty()).then_some(self.tokens)
    }

    /// Whether the document contains no token.
    pub(super) fn is_empty(&self) -> bool {
        self.tokens.access_token().is_none() && self.tokens.refresh_token().is_none()
    }
}

impl Rest {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Builds the document for these tokens, with the members that were beside the last ones.
    pub(super) fn with(&self, tokens: &Tokens) -> Zeroizing<String> {
        let access = tokens.access_token().map(AccessToken::expose_secret);
        let refresh = tokens.refresh_token().map(RefreshToken::expose_secret);
        let beside: usize =
            self.0.iter().map(|(name, value)| 6 * name.len() + value.get().len() + 8).sum();
        let rest = beside + tokens.key_thumbprint().map_or(0, |thumbprint| 6 * thumbprint.len());
        // Allocated once at full size, because a growing buffer leaves copies behind.
        let room = 2 * (access.map_or(0, str::len) + refresh.map_or(0, str::len)) + rest + 256;
        let mut out = Zeroizing::new(String::with_capacity(room));
        let bound_to = tokens.key_thumbprint().filter(|_| access.or(refresh).is_some());
        let version = if bound_to.is_some() { BOUND } else { VERSION };
        let _ = write!(out, "{{\"version\":{version}");
        for (name, value) in [("access_token", access), ("refresh_token", refresh)] {
            if let Some(value) = value {
                push_member(&mut out, name);
                push_text(&mut out, value);
            }
        }
        if let (Some(_), Some(at)) = (access, tokens.expires_at()) {
            push_member(&mut out, "expires_at");
            push_time(&mut out, at);
        }
        if let (Some(_), Some(at)) = (access, tokens.issued_at()) {
            push_member(&mut out, "issued_at");
            push_time(&mut out, at);
        }
        if let (Some(_), true) = (refresh, tokens.rotates()) {
            push_member(&mut out, "rotates");
            out.push_str("true");
        }
        if let Some(thumbprint) = bound_to {
            push_member(&mut out, "cnf");
            out.push_str("{\"jkt\":");
            push_text(&mut out, thumbprint);
            out.push('}');
        }
        for (name, value) in self.0.iter().filter(|(name, _)| *name != "cnf" || bound_to.is_none())
        {
            push_member(&mut out, name);
            out.push_str(value.get());
        }
        out.push('}');
        out
    }
}

impl fmt::Debug for Rest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Broken(why) => write!(f, "is broken: it {why}"),
            Self::Newer(version) => {
                write!(f, "has version {version}, written by a later reqwest-reauth")
            }
        }
    }
}

fn broken(why: impl Into<String>) -> Unreadable {
    Unreadable::Broken(why.into())
}

fn is_ours(name: &str) -> bool {
    matches!(
        name,
        "version" | "access_token" | "refresh_token" | "expires_at" | "issued_at" | "rotates"
    )
}

fn check_version(member: Option<&RawValue>, is_bound: bool) -> Result<(), Unreadable> {
    match member.map(|value| value.get().parse::<u64>()) {
        Some(Ok(VERSION)) => Ok(()),
        Some(Ok(BOUND)) if is_bound => Ok(()),
        Some(Ok(newer)) if newer > VERSION => Err(Unreadable::Newer(newer)),
        Some(_) => Err(broken("has an unknown version")),
        None => Err(broken("has no version")),
    }
}

/// Parses the `jkt` of a `cnf`. Another confirmation method counts as none. A malformed thumbprint
/// makes the document unreadable, because without it the tokens would pass as tokens of any key.
fn thumbprint(cnf: Option<&RawValue>) -> Result<Option<String>, Unreadable> {
    let Some(Ok(methods)) =
        cnf.map(|cnf| serde_json::from_str::<BTreeMap<String, &RawValue>>(cnf.get()))
    else {
        return Ok(None);
    };
    let Some(jkt) = methods.get("jkt") else { return Ok(None) };
    serde_json::from_str::<String>(jkt.get())
        .ok()
        .filter(|jkt| {
            let visible = jkt.bytes().all(|byte| byte.is_ascii_graphic());
            visible && (1..=MAX_THUMBPRINT).contains(&jkt.len())
        })
        .map(Some)
        .ok_or_else(|| broken("has a thumbprint (jkt) that no key can have"))
}

fn token<T>(
    members: &BTreeMap<String, &RawValue>,
    name: &'static str,
    check: impl FnOnce(String) -> Result<T, crate::Error>,
) -> Result<Option<T>, Unreadable> {
    let Some(value) = members.get(name).filter(|value| value.get() != "null") else {
        return Ok(None);
    };
    let text: String = serde_json::from_str(value.get())
        .map_err(|_| broken(format!("has a {name} that is not text")))?;
    let text = Zeroizing::new(text);
    // The error's source names the character and its position, not the token.
    check(trim_token(&text).to_owned()).map(Some).map_err(|error| {
        let why = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        broken(format!("has an invalid {name}: {why}"))
    })
}

/// Parses Unix seconds, to the nanosecond if they are plain digits. Returns `None` for anything
/// that is not a time.
fn parse_time(number: &str) -> Option<SystemTime> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let since = if digits(whole) && digits(fraction) {
        let nanos = format!("{fraction:0<9.9}").parse().ok()?;
        Duration::new(whole.parse().ok()?, nanos)
    } else {
        Duration::try_from_secs_f64(number.parse().ok()?).ok()?
    };
    UNIX_EPOCH.checked_add(since)
}

fn push_time(out: &mut String, at: SystemTime) {
    // A time before 1970 is as expired as 1970.
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let _ = write!(out, "{}", since.as_secs());
    if since.subsec_nanos() > 0 {
        let digits = format!("{:09}", since.subsec_nanos());
        let _ = write!(out, ".{}", digits.trim_end_matches('0'));
    }
}

fn push_member(out: &mut String, name: &str) {
    out.push(',');
    push_text(out, name);
    out.push(':');
}

/// Writes a JSON string (RFC 8259 §7) directly into `out`.
fn push_text(out: &mut String, text: &str) {
    out.push('"');
    for char in text.chars() {
        match char {
            '"' | '\\' => out.extend(['\\', char]),
            '\0'..='\x1f' => {
                let _ = write!(out, "\\u{:04x}", u32::from(char));
            }
            _ => out.push(char),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(document: &str) -> Result<Record, Unreadable> {
        Record::parse(document.as_bytes())
    }

    #[test]
    fn a_rewrite_keeps_unknown_members() {
        let at = UNIX_EPOCH + Duration::new(1_800_000_000, 123_456_789);
        let old = parse(
            r#"{"version":1,"access_token":"old","note":{"a":[1e400,-0.0]},"q\"\\\u0007":"x","n":18446744073709551616}"#,
        );
        let tokens =
            Tokens::new("a.b").unwrap().with_refresh_token("r\"\\!").unwrap().with_expires_at(at);
        let old = old.unwrap();
        assert!(!old.rest.is_empty());
        assert_eq!(format!("{:?}", old.rest), r#"{"n", "note", "q\"\\\u{7}"}"#.to_owned());
        let written = old.rest.with(&tokens);
        let strict: BTreeMap<String, Box<RawValue>> = serde_json::from_str(&written).unwrap();
        assert_eq!(strict["note"].get(), r#"{"a":[1e400,-0.0]}"#);
        assert_eq!(strict["n"].get(), "18446744073709551616");
        assert_eq!(strict["q\"\\\u{7}"].get(), "\"x\"");
        assert_eq!(strict["version"].get(), "1");
        let read = parse(&written).unwrap();
        assert!(read.tokens.same_as(&tokens));
        assert_eq!(read.tokens.expires_at(), Some(at));
        assert_eq!(read.rest.with(&tokens), written);
    }

    #[test]
    fn what_is_not_there_stays_away() {
        let alone = Rest::default().with(&Tokens::from_refresh_token("r").unwrap());
        assert_eq!(*alone, r#"{"version":1,"refresh_token":"r"}"#);
        let none = Rest::default().with(&Tokens::empty());
        assert!(parse(&none).unwrap().into_tokens().is_none());
        let null =
            parse(r#"{"version":1,"access_token":null,"refresh_token":"r","expires_at":null}"#)
                .unwrap();
        assert_eq!(null.tokens.expires_at(), None);
        assert!(null.rest.is_empty());
        assert!(null.into_tokens().unwrap().access_token().is_none());
    }

    #[test]
    fn times_are_written_as_short_as_they_can_be() {
        for (at, written) in [
            (Duration::from_secs(7), "7"),
            (Duration::from_millis(7500), "7.5"),
            (Duration::new(0, 1), "0.000000001"),
        ] {
            let tokens = Tokens::new("a").unwrap().with_expires_at(UNIX_EPOCH + at);
            let expected = format!(r#"{{"version":1,"access_token":"a","expires_at":{written}}}"#);
            assert_eq!(*Rest::default().with(&tokens), expected);
        }
        let before = Tokens::new("a").unwrap().with_expires_at(UNIX_EPOCH - Duration::from_secs(1));
        assert_eq!(
            *Rest::default().with(&before),
            r#"{"version":1,"access_token":"a","expires_at":0}"#
        );
    }

    #[test]
    fn the_document_fits_its_first_buffer() {
        let rest =
            parse(r#"{"version":1,"\u0001\u0001\u0001\u0001":[1,2,3],"b":"x"}"#).unwrap().rest;
        let at = UNIX_EPOCH + Duration::new(1_800_000_000, 1);
        for length in [1, 64 * 1024] {
            let refresh = "\"".repeat(length);
            let tokens = Tokens::new("a".repeat(length))
                .unwrap()
                .with_refresh_token(refresh)
                .unwrap()
                .with_expires_at(at);
            let written = rest.with(&tokens);
            assert!(written.capacity() <= 4 * length + 512, "grown to {}", written.capacity());
            assert!(parse(&written).unwrap().tokens.same_as(&tokens));
        }
        // The other members count too, with their names in the longest form.
        let beside = format!(
            r#"{{"version":1,"{}":1,"":1,"n":{}}}"#,
            "\\u0001".repeat(4000),
            "7".repeat(2000)
        );
        let written = parse(&beside).unwrap().rest.with(&Tokens::empty());
        assert!(
            written.len() > 26_000 && written.capacity() < written.len() + 512,
            "grown to {}",
            written.capacity()
        );
    }

    #[test]
    fn odd_expiries_count_as_unknown() {
        let plain = |secs, nanos| Some(UNIX_EPOCH + Duration::new(secs, nanos));
        let table = [
            ("1700000000", plain(1_700_000_000, 0)),
            ("1700000000.5", plain(1_700_000_000, 500_000_000)),
            ("1700000000.000000001", plain(1_700_000_000, 1)),
            ("1700000000.1234567899", plain(1_700_000_000, 123_456_789)),
            ("1.7e9", plain(1_700_000_000, 0)),
            ("0", plain(0, 0)),
            ("-1", None),
            ("1e400", None),
            ("99999999999999999999", None),
            ("\"1700000000\"", None),
            ("true", None),
            ("[]", None),
        ];
        for (value, expected) in table {
            let document = format!(r#"{{"version":1,"access_token":"a","expires_at":{value}}}"#);
            assert_eq!(parse(&document).unwrap().tokens.expires_at(), expected, "{value}");
        }
    }

    #[test]
    fn tokens_of_documents_are_trimmed() {
        let edited = r#"{"version":1,"access_token":"Bearer 00D!AQ|x\n","refresh_token":" r^1 "}"#;
        let tokens = parse(edited).unwrap().tokens;
        assert_eq!(tokens.access_token().unwrap().expose_secret(), "00D!AQ|x");
        assert_eq!(tokens.refresh_token().unwrap().expose_secret(), "r^1");
        let why = parse(r#"{"version":1,"access_token":"a b"}"#).unwrap_err().to_string();
        assert!(why.contains("U+0020 as its character 2"), "{why}");
    }

    #[test]
    fn broken_and_newer_documents_are_distinct() {
        let broken = [
            "",
            "{",
            "null",
            "[]",
            "\"s3cret\"",
            r#"{"version":1,"access_token":"s3cret"#,
            r#"{"access_token":"s3cret"}"#,
            r#"{"version":0}"#,
            r#"{"version":"1"}"#,
            r#"{"version":1.0}"#,
            r#"{"version":1,"access_token":{"s3cret":1}}"#,
            r#"{"version":1,"access_token":"s3cret s3cret"}"#,
            r#"{"version":1,"refresh_token":""}"#,
            r#"{"version":1} s3cret"#,
        ];
        for document in broken {
            let why = parse(document).unwrap_err();
            assert!(matches!(why, Unreadable::Broken(_)), "{document}: {why:?}");
            assert!(!format!("{why} {why:?}").contains("s3cret"), "{why:?}");
        }
        assert!(matches!(
            Record::parse(b"{\"version\":1,\"a\":\"\xff\"}"),
            Err(Unreadable::Broken(_))
        ));
        let mut longest = br#"{"version":1,"access_token":"a"}"#.to_vec();
        longest.resize(1024 * 1024, b' ');
        assert!(Record::parse(&longest).unwrap().into_tokens().is_some());
        longest.push(b' ');
        assert_eq!(
            Record::parse(&longest).unwrap_err(),
            Unreadable::Broken("is over 1 MiB".to_owned())
        );
        for newer in [
            r#"{"version":2,"access_token":["anything"]}"#,
            r#"{"version":2,"cnf":{"x5t#S256":"x"}}"#,
        ] {
            let why = parse(newer).unwrap_err();
            assert_eq!(why, Unreadable::Newer(2));
            assert!(why.to_string().contains("version 2"));
        }
        let bound = parse(r#"{"version":3,"cnf":{"jkt":"key"}}"#).unwrap_err();
        assert_eq!(bound, Unreadable::Newer(3));
    }

    #[test]
    fn a_bound_login_names_its_key() {
        let tokens = Tokens::from_refresh_token("r").unwrap().with_key_thumbprint("key-1");
        let written = Rest::default().with(&tokens);
        assert_eq!(*written, r#"{"version":2,"refresh_token":"r","cnf":{"jkt":"key-1"}}"#);
        let read = parse(&written).unwrap();
        assert_eq!(read.tokens.key_thumbprint(), Some("key-1"));
        assert_eq!(*read.rest.with(&read.tokens), *written, "it is not written twice");
        assert_eq!(*read.rest.with(&Tokens::empty()), r#"{"version":1}"#);
        let unbound = Tokens::from_refresh_token("s").unwrap();
        assert_eq!(*read.rest.with(&unbound), r#"{"version":1,"refresh_token":"s"}"#);
    }

    #[test]
    fn other_confirmations_are_none_of_ours() {
        let text = r#"{"version":1,"refresh_token":"r","cnf":{"x5t#S256":"c"}}"#;
        let other = parse(text).unwrap();
        assert_eq!(other.tokens.key_thumbprint(), None);
        assert_eq!(*other.rest.with(&other.tokens), text, "and are kept");
        let bound = other.tokens.clone().with_key_thumbprint("k");
        let written = other.rest.with(&bound);
        assert_eq!(*written, r#"{"version":2,"refresh_token":"r","cnf":{"jkt":"k"}}"#);
        for jkt in ["5", "\"\"", "\"a b\"", "null", "{}"] {
            let document = format!(r#"{{"version":2,"cnf":{{"jkt":{jkt}}}}}"#);
            assert!(matches!(parse(&document), Err(Unreadable::Broken(_))), "{jkt}");
        }
        let long = format!(r#"{{"version":2,"cnf":{{"jkt":"{}"}}}}"#, "k".repeat(129));
        assert!(matches!(parse(&long), Err(Unreadable::Broken(_))));
    }
}
