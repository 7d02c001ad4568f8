//! Limits that ask whether this process was run before they are a verdict, and the two clocks by
//! which tokens end.

mod clock;
mod limit;

#[cfg(test)]
pub(crate) use self::clock::tests::suspend;
pub(crate) use self::{
    clock::{Now, TOLERANCE, wall},
    limit::{Limit, within},
};
