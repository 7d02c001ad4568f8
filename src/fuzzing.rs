//! Entry points for the targets in `fuzz/`. The module exists only under `cfg(fuzzing)`, which
//! cargo-fuzz sets, and is not part of the API.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName, StatusCode};
use url::Url;

pub use crate::oauth::fuzzing::{cookies, retry_after, token_response};
use crate::{
    policy,
    token::{AccessToken, Arrival, Tokens},
};

/// The token in a response header.
pub fn captured_header(headers: &HeaderMap, name: &HeaderName) -> Option<AccessToken> {
    let channels = policy::Channels::new(vec![name.clone().into()]).ok()?;
    Some(channels.read(headers, SystemTime::UNIX_EPOCH).ok()??.access)
}

/// Whether a response rejects the token.
pub fn is_rejection(status: StatusCode, headers: &HeaderMap) -> bool {
    policy::is_rejection(status, headers, Some("Bearer"), false, false).rejected
}

/// The expiry of a token on the local clock, followed by its lifetime if it was issued just now and
/// its lifetime if it was handed over.
pub fn claims(token: &AccessToken) -> (Option<SystemTime>, [Option<Duration>; 2]) {
    let Ok(tokens) = Tokens::new(token.expose_secret()) else {
        return (None, [None; 2]);
    };
    let span = |arrival| {
        tokens
            .lifetime(arrival)
            .map(|lifetime| lifetime.until.saturating_duration_since(lifetime.from))
    };
    (tokens.expires_at(), [span(Arrival::Issued), span(Arrival::Handed)])
}

/// Whether a session accepts this origin, and whether the URL belongs to it.
pub fn origin(origin: &str, allow_plain_http: bool, url: &Url) -> Option<bool> {
    policy::Origin::parse(origin, allow_plain_http).ok().map(|origin| origin.covers(url))
}
