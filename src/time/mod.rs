//! Time limits that take a suspended process into account, the two clocks of a token's expiry, and
//! `Retry-After`.

mod clock;
mod limit;
mod retry_after;

#[cfg(test)]
pub(crate) use self::clock::tests::suspend;
pub(crate) use self::{
    clock::{Now, TOLERANCE, wall},
    limit::{Elapsed, Limit, within},
    retry_after::asked_wait,
};
