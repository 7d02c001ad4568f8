//! The loop. What awaits is here, what decides is in [`schedule`](super::schedule) and in
//! [`verdict`].

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, SystemTime},
};

use http::StatusCode;
use reqwest::Response;
use reqwest_middleware::{ClientWithMiddleware, RequestBuilder};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout},
};

use super::{
    Failure, Health, Stopped,
    schedule::{Cause, Schedule},
};
use crate::{
    catch_panic::catch_panic,
    error::{Error, ErrorKind},
    outcome::Outcome,
    session::Session,
    telemetry::{BeatTold, Telemetry},
    time::within,
};

pub(super) type Beat = Box<dyn Fn(&ClientWithMiddleware) -> RequestBuilder + Send + Sync>;
pub(super) type Rule = Box<dyn Fn(StatusCode) -> bool + Send + Sync>;

/// How soon a token that other requests have brought is noticed, where its expiry matters.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How much of an answer's body is read, for the sake of the connection, and how long that may
/// take.
const MOST_BODY_BYTES: usize = 64 << 10;
const MOST_BODY_TIME: Duration = Duration::from_millis(100);

pub(super) struct Worker {
    pub(super) client: ClientWithMiddleware,
    pub(super) beat: Beat,
    pub(super) session: Option<Session>,
    /// For a heartbeat without a session.
    pub(super) telemetry: Telemetry,
    pub(super) every: Duration,
    pub(super) timeout: Duration,
    pub(super) max_failures: Option<u32>,
    pub(super) stop_on: Option<Rule>,
    pub(super) reissue_window: Option<f64>,
    pub(super) health: watch::Sender<Health>,
    pub(super) asked: watch::Receiver<u64>,
    pub(super) served: watch::Sender<u64>,
    pub(super) stopping: watch::Receiver<bool>,
}

/// How a beat went.
#[derive(Debug)]
enum Beaten {
    /// `told`: it is an answer that ends the job.
    Answered {
        status: StatusCode,
        told: bool,
    },
    Failed {
        status: Option<StatusCode>,
        why: Failure,
    },
}

impl Worker {
    pub(super) async fn run(mut self) -> Stopped {
        let mut schedule = Schedule::new(Instant::now(), self.every, self.reissue_window);
        let mut cause = Cause::Tick;
        loop {
            if *self.stopping.borrow() || self.stopping.has_changed().is_err() {
                return Stopped::Requested;
            }
            let asked = *self.asked.borrow_and_update();
            let began = Instant::now();
            let beaten = self.beat().await;
            let stopped = self.settle(beaten, began.elapsed());
            self.served.send_replace(asked);
            if let Some(stopped) = stopped {
                tracing::info!(target: "reqwest_reauth", ?stopped, "heartbeat ended");
                return stopped;
            }
            schedule.beaten(cause, began, Instant::now(), fastrand::f64());
            cause = match self.wait(&schedule).await {
                Some(cause) => cause,
                None => return Stopped::Requested,
            };
        }
    }

    /// Until the next beat is due; `None` when there is to be none.
    async fn wait(&mut self, schedule: &Schedule) -> Option<Cause> {
        loop {
            let now = Instant::now();
            let due = schedule.due(now, self.session.as_ref().and_then(Session::lifetime));
            let until =
                if schedule.watches_the_token() { due.at.min(now + LOOK_AGAIN) } else { due.at };
            tokio::select! {
                biased;
                // An error means that the handle is gone.
                _ = self.stopping.wait_for(|&stop| stop) => return None,
                Ok(()) = self.asked.changed() => return Some(Cause::Asked),
                () = sleep_until(until) => if due.at <= Instant::now() {
                    return Some(due.cause);
                }
            }
        }
    }

    async fn beat(&self) -> Beaten {
        let failed = |why| Beaten::Failed { status: None, why };
        let Ok(request) = catch_unwind(AssertUnwindSafe(|| self.request())) else {
            return failed(Failure::Panicked);
        };
        let response = match within(self.timeout, catch_panic(request.send())).await {
            Err(_) => return failed(Failure::TimedOut),
            Ok(None) => return failed(Failure::Panicked),
            Ok(Some(Err(error))) => return not_sent(error),
            Ok(Some(Ok(response))) => response,
        };
        let beaten = self.judge(&response);
        drain(response).await;
        beaten
    }

    fn request(&self) -> RequestBuilder {
        let mut request = (self.beat)(&self.client);
        if let Some(session) = &self.session
            && request.extensions().get::<Session>().is_none()
        {
            request.extensions().insert(session.clone());
        }
        request
    }

