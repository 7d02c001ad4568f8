//! One refresh at a time, for every request that needs one.
//!
//! - `join` decides whether a caller goes on, waits or fails.
//! - `in_flight` is what the waiters and the refresh share.
//! - `task` is the refresh itself.
//! - `obtain` gets its tokens: `search` looks for a refresh token in the session and in the store, and
//!   `watch` waits for the lock or for the tokens of another process.
//! - `progress` is how far it is, and `log` receives the reports of its refresher.
//! - `watchdog` ends a refresh that nothing drives any more, which `work` makes possible from another
//!   runtime.
//! - `turn` prevents two calls at once.

mod in_flight;
mod join;
mod log;
mod obtain;
mod progress;
mod search;
mod task;
mod turn;
mod watch;
mod watchdog;
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
