//! The events for `tracing`, all under one target.

use std::{error::Error as StdError, time::Duration};

use http::StatusCode;

use super::{BeatTold, EndTold, repeats::Volume};
use crate::{
    error::{Error, ErrorKind},
    event::Event,
};

/// Logs a failure at the level of its volume. A loud failure reports how many it stands for.
macro_rules! failure {
    ($volume:expr, $session:expr, $($rest:tt)*) => {
        match $volume {
            Volume::Aloud { count } => {
                tracing::warn!(target: "reqwest_reauth", session = $session, count, $($rest)*);
            }
            Volume::Quiet => {
                tracing::debug!(target: "reqwest_reauth", session = $session, $($rest)*);
            }
        }
    };
}

macro_rules! debug {
    ($session:expr, $($rest:tt)*) => {
        tracing::debug!(target: "reqwest_reauth", session = $session, $($rest)*)
    };
}

macro_rules! info {
    ($session:expr, $($rest:tt)*) => {
        tracing::info!(target: "reqwest_reauth", session = $session, $($rest)*)
    };
}

#[cfg(feature = "dpop")]
pub(super) fn nonce_repeat(session: Option<&str>) {
    debug!(session, "request repeated with a new nonce");
}

pub(super) fn event(session: Option<&str>, event: &Event, volume: Volume) {
    match event {
        Event::Captured { generation } => debug!(session, generation, "token captured"),
        Event::CaptureIgnored { reason } => debug!(session, ?reason, "token header ignored"),
        Event::RefreshStarted { generation } => {
            debug!(session, generation, "token refresh started");
        }
        Event::RefreshRetrying { attempt, delay, status } => {
            let (delay, status) = (delay.as_secs_f64(), status.as_ref().map(StatusCode::as_u16));
            failure!(volume, session, attempt, delay, status, "token refresh attempt failed");
        }
        Event::Refreshed { generation, attempts } => {
            info!(session, generation, attempts, "token refreshed");
        }
        Event::RefreshFailed { error } if is_lost_login(error) => {
            let cause = cause(error);
            tracing::error!(target: "reqwest_reauth", session, %error, cause, "the login is lost");
        }
        Event::RefreshFailed { error } => {
            let cause = cause(error);
            failure!(volume, session, %error, cause, "token refresh failed");
        }
        Event::Replayed { generation, status } => {
            debug!(session, generation, status = status.as_u16(), "request replayed");
        }
        Event::NotReplayed { reason } => {
            debug!(session, ?reason, "rejected request not replayed");
        }
        Event::StoreFailed { error } => {
            let cause = cause(error);
            failure!(volume, session, %error, cause, "token store failed");
        }
        Event::CallerAuthorization {} => {
            const TEXT: &str = "a request with an Authorization header of its own is left alone";
            match volume {
                Volume::Aloud { .. } => info!(session, "{TEXT}"),
                Volume::Quiet => debug!(session, "{TEXT}"),
            }
        }
        Event::StoredLoginAdopted { generation } => {
            info!(session, generation, "a login from the store is adopted");
        }
        Event::StoredLoginIgnored { thumbprint } => {
            tracing::warn!(target: "reqwest_reauth", session, thumbprint, "the stored login is bound to another key");
        }
        Event::FellBack { error } => {
            tracing::warn!(target: "reqwest_reauth", session, %error, "the fallback grant is used");
        }
        Event::RevocationFailed { error } => {
            let cause = cause(error);
            tracing::warn!(target: "reqwest_reauth", session, %error, cause, "a token was not revoked");
        }
    }
}

/// Whether the error ends a login that existed.
fn is_lost_login(error: &Error) -> bool {
    error.kind() == ErrorKind::LoginRequired && !error.nothing_to_ask_with()
}

fn cause(error: &Error) -> Option<tracing::field::DisplayValue<&dyn StdError>> {
    error.source().map(|cause| tracing::field::display(cause as &dyn StdError))
}

pub(super) fn listener_panicked(session: Option<&str>, volume: Volume) {
    failure!(volume, session, "an event listener panicked");
}

pub(super) fn beat(session: Option<&str>, beat: &BeatTold<'_>, volume: Volume) {
    let status = beat.status.as_ref().map(StatusCode::as_u16);
    if let Some((_, error)) = beat.failure {
        failure!(volume, session, status, failures = beat.failures, error, "heartbeat failed");
    } else {
        debug!(session, status, "heartbeat");
    }
}

pub(super) fn heartbeat_ended(session: Option<&str>, end: &EndTold<'_>) {
    let EndTold { stopped, reason, failures, .. } = *end;
    let status = end.status.as_ref().map(StatusCode::as_u16);
    if end.is_fault {
        tracing::warn!(target: "reqwest_reauth", session, stopped, reason, status, failures, "heartbeat ended");
    } else {
        info!(session, stopped, reason, status, failures, "heartbeat ended");
    }
}

