//! One connection to Redis that all calls share, and that is made again when it is worn out.

use std::{
    io,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use redis::{
    AsyncConnectionConfig, Client, ErrorKind, FromRedisValue, RedisError, RedisResult,
    ScriptInvocation, aio::MultiplexedConnection,
};

use crate::{
    error::{Error, printable},
    store::failure::{failure, io_failure},
    time::within,
};

const CONNECT_LIMIT: Duration = Duration::from_secs(2);
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
/// Over everything, the wait for another call that is connecting included.
const CALL_LIMIT: Duration = Duration::from_millis(4500);
/// For each step of a call on a thread that blocks.
const BLOCKING_LIMIT: Duration = Duration::from_millis(500);

pub(super) struct Link {
    client: Client,
    current: Mutex<Option<Numbered>>,
    connecting: tokio::sync::Mutex<()>,
    made: AtomicU64,
}

#[derive(Clone)]
struct Numbered {
    number: u64,
    connection: MultiplexedConnection,
}

impl Link {
    pub(super) fn new(client: Client) -> Self {
        Self {
            client,
            current: Mutex::new(None),
            connecting: tokio::sync::Mutex::new(()),
            made: AtomicU64::new(0),
        }
    }

    /// Puts a question that may be put twice.
    pub(super) async fn call<T: FromRedisValue>(
        &self,
        script: &ScriptInvocation<'_>,
    ) -> RedisResult<T> {
        let put = async {
            match self.call_once(script).await {
                // The connection was broken before: Redis was restarted, or the runtime that drove
                // it is gone.
                Err(Lost { error, had_served: true }) if error.is_connection_dropped() => {
                    self.call_once(script).await
                }
                done => done,
            }
        };
        match within(CALL_LIMIT, put).await {
            Ok(done) => done.map_err(|lost| lost.error),
            Err(_) => Err(timed_out()),
        }
    }

    /// The same for a thread that has no runtime any more, on a connection of its own.
    pub(super) fn call_blocking<T: FromRedisValue>(
        &self,
        script: &ScriptInvocation<'_>,
    ) -> RedisResult<T> {
        let mut connection = self.client.get_connection_with_timeout(BLOCKING_LIMIT)?;
        connection.set_read_timeout(Some(BLOCKING_LIMIT))?;
        connection.set_write_timeout(Some(BLOCKING_LIMIT))?;
        script.invoke(&mut connection)
    }

    async fn call_once<T: FromRedisValue>(&self, script: &ScriptInvocation<'_>) -> Result<T, Lost> {
        let (Numbered { number, mut connection }, had_served) =
            self.connection().await.map_err(|error| Lost { error, had_served: false })?;
        let mut discard = Discard { link: self, number, armed: true };
        let answer = within(ANSWER_LIMIT, script.invoke_async(&mut connection))
            .await
            .unwrap_or_else(|_| Err(timed_out()));
        discard.armed = matches!(&answer, Err(error) if is_worn_out(error));
        answer.map_err(|error| Lost { error, had_served })
    }

    /// The connection, and whether it was there before.
    async fn connection(&self) -> RedisResult<(Numbered, bool)> {
        let _one_at_a_time = self.connecting.lock().await;
        if let Some(current) = self.current.lock().unwrap_or_else(PoisonError::into_inner).clone() {
            return Ok((current, true));
        }
        // Without limits of its own, which would not look at the sockets of a process that was
        // stopped.
        let config =
            AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None);
        let connecting = self.client.get_multiplexed_async_connection_with_config(&config);
        let connection =
            within(CONNECT_LIMIT, connecting).await.unwrap_or_else(|_| Err(timed_out()))?;
        let new = Numbered { number: self.made.fetch_add(1, Ordering::Relaxed), connection };
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Some(new.clone());
        Ok((new, false))
    }
}

fn timed_out() -> RedisError {
    io::Error::from(io::ErrorKind::TimedOut).into()
}

struct Lost {
    error: RedisError,
    had_served: bool,
}

/// Gives a connection up that did not answer, also where the caller did not wait for the answer: it
/// may never answer again.
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
            }
        }
    }
}

/// Whether another connection may do better. After a failover the old one leads to a replica.
fn is_worn_out(error: &RedisError) -> bool {
    error.is_io_error() || error.is_unrecoverable_error() || error.code() == Some("READONLY")
}

/// Whether it takes a person to change it.
pub(super) fn is_final(error: &RedisError) -> bool {
    error.kind() == ErrorKind::AuthenticationFailed
        || matches!(error.code(), Some("NOAUTH" | "WRONGPASS" | "NOPERM"))
}

/// Says what happened without the words of the server or of the parser, for they may quote a token.
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
            failure(format!("redis did not answer as expected ({})", printable(error.category())))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use redis::ServerErrorKind;

    use super::*;

    #[test]
    fn errors_say_what_becomes_of_the_connection_and_no_word_of_the_servers() {
        let of = |kind| RedisError::from((kind, "s3cret", "s3cret".to_owned()));
        let io = |kind: io::ErrorKind| RedisError::from(io::Error::from(kind));
        // Worn out, final, and what is said.
        let table = [
            (io(io::ErrorKind::TimedOut), true, false, "redis cannot be reached"),
            (io(io::ErrorKind::ConnectionReset), true, false, "redis cannot be reached"),
            (of(ErrorKind::Parse), true, false, "redis did not answer as expected (parse error)"),
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
                "redis did not answer as expected (type error)",
            ),
        ];
        for (error, worn_out, last, said) in table {
            assert_eq!((is_worn_out(&error), is_final(&error)), (worn_out, last), "{said}");
            let told = store_error(&error);
            assert_eq!(told.source().unwrap().to_string(), said);
            assert!(!format!("{told:?}").contains("s3cret"), "{told:?}");
        }
    }
}
