//! The claims of a JWT. With a first byte below 32, the token itself.
#![no_main]

use std::time::SystemTime;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use libfuzzer_sys::fuzz_target;
use reqwest_reauth::{AccessToken, fuzzing::claims};

fuzz_target!(|data: &[u8]| {
    let text = match data.split_first() {
        Some((0..32, token)) => String::from_utf8_lossy(token).into_owned(),
        _ => format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(data)),
    };
    let Ok(token) = AccessToken::new(text) else { return };
    let (expires_at, [issued, handed]) = claims(&token);
    // An expiry beyond the range of the clock counts as none.
    if let Some(at) = expires_at {
        assert!(at >= SystemTime::UNIX_EPOCH);
    }
    if issued.is_some() || handed.is_some() {
        assert!(
            data.windows(3).any(|part| part == b"exp") || data.contains(&b'\\') || data[0] < 32
        );
    }
});
