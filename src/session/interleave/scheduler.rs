//! A scheduler that runs one thread at a time and chooses the next one at each switch from a seed,
//! so that a run can be repeated.
//!
//! The first thread drives the runtime. Each of the others runs a future, and is blocked while that
//! is pending.

use std::{
    cell::RefCell,
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{Arc, Condvar, Mutex, MutexGuard},
    task::{Context, Poll, Wake, Waker},
};

use tokio::runtime::{Builder, Handle};

/// The thread that drives the runtime.
const RUNTIME: usize = 0;
/// After this many rounds of the runtime without a runnable thread, the run counts as deadlocked.
const PATIENCE: u32 = 200;

type Boxed = Pin<Box<dyn Future<Output = ()> + Send>>;

#[derive(Clone, Copy, PartialEq)]
enum Status {
    Ready,
    Blocked,
    Done,
}

struct Threads {
    current: usize,
    status: Vec<Status>,
    /// Whether the future was woken during its poll.
    woken: Vec<bool>,
    random: fastrand::Rng,
    failure: Option<String>,
}

struct Scheduler {
    threads: Mutex<Threads>,
    changed: Condvar,
}

thread_local! {
    static HERE: RefCell<Option<(Arc<Scheduler>, usize)>> = const { RefCell::new(None) };
}

/// Lets the scheduler choose the next thread. Returns `false` outside of a scheduler.
pub(super) fn switch() -> bool {
    let here = HERE.try_with(|here| here.borrow().clone()).ok().flatten();
    let Some((scheduler, id)) = here else { return false };
    scheduler.switch(id);
    true
}

/// Runs each of these futures on a thread, and the tasks that they spawn on a separate runtime. An
/// `Err` describes what went wrong.
pub(super) fn run(seed: u64, work: Vec<Boxed>) -> Result<(), String> {
    let scheduler = Arc::new(Scheduler {
        threads: Mutex::new(Threads {
            current: RUNTIME,
            status: vec![Status::Ready; work.len() + 1],
            woken: vec![false; work.len() + 1],
            random: fastrand::Rng::with_seed(seed),
            failure: None,
        }),
        changed: Condvar::new(),
    });
    let runtime = Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    std::thread::scope(|scope| {
        for (index, future) in work.into_iter().enumerate() {
            let (scheduler, handle) = (Arc::clone(&scheduler), runtime.handle().clone());
            scope.spawn(move || scheduler.drive(index + 1, &handle, future));
        }
        scheduler.enter(RUNTIME);
        let mut idle = 0;
        while !scheduler.is_over() {
            runtime.block_on(async {
                for _ in 0..3 {
                    tokio::task::yield_now().await;
                }
            });
            idle = if scheduler.is_stuck() { idle + 1 } else { 0 };
            if idle > PATIENCE {
                scheduler.fail("somebody waits for ever".to_owned());
            }
            scheduler.switch(RUNTIME);
        }
        // Lets the tasks that they left behind end too.
        runtime.block_on(async {
            for _ in 0..500 {
                tokio::task::yield_now().await;
            }
        });
        HERE.with(|here| here.borrow_mut().take());
    });
    let failure = scheduler.threads.lock().unwrap().failure.take();
    failure.map_or(Ok(()), Err)
}

impl Scheduler {
    /// Runs a future to its end.
    fn drive(self: &Arc<Self>, id: usize, handle: &Handle, mut future: Boxed) {
        self.enter(id);
        let entered = handle.enter();
        let waker = Waker::from(Arc::new(Thread(Arc::clone(self), id)));
        let mut context = Context::from_waker(&waker);
        loop {
            if self.threads.lock().unwrap().failure.is_some() {
                break;
            }
            match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(&mut context))) {
                Ok(Poll::Pending) => self.block(id),
                Ok(Poll::Ready(())) => break,
                Err(_) => {
                    self.fail("a thread panicked".to_owned());
                    break;
                }
            }
        }
        HERE.with(|here| here.borrow_mut().take());
        drop(future);
        drop(entered);
        let mut threads = self.threads.lock().unwrap();
        threads.status[id] = Status::Done;
        self.choose(threads);
    }

    /// Registers this thread, and waits until it is chosen.
    fn enter(self: &Arc<Self>, id: usize) {
        HERE.with(|here| *here.borrow_mut() = Some((Arc::clone(self), id)));
        let threads = self.threads.lock().unwrap();
        drop(self.changed.wait_while(threads, |threads| threads.current != id).unwrap());
    }

    fn switch(&self, id: usize) {
        let threads = self.threads.lock().unwrap();
        self.choose(threads);
        self.wait(id);
    }

    fn block(&self, id: usize) {
        let mut threads = self.threads.lock().unwrap();
        if !std::mem::take(&mut threads.woken[id]) {
            threads.status[id] = Status::Blocked;
        }
        self.choose(threads);
        self.wait(id);
    }

    fn wait(&self, id: usize) {
        let threads = self.threads.lock().unwrap();
        drop(self.changed.wait_while(threads, |threads| threads.current != id).unwrap());
    }

    fn choose(&self, mut threads: MutexGuard<'_, Threads>) {
        let ready: Vec<_> = (0..threads.status.len())
            .filter(|&id| id == RUNTIME || threads.status[id] == Status::Ready)
            .collect();
        let next = threads.random.usize(..ready.len());
        threads.current = ready[next];
        drop(threads);
        self.changed.notify_all();
    }

    fn is_over(&self) -> bool {
        self.threads.lock().unwrap().status[1..].iter().all(|status| *status == Status::Done)
    }

    /// Whether only the runtime can continue.
    fn is_stuck(&self) -> bool {
        !self.threads.lock().unwrap().status[1..].contains(&Status::Ready)
    }

    /// Ends the run: all threads stop at their next poll.
    fn fail(&self, why: String) {
        let mut threads = self.threads.lock().unwrap();
        threads.failure.get_or_insert(why);
        for status in &mut threads.status[1..] {
            if *status == Status::Blocked {
                *status = Status::Ready;
            }
        }
    }
}

/// The waker of one of the threads.
struct Thread(Arc<Scheduler>, usize);

impl Wake for Thread {
    fn wake(self: Arc<Self>) {
        let mut threads = self.0.threads.lock().unwrap();
        match threads.status[self.1] {
            Status::Blocked => threads.status[self.1] = Status::Ready,
            Status::Ready => threads.woken[self.1] = true,
            Status::Done => {}
        }
    }
}
