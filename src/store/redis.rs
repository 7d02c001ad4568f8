mod farewell;
mod link;
mod lock;
mod script;

use std::{fmt, sync::Arc, time::Duration};

use ::redis::Client;
use async_trait::async_trait;
use zeroize::Zeroizing;

use self::{
    link::{Link, Question, is_final, store_error},
    lock::Held,
    script::{Holder, Scripts},
};
use super::{
    StoreLock, StoredFailure, TokenStore,
    failure::{failure, lock_lapsed},
    is_same,
    record::{Record, Rest, Unreadable},
};
use crate::{
    error::{Error, ErrorKind},
    token::Tokens,
};

const DEFAULT_LEASE: Duration = Duration::from_secs(30);
const SHORTEST_LEASE: Duration = Duration::from_millis(100);
const LONGEST_LEASE: Duration = Duration::from_secs(24 * 60 * 60);
/// The first polling interval if the server cannot announce changes.
const FIRST_POLL: Duration = Duration::from_millis(250);
const LONGEST_POLL: Duration = Duration::from_secs(1);
/// Most locks are held for less than this, or for less than a sixth of a short lease. Only a longer
/// wait asks for the rest of the holder's lease.
const BEFORE_ASKING: Duration = Duration::from_millis(1500);
/// Spreads the waiters, so that they do not all request a released lock at once.
const SPREAD: Duration = Duration::from_millis(20);
/// The pause after a holder has stored tokens or a failure. Most waiters end with those, and do not
/// request the lock.
const AFTER_NEWS: Duration = Duration::from_secs(1);

/// A login in Redis (5 or later, or Valkey), shared by processes on several machines. Requires the
/// feature `redis`.
///
/// The store uses four keys in one hash slot. For the key `k` they are `{k}:tokens`, a hash with
/// the JSON document of [`FileStore`](crate::FileStore) and, during a call to the token endpoint,
/// the SHA-256 of the refresh token; `{k}:lock`; `{k}:fence`; and `{k}:failure`, which contains no
/// secret. Only the lock and the failure expire. The tokens are not encrypted. In a Redis Cluster
/// the store follows its keys to their node, and the URL can be that of any node.
///
/// - The lock is a [lease](Self::lease). It is renewed at a third of its length while it is held,
///   and released when it is dropped. Other processes wait for its end only if the holder dies or
///   stalls. Dropping a runtime waits for the release for at most half a second, whatever the
///   number of locks. Before each call to the token endpoint, a session checks by two clocks that a
///   third of the lease is left.
/// - Each holder gets a higher [fence](StoreLock::fence). A save or clear needs both its fence and
///   its lock, and otherwise fails with a [`Store`](ErrorKind::Store) error. A holder that was
///   suspended cannot overwrite newer tokens. Neither can the first of two holders after a
///   failover. The fence keeps increasing even if Redis loses its data.
/// - Waiters are notified on the channel `{k}:changes` (RESP3, on the existing connection), so
///   their cost does not grow with their number: eight commands for each waiter, and one for each
///   lease that it waits for. Before Redis 6, or if the user may not subscribe, they poll once a
///   second.
/// - While Redis is unavailable, each call fails within five seconds, or at once if the connection
///   is refused. The next call after that connects again.
///
/// A document that cannot be read is an error. The next save keeps it in the hash, in a separate
/// field `broken:…`.
///
/// # Failover
///
/// Replicas follow Redis asynchronously, and the store does not wait for them (`WAIT`). A failover
/// can lose the last save, and with it a refresh token that the token endpoint has just issued. The
/// process that obtained the token still holds it, and stores it again before the token is spent.
/// If another process refreshes first, it sends the previous token, and a strict token endpoint
/// then ends the whole login.
///
/// No login is lost if a restart loses the scripts, or if Redis does not respond for up to two
/// seconds.
///
/// # Eviction
///
/// Set `maxmemory-policy noeviction`. A full Redis then rejects the lock, and a refresh token that
/// rotates is not sent. With `allkeys-lru` and similar policies, the tokens, the lock and the fence
/// can disappear at any time. The next refresh of a session that holds the login stores it again,
/// and without such a session it is lost. If the lock is evicted during a refresh, a second process
/// may send the same refresh token. `volatile-lru` can evict the lock as well.
///
/// # Passwords
///
/// Redis keeps a connection signed in after its user's password has changed, but the store may
/// replace its connection at any time. The next connection fails with [`Store`](ErrorKind::Store),
/// and so does each refresh of a token that rotates, until the process starts with a URL that has
/// the new password. A lock that is held at that moment ends with its lease.
///
/// # Defaults
///
/// | setting | default |
/// | --- | --- |
/// | [`lease`](Self::lease) | 30 s |
///
/// # Example
///
/// ```no_run
/// use reqwest_reauth::{Error, RedisStore, Session, Tokens};
///
/// #[tokio::main]
/// async fn main() -> Result<(), Error> {
///     let url = "rediss://:password@redis.example.com";
///     let store = RedisStore::connect(url, "worker-login").await?;
///     let session = Session::builder(Tokens::empty())
///         .origin("https://api.example.com")
///         .store(store)
///         .restore()
///         .await?;
///     let client = session.wrap(reqwest::Client::new());
///     Ok(())
/// }
/// ```
#[derive(Clone)]
pub struct RedisStore {
    shared: Arc<Shared>,
    lease: Duration,
}

