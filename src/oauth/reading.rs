//! The public types of a user's own rule for token endpoint responses, and how its result is used.

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, PoisonError},
};

use http::{HeaderMap, StatusCode};
use serde::de::DeserializeOwned;
#[cfg(feature = "test-util")]
use zeroize::Zeroizing;

#[cfg(feature = "test-util")]
use super::body::Body;
use super::{
    body::End,
    classify::{Judgement, NO_ACCESS_TOKEN, Verdict, judge, verdict},
    cookies::TokenCookies,
    failure::Failure,
    response::Members,
    wire::RawResponse,
};
use crate::{
    time::wall,
    token::{RefreshToken, Tokens},
};

/// A rule of [`OAuthRefresh::read_response`](crate::OAuthRefresh::read_response).
pub(super) type Rule = Arc<dyn Fn(&TokenResponse, Reading) -> Reading + Send + Sync>;

/// How a token endpoint's response is read. See
/// [`OAuthRefresh::read_response`](crate::OAuthRefresh::read_response).
#[non_exhaustive]
#[derive(Clone, Debug)]
pub enum Reading {
    /// New tokens. If they include no refresh token, the old one is kept. If they include no access
    /// token, the refresh continues with the new refresh token, at most twice.
    Tokens(Tokens),
    /// The login is over. The refresh fails with
    /// [`ErrorKind::LoginRequired`](crate::ErrorKind::LoginRequired).
    LoginRequired,
    /// The token endpoint rejects the client or the request, and the refresh token stays valid. The
    /// refresh fails with [`ErrorKind::ClientRejected`](crate::ErrorKind::ClientRejected).
    ClientRejected,
    /// The call is repeated after the backoff, or after `Retry-After` if that is longer. After the
    /// last attempt the refresh fails with
    /// [`ErrorKind::Unavailable`](crate::ErrorKind::Unavailable).
    Retry,
    /// The response is not a token response. The refresh fails with
    /// [`ErrorKind::BadResponse`](crate::ErrorKind::BadResponse).
    Unusable,
}

/// A token endpoint's response, as passed to a rule of
/// [`OAuthRefresh::read_response`](crate::OAuthRefresh::read_response).
///
/// The response contains secrets. `Debug` shows only the status, and the body is wiped on drop.
pub struct TokenResponse {
    response: RawResponse,
    asked_with: Option<RefreshToken>,
    /// The refresh token that [`read_at`](Self::read_at) found last.
    found: Mutex<Option<RefreshToken>>,
}

impl TokenResponse {
    /// Creates a response, for tests of a rule.
    #[cfg(feature = "test-util")]
    #[cfg_attr(docsrs, doc(cfg(feature = "test-util")))]
    pub fn new(status: StatusCode, headers: HeaderMap, body: impl Into<Vec<u8>>) -> Self {
        let body = Body { bytes: Zeroizing::new(body.into()), end: End::Whole };
        Self::of(RawResponse::new(status, headers, body), None)
    }

    fn of(response: RawResponse, asked_with: Option<RefreshToken>) -> Self {
        Self { response, asked_with, found: Mutex::default() }
    }

    /// Returns the status.
    pub fn status(&self) -> StatusCode {
        self.response.status
    }

    /// Returns the headers as they were received.
    pub fn headers(&self) -> &HeaderMap {
        &self.response.headers
    }

    /// Returns the body, at most 1 MiB. A gzip body is decoded.
    pub fn body(&self) -> &[u8] {
        &self.response.body.bytes
    }

    /// Parses the body as JSON. Returns `None` if it does not fit `T`.
    pub fn json<T: DeserializeOwned>(&self) -> Option<T> {
        let body = self.body();
        serde_json::from_slice(body.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(body)).ok()
    }

    /// Applies the built-in rule to the member at this JSON pointer (RFC 6901), for example
    /// `"/data"` for `{"data": {"access_token": …}}`. The status is taken into account, cookies are
    /// not.
    ///
    /// A new refresh token in that member is kept, whatever the rule returns.
    pub fn read_at(&self, pointer: &str) -> Reading {
        let RawResponse { status, body, .. } = &self.response;
        if pointer.is_empty() {
            return reading(&self.judged());
        }
        let said = Members::read_at(&body.bytes, pointer);
        let (verdict, rotated) =
            verdict(*status, TokenCookies::default(), &said, End::Whole, self.asked_with.as_ref());
        if let Some(rotated) = &rotated {
            *self.found.lock().unwrap_or_else(PoisonError::into_inner) = Some(rotated.clone());
        }
        reading_of(&verdict, rotated)
    }

