//! The server's bounded record of requests.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
};

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode, Uri, header};

/// A request as the server saw it. `Debug` shows neither tokens nor the body.
#[derive(Clone)]
#[non_exhaustive]
pub struct Recorded {
    /// The method.
    pub method: Method,
    /// The path and query.
    pub uri: Uri,
    /// The headers. `Authorization` and `Cookie` are marked sensitive.
    pub headers: HeaderMap,
    /// The body, up to 1 MiB.
    pub body: Bytes,
    /// The length of the whole body in bytes.
    pub body_length: u64,
    /// The subject of the access token (at the token endpoint, of the refresh token), if this
    /// server has signed the token.
    pub subject: Option<String>,
    /// The `jti` of the access token.
    pub token_id: Option<String>,
    /// The status of the response, or `None` if there was no response.
    pub status: Option<StatusCode>,
    /// Whether the request was rejected because of its token.
    pub refused: bool,
    /// Whether the response carried a new token in `Refreshed-API-Token`.
    pub reissued: bool,
}

/// The counts of one login or of all logins. See [`AuthServer::counts`](super::AuthServer::counts).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counts {
    /// The number of requests to the API.
    pub api_hits: u64,
    /// The number of API requests that were rejected because of their token.
    pub refused: u64,
    /// The number of API responses with a new token in `Refreshed-API-Token`.
    pub reissued: u64,
    /// The number of calls to the token endpoint, including scripted ones.
    pub token_calls: u64,
    /// The number of calls that issued tokens, whether or not the response arrived.
    pub tokens_issued: u64,
    /// The number of reused refresh tokens.
    pub reuses: u64,
}

/// The newest records, and all counts.
#[derive(Default)]
pub(super) struct Log {
    pub(super) api: Records,
    pub(super) token: Records,
    pub(super) total: Counts,
    pub(super) by_subject: HashMap<String, Counts>,
}

#[derive(Default)]
pub(super) struct Records {
    newest: VecDeque<Recorded>,
    /// The number of dropped records before the first of `newest`.
    gone: usize,
    body_bytes: usize,
}

impl Log {
    /// Counts for all logins and, if it is known, for the subject.
    pub(super) fn count(&mut self, subject: Option<&str>, add: impl Fn(&mut Counts)) {
        add(&mut self.total);
        if let Some(subject) = subject {
            // Subjects come only from logins, so the map is bounded.
            add(self.by_subject.entry(subject.to_owned()).or_default());
        }
    }
}

impl Records {
    const MOST: usize = 16 * 1024;
    const MOST_BODY_BYTES: usize = 64 << 20;
    pub(super) const LONGEST_BODY: usize = 1 << 20;

    /// Stores a record and returns its number, for [`complete`](Self::complete).
    pub(super) fn add(&mut self, mut record: Recorded) -> usize {
        if record.body.len() > Self::LONGEST_BODY {
            // Copied, so that the long body is freed.
            record.body = Bytes::copy_from_slice(&record.body[..Self::LONGEST_BODY]);
        }
        for name in [header::AUTHORIZATION, header::COOKIE] {
            if let Some(value) = record.headers.get_mut(name) {
                value.set_sensitive(true);
            }
        }
        self.body_bytes += record.body.len();
        self.newest.push_back(record);
        while self.newest.len() > Self::MOST || self.body_bytes > Self::MOST_BODY_BYTES {
            self.body_bytes -= self.newest.pop_front().map_or(0, |oldest| oldest.body.len());
            self.gone += 1;
        }
        self.gone + self.newest.len() - 1
    }

    /// Completes a record later, if it is still stored.
    pub(super) fn complete(&mut self, number: usize, complete: impl FnOnce(&mut Recorded)) {
        if let Some(record) =
            number.checked_sub(self.gone).and_then(|index| self.newest.get_mut(index))
        {
            complete(record);
        }
    }

    pub(super) fn all(&self) -> Vec<Recorded> {
        self.newest.iter().cloned().collect()
    }

    pub(super) fn forget(&mut self) {
        self.gone += self.newest.len();
        self.newest.clear();
        self.body_bytes = 0;
    }
}

impl fmt::Debug for Recorded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recorded")
            .field("method", &self.method)
            .field("uri", &self.uri)
            .field("headers", &self.headers)
            .field("body_length", &self.body_length)
            .field("subject", &self.subject)
            .field("token_id", &self.token_id)
            .field("status", &self.status)
            .field("refused", &self.refused)
            .field("reissued", &self.reissued)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(body: Bytes) -> Recorded {
        Recorded {
            method: Method::GET,
            uri: Uri::from_static("/"),
            headers: HeaderMap::new(),
            body_length: body.len() as u64,
            body,
            subject: None,
            token_id: None,
            status: None,
            refused: false,
            reissued: false,
        }
    }

    #[test]
    fn the_log_is_bounded_in_number_and_in_bytes() {
        let mut records = Records::default();
        for _ in 0..Records::MOST + 5 {
            records.add(record(Bytes::new()));
        }
        assert_eq!(records.newest.len(), 16_384);

        let long = Bytes::from(vec![0; Records::LONGEST_BODY + 1]);
        for _ in 0..100 {
            records.add(record(long.clone()));
        }
        assert_eq!(records.body_bytes, 64 * 1024 * 1024);
        assert_eq!(records.newest.back().unwrap().body.len(), Records::LONGEST_BODY);
        assert_eq!(records.newest.back().unwrap().body_length, long.len() as u64);
    }

    #[test]
    fn a_record_is_completed_by_its_number() {
        let mut records = Records::default();
        let first = records.add(record(Bytes::new()));
        records.forget();
        records.add(record(Bytes::new()));
        records.complete(first, |_| panic!("it is forgotten"));
        for _ in 0..=16_384 {
            records.add(record(Bytes::new()));
        }
        for forgotten in [false, true, true] {
            if forgotten {
                records.forget();
                assert!(records.all().is_empty());
            }
            let before = records.add(record(Bytes::new()));
            let number = records.add(record(Bytes::new()));
            records.add(record(Bytes::new()));
            records.complete(first, |_| panic!("it is gone"));
            records.complete(number, |record| record.refused = true);
            let seen: Vec<_> =
                records.all().iter().rev().take(3).map(|record| record.refused).collect();
            assert_eq!(seen, vec![false, true, false], "forgotten: {forgotten}");
            assert_eq!(number - before, 1, "forgotten: {forgotten}");
        }
    }

    #[test]
    fn records_show_no_secret() {
        let mut records = Records::default();
        let mut secret = record(Bytes::from_static(b"refresh_token=hush"));
        secret.headers.insert(header::AUTHORIZATION, "Bearer hush".parse().unwrap());
        records.add(secret);
        let shown = format!("{:?}", records.all());
        assert!(shown.contains("Sensitive") && !shown.contains("hush"), "{shown}");
    }
}
