//! Records everything that can be read of a process: every log line of every crate at TRACE, every
//! panic message, and every text that a test passes in. Also lists the encodings in which a secret
//! could appear there.
#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    clippy::unwrap_used,
    reason = "each test file uses its own part"
)]

use std::{
    error::Error as StdError,
    fmt::{Debug, Display, Write as _},
    io,
    sync::{Mutex, Once, PoisonError},
};

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD},
};
use tracing_subscriber::fmt::format::FmtSpan;

static TEXT: Mutex<Vec<u8>> = Mutex::new(Vec::new());

struct Writer;

impl io::Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        TEXT.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The start of a panic message of the test's own. The crate does not control the text of such a
/// panic.
pub const FOREIGN_PANIC: &str = "foreign panic";

/// Starts recording, once for the process.
pub fn listen() {
    static LISTENING: Once = Once::new();
    LISTENING.call_once(|| {
        // Also records what goes through `log`.
        tracing_log::LogTracer::init().unwrap();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::TRACE)
            .with_span_events(FmtSpan::FULL)
            .with_ansi(false)
            .with_writer(|| Writer)
            .finish();
        tracing::subscriber::set_global_default(subscriber).unwrap();
        let default = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let text = panic.to_string();
            if !text.contains(FOREIGN_PANIC) {
                note(&text);
                default(panic);
            }
        }));
    });
}

fn note(text: &str) {
    let mut all = TEXT.lock().unwrap_or_else(PoisonError::into_inner);
    all.extend_from_slice(text.as_bytes());
    all.push(b'\n');
}

pub fn show(value: &impl Debug) {
    note(&format!("{value:?}\n{value:#?}"));
}

pub fn show_text(value: &impl Display) {
    note(&format!("{value}\n{value:#}"));
}

/// Shows an error with all its causes, in each of the usual ways to print it.
pub fn show_error(error: &(dyn StdError + 'static)) {
    let mut link = Some(error);
    while let Some(error) = link {
        note(&format!("{error}\n{error:#}\n{error:?}\n{error:#?}"));
        link = error.source();
    }
}

pub fn text() -> String {
    String::from_utf8_lossy(&TEXT.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
}

/// A secret in every encoding: plain, half of it, percent- and form-encoded, hexadecimal, as a list
/// of bytes, escaped, and in Base64 at any offset of a longer text.
pub fn writings(secret: &str) -> Vec<String> {
    let half = secret.len() / 2;
    let bytes = secret.as_bytes();
    let join = |piece: fn(&u8) -> String, separator: &str| {
        bytes.iter().map(piece).collect::<Vec<_>>().join(separator)
    };
    let mut all = vec![
        secret.to_owned(),
        secret[..half].to_owned(),
        secret[half..].to_owned(),
        form_urlencoded::byte_serialize(bytes).collect(),
        join(|byte| format!("%{byte:02X}"), ""),
        percent(secret),
        join(|byte| format!("{byte:02x}"), ""),
        join(|byte| format!("{byte:02X}"), ""),
        join(u8::to_string, ", "),
        secret.escape_debug().to_string(),
        serde_json::to_string(secret).unwrap().trim_matches('"').to_owned(),
    ];
    for offset in 0..3 {
        let padded = [&b"###"[..offset], bytes].concat();
        for engine in [&STANDARD_NO_PAD, &URL_SAFE_NO_PAD] {
            let encoded = engine.encode(&padded);
            // The characters that depend only on the secret, at any offset.
            all.push(encoded[(offset * 8).div_ceil(6)..padded.len() * 8 / 6].to_owned());
        }
    }
    all
}

/// Each byte of it percent-encoded.
pub fn percent(secret: &str) -> String {
    secret.bytes().map(|byte| format!("%{byte:02x}")).collect::<Vec<_>>().concat()
}

/// Finds these secrets in a text, with a little context.
pub fn leaks(text: &str, secrets: &[&str]) -> String {
    let mut found = String::new();
    for writing in secrets.iter().flat_map(|secret| writings(secret)) {
        if let Some(at) = text.find(&writing) {
            let from = text[..at].char_indices().rev().nth(200).map_or(0, |(at, _)| at);
            let to = text[at..].char_indices().nth(200).map_or(text.len(), |(to, _)| at + to);
            let _ = writeln!(found, "{writing:?} in: {}", &text[from..to]);
        }
    }
    found
}
