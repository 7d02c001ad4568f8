//! A response of the token endpoint. The first byte chooses the status and whether the body is
//! whole. The rest is the body.
#![no_main]

use http::{HeaderMap, HeaderValue, StatusCode, header};
use libfuzzer_sys::fuzz_target;
use reqwest_reauth::{RefreshToken, fuzzing::token_response};

const STATUSES: [u16; 8] = [200, 201, 204, 302, 400, 401, 429, 503];
const ASKED_WITH: &str = "refresh-token-that-was-asked-with";

fuzz_target!(|data: &[u8]| {
    let Some((&choice, body)) = data.split_first() else { return };
    let status = StatusCode::from_u16(STATUSES[usize::from(choice % 8)]).unwrap();
    let whole = choice & 8 == 0;
    let mut headers = HeaderMap::new();
    if choice & 16 != 0 {
        headers.insert(
            header::SET_COOKIE,
            HeaderValue::from_static("JWT_REFRESH_TOKEN=rotated; Path=/"),
        );
    }
    let asked_with = RefreshToken::new(ASKED_WITH).unwrap();
    let (tokens, rotated, text) = token_response(status, headers.clone(), body, whole, &asked_with);
    if let Some(tokens) = &tokens {
        assert!(status.is_success() && whole);
        let access = tokens.access_token().unwrap().expose_secret();
        assert!(!access.is_empty() && access.bytes().all(|byte| byte.is_ascii_graphic()));
    }
    if let Some(rotated) = rotated {
        assert!(status.is_success() && rotated.expose_secret() != ASKED_WITH);
        assert!(rotated.expose_secret().bytes().all(|byte| byte.is_ascii_graphic()));
    }
    // A refresh token in a separate object is never lost.
    if status.is_success() && choice & 16 == 0 && data.len() < 100_000 {
        let kept = String::from_utf8_lossy(body);
        let own = format!(r#"{{"refresh_token":"kept-token","x":{kept}"#);
        let (_, rotated, _) = token_response(status, headers, own.as_bytes(), whole, &asked_with);
        // Unless the rest of the body has another one.
        if !kept.contains("refresh") && !kept.contains('\\') {
            assert_eq!(rotated.unwrap().expose_secret(), "kept-token");
        }
    }
    if let Some(text) = text {
        assert!(
            text.len() <= 256 && text.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic()),
            "{text:?}"
        );
        assert!(!text.contains(ASKED_WITH));
    }
});
