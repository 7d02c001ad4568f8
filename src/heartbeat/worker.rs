//! The loop. This module awaits; [`schedule`](super::schedule) and [`verdict`] decide.

use std::{
    future::pending,
    time::{Duration, SystemTime},
};

use http::StatusCode;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use super::{
    Failure, Health, Stopped,
    beat::{Beats, Came, Report},
    lease::{Lease, Moment},
    schedule::{self, Beaten, Cause, Schedule, View, later},
    suspend,
};
use crate::{
    error::{ErrorKind, printable},
    session::Session,
    session_state::SessionState,
    telemetry::{BeatTold, EndTold, Telemetry},
    time::wall,
};

/// How often a login is looked for without a session, whose cool-down would decide.
const LOOK_FOR_LOGIN: Duration = Duration::from_secs(10);

pub(super) struct Worker {
    pub(super) beats: Beats,
    pub(super) rules: Rules,
    pub(super) signals: Signals,
    pub(super) health: watch::Sender<Health>,
    /// The telemetry of a heartbeat without a session.
    pub(super) telemetry: Telemetry,
}

pub(super) struct Rules {
    pub(super) every: Duration,
    pub(super) max_failures: Option<u32>,
    pub(super) lease: Option<Duration>,
    pub(super) reissue_window: Option<f64>,
    pub(super) wait_for_login: Option<Duration>,
}

/// The command of the handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stop {
    No,
    /// After the beat in progress.
    AfterBeat,
    Now,
}

pub(super) struct Signals {
    pub(super) stop: watch::Receiver<Stop>,
    /// Counts the beats that were requested.
    pub(super) asked: watch::Receiver<u64>,
    /// How many of the requested beats are done.
    pub(super) served: watch::Sender<u64>,
}

/// What the loop keeps between beats.
struct Progress {
    schedule: Schedule,
    every: Duration,
    lease: Option<Lease>,
    /// The start of the last beat.
    last: Moment,
    /// The last success, or the start of the loop.
    last_success: Moment,
    /// The end of the wait for a login.
    login_limit: Option<Instant>,
    /// Whether a limited period has been reported.
    cut_told: bool,
    /// Set if the time of a suspend matters to the loop.
    woken: Option<watch::Receiver<()>>,
}

impl Worker {
    pub(super) async fn run(mut self) -> Stopped {
        let stopped = self.beat_until_stopped().await;
        let (reason, status, failures) = match &stopped {
            Stopped::ByServer { reason } => (Some(printable(reason)), None, None),
            Stopped::ByStatus { status } => (None, Some(*status), None),
            Stopped::TooManyFailures { failures } => (None, None, Some(*failures)),
            _ => (None, None, None),
        };
        self.telemetry().heartbeat_ended(&EndTold {
            stopped: stopped.name(),
            reason: reason.as_deref(),
            status,
            failures,
            is_fault: stopped.is_fault(),
        });
        stopped
    }

    pub(super) fn session(&self) -> Option<&Session> {
        self.beats.session.as_ref()
    }

    fn telemetry(&self) -> &Telemetry {
        self.beats.session.as_ref().map_or(&self.telemetry, Session::telemetry)
    }

    async fn beat_until_stopped(&mut self) -> Stopped {
        let start = Moment::now();
        let Rules { every, lease, reissue_window, .. } = self.rules;
        let mut progress = Progress {
            schedule: Schedule::new(start.monotonic(), every, lease, reissue_window),
            every,
            lease: lease.map(|length| Lease::new(length, start)),
            last: start,
            last_success: start,
            login_limit: None,
            cut_told: false,
            woken: (lease.is_some() || reissue_window.is_some()).then(suspend::subscribe),
        };
        let mut cause = Cause::Tick;
        loop {
            if self.signals.is_stopping() {
                return Stopped::Requested;
            }
            let stopped = match self.beat(&mut progress, cause).await {
                Ok(()) => self.wait(&mut progress).await,
                Err(stopped) => Err(stopped),
            };
            cause = match stopped {
                Ok(cause) => cause,
                Err(stopped) => return stopped,
            };
        }
    }

