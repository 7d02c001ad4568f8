//! The header with which a server says when to try again.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, header::RETRY_AFTER};

/// Parses `Retry-After` (RFC 9110 §10.2.3): seconds, or a date relative to `now`. `now` is the
/// server's clock if it is known. A malformed value counts as absent. A number that overflows
/// counts as an endless wait.
pub(crate) fn asked_wait(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Some(Duration::from_secs(text.parse().unwrap_or(u64::MAX)));
    }
    let at = httpdate::parse_http_date(text).ok()?;
    Some(at.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = httpdate::parse_http_date("Wed, 01 Jan 2025 00:00:00 GMT").unwrap();
        let table = [
            ("0", Some(0)),
            ("120", Some(120)),
            (" 7 ", Some(7)),
            ("99999999999999999999", Some(u64::MAX)),
            ("Wed, 01 Jan 2025 00:00:09 GMT", Some(9)),
            ("Wed, 01 Jan 2020 00:00:00 GMT", Some(0)),
            ("Wednesday, 01-Jan-25 00:00:05 GMT", Some(5)),
            ("", None),
            ("-1", None),
            ("+1", None),
            ("1.5", None),
            ("1s", None),
            ("soon", None),
            ("Wed, 99 Jan 2025 00:00:00 GMT", None),
        ];
        for (value, expected) in table {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, HeaderValue::from_static(value))]);
            assert_eq!(asked_wait(&headers, now), expected.map(Duration::from_secs), "{value:?}");
        }
        assert_eq!(asked_wait(&HeaderMap::new(), now), None);
    }
}
