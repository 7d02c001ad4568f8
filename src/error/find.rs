//! Finds this crate's error in a chain of foreign ones.

use std::{error::Error as StdError, io, sync::Arc};

use reqwest_retry::RetryError;

use super::Error;

/// The longest chain of errors to follow. No real chain is as long.
pub(super) const LONGEST_CHAIN: usize = 128;

/// `left` bounds the number of links, because `source()` is foreign code and its chain may be
/// endless.
pub(super) fn find<'e>(link: &'e (dyn StdError + 'static), left: usize) -> Option<&'e Error> {
    let left = left.checked_sub(1)?;
    if let Some(found) = content::<Error>(link) {
        return Some(found);
    }
    let hidden: Option<&'e (dyn StdError + 'static)> = if let Some(error) =
        content::<reqwest_middleware::Error>(link)
    {
        // A transparent wrapper's `source()` skips the wrapped error itself.
        Some(match error {
            reqwest_middleware::Error::Middleware(inner) => inner.as_ref(),
            reqwest_middleware::Error::Reqwest(inner) => inner,
        })
    } else if let Some(RetryError::Error(err) | RetryError::WithRetries { err, .. }) = content(link)
    {
        Some(err)
    } else if let Some(error) = content::<io::Error>(link) {
        error.get_ref().map(|inner| inner as &(dyn StdError + 'static))
    } else if let Some(error) = link.downcast_ref::<Arc<dyn StdError + Send + Sync>>() {
        Some(&**error)
    } else {
        None
    };
    find(hidden.or_else(|| link.source())?, left)
}

/// The link itself, or the content of its `Arc` or `Box`, which `source()` skips.
fn content<'e, E: StdError + 'static>(link: &'e (dyn StdError + 'static)) -> Option<&'e E> {
    link.downcast_ref::<E>()
        .or_else(|| link.downcast_ref::<Arc<E>>().map(AsRef::as_ref))
        .or_else(|| link.downcast_ref::<Box<E>>().map(AsRef::as_ref))
}
