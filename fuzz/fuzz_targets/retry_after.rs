//! `Retry-After`: one value per line. The first four bytes are the server's clock.
#![no_main]

use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderValue, header::RETRY_AFTER};
use libfuzzer_sys::fuzz_target;
use reqwest_reauth::fuzzing::retry_after;

fuzz_target!(|data: &[u8]| {
    let Some((clock, values)) = data.split_first_chunk::<4>() else { return };
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(u32::from_be_bytes(*clock).into());
    let mut headers = HeaderMap::new();
    for value in values.split(|&byte| byte == b'\n').take(4) {
        if let Ok(value) = HeaderValue::from_bytes(value) {
            headers.append(RETRY_AFTER, value);
        }
    }
    let wait = retry_after(&headers, now);
    let first =
        headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()).unwrap_or_default().trim();
    if !first.is_empty() && first.bytes().all(|byte| byte.is_ascii_digit()) {
        assert_eq!(wait, Some(Duration::from_secs(first.parse().unwrap_or(u64::MAX))));
    } else if wait.is_some() {
        // Only a date remains.
        assert!(first.ends_with("GMT") || first.split(' ').count() > 4, "{first:?}");
    }
});
