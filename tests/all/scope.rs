//! `Session::scope`: the session of the task, for that future alone, at every poll.

use std::{
    cell::Cell,
    future::{Future, poll_fn},
    panic::{AssertUnwindSafe, resume_unwind},
    pin::{Pin, pin},
    rc::Rc,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
    thread::{self, ThreadId},
};

use futures_util::{
    FutureExt as _, StreamExt as _, future::LocalBoxFuture, stream::FuturesUnordered,
};
use reqwest_reauth::{Session, Tokens};
use task_local_extensions::{Extensions, get_local_item, set_local_item, with_extensions};
use tokio::{
    runtime::{Builder, Runtime},
    task::{LocalSet, yield_now},
};

/// An item of another library.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Foreign(u32);

fn session(name: &str) -> Session {
    Session::builder(Tokens::new(name).unwrap()).origin("https://api.example.com").build().unwrap()
}

/// The name of the session that would sign a request sent from here.
fn here() -> Option<String> {
    Session::current()
        .map(|session| session.tokens().unwrap().access_token().unwrap().expose_secret().to_owned())
}

fn is_here(name: &str) -> bool {
    here().as_deref() == Some(name)
}

async fn foreign() -> Option<u32> {
    get_local_item::<Foreign>().await.map(|foreign| foreign.0)
}

/// Unwinds like a panic, but without its message.
fn crash() {
    resume_unwind(Box::new("planned"));
}

async fn caught<F: Future>(future: F) -> bool {
    AssertUnwindSafe(future).catch_unwind().await.is_err()
}

fn poll<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

