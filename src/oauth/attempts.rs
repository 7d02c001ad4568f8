//! Runs one refresh with all its attempts.
//!
//! `reqwest-retry` drives the attempts. Below it stands one middleware that makes an attempt and
//! stores the verdict, which the retry strategy and the retry policy then read.
//!
//! The middleware makes the attempt itself, for three reasons. Each attempt builds a new form,
//! because the previous one may have brought a new refresh token. The retry middleware would not
//! see a body that breaks off. And a client that the user passed in must keep its own middleware.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use http::{Extensions, HeaderMap, StatusCode};
use reqwest::{Request, Response};
use reqwest_middleware::{ClientBuilder, ClientWithMiddleware, Middleware, Next as Rest};
use reqwest_retry::{
    RetryDecision, RetryPolicy, RetryTransientMiddleware, Retryable, RetryableStrategy,
};
use tokio::time::Instant;
use url::Url;
use zeroize::Zeroizing;

use super::{
    classify::{Judgement, Verdict, date},
    failure::{Cause, Failure},
    proof::Prover,
    reading::judge_by,
    request::{self, CallError, CallFailed},
    response::Members,
    retry::{AskedWait, Next, Pace},
    settings::Settings,
    wire::RawResponse,
};
use crate::{
    error::{Error, ErrorKind},
    refresher::RefreshContext,
    time::{Limit, wall},
    token::{RefreshToken, Tokens},
};

#[derive(Clone)]
pub(super) struct Attempts(Arc<Inner>);

pub(super) struct Inner {
    pub(super) settings: Arc<Settings>,
    pub(super) endpoint: Url,
    /// Its deadline is the context's, if that is sooner.
    pace: Pace,
    http: ClientWithMiddleware,
    pub(super) context: RefreshContext,
    begun: Instant,
    deadline: Limit,
    /// The tokens at the start of the refresh. No error text may repeat them.
    pub(super) first_tokens: Tokens,
    state: Mutex<State>,
}

/// The number of new refresh tokens that one refresh may spend. Without this limit, a token
/// endpoint that rotates but never returns an access token would be called without end.
const MOST_ROTATIONS: u32 = 2;

#[derive(Default)]
pub(super) struct State {
    pub(super) attempts: u32,
    in_the_air: bool,
    asked_with: Option<RefreshToken>,
    /// A response to a call with the current refresh token was lost, so the token may be spent.
    pub(super) lost: bool,
    /// The token endpoint demanded a DPoP nonce in a call with the current refresh token.
    challenged: bool,
    /// The number of new refresh tokens that came without an access token.
    rotations: u32,
    pub(super) last_status: Option<StatusCode>,
    pub(super) last_asked_wait: AskedWait,
    /// The computed parameters of the last attempt.
    pub(super) made: Vec<Zeroizing<String>>,
    last: Option<Ended>,
}

/// Why a refresh failed.
pub(super) struct Failed {
    pub(super) error: Error,
    /// The login is over, or there is none. A fallback refresher may take over.
    pub(super) is_over: bool,
}

/// A new refresh token in a response without a grant.
struct Rotated {
    token: RefreshToken,
    is_doubtful: bool,
}

/// How the last attempt ended.
struct Ended {
    verdict: Verdict,
    next: Next,
    status: Option<StatusCode>,
    asked_wait: AskedWait,
    said: Members,
    cause: Option<Cause>,
    is_over: bool,
}

impl Attempts {
    pub(super) fn new(
        settings: &Arc<Settings>,
        endpoint: Url,
        context: &RefreshContext,
    ) -> Result<Self, Error> {
        let begun = Instant::now();
        let mut pace = settings.pace;
        if let Some(deadline) = context.deadline() {
            pace.deadline = pace.deadline.min(deadline.saturating_duration_since(begun));
        }
        Ok(Self(Arc::new(Inner {
            settings: Arc::clone(settings),
            endpoint,
            pace,
            http: request::client(settings)?,
            context: context.share(),
            begun,
            deadline: Limit::after(pace.deadline),
            first_tokens: context.tokens(),
            state: Mutex::default(),
        })))
    }

    pub(super) async fn run(self) -> Result<Tokens, Failed> {
        self.0.context.sending(false);
        let retry =
            RetryTransientMiddleware::new_with_policy_and_strategy(self.clone(), self.clone());
        let head = self.0.http.as_ref().clone();
        let chain = ClientBuilder::new(head).with(retry).with(self.clone()).build();
        let request = chain.post(self.0.endpoint.clone());
        let ran = self.0.deadline.clone().run(request.send()).await;
        let mut state = self.state();
        if ran.is_err() && std::mem::take(&mut state.in_the_air) {
            state.lost = true;
            state.last =
                Some(Ended::without_response(Failure::Lost, "the deadline has passed".into()));
        }
        match state.last.take() {
            Some(Ended { verdict: Verdict::Granted(tokens), .. }) => Ok(tokens),
            Some(Ended {
                verdict: Verdict::Failed(failure),
                asked_wait,
                said,
                cause,
                is_over,
                ..
            }) => {
                let error = self.0.error(&state, failure, asked_wait, &said, cause);
                Err(Failed { error, is_over })
            }
            None => Err(Failed {
                error: Error::new(ErrorKind::Internal, "no attempt was made"),
                is_over: false,
            }),
        }
    }

