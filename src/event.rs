//! What a session did, told to listeners and to `tracing`. Nothing here can change what happens.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use http::StatusCode;

use crate::error::Error;

/// Something that a session did. Told to the listeners of
/// [`SessionBuilder::on_event`](crate::SessionBuilder::on_event), and to `tracing` under the target
/// `reqwest_reauth`.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// The API replaced the token through the response header.
    Captured {
        /// The session's generation with the new token.
        generation: u64,
    },
    /// An answer carried the header, and it was not taken.
    CaptureIgnored {
        /// Why not.
        reason: CaptureIgnored,
    },
    /// A refresh begins. Unless a new login or a logout overtakes it, `Refreshed` or
    /// `RefreshFailed` follows.
    RefreshStarted {
        /// The generation to be renewed.
        generation: u64,
    },
    /// An attempt of the refresh failed, and another follows.
    RefreshRetrying {
        /// The attempt that failed, from 1.
        attempt: u32,
        /// How long until the next.
        delay: Duration,
        /// What the token endpoint answered, if it did.
        status: Option<StatusCode>,
    },
    /// A refresh brought a token.
    Refreshed {
        /// The session's generation with the new token.
        generation: u64,
        /// How many times the token endpoint was asked: 0 when the token came from the store.
        attempts: u32,
    },
    /// A refresh ended without a token.
    RefreshFailed {
        /// Why.
        error: Error,
    },
    /// A rejected request was sent again.
    Replayed {
        /// The generation it was sent again with.
        generation: u64,
        /// What the API answered this time.
        status: StatusCode,
    },
    /// A rejected request was not sent again.
    NotReplayed {
        /// Why not.
        reason: NotReplayed,
    },
    /// The token store failed. The request goes on.
    StoreFailed {
        /// Why.
        error: Error,
    },
}

/// Why a token in a response header was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CaptureIgnored {
    /// The answer came from somewhere that is none of the session's origins, e.g. after a redirect.
    UntrustedOrigin,
    /// The value is no token: empty, over 64 KiB, several, or with other characters than visible
    /// ASCII.
    Malformed,
    /// The session has had another token since the request was sent: a late answer never undoes a
    /// newer token.
    Superseded,
    /// It is the token that the session has already.
    Unchanged,
}

/// Why a rejected request was not sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NotReplayed {
    /// Its body is a stream, and no [`ReplayBody`](crate::ReplayBody) can make a fresh one.
    BodyNotReplayable,
    /// It has been sent again once already.
    AlreadyReplayed,
    /// [`SessionBuilder::replay_if`](crate::SessionBuilder::replay_if) said no.
    RuledOut,
}

type Listener = Arc<dyn Fn(&Event) + Send + Sync>;

/// A session's listeners.
#[derive(Clone, Default)]
pub(crate) struct Listeners(Vec<Listener>);

impl Listeners {
    pub(crate) fn add(&mut self, listener: impl Fn(&Event) + Send + Sync + 'static) {
        self.0.push(Arc::new(listener));
    }

    /// Tells everybody. Never call it with a lock held: a listener may use the session.
    pub(crate) fn emit(&self, event: &Event) {
        event.trace();
        for listener in &self.0 {
            // A listener's panic is its own: an observer cannot change what happens.
            if catch_unwind(AssertUnwindSafe(|| listener(event))).is_err() {
                tracing::error!(target: "reqwest_reauth", "an event listener panicked");
            }
        }
    }
}

impl Event {
    fn trace(&self) {
        match self {
            Event::Captured { generation } => {
                tracing::debug!(target: "reqwest_reauth", generation, "token captured");
            }
            Event::CaptureIgnored { reason } => {
                tracing::debug!(target: "reqwest_reauth", ?reason, "token header ignored");
            }
            Event::RefreshStarted { generation } => {
                tracing::debug!(target: "reqwest_reauth", generation, "token refresh started");
            }
            Event::RefreshRetrying { attempt, delay, status } => {
                let status = status.map(|status| status.as_u16());
                tracing::warn!(target: "reqwest_reauth", attempt, ?delay, status, "token refresh attempt failed");
            }
            Event::Refreshed { generation, attempts } => {
                tracing::info!(target: "reqwest_reauth", generation, attempts, "token refreshed");
            }
            Event::RefreshFailed { error } => {
                tracing::warn!(target: "reqwest_reauth", %error, "token refresh failed");
            }
            Event::Replayed { generation, status } => {
                tracing::debug!(target: "reqwest_reauth", generation, status = status.as_u16(), "request replayed");
            }
            Event::NotReplayed { reason } => {
                tracing::debug!(target: "reqwest_reauth", ?reason, "rejected request not replayed");
            }
            Event::StoreFailed { error } => {
                let cause = std::error::Error::source(error).map(tracing::field::display);
                tracing::warn!(target: "reqwest_reauth", %error, cause, "token store failed");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{Mutex, MutexGuard, PoisonError},
    };

    use super::*;
    use crate::error::ErrorKind;

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
                "WARN reqwest_reauth: token refresh attempt failed attempt=1 delay=2s status=502",
            ),
            (
                Event::Refreshed { generation: 8, attempts: 2 },
                "INFO reqwest_reauth: token refreshed generation=8 attempts=2",
            ),
            (
                Event::RefreshFailed { error: error() },
                "WARN reqwest_reauth: token refresh failed error=the token store failed",
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
            let log = Log::default();
            let to = log.clone();
            let subscriber = tracing_subscriber::fmt()
                .with_max_level(tracing::Level::DEBUG)
                .with_ansi(false)
                .without_time();
            let subscriber = subscriber.with_writer(move || to.clone()).finish();
            tracing::subscriber::with_default(subscriber, || Listeners::default().emit(&event));
            assert_eq!(String::from_utf8_lossy(&log.lock()).trim(), line);
        }
    }
}
