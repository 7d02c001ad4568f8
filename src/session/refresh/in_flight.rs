//! What a refresh shares with its waiters.

use std::{
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    runtime::Id,
    sync::{Notify, futures::Notified, watch},
    time::Instant,
};

use super::work::Work;
use crate::{
    error::{Error, ErrorKind},
    store::StoreLock,
    token::RefreshToken,
};

/// How a refresh ends for its waiters: it obtained a token, a `replace_tokens` or `clear`
/// superseded it, or it failed.
pub(in crate::session) type RefreshResult = Result<Ending, Error>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    Refreshed,
    Superseded,
}

/// A refresh in progress, as the session's state holds it.
pub(crate) struct InFlight {
    outcome: OnceLock<RefreshResult>,
    /// See [`changed`](Self::changed). Not a `watch`, whose waiters are almost twice as large.
    changed: Notify,
    waiters: AtomicUsize,
    watches: Mutex<Vec<Watch>>,
    /// The outcome as soon as it is known. The waiters get it after the listeners.
    decided: OnceLock<RefreshResult>,
    /// The `login` of the session's state at the start.
    login: u64,
    /// The generation that is being refreshed.
    generation: u64,
    /// Notified when `replace_tokens` or `clear` supersedes the refresh, whose result is then
    /// discarded.
    superseded: Notify,
    /// The store's lock while the refresh holds it. The session's other saves use it too.
    lock: Mutex<Option<StoreLock>>,
    /// Set if a logout superseded the refresh: the time by which its tokens are revoked.
    logged_out: OnceLock<Instant>,
    /// Whether the task has ended. The waiters may be released before that.
    ended: watch::Sender<bool>,
    /// The refresh token that may have been sent, until the response to it is known.
    unanswered: Mutex<Option<RefreshToken>>,
    /// The failure of another process, and for how long it prevents calls to the token endpoint.
    stands_back: OnceLock<(Error, Duration)>,
    work: Work,
}

impl InFlight {
    pub(in crate::session) fn new(login: u64, generation: u64) -> Self {
        Self {
            outcome: OnceLock::new(),
            changed: Notify::new(),
            waiters: AtomicUsize::new(0),
            watches: Mutex::default(),
            decided: OnceLock::new(),
            login,
            generation,
            superseded: Notify::new(),
            lock: Mutex::default(),
            logged_out: OnceLock::new(),
            ended: watch::Sender::new(false),
            unanswered: Mutex::default(),
            stands_back: OnceLock::new(),
            work: Work::default(),
        }
    }

    /// Records the outcome before the session's state shows that the refresh has ended. A request
    /// that started it then knows how, even while a listener is being told. Returns whether it is
    /// the first outcome, which counts.
    pub(in crate::session) fn decide(&self, outcome: &RefreshResult) -> bool {
        self.decided.set(outcome.clone()).is_ok()
    }

    /// Releases the waiters, unless they have been released already.
    pub(in crate::session) fn resolve(&self, outcome: RefreshResult) {
        if self.outcome.set(outcome).is_ok() {
            self.changed.notify_waiters();
        }
    }

    /// Records that a new login or a logout supersedes the refresh. The waiters continue with that,
    /// and the call is abandoned.
    pub(in crate::session) fn supersede(&self, outcome: RefreshResult) {
        self.resolve(outcome);
        self.superseded.notify_one();
    }

    /// Records that a logout is about to supersede the refresh. The call continues until this time,
    /// and its tokens are revoked.
    pub(in crate::session) fn log_out(&self, revoked_by: Instant) {
        let _ = self.logged_out.set(revoked_by);
    }

    /// The time by which the tokens are revoked, if a logout has superseded the refresh.
    pub(in crate::session) fn revoked_by(&self) -> Option<Instant> {
        self.logged_out.get().copied()
    }

