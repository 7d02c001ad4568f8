//! The connection to Redis that all calls share. It is replaced when it no longer works.

use std::{
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ErrorKind, FromRedisValue, ProtocolVersion,
    PushInfo, PushKind, RedisError, RedisResult, ScriptInvocation, Value,
    aio::MultiplexedConnection,
};
use tokio::sync::watch;

use super::script::{FAILURE, FREE, TOKENS};

use crate::{
    error::{Error, printable},
    store::failure::{failure, io_failure},
    time::within,
};

const CONNECT_LIMIT: Duration = Duration::from_secs(2);
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
/// The limit of a whole call, including a wait for another call that is connecting.
const CALL_LIMIT: Duration = Duration::from_millis(4500);
/// The limit of each step of a blocking call.
const BLOCKING_LIMIT: Duration = Duration::from_millis(500);

/// How often a call follows a cluster to another node.
const MOST_MOVES: u32 = 4;

pub(super) struct Link {
    /// The node of the URL.
    first: Client,
    /// The node of the keys, if a cluster has reported another one.
    moved_to: Mutex<Option<Client>>,
    current: Mutex<Option<Numbered>>,
    connecting: tokio::sync::Mutex<()>,
    subscribing: tokio::sync::Mutex<()>,
    made: AtomicU64,
    /// Whether the server does not support RESP3, and so sends no notifications.
    is_old: AtomicBool,
    changes: watch::Sender<Changes>,
}

#[derive(Clone)]
struct Numbered {
    number: u64,
    connection: MultiplexedConnection,
    /// Whether the connection has subscribed to the changes.
    subscribed: Arc<AtomicBool>,
}

/// The number of notifications on the channel, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    pub(super) tokens: u64,
    pub(super) failure: u64,
    pub(super) free: u64,
    /// The number of broken connections. Each takes its subscription with it.
    pub(super) broken: u64,
}

/// A command for Redis. It must be safe to repeat.
#[derive(Clone, Copy)]
pub(super) enum Question<'a> {
    Script(&'a ScriptInvocation<'a>),
    Command(&'a Cmd),
}

impl Question<'_> {
    async fn put<T: FromRedisValue>(
        self,
        connection: &mut MultiplexedConnection,
    ) -> RedisResult<T> {
        match self {
            Self::Script(script) => script.invoke_async(connection).await,
            Self::Command(command) => command.query_async(connection).await,
        }
    }
}

impl Link {
    pub(super) fn new(client: Client) -> Self {
        Self {
            first: client,
            moved_to: Mutex::new(None),
            current: Mutex::new(None),
            connecting: tokio::sync::Mutex::new(()),
            subscribing: tokio::sync::Mutex::new(()),
            made: AtomicU64::new(0),
            is_old: AtomicBool::new(false),
            changes: watch::Sender::default(),
        }
    }

    /// Returns a receiver of the notifications, which arrive once [`listen`](Self::listen) returns
    /// `true`.
    pub(super) fn changes(&self) -> watch::Receiver<Changes> {
        self.changes.subscribe()
    }

    /// Subscribes to the channel, unless the connection has already done so. Returns `false` if the
    /// server cannot notify, so that the keys have to be polled.
    pub(super) async fn listen(&self, channel: &str) -> RedisResult<bool> {
        let listening = async {
            let _one_at_a_time = self.subscribing.lock().await;
            let (mut current, _) = self.connection().await?;
            if self.is_old.load(Ordering::Relaxed) {
                return Ok(false);
            }
            if current.subscribed.load(Ordering::Acquire) {
                return Ok(true);
            }
            let mut discard = Discard { link: self, number: current.number, armed: true };
            let done = within(ANSWER_LIMIT, current.connection.subscribe(channel))
                .await
                .unwrap_or_else(|_| Err(timed_out()));
            discard.armed = matches!(&done, Err(error) if is_worn_out(error));
            match done {
                Ok(()) => {
                    current.subscribed.store(true, Ordering::Release);
                    Ok(true)
                }
                // The user may lack the permission.
                Err(error) if error.code() == Some("NOPERM") => Ok(false),
                Err(error) => Err(error),
            }
        };
        within(CALL_LIMIT, listening).await.unwrap_or_else(|_| Err(timed_out()))
    }

    /// Runs a command that is safe to repeat.
    pub(super) async fn call<T: FromRedisValue>(&self, question: Question<'_>) -> RedisResult<T> {
        let put = async {
            let mut moves = 0;
            loop {
                match self.call_once(question).await {
                    // The connection was already broken: Redis was restarted, or the runtime of the
                    // connection is gone.
                    Err(Lost { error, had_served: true }) if error.is_connection_dropped() => {
                        return self.call_once(question).await;
                    }
                    Err(Lost { error, .. }) if moves < MOST_MOVES && self.follow(&error) => {
                        moves += 1;
                    }
                    done => return done,
                }
            }
        };
        match within(CALL_LIMIT, put).await {
            Ok(done) => done.map_err(|lost| lost.error),
            Err(_) => Err(timed_out()),
        }
    }

