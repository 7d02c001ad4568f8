//! Doors for the fuzz targets.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, StatusCode};
use zeroize::Zeroizing;

use super::{
    body::{Body, End},
    classify::{Judgement, Verdict},
    cookies::TokenCookies,
    reading::judge_by,
    redact::Secrets,
    request::Answer,
};
use crate::{
    time::asked_wait,
    token::{AccessToken, RefreshToken, Tokens},
};

/// The tokens of an answer, the refresh token that is to be kept, and what an error's text would
/// say of it.
pub fn token_answer(
    status: StatusCode,
    headers: HeaderMap,
    body: &[u8],
    whole: bool,
    asked_with: &RefreshToken,
) -> (Option<Tokens>, Option<RefreshToken>, Option<String>) {
    let end = if whole { End::Whole } else { End::Cut };
    let answer = Answer::new(status, headers, Body { bytes: Zeroizing::new(body.to_vec()), end });
    let Judgement { verdict, rotated, said, .. } =
        judge_by(None, answer, Some(asked_with), SystemTime::UNIX_EPOCH);
    let mut secrets = Secrets::default();
    secrets.add(asked_with.expose_secret());
    let text = said.description().and_then(|text| secrets.clean(text));
    match verdict {
        Verdict::Granted(tokens) => (Some(tokens), rotated, text),
        Verdict::Failed(_) => (None, rotated, text),
    }
}

/// The access and the refresh token that the cookies of an answer hold.
pub fn cookies(
    headers: &HeaderMap,
    now: SystemTime,
) -> (Option<AccessToken>, Option<RefreshToken>) {
    let cookies = TokenCookies::read(headers, now);
    (cookies.access, cookies.refresh)
}

/// How long a `Retry-After` asks to wait.
pub fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    asked_wait(headers, now)
}