    /// Sends one beat and processes its result. Returns `Err` if it was the last.
    async fn beat(&mut self, progress: &mut Progress, cause: Cause) -> Result<(), Stopped> {
        let asked = *self.signals.asked.borrow_and_update();
        let (began, sent) = (Moment::now(), wall());
        progress.last = began;
        let lease_end = progress.lease.as_ref().map(|lease| lease.end(began));
        let session = self.beats.session.clone();
        let report = tokio::select! {
            biased;
            () = self.signals.aborted() => return Err(Stopped::Requested),
            () = closed(session.as_ref()) => return Err(Stopped::Closed {}),
            report = self.beats.beat() => report,
            () = at(lease_end) => return Err(Stopped::LeaseLost {}),
        };
        let now = Moment::now();
        let lease_lost = progress.lease.as_ref().is_some_and(|lease| lease.is_over(now));
        let alive = matches!(report.result, Came::Alive { .. });
        if alive && !lease_lost {
            progress.last_success = now;
            if let Some(lease) = &mut progress.lease {
                lease.renew(began);
            }
        }
        let failures = self.settle(&report, progress, began, now, sent);
        let reasons = Reasons {
            requested: self.signals.is_stopping(),
            closed: session.as_ref().is_some_and(|session| session.state() == SessionState::Closed),
            told: report.status.filter(|_| report.told),
            came: &report.result,
            waits_for_login: self.rules.wait_for_login.is_some(),
            lease_lost,
            too_many: self.rules.max_failures.is_some_and(|most| failures >= most),
            failures,
        };
        let stopped = verdict(&reasons);
        self.plan(progress, &report, cause, began, now);
        self.signals.served.send_replace(asked);
        stopped.map_or(Ok(()), Err)
    }

    /// Plans the next beat after this one.
    fn plan(
        &self,
        progress: &mut Progress,
        report: &Report,
        cause: Cause,
        began: Moment,
        now: Moment,
    ) {
        let beaten = Beaten {
            cause,
            began: began.monotonic(),
            now: now.monotonic(),
            failed: matches!(report.result, Came::Failed(_)),
            asked_wait: report.asked_wait,
            lease_end: progress.lease.as_ref().map(|lease| lease.end(now)),
            jitter: fastrand::f64(),
        };
        progress.schedule.beaten(&beaten);
        if let Came::Alive { every: Some(asked) } = report.result {
            let every = schedule::period(asked, self.rules.lease);
            progress.every = every;
            progress.schedule.set_every(every, &beaten);
            if every != asked && !std::mem::replace(&mut progress.cut_told, true) {
                self.telemetry().period_cut(asked, every);
            }
        }
        let login_required = is_login_required(&report.result);
        progress.login_limit = match (self.rules.wait_for_login, progress.login_limit) {
            (Some(limit), None) if login_required => Some(later(now.monotonic(), limit)),
            (_, limit) => limit.filter(|_| login_required),
        };
    }

    /// Records and reports the result of a beat. Returns the number of failures in a row.
    fn settle(
        &self,
        report: &Report,
        progress: &Progress,
        began: Moment,
        now: Moment,
        sent: SystemTime,
    ) -> u32 {
        let failure = match &report.result {
            Came::Failed(failure) => Some(failure),
            Came::Alive { .. } | Came::Stop(_) => None,
        };
        let text = failure.map(ToString::to_string);
        let pardoned = matches!(failure, Some(Failure::Status(StatusCode::TOO_MANY_REQUESTS)))
            && report.asked_wait.is_some()
            && schedule::is_pardoned(progress.every, now.since(progress.last_success));
        let mut failures = 0;
        self.health.send_modify(|health| {
            health.beats = health.beats.saturating_add(1);
            health.last_status = report.status.or(health.last_status);
            health.last_error.clone_from(&text);
            health.last_failure = failure.cloned();
            if failure.is_none() {
                health.consecutive_failures = 0;
                health.last_success = Some(wall());
                health.last_success_sent = Some(sent);
            } else if !pardoned {
                health.consecutive_failures = health.consecutive_failures.saturating_add(1);
            }
            failures = health.consecutive_failures;
        });
        self.telemetry().beat(&BeatTold {
            status: report.status,
            failures,
            failure: failure.map(Failure::name).zip(text.as_deref()),
            took: now.since(began),
        });
        if let Some(session) = &self.beats.session {
            session.tell_state();
        }
        if pardoned { 0 } else { failures }
    }

