//! The one type for every time limit of the crate.
//!
//! When the timer of a limit fires, it is not yet clear that the work was slow. The process itself
//! may have been stopped (SIGSTOP, a frozen cgroup, a paused VM), or all of its workers may have
//! been busy. Such a process wakes up with its timers due and its sockets unread.
//! `tokio::time::timeout` then polls its future once more, but the connection is a separate task
//! that has not read the socket yet. A response that the kernel has already received would be
//! discarded, and with it a single-use refresh token.

use std::{
    cell::Cell,
    future::{Future, poll_fn},
    ops::DerefMut,
    pin::{Pin, pin},
    task::Poll,
    time::Duration,
};

use tokio::{
    task::unconstrained,
    time::{Instant, sleep_until},
};

/// A timer that fires later than this shows that the process was not running.
const LATE: Duration = Duration::from_millis(30);
/// The extra time for reading the sockets after a late timer.
const LOOK: Duration = Duration::from_millis(250);
/// Stands in for a limit beyond the range of the clock.
const FAR_AWAY: Duration = Duration::from_secs(30 * 365 * 86_400);

thread_local! {
    /// The end of the extra time of a nested limit, as far as the current poll has seen.
    static INSIDE: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// The limit ran out before the work was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Elapsed;

/// A time limit for one piece of work, or for several in a row.
///
/// If the timer fires more than 30 ms late, the work is polled for up to 250 ms more. This happens
/// once, whatever the number of pieces. If the process was running, the limit ends exactly on time.
/// Limits may be nested: an outer limit waits for the extra time of an inner one.
#[derive(Clone, Debug)]
pub(crate) struct Limit {
    due: Instant,
    look: Option<Instant>,
}

/// Runs the work with its own [`Limit`].
pub(crate) fn within<F: Future>(
    limit: Duration,
    work: F,
) -> impl Future<Output = Result<F::Output, Elapsed>> {
    let mut limit = Limit::after(limit);
    // Boxed outside the `async` block, which would otherwise hold the future twice.
    let work = Box::pin(work);
    async move { limit.run_pinned(work).await }
}

impl Limit {
    /// Creates a limit that starts now.
    pub(crate) fn after(limit: Duration) -> Self {
        Self::since(Instant::now(), limit)
    }

    /// Creates a limit that started at that time.
    pub(crate) fn since(begun: Instant, limit: Duration) -> Self {
        Self { due: begun.checked_add(limit).unwrap_or(begun + FAR_AWAY), look: None }
    }

    /// Whether the limit is over, so that new work would only be cut off.
    pub(crate) fn is_over(&self) -> bool {
        self.due <= Instant::now()
    }

    /// Runs the work until it ends or the limit is over.
    pub(crate) fn run<F: Future>(
        &mut self,
        work: F,
    ) -> impl Future<Output = Result<F::Output, Elapsed>> {
        self.run_pinned(Box::pin(work))
    }

    /// Runs work that its owner has pinned.
    #[allow(clippy::disallowed_methods, reason = "the one limit is made of it")]
    pub(crate) async fn run_pinned<P>(
        &mut self,
        mut work: Pin<P>,
    ) -> Result<<P::Target as Future>::Output, Elapsed>
    where
        P: DerefMut<Target: Future>,
    {
        // Work that is always ready would use up the task's tokio budget, and the timer would never
        // be polled.
        let mut timer = pin!(unconstrained(sleep_until(self.look.unwrap_or(self.due))));
        poll_fn(|context| {
            let outside = INSIDE.take();
            let done = work.as_mut().poll(context);
            let inside = INSIDE.take();
            INSIDE.set(outside);
            if let Poll::Ready(done) = done {
                return Poll::Ready(Ok(done));
            }
            while timer.as_mut().poll(context).is_ready() {
                let now = Instant::now();
                let Some(end) = look_until(self.due, self.look, inside, now) else {
                    return Poll::Ready(Err(Elapsed));
                };
                self.look = Some(end);
                timer.set(unconstrained(sleep_until(end)));
            }
            INSIDE.set(outside.max(inside).max(self.look));
            Poll::Pending
        })
        .await
    }
}

/// The end of the extra time once a timer has fired, or `None` if the limit is over.
fn look_until(
    due: Instant,
    look: Option<Instant>,
    inside: Option<Instant>,
    now: Instant,
) -> Option<Instant> {
    let own = match look {
        Some(end) => end,
        None if now.saturating_duration_since(due) > LATE => now + LOOK,
        None => due,
    };
    let end = inside.map_or(own, |inside| inside.max(own));
    (end > now).then_some(end)
}

#[cfg(test)]
mod tests {
    use std::{io::Write, net::TcpListener, sync::mpsc, thread};

    use tokio::{io::AsyncReadExt, sync::oneshot, time::sleep};

    use super::*;

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn a_late_timer_gives_one_look() {
        let start = Instant::now();
        let at = |millis| start + ms(millis);
        let table = [
            // The columns: due, own extra time, nested extra time, now, result.
            (100, None, None, 100, None),
            (100, None, None, 130, None),
            (100, None, None, 131, Some(381)),
            (100, None, None, 90_000, Some(90_250)),
            // The extra time itself is over, on time or late.
            (100, Some(381), None, 381, None),
            (100, Some(381), None, 9000, None),
            // A nested limit is in its extra time.
            (100, None, Some(300), 100, Some(300)),
            (100, Some(300), Some(300), 300, None),
            (100, Some(381), Some(400), 381, Some(400)),
            (100, None, Some(90), 100, None),
        ];
        for (due, look, inside, now, expected) in table {
            assert_eq!(
                look_until(at(due), look.map(at), inside.map(at), at(now)),
                expected.map(at),
                "{due} {look:?} {inside:?} {now}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_process_that_was_run_gets_none() {
        let start = Instant::now();
        assert_eq!(within(ms(100), sleep(ms(101))).await, Err(Elapsed));
        assert_eq!(start.elapsed(), ms(100));
        assert_eq!(within(ms(100), async { 7 }).await, Ok(7));
        assert_eq!(within(Duration::MAX, sleep(ms(100))).await, Ok(()));
    }

    /// Advances the clock while nothing is polled.
    async fn freeze(span: Duration) {
        sleep(ms(50)).await;
        tokio::time::advance(span).await;
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_freeze_work_gets_250_ms() {
        for (rest, expected) in [(249, Ok(())), (251, Err(Elapsed))] {
            let start = Instant::now();
            let work = async {
                freeze(ms(1000)).await;
                sleep(ms(rest)).await;
            };
            assert_eq!(within(ms(100), work).await, expected, "{rest}");
            assert_eq!(start.elapsed(), ms(1050 + rest.min(250)));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn pieces_share_one_look() {
        let mut limit = Limit::after(ms(100));
        let start = Instant::now();
        let first = async {
            freeze(ms(1000)).await;
            sleep(ms(200)).await;
        };
        assert_eq!(limit.run(first).await, Ok(()));
        assert!(limit.is_over());
        assert_eq!(limit.run(sleep(ms(60))).await, Err(Elapsed));
        assert_eq!(start.elapsed(), ms(1300));
    }

    #[tokio::test(start_paused = true)]
    async fn a_limit_outside_lets_the_look_end() {
        for (outer, rest, expected) in
            [(100, 240, Ok(Ok(()))), (1100, 240, Ok(Ok(()))), (1100, 400, Ok(Err(Elapsed)))]
        {
            let start = Instant::now();
            let work = async {
                freeze(ms(1000)).await;
                sleep(ms(rest)).await;
            };
            assert_eq!(within(ms(outer), within(ms(100), work)).await, expected, "{outer} {rest}");
            assert_eq!(start.elapsed(), ms(1050 + rest.min(250)));
        }
    }

    #[tokio::test]
    async fn work_that_is_always_ready_ends_too() {
        let busy = async {
            loop {
                tokio::task::consume_budget().await;
            }
        };
        assert_eq!(within(ms(50), busy).await, Err::<(), _>(Elapsed));
    }

    /// A response that arrived while the only worker was busy.
    #[tokio::test]
    async fn what_the_kernel_holds_is_read() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (busy, is_busy) = mpsc::channel();
        let (is_written, written) = mpsc::channel();
        let server = thread::spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            is_busy.recv().unwrap();
            socket.write_all(b"x").unwrap();
            is_written.send(()).unwrap();
            socket
        });
        let mut socket = tokio::net::TcpStream::connect(address).await.unwrap();
        let (response, received) = oneshot::channel();
        tokio::spawn(async move { response.send(socket.read_u8().await.unwrap()) });
        tokio::spawn(async move {
            busy.send(()).unwrap();
            written.recv().unwrap();
            thread::sleep(ms(400));
        });
        assert_eq!(within(ms(200), received).await, Ok(Ok(b'x')));
        drop(server.join().unwrap());
    }
}
