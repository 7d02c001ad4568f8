//! Keeps secrets out of the texts of servers: some copy the rejected token into
//! `error_description`.

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD},
};
use zeroize::Zeroizing;

use super::failure::Cause;
use crate::error::{Error, printable};

/// The length in characters of a piece of a secret that a text must not contain. A shorter secret
/// is searched for whole.
const PIECE: usize = 8;
/// The number of characters of a text that are shown.
const SHOWN: usize = 256;

/// Everything that no text may repeat, in every encoding that servers use.
#[derive(Default)]
pub(super) struct Secrets(Vec<Zeroizing<String>>);

impl Secrets {
    pub(super) fn add(&mut self, secret: &str) {
        if secret.is_empty() {
            return;
        }
        self.0.push(Zeroizing::new(secret.to_owned()));
        // If a longer text was encoded as a whole, a secret inside it starts at one of three bit
        // offsets.
        for offset in 0..3 {
            let mut padded = Zeroizing::new(vec![0; offset]);
            padded.extend_from_slice(secret.as_bytes());
            for engine in [&STANDARD_NO_PAD, &URL_SAFE_NO_PAD] {
                let encoded = Zeroizing::new(engine.encode(&*padded));
                // Only the characters that depend on the secret alone.
                let own = (offset * 8).div_ceil(6)..padded.len() * 8 / 6;
                self.0.extend(
                    encoded
                        .get(own)
                        .filter(|own| own.len() >= 4)
                        .map(|own| Zeroizing::new(own.to_owned())),
                );
            }
        }
    }

    /// Returns the text, bounded and escaped, or `None` if it contains a secret or a piece of a
    /// secret.
    pub(super) fn clean(&self, text: &str) -> Option<String> {
        // Reads slightly more than is shown, so that a secret that is cut off at the end is
        // recognised by its start.
        let seen: Zeroizing<String> = Zeroizing::new(text.chars().take(SHOWN + PIECE).collect());
        let decoded = percent_decoded(&seen);
        let repeats =
            self.0.iter().any(|secret| repeats(&seen, secret) || repeats(&decoded, secret));
        (!repeats).then(|| printable(&seen))
    }
}

fn repeats(text: &str, secret: &str) -> bool {
    if secret.chars().nth(PIECE).is_none() {
        return text.contains(secret);
    }
    let starts: Vec<usize> = text.char_indices().map(|(at, _)| at).chain([text.len()]).collect();
    starts.windows(PIECE + 1).any(|piece| secret.contains(&text[piece[0]..piece[PIECE]]))
}

fn percent_decoded(text: &str) -> Zeroizing<String> {
    let mut rest = text.as_bytes();
    let mut out = Zeroizing::new(Vec::with_capacity(rest.len()));
    while let Some((&byte, after)) = rest.split_first() {
        let hex = |at: usize| {
            after
                .get(at)
                .and_then(|&digit| char::from(digit).to_digit(16))
                .and_then(|d| u8::try_from(d).ok())
        };
        if let (b'%', Some(high), Some(low)) = (byte, hex(0), hex(1)) {
            out.push(high * 16 + low);
            rest = &after[2..];
        } else {
            out.push(byte);
            rest = after;
        }
    }
    Zeroizing::new(String::from_utf8_lossy(&out).into_owned())
}

/// Turns an error of the user's own middleware into a cause that repeats no secret.
pub(super) fn foreign(error: &reqwest_middleware::Error, secrets: &Secrets) -> Cause {
    if let Some(ours) = Error::find_in(error) {
        return Box::new(ours.clone());
    }
    let text = match error {
        reqwest_middleware::Error::Middleware(error) => format!("{error:#}"),
        reqwest_middleware::Error::Reqwest(_) => String::new(),
    };
    match secrets.clean(&text) {
        Some(text) => format!("the client's middleware failed: {text}").into(),
        None => {
            "the client's middleware failed, and its error text contains a secret and is left out"
                .into()
        }
    }
}

#[cfg(test)]
mod tests {
    use base64::engine::general_purpose::{STANDARD, URL_SAFE};

    use super::*;

    #[test]
    fn a_secret_is_found_however_it_is_written() {
        let secret = "rt-~?>/+5ecretPart=tail";
        let mut secrets = Secrets::default();
        secrets.add(secret);
        let percent: String = secret.bytes().flat_map(|byte| [format!("%{byte:02x}")]).collect();
        let form: String = form_urlencoded::byte_serialize(secret.as_bytes()).collect();
        let pair = |prefix: &str| format!("{prefix}{secret}{prefix}");
        let dirty = [
            secret.to_owned(),
            form,
            percent,
            secret[..10].to_owned(),
            secret[12..].to_owned(),
            STANDARD.encode(secret),
            URL_SAFE.encode(secret),
            STANDARD.encode(pair("a:")),
            URL_SAFE.encode(pair("a")),
            STANDARD.encode(pair("abc")),
            // The last characters that depend on the secret alone.
            STANDARD_NO_PAD.encode(secret)[22..30].to_owned(),
            format!("{}{secret}", "x".repeat(SHOWN - 10)),
        ];
        for text in dirty {
            assert_eq!(
                secrets.clean(&format!("token '{text}' unknown").replace("token 'xx", "xx")),
                None,
                "{text}"
            );
        }
        assert_eq!(secrets.clean("token expired\u{1b}").as_deref(), Some("token expired\\u{1b}"));
        assert!(secrets.clean(&"%".repeat(1000)).unwrap().len() <= SHOWN);
        // This secret is beyond the part that is shown.
        assert!(secrets.clean(&format!("{}{secret}", "x".repeat(SHOWN + PIECE))).is_some());
    }

    #[test]
    fn short_secrets_are_looked_for_whole() {
        let mut secrets = Secrets::default();
        secrets.add("pä55");
        secrets.add("");
        assert_eq!(secrets.clean("bad pä55!"), None);
        assert_eq!(secrets.clean("bad p%C3%a455!"), None);
        assert!(secrets.clean("bad pa55").is_some());
        // Each of the bit offsets.
        for before in ["", "a", "ab", "abc"] {
            let encoded = STANDARD.encode(format!("{before}pä55 and more"));
            assert_eq!(secrets.clean(&encoded), None, "{before}: {encoded}");
        }
    }
}
