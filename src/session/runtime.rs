//! Where the session's own work runs: refreshes and saves, which do not belong to a request.
//!
//! By default that is the runtime of the request that starts the work. A runtime that was shut down
//! is skipped.

use std::{
    collections::VecDeque,
    future::Future,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::runtime::Handle;

use super::Session;
use crate::{
    error::{Error, ErrorKind},
    time::within,
};

#[derive(Default)]
pub(super) struct Runtimes {
    chosen: Option<Handle>,
    /// The runtimes of heartbeats with their own thread, while their loops run.
    lent: Mutex<Vec<(u64, Handle)>>,
}

impl Runtimes {
    pub(super) fn new(chosen: Option<Handle>) -> Self {
        Self { chosen, lent: Mutex::default() }
    }

    /// The configured runtimes, in order of preference.
    fn named(&self) -> Vec<Handle> {
        let lent = self.lent.lock().unwrap_or_else(PoisonError::into_inner);
        lent.iter().rev().map(|(_, handle)| handle).chain(&self.chosen).cloned().collect()
    }
}

/// Keeps a session's work on one runtime until it is dropped.
#[must_use]
pub(crate) struct RefreshesHere {
    session: Session,
    number: u64,
}

impl Drop for RefreshesHere {
    fn drop(&mut self) {
        let mut lent = self.session.0.runtimes.lent.lock().unwrap_or_else(PoisonError::into_inner);
        lent.retain(|(number, _)| *number != self.number);
    }
}

impl Session {
    /// Runs the session's work on this runtime from now on, whatever
    /// [`SessionBuilder::runtime`](super::SessionBuilder::runtime) says.
    pub(crate) fn run_refreshes_on(&self, runtime: &Handle) -> RefreshesHere {
        static LENT: AtomicU64 = AtomicU64::new(0);
        let number = LENT.fetch_add(1, Ordering::Relaxed);
        let mut lent = self.0.runtimes.lent.lock().unwrap_or_else(PoisonError::into_inner);
        lent.push((number, runtime.clone()));
        RefreshesHere { session: self.clone(), number }
    }

    /// Starts a job on the first runtime that accepts it. If none does, the job is dropped.
    pub(super) fn spawn<J, F>(&self, job: J, run: fn(J) -> F)
    where
        J: Send + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let runtimes = self.0.runtimes.named().into_iter().chain(Handle::try_current());
        let pending = Pending { job: Some(job), run, runtimes: runtimes.collect() };
        pending.spawn();
    }

    /// Does work that the caller waits for on the configured runtime, if there is one. On the
    /// caller's own runtime, a caller that blocks would hold the store's lock.
    pub(super) async fn run_there<F>(&self, work: impl Fn(Session) -> F) -> Result<(), Error>
    where
        F: Future<Output = Result<(), Error>> + Send + 'static,
    {
        for runtime in self.0.runtimes.named() {
            let task = runtime.spawn(work(self.clone()));
            match within(self.longest_refresh(), task).await {
                Ok(Ok(done)) => return done,
                // The runtime was shut down.
                Ok(Err(_)) => {}
                Err(_) => {
                    return Err(Error::new(
                        ErrorKind::Store,
                        "the session's runtime makes no progress",
                    ));
                }
            }
        }
        work(self.clone()).await
    }
}

/// A job that has not started. If its runtime is shut down before that, the job is dropped there
/// and moves to the next runtime.
struct Pending<J, F>
where
    J: Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    job: Option<J>,
    run: fn(J) -> F,
    runtimes: VecDeque<Handle>,
}

impl<J, F> Pending<J, F>
where
    J: Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    fn spawn(mut self) {
        if let Some(runtime) = self.runtimes.pop_front() {
            runtime.spawn(async move {
                if let Some(job) = self.job.take() {
                    (self.run)(job).await;
                }
            });
        }
    }
}

impl<J, F> Drop for Pending<J, F>
where
    J: Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    fn drop(&mut self) {
        if self.job.is_some() && !self.runtimes.is_empty() {
            let (job, runtimes) = (self.job.take(), std::mem::take(&mut self.runtimes));
            Self { job, run: self.run, runtimes }.spawn();
        }
    }
}
