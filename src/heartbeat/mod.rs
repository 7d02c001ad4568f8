//! A loop that regularly tells a server that a job is alive.
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use reqwest_reauth::{Error, Session, Tokens, heartbeat::Heartbeat};
//!
//! async fn work() {
//!     // The job itself.
//! }
//!
//! #[tokio::main]
//! async fn main() -> Result<(), Error> {
//!     let session = Session::builder(Tokens::new("access-token")?)
//!         .origin("https://api.example.com")
//!         .build()?;
//!     let client = session.wrap(reqwest::Client::new());
//!
//!     let heartbeat =
//!         Heartbeat::new(client, |client| client.put("https://api.example.com/jobs/7/heartbeat"))
//!             .session(session)
//!             .every(Duration::from_secs(5))
//!             // The server reissues tokens in the last fifth of their lifetime.
//!             .reissue_window(0.8)
//!             // With these statuses the server has given up the job, so the job ends too.
//!             .stop_on(|status| matches!(status.as_u16(), 404 | 409 | 410))
//!             .max_failures(20)
//!             .spawn()?;
//!
//!     tokio::select! {
//!         () = work() => {
//!             heartbeat.stop().await;
//!         }
//!         stopped = heartbeat.finished() => eprintln!("the job is over: {stopped:?}"),
//!     }
//!     Ok(())
//! }
//! ```
//!
//! A beat is a request ([`Heartbeat::new`]) or any async closure ([`Heartbeat::from_fn`]), such as
//! a method of a generated client or a gRPC call.
//!
//! # When it beats
//!
//! The first beat is sent at once. Then there is one beat in each period, up to 5 % of the period
//! early, chosen at random, so that many jobs do not beat in lockstep. There are never two beats at
//! once. If a beat takes longer than the period, the missed ticks are skipped rather than made up.
//! All waits use tokio's clock.
//!
//! Three settings move beats. If they disagree, the later one in this list takes precedence:
//!
//! 1. With a [lease](Heartbeat::lease), the beat after a failed one is sent when half of the
//!    remaining lease has passed, if that is sooner than the period, but not within a second.
//! 2. With a [reissue window](Heartbeat::reissue_window), two beats are sent within the window.
//! 3. The `Retry-After` of a 429 or 503 delays the next beat (see below).
//!
//! # What counts as a failure
//!
//! A beat fails with a status of 400 or more, a transport error, an error of this crate, a panic of
//! the closure, or when its [time limit](Heartbeat::timeout) runs out. See [`Failure`]. The next
//! beat tries again, whatever the failure was, including an unavailable token endpoint.
//!
//! [`LoginRequired`](crate::ErrorKind::LoginRequired) ends the loop at once, because no later beat
//! could succeed, unless the loop is set to [wait for a login](Heartbeat::wait_for_login). A closed
//! session also ends the loop at once, even during a beat.
//!
//! # Retry-After
//!
//! After a 429 or 503 with `Retry-After` (seconds or a date, at most five minutes), the next beat
//! is not sent before that time. There are two limits: the next beat is sent at the latest when a
//! third of the lease is left, and in time for the reissue window.
//!
//! A 429 with `Retry-After` counts neither as a failure for
//! [`max_failures`](Heartbeat::max_failures) nor as a success. It counts as a failure once there
//! has been no success for one hour and for ten periods.
//!
//! # Jobs that block
//!
//! A job that computes for half a minute on the runtime of its heartbeat delays its beats, and the
//! refreshes of its session too. [`Heartbeat::spawn_thread`] runs both on a separate thread.

mod beat;
mod handle;
mod lease;
mod schedule;
mod status;
mod suspend;
mod thread;
mod worker;

use std::{fmt, future::Future, sync::Mutex, time::Duration};

use http::StatusCode;
use reqwest::Response;
use reqwest_middleware::{ClientWithMiddleware, RequestBuilder};
use tokio::{runtime::Handle, sync::watch};

pub use self::{
    beat::{Beat, BoxError},
    handle::HeartbeatHandle,
    status::{Failure, Health, Stopped},
};
use self::{
    beat::{Beats, Read, Source, StopOn},
    worker::{Rules, Signals, Stop, Worker},
};
use crate::{
    error::{Error, ErrorKind},
    session::Session,
    telemetry::Telemetry,
};