/// The state that a store, its locks and their renewals share.
struct Shared {
    link: Link,
    scripts: Scripts,
}

impl RedisStore {
    /// Connects to `redis[s]://[user[:password]@]host[:port][/database]` and returns a store under
    /// this key.
    ///
    /// An unreachable Redis is not an error, because each call connects again. `rediss://` trusts
    /// the system's root certificates, or those in the file of the environment variable
    /// `SSL_CERT_FILE`. If the program has not chosen a rustls crypto provider, aws-lc-rs is
    /// installed as the default of the process.
    ///
    /// # Errors
    /// - [`InvalidConfig`](ErrorKind::InvalidConfig) for an invalid URL, and for a key that is
    ///   empty or starts with `}`.
    /// - [`Store`](ErrorKind::Store) if Redis rejects the user or password.
    pub async fn connect(url: &str, key: impl Into<String>) -> Result<Self, Error> {
        let key = key.into();
        if key.is_empty() || key.starts_with('}') {
            // `{}` is not a hash tag, so a cluster would spread the keys.
            return Err(Error::new(
                ErrorKind::InvalidConfig,
                "the redis key is empty or starts with a closing brace",
            ));
        }
        // The parser's text is dropped, because the URL contains the password.
        let client = Client::open(url)
            .map_err(|_| Error::new(ErrorKind::InvalidConfig, "the redis url is invalid"))?;
        if url.trim_start().get(..7).is_some_and(|scheme| scheme.eq_ignore_ascii_case("rediss:")) {
            choose_crypto();
        }
        let shared = Arc::new(Shared { link: Link::new(client), scripts: Scripts::new(&key) });
        let load = shared.scripts.load();
        let loaded = shared.link.call::<Option<Vec<u8>>>(Question::Script(&load)).await;
        drop(load);
        match loaded {
            Err(error) if error.kind() == ::redis::ErrorKind::InvalidClientConfig => {
                Err(Error::new(
                    ErrorKind::InvalidConfig,
                    "the redis url needs a feature that this build does not have",
                ))
            }
            Err(error) if is_final(&error) => Err(store_error(&error)),
            _ => Ok(Self { shared, lease: DEFAULT_LEASE }),
        }
    }

    /// Sets how long the lock outlives a holder that dies or stalls. Default: 30 s. The minimum is
    /// 100 ms and the maximum a day.
    pub fn lease(mut self, length: Duration) -> Self {
        self.lease = length.clamp(SHORTEST_LEASE, LONGEST_LEASE);
        self
    }

    async fn read(&self) -> Result<Option<Result<Record, Unreadable>>, Error> {
        let document: Option<Vec<u8>> =
            self.shared.ask(Question::Script(&self.shared.scripts.load())).await?;
        Ok(document.map(Zeroizing::new).map(|document| Record::parse(&document)))
    }

    /// Writes the tokens, or removes them with `None`.
    async fn rewrite(&self, lock: &StoreLock, tokens: Option<&Tokens>) -> Result<(), Error> {
        let holder = holder(lock)?;
        let (rest, aside) = match self.read().await? {
            None => (Rest::default(), None),
            Some(Ok(record)) => (record.rest, None),
            Some(Err(Unreadable::Broken(_))) => {
                (Rest::default(), Some(format!("{:016x}", fastrand::u64(..))))
            }
            Some(Err(newer)) => return Err(unreadable(&newer)),
        };
        let document = match tokens {
            Some(tokens) => Some(rest.with(tokens)),
            None if rest.is_empty() => None,
            None => Some(rest.with(&Tokens::empty())),
        };
        let text = document.as_ref().map_or("", |document| document.as_str());
        let write = self.shared.scripts.write(&holder, text, aside.as_deref());
        let kept: bool = self.shared.ask(Question::Script(&write)).await?;
        if kept { Ok(()) } else { Err(lock_lapsed()) }
    }
}

fn holder(lock: &StoreLock) -> Result<Holder<'_>, Error> {
    match (lock.downcast_ref::<Held>(), lock.fence()) {
        (Some(held), _) => Ok(held.holder()),
        // Another store wraps this one, and has wrapped the lock.
        (None, Some(fence)) => Ok(Holder { fence, owner: "" }),
        (None, None) => Err(failure("a write to redis needs the lock's fence")),
    }
}

fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(0.5 + fastrand::f64() / 2.0)
}

#[async_trait]
impl TokenStore for RedisStore {
    async fn load(&self) -> Result<Option<Tokens>, Error> {
        match self.read().await? {
            None => Ok(None),
            Some(Ok(record)) => Ok(record.into_tokens()),
            Some(Err(why)) => Err(unreadable(&why)),
        }
    }

    async fn save(&self, lock: &StoreLock, tokens: &Tokens) -> Result<(), Error> {
        self.rewrite(lock, Some(tokens)).await
    }

