//! A login in a row of PostgreSQL.

use std::{
    fmt,
    sync::{Arc, Mutex as StdMutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use async_trait::async_trait;
use reqwest_reauth::{
    AccessToken, Error, ErrorKind, RefreshToken, StoreLock, StoredFailure, TokenStore, Tokens,
};
use tokio::{sync::Mutex, task::JoinHandle};
use tokio_postgres::{Client, Config, NoTls, Row};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The default of [`PostgresStore::longest_wait`].
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// The server ends a connection that holds a lock and sends nothing for this long. It covers a
/// holder that is stopped, or whose machine is gone.
const LEASE: Duration = Duration::from_secs(120);
/// How long after its last statement a holder is certain to keep the lock for one more call to the
/// token endpoint.
const CERTAIN: Duration = Duration::from_secs(50);

/// A login in a row of PostgreSQL, shared by processes on several machines.
///
/// The lock is an advisory lock of the database session, on a connection of its own. A row that is
/// locked by `SELECT … FOR UPDATE` would exclude others as well, but its transaction stays open
/// during the call to the token endpoint, which holds up `VACUUM`. The server frees the lock as soon
/// as its connection is lost.
///
/// Each holder raises the generation of the row, and every write requires that generation. A holder
/// that has lost the lock therefore cannot overwrite what the next holder has stored. Writes use the
/// lock's connection, so they also fail if it is lost.
///
/// A session learns from a refresh that its refresh token rotates. This store cannot keep that, since
/// [`Tokens`] does not show it. Until its first refresh, a new session whose database fails may
/// therefore send the refresh token without the lock.
///
/// Nothing is connected before the first use, and a lost connection is replaced at the next use. A
/// store has at most two connections: one for reads, and one while it waits for the lock or holds it.
/// The tokens are stored as plain text: restrict who may read the table.
pub struct PostgresStore {
    config: Config,
    login: String,
    longest_wait: Duration,
    /// The connection for reads. It is absent while it is in use, so that a read that is cancelled
    /// takes its connection with it: the server behind it may be unreachable.
    reader: Mutex<Option<Connection>>,
}

impl PostgresStore {
    /// The table, for your migrations.
    pub const SCHEMA: &str = "
        CREATE TABLE IF NOT EXISTS reauth_logins (
            login          text PRIMARY KEY,
            generation     bigint NOT NULL,
            access_token   text,
            refresh_token  text,
            expires_at     timestamptz,
            key_thumbprint text,
            failure        text,
            failure_until  timestamptz
        )";

    /// Creates a store for the login of this name. Nothing is connected yet.
    pub fn new(mut config: Config, login: impl Into<String>) -> Self {
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(CONNECT_TIMEOUT);
        }
        Self { config, login: login.into(), longest_wait: LONGEST_WAIT, reader: Mutex::new(None) }
    }

    /// Sets how long to wait for the lock. Default: 60 s. The session's `refresh_timeout` limits the
    /// wait as well.
    #[must_use]
    pub fn longest_wait(mut self, limit: Duration) -> Self {
        self.longest_wait = limit;
        self
    }

    /// Reads the row, on the connection that earlier reads have left, or on a new one.
    async fn read(&self, query: &str) -> Result<Option<Row>, Error> {
        let mut reader = self.reader.lock().await;
        if let Some(kept) = reader.take() {
            match kept.client.query_opt(query, &[&self.login]).await {
                Ok(row) => {
                    *reader = Some(kept);
                    return Ok(row);
                }
                // The server was restarted since the last read.
                Err(error) if error.is_closed() || kept.client.is_closed() => {}
                Err(error) => return Err(failed("the login cannot be read", &error)),
            }
        }
        let fresh = Connection::open(&self.config).await?;
        let row = fresh
            .client
            .query_opt(query, &[&self.login])
            .await
            .map_err(|error| failed("the login cannot be read", &error))?;
        *reader = Some(fresh);
        Ok(row)
    }

    /// Returns the holder behind a lock of this login.
    fn holder<'l>(&self, lock: &'l StoreLock) -> Result<&'l Holder, Error> {
        match lock.downcast_ref::<Arc<Holder>>() {
            Some(holder) if holder.login == self.login => Ok(holder),
            _ => Err(refused("a write needs the lock of its own login")),
        }
    }
}

