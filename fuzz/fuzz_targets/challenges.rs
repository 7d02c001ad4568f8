//! `WWW-Authenticate`: one value per line.
#![no_main]

use http::{HeaderMap, HeaderValue, StatusCode, header::WWW_AUTHENTICATE};
use libfuzzer_sys::fuzz_target;
use reqwest_reauth::fuzzing::is_rejection;

fuzz_target!(|data: &[u8]| {
    let mut headers = HeaderMap::new();
    for value in data.split(|&byte| byte == b'\n').take(16) {
        if let Ok(value) = HeaderValue::from_bytes(value) {
            headers.append(WWW_AUTHENTICATE, value);
        }
    }
    let unauthorized = is_rejection(StatusCode::UNAUTHORIZED, &headers);
    let forbidden = is_rejection(StatusCode::FORBIDDEN, &headers);
    let says = |wanted: &str| {
        let lower = data.to_ascii_lowercase();
        lower.windows(wanted.len()).any(|part| part == wanted.as_bytes())
    };
    // A 403 counts only with `invalid_token`, plain or with escaped characters.
    if forbidden {
        assert!(says("invalid_token") || data.contains(&b'\\'));
        assert!(unauthorized || says("insufficient"));
    }
    // A 401 that is no rejection names another scheme, or reports an insufficient token.
    if !unauthorized {
        let others = [
            "basic", "digest", "negotiate", "ntlm", "kerberos", "dpop", "hoba", "mutual", "scram-",
            "aws4-hmac-sha256", "insufficient",
        ];
        assert!(others.iter().any(|other| says(other)) || data.contains(&b'\\'));
    }
});