    /// Counts an attempt at its start.
    fn begin(&self, asked_with: Option<&RefreshToken>) {
        let mut state = self.state();
        state.attempts = state.attempts.saturating_add(1);
        // A response may have brought another refresh token in the meantime.
        let same = state.asked_with.as_ref() == asked_with;
        state.lost &= same;
        state.challenged &= same;
        state.asked_with = asked_with.cloned();
        state.last.get_or_insert_with(|| {
            Ended::without_response(Failure::Unreached, "the deadline has passed".into())
        });
    }

    /// The old refresh token is spent, whatever the response says apart from that. After a grant,
    /// the session keeps the returned tokens.
    async fn keep(&self, rotated: Rotated, asked_with: Option<RefreshToken>) {
        let Rotated { token, is_doubtful } = rotated;
        {
            let mut state = self.state();
            state.lost = false;
            state.rotations += 1;
        }
        if let Some(asked_with) = asked_with.filter(|_| is_doubtful) {
            self.0.settings.doubt.set(token.clone(), asked_with);
        }
        self.0.context.keep(token).await;
    }

    async fn attempt(&self) {
        let Inner { settings, endpoint, http, context, .. } = &*self.0;
        if self.0.deadline.is_over()
            && let Some(ended) = &mut self.state().last
        {
            // The process was suspended during the wait before this attempt. No time is left for a
            // response.
            ended.next = Next::End;
            return;
        }
        if !context.may_ask().await {
            self.state().last = Some(Ended::without_response(
                Failure::Unreached,
                "another process has used the store in the meantime".into(),
            ));
            return;
        }
        let spends = settings.grant.spends_refresh_token();
        let asked_with = context.tokens().refresh_token().cloned().filter(|_| spends);
        if spends && asked_with.is_none() {
            self.state().last = Some(Ended::without_response(
                Failure::NothingToAskWith,
                "there is no refresh token".into(),
            ));
            return;
        }
        self.begin(asked_with.as_ref());
        let mut limit = Limit::after(settings.attempt_timeout);
        let response = request::exchange(
            http,
            &mut limit,
            &Prover::of(context),
            || settings.token_request(endpoint, asked_with.as_ref()),
            || async {
                let may_ask = context.may_ask().await;
                may_ask && (!spends || context.tokens().refresh_token() == asked_with.as_ref())
            },
            |request| {
                {
                    let mut state = self.state();
                    state.in_the_air = true;
                    state.made = std::mem::take(&mut request.made);
                }
                context.sending(spends);
            },
        )
        .await;
        let superseded = matches!(response, Err(CallError::Superseded));
        let (ended, rotated) = self.0.judged(response, asked_with.as_ref());
        let failed = match ended.verdict {
            Verdict::Granted(_) => None,
            Verdict::Failed(failure) => Some(failure),
        };
        let asked_wait = ended.asked_wait;
        let attempts = {
            let mut state = self.state();
            state.in_the_air = false;
            state.lost |= matches!(failed, Some(Failure::Lost | Failure::Strayed));
            state.last_status = ended.status.or(state.last_status);
            state.last_asked_wait = asked_wait.or(state.last_asked_wait);
            state.last = Some(ended);
            // Until the session has the tokens, they can still be lost.
            context.sending(spends && (state.lost || failed.is_none()));
            state.attempts
        };
        let Some(failure) = failed else {
            drop(settings.doubt.take(asked_with.as_ref()));
            return;
        };
        let has_rotated = rotated.is_some();
        if let Some(rotated) = rotated {
            self.keep(rotated, asked_with.clone()).await;
        }
        if failure == Failure::GrantOver
            && !has_rotated
            && let Some(before) = settings.doubt.take(asked_with.as_ref())
        {
            // The token from the damaged body is not valid. The token before it may still be.
            context.keep(before).await;
            if let Some(ended) = &mut self.state().last {
                ended.next = Next::TryAfter(Duration::ZERO);
            }
            return;
        }
        let next = if self.state().rotations > MOST_ROTATIONS {
            Next::End
        } else {
            self.0.pace.next(failure, attempts, asked_wait, self.0.begun.elapsed(), fastrand::f64())
        };
        let next = match next {
            Next::TryAfter(_) if superseded => Next::TryAfter(Duration::ZERO),
            next => next,
        };
        if let Some(ended) = &mut self.state().last {
            ended.next = next;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Middleware for Attempts {
    async fn handle(
        &self,
        _: Request,
        _: &mut Extensions,
        _: Rest<'_>,
    ) -> reqwest_middleware::Result<Response> {
        self.attempt().await;
        Ok(Response::from(http::Response::new("")))
    }
}

impl RetryableStrategy for Attempts {
    fn handle(&self, _: &reqwest_middleware::Result<Response>) -> Option<Retryable> {
        match self.state().last.as_ref().map(|ended| ended.next) {
            Some(Next::TryAfter(_)) => Some(Retryable::Transient),
            Some(Next::End) | None => None,
        }
    }
}

impl RetryPolicy for Attempts {
    #[allow(clippy::disallowed_methods, reason = "the retry subtracts the same clock at once")]
    fn should_retry(&self, _: SystemTime, _: u32) -> RetryDecision {
        let (attempt, next) = {
            let state = self.state();
            (state.attempts, state.last.as_ref().map(|ended| (ended.next, ended.status)))
        };
        let Some((Next::TryAfter(wait), status)) = next else {
            return RetryDecision::DoNotRetry;
        };
        // The retry middleware reads the clock again, which must not shorten the wait that the
        // server asked for.
        let told = wait.saturating_add(Duration::from_millis(1));
        // A wait beyond the range of `SystemTime` exceeds any deadline.
        let Some(execute_after) = SystemTime::now().checked_add(told) else {
            return RetryDecision::DoNotRetry;
        };
        self.0.context.retrying(attempt, wait, status);
        RetryDecision::Retry { execute_after }
    }
}

impl Ended {
    fn without_response(failure: Failure, cause: Cause) -> Self {
        Self {
            verdict: Verdict::Failed(failure),
            next: Next::End,
            status: None,
            asked_wait: None,
            said: Members::default(),
            cause: Some(cause),
            is_over: failure == Failure::NothingToAskWith,
        }
    }
}

impl Inner {
    fn judged(
        &self,
        response: Result<RawResponse, CallError>,
        asked_with: Option<&RefreshToken>,
    ) -> (Ended, Option<Rotated>) {
        match response {
            Ok(response) => {
                let status = Some(response.status);
                let was_challenged = response.was_challenged;
                let skew = clock_skew(&response.headers, wall());
                let rule = self.settings.read_response.as_ref();
                let Judgement { verdict, rotated, is_doubtful, asked_wait, said } =
                    judge_by(rule, response, asked_with, wall());
                let is_over = matches!(verdict, Verdict::Failed(Failure::GrantOver));
                // A server that checks the refresh token before the proof has spent the token in
                // the call that it challenged (bluesky-social/atproto#3859).
                let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
                state.challenged |= was_challenged;
                state.lost |= is_over && state.challenged && asked_with.is_some();
                drop(state);
                let cause = said.code().filter(|code| *code == "invalid_dpop_proof").and(skew);
                let ended = Ended {
                    verdict: self.settings.grant.read(verdict),
                    next: Next::End,
                    status,
                    asked_wait,
                    said,
                    cause: cause.map(Into::into),
                    is_over,
                };
                let rotated = rotated.filter(|_| asked_with.is_some());
                (ended, rotated.map(|token| Rotated { token, is_doubtful }))
            }
            Err(call_error) => {
                if matches!(call_error, CallError::Superseded) {
                    self.state.lock().unwrap_or_else(PoisonError::into_inner).challenged = true;
                }
                let made = self.state.lock().unwrap_or_else(PoisonError::into_inner).made.clone();
                let secrets = self.secrets(&Members::default(), &made);
                let CallFailed { failure, status, cause } = call_error.read(&secrets);
                (Ended { status, ..Ended::without_response(failure, cause) }, None)
            }
        }
    }
}

/// The offset of the local clock, which may be why the server rejected a proof.
fn clock_skew(headers: &HeaderMap, now: SystemTime) -> Option<String> {
    const LEAST: Duration = Duration::from_secs(5);
    let server = date(headers)?;
    let (off, direction) = match now.duration_since(server) {
        Ok(off) => (off, "ahead of"),
        Err(error) => (error.duration(), "behind"),
    };
    (off > LEAST)
        .then(|| format!("the local clock is {} s {direction} the server's", off.as_secs()))
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use http::header::DATE;

    use super::*;

    #[test]
    fn a_clock_that_is_off_is_told() {
        let now = UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        let skew = |date: SystemTime| {
            let value = httpdate::fmt_http_date(date).parse().unwrap();
            clock_skew(&HeaderMap::from_iter([(DATE, value)]), now)
        };
        let hour = Duration::from_secs(3600);
        let ahead = skew(now - hour).unwrap();
        assert_eq!(ahead, "the local clock is 3600 s ahead of the server's");
        let behind = skew(now + hour).unwrap();
        assert_eq!(behind, "the local clock is 3600 s behind the server's");
        assert_eq!(skew(now - Duration::from_secs(5)), None);
        assert_eq!(clock_skew(&HeaderMap::new(), now), None);
    }
}