#[async_trait]
impl TokenStore for PostgresStore {
    async fn load(&self) -> Result<Option<Tokens>, Error> {
        let row = self
            .read(
                "SELECT access_token, refresh_token, expires_at, key_thumbprint
                 FROM reauth_logins WHERE login = $1",
            )
            .await?;
        row.as_ref().map_or(Ok(None), tokens)
    }

    async fn save(&self, lock: &StoreLock, tokens: &Tokens) -> Result<(), Error> {
        self.holder(lock)?.write(Some(tokens)).await
    }

    /// Keeps the row, so that the generation never falls.
    async fn clear(&self, lock: &StoreLock) -> Result<(), Error> {
        self.holder(lock)?.write(None).await
    }

    async fn lock(&self) -> Result<StoreLock, Error> {
        let holder = Arc::new(Holder::wait(&self.config, &self.login, self.longest_wait).await?);
        let fence = holder.generation.unsigned_abs();
        let check = Arc::downgrade(&holder);
        Ok(StoreLock::holding(holder)
            .with_fence(fence)
            .with_check(move || check.upgrade().is_some_and(|holder| holder.is_held())))
    }

    async fn load_failure(&self) -> Result<Option<StoredFailure>, Error> {
        let row = self
            .read(
                "SELECT failure FROM reauth_logins WHERE login = $1 AND failure IS NOT NULL
                 AND (failure_until IS NULL OR failure_until > now())",
            )
            .await?;
        let text = row.map(|row| row.try_get::<_, String>(0)).transpose();
        let text = text.map_err(|error| failed("the failure cannot be read", &error))?;
        Ok(text.map(StoredFailure::from_text))
    }

    async fn save_failure(&self, lock: &StoreLock, failure: &StoredFailure) -> Result<(), Error> {
        self.holder(lock)?.write_failure(failure).await
    }
}

impl fmt::Debug for PostgresStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the configuration, which has the database's password.
        f.debug_struct("PostgresStore").field("login", &self.login).finish_non_exhaustive()
    }
}

/// A moment by two clocks. The monotonic clock stands still while a machine is suspended, and the
/// wall clock can be set back. The server's clock does neither.
struct Moment(Instant, SystemTime);

impl Moment {
    fn now() -> Self {
        Self(Instant::now(), SystemTime::now())
    }

    /// Returns the longer of both, because too long only costs another look at the store.
    fn elapsed(&self) -> Duration {
        self.0.elapsed().max(self.1.elapsed().unwrap_or_default())
    }
}

/// A connection that is closed when it is dropped, whatever it waits for.
struct Connection {
    client: Client,
    task: JoinHandle<()>,
}

impl Connection {
    async fn open(config: &Config) -> Result<Self, Error> {
        let connected = config.connect(NoTls).await;
        let (client, connection) =
            connected.map_err(|error| failed("the database cannot be reached", &error))?;
        // An error of the connection is also that of the statement that waits for it.
        let task = tokio::spawn(async move { drop(connection.await) });
        Ok(Self { client, task })
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // Without this, the connection would stay open until the statement in progress has ended,
        // and an abandoned wait for the lock would still take it.
        self.task.abort();
    }
}

/// The holder of a lock, until it is dropped.
struct Holder {
    connection: Connection,
    login: String,
    generation: i64,
    last_statement: StdMutex<Moment>,
}

impl Holder {
    async fn wait(config: &Config, login: &str, limit: Duration) -> Result<Self, Error> {
        let cannot = |error| failed("the login cannot be locked", &error);
        let connection = Connection::open(config).await?;
        let client = &connection.client;
        // A waiter whose process is gone leaves the queue within a second. A holder whose machine is
        // gone is noticed within 25 s.
        let settings = format!(
            "SET lock_timeout = {}; SET idle_session_timeout = {};
             SET client_connection_check_interval = 1000;
             SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3",
            // Zero would mean no limit.
            limit.as_millis().clamp(1, 3_600_000),
            LEASE.as_millis(),
        );
        client.batch_execute(&settings).await.map_err(cannot)?;
        let asked = Instant::now();
        // Two logins with the same hash share a lock, which only costs time.
        client
            .execute("SELECT pg_advisory_lock(hashtextextended('reauth ' || $1, 0))", &[&login])
            .await
            .map_err(|error| match error.code() {
                Some(&tokio_postgres::error::SqlState::LOCK_NOT_AVAILABLE) => {
                    refused(format!("the lock was not free within {:?}", asked.elapsed()))
                }
                _ => cannot(error),
            })?;
        let last_statement = StdMutex::new(Moment::now());
        let row = client
            .query_one(
                "INSERT INTO reauth_logins AS old (login, generation) VALUES ($1, 1)
                 ON CONFLICT (login) DO UPDATE SET generation = old.generation + 1
                 RETURNING generation",
                &[&login],
            )
            .await
            .map_err(cannot)?;
        let generation = row.try_get(0).map_err(cannot)?;
        Ok(Self { connection, login: login.to_owned(), generation, last_statement })
    }

