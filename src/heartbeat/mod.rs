//! A loop that tells a server, again and again, that a job is alive.
//!
//! ```no_run
//! use std::time::Duration;
//! use reqwest_reauth::{ClientBuilderExt, Session, Tokens, heartbeat::Heartbeat};
//!
//! # async fn f(token: String) -> Result<(), Box<dyn std::error::Error>> {
//! let session = Session::builder(Tokens::new(token)?).origin("https://api.example.com").build()?;
//! let client = reqwest_middleware::ClientBuilder::new(reqwest::Client::new()).with_session(session.clone()).build();
//!
//! let heartbeat = Heartbeat::new(client, |client| client.put("https://api.example.com/jobs/7/heartbeat"))
//!     .session(session)
//!     .every(Duration::from_secs(5))
//!     // The server reissues tokens in the last fifth of their life, and takes none that has expired.
//!     .reissue_window(0.8)
//!     // The server has given the job up, and so should we.
//!     .stop_on(|status| matches!(status.as_u16(), 404 | 409 | 410))
//!     .max_failures(20)
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
//! A beat is a request ([`Heartbeat::new`]), or any async closure ([`Heartbeat::from_fn`]): a
//! generated client's method, a gRPC call.
//!
//! # When it beats
//!
//! At once, then once a period, up to 5 % of the period early, at random, so that a fleet does not
//! beat in step. There are never two beats at once. A beat that takes longer than the period makes
//! the loop leave out what it missed, and not catch up. All waits are on tokio's clock.
//!
//! Three settings move beats. Where they disagree, the later one of this list wins:
//!
//! 1. With a [lease](Heartbeat::lease), the beat after a failed one comes at half of what is left
//!    of the lease, if that is sooner than the period, and not under a second.
//! 2. With a [reissue window](Heartbeat::reissue_window), two beats fall into it.
//! 3. `Retry-After` of a 429 or 503 moves the next beat back (see below).
//!
//! # What is a failure
//!
//! A beat fails with a status of 400 or more, a transport error, an error of this crate, a panic of
//! the closure, or when its [time](Heartbeat::timeout) is over: see [`Failure`]. The next beat
//! tries again, whatever it was, a token endpoint that is down included.
//! [`LoginRequired`](crate::ErrorKind::LoginRequired) ends the loop at once, unless it is told to
//! [wait for a login](Heartbeat::wait_for_login), since no later beat could do better. So does a
//! session that is closed, also while a beat is in flight.
//!
//! # Retry-After
//!
//! After a 429 or 503 with `Retry-After` (seconds or a date; five minutes at most) the next beat
//! comes no sooner than that, but at the latest when a third of the lease is left, and in time for
//! the reissue window. A 429 that says so is neither a failure for
//! [`max_failures`](Heartbeat::max_failures) nor a success; once there was no success for an hour,
//! and for ten periods, it counts.
//!
//! # Jobs that block
//!
//! A job that computes for half a minute on the runtime of its heartbeat holds up its beats, and
//! the refreshes of its session too. [`Heartbeat::spawn_thread`] runs both on a thread of their
//! own.

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

