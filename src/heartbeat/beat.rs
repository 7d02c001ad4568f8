//! One beat: the request, and its result.

use std::{
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use http::{StatusCode, header::DATE};
use http_body_util::Limited;
use reqwest::{Body, Response, ResponseBuilderExt as _};
use reqwest_middleware::{ClientWithMiddleware, RequestBuilder};

use super::status::Failure;
pub use crate::error::BoxError;
use crate::{
    catch_panic::catch_panic,
    error::Error,
    outcome::Outcome,
    session::Session,
    time::{asked_wait, wall, within},
};

/// The result of a beat. Each of them counts as a beat.
#[derive(Debug)]
#[non_exhaustive]
pub enum Beat {
    /// The server has accepted the beat.
    Alive,
    /// The server has accepted the beat, and asks for a beat this often from now on. The period is
    /// limited to between one second and one hour, and to half of the
    /// [lease](super::Heartbeat::lease).
    AliveEvery(Duration),
    /// The beat failed. It counts towards [`max_failures`](super::Heartbeat::max_failures).
    Failed(BoxError),
    /// The server reports that the job is over, for this reason. The loop ends with
    /// [`Stopped::ByServer`](super::Stopped::ByServer).
    Stop(String),
}

/// How much of a response's body is read so that the connection can be reused, and for how long.
const MOST_DRAINED: usize = 64 << 10;
const LONGEST_DRAIN: Duration = Duration::from_millis(100);
/// How much of a response's body [`Heartbeat::read_response`](super::Heartbeat::read_response) can
/// read.
const MOST_READ: usize = 1 << 20;
/// The longest `Retry-After` that is respected.
const LONGEST_WAIT: Duration = Duration::from_secs(300);

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;
pub(super) type Result = std::result::Result<Beat, BoxError>;
pub(super) type Make = Box<dyn Fn(&ClientWithMiddleware) -> RequestBuilder + Send + Sync>;
pub(super) type StopOn = Box<dyn Fn(StatusCode) -> bool + Send + Sync>;
pub(super) type Call = Box<dyn FnMut() -> BoxFuture<Result> + Send>;
pub(super) type Read = Box<dyn Fn(Response, Beat) -> BoxFuture<Result> + Send + Sync>;

/// The source of the beats.
pub(super) enum Source {
    Request {
        client: ClientWithMiddleware,
        make: Make,
    },
    /// The mutex is never locked. It makes the type `Sync`.
    Function(Mutex<Call>),
}

/// How beats are sent and read.
pub(super) struct Beats {
    pub(super) source: Source,
    pub(super) session: Option<Session>,
    pub(super) timeout: Duration,
    pub(super) stop_on: Option<StopOn>,
    pub(super) read: Option<Read>,
}

/// The report on a finished beat.
pub(super) struct Report {
    /// The status of the API's response, if there was a response.
    pub(super) status: Option<StatusCode>,
    /// The `Retry-After` of a 429 or 503.
    pub(super) asked_wait: Option<Duration>,
    /// Whether `stop_on` matched the status.
    pub(super) told: bool,
    pub(super) result: Came,
}

/// A [`Beat`] whose failure is classified.
pub(super) enum Came {
    Alive { every: Option<Duration> },
    Failed(Failure),
    Stop(String),
}

impl Beats {
    /// Sends one beat within its time limit.
    pub(super) async fn beat(&mut self) -> Report {
        let mut report = Report {
            status: None,
            asked_wait: None,
            told: false,
            result: Came::Stop(String::new()),
        };
        let limit = self.timeout;
        report.result = match within(limit, catch_panic(self.run(&mut report))).await {
            Ok(Some(Ok(beat))) => beat.into(),
            Ok(Some(Err(failure))) => Came::Failed(failure),
            Ok(None) => Came::Failed(Failure::Panicked),
            Err(_) => Came::Failed(Failure::TimedOut),
        };
        if let Came::Failed(Failure::Auth(error)) = &report.result {
            report.status = report.status.or(error.api_status());
        }
        report
    }

    async fn run(&mut self, report: &mut Report) -> std::result::Result<Beat, Failure> {
        let request = match &mut self.source {
            Source::Function(beat) => {
                let beat = beat.get_mut().unwrap_or_else(PoisonError::into_inner);
                let beat = async { beat().await };
                let result = match &self.session {
                    Some(session) => session.scope(beat).await,
                    None => beat.await,
                };
                return Ok(result.unwrap_or_else(Beat::Failed));
            }
            Source::Request { client, make } => with_session(make(client), self.session.as_ref()),
        };
        let response = request.send().await.map_err(not_sent)?;
        report.status = Some(response.status());
        report.asked_wait = wait_of(&response);
        let without_rule = self.read_status(&response, report)?;
        if let Some(read) = &self.read {
            let response = limited(response).map_err(|error| Failure::Beat(Arc::from(error)))?;
            Ok(read(response, without_rule).await.unwrap_or_else(Beat::Failed))
        } else {
            drain(response).await;
            Ok(without_rule)
        }
    }

    /// The result of a beat by its status alone.
    fn read_status(
        &self,
        response: &Response,
        report: &mut Report,
    ) -> std::result::Result<Beat, Failure> {
        if let Some(error) = refresh_error(response) {
            return Ok(Failure::Auth(error).into());
        }
        let status = response.status();
        report.told = is_named(self.stop_on.as_ref(), status)?;
        Ok(if status.as_u16() >= 400 { Failure::Status(status).into() } else { Beat::Alive })
    }
}

/// Adds the session to the request, unless the closure has given it another one.
fn with_session(mut request: RequestBuilder, session: Option<&Session>) -> RequestBuilder {
    if let Some(session) = session
        && request.extensions().get::<Session>().is_none()
    {
        request.extensions().insert(session.clone());
    }
    request
}

fn is_named(rule: Option<&StopOn>, status: StatusCode) -> std::result::Result<bool, Failure> {
    let named = || rule.is_some_and(|rule| rule(status));
    catch_unwind(AssertUnwindSafe(named)).map_err(|_| Failure::Panicked)
}

/// The error of a failed refresh, if the response stands for one.
fn refresh_error(response: &Response) -> Option<Error> {
    response.extensions().get::<Outcome>()?.refresh_error.clone()
}

fn wait_of(response: &Response) -> Option<Duration> {
    if !matches!(response.status().as_u16(), 429 | 503) {
        return None;
    }
    let headers = response.headers();
    let date =
        headers.get(DATE).and_then(|date| httpdate::parse_http_date(date.to_str().ok()?).ok());
    let wait = asked_wait(headers, date.unwrap_or_else(wall))?;
    Some(wait.min(LONGEST_WAIT))
}

/// The same response with a limited body.
fn limited(response: Response) -> std::result::Result<Response, BoxError> {
    let url = response.url().clone();
    let (mut parts, body) = http::Response::<Body>::from(response).into_parts();
    let (with_url, ()) = http::Response::builder().url(url).body(())?.into_parts();
    parts.extensions.extend(with_url.extensions);
    let body = Body::wrap(Limited::new(body, MOST_READ));
    Ok(http::Response::from_parts(parts, body).into())
}

fn not_sent(error: reqwest_middleware::Error) -> Failure {
    match Error::find_in(&error) {
        Some(error) => Failure::Auth(error.clone()),
        None => Failure::Transport(Arc::new(error)),
    }
}

impl From<Failure> for Beat {
    fn from(failure: Failure) -> Self {
        Self::Failed(Box::new(failure))
    }
}

impl From<Beat> for Came {
    fn from(beat: Beat) -> Self {
        match beat {
            Beat::Alive => Self::Alive { every: None },
            Beat::AliveEvery(every) => Self::Alive { every: Some(every) },
            Beat::Failed(error) => Self::Failed(Failure::of(error)),
            Beat::Stop(reason) => Self::Stop(reason),
        }
    }
}

/// Reads the response to its end, so that the next beat can reuse the connection.
async fn drain(mut response: Response) {
    let mut left = MOST_DRAINED;
    let read = async {
        while let Ok(Some(chunk)) = response.chunk().await {
            match left.checked_sub(chunk.len()) {
                Some(rest) => left = rest,
                None => break,
            }
        }
    };
    let _ = within(LONGEST_DRAIN, catch_panic(read)).await;
}
