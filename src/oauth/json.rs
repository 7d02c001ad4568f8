//! Walks through a JSON text that may be cut or damaged, without copies of its secrets.

use std::{borrow::Cow, fmt};

use serde::{
    Deserializer as _,
    de::{MapAccess, SeqAccess, Visitor},
};
use serde_json::value::RawValue;
use zeroize::Zeroizing;

/// The number of elements of `errors` that are read.
const MOST_ERRORS: usize = 16;

/// The body as text. Control characters are invalid in JSON strings. Replaced by blanks, they spoil
/// only the member that contains them, because a token contains no blanks.
pub(super) struct Text<'b>(Cow<'b, str>);

impl<'b> Text<'b> {
    pub(super) fn of(body: &'b [u8]) -> Self {
        let body = body.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(body);
        let text = String::from_utf8_lossy(body);
        if !text.bytes().any(|byte| byte.is_ascii_control()) {
            return Self(text);
        }
        let mut blanked = String::with_capacity(text.len());
        blanked.extend(text.chars().map(|char| if char.is_ascii_control() { ' ' } else { char }));
        drop(Self(text));
        Self(Cow::Owned(blanked))
    }
}

impl std::ops::Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

/// Wipes a copy of the body. The owner of the body wipes the body itself.
impl Drop for Text<'_> {
    fn drop(&mut self) {
        if let Cow::Owned(text) = std::mem::take(&mut self.0) {
            drop(Zeroizing::new(text));
        }
    }
}

/// The value at this JSON pointer. The last of several members with the same name counts.
pub(super) fn at<'t>(text: &'t str, pointer: &str) -> Option<&'t str> {
    let mut value = text;
    if pointer.is_empty() {
        return Some(value);
    }
    for step in pointer.strip_prefix('/')?.split('/') {
        let step = step.replace("~1", "/").replace("~0", "~");
        let mut found = None;
        if value.trim_start().starts_with('[') {
            let (wanted, mut index) = (step.parse::<usize>().ok()?, 0);
            let each = Each(|element: &'t RawValue| {
                if index == wanted {
                    found = Some(element.get());
                }
                index += 1;
            });
            let _ = serde_json::Deserializer::from_str(value).deserialize_seq(each);
        } else {
            let walk = Walk(|name: &str, value: &'t RawValue| {
                if name == step {
                    found = Some(value.get());
                }
            });
            let _ = serde_json::Deserializer::from_str(value).deserialize_map(walk);
        }
        value = found?;
    }
    Some(value)
}

fn text(value: &RawValue) -> Option<String> {
    serde_json::from_str(value.get()).ok()
}

pub(super) fn secret(value: &RawValue) -> Option<Zeroizing<String>> {
    text(value).map(Zeroizing::new)
}

/// Visits each member of an object. Values stay raw: `serde_json` skips them without recursion and
/// without a size limit. They are borrowed from the body, so that no copy of a secret is left
/// unwiped.
pub(super) struct Walk<F>(pub(super) F);

impl<'de, F: FnMut(&str, &'de RawValue)> Visitor<'de> for Walk<F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        while let Some((name, value)) = map.next_entry::<&RawValue, &RawValue>()? {
            if let Some(name) = text(name) {
                (self.0)(&name, value);
            }
        }
        Ok(())
    }
}

/// Visits the first elements of an array.
pub(super) struct Each<F>(pub(super) F);

impl<'de, F: FnMut(&'de RawValue)> Visitor<'de> for Each<F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut elements: A) -> Result<(), A::Error> {
        for _ in 0..MOST_ERRORS {
            match elements.next_element::<&RawValue>()? {
                Some(element) => (self.0)(element),
                None => break,
            }
        }
        Ok(())
    }
}
