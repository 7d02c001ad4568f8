//! A loop that tells a server, again and again, that a job is alive.
//!
//! ```no_run
//! use std::time::Duration;
//! use reqwest_reauth::{ClientBuilderExt, Session, Tokens, heartbeat::Heartbeat};
//!
//! # async fn f(token: String) -> Result<(), Box<dyn std::error::Error>> {
//! let session = Session::builder(Tokens::new(token)?).origin("https://airflow.example.com").build()?;
//! let client = reqwest_middleware::ClientBuilder::new(reqwest::Client::new()).with_session(session.clone()).build();
//!
//! let heartbeat = Heartbeat::new(client, |client| client.put("https://airflow.example.com/execution/heartbeat"))
//!     .session(session)
//!     .every(Duration::from_secs(5))
//!     // Airflow reissues tokens in the last fifth of their life, and takes none that has expired.
//!     .reissue_window(0.8)
//!     // 404, 409, 410: the server has given the job up, and so should we.
//!     .stop_on(|status| matches!(status.as_u16(), 404 | 409 | 410))
//!     .max_failures(3)
//!     .spawn()?;
//!
//! tokio::select! {
//!     () = work() => { heartbeat.stop().await; }
//!     stopped = heartbeat.finished() => eprintln!("the job is over: {stopped:?}"),
//! }
//! # Ok(())
//! # }
//! # async fn work() {}
//! ```
//!
//! # When it beats
//!
//! At once, then once a period, up to 5 % of the period early, at random, so that a fleet does not
//! beat in step. There are never two beats at once; a beat that takes longer than the period makes
//! the loop leave out what it missed, and not catch up. All waits are on tokio's clock.
//!
//! # What is a failure
//!
//! A beat fails with a status of 400 or more, a transport error, an error of this crate, a panic of
//! the closure, or when its [time](Heartbeat::timeout) is over: see [`Failure`]. The next beat
//! tries again, whatever it was, a token endpoint that is down included. Only
//! [`LoginRequired`](crate::ErrorKind::LoginRequired) ends the loop at once, since no later beat
//! could do better.

mod schedule;
mod worker;

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use http::StatusCode;
use reqwest_middleware::{ClientWithMiddleware, RequestBuilder};
use tokio::{runtime::Handle, sync::watch};

use self::worker::{Beat, Rule, Worker};
use crate::{
    error::{Error, ErrorKind},
    session::Session,
    telemetry::Telemetry,
};

/// Settings of a heartbeat.
///
/// | setting | default |
/// | --- | --- |
/// | [`session`](Self::session) | the task's, if `spawn` is called in a [scope](Session::scope) |
/// | [`every`](Self::every) | 5 s |
/// | [`timeout`](Self::timeout) | 10 s |
/// | [`max_failures`](Self::max_failures) | no limit |
/// | [`stop_on`](Self::stop_on) | no status |
/// | [`reissue_window`](Self::reissue_window) | none |
#[must_use]
pub struct Heartbeat {
    client: ClientWithMiddleware,
    beat: Beat,
    session: Option<Session>,
    every: Duration,
    timeout: Duration,
    max_failures: Option<u32>,
    stop_on: Option<Rule>,
    reissue_window: Option<f64>,
}

impl Heartbeat {
    /// A heartbeat that sends what `beat` makes with the client, each time anew.
    pub fn new<F>(client: ClientWithMiddleware, beat: F) -> Self
    where
        F: Fn(&ClientWithMiddleware) -> RequestBuilder + Send + Sync + 'static,
    {
        Self {
            client,
            beat: Box::new(beat),
            session: None,
            every: Duration::from_secs(5),
            timeout: Duration::from_secs(10),
            max_failures: None,
            stop_on: None,
            reissue_window: None,
        }
    }

    /// The session that the beats belong to. Each request carries it, unless the closure has given
    /// it another, so that a [scoped](crate::ClientBuilderExt::with_scoped_sessions) client knows
    /// it in the loop's own task; and its token's expiry is what
    /// [`reissue_window`](Self::reissue_window) goes by. Default: the task's where `spawn` is
    /// called, if there is one.
    pub fn session(mut self, session: Session) -> Self {
        self.session = Some(session);
        self
    }

    /// The period: from one beat's tick to the next. Default: 5 s, which is Airflow's.
    pub fn every(mut self, period: Duration) -> Self {
        self.every = period;
        self
    }

