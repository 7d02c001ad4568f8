//! Invariants of a session under random requests, rejections, captures, cancelled callers,
//! refreshes that succeed, fail, hang and panic, new logins, logouts, a failing store, and time.

use std::{collections::HashMap, time::Duration};

use crate::support::{
    held, pair, settle,
    store::{Call, FakeStore, Fate},
    url,
    world::{Asked, Grant, World},
};
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;
use reqwest_reauth::{Error, ErrorKind, OnRefreshFailure, Session, SessionState};
use tokio::{task::JoinHandle, time::timeout};

#[derive(Clone, Debug)]
enum Act {
    /// A request, the delay of its response, its own timeout, and when its caller is dropped, in
    /// milliseconds.
    Request {
        takes: u64,
        brings_token: bool,
        timeout: Option<u64>,
        dropped_after: Option<u64>,
    },
    Refresh {
        dropped_after: Option<u64>,
    },
    Replace {
        dropped_after: Option<u64>,
    },
    Clear,
    /// The API rejects all tokens issued so far.
    Revoke,
    Pass(u64),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let millis = || prop_oneof![Just(0_u64), 1..50_u64, 100..5000_u64];
    let maybe = move || prop::option::weighted(0.3, millis());
    let request = (millis(), prop::bool::weighted(0.2), maybe(), maybe()).prop_map(
        |(takes, brings_token, timeout, dropped_after)| Act::Request {
            takes,
            brings_token,
            timeout,
            dropped_after,
        },
    );
    let act = prop_oneof![
        10 => request,
        2 => maybe().prop_map(|dropped_after| Act::Refresh { dropped_after }),
        1 => maybe().prop_map(|dropped_after| Act::Replace { dropped_after }),
        1 => Just(Act::Clear),
        4 => Just(Act::Revoke),
        4 => prop_oneof![0..100_u64, 500..3000_u64, 5_000..20_000_u64, 60_000..400_000_u64].prop_map(Act::Pass),
    ];
    prop::collection::vec(act, 1..40)
}

fn grants() -> impl Strategy<Value = Vec<(u64, Grant)>> {
    let takes = prop_oneof![Just(0_u64), 1..50_u64, 100..5000_u64];
    let grant = prop_oneof![
        6 => prop::option::of(prop_oneof![Just(0_u64), 1..300_u64]).prop_map(Grant::Issue),
        1 => Just(Grant::SameRefreshToken),
        1 => Just(Grant::Fail(ErrorKind::Unavailable)),
        1 => Just(Grant::Fail(ErrorKind::ClientRejected)),
        1 => Just(Grant::Fail(ErrorKind::LoginRequired)),
        1 => Just(Grant::KeepAndFail),
        1 => Just(Grant::KeepAndIssue),
        1 => Just(Grant::Hang),
        1 => Just(Grant::Panic),
    ];
    prop::collection::vec((takes, grant), 0..12)
}

fn faults() -> impl Strategy<Value = Option<Vec<(Call, Fate)>>> {
    let call = prop_oneof![Just(Call::Lock), Just(Call::Load), Just(Call::Save), Just(Call::Clear)];
    let fate = prop_oneof![
        4 => Just(Fate::Well),
        2 => Just(Fate::Down),
        1 => Just(Fate::Hang),
        1 => Just(Fate::Panic),
        1 => Just(Fate::Lies),
    ];
    prop::option::of(prop::collection::vec((call, fate), 0..16))
}

/// Runs a future that is dropped after this many milliseconds if it has not ended by then.
fn run<F>(dropped_after: Option<u64>, work: F) -> JoinHandle<Option<F::Output>>
where
    F: Future<Output: Send + 'static> + Send + 'static,
{
    tokio::spawn(async move {
        match dropped_after {
            Some(limit) => timeout(Duration::from_millis(limit), work).await.ok(),
            None => Some(work.await),
        }
    })
}