/// A heartbeat and its settings. [`spawn`](Self::spawn) starts it.
///
/// ```
/// use std::time::Duration;
///
/// use reqwest_reauth::{
///     Session,
///     heartbeat::{Heartbeat, Stopped},
///     reqwest,
///     testing::AuthServer,
/// };
///
/// #[tokio::main]
/// async fn main() -> Result<(), Box<dyn std::error::Error>> {
///     // A test server (feature `test-util`).
///     let server = AuthServer::start().await;
///     let session = Session::builder(server.login()).origin(server.origin()).build()?;
///     let client = session.wrap(reqwest::Client::new());
///
///     let url = server.url("/jobs/7/heartbeat");
///     let heartbeat = Heartbeat::new(client, move |client| client.put(&url))
///         .session(session)
///         .every(Duration::from_secs(5))
///         .spawn()?;
///
///     let health = heartbeat.beat_now().await;
///     assert_eq!(health.consecutive_failures, 0);
///     assert_eq!(heartbeat.stop().await, Stopped::Requested);
///     Ok(())
/// }
/// ```
///
/// # Defaults
///
/// | setting | default |
/// | --- | --- |
/// | [`session`](Self::session) | the task's session, if `spawn` is called in a [scope](Session::scope) |
/// | [`every`](Self::every) | 5 s |
/// | [`timeout`](Self::timeout) | 10 s |
/// | [`max_failures`](Self::max_failures) | no limit |
/// | [`lease`](Self::lease) | none |
/// | [`stop_on`](Self::stop_on) | no status |
/// | [`read_response`](Self::read_response) | the status alone decides |
/// | [`reissue_window`](Self::reissue_window) | none |
/// | [`wait_for_login`](Self::wait_for_login) | off: the loop ends at once |
#[must_use]
pub struct Heartbeat {
    source: Source,
    session: Option<Session>,
    timeout: Duration,
    stop_on: Option<StopOn>,
    read: Option<Read>,
    rules: Rules,
}

impl Heartbeat {
    /// Creates a heartbeat that sends a request. `beat` builds it with the client for each beat.
    pub fn new<F>(client: ClientWithMiddleware, beat: F) -> Self
    where
        F: Fn(&ClientWithMiddleware) -> RequestBuilder + Send + Sync + 'static,
    {
        Self::of(Source::Request { client, make: Box::new(beat) })
    }

    /// Creates a heartbeat that calls `beat`, for anything other than a plain request, such as a
    /// method of a generated client or a gRPC call.
    ///
    /// The closure runs in the session's [scope](Session::scope), and its future is cancelled after
    /// [`timeout`](Self::timeout). An error counts as [`Beat::Failed`]. If it contains an error of
    /// this crate, the kind of that error counts: [`LoginRequired`](ErrorKind::LoginRequired) ends
    /// the loop.
    ///
    /// ```
    /// use reqwest_reauth::heartbeat::{Beat, Heartbeat};
    ///
    /// /// Stands for a method of a generated client.
    /// async fn is_cancelled(job: u32) -> Result<bool, std::io::Error> {
    ///     Ok(job == 0)
    /// }
    ///
    /// let heartbeat = Heartbeat::from_fn(|| async {
    ///     let cancelled = is_cancelled(7).await?;
    ///     Ok(if cancelled { Beat::Stop("cancelled".into()) } else { Beat::Alive })
    /// });
    /// ```
    pub fn from_fn<F, Fut>(mut beat: F) -> Self
    where
        F: FnMut() -> Fut + Send + 'static,
        Fut: Future<Output = Result<Beat, BoxError>> + Send + 'static,
    {
        Self::of(Source::Function(Mutex::new(Box::new(move || Box::pin(beat())))))
    }

    fn of(source: Source) -> Self {
        Self {
            source,
            session: None,
            timeout: Duration::from_secs(10),
            stop_on: None,
            read: None,
            rules: Rules {
                every: Duration::from_secs(5),
                max_failures: None,
                lease: None,
                reissue_window: None,
                wait_for_login: None,
            },
        }
    }

    /// Sets the session of the beats. Default: the task's session where `spawn` is called, if there
    /// is one.
    ///
    /// - Each request carries the session, unless the closure has given it another one. A
    ///   [scoped](crate::ClientBuilderExt::with_scoped_sessions) client therefore finds it in the
    ///   loop's own task.
    /// - The expiry of its token decides for [`reissue_window`](Self::reissue_window).
    /// - The loop ends as soon as the session is closed.
    pub fn session(mut self, session: Session) -> Self {
        self.session = Some(session);
        self
    }

    /// Sets the period from one tick to the next. Default: 5 s, like Airflow's.
    pub fn every(mut self, period: Duration) -> Self {
        self.rules.every = period;
        self
    }