    /// Waits until the next beat is due.
    #[allow(clippy::disallowed_methods, reason = "it starts a beat, and gives nothing up")]
    async fn wait(&mut self, progress: &mut Progress) -> Result<Cause, Stopped> {
        if progress.login_limit.is_some() {
            return self.wait_for_login(progress).await;
        }
        let session = self.beats.session.clone();
        let Signals { stop, asked, .. } = &mut self.signals;
        loop {
            let now = Moment::now();
            let watched = session.as_ref().filter(|_| progress.schedule.watches_the_token());
            let times = watched.and_then(Session::token_times);
            let token = watched.and_then(Session::lifetime);
            let lease_end = progress.lease.as_ref().map(|lease| lease.end(now));
            let due = progress.schedule.due(&View {
                now: now.monotonic(),
                token,
                lease_end,
                suspended: now.suspended_since(progress.last),
            });
            tokio::select! {
                biased;
                () = stopping(stop) => return Err(Stopped::Requested),
                () = closed(session.as_ref()) => return Err(Stopped::Closed {}),
                () = at(lease_end) => return Err(Stopped::LeaseLost {}),
                Ok(()) = asked.changed() => return Ok(Cause::Now),
                // A token from another source has other places in its window.
                () = async {
                    match watched {
                        Some(session) => session.token_times_changed(times).await,
                        None => pending().await,
                    }
                } => {}
                () = woken(progress.woken.as_mut()) => {}
                () = sleep_until(due.at) => return Ok(due.cause),
            }
        }
    }

    /// Waits for another login after a login ended, or until the time for that is over.
    async fn wait_for_login(&mut self, progress: &mut Progress) -> Result<Cause, Stopped> {
        let session = self.beats.session.clone();
        let login = session.as_ref().map(Session::login_mark);
        let lease_end = progress.lease.as_ref().map(|lease| lease.end(Moment::now()));
        let Signals { stop, asked, .. } = &mut self.signals;
        tokio::select! {
            biased;
            () = stopping(stop) => Err(Stopped::Requested),
            () = closed(session.as_ref()) => Err(Stopped::Closed {}),
            () = async {
                match (&session, login) {
                    (Some(session), Some(login)) => session.login_changed(login).await,
                    _ => pending().await,
                }
            } => {
                progress.login_limit = None;
                Ok(Cause::Now)
            }
            () = at(progress.login_limit) => Err(Stopped::LoginRequired),
            () = at(lease_end) => Err(Stopped::LeaseLost {}),
            Ok(()) = asked.changed() => Ok(Cause::Now),
            // A beat shows whether there is a new login that the loop cannot see.
            () = look_for_login(session.as_ref()) => Ok(Cause::Now),
        }
    }
}

/// Reads the session's store once per cool-down while the session has no login.
async fn look_for_login(session: Option<&Session>) {
    let Some(session) = session.filter(|session| session.state() == SessionState::LoginRequired)
    else {
        return tokio::time::sleep(LOOK_FOR_LOGIN).await;
    };
    loop {
        session.look_for_login().await;
        tokio::time::sleep(session.cooldown()).await;
    }
}

async fn stopping(stop: &mut watch::Receiver<Stop>) {
    // An error means that the handle is gone.
    let _ = stop.wait_for(|stop| *stop != Stop::No).await;
}

/// Returns when the machine was suspended, so that the next beat is due sooner.
async fn woken(woken: Option<&mut watch::Receiver<()>>) {
    let noticed = match woken {
        Some(woken) => woken.changed().await.is_ok(),
        None => false,
    };
    if !noticed {
        pending::<()>().await;
    }
}

async fn closed(session: Option<&Session>) {
    match session {
        Some(session) => session.closed().await,
        None => pending().await,
    }
}

#[allow(clippy::disallowed_methods, reason = "a lease has no look (contract 11.6)")]
async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => pending().await,
    }
}

impl Signals {
    fn is_stopping(&self) -> bool {
        *self.stop.borrow() != Stop::No || self.stop.has_changed().is_err()
    }

    /// Returns on `abort`, which also ends the beat in progress. A dropped handle does not.
    async fn aborted(&mut self) {
        if self.stop.wait_for(|stop| *stop == Stop::Now).await.is_err() {
            pending::<()>().await;
        }
    }
}

/// The possible reasons to end after a beat.
#[allow(clippy::struct_excessive_bools, reason = "each is a reason of its own")]
struct Reasons<'a> {
    requested: bool,
    closed: bool,
    /// The status that `stop_on` matched.
    told: Option<StatusCode>,
    came: &'a Came,
    waits_for_login: bool,
    lease_lost: bool,
    too_many: bool,
    failures: u32,
}

