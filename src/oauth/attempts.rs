//! One refresh with all its attempts. The retry is `reqwest-retry`'s: it stands over one middleware
//! of ours that makes an attempt and leaves the verdict in a cell, where the retry's strategy and
//! policy find it.
//!
//! The attempt is made below the retry, not by it, since each builds its form anew (a refresh token
//! may have been rescued by the one before), since the retry would not see a body that breaks off,
//! and since a client that was passed in must stay whole.

use std::{
    error::Error as StdError,
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
    failure::Failure,
    proof::Prover,
    reading::judge_by,
    request::{self, NoAnswer, Unanswered},
    response::Members,
    retry::{AskedWait, Next, Pace},
    settings::Settings,
};
use crate::{
    error::{Error, ErrorKind},
    refresher::RefreshContext,
    time::{Limit, wall},
    token::{RefreshToken, Tokens},
};

pub(super) type Cause = Box<dyn StdError + Send + Sync>;

#[derive(Clone)]
pub(super) struct Attempts(Arc<Inner>);

pub(super) struct Inner {
    pub(super) settings: Arc<Settings>,
    pub(super) endpoint: Url,
    /// The deadline is that of whoever handed the refresh on, if that is sooner.
    pace: Pace,
    http: ClientWithMiddleware,
    pub(super) flight: RefreshContext,
    begun: Instant,
    deadline: Limit,
    /// The tokens that were there at the start: no text may repeat them.
    pub(super) first_tokens: Tokens,
    state: Mutex<State>,
}

/// How many new refresh tokens one refresh may spend. A token endpoint that never brings an access
/// token would be asked with new ones without end.
const MOST_ROTATIONS: u32 = 2;

#[derive(Default)]
pub(super) struct State {
    pub(super) attempts: u32,
    in_the_air: bool,
    asked_with: Option<RefreshToken>,
    /// A response to the present refresh token was lost, so that it may be spent.
    pub(super) lost: bool,
    /// The token endpoint asked for a nonce before it answered a call with the present refresh
    /// token.
    challenged: bool,
    /// How many new refresh tokens came without an access token.
    rotations: u32,
    pub(super) last_status: Option<StatusCode>,
    pub(super) last_asked_wait: AskedWait,
    /// The late parameters of the last attempt.
    pub(super) made: Vec<Zeroizing<String>>,
    last: Option<Ended>,
}

/// Why a refresh brought nothing.
pub(super) struct Failed {
    pub(super) error: Error,
    /// The login is over, or there is none: another refresher may be asked.
    pub(super) is_over: bool,
}

/// A refresh token from a damaged body, and the one before it, until a grant tells which is right.
#[derive(Clone, Default)]
pub(super) struct Doubt(Arc<Mutex<Option<(RefreshToken, RefreshToken)>>>);

impl Doubt {
    fn set(&self, new: RefreshToken, before: RefreshToken) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((new, before));
    }

    /// What this one has replaced. There is no doubt any more.
    fn take(&self, asked_with: Option<&RefreshToken>) -> Option<RefreshToken> {
        let mut doubt = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        doubt.take_if(|(new, _)| Some(&*new) == asked_with).map(|(_, before)| before)
    }
}