    /// Moves to the node that the cluster reports for the keys, or back to the first node if that
    /// node is unreachable. Returns whether another call may succeed.
    fn follow(&self, error: &RedisError) -> bool {
        let mut moved_to = self.moved_to.lock().unwrap_or_else(PoisonError::into_inner);
        let next = if error.code() == Some("MOVED") {
            let info = self.first.get_connection_info();
            let node = error.redirect_node().and_then(|(node, _)| moved(info.addr(), node));
            match node.map(|addr| Client::open(info.clone().set_addr(addr))) {
                Some(Ok(client)) => Some(client),
                _ => return false,
            }
        } else if moved_to.is_some() && error.is_io_error() {
            None
        } else {
            return false;
        };
        *moved_to = next;
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = None;
        true
    }

    fn client(&self) -> Client {
        let moved_to = self.moved_to.lock().unwrap_or_else(PoisonError::into_inner);
        moved_to.as_ref().unwrap_or(&self.first).clone()
    }

    /// Runs a command on a thread without a runtime, on a separate connection.
    pub(super) fn call_blocking<T: FromRedisValue>(
        &self,
        script: &ScriptInvocation<'_>,
    ) -> RedisResult<T> {
        let mut connection = self.client().get_connection_with_timeout(BLOCKING_LIMIT)?;
        connection.set_read_timeout(Some(BLOCKING_LIMIT))?;
        connection.set_write_timeout(Some(BLOCKING_LIMIT))?;
        script.invoke(&mut connection)
    }

    async fn call_once<T: FromRedisValue>(&self, question: Question<'_>) -> Result<T, Lost> {
        let (Numbered { number, mut connection, .. }, had_served) =
            self.connection().await.map_err(|error| Lost { error, had_served: false })?;
        let mut discard = Discard { link: self, number, armed: true };
        let answer = within(ANSWER_LIMIT, question.put(&mut connection))
            .await
            .unwrap_or_else(|_| Err(timed_out()));
        discard.armed = matches!(&answer, Err(error) if is_worn_out(error));
        answer.map_err(|error| Lost { error, had_served })
    }

    /// The connection, and whether it already existed.
    async fn connection(&self) -> RedisResult<(Numbered, bool)> {
        let _one_at_a_time = self.connecting.lock().await;
        if let Some(current) = self.current.lock().unwrap_or_else(PoisonError::into_inner).clone() {
            return Ok((current, true));
        }
        let connection = match self.connect().await {
            Err(error) if is_too_old(&error) && !self.is_old.swap(true, Ordering::Relaxed) => {
                self.connect().await?
            }
            done => done?,
        };
        let new = Numbered {
            number: self.made.fetch_add(1, Ordering::Relaxed),
            connection,
            subscribed: Arc::default(),
        };
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Some(new.clone());
        Ok((new, false))
    }

    async fn connect(&self) -> RedisResult<MultiplexedConnection> {
        // Without the library's own time limits, which do not take a suspended process into
        // account.
        let mut config =
            AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None);
        let mut info = self.client().get_connection_info().clone();
        if !self.is_old.load(Ordering::Relaxed) {
            let settings = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
            info = info.set_redis_settings(settings);
            let changes = self.changes.clone();
            config = config.set_push_sender(move |told: PushInfo| {
                note(&changes, &told);
                Ok::<_, std::convert::Infallible>(())
            });
        }
        let client = Client::open(info)?;
        let connecting = client.get_multiplexed_async_connection_with_config(&config);
        within(CONNECT_LIMIT, connecting).await.unwrap_or_else(|_| Err(timed_out()))
    }
}

fn timed_out() -> RedisError {
    io::Error::from(io::ErrorKind::TimedOut).into()
}

/// The connection's driver calls this, so it must not block.
fn note(changes: &watch::Sender<Changes>, told: &PushInfo) {
    match (&told.kind, told.data.as_slice()) {
        (PushKind::Disconnection, _) => changes.send_modify(|changes| changes.broken += 1),
        (PushKind::Message, [_, Value::BulkString(what)]) => {
            changes.send_modify(|changes| match what.as_slice() {
                TOKENS => changes.tokens += 1,
                FAILURE => changes.failure += 1,
                FREE => changes.free += 1,
                _ => {}
            });
        }
        _ => {}
    }
}

