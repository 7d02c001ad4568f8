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
mod tests;
