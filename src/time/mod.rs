//! Limits that ask whether this process was run before they are a verdict, the two clocks by which
//! tokens end, and what servers say of when to come back.

mod clock;
mod limit;
mod retry_after;

#[cfg(test)]
pub(crate) use self::clock::tests::suspend;
pub(crate) use self::{
    clock::{Now, TOLERANCE, wall},
    limit::{Limit, within},
    retry_after::asked_wait,
};
