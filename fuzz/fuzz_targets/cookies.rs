//! `Set-Cookie`: one value per line.
#![no_main]

use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderValue, header::SET_COOKIE};
use libfuzzer_sys::fuzz_target;
use reqwest_reauth::fuzzing::cookies;

fuzz_target!(|data: &[u8]| {
    let mut headers = HeaderMap::new();
    for value in data.split(|&byte| byte == b'\n').take(16) {
        if let Ok(value) = HeaderValue::from_bytes(value) {
            headers.append(SET_COOKIE, value);
        }
    }
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    let (access, refresh) = cookies(&headers, now);
    // A token is never invented: it is in one of the lines, after the name of its cookie.
    let stands = |name: &str, token: &str| {
        headers
            .get_all(SET_COOKIE)
            .iter()
            .any(|line| line.to_str().is_ok_and(|line| line.contains(name) && line.contains(token)))
    };
    if let Some(token) = access {
        assert!(stands("JWT", token.expose_secret()));
    }
    if let Some(token) = refresh {
        assert!(stands("JWT_REFRESH_TOKEN", token.expose_secret()));
    }
});
