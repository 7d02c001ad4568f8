//! Limits that ask whether this process was run before they are a verdict.

mod limit;

pub(crate) use self::limit::{Limit, within};
