//! A heartbeat on a separate thread, for jobs that block their runtime.

use std::{thread, time::Duration};

use tokio::{
    runtime::{Builder, Runtime},
    sync::watch,
    time::{Instant, sleep},
};

use super::{Stopped, worker::Worker};
use crate::{
    error::{Error, ErrorKind},
    session::Session,
};

/// How long the thread waits for a refresh if its session is not known.
const LONGEST_REFRESH: Duration = Duration::from_secs(120);
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Runs the loop, and the refreshes of its session until the loop ends.
pub(super) fn spawn(worker: Worker, done: watch::Sender<Option<Stopped>>) -> Result<(), Error> {
    let runtime = Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Error::new(ErrorKind::Internal, error))?;
    let session = worker.session().cloned();
    let refreshes = session.as_ref().map(|session| session.run_refreshes_on(runtime.handle()));
    let run = move || {
        let stopped = runtime.block_on(worker.run());
        drop(refreshes);
        done.send_replace(Some(stopped));
        drop(done);
        wind_up(&runtime, session.as_ref());
    };
    thread::Builder::new()
        .name("reauth-heartbeat".to_owned())
        .spawn(run)
        .map(drop)
        .map_err(|error| Error::new(ErrorKind::Internal, error))
}

/// Waits for a refresh on this thread, because the token endpoint may have spent the refresh token.
fn wind_up(runtime: &Runtime, session: Option<&Session>) {
    runtime.block_on(async {
        if let Some(session) = session {
            return session.refreshes_ended().await;
        }
        // Only the client knows its session. Idle connections are tasks too.
        let (begun, metrics) = (Instant::now(), runtime.metrics());
        while metrics.num_alive_tasks() > 0 && begun.elapsed() < LONGEST_REFRESH {
            sleep(LOOK_AGAIN).await;
        }
    });
}
