//! `Refreshed-API-Token`: one value per line.
#![no_main]

use http::{HeaderMap, HeaderName, HeaderValue};
use libfuzzer_sys::fuzz_target;
use reqwest_reauth::fuzzing::captured_header;

const NAME: HeaderName = HeaderName::from_static("refreshed-api-token");

fuzz_target!(|data: &[u8]| {
    let mut headers = HeaderMap::new();
    for value in data.split(|&byte| byte == b'\n').take(16) {
        if let Ok(value) = HeaderValue::from_bytes(value) {
            headers.append(NAME, value);
        }
    }
    let Some(token) = captured_header(&headers, &NAME) else { return };
    let text = token.expose_secret();
    assert!(!text.is_empty() && text.len() <= 64 * 1024);
    assert!(text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b','));
    // Each of the values contains the token, and the token is a valid header value.
    for value in headers.get_all(NAME) {
        assert!(value.to_str().unwrap().trim_end_matches([' ', '\t']).ends_with(text));
    }
    let sent = HeaderValue::from_str(&format!("Bearer {text}")).unwrap();
    let headers = HeaderMap::from_iter([(NAME, sent)]);
    assert_eq!(captured_header(&headers, &NAME).unwrap().expose_secret(), text);
});
