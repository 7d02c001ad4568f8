//! What a user's own rule sees of a token endpoint's response, and what it makes of it.

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
    request::Answer,
    response::Members,
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
    /// New tokens. Without a refresh token among them the old one is kept. Without an access token
    /// the refresh goes on with the new refresh token, twice at most.
    Tokens(Tokens),
    /// The login is over: [`ErrorKind::LoginRequired`](crate::ErrorKind::LoginRequired).
    LoginRequired,
    /// The token endpoint rejects the client or the request, and the refresh token stays good:
    /// [`ErrorKind::ClientRejected`](crate::ErrorKind::ClientRejected).
    ClientRejected,
    /// Ask again after the backoff, or after `Retry-After` if that is longer. When the attempts are
    /// used up: [`ErrorKind::Unavailable`](crate::ErrorKind::Unavailable).
    Retry,
    /// This is no token response: [`ErrorKind::BadResponse`](crate::ErrorKind::BadResponse).
    Unusable,
}

/// What a token endpoint answered, as a rule of
/// [`OAuthRefresh::read_response`](crate::OAuthRefresh::read_response) sees it.
///
/// It has secrets in it. Its `Debug` shows the status alone, and its body is wiped on drop.
pub struct TokenResponse {
    answer: Answer,
    asked_with: Option<RefreshToken>,
    /// The refresh token that [`read_at`](Self::read_at) found last.
    found: Mutex<Option<RefreshToken>>,
}

impl TokenResponse {
    /// A response to test a rule with.
    #[cfg(feature = "test-util")]
    #[cfg_attr(docsrs, doc(cfg(feature = "test-util")))]
    pub fn new(status: StatusCode, headers: HeaderMap, body: impl Into<Vec<u8>>) -> Self {
        let body = Body { bytes: Zeroizing::new(body.into()), end: End::Whole };
        Self::of(Answer::new(status, headers, body), None)
    }

    fn of(answer: Answer, asked_with: Option<RefreshToken>) -> Self {
        Self { answer, asked_with, found: Mutex::default() }
    }

    /// The status.
    pub fn status(&self) -> StatusCode {
        self.answer.status
    }

    /// The headers, as they were received.
    pub fn headers(&self) -> &HeaderMap {
        &self.answer.headers
    }

    /// The body, decoded if it was gzip; at most 1 MiB.
    pub fn body(&self) -> &[u8] {
        &self.answer.body.bytes
    }

    /// The body as JSON. `None` if it does not fit `T`.
    pub fn json<T: DeserializeOwned>(&self) -> Option<T> {
        let body = self.body();
        serde_json::from_slice(body.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(body)).ok()
    }

    /// The built-in rule, applied to the member at this JSON pointer (RFC 6901), e.g. `"/data"` for
    /// `{"data": {"access_token": …}}`. The status counts as for the whole body, cookies do not.
    ///
    /// A new refresh token that it finds is kept, whatever the rule returns.
    pub fn read_at(&self, pointer: &str) -> Reading {
        let Answer { status, body, .. } = &self.answer;
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
        judge(&self.answer, self.asked_with.as_ref(), wall())
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

/// Judges a response by the built-in rule, then by the user's, which is asked about every body that
/// came whole.
pub(super) fn judge_by(
    rule: Option<&Rule>,
    answer: Answer,
    asked_with: Option<&RefreshToken>,
    now: std::time::SystemTime,
) -> Judgement {
    let mut answer = answer;
    answer.body = answer.body.decoded(&answer.headers);
    let judgement = judge(&answer, asked_with, now);
    match rule {
        Some(rule) if answer.body.end == End::Whole => {
            apply(rule, TokenResponse::of(answer, asked_with.cloned()), judgement)
        }
        _ => judgement,
    }
}

fn apply(rule: &Rule, response: TokenResponse, judgement: Judgement) -> Judgement {
    let built_in = reading(&judgement);
    let returned = catch_unwind(AssertUnwindSafe(|| rule(&response, built_in.clone())));
    let found = response.found.into_inner().unwrap_or_else(PoisonError::into_inner);
    // Kept whatever the rule says.
    let kept = found.or(judgement.rotated.clone());
    let (verdict, rotated) = match returned {
        Err(_) => (Verdict::Failed(Failure::RulePanicked), kept),
        Ok(Reading::Tokens(tokens)) => by_tokens(tokens, kept, response.asked_with.as_ref()),
        // Unchanged, the kind included.
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

/// What tokens that a rule returns come to. Their type is not judged.
fn by_tokens(
    mut tokens: Tokens,
    kept: Option<RefreshToken>,
    asked_with: Option<&RefreshToken>,
) -> (Verdict, Option<RefreshToken>) {
    // Also where the rule copies the one that was asked with.
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