async fn play(
    acts: Vec<Act>,
    grants: Vec<(u64, Grant)>,
    faults: Option<Vec<(Call, Fate)>>,
    choice: OnRefreshFailure,
) {
    let world = World::new(grants);
    let store = faults.map(|faults| {
        let store = FakeStore::default();
        for (call, fate) in faults {
            store.next(call, [fate]);
        }
        store
    });
    let mut builder =
        Session::builder(pair("t0", "r0")).origin(crate::support::ORIGIN).refresher(world.clone());
    if let Some(store) = &store {
        builder = builder.store(store.clone());
    }
    let session = builder.on_refresh_failure(choice).build().unwrap();
    world.watch(&session);
    let client = world.api().client(&session);

    let mut callers = Vec::new();
    let mut generation = session.generation();
    for (id, act) in acts.into_iter().enumerate() {
        match act {
            Act::Request { takes, brings_token, timeout, dropped_after } => {
                let url = url(&format!("/{id}/{takes}/{}", u8::from(brings_token)));
                let mut request = client.get(url);
                if let Some(limit) = timeout {
                    request = request.timeout(Duration::from_millis(limit));
                }
                let request = async move {
                    check(request.send().await.map(|response| response.status().as_u16()));
                };
                callers.push(run(dropped_after, request));
            }
            Act::Refresh { dropped_after } => {
                let session = session.clone();
                callers.push(run(dropped_after, async move { drop(session.refresh().await) }));
            }
            Act::Replace { dropped_after } => {
                let (session, world) = (session.clone(), world.clone());
                callers.push(run(dropped_after, async move {
                    let tokens = world.new_login();
                    drop(session.replace_tokens(tokens).await);
                }));
            }
            Act::Clear => {
                let (session, world) = (session.clone(), world.clone());
                callers.push(run(None, async move {
                    world.logout();
                    drop(session.clear().await);
                }));
            }
            Act::Revoke => world.revoke(),
            Act::Pass(millis) => tokio::time::sleep(Duration::from_millis(millis)).await,
        }
        tokio::task::yield_now().await;
        assert!(session.generation() >= generation, "the generation fell");
        generation = session.generation();
    }
    for caller in callers {
        timeout(Duration::from_secs(3600), caller)
            .await
            .expect("a waiter hangs")
            .expect("a caller panicked");
    }
    let not_refreshing = async {
        session.subscribe().wait_for(|state| *state != SessionState::Refreshing).await.map(drop)
    };
    timeout(Duration::from_secs(3600), not_refreshing).await.expect("a refresh hangs").unwrap();
    settle().await;
    finish(&world, &session, store.as_ref()).await;
}

/// The possible results for a caller: a response, or an error of this crate.
fn check(result: reqwest_middleware::Result<u16>) {
    match result {
        Ok(status) => assert!(matches!(status, 200 | 401), "{status}"),
        Err(error) => assert!(Error::find_in(&error).is_some(), "not ours: {error:?}"),
    }
}

async fn finish(world: &World, session: &Session, store: Option<&FakeStore>) {
    assert!(world.most_at_once() <= 1, "two calls of the token endpoint at once");
    assert_eq!(
        world.reused_token(),
        None,
        "a refresh token was sent again after it had been replaced"
    );
    let mut by_request: HashMap<String, Vec<Asked>> = HashMap::new();
    for asked in world.requests() {
        by_request.entry(asked.request.clone()).or_default().push(asked);
    }
    for sent in by_request.values() {
        assert!(sent.len() <= 2, "sent more than twice: {sent:?}");
        if let [first, again] = &sent[..] {
            assert!(first.refused && first.token != again.token, "{sent:?}");
        }
    }
    // The last refresh token that was received, or that of the last login.
    let expected = world.last_refresh_token();
    assert_eq!(held(session).1, expected, "the last refresh token is lost");
    if let Some(store) = store {
        store.heal();
    }
    let calls = world.calls();
    timeout(Duration::from_secs(3600), session.close()).await.expect("close hangs").unwrap();
    if let Some(store) = store {
        store.assert_locked();
        assert!(store.is_free(), "the store's lock is held");
        let stored = store.held().map(|(_, refresh)| refresh).unwrap_or_default();
        if world.was_renewed() && !expected.is_empty() {
            assert_eq!(stored, expected, "what is stored is not the last: {store:?}");
        }
    }
    assert_eq!(world.calls(), calls, "the token endpoint was asked after the close");
    world.stop_watching();
}

/// `PROPTEST_CASES`, or enough for each run.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(3000)
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: cases(),
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("proptest-regressions"))),
        ..ProptestConfig::default()
    })]

    #[test]
    fn no_token_is_lost_and_nobody_hangs(
        acts in acts(),
        grants in grants(),
        faults in faults(),
        returns_response in any::<bool>(),
    ) {
        crate::support::silence_scripted_panics();
        let choice = if returns_response { OnRefreshFailure::ReturnResponse } else { OnRefreshFailure::ReturnError };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(play(acts, grants, faults, choice));
    }
}

/// The harness itself: a world in which nothing goes wrong is seen as such, and one call renews.
#[tokio::test(start_paused = true)]
async fn the_world_works() {
    let acts = vec![
        Act::Revoke,
        Act::Request { takes: 5, brings_token: false, timeout: None, dropped_after: None },
    ];
    play(acts, vec![(10, Grant::Issue(None))], Some(Vec::new()), OnRefreshFailure::ReturnError)
        .await;
}
