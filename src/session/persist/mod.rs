//! A session's dealings with its store.
//!
//! `known` is what the store is known to hold and what is still to be saved; `sync` locks, loads and saves; `background` saves
//! captured tokens behind the requests that brought them.

mod background;
mod known;
mod sync;

pub(super) use self::sync::{Look, StoreSync};
