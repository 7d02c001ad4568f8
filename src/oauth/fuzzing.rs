//! Entry points for the fuzz targets.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, StatusCode};
use zeroize::Zeroizing;

use super::{
    body::{Body, End},
    classify::{Judgement, Verdict},
    cookies::TokenCookies,
    reading::judge_by,
    redact::Secrets,
    wire::RawResponse,
};
use crate::{
    time::asked_wait,
    token::{AccessToken, RefreshToken, Tokens},
};

/// The tokens of a response, the refresh token to keep, and the description as an error would show
/// it.
pub fn token_response(
    status: StatusCode,
    headers: HeaderMap,
    body: &[u8],
    whole: bool,
    asked_with: &RefreshToken,
) -> (Option<Tokens>, Option<RefreshToken>, Option<String>) {
    let end = if whole { End::Whole } else { End::Cut };
    let response =
        RawResponse::new(status, headers, Body { bytes: Zeroizing::new(body.to_vec()), end });
    let Judgement { verdict, rotated, said, .. } =
        judge_by(None, response, Some(asked_with), SystemTime::UNIX_EPOCH);
    let mut secrets = Secrets::default();
    secrets.add(asked_with.expose_secret());
    let text = said.description().and_then(|text| secrets.clean(text));
    match verdict {
        Verdict::Granted(tokens) => (Some(tokens), rotated, text),
        Verdict::Failed(_) => (None, rotated, text),
    }
}

/// The access token and the refresh token in the cookies of a response.
pub fn cookies(
    headers: &HeaderMap,
    now: SystemTime,
) -> (Option<AccessToken>, Option<RefreshToken>) {
    let cookies = TokenCookies::read(headers, now);
    (cookies.access, cookies.refresh)
}

/// The wait that a `Retry-After` asks for.
pub fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    asked_wait(headers, now)
}
