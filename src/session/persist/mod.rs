//! A session's use of its store.
//!
//! - `known` is what the session knows about the store, and what is left to save.
//! - `sync` locks and loads, and `save` saves.
//! - `background` saves captured tokens without delaying the requests that brought them, and `saver`
//!   ends such a save if its runtime has stopped.
//! - `marks` decides what the session does about the failure of another process.
//! - `fleet` loads and shares such failures.

mod background;
mod fleet;
mod known;
mod marks;
mod save;
mod saver;
mod sync;

pub(super) use self::{
    marks::Advice,
    sync::{Look, StoreSync},
};