/// The address of another node of the cluster, reached in the same way. A node that does not know
/// its own name leaves it empty, which stands for the host of the request.
fn moved(from: &ConnectionAddr, node: &str) -> Option<ConnectionAddr> {
    let (to_host, port) = node.rsplit_once(':')?;
    let port = port.parse().ok()?;
    let host = |asked: &str| if to_host.is_empty() { asked } else { to_host }.to_owned();
    match from {
        ConnectionAddr::Tcp(asked, _) => Some(ConnectionAddr::Tcp(host(asked), port)),
        ConnectionAddr::TcpTls { host: asked, insecure, tls_params, .. } => {
            Some(ConnectionAddr::TcpTls {
                host: host(asked),
                port,
                insecure: *insecure,
                tls_params: tls_params.clone(),
            })
        }
        _ => None,
    }
}

/// Redis 5 does not support `HELLO`.
fn is_too_old(error: &RedisError) -> bool {
    error.kind() == ErrorKind::RESP3NotSupported
        || error.code() == Some("NOPROTO")
        || error.detail().is_some_and(|detail| detail.contains("unknown command"))
}

struct Lost {
    error: RedisError,
    had_served: bool,
}

/// Discards a connection that did not respond, even if the caller stopped waiting: the connection
/// may never respond again.
struct Discard<'a> {
    link: &'a Link,
    number: u64,
    armed: bool,
}

impl Drop for Discard<'_> {
    fn drop(&mut self) {
        if self.armed {
            let mut current = self.link.current.lock().unwrap_or_else(PoisonError::into_inner);
            if current.as_ref().is_some_and(|current| current.number == self.number) {
                *current = None;
                // Its subscription is lost with it, and nothing else reports that.
                self.link.changes.send_modify(|changes| changes.broken += 1);
            }
        }
    }
}

/// Whether a new connection may succeed. After a failover the old one leads to a replica.
fn is_worn_out(error: &RedisError) -> bool {
    error.is_io_error() || error.is_unrecoverable_error() || error.code() == Some("READONLY")
}

/// Whether a person has to act.
pub(super) fn is_final(error: &RedisError) -> bool {
    error.kind() == ErrorKind::AuthenticationFailed
        || matches!(error.code(), Some("NOAUTH" | "WRONGPASS" | "NOPERM"))
}

/// Describes the error without the text of the server or the parser, which may quote a token.
pub(super) fn store_error(error: &RedisError) -> Error {
    if error.is_io_error() {
        return io_failure(
            "redis cannot be reached",
            io::Error::other(printable(&error.to_string())),
        );
    }
    match error.code() {
        Some(code) => failure(format!("redis rejected with {}", printable(code))),
        None if error.kind() == ErrorKind::AuthenticationFailed => {
            failure("redis rejected the user or password")
        }
        None => {
            failure(format!("redis sent an unexpected response ({})", printable(error.category())))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use redis::ServerErrorKind;

    use super::*;

    #[test]
    fn a_move_keeps_the_way_of_connecting() {
        let tcp = |host: &str, port| ConnectionAddr::Tcp(host.to_owned(), port);
        let table = [
            ("10.0.0.7:6381", Some(tcp("10.0.0.7", 6381))),
            (":6381", Some(tcp("a", 6381))),
            ("::1:6381", Some(tcp("::1", 6381))),
            ("nonsense", None),
            ("b:port", None),
        ];
        for (node, to) in table {
            assert_eq!(moved(&tcp("a", 6379), node), to, "{node}");
        }
    }

    #[test]
    fn errors_judge_the_connection_and_quote_nothing() {
        let of = |kind| RedisError::from((kind, "s3cret", "s3cret".to_owned()));
        let io = |kind: io::ErrorKind| RedisError::from(io::Error::from(kind));
        // The columns: whether the connection is worn out, whether the error is final, and the
        // text.
        let table = [
            (io(io::ErrorKind::TimedOut), true, false, "redis cannot be reached"),
            (io(io::ErrorKind::ConnectionReset), true, false, "redis cannot be reached"),
            (of(ErrorKind::Parse), true, false, "redis sent an unexpected response (parse error)"),
            (
                of(ErrorKind::AuthenticationFailed),
                true,
                true,
                "redis rejected the user or password",
            ),
            // After a failover.
            (
                of(ErrorKind::Server(ServerErrorKind::ReadOnly)),
                true,
                false,
                "redis rejected with READONLY",
            ),
            (
                of(ErrorKind::Server(ServerErrorKind::NoPerm)),
                false,
                true,
                "redis rejected with NOPERM",
            ),
            (
                of(ErrorKind::Server(ServerErrorKind::BusyLoading)),
                false,
                false,
                "redis rejected with LOADING",
            ),
            (
                of(ErrorKind::UnexpectedReturnType),
                false,
                false,
                "redis sent an unexpected response (type error)",
            ),
        ];
        for (error, worn_out, last, said) in table {
            assert_eq!(is_worn_out(&error), worn_out, "{said}");
            assert_eq!(is_final(&error), last, "{said}");
            let told = store_error(&error);
            assert_eq!(told.source().unwrap().to_string(), said);
            assert!(!format!("{told:?}").contains("s3cret"), "{told:?}");
        }
    }
}
