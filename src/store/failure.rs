use std::io;

use crate::error::{Error, ErrorKind};

/// What a store was doing when it failed, and why. It never contains a value, because values here
/// are secrets.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
struct Failure {
    what: String,
    source: Option<io::Error>,
}

/// Creates a [`Store`](ErrorKind::Store) error with this text.
pub(super) fn failure(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::Store, Failure { what: what.into(), source: None })
}

/// Creates the same error with the system's error as its cause.
pub(super) fn io_failure(what: impl Into<String>, source: io::Error) -> Error {
    Error::new(ErrorKind::Store, Failure { what: what.into(), source: Some(source) })
}

/// A save was rejected because its lock had lapsed. It may be repeated under a new lock.
#[derive(Debug, thiserror::Error)]
#[error("the lock was lost to another holder or has lapsed; nothing was written")]
struct LockLapsed;

#[cfg(feature = "redis")]
pub(super) fn lock_lapsed() -> Error {
    Error::new(ErrorKind::Store, LockLapsed)
}

/// Whether a store failed for this reason.
pub(crate) fn is_lock_lapsed(error: &Error) -> bool {
    let source = std::error::Error::source(error);
    source.and_then(|source| source.downcast_ref::<LockLapsed>()).is_some()
}
