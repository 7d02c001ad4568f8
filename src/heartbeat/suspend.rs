//! Detects that the machine was suspended, so that a loop recomputes its waits: its timers stood
//! still, but the token and the lease did not.
//!
//! One thread serves the whole process. It checks once a second while a heartbeat has a lease or a
//! reissue window. Otherwise each loop would have to wake that often.

use std::{
    sync::{LazyLock, Mutex, PoisonError},
    thread,
    time::{Duration, Instant, SystemTime},
};

use tokio::sync::watch;

use crate::time::TOLERANCE;

const LOOK_AGAIN: Duration = Duration::from_secs(1);

static WOKEN: LazyLock<watch::Sender<()>> = LazyLock::new(|| watch::Sender::new(()));
static IS_WATCHED: Mutex<bool> = Mutex::new(false);

/// Returns a receiver that is notified each time the machine was suspended.
pub(super) fn subscribe() -> watch::Receiver<()> {
    let receiver = WOKEN.subscribe();
    let mut watched = IS_WATCHED.lock().unwrap_or_else(PoisonError::into_inner);
    if !*watched {
        let thread = thread::Builder::new().name("reauth-clock".to_owned());
        // Without the thread, a loop notices a suspend when it wakes next.
        *watched = thread.spawn(watch_the_clocks).is_ok();
    }
    receiver
}

#[allow(clippy::disallowed_methods, reason = "a thread that no runtime drives")]
fn watch_the_clocks() {
    let mut last = (Instant::now(), SystemTime::now());
    loop {
        thread::sleep(LOOK_AGAIN);
        let now = (Instant::now(), SystemTime::now());
        let wall = now.1.duration_since(last.1).unwrap_or_default();
        if wall.saturating_sub(now.0.saturating_duration_since(last.0)) > TOLERANCE {
            woken();
        }
        last = now;
        let mut watched = IS_WATCHED.lock().unwrap_or_else(PoisonError::into_inner);
        if WOKEN.receiver_count() == 0 {
            *watched = false;
            return;
        }
    }
}

pub(super) fn woken() {
    WOKEN.send_replace(());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        heartbeat::{Beat, Heartbeat, HeartbeatHandle, Stopped},
        session::Session,
        time::suspend,
        token::Tokens,
    };

    const SECOND: Duration = Duration::from_secs(1);

    fn heartbeat() -> Heartbeat {
        Heartbeat::from_fn(|| async { Ok(Beat::Alive) }).every(30 * SECOND)
    }

    /// Suspends the machine for this long, two seconds after the first beat.
    async fn sleeps(handle: &HeartbeatHandle, span: Duration) {
        handle.health().wait_for(|health| health.beats == 1).await.unwrap();
        tokio::time::sleep(2 * SECOND).await;
        // The wall clock has not seen the two seconds of the paused clock.
        suspend(span + 2 * SECOND);
        woken();
        tokio::time::sleep(SECOND / 10).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_near_its_end_gets_its_beat_at_once() {
        // The rest of the token's lifetime when the machine wakes up.
        for (left, beats) in [(6, 2), (0, 1)] {
            let tokens = Tokens::new("t0").unwrap().with_expires_in((7202 + left) * SECOND);
            let session =
                Session::builder(tokens).origin("https://api.example.com").build().unwrap();
            let handle = heartbeat().session(session).reissue_window(0.8).spawn().unwrap();
            sleeps(&handle, 7200 * SECOND).await;
            assert_eq!(handle.health().borrow().beats, beats, "{left} s left");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_ends_while_the_machine_sleeps() {
        for (span, lost) in [(57, false), (59, true)] {
            let handle = heartbeat().lease(60 * SECOND).spawn().unwrap();
            sleeps(&handle, span * SECOND).await;
            let stopped = tokio::time::timeout(SECOND / 2, handle.finished()).await;
            let is_lost = matches!(stopped, Ok(Stopped::LeaseLost {}));
            assert_eq!(is_lost, lost, "suspended for {span} s: {stopped:?}");
        }
    }
}
