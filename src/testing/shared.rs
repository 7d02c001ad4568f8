//! The state that the two endpoints, their handlers and the [`AuthServer`](super::AuthServer)
//! share.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError, atomic::AtomicUsize},
    time::{Duration, SystemTime},
};

use http::StatusCode;
use tokio::sync::watch;

use super::{
    answer::Answer,
    grants::Grants,
    hold::Gate,
    log::Log,
    settings::{Refusal, Settings},
};

/// The state that the handlers and the [`AuthServer`](super::AuthServer) share.
pub(super) struct Shared {
    pub(super) settings: Settings,
    /// `http://127.0.0.1:PORT`.
    pub(super) origin: String,
    pub(super) api_gate: Gate,
    pub(super) token_gate: Gate,
    /// Becomes `true` when the server is dropped.
    pub(super) stopped: watch::Sender<bool>,
    pub(super) calls_now: AtomicUsize,
    pub(super) calls_max: AtomicUsize,
    clock: Clock,
    state: Mutex<State>,
}

pub(super) struct State {
    pub(super) grants: Grants,
    pub(super) log: Log,
    pub(super) api_script: VecDeque<Answer>,
    pub(super) token_script: VecDeque<Answer>,
    /// Scripted rejections: how many, and with which status.
    pub(super) refuse_next: VecDeque<(usize, StatusCode)>,
    /// The number of further responses that carry a new token.
    pub(super) reissue_next: usize,
    pub(super) logins: u64,
    #[cfg(feature = "dpop")]
    pub(super) dpop: Option<super::dpop::Judge>,
}

impl Shared {
    pub(super) fn new(settings: Settings, origin: String) -> Self {
        let state = State {
            grants: Grants::new(settings.clone()),
            log: Log::default(),
            api_script: VecDeque::new(),
            token_script: VecDeque::new(),
            refuse_next: VecDeque::new(),
            reissue_next: 0,
            logins: 0,
            #[cfg(feature = "dpop")]
            dpop: settings.dpop.clone().map(super::dpop::Judge::new),
        };
        Self {
            settings,
            origin,
            api_gate: Gate::new(),
            token_gate: Gate::new(),
            stopped: watch::Sender::new(false),
            calls_now: AtomicUsize::new(0),
            calls_max: AtomicUsize::new(0),
            clock: Clock::start(),
            state: Mutex::new(state),
        }
    }

    /// The guard must not be held across an await.
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Seconds since the epoch, by the server's clock.
    pub(super) fn now(&self) -> f64 {
        self.clock.now()
    }

    pub(super) fn refusal_status(&self) -> StatusCode {
        match self.settings.refusal {
            Refusal::Unauthorized401 => StatusCode::UNAUTHORIZED,
            Refusal::Forbidden403 => StatusCode::FORBIDDEN,
        }
    }

    pub(super) async fn stopped(&self) {
        // `self` holds the sender, so the wait cannot fail.
        let _ = self.stopped.subscribe().wait_for(|&stopped| stopped).await;
    }

    /// Waits this long, or until the server is dropped.
    pub(super) async fn pause(&self, length: Duration) {
        tokio::select! {
            () = tokio::time::sleep(length) => {}
            () = self.stopped() => {}
        }
    }
}

/// The wall clock plus the time by which a test has advanced tokio's clock. A token therefore
/// expires at the same time for the server and for a session on the same runtime.
struct Clock {
    tokio: tokio::time::Instant,
    real: std::time::Instant,
}

impl Clock {
    fn start() -> Self {
        Self { tokio: tokio::time::Instant::now(), real: std::time::Instant::now() }
    }

    fn now(&self) -> f64 {
        let ahead = self.tokio.elapsed().saturating_sub(self.real.elapsed());
        wall() + ahead.as_secs_f64()
    }
}

/// Seconds since the epoch, by the wall clock.
pub(super) fn wall() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}
