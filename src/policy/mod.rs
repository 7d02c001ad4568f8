//! Pure decisions: where a token may go, and which answers refuse it.

mod origin;
mod rejection;

pub(crate) use origin::{Origin, is_loopback};
pub use rejection::Verdict;
pub(crate) use rejection::is_rejection;