    /// The most that one beat may take, its wait for a refresh and a replay included. A refresh
    /// goes on when its beat has given up. Default: 10 s.
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.timeout = limit;
        self
    }

    /// Ends the loop after this many failed beats in a row. Default: it goes on for ever.
    pub fn max_failures(mut self, n: u32) -> Self {
        self.max_failures = Some(n);
        self
    }

    /// Ends the loop at once when a beat is answered with a status that this names, e.g. because
    /// the job is no longer wanted. It is asked about every answer that arrives, those below 400
    /// included, except one that stands for a refresh that failed
    /// ([`OnRefreshFailure::ReturnResponse`](crate::OnRefreshFailure::ReturnResponse)). Default: no
    /// status does.
    pub fn stop_on(mut self, rule: impl Fn(StatusCode) -> bool + Send + Sync + 'static) -> Self {
        self.stop_on = Some(Box::new(rule));
        self
    }

    /// For a server that hands out a new token only once this fraction of the old one's life has
    /// passed: at least two beats fall between that and the token's end, whatever
    /// [`every`](Self::every) says. A beat that is moved forward takes the following ones with it.
    /// Needs a [`session`](Self::session), and works while the expiry of its token is known; a
    /// token that other requests have brought is noticed within a second. Default: none.
    ///
    /// Airflow's is 0.8. It refuses a token that has expired, and so a job whose period is longer
    /// than the last fifth of a token's life dies, unless it happens to beat at the right time
    /// (apache/airflow#67939).
    pub fn reissue_window(mut self, fraction: f64) -> Self {
        self.reissue_window = Some(fraction);
        self
    }

    /// Starts the loop as a task of its own on the present tokio runtime.
    ///
    /// # Errors
    /// [`InvalidConfig`](ErrorKind::InvalidConfig) if `every` or `timeout` is zero, `max_failures`
    /// is 0, `reissue_window` is not between 0 and 1 or has no session, or there is no tokio
    /// runtime here.
    pub fn spawn(self) -> Result<HeartbeatHandle, Error> {
        let session = self.session.or_else(Session::current);
        let window = self.reissue_window;
        let invalid = |reason: &str| Err(Error::new(ErrorKind::InvalidConfig, reason));
        if self.every.is_zero() {
            return invalid("the heartbeat's period is zero");
        }
        if self.timeout.is_zero() {
            return invalid("the heartbeat's timeout is zero");
        }
        if self.max_failures == Some(0) {
            return invalid(
                "the heartbeat may fail 0 times, so that it would be over before it begins",
            );
        }
        if window.is_some_and(|fraction| !(fraction > 0.0 && fraction < 1.0)) {
            return invalid("the reissue window is no fraction between 0 and 1");
        }
        if window.is_some() && session.is_none() {
            return invalid("the reissue window needs a session, whose token's expiry it goes by");
        }
        let Ok(runtime) = Handle::try_current() else {
            return invalid("a heartbeat needs a tokio runtime");
        };

        let (health, healthy) = watch::channel(Health::default());
        let (wanted, asked) = watch::channel(0);
        let (served, answered) = watch::channel(0);
        let (stop, stopping) = watch::channel(false);
        let (done, finished) = watch::channel(None);
        let worker = Worker {
            client: self.client,
            beat: self.beat,
            session,
            telemetry: Telemetry::new(None),
            every: self.every,
            timeout: self.timeout,
            max_failures: self.max_failures,
            stop_on: self.stop_on,
            reissue_window: window,
            health,
            asked,
            served,
            stopping,
        };
        runtime.spawn(async move {
            let stopped = worker.run().await;
            done.send_replace(Some(stopped));
        });
        Ok(HeartbeatHandle { health: healthy, wanted, answered, stop, finished })
    }
}

/// A heartbeat that runs. Dropping it stops the loop, after the beat in flight.
#[must_use = "dropping the handle stops the heartbeat"]
pub struct HeartbeatHandle {
    health: watch::Receiver<Health>,
    /// Counts the beats that were asked for.
    wanted: watch::Sender<u64>,
    /// Up to which of these there has been a beat.
    answered: watch::Receiver<u64>,
    stop: watch::Sender<bool>,
    finished: watch::Receiver<Option<Stopped>>,
}

impl HeartbeatHandle {
    /// How it goes, after each beat. The receiver may outlive the handle.
    pub fn health(&self) -> watch::Receiver<Health> {
        self.health.clone()
    }