/// A new refresh token that came without a grant.
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
        flight: &RefreshContext,
    ) -> Result<Self, Error> {
        let begun = Instant::now();
        let mut pace = settings.pace;
        if let Some(deadline) = flight.deadline() {
            pace.deadline = pace.deadline.min(deadline.saturating_duration_since(begun));
        }
        Ok(Self(Arc::new(Inner {
            settings: Arc::clone(settings),
            endpoint,
            pace,
            http: request::client(settings)?,
            flight: flight.share(),
            begun,
            deadline: Limit::after(pace.deadline),
            first_tokens: flight.tokens(),
            state: Mutex::default(),
        })))
    }

    pub(super) async fn run(self) -> Result<Tokens, Failed> {
        self.0.flight.sending(false);
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
                Some(Ended::without_answer(Failure::Lost, "the deadline has passed".into()));
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

    async fn attempt(&self) {
        let Inner { settings, endpoint, http, flight, .. } = &*self.0;
        if self.0.deadline.is_over()
            && let Some(ended) = &mut self.state().last
        {
            // The process was not run during the wait before this attempt. Its response could not
            // be waited for.
            ended.next = Next::End;
            return;
        }
        if !flight.may_ask().await {
            self.state().last = Some(Ended::without_answer(
                Failure::Unreached,
                "another process has used the store meanwhile".into(),
            ));
            return;
        }
        let spends = settings.grant.spends_refresh_token();
        let asked_with = flight.tokens().refresh_token().cloned().filter(|_| spends);
        if spends && asked_with.is_none() {
            self.state().last = Some(Ended::without_answer(
                Failure::NothingToAskWith,
                "there is no refresh token".into(),
            ));
            return;
        }
        {
            let mut state = self.state();
            state.attempts = state.attempts.saturating_add(1);
            // A response may have brought another refresh token meanwhile.
            let same = state.asked_with == asked_with;
            state.lost &= same;
            state.challenged &= same;
            state.asked_with.clone_from(&asked_with);
            state.last.get_or_insert_with(|| {
                Ended::without_answer(Failure::Unreached, "the deadline has passed".into())
            });
        }
        let mut limit = Limit::after(settings.attempt_timeout);
        let answer = request::exchange(
            http,
            &mut limit,
            &Prover::of(flight),
            || settings.token_request(endpoint, asked_with.as_ref()),
            || async {
                let may_ask = flight.may_ask().await;
                may_ask && (!spends || flight.tokens().refresh_token() == asked_with.as_ref())
            },
            |request| {
                {
                    let mut state = self.state();
                    state.in_the_air = true;
                    state.made = std::mem::take(&mut request.made);
                }
                flight.sending(spends);
            },
        )
        .await;
        let overtaken = matches!(answer, Err(NoAnswer::Overtaken));
        let (ended, rotated) = self.0.judged(answer, asked_with.as_ref());
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
            flight.sending(state.lost && spends);
            state.attempts
        };
        let Some(failure) = failed else {
            drop(settings.doubt.take(asked_with.as_ref()));
            return;
        };
        // The old one is spent, whatever else the response says. A grant needs no help: the session
        // keeps what is returned.
        let has_rotated = rotated.is_some();
        let mut rotations = self.state().rotations;
        if let Some(Rotated { token, is_doubtful }) = rotated {
            rotations += 1;
            {
                let mut state = self.state();
                state.lost = false;
                state.rotations = rotations;
            }
            if let Some(asked_with) = asked_with.clone().filter(|_| is_doubtful) {
                settings.doubt.set(token.clone(), asked_with);
            }
            flight.keep(token).await;
        }
        if failure == Failure::GrantOver
            && !has_rotated
            && let Some(before) = settings.doubt.take(asked_with.as_ref())
        {
            // The token that a damaged body brought is none. The one before it may still be good.
            flight.keep(before).await;
            if let Some(ended) = &mut self.state().last {
                ended.next = Next::TryAfter(Duration::ZERO);
            }
            return;
        }
        let next = if rotations > MOST_ROTATIONS {
            Next::End
        } else {
            self.0.pace.next(failure, attempts, asked_wait, self.0.begun.elapsed(), fastrand::f64())
        };
        let next = match next {
            Next::TryAfter(_) if overtaken => Next::TryAfter(Duration::ZERO),
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
        // The retry reads the clock once more, and what a server asks for must not be cut short by
        // that.
        let told = wait.saturating_add(Duration::from_millis(1));
        // A wait that no calendar can hold is beyond any deadline that a caller could mean.
        let Some(execute_after) = SystemTime::now().checked_add(told) else {
            return RetryDecision::DoNotRetry;
        };
        self.0.flight.retrying(attempt, wait, status);
        RetryDecision::Retry { execute_after }
    }
}

impl Ended {
    fn without_answer(failure: Failure, cause: Cause) -> Self {
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
        answer: Result<request::Answer, NoAnswer>,
        asked_with: Option<&RefreshToken>,
    ) -> (Ended, Option<Rotated>) {
        match answer {
            Ok(answer) => {
                let status = Some(answer.status);
                let was_challenged = answer.was_challenged;
                let skew = clock_skew(&answer.headers, wall());
                let rule = self.settings.read_response.as_ref();
                let Judgement { verdict, rotated, is_doubtful, asked_wait, said } =
                    judge_by(rule, answer, asked_with, wall());
                let is_over = matches!(verdict, Verdict::Failed(Failure::GrantOver));
                // A server that looks at the refresh token before it looks at the proof has spent it
                // with the call that it challenged (bluesky-social/atproto#3859).
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
            Err(no_answer) => {
                if matches!(no_answer, NoAnswer::Overtaken) {
                    self.state.lock().unwrap_or_else(PoisonError::into_inner).challenged = true;
                }
                let made = self.state.lock().unwrap_or_else(PoisonError::into_inner).made.clone();
                let secrets = self.secrets(&Members::default(), &made);
                let Unanswered { failure, status, cause } = no_answer.read(&secrets);
                (Ended { status, ..Ended::without_answer(failure, cause) }, None)
            }
        }
    }
}

/// How far the local clock is off, for a proof that was not taken: its time may be why.
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
