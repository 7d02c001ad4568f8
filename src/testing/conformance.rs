//! The rules of [`TokenStore`], as a test suite for other implementations.

use std::{
    future::Future,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use crate::{
    error::Error,
    store::{StoreLock, StoredFailure, TokenStore},
    token::{AccessToken, RefreshToken, Tokens},
};

/// The time within which a free lock is acquired and a change is reported.
const SOON: Duration = Duration::from_secs(20);
/// The time for which nothing may happen.
const A_WHILE: Duration = Duration::from_millis(300);
/// A failure that lasts a minute, as a session stores it.
const FAILURE: &str =
    r#"{"id":"c0ffee","says":{"pause":{"for_ms":60000,"kind":"unavailable","status":503}}}"#;
const NO_FAILURE: &str = r#"{"id":"c0ffee","says":"nothing"}"#;

/// Checks that a store follows the rules of [`TokenStore`]. [`FileStore`](crate::FileStore),
/// [`MemoryStore`](crate::MemoryStore) and `RedisStore` pass the same suite.
///
/// `make` opens the same store each time, as another process would. The store must be empty at the
/// beginning. The suite takes a few seconds of real time, so the clock of the test must not be
/// paused. If the store does not keep [failures](TokenStore::load_failure), the rules about
/// failures are skipped.
///
/// ```
/// use reqwest_reauth::{FileStore, testing};
///
/// #[tokio::main(flavor = "current_thread")]
/// async fn main() -> std::io::Result<()> {
///     let dir = tempfile::tempdir()?;
///     let path = dir.path().join("tokens.json");
///     testing::store_conformance(|| async { FileStore::new(&path) }).await;
///     Ok(())
/// }
/// ```
///
/// # Panics
/// Panics if the store breaks a rule. The message names the rule.
pub async fn store_conformance<S, F, Fut>(make: F)
where
    S: TokenStore,
    F: Fn() -> Fut,
    Fut: Future<Output = S>,
{
    keeps_what_is_saved(&make).await;
    keeps_any_token(&make).await;
    forgets_what_is_cleared(&make).await;
    has_one_holder(&make).await;
    survives_a_wait_that_is_dropped(&make).await;
    loses_no_update(&make).await;
    tells_of_changes(&make).await;
    keeps_failures(&make).await;
}

async fn keeps_what_is_saved<S: TokenStore, Fut: Future<Output = S>>(make: &impl Fn() -> Fut) {
    let (one, other) = (make().await, make().await);
    let found = must("an empty store loads nothing", one.load().await);
    assert!(found.is_none(), "an empty store loads nothing");
    let at = UNIX_EPOCH + Duration::from_secs(4_000_000_000);
    let both = pair("a-1", Some("r-1")).with_expires_at(at);
    put(&one, &both).await;
    let found = loaded(&other).await;
    assert_eq!(texts(&found), texts(&both), "what is saved is loaded, by other processes too");
    assert!(
        found.expires_at().is_some_and(|stored| apart(stored, at) < Duration::from_secs(1)),
        "the expiry is kept, to the second: {:?}",
        found.expires_at()
    );
    let alone = pair("a-2", None);
    put(&other, &alone).await;
    assert_eq!(texts(&loaded(&one).await), texts(&alone), "a save replaces the tokens as a whole");
    let refresh = must("a refresh token alone", Tokens::from_refresh_token("r-3"));
    put(&one, &refresh).await;
    assert_eq!(texts(&loaded(&other).await), texts(&refresh), "a refresh token is kept alone");
}

async fn keeps_any_token<S: TokenStore, Fut: Future<Output = S>>(make: &impl Fn() -> Fut) {
    let store = make().await;
    let odd: String = ('!'..='~').collect();
    for text in [odd, "x".repeat(16 * 1024)] {
        let tokens = pair(&text, Some(&text));
        put(&store, &tokens).await;
        let found = loaded(&store).await;
        assert!(texts(&found) == texts(&tokens), "tokens of visible ASCII, up to 16 KiB, are kept");
    }
}

async fn forgets_what_is_cleared<S: TokenStore, Fut: Future<Output = S>>(make: &impl Fn() -> Fut) {
    let rule = "what is cleared is gone";
    let (one, other) = (make().await, make().await);
    for _ in 0..2 {
        let lock = must(rule, one.lock().await);
        must(rule, one.clear(&lock).await);
        drop(lock);
        assert!(must(rule, other.load().await).is_none(), "{rule}");
    }
}

async fn has_one_holder<S: TokenStore, Fut: Future<Output = S>>(make: &impl Fn() -> Fut) {
    let rule = "the lock has one holder";
    let (one, other) = (make().await, make().await);
    let first = must(rule, one.lock().await);
    let fence = first.fence();
    let second = other.lock();
    tokio::pin!(second);
    assert!(tokio::time::timeout(A_WHILE, &mut second).await.is_err(), "{rule}");
    drop(first);
    let second = soon("a lock that is dropped is free", second).await;
    if let (Some(first), Some(second)) = (fence, second.fence()) {
        assert!(second > first, "the fence rises with each holder: {first}, then {second}");
    }
    drop(
        soon("a lock is free for its former holder", async move {
            drop(second);
            one.lock().await
        })
        .await,
    );
}

async fn survives_a_wait_that_is_dropped<S: TokenStore, Fut: Future<Output = S>>(
    make: &impl Fn() -> Fut,
) {
    let (one, other) = (make().await, make().await);
    let held = must("the lock is taken", one.lock().await);
    for wait in [0, 1, 30] {
        let wait = Duration::from_millis(wait);
        assert!(tokio::time::timeout(wait, other.lock()).await.is_err(), "the lock has one holder");
    }
    drop(held);
    drop(soon("a wait for the lock that is dropped leaves it free", one.lock()).await);
}

async fn loses_no_update<S: TokenStore, Fut: Future<Output = S>>(make: &impl Fn() -> Fut) {
    const MEMBERS: usize = 4;
    const ROUNDS: usize = 5;
    let rule = "no update under the lock is lost";
    put(&make().await, &pair("0", Some("0"))).await;
    let mut members = tokio::task::JoinSet::new();
    for _ in 0..MEMBERS {
        let store = make().await;
        members.spawn(async move {
            for _ in 0..ROUNDS {
                let lock = must(rule, store.lock().await);
                let (access, _) = texts(&loaded(&store).await);
                let next = must(rule, access.unwrap_or_default().parse::<usize>()) + 1;
                must(rule, store.save(&lock, &pair(&next.to_string(), Some("r"))).await);
            }
        });
    }
    while let Some(member) = members.join_next().await {
        must(rule, member);
    }
    let (access, _) = texts(&loaded(&make().await).await);
    assert_eq!(access, Some((MEMBERS * ROUNDS).to_string()), "{rule}");
}

async fn tells_of_changes<S: TokenStore, Fut: Future<Output = S>>(make: &impl Fn() -> Fut) {
    let (one, other) = (make().await, make().await);
    let (old, new) = (pair("old", Some("r-old")), pair("new", Some("r-new")));
    put(&one, &old).await;
    for seen in [None, Some(&new)] {
        let found = soon("what was stored before the wait is told", other.wait_for_change(seen));
        assert_eq!(found.await.as_ref().map(texts), Some(texts(&old)));
    }
    let change = other.wait_for_change(Some(&old));
    tokio::pin!(change);
    let quiet = tokio::time::timeout(A_WHILE, &mut change).await;
    assert!(quiet.is_err(), "a store in which nothing changes tells of no change");
    put(&one, &new).await;
    let found = soon("what another process stores is told", change).await;
    assert_eq!(found.as_ref().map(texts), Some(texts(&new)));
    let change = other.wait_for_change(Some(&new));
    tokio::pin!(change);
    let _ = tokio::time::timeout(A_WHILE, &mut change).await;
    let lock = must("the lock is taken", one.lock().await);
    must("the store is cleared", one.clear(&lock).await);
    drop(lock);
    assert!(soon("a logout of another process is told", change).await.is_none());
}

async fn keeps_failures<S: TokenStore, Fut: Future<Output = S>>(make: &impl Fn() -> Fut) {
    let (one, other) = (make().await, make().await);
    let tokens = pair("a", Some("r"));
    put(&one, &tokens).await;
    let failure = StoredFailure::from_text(FAILURE);
    let rule = "a failure is kept as it is";
    let change = other.wait_for_change(Some(&tokens));
    tokio::pin!(change);
    assert!(tokio::time::timeout(A_WHILE, &mut change).await.is_err(), "nothing has changed");
    fail(&one, &failure).await;
    let Some(found) = must(rule, other.load_failure().await) else {
        return; // The store keeps none, which is the default.
    };
    assert_eq!(found.as_str(), FAILURE, "{rule}");
    soon("a failure of another process is told", change).await;
    let left = loaded(&other).await;
    assert_eq!(texts(&left), texts(&tokens), "a failure leaves the tokens alone");
    fail(&other, &StoredFailure::from_text(NO_FAILURE)).await;
    let left = must(rule, one.load_failure().await);
    assert!(
        left.is_none_or(|left| left.lifetime() == Some(Duration::ZERO)),
        "a failure with a lifetime of zero takes the one that is stored back"
    );
}

async fn put(store: &impl TokenStore, tokens: &Tokens) {
    let lock: StoreLock = soon("the lock is free", store.lock()).await;
    must("tokens are saved under the lock", store.save(&lock, tokens).await);
}

async fn fail(store: &impl TokenStore, failure: &StoredFailure) {
    let lock = soon("the lock is free", store.lock()).await;
    must("a failure is saved under the lock", store.save_failure(&lock, failure).await);
}

async fn loaded(store: &impl TokenStore) -> Tokens {
    let found = must("what is saved is loaded", store.load().await);
    found.unwrap_or_else(|| panic!("what is saved is loaded"))
}

async fn soon<T>(rule: &str, work: impl Future<Output = Result<T, Error>>) -> T {
    let done = tokio::time::timeout(SOON, work).await;
    must(rule, done.unwrap_or_else(|_| panic!("{rule}: not within {SOON:?}")))
}

fn must<T, E: std::fmt::Debug>(rule: &str, result: Result<T, E>) -> T {
    result.unwrap_or_else(|error| panic!("{rule}: {error:?}"))
}

fn pair(access: &str, refresh: Option<&str>) -> Tokens {
    let tokens = must("an access token", Tokens::new(access));
    match refresh {
        Some(refresh) => must("a refresh token", tokens.with_refresh_token(refresh)),
        None => tokens,
    }
}

fn texts(tokens: &Tokens) -> (Option<String>, Option<String>) {
    (
        tokens.access_token().map(AccessToken::expose_secret).map(str::to_owned),
        tokens.refresh_token().map(RefreshToken::expose_secret).map(str::to_owned),
    )
}

fn apart(one: SystemTime, other: SystemTime) -> Duration {
    one.duration_since(other).unwrap_or_else(|early| early.duration())
}
