mod link;
mod lock;
mod script;

use std::{fmt, sync::Arc, time::Duration};

use ::redis::Client;
use async_trait::async_trait;
use zeroize::Zeroizing;

use self::{
    link::{Link, is_final, store_error},
    lock::Held,
    script::Scripts,
};
use super::{
    StoreLock, TokenStore,
    failure::failure,
    record::{Record, Rest, Unreadable},
};
use crate::{
    error::{Error, ErrorKind},
    token::Tokens,
};

const DEFAULT_LEASE: Duration = Duration::from_secs(30);
const SHORTEST_LEASE: Duration = Duration::from_millis(100);
const LONGEST_LEASE: Duration = Duration::from_secs(24 * 60 * 60);
const FIRST_POLL: Duration = Duration::from_millis(10);
const LONGEST_POLL: Duration = Duration::from_millis(200);

/// One login in Redis (5 or later, or Valkey), shared by the processes of a fleet.
///
/// Under the key `k` it keeps three, in one hash slot: `{k}:tokens`, a hash with the JSON document
/// of [`FileStore`](crate::FileStore); `{k}:lock`; and `{k}:fence`. None but the lock expires. The
/// tokens are not encrypted. Choose a Redis that does not evict keys.
///
/// - The lock is a [lease](Self::lease), renewed at a third of its length while it is held, and
///   given back when it is dropped, so that only a holder that dies or stalls makes others wait for
///   its end.
/// - Each holder gets a higher [fence](StoreLock::fence). A save or clear is rejected, with a
///   [`Store`](ErrorKind::Store) error, once another has had the lock since: a holder that was
///   stopped cannot overwrite what is newer. The fence goes on rising if Redis loses its data.
/// - While Redis is away each call fails within five seconds, at once where the connection is
///   rejected; when it is back, the next call connects again.
///
/// A document that cannot be read is an error; the next save keeps it in the hash, in a field
/// `broken:…` of its own. Replicas follow Redis asynchronously: a failover in the middle of a
/// refresh can lose the lock or the last save.
///
/// ```no_run
/// # async fn f() -> Result<(), reqwest_reauth::Error> {
/// use reqwest_reauth::{RedisStore, Session, Tokens};
///
/// let store = RedisStore::connect("rediss://:password@redis.example.com", "worker-login").await?;
/// let session = Session::builder(Tokens::empty()).origin("https://api.example.com").store(store);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct RedisStore {
    shared: Arc<Shared>,
    lease: Duration,
}

/// What a store, its locks and their renewals have in common.
struct Shared {
    link: Link,
    scripts: Scripts,
}

impl RedisStore {
    /// A store at `redis[s]://[user[:password]@]host[:port][/database]`, under this key.
    ///
    /// Connects; but a Redis that cannot be reached now is no error, since each call tries again.
    /// `rediss://` trusts the system's root certificates, or those that the environment variable
    /// `SSL_CERT_FILE` names. Where the program has not chosen a rustls crypto provider, it
    /// installs aws-lc-rs as the process's default.
    ///
    /// # Errors
    /// [`InvalidConfig`](ErrorKind::InvalidConfig) for a URL that cannot be used, and a key that is
    /// empty or starts with `}`. [`Store`](ErrorKind::Store) if Redis refuses the user or password.
    pub async fn connect(url: &str, key: impl Into<String>) -> Result<Self, Error> {
        let key = key.into();
        if key.is_empty() || key.starts_with('}') {
            // `{}` is no hash tag: the keys would be spread over the cluster.
            return Err(Error::new(
                ErrorKind::InvalidConfig,
                "the redis key is empty or starts with a closing brace",
            ));
        }
        // The parser's own words are left out, for the URL has the password.
        let client = Client::open(url)
            .map_err(|_| Error::new(ErrorKind::InvalidConfig, "the redis url cannot be used"))?;
        if url.trim_start().get(..7).is_some_and(|scheme| scheme.eq_ignore_ascii_case("rediss:")) {
            choose_crypto();
        }
        let shared = Arc::new(Shared { link: Link::new(client), scripts: Scripts::new(&key) });
        match shared.link.call::<Option<Vec<u8>>>(&shared.scripts.load()).await {
            Err(error) if error.kind() == ::redis::ErrorKind::InvalidClientConfig => {
                Err(Error::new(
                    ErrorKind::InvalidConfig,
                    "the redis url asks for what this build cannot do",
                ))
            }
            Err(error) if is_final(&error) => Err(store_error(&error)),
            _ => Ok(Self { shared, lease: DEFAULT_LEASE }),
        }
    }

    /// How long the lock outlives a holder that dies or stalls. Default: 30 s. At least 100 ms and
    /// at most a day.
    pub fn lease(mut self, length: Duration) -> Self {
        self.lease = length.clamp(SHORTEST_LEASE, LONGEST_LEASE);
        self
    }

    async fn read(&self) -> Result<Option<Result<Record, Unreadable>>, Error> {
        let document: Option<Vec<u8>> = self.shared.ask(&self.shared.scripts.load()).await?;
        Ok(document.map(Zeroizing::new).map(|document| Record::parse(&document)))
    }

    /// `None` forgets the tokens.
    async fn rewrite(&self, lock: &StoreLock, tokens: Option<&Tokens>) -> Result<(), Error> {
        let fence = lock
            .fence()
            .ok_or_else(|| failure("redis was to be written without the lock's fence"))?;
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
        let kept: bool =
            self.shared.ask(&self.shared.scripts.write(fence, text, aside.as_deref())).await?;
        if kept {
            Ok(())
        } else {
            Err(failure("the lock was lost to another holder, and nothing was written"))
        }
    }
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

    async fn lock(&self) -> Result<StoreLock, Error> {
        let mut pause = FIRST_POLL;
        loop {
            // A task of its own: where the wait is dropped, the attempt still ends, and gives back
            // what it got.
            let attempt = tokio::spawn(Held::take(Arc::clone(&self.shared), self.lease));
            let held = attempt
                .await
                .map_err(|_| failure("the runtime was shut down before the lock was taken"))??;
            if let Some(held) = held {
                let fence = held.fence();
                return Ok(StoreLock::holding(held).with_fence(fence));
            }
            tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
            pause = (pause * 2).min(LONGEST_POLL);
        }
    }
}

impl Shared {
    async fn ask<T: ::redis::FromRedisValue>(
        &self,
        script: &::redis::ScriptInvocation<'_>,
    ) -> Result<T, Error> {
        self.link.call(script).await.map_err(|error| store_error(&error))
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

/// rustls panics where there is no provider, or more than one to choose from.
fn choose_crypto() {
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        // Somebody else may have been faster: any will do.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    }
}