/// Settings of a heartbeat.
///
/// | setting | default |
/// | --- | --- |
/// | [`session`](Self::session) | the task's, if `spawn` is called in a [scope](Session::scope) |
/// | [`every`](Self::every) | 5 s |
/// | [`timeout`](Self::timeout) | 10 s |
/// | [`max_failures`](Self::max_failures) | no limit |
/// | [`lease`](Self::lease) | none |
/// | [`stop_on`](Self::stop_on) | no status |
/// | [`read_response`](Self::read_response) | the status alone |
/// | [`reissue_window`](Self::reissue_window) | none |
/// | [`wait_for_login`](Self::wait_for_login) | not at all |
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
    /// A heartbeat that sends what `beat` makes with the client, each time anew.
    pub fn new<F>(client: ClientWithMiddleware, beat: F) -> Self
    where
        F: Fn(&ClientWithMiddleware) -> RequestBuilder + Send + Sync + 'static,
    {
        Self::of(Source::Request { client, make: Box::new(beat) })
    }

    /// A heartbeat that calls `beat`: for what is no plain request, e.g. a generated client's
    /// method or a gRPC call. It runs in the session's [scope](Session::scope), and its future ends
    /// after [`timeout`](Self::timeout).
    ///
    /// An error is [`Beat::Failed`]. One of this crate's inside it is found, and its kind counts:
    /// [`LoginRequired`](ErrorKind::LoginRequired) ends the loop.
    ///
    /// ```no_run
    /// use reqwest_reauth::{Session, heartbeat::{Beat, Heartbeat}};
    ///
    /// # struct Jobs;
    /// # struct Answer { cancelled: bool }
    /// # impl Jobs { async fn alive(&self, id: u32) -> Result<Answer, std::io::Error> { todo!() } }
    /// # fn f(session: Session, jobs: std::sync::Arc<Jobs>) -> Result<(), reqwest_reauth::Error> {
    /// let heartbeat = Heartbeat::from_fn(move || {
    ///     let jobs = jobs.clone();
    ///     async move {
    ///         let answer = jobs.alive(7).await?;
    ///         Ok(if answer.cancelled { Beat::Stop("cancelled".into()) } else { Beat::Alive })
    ///     }
    /// });
    /// let handle = heartbeat.session(session).spawn()?;
    /// # Ok(())
    /// # }
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

    /// The session that the beats belong to. Each request carries it, unless the closure has given
    /// it another, so that a [scoped](crate::ClientBuilderExt::with_scoped_sessions) client knows
    /// it in the loop's own task; its token's expiry is what
    /// [`reissue_window`](Self::reissue_window) goes by; and the loop ends as soon as it is closed.
    /// Default: the task's where `spawn` is called, if there is one.
    pub fn session(mut self, session: Session) -> Self {
        self.session = Some(session);
        self
    }

    /// The period: from one beat's tick to the next. Default: 5 s, which is Airflow's.
    pub fn every(mut self, period: Duration) -> Self {
        self.rules.every = period;
        self
    }

    /// The most that one beat may take, its wait for a refresh, a replay and
    /// [`read_response`](Self::read_response) included. A refresh goes on when its beat has given
    /// up. Default: 10 s.
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.timeout = limit;
        self
    }

    /// Ends the loop after this many failed beats in a row. Default: it goes on for ever.
    pub fn max_failures(mut self, n: u32) -> Self {
        self.rules.max_failures = Some(n);
        self
    }

    /// Ends the loop with [`Stopped::LeaseLost`] when no beat that was *sent* within this time has
    /// succeeded, at that very moment, the beat in flight given up: for servers that give the job
    /// to another worker when they have heard nothing for so long. Before the first success it
    /// counts from `spawn`. Take off what the job needs to stop, and what its clock and the
    /// server's may differ by. The time that the machine was suspended counts. Must be longer than
    /// [`every`](Self::every). Default: none.
    pub fn lease(mut self, duration: Duration) -> Self {
        self.rules.lease = Some(duration);
        self
    }

    /// Ends the loop at once when the response to a beat has a status that this names, e.g. because
    /// the job is no longer wanted. It is asked about every response that arrives, those below 400
    /// included, except one that stands for a refresh that failed
    /// ([`OnRefreshFailure::ReturnResponse`](crate::OnRefreshFailure::ReturnResponse)). Default: no
    /// status does.
    pub fn stop_on(mut self, rule: impl Fn(StatusCode) -> bool + Send + Sync + 'static) -> Self {
        self.stop_on = Some(Box::new(rule));
        self
    }

    /// Reads the response of each beat, whatever its status, after the capture of its token and
    /// after [`stop_on`](Self::stop_on): servers say there that the job is cancelled, that the lease
    /// is lost, or how often they want a beat. `read` is handed the response and what the beat is
    /// without this rule: return that unless the body says more. Default: the status decides.
    ///
    /// Its time is within [`timeout`](Self::timeout). More than 1 MiB of a body cannot be read. An
    /// error or a panic is a failed beat.
    ///
    /// ```no_run
    /// use reqwest_reauth::heartbeat::{Beat, Heartbeat};
    ///
    /// # fn f(heartbeat: Heartbeat) -> Heartbeat {
    /// heartbeat.read_response(|response, beat| async move {
    ///     if !response.status().is_success() {
    ///         return Ok(beat);
    ///     }
    ///     let cancelled = response.text().await?.contains("cancel");
    ///     Ok(if cancelled { Beat::Stop("cancelled by a person".into()) } else { beat })
    /// })
    /// # }
    /// ```
    pub fn read_response<F, Fut>(mut self, read: F) -> Self
    where
        F: Fn(Response, Beat) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Beat, BoxError>> + Send + 'static,
    {
        self.read = Some(Box::new(move |response, beat| Box::pin(read(response, beat))));
        self
    }

    /// For a server that hands out a new token only once this fraction of the old one's life has
    /// passed: at least two beats fall between that and the token's end, whatever
    /// [`every`](Self::every) says. A beat that is moved forward takes the following ones with it.
    /// Needs a [`session`](Self::session), and works while the expiry of its token is known; a
    /// token that other requests have brought moves the beats at once. Default: none.
    ///
    /// Airflow's is 0.8. It rejects a token that has expired, and so a job whose period is longer
    /// than the last fifth of a token's life dies, unless it happens to beat at the right time
    /// (apache/airflow#67939).
    pub fn reissue_window(mut self, fraction: f64) -> Self {
        self.rules.reissue_window = Some(fraction);
        self
    }

    /// When a login is required, the beats pause for at most this long, and the loop goes on as
    /// soon as there is one: by [`Session::replace_tokens`], or in the session's store, which is
    /// looked into once a [cool-down](crate::SessionBuilder::cooldown). After that time the loop
    /// ends with [`Stopped::LoginRequired`]. A [lease](Self::lease) runs on meanwhile. Default: the
    /// loop ends at once.
    pub fn wait_for_login(mut self, limit: Duration) -> Self {
        self.rules.wait_for_login = Some(limit);
        self
    }

    /// Starts the loop as a task of its own on the present tokio runtime.
    ///
    /// # Errors
    /// [`InvalidConfig`](ErrorKind::InvalidConfig) if `every` or `timeout` is zero, `max_failures`
    /// is 0, `lease` is not longer than `every`, `reissue_window` is not between 0 and 1 or has no
    /// session, [`from_fn`](Self::from_fn) comes with `stop_on` or `read_response`, or there is no
    /// tokio runtime here.
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

    /// Starts the loop on a thread of its own, with a runtime of its own, which also runs the
    /// refreshes of its session until the loop ends, whatever
    /// [`SessionBuilder::runtime`](crate::SessionBuilder::runtime) says. Beats and refreshes go on
    /// while the job blocks its own runtime. The caller needs none.
    ///
    /// The client must be one that no other runtime uses, or be built with
    /// [`pool_max_idle_per_host(0)`](reqwest::ClientBuilder::pool_max_idle_per_host): an idle
    /// connection belongs to the runtime that opened it, and a beat that is sent over it waits for
    /// that runtime. The same holds for a client that was given to
    /// [`OAuthRefresh`](crate::OAuthRefresh).
    ///
    /// ```no_run
    /// use reqwest_reauth::{ClientBuilderExt, Error, Session, heartbeat::Heartbeat};
    ///
    /// # fn f(session: Session, base: &str) -> Result<(), Box<dyn std::error::Error>> {
    /// // A client for the beats alone; the job has its own, with the same session.
    /// let client = reqwest::Client::builder().pool_max_idle_per_host(0).build()?;
    /// let client = reqwest_middleware::ClientBuilder::new(client).with_session(session.clone()).build();
    /// let url = format!("{base}/heartbeat");
    /// let heartbeat = Heartbeat::new(client, move |client| client.put(&url)).session(session).spawn_thread()?;
    /// compute();
    /// drop(heartbeat);
    /// # Ok(())
    /// # }
    /// # fn compute() {}
    /// ```
    ///
    /// # Errors
    /// As [`spawn`](Self::spawn), without the last; [`Internal`](ErrorKind::Internal) if the system
    /// gives no thread.
    pub fn spawn_thread(self) -> Result<HeartbeatHandle, Error> {
        let (worker, handle, done) = self.start()?;
        thread::spawn(worker, done)?;
        Ok(handle)
    }

    /// The loop, still to be run.
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

    /// Whether the settings can work.
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