    async fn clear(&self, lock: &StoreLock) -> Result<(), Error> {
        self.rewrite(lock, None).await
    }

    /// Waits for a notification that the lock is free. A holder that dies sends none, so a waiter
    /// asks after a while how much of the holder's lease is left, and tries again after that.
    #[allow(clippy::disallowed_methods, reason = "between two looks at the lock")]
    async fn lock(&self) -> Result<StoreLock, Error> {
        let mut changes = self.shared.link.changes();
        let mut poll = FIRST_POLL;
        loop {
            let before = *changes.borrow_and_update();
            let listening = self.shared.link.listen(self.shared.scripts.channel()).await;
            // A separate task: if the wait is cancelled, the attempt still ends and releases what
            // it took.
            let attempt = tokio::spawn(Held::take(Arc::clone(&self.shared), self.lease));
            let taken = attempt
                .await
                .map_err(|_| failure("the runtime was shut down before the lock was taken"))??;
            if let Some(held) = taken {
                let (fence, lease) = (held.fence(), Arc::clone(held.lease()));
                return Ok(StoreLock::recording(held)
                    .with_fence(fence)
                    .with_check(move || lease.is_held()));
            }
            if !matches!(listening, Ok(true)) {
                tokio::time::sleep(jittered(poll)).await;
                poll = (poll * 2).min(LONGEST_POLL);
                continue;
            }
            let mut pause = BEFORE_ASKING.min(self.lease / 6);
            loop {
                let freed =
                    changes.wait_for(|now| now.free != before.free || now.broken != before.broken);
                if tokio::time::timeout(pause, freed).await.is_ok() {
                    break;
                }
                let Some(left) = self.shared.lease_left().await? else { break };
                pause = left + SPREAD;
            }
            let now = *changes.borrow();
            let has_news = now.tokens != before.tokens || now.failure != before.failure;
            let spread = if has_news { AFTER_NEWS / 2 } else { Duration::ZERO };
            let width = if has_news { AFTER_NEWS / 2 } else { SPREAD };
            tokio::time::sleep(spread + width.mul_f64(fastrand::f64())).await;
        }
    }

    async fn wait_for_change(&self, seen: Option<&Tokens>) -> Result<Option<Tokens>, Error> {
        let mut changes = self.shared.link.changes();
        let mut failure = None;
        loop {
            let before = *changes.borrow_and_update();
            let listening = self.shared.link.listen(self.shared.scripts.channel()).await;
            let stored = self.load().await?;
            if !is_same(stored.as_ref(), seen) {
                return Ok(stored);
            }
            if !matches!(listening, Ok(true)) {
                let now = self.load_failure().await?;
                if failure.get_or_insert_with(|| now.clone()) != &now {
                    return Ok(stored);
                }
                tokio::time::sleep(jittered(LONGEST_POLL)).await;
                continue;
            }
            let told = changes.wait_for(|now| {
                now.tokens != before.tokens
                    || now.failure != before.failure
                    || now.broken != before.broken
            });
            match told.await {
                Ok(now) if now.failure != before.failure => return Ok(stored),
                Ok(now) if now.broken != before.broken => {}
                _ => continue,
            }
            // Spreads the reconnects of all waiters that lost their connection.
            tokio::time::sleep(jittered(LONGEST_POLL)).await;
        }
    }

    async fn load_failure(&self) -> Result<Option<StoredFailure>, Error> {
        let command = self.shared.scripts.load_failure();
        let text: Vec<u8> = self.shared.ask(Question::Command(&command)).await?;
        let text = String::from_utf8(text).ok().filter(|text| !text.is_empty());
        Ok(text.map(StoredFailure::from_text))
    }

    async fn save_failure(&self, lock: &StoreLock, failure: &StoredFailure) -> Result<(), Error> {
        let holder = holder(lock)?;
        let lifetime = failure.lifetime();
        let text = if lifetime == Some(Duration::ZERO) { "" } else { failure.as_str() };
        let fail = self.shared.scripts.fail(&holder, text, lifetime);
        let kept: bool = self.shared.ask(Question::Script(&fail)).await?;
        if kept { Ok(()) } else { Err(lock_lapsed()) }
    }
}

impl Shared {
    async fn ask<T: ::redis::FromRedisValue>(&self, question: Question<'_>) -> Result<T, Error> {
        self.link.call(question).await.map_err(|error| store_error(&error))
    }

    /// The rest of the current holder's lease.
    async fn lease_left(&self) -> Result<Option<Duration>, Error> {
        let left: i64 = self.ask(Question::Command(&self.scripts.lease_left())).await?;
        Ok(u64::try_from(left).ok().filter(|left| *left > 0).map(Duration::from_millis))
    }
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStore").field("lease", &self.lease).finish_non_exhaustive()
    }
}

fn unreadable(why: &Unreadable) -> Error {
    failure(format!("the document in redis {why}"))
}

/// Installs a provider, because rustls panics if there is none or more than one to choose from.
fn choose_crypto() {
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        // Another thread may have been faster. Any provider works.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    }
}