/// Returns why the loop ends after a beat, if it does. Of several reasons the first applies.
fn verdict(reasons: &Reasons<'_>) -> Option<Stopped> {
    let kind = match reasons.came {
        Came::Failed(Failure::Auth(error)) => Some(error.kind()),
        _ => None,
    };
    let login_required = kind == Some(ErrorKind::LoginRequired);
    if reasons.requested {
        Some(Stopped::Requested)
    } else if reasons.closed || matches!(kind, Some(ErrorKind::Closed | ErrorKind::NoSession)) {
        Some(Stopped::Closed {})
    } else if let Came::Stop(reason) = reasons.came {
        Some(Stopped::ByServer { reason: reason.clone() })
    } else if let Some(status) = reasons.told {
        Some(Stopped::ByStatus { status })
    } else if login_required && !reasons.waits_for_login {
        Some(Stopped::LoginRequired)
    } else if reasons.lease_lost {
        Some(Stopped::LeaseLost {})
    } else if matches!(reasons.came, Came::Failed(_)) && reasons.too_many && !login_required {
        Some(Stopped::TooManyFailures { failures: reasons.failures })
    } else {
        None
    }
}

fn is_login_required(came: &Came) -> bool {
    matches!(came, Came::Failed(Failure::Auth(error)) if error.kind() == ErrorKind::LoginRequired)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    const GONE: StatusCode = StatusCode::GONE;

    fn all(came: &Came) -> Reasons<'_> {
        Reasons {
            requested: true,
            closed: true,
            told: Some(GONE),
            came,
            waits_for_login: false,
            lease_lost: true,
            too_many: true,
            failures: 3,
        }
    }

    #[test]
    fn of_several_reasons_the_first_counts() {
        let stop = Came::Stop("cancel".to_owned());
        let auth = |kind| Came::Failed(Failure::Auth(Error::of(kind)));
        let login = auth(ErrorKind::LoginRequired);
        let alive = Came::Alive { every: None };
        let (by_server, by_status) =
            (Stopped::ByServer { reason: "cancel".to_owned() }, Stopped::ByStatus { status: GONE });
        let too_many = Stopped::TooManyFailures { failures: 3 };
        let no_token = auth(ErrorKind::Unavailable);
        let table = [
            (all(&stop), Some(Stopped::Requested)),
            (Reasons { requested: false, ..all(&stop) }, Some(Stopped::Closed {})),
            (Reasons { requested: false, closed: false, ..all(&stop) }, Some(by_server)),
            (Reasons { requested: false, closed: false, ..all(&login) }, Some(by_status.clone())),
            (Reasons { requested: false, closed: false, ..all(&alive) }, Some(by_status)),
            (
                Reasons { requested: false, closed: false, told: None, ..all(&login) },
                Some(Stopped::LoginRequired),
            ),
            (
                Reasons {
                    requested: false,
                    closed: false,
                    told: None,
                    waits_for_login: true,
                    ..all(&login)
                },
                Some(Stopped::LeaseLost {}),
            ),
            (
                Reasons {
                    requested: false,
                    closed: false,
                    told: None,
                    waits_for_login: true,
                    lease_lost: false,
                    ..all(&login)
                },
                None,
            ),
            (
                Reasons { requested: false, closed: false, told: None, ..all(&alive) },
                Some(Stopped::LeaseLost {}),
            ),
            (
                Reasons {
                    requested: false,
                    closed: false,
                    told: None,
                    lease_lost: false,
                    ..all(&no_token)
                },
                Some(too_many),
            ),
            (
                Reasons {
                    requested: false,
                    closed: false,
                    told: None,
                    lease_lost: false,
                    ..all(&alive)
                },
                None,
            ),
        ];
        for (number, (reasons, expected)) in table.iter().enumerate() {
            assert_eq!(verdict(reasons), *expected, "row {number}");
        }
        for kind in [ErrorKind::Closed, ErrorKind::NoSession] {
            let came = auth(kind);
            let reasons = Reasons { requested: false, closed: false, ..all(&came) };
            assert_eq!(verdict(&reasons), Some(Stopped::Closed {}), "{kind:?}");
        }
    }
}