    /// Sets the time limit of one beat, including its wait for a refresh, a replay and
    /// [`read_response`](Self::read_response). Default: 10 s. A refresh continues after its beat
    /// has timed out.
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.timeout = limit;
        self
    }

    /// Sets the number of failed beats in a row after which the loop ends. Default: no limit.
    pub fn max_failures(mut self, n: u32) -> Self {
        self.rules.max_failures = Some(n);
        self
    }

    /// Ends the loop with [`Stopped::LeaseLost`] as soon as no beat that was *sent* within this
    /// time has succeeded. A beat in progress is abandoned. Default: none.
    ///
    /// This is for servers that give a job to another worker after this much silence. Before the
    /// first success, the time counts from `spawn`. Subtract the time that the job needs to stop,
    /// and the possible difference between its clock and the server's. The time of a suspend
    /// counts. The lease must be longer than [`every`](Self::every).
    pub fn lease(mut self, duration: Duration) -> Self {
        self.rules.lease = Some(duration);
        self
    }

    /// Ends the loop at once if the status of a response matches `rule`, for example because the
    /// job is no longer wanted. Default: no status does.
    ///
    /// The rule is called for every response, including those below 400. The exception is a
    /// response that stands for a failed refresh
    /// ([`OnRefreshFailure::ReturnResponse`](crate::OnRefreshFailure::ReturnResponse)).
    pub fn stop_on(mut self, rule: impl Fn(StatusCode) -> bool + Send + Sync + 'static) -> Self {
        self.stop_on = Some(Box::new(rule));
        self
    }

    /// Reads the response of each beat, whatever its status. Default: the status alone decides.
    ///
    /// Some servers report in the body that the job is cancelled, that the lease is lost, or how
    /// often they expect a beat. `read` runs after the token is captured and after
    /// [`stop_on`](Self::stop_on). It receives the response and the result of the beat by its
    /// status. Return that result unless the body says more.
    ///
    /// The time of `read` counts towards [`timeout`](Self::timeout). It can read at most 1 MiB of a
    /// body. An error or a panic is a failed beat.
    ///
    /// ```
    /// use reqwest_reauth::heartbeat::{Beat, Heartbeat};
    ///
    /// fn stop_on_cancel(heartbeat: Heartbeat) -> Heartbeat {
    ///     heartbeat.read_response(|response, beat| async move {
    ///         if !response.status().is_success() {
    ///             return Ok(beat);
    ///         }
    ///         let cancelled = response.text().await?.contains("cancel");
    ///         Ok(if cancelled { Beat::Stop("cancelled by a person".into()) } else { beat })
    ///     })
    /// }
    /// ```
    pub fn read_response<F, Fut>(mut self, read: F) -> Self
    where
        F: Fn(Response, Beat) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Beat, BoxError>> + Send + 'static,
    {
        self.read = Some(Box::new(move |response, beat| Box::pin(read(response, beat))));
        self
    }

    /// Sends at least two beats after this fraction of a token's lifetime and before its expiry,
    /// whatever [`every`](Self::every) says. Default: none.
    ///
    /// This is for a server that issues a new token only in the last part of the old token's
    /// lifetime. A beat that is moved forward moves the following ones too. It needs a
    /// [`session`](Self::session) whose token has a known expiry. A new token from another request
    /// moves the beats at once.
    ///
    /// Use 0.8 for Airflow. It rejects an expired token, so a job whose period is longer than the
    /// last fifth of a token's lifetime dies, unless one of its beats happens to fall into that
    /// fifth (apache/airflow#67939).
    pub fn reissue_window(mut self, fraction: f64) -> Self {
        self.rules.reissue_window = Some(fraction);
        self
    }

    /// Pauses the beats for at most this long when a login is required. Default: the loop ends at
    /// once.
    ///
    /// The loop continues as soon as there is a new login: through [`Session::replace_tokens`], or
    /// in the session's store, which is read once per [cool-down](crate::SessionBuilder::cooldown).
    /// After the limit the loop ends with [`Stopped::LoginRequired`]. A [lease](Self::lease)
    /// continues to run.
    pub fn wait_for_login(mut self, limit: Duration) -> Self {
        self.rules.wait_for_login = Some(limit);
        self
    }

    /// Starts the loop as a task on the current tokio runtime.
    ///
    /// # Errors
    /// [`InvalidConfig`](ErrorKind::InvalidConfig) if
    /// - `every` or `timeout` is zero, or `max_failures` is 0,
    /// - `lease` is not longer than `every`,
    /// - `reissue_window` is not between 0 and 1, or there is no session for it,
    /// - [`from_fn`](Self::from_fn) is combined with `stop_on` or `read_response`,
    /// - there is no current tokio runtime.
    pub fn spawn(self) -> Result<HeartbeatHandle, Error> {
        let (worker, handle, done) = self.start()?;
        let Ok(runtime) = Handle::try_current() else {
            return Err(invalid("a heartbeat needs a tokio runtime"));
        };
        runtime.spawn(async move {
            let stopped = worker.run().await;
            done.send_replace(Some(stopped));
        });
        Ok(handle)
    }

    /// Starts the loop on a separate thread with its own runtime. The caller needs no runtime.
    ///
    /// The refreshes of the session run on that thread too until the loop ends, whatever
    /// [`SessionBuilder::runtime`](crate::SessionBuilder::runtime) says. Beats and refreshes
    /// therefore continue while the job blocks its own runtime.
    ///
    /// The client must not be used on another runtime, or it must be built with
    /// [`pool_max_idle_per_host(0)`](reqwest::ClientBuilder::pool_max_idle_per_host). An idle
    /// connection belongs to the runtime that opened it, and a beat over that connection waits for
    /// that runtime. The same applies to a client that was given to
    /// [`OAuthRefresh`](crate::OAuthRefresh).
    ///
    /// ```no_run
    /// use reqwest_reauth::{Session, Tokens, heartbeat::Heartbeat};
    ///
    /// fn main() -> Result<(), Box<dyn std::error::Error>> {
    ///     let session = Session::builder(Tokens::new("access-token")?)
    ///         .origin("https://api.example.com")
    ///         .build()?;
    ///     // A client for the beats alone. The job has its own client with the same session.
    ///     let client = reqwest::Client::builder().pool_max_idle_per_host(0).build()?;
    ///     let client = session.wrap(client);
    ///     let heartbeat = Heartbeat::new(client, |client| client.put("https://api.example.com/beat"))
    ///         .session(session)
    ///         .spawn_thread()?;
    ///
    ///     // The job itself, which may block.
    ///     drop(heartbeat);
    ///     Ok(())
    /// }
    /// ```
    ///
    /// # Errors
    /// As for [`spawn`](Self::spawn), except that no current runtime is needed, and
    /// [`Internal`](ErrorKind::Internal) if the system cannot create a thread.
    pub fn spawn_thread(self) -> Result<HeartbeatHandle, Error> {
        let (worker, handle, done) = self.start()?;
        thread::spawn(worker, done)?;
        Ok(handle)
    }

    /// Prepares the loop, which the caller has to run.
    fn start(self) -> Result<(Worker, HeartbeatHandle, watch::Sender<Option<Stopped>>), Error> {
        let session = self.session.clone().or_else(Session::current);
        self.check(session.as_ref())?;
        let (health, healthy) = watch::channel(Health::default());
        let (wanted, asked) = watch::channel(0);
        let (served, answered) = watch::channel(0);
        let (stop, stopping) = watch::channel(Stop::No);
        let (done, finished) = watch::channel(None);
        let worker = Worker {
            beats: Beats {
                source: self.source,
                session,
                timeout: self.timeout,
                stop_on: self.stop_on,
                read: self.read,
            },
            rules: self.rules,
            signals: Signals { stop: stopping, asked, served },
            health,
            telemetry: Telemetry::new(None),
        };
        Ok((worker, HeartbeatHandle { health: healthy, wanted, answered, stop, finished }, done))
    }

    /// Checks whether the settings can work.
    fn check(&self, session: Option<&Session>) -> Result<(), Error> {
        let Rules { every, max_failures, lease, reissue_window: window, .. } = self.rules;
        let of_responses = self.stop_on.is_some() || self.read.is_some();
        let wrong = [
            (every.is_zero(), "the heartbeat's period is zero"),
            (self.timeout.is_zero(), "the heartbeat's timeout is zero"),
            (max_failures == Some(0), "the heartbeat's max_failures is zero"),
            (
                lease.is_some_and(|lease| lease <= every),
                "the heartbeat's lease is not longer than its period",
            ),
            (
                window.is_some_and(|fraction| !(fraction > 0.0 && fraction < 1.0)),
                "the reissue window is not between 0 and 1",
            ),
            (window.is_some() && session.is_none(), "the reissue window needs a session"),
            (
                of_responses && matches!(self.source, Source::Function(_)),
                "stop_on and read_response need a heartbeat that sends requests",
            ),
        ];
        match wrong.into_iter().find(|(wrong, _)| *wrong) {
            Some((_, reason)) => Err(invalid(reason)),
            None => Ok(()),
        }
    }
}

fn invalid(reason: &'static str) -> Error {
    Error::new(ErrorKind::InvalidConfig, reason)
}

impl fmt::Debug for Heartbeat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Heartbeat")
            .field("session", &self.session)
            .field("every", &self.rules.every)
            .field("timeout", &self.timeout)
            .field("max_failures", &self.rules.max_failures)
            .field("lease", &self.rules.lease)
            .field("reissue_window", &self.rules.reissue_window)
            .field("wait_for_login", &self.rules.wait_for_login)
            .finish_non_exhaustive()
    }
}