    fn judged(&self) -> Judgement {
        judge(&self.response, self.asked_with.as_ref(), wall())
    }
}

impl fmt::Debug for TokenResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenResponse").field("status", &self.status()).finish_non_exhaustive()
    }
}

fn reading(judgement: &Judgement) -> Reading {
    reading_of(&judgement.verdict, judgement.rotated.clone())
}

fn reading_of(verdict: &Verdict, rotated: Option<RefreshToken>) -> Reading {
    match verdict {
        Verdict::Granted(tokens) => Reading::Tokens(tokens.clone()),
        Verdict::Failed(failure) => match failure {
            Failure::Salvaged => Reading::Tokens(Tokens::of(None, rotated)),
            Failure::GrantOver => Reading::LoginRequired,
            Failure::Rejected => Reading::ClientRejected,
            Failure::Busy | Failure::Lost | Failure::Throttled => Reading::Retry,
            _ => Reading::Unusable,
        },
    }
}

/// Judges a response by the built-in rule, then by the user's rule if the whole body arrived.
pub(super) fn judge_by(
    rule: Option<&Rule>,
    response: RawResponse,
    asked_with: Option<&RefreshToken>,
    now: std::time::SystemTime,
) -> Judgement {
    let mut response = response;
    response.body = response.body.decoded(&response.headers);
    let judgement = judge(&response, asked_with, now);
    match rule {
        Some(rule) if response.body.end == End::Whole => {
            apply(rule, TokenResponse::of(response, asked_with.cloned()), judgement)
        }
        _ => judgement,
    }
}

fn apply(rule: &Rule, response: TokenResponse, judgement: Judgement) -> Judgement {
    let built_in = reading(&judgement);
    let returned = catch_unwind(AssertUnwindSafe(|| rule(&response, built_in.clone())));
    let found = response.found.into_inner().unwrap_or_else(PoisonError::into_inner);
    let kept = found.or(judgement.rotated.clone());
    let (verdict, rotated) = match returned {
        Err(_) => (Verdict::Failed(Failure::RulePanicked), kept),
        Ok(Reading::Tokens(tokens)) => by_tokens(tokens, kept, response.asked_with.as_ref()),
        // The rule agrees, so the exact failure of the built-in rule stands.
        Ok(same) if std::mem::discriminant(&same) == std::mem::discriminant(&built_in) => {
            (judgement.verdict.clone(), kept)
        }
        Ok(Reading::LoginRequired) => (Verdict::Failed(Failure::GrantOver), kept),
        Ok(Reading::ClientRejected) => (Verdict::Failed(Failure::Rejected), kept),
        Ok(Reading::Retry) => (Verdict::Failed(Failure::Busy), kept),
        Ok(Reading::Unusable) => (
            Verdict::Failed(Failure::Unusable("read_response found no tokens in the response")),
            kept,
        ),
    };
    Judgement { verdict, rotated, ..judgement }
}

/// The verdict on tokens that a rule returned. Their type is not checked.
fn by_tokens(
    mut tokens: Tokens,
    kept: Option<RefreshToken>,
    asked_with: Option<&RefreshToken>,
) -> (Verdict, Option<RefreshToken>) {
    // A rule may also copy the refresh token of the request, which is spent.
    if kept.is_some() && tokens.refresh_token().is_none_or(|token| Some(token) == asked_with) {
        tokens.set_refresh(kept);
    }
    let rotated = tokens.refresh_token().filter(|token| Some(*token) != asked_with).cloned();
    let verdict = match (tokens.access_token(), &rotated) {
        (Some(_), _) => Verdict::Granted(tokens),
        (None, Some(_)) => Verdict::Failed(Failure::Salvaged),
        (None, None) => Verdict::Failed(Failure::Unusable(NO_ACCESS_TOKEN)),
    };
    (verdict, rotated)
}