    fn judge(&self, response: &Response) -> Beaten {
        let status = response.status();
        let outcome = response.extensions().get::<Outcome>();
        if let Some(error) = outcome.and_then(|outcome| outcome.refresh_error.clone()) {
            return Beaten::Failed { status: Some(status), why: Failure::Auth(error) };
        }
        let rule = || self.stop_on.as_ref().is_some_and(|rule| rule(status));
        match catch_unwind(AssertUnwindSafe(rule)) {
            Ok(told) => Beaten::Answered { status, told },
            Err(_) => Beaten::Failed { status: Some(status), why: Failure::Panicked },
        }
    }

    /// Tells how the beat went. `Some` when it was the last.
    fn settle(&self, beaten: Beaten, took: Duration) -> Option<Stopped> {
        let (status, failure, told) = match beaten {
            Beaten::Answered { status, told } => (
                Some(status),
                (status.as_u16() >= 400).then_some(Failure::Status(status)),
                told.then_some(status),
            ),
            Beaten::Failed { status, why } => (status, Some(why), None),
        };
        let mut failures = 0;
        self.health.send_modify(|health| {
            health.beats = health.beats.saturating_add(1);
            health.last_status = status.or(health.last_status);
            health.last_error = failure.as_ref().map(ToString::to_string);
            health.last_failure.clone_from(&failure);
            if failure.is_some() {
                health.consecutive_failures = health.consecutive_failures.saturating_add(1);
            } else {
                health.consecutive_failures = 0;
                health.last_success = Some(SystemTime::now());
            }
            failures = health.consecutive_failures;
        });
        let text = failure.as_ref().map(ToString::to_string).unwrap_or_default();
        let failed = failure.as_ref().map(|failure| (failure.name(), text.as_str()));
        let telemetry = self.session.as_ref().map_or(&self.telemetry, Session::telemetry);
        telemetry.beat(&BeatTold { status, failures, failure: failed, took });
        verdict(failure.as_ref(), told, failures, self.max_failures)
    }
}

/// Whether a beat was the last.
fn verdict(
    failure: Option<&Failure>,
    told: Option<StatusCode>,
    failures: u32,
    max_failures: Option<u32>,
) -> Option<Stopped> {
    if let Some(status) = told {
        return Some(Stopped::ByStatus { status });
    }
    match failure {
        Some(Failure::Auth(error)) if error.kind() == ErrorKind::LoginRequired => {
            Some(Stopped::LoginRequired)
        }
        Some(_) if max_failures.is_some_and(|most| failures >= most) => {
            Some(Stopped::TooManyFailures { failures })
        }
        _ => None,
    }
}

fn not_sent(error: reqwest_middleware::Error) -> Beaten {
    match Error::find_in(&error) {
        Some(error) => {
            Beaten::Failed { status: error.api_status(), why: Failure::Auth(error.clone()) }
        }
        None => Beaten::Failed { status: None, why: Failure::Transport(Arc::new(error)) },
    }
}

/// A connection whose answer was read to the end can be used for the next beat.
async fn drain(mut response: Response) {
    let mut left = MOST_BODY_BYTES;
    let read = async {
        while let Ok(Some(chunk)) = response.chunk().await {
            match left.checked_sub(chunk.len()) {
                Some(rest) => left = rest,
                None => break,
            }
        }
    };
    let _ = timeout(MOST_BODY_TIME, catch_panic(read)).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_beat_is_the_last_if_told_without_a_login_or_after_too_many() {
        let auth = |kind| Failure::Auth(Error::of(kind));
        let gone = StatusCode::GONE;
        let table = [
            (None, None, 0, Some(1), None),
            (
                None,
                Some(StatusCode::OK),
                0,
                None,
                Some(Stopped::ByStatus { status: StatusCode::OK }),
            ),
            (
                Some(Failure::Status(gone)),
                Some(gone),
                1,
                Some(1),
                Some(Stopped::ByStatus { status: gone }),
            ),
            (Some(Failure::Status(gone)), None, 1, None, None),
            (Some(Failure::Status(gone)), None, 2, Some(3), None),
            (
                Some(Failure::TimedOut),
                None,
                3,
                Some(3),
                Some(Stopped::TooManyFailures { failures: 3 }),
            ),
            (Some(auth(ErrorKind::LoginRequired)), None, 1, None, Some(Stopped::LoginRequired)),
            (Some(auth(ErrorKind::LoginRequired)), None, 3, Some(3), Some(Stopped::LoginRequired)),
            (Some(auth(ErrorKind::Unavailable)), None, 1, None, None),
            (Some(auth(ErrorKind::Closed)), None, 1, None, None),
        ];
        for (failure, told, failures, most, expected) in table {
            assert_eq!(
                verdict(failure.as_ref(), told, failures, most),
                expected,
                "{failure:?} {failures}/{most:?}"
            );
        }
    }
}
