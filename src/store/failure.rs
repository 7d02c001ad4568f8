use std::io;

use crate::error::{Error, ErrorKind};

/// What a store was doing when it failed, and why. Never with a value in it, since values here are
/// secrets.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
struct Failure {
    what: String,
    source: Option<io::Error>,
}

/// A [`Store`](ErrorKind::Store) error that says this.
pub(super) fn failure(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::Store, Failure { what: what.into(), source: None })
}

/// The same with the system's own words as its cause.
pub(super) fn io_failure(what: impl Into<String>, source: io::Error) -> Error {
    Error::new(ErrorKind::Store, Failure { what: what.into(), source: Some(source) })
}

/// A save was refused because its lock had lapsed: it may be made again under a new one.
#[derive(Debug, thiserror::Error)]
#[error("the lock was lost to another holder or has lapsed; nothing was written")]
struct LockLapsed;

#[cfg(feature = "redis")]
pub(super) fn lock_lapsed() -> Error {
    Error::new(ErrorKind::Store, LockLapsed)
}

/// Whether this is why a store failed.
pub(crate) fn is_lock_lapsed(error: &Error) -> bool {
    let source = std::error::Error::source(error);
    source.and_then(|source| source.downcast_ref::<LockLapsed>()).is_some()
}