    fn is_held(&self) -> bool {
        let last = self.last_statement.lock().unwrap_or_else(PoisonError::into_inner);
        !self.connection.client.is_closed() && last.elapsed() < CERTAIN
    }

    async fn write(&self, tokens: Option<&Tokens>) -> Result<(), Error> {
        let access = tokens.and_then(Tokens::access_token).map(AccessToken::expose_secret);
        let refresh = tokens.and_then(Tokens::refresh_token).map(RefreshToken::expose_secret);
        let expires_at = tokens.and_then(Tokens::expires_at);
        let thumbprint = tokens.and_then(Tokens::key_thumbprint);
        let updated = self
            .connection
            .client
            .execute(
                "UPDATE reauth_logins SET access_token = $3, refresh_token = $4, expires_at = $5,
                    key_thumbprint = $6
             WHERE login = $1 AND generation = $2",
                &[&self.login, &self.generation, &access, &refresh, &expires_at, &thumbprint],
            )
            .await;
        self.written(updated)
    }

    async fn write_failure(&self, failure: &StoredFailure) -> Result<(), Error> {
        // By the server's clock, so that the clocks of the processes do not matter. A failure that
        // lives for zero seconds withdraws the previous one, because it is never read.
        let seconds = failure.lifetime().map(|lifetime| lifetime.as_secs_f64());
        let updated = self
            .connection
            .client
            .execute(
                "UPDATE reauth_logins
             SET failure = $3, failure_until = now() + make_interval(secs => $4)
             WHERE login = $1 AND generation = $2",
                &[&self.login, &self.generation, &failure.as_str(), &seconds],
            )
            .await;
        self.written(updated)
    }

    /// Checks that a write has found its row.
    fn written(&self, updated: Result<u64, tokio_postgres::Error>) -> Result<(), Error> {
        match updated {
            Ok(1) => {
                let mut last = self.last_statement.lock().unwrap_or_else(PoisonError::into_inner);
                *last = Moment::now();
                Ok(())
            }
            Ok(_) => {
                Err(refused("another process has locked the login since; nothing was written"))
            }
            Err(error) => Err(failed("the login cannot be written", &error)),
        }
    }
}

fn tokens(row: &Row) -> Result<Option<Tokens>, Error> {
    let text = |column| -> Result<Option<String>, Error> {
        row.try_get(column).map_err(|error| failed("the login cannot be read", &error))
    };
    let (access, refresh) = (text("access_token")?, text("refresh_token")?);
    let mut tokens = match (access, refresh) {
        (None, None) => return Ok(None),
        (Some(access), None) => Tokens::new(access)?,
        (None, Some(refresh)) => Tokens::from_refresh_token(refresh)?,
        (Some(access), Some(refresh)) => Tokens::new(access)?.with_refresh_token(refresh)?,
    };
    let expires_at: Option<SystemTime> =
        row.try_get("expires_at").map_err(|error| failed("the login cannot be read", &error))?;
    if let Some(expires_at) = expires_at {
        tokens = tokens.with_expires_at(expires_at);
    }
    if let Some(thumbprint) = text("key_thumbprint")? {
        tokens = tokens.with_key_thumbprint(thumbprint);
    }
    Ok(Some(tokens))
}

fn refused(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::Store, what.into())
}

/// The server's own errors are cut to code and message, because their details can quote a row, and
/// the row has the tokens.
fn failed(what: &str, error: &tokio_postgres::Error) -> Error {
    let why = match error.as_db_error() {
        Some(error) => format!("{} ({})", error.message(), error.code().code()),
        None => match std::error::Error::source(error) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        },
    };
    refused(format!("{what}: {why}"))
}