    /// Notified when the outcome is set, and when the last waiter leaves.
    pub(super) fn changed(&self) -> Notified<'_> {
        self.changed.notified()
    }

    /// Counts a waiter until the result is dropped.
    pub(super) fn count_waiter(&self) -> Waits<'_> {
        self.waiters.fetch_add(1, Ordering::SeqCst);
        Waits(self)
    }

    /// Whether somebody waits for the outcome.
    pub(super) fn is_awaited(&self) -> bool {
        self.resolved().is_none() && self.waiters.load(Ordering::SeqCst) > 0
    }

    /// Claims the watch for a runtime. Returns how long that runtime has watched before, or `None`
    /// if it watches already.
    pub(super) fn claim_watch(&self, runtime: Id) -> Option<Duration> {
        let mut watches = self.watches.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(watch) = watches.iter_mut().find(|watch| watch.runtime == runtime) {
            return watch.ended_after.take();
        }
        watches.push(Watch { runtime, ended_after: None });
        Some(Duration::ZERO)
    }

    /// Frees a runtime's watch if nobody waits. A waiter that comes later claims it again.
    pub(super) fn free_watch(&self, runtime: Id, ran: Duration) -> bool {
        let mut watches = self.watches.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_awaited() {
            return false;
        }
        if let Some(watch) = watches.iter_mut().find(|watch| watch.runtime == runtime) {
            watch.ended_after = Some(ran);
        }
        true
    }

    /// Waits until the task has ended and has saved everything.
    pub(in crate::session) async fn ended(&self) {
        let _ = self.ended.subscribe().wait_for(|ended| *ended).await;
    }

    /// A share of the store's lock, if the refresh holds it.
    pub(in crate::session) fn lock(&self) -> Option<StoreLock> {
        self.lock.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(StoreLock::share)
    }

    /// The outcome, if there is one.
    pub(in crate::session) fn outcome(&self) -> Option<RefreshResult> {
        self.outcome.get().or_else(|| self.decided.get()).cloned()
    }

    /// Records the refresh token that is being sent, or that the response to it is known.
    pub(super) fn set_unanswered(&self, refresh: Option<RefreshToken>) {
        *self.unanswered.lock().unwrap_or_else(PoisonError::into_inner) = refresh;
    }

    /// The refresh token that a call with a lost response may have spent.
    pub(in crate::session) fn unanswered(&self) -> Option<RefreshToken> {
        self.unanswered.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Records that the refresh makes no call, because another process has failed with this error.
    pub(super) fn stand_back(&self, cause: Error, left: Duration) {
        let _ = self.stands_back.set((cause, left));
    }

    /// Why no call is made to the token endpoint, and for how long.
    pub(in crate::session) fn stands_back(&self) -> Option<&(Error, Duration)> {
        self.stands_back.get()
    }

    /// Adds to an error that a call with a lost response may have spent the refresh token.
    pub(super) fn mark(&self, error: Error) -> Error {
        if self.unanswered().is_some() { error.with_possibly_consumed() } else { error }
    }

    pub(super) fn work(&self) -> &Work {
        &self.work
    }

    /// The outcome, if the waiters are released.
    pub(super) fn resolved(&self) -> Option<&RefreshResult> {
        self.outcome.get()
    }

    /// Waits until a new login or a logout supersedes the refresh.
    pub(in crate::session) async fn superseded(&self) {
        self.superseded.notified().await;
    }

    /// Records that the task has ended.
    pub(in crate::session) fn end(&self) {
        self.ended.send_replace(true);
    }

    pub(in crate::session) fn generation(&self) -> u64 {
        self.generation
    }

    pub(in crate::session) fn login(&self) -> u64 {
        self.login
    }

    /// Takes over the store's lock, or releases it. The next holder learns whether a response was
    /// lost.
    pub(in crate::session) fn set_lock(&self, lock: Option<StoreLock>) {
        let before = {
            let mut held = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *held, lock)
        };
        if let Some(before) = before
            && self.unanswered().is_none()
        {
            before.responded();
        }
    }
}

/// A runtime that has a watchdog, or had one.
struct Watch {
    runtime: Id,
    /// How long its last watchdog has watched, if that has ended.
    ended_after: Option<Duration>,
}

/// A waiter, for as long as it waits.
pub(super) struct Waits<'a>(&'a InFlight);

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        let is_last = self.0.waiters.fetch_sub(1, Ordering::SeqCst) == 1;
        if is_last && self.0.resolved().is_none() {
            self.0.changed.notify_waiters();
        }
    }
}

impl AsRef<Work> for InFlight {
    fn as_ref(&self) -> &Work {
        &self.work
    }
}

pub(in crate::session) fn broken_off() -> Error {
    Error::new(ErrorKind::Internal, "the runtime of the refresh was shut down")
}
