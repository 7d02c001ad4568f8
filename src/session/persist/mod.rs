//! A session's dealings with its store.
//!
//! `known` is what the store is known to hold and what is still to be saved; `sync` locks, loads and saves; `background` saves
//! captured tokens behind the requests that brought them. `marks` is what the session does about a failure that another process
//! has left, and `fleet` hears and tells of such failures.

mod background;
mod fleet;
mod known;
mod marks;
mod sync;

pub(super) use self::{
    marks::Advice,
    sync::{Look, StoreSync},
};