fn one_worker() -> Runtime {
    Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

/// What the next task on this runtime's only worker finds there, and the id of that thread.
fn next_task(runtime: &Runtime) -> (ThreadId, Option<String>, Option<u32>) {
    let task = runtime.spawn(async { (thread::current().id(), here(), foreign().await) });
    runtime.block_on(task).unwrap()
}

// ---- panics

#[test]
fn a_panic_leaves_nothing_on_its_thread() {
    let runtime = one_worker();
    for yields in [0, 1, 5] {
        let thread = Arc::new(Mutex::new(None));
        let seen = Arc::clone(&thread);
        let task = runtime.spawn(session("a").scope(async move {
            for _ in 0..yields {
                yield_now().await;
            }
            assert!(is_here("a"));
            *seen.lock().unwrap() = Some(thread::current().id());
            crash();
        }));
        assert!(runtime.block_on(task).unwrap_err().is_panic());
        let thread = thread.lock().unwrap().unwrap();
        assert_eq!(next_task(&runtime), (thread, None, None));
    }
}

#[test]
fn a_panic_in_nested_scopes_leaves_neither() {
    let runtime = one_worker();
    let (thread, ..) = next_task(&runtime);
    let inner = session("b").scope(async {
        yield_now().await;
        crash();
    });
    assert!(runtime.block_on(runtime.spawn(session("a").scope(inner))).unwrap_err().is_panic());
    assert_eq!(next_task(&runtime), (thread, None, None));
}

/// Why `scope` does not simply call `with_extensions`.
#[test]
fn foreign_extensions_never_leak_a_session() {
    let runtime = one_worker();
    let (thread, ..) = next_task(&runtime);
    let bare = with_extensions(Extensions::new().with(Foreign(1)), async { crash() });
    assert!(runtime.block_on(runtime.spawn(bare)).unwrap_err().is_panic());
    assert_eq!(next_task(&runtime), (thread, None, Some(1)));

    let around = with_extensions(
        Extensions::new().with(Foreign(2)),
        session("a").scope(async {
            yield_now().await;
            crash();
        }),
    );
    assert!(runtime.block_on(runtime.spawn(around)).unwrap_err().is_panic());
    assert_eq!(next_task(&runtime), (thread, None, Some(2)));

    let inside = session("a").scope(with_extensions(
        Extensions::new().with(Foreign(3)),
        session("b").scope(async {
            yield_now().await;
            assert!(is_here("b"));
            crash();
        }),
    ));
    assert!(runtime.block_on(runtime.spawn(inside)).unwrap_err().is_panic());
    assert_eq!(next_task(&runtime), (thread, None, Some(3)));
    // The thread then serves the next tenant normally.
    assert!(runtime.block_on(runtime.spawn(session("c").scope(async { is_here("c") }))).unwrap());
    assert_eq!(next_task(&runtime), (thread, None, Some(3)));
}

#[tokio::test]
async fn a_panic_in_a_scope_restores_the_outer() {
    session("a")
        .scope(async {
            let inner = session("b").scope(async {
                yield_now().await;
                assert!(is_here("b"));
                crash();
            });
            assert!(caught(inner).await);
            // Within the same poll, and at the next one.
            assert!(is_here("a"));
            yield_now().await;
            assert!(is_here("a"));
        })
        .await;
    assert_eq!(here(), None);
}

#[tokio::test]
async fn a_panic_in_foreign_extensions_costs_a_poll() {
    session("a")
        .scope(async {
            let both = with_extensions(
                Extensions::new().with(Foreign(1)),
                session("b").scope(async { crash() }),
            );
            assert!(caught(both).await);
            // The foreign items are still in place, and hide ours and the others: no session is
            // better than a wrong one.
            assert_eq!(here(), None);
            yield_now().await;
            assert!(is_here("a"));
        })
        .await;
    assert_eq!(here(), None);
}

#[test]
fn drops_in_a_panic_see_their_own_scope() {
    struct Looks(Arc<Mutex<Vec<Option<String>>>>);
    impl Drop for Looks {
        fn drop(&mut self) {
            self.0.lock().unwrap().push(here());
        }
    }
    let seen = Arc::default();
    let looks = Looks(Arc::clone(&seen));
    let runtime = one_worker();
    let task = runtime.spawn(session("a").scope(async move {
        let _looks = looks;
        crash();
    }));
    assert!(runtime.block_on(task).unwrap_err().is_panic());
    assert_eq!(*seen.lock().unwrap(), [Some("a".to_owned())]);
}

// ---- nesting, and items of others

#[tokio::test]
async fn the_innermost_scope_wins() {
    session("a")
        .scope(async {
            assert!(is_here("a"));
            let value = session("b")
                .scope(async {
                    assert!(is_here("b"));
                    session("c").scope(async { assert!(is_here("c")) }).await;
                    yield_now().await;
                    assert!(is_here("b"));
                    7
                })
                .await;
            assert_eq!(value, 7);
            assert!(is_here("a"));
            yield_now().await;
            assert!(is_here("a"));
        })
        .await;
    assert_eq!(here(), None);
}

#[tokio::test]
async fn foreign_items_stay_visible() {
    let (items, ()) = with_extensions(
        Extensions::new().with(Foreign(1)).with("text"),
        session("a").scope(async {
            assert_eq!(foreign().await, Some(1));
            session("b")
                .scope(async {
                    assert_eq!(foreign().await, Some(1));
                    set_local_item(Foreign(2)).await;
                    yield_now().await;
                    assert_eq!(foreign().await, Some(2));
                    assert!(is_here("b"));
                })
                .await;
            let panicking = session("b").scope(async {
                set_local_item(Foreign(3)).await;
                crash();
            });
            assert!(caught(panicking).await);
            assert_eq!(foreign().await, Some(3));
            assert_eq!(get_local_item::<&str>().await, Some("text"));
        }),
    )
    .await;
    assert_eq!(items.get(), Some(&Foreign(3)));
    // They take no session with them.
    with_extensions(items, async { assert_eq!(here(), None) }).await;
}

#[tokio::test]
async fn foreign_extensions_inside_hide_it() {
    session("a")
        .scope(async {
            let (items, ()) = with_extensions(Extensions::new(), async {
                assert_eq!(here(), None);
                yield_now().await;
                assert_eq!(here(), None);
                session("b").scope(async { assert!(is_here("b")) }).await;
                assert_eq!(here(), None);
            })
            .await;
            assert!(is_here("a"));
            with_extensions(items, async { assert_eq!(here(), None) }).await;
        })
        .await;
}

// ---- polls

#[test]
fn nothing_is_set_outside_a_poll() {
    let mut future = pin!(session("a").scope(async {
        assert!(is_here("a"));
        yield_now().await;
        assert!(is_here("a"));
    }));
    assert_eq!(here(), None);
    assert!(poll(future.as_mut()).is_pending());
    assert_eq!(here(), None);
    assert!(poll(future.as_mut()).is_ready());
    assert_eq!(here(), None);
}

#[test]
fn a_scope_moves_between_threads() {
    let mut future = Box::pin(session("a").scope(async {
        let mut threads = Vec::new();
        for _ in 0..4 {
            assert!(is_here("a"));
            threads.push(thread::current().id());
            yield_now().await;
        }
        threads
    }));
    let mut polled = Vec::new();
    let threads = loop {
        let on_its_own = move || {
            let poll = poll(future.as_mut());
            assert_eq!(here(), None);
            (future, poll, thread::current().id())
        };
        let (back, poll, thread) = thread::spawn(on_its_own).join().unwrap();
        future = back;
        match poll {
            Poll::Pending => polled.push(thread),
            Poll::Ready(threads) => break threads,
        }
    };
    assert_eq!(threads.len(), 4);
    assert_eq!(threads, polled);
}

#[test]
fn tasks_that_move_between_workers_keep_theirs() {
    let runtime = Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap();
    let mut tasks = Vec::new();
    for number in 0..100 {
        let name = format!("task-{number}");
        let scoped = session(&name).scope(async move {
            for _ in 0..100 {
                assert!(is_here(&name));
                yield_now().await;
            }
        });
        tasks.push(runtime.spawn(scoped));
        tasks.push(runtime.spawn(async {
            for _ in 0..100 {
                assert_eq!(here(), None);
                yield_now().await;
            }
        }));
    }
    runtime.block_on(async {
        for task in tasks {
            task.await.unwrap();
        }
    });
}

#[test]
fn a_dropped_future_leaves_nothing() {
    {
        let mut future = Box::pin(session("a").scope(std::future::pending::<()>()));
        assert!(poll(future.as_mut()).is_pending());
    }
    assert_eq!(here(), None);

    let mut dropping = pin!(session("b").scope(async {
        let mut other = Box::pin(session("a").scope(std::future::pending::<()>()));
        assert!(poll(other.as_mut()).is_pending());
        drop(other);
        assert!(is_here("b"));
        // Never polled at all.
        drop(session("c").scope(async {}));
        assert!(is_here("b"));
    }));
    assert!(poll(dropping.as_mut()).is_ready());
    assert_eq!(here(), None);
}

// ---- interleaved on one thread

/// Checks repeatedly, with other futures in between.
async fn keeps(name: Option<&str>, looks: u32) {
    for _ in 0..looks {
        assert_eq!(here().as_deref(), name);
        yield_now().await;
    }
}

#[tokio::test]
async fn joined_futures_have_each_their_own() {
    let (a, b) = (session("a"), session("b"));
    tokio::join!(
        a.scope(keeps(Some("a"), 50)),
        keeps(None, 50),
        b.scope(keeps(Some("b"), 50)),
        a.scope(keeps(Some("a"), 20))
    );
    a.scope(async {
        tokio::join!(keeps(Some("a"), 50), b.scope(keeps(Some("b"), 50)));
    })
    .await;
    assert_eq!(here(), None);
}

#[tokio::test]
async fn a_branch_that_select_drops_leaves_nothing() {
    let (a, b) = (session("a"), session("b"));
    for looks in 0..20 {
        tokio::select! {
            () = a.scope(keeps(Some("a"), looks)) => assert_eq!(here(), None),
            () = b.scope(keeps(Some("b"), 10)) => assert_eq!(here(), None),
            () = keeps(None, 15) => {}
        }
        assert_eq!(here(), None);
    }
}

#[tokio::test]
async fn futures_in_one_set_have_each_their_own() {
    let names: Vec<_> = (0..50).map(|number| format!("task-{number}")).collect();
    let mut set = FuturesUnordered::new();
    for (looks, name) in (0..).zip(&names) {
        set.push(session(name).scope(keeps(Some(name), looks)).boxed_local());
        set.push(keeps(None, looks).boxed_local());
    }
    while set.next().await.is_some() {
        assert_eq!(here(), None);
    }
}

#[tokio::test]
async fn local_tasks_have_each_their_own() {
    let local = LocalSet::new();
    let mut tasks = Vec::new();
    for name in ["a", "b", "c"] {
        // Not `Send`.
        let looks = Rc::new(Cell::new(0));
        tasks.push(local.spawn_local(session(name).scope(async move {
            while looks.replace(looks.get() + 1) < 50 {
                assert!(is_here(name));
                yield_now().await;
            }
        })));
        tasks.push(local.spawn_local(keeps(None, 50)));
    }
    local
        .run_until(async {
            for task in tasks {
                task.await.unwrap();
            }
        })
        .await;
}

/// The set polls all its tasks within the poll of the task that drives it.
#[tokio::test]
async fn a_local_sets_tasks_are_not_in_the_scope() {
    let local = LocalSet::new();
    let others = [
        local.spawn_local(keeps(None, 20)),
        local.spawn_local(session("b").scope(keeps(Some("b"), 20))),
    ];
    session("a")
        .scope(local.run_until(async {
            let spawned_inside = tokio::task::spawn_local(keeps(None, 20));
            keeps(Some("a"), 20).await;
            for task in others.into_iter().chain([spawned_inside]) {
                task.await.unwrap();
            }
            assert!(is_here("a"));
        }))
        .await;
    assert_eq!(here(), None);
}

// ---- inheritance

#[tokio::test]
async fn a_spawned_task_does_not_inherit_it() {
    session("a")
        .scope(async {
            tokio::spawn(keeps(None, 5)).await.unwrap();
            tokio::spawn(Session::current().unwrap().scope(keeps(Some("a"), 5))).await.unwrap();
            assert!(is_here("a"));
        })
        .await;
}

#[tokio::test]
async fn blocking_work_does_not_inherit_it() {
    session("a")
        .scope(async {
            assert_eq!(tokio::task::spawn_blocking(here).await.unwrap(), None);
            let mine = Session::current().unwrap();
            let runtime = tokio::runtime::Handle::current();
            let given = tokio::task::spawn_blocking(move || {
                let seen = runtime.block_on(mine.scope(async {
                    yield_now().await;
                    here()
                }));
                (seen, here())
            });
            assert_eq!(given.await.unwrap(), (Some("a".to_owned()), None));
            assert!(is_here("a"));
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn block_in_place_stays_in_the_scope() {
    let scoped = session("a").scope(async {
        let bystander = tokio::spawn(keeps(None, 50));
        let seen = tokio::task::block_in_place(|| {
            (
                here(),
                tokio::runtime::Handle::current().block_on(async {
                    yield_now().await;
                    here()
                }),
            )
        });
        assert_eq!(seen, (Some("a".to_owned()), Some("a".to_owned())));
        bystander.await.unwrap();
        assert!(is_here("a"));
    });
    tokio::spawn(scoped).await.unwrap();
}

#[test]
fn a_scope_works_without_a_runtime() {
    assert_eq!(here(), None);
    thread::spawn(|| {
        assert_eq!(here(), None);
        assert!(session("a").scope(async { is_here("a") }).now_or_never().unwrap());
        assert_eq!(here(), None);
    })
    .join()
    .unwrap();
}

// ---- odd ends

#[test]
fn a_scoped_future_is_send() {
    fn sendable<F: Future + Send + 'static>(future: F) -> F {
        future
    }
    let future = sendable(session("a").scope(async { here() }));
    assert_eq!(future.now_or_never().unwrap().as_deref(), Some("a"));
}

#[test]
fn the_last_handles_drop_may_look_it_up() {
    struct Looks(Arc<Mutex<Option<bool>>>);
    impl Drop for Looks {
        fn drop(&mut self) {
            *self.0.lock().unwrap() = Some(Session::current().is_none());
        }
    }
    let seen = Arc::default();
    let looks = Looks(Arc::clone(&seen));
    let session = Session::builder(Tokens::new("a").unwrap())
        .origin("https://api.example.com")
        .on_event(move |_| {
            let _ = &looks;
        })
        .build()
        .unwrap();
    let future = session.scope(yield_now());
    drop(session);
    {
        let mut future = pin!(future);
        assert!(poll(future.as_mut()).is_pending());
        assert_eq!(*seen.lock().unwrap(), None);
    }
    assert_eq!(*seen.lock().unwrap(), Some(true));
}

/// Scopes, yields, joins, drops, panics and foreign items in any order, with the expected result
/// computed separately.
#[test]
fn random_programs_see_what_they_should() {
    const NAMES: [&str; 3] = ["a", "b", "c"];

    fn program(
        random: Rc<std::cell::RefCell<fastrand::Rng>>,
        seen: Option<&'static str>,
        depth: u32,
    ) -> LocalBoxFuture<'static, ()> {
        async move {
            let roll = |sides: usize| random.borrow_mut().usize(..sides);
            for _ in 0..roll(5) {
                assert_eq!(here().as_deref(), seen);
                let deeper = |seen| program(Rc::clone(&random), seen, depth - 1);
                let name = NAMES[roll(NAMES.len())];
                match roll(if depth == 0 { 1 } else { 6 }) {
                    0 => yield_now().await,
                    1 => session(name).scope(deeper(Some(name))).await,
                    2 => {
                        let inner = deeper(Some(name));
                        assert!(
                            caught(session(name).scope(async {
                                inner.await;
                                crash();
                            }))
                            .await
                        );
                    }
                    3 => drop(
                        with_extensions(Extensions::new().with(Foreign(1)), deeper(None)).await,
                    ),
                    4 => drop(futures_util::join!(
                        session(name).scope(deeper(Some(name))),
                        deeper(seen)
                    )),
                    _ => {
                        let mut polls = roll(4);
                        let mut dropped = pin!(session(name).scope(deeper(Some(name))));
                        poll_fn(|context| {
                            polls = polls.saturating_sub(1);
                            let done = dropped.as_mut().poll(context);
                            if polls == 0 { Poll::Ready(()) } else { done }
                        })
                        .await;
                    }
                }
                assert_eq!(here().as_deref(), seen);
            }
        }
        .boxed_local()
    }

    for seed in 0..300 {
        let random = Rc::new(std::cell::RefCell::new(fastrand::Rng::with_seed(seed)));
        let mut whole = pin!(program(random, None, 5));
        let mut polls = 0;
        while poll(whole.as_mut()).is_pending() {
            assert_eq!(here(), None, "seed {seed}");
            polls += 1;
            assert!(polls < 1_000_000, "seed {seed}");
        }
        assert_eq!(here(), None, "seed {seed}");
    }
}

#[tokio::test]
async fn a_scope_is_little_larger_than_its_future() {
    let session = session("a");
    let future = async {
        let large = [7_u8; 1024];
        yield_now().await;
        large.len()
    };
    let inside = size_of_val(&future);
    let scoped = session.scope(future);
    assert!(size_of_val(&scoped) <= inside + 32, "{} around {inside}", size_of_val(&scoped));
    assert_eq!(scoped.await, 1024);
}
