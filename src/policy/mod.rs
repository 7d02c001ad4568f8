//! Pure decisions: where a token may be sent, where it is placed, where a new one comes from, and
//! which responses reject it.

mod challenge;
mod channel;
mod names;
mod origin;
mod placement;
mod redirect;
mod rejection;
mod reply;

pub use channel::CaptureFrom;
pub(crate) use channel::{Brought, Channels};
pub(crate) use names::has_header;
pub(crate) use origin::{Origin, is_loopback};
pub use placement::Placement;
pub use redirect::same_origin_redirects;
pub use rejection::Verdict;
pub(crate) use rejection::is_rejection;
pub use reply::Reply;