    /// Beats now, and returns when that beat is done. While a beat is in flight, another follows as
    /// soon as it is over, and callers that wait meanwhile share it. The ticks stay where they are.
    /// If the loop ends first, or has ended, there is no such beat, and what is returned is the
    /// last health.
    pub async fn beat_now(&self) -> Health {
        let mut mine = 0;
        self.wanted.send_modify(|wanted| {
            *wanted += 1;
            mine = *wanted;
        });
        let mut answered = self.answered.clone();
        // An error means that the loop has ended.
        let _ = answered.wait_for(|&answered| answered >= mine).await;
        self.health.borrow().clone()
    }

    /// Ends the loop, after the beat in flight, and returns why it ended: [`Stopped::Requested`],
    /// unless something else came first.
    pub async fn stop(&self) -> Stopped {
        self.stop.send_replace(true);
        self.finished().await
    }

    /// Returns when the loop has ended, and why.
    pub async fn finished(&self) -> Stopped {
        let mut finished = self.finished.clone();
        let stopped = finished.wait_for(Option::is_some).await;
        // The task is gone without a word: its runtime was shut down.
        stopped.ok().and_then(|stopped| stopped.clone()).unwrap_or(Stopped::RuntimeGone)
    }
}

impl fmt::Debug for Heartbeat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Heartbeat")
            .field("session", &self.session)
            .field("every", &self.every)
            .field("timeout", &self.timeout)
            .field("max_failures", &self.max_failures)
            .field("reissue_window", &self.reissue_window)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for HeartbeatHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HeartbeatHandle")
            .field("health", &*self.health.borrow())
            .finish_non_exhaustive()
    }
}

/// How a heartbeat goes.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Health {
    /// How many beats are done, failed ones included.
    pub beats: u64,
    /// How many beats have failed since the last that did not.
    pub consecutive_failures: u32,
    /// What the API answered to the latest beat that it answered.
    pub last_status: Option<StatusCode>,
    /// When a beat last succeeded, on the local clock.
    pub last_success: Option<SystemTime>,
    /// Why the latest beat failed, as text for people; `None` if it did not.
    pub last_error: Option<String>,
    /// Why the latest beat failed; `None` if it did not.
    pub last_failure: Option<Failure>,
}

/// Why a beat failed.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Failure {
    /// The API answered with a status of 400 or more.
    Status(StatusCode),
    /// No token could be had: [`Error::api_status`] is what the API answered, [`Error::status`]
    /// what the token endpoint did.
    Auth(Error),
    /// The request could not be made or sent, or its answer did not arrive.
    Transport(Arc<reqwest_middleware::Error>),
    /// It took longer than [`Heartbeat::timeout`].
    TimedOut,
    /// The closure, a rule, or a middleware of the client panicked.
    Panicked,
}

impl Failure {
    /// For metrics.
    fn name(&self) -> &'static str {
        match self {
            Self::Status(_) => "status",
            Self::Auth(_) => "auth",
            Self::Transport(_) => "transport",
            Self::TimedOut => "timed_out",
            Self::Panicked => "panicked",
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => write!(f, "the api answered {status}"),
            Self::Auth(error) => chain(f, error),
            Self::Transport(error) => chain(f, &**error),
            Self::TimedOut => f.write_str("the beat took too long"),
            Self::Panicked => f.write_str("the beat panicked"),
        }
    }
}

/// An error with its causes, which a text without `source()` would lose.
fn chain(f: &mut fmt::Formatter<'_>, error: &dyn std::error::Error) -> fmt::Result {
    write!(f, "{error}")?;
    let mut cause = error.source();
    while let Some(error) = cause {
        write!(f, ": {error}")?;
        cause = error.source();
    }
    Ok(())
}

/// Why a heartbeat ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stopped {
    /// [`HeartbeatHandle::stop`] was called, or the handle was dropped.
    Requested,
    /// As many beats failed in a row as [`Heartbeat::max_failures`] allows.
    TooManyFailures {
        /// How many.
        failures: u32,
    },
    /// The API answered what [`Heartbeat::stop_on`] names.
    ByStatus {
        /// What it answered.
        status: StatusCode,
    },
    /// The session has no login any more.
    LoginRequired,
    /// The loop's task was lost: its runtime was shut down.
    RuntimeGone,
}
