//! One refresh at a time, for every request that needs one.
//!
//! `join` decides whether a caller goes on, waits or fails; `in_flight` is what the waiters and the refresh share; `task` is the refresh itself;
//! `obtain` is where its tokens come from, `watch` is how it waits for its turn, and `progress` is what its refresher tells. `turn`
//! keeps two calls apart, and `work` lets waiters on another runtime end a refresh that stands still.

mod in_flight;
mod join;
mod obtain;
mod progress;
mod task;
mod turn;
mod watch;
mod work;

pub(crate) use self::{
    in_flight::Ending,
    join::{Allowance, Join, Waiter},
};
pub(super) use self::{
    in_flight::{InFlight, RefreshResult},
    turn::Turn,
    work::Work,
};