pub(super) fn period_cut(session: Option<&str>, asked: Duration, period: Duration) {
    let (asked, period) = (asked.as_secs_f64(), period.as_secs_f64());
    tracing::warn!(target: "reqwest_reauth", session, asked, period, "the server's heartbeat period is cut");
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError},
        time::Duration,
    };

    use super::*;
    use crate::{
        event::{CaptureIgnored, NotReplayed},
        telemetry::Telemetry,
    };

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl Log {
        fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner)
        }
    }

    impl io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.lock().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn each_event_is_a_line_for_tracing() {
        let error = || Error::new(ErrorKind::Store, "the cause");
        let delay = Duration::from_secs(2);
        let status = StatusCode::BAD_GATEWAY;
        let table = [
            (
                Event::Captured { generation: 7 },
                "DEBUG reqwest_reauth: token captured generation=7",
            ),
            (
                Event::CaptureIgnored { reason: CaptureIgnored::Malformed },
                "DEBUG reqwest_reauth: token header ignored reason=Malformed",
            ),
            (
                Event::RefreshStarted { generation: 7 },
                "DEBUG reqwest_reauth: token refresh started generation=7",
            ),
            (
                Event::RefreshRetrying { attempt: 1, delay, status: Some(status) },
                "WARN reqwest_reauth: token refresh attempt failed attempt=1 delay=2.0 status=502",
            ),
            (
                Event::Refreshed { generation: 8, attempts: 2 },
                "INFO reqwest_reauth: token refreshed generation=8 attempts=2",
            ),
            (
                Event::RefreshFailed { error: error() },
                "WARN reqwest_reauth: token refresh failed error=the token store failed cause=the cause",
            ),
            (
                Event::Replayed { generation: 8, status },
                "DEBUG reqwest_reauth: request replayed generation=8 status=502",
            ),
            (
                Event::NotReplayed { reason: NotReplayed::RuledOut },
                "DEBUG reqwest_reauth: rejected request not replayed reason=RuledOut",
            ),
            (
                Event::StoreFailed { error: error() },
                "WARN reqwest_reauth: token store failed error=the token store failed cause=the cause",
            ),
        ];
        for (event, line) in table {
            assert_eq!(logged(|| Telemetry::default().event(&event)), [line]);
        }
    }

    /// As in `tests/support`.
    fn every_thread_may_listen() {
        static KEPT: LazyLock<[tracing::Dispatch; 2]> = LazyLock::new(|| {
            std::array::from_fn(|_| tracing::Dispatch::new(tracing_subscriber::registry()))
        });
        LazyLock::force(&KEPT);
    }

    /// The lines that `tell` logs.
    fn logged(tell: impl FnOnce()) -> Vec<String> {
        let log = Log::default();
        let to = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::DEBUG)
            .with_ansi(false)
            .without_time();
        let subscriber = subscriber.with_writer(move || to.clone()).finish();
        every_thread_may_listen();
        tracing::subscriber::with_default(subscriber, tell);
        let text = String::from_utf8_lossy(&log.lock()).into_owned();
        text.lines().map(|line| line.trim().to_owned()).collect()
    }

    #[test]
    fn a_name_is_on_every_line() {
        let telemetry = Telemetry::new(Some("seqera".to_owned()));
        let beat = |failure| BeatTold {
            status: Some(StatusCode::BAD_GATEWAY),
            failures: 3,
            failure,
            took: Duration::ZERO,
        };
        let lines = logged(|| {
            telemetry.event(&Event::Captured { generation: 7 });
            telemetry.beat(&beat(None));
            telemetry.beat(&beat(Some(("status", "the api returned 502 Bad Gateway"))));
            telemetry.listener_panicked();
        });
        let expected = [
            "DEBUG reqwest_reauth: token captured session=\"seqera\" generation=7",
            "DEBUG reqwest_reauth: heartbeat session=\"seqera\" status=502",
            "WARN reqwest_reauth: heartbeat failed session=\"seqera\" status=502 failures=3 error=\"the api returned 502 Bad Gateway\"",
            "WARN reqwest_reauth: an event listener panicked session=\"seqera\"",
        ];
        assert_eq!(lines, expected);
    }

    #[tokio::test(start_paused = true)]
    async fn refresh_failures_share_a_line_a_minute() {
        let telemetry = Telemetry::default();
        let status = Some(StatusCode::BAD_GATEWAY);
        let delay = Duration::from_secs(1);
        let attempt = Event::RefreshRetrying { attempt: 1, delay, status };
        let end = Event::RefreshFailed { error: Error::of(ErrorKind::Unavailable) };
        let level = |event| logged(|| telemetry.event(event))[0][..5].trim().to_owned();
        assert_eq!(level(&attempt), "WARN");
        assert_eq!(level(&attempt), "DEBUG");
        assert_eq!(level(&end), "DEBUG");
        tokio::time::advance(Duration::from_secs(60)).await;
        let line = logged(|| telemetry.event(&end)).remove(0);
        assert_eq!(
            line,
            "WARN reqwest_reauth: token refresh failed count=3 error=the token endpoint is unavailable"
        );
    }

    #[test]
    fn a_lost_login_is_an_error_each_time() {
        let telemetry = Telemetry::default();
        let lost = Error::of(ErrorKind::LoginRequired);
        let level = |error: &Error| {
            let event = Event::RefreshFailed { error: error.clone() };
            logged(|| telemetry.event(&event))[0][..5].to_owned()
        };
        assert_eq!(level(&lost), "ERROR");
        assert_eq!(level(&lost), "ERROR");
        let nothing = Error::of(ErrorKind::LoginRequired).with_nothing_to_ask_with();
        assert_ne!(level(&nothing), "ERROR");
    }

    #[test]
    fn a_callers_own_header_is_told_at_info_once() {
        let telemetry = Telemetry::default();
        let told = logged(|| {
            for _ in 0..3 {
                telemetry.event(&Event::CallerAuthorization {});
            }
        });
        let levels: Vec<_> = told.iter().map(|line| line.split(' ').next()).collect();
        assert_eq!(levels, [Some("INFO"), Some("DEBUG"), Some("DEBUG")]);
    }

    #[test]
    fn a_subscriber_that_panics_changes_nothing() {
        let subscriber = tracing_subscriber::fmt()
            .with_writer(|| -> io::Sink { panic!("a writer panics, as the test says") })
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            Telemetry::default()
                .event(&Event::RefreshFailed { error: Error::of(ErrorKind::Unavailable) });
        });
    }
}
