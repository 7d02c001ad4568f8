// Pages are read on GitHub as well. They link by label, and Markdown takes the first definition of a label: here the one in
// guide/links.md, which rustdoc checks, on GitHub the one at the end of the page, which scripts/links.py writes.
#![doc = include_str!("guide/links.md")]
#![doc = include_str!("../docs/guide/README.md")]
//!
//! <div style="max-width: 60em">
#![doc = include_str!("../docs/sequence.svg")]
//! </div>
//!
//! The picture shows a 401 for an expired token, a token endpoint that fails once, and the replay.
//! All other rejected requests wait for the same refresh.

#[doc = include_str!("guide/links.md")]
#[doc = include_str!("../docs/guide/getting_started.md")]
pub mod getting_started {}
#[doc = include_str!("guide/links.md")]
#[doc = include_str!("../docs/guide/concepts.md")]
pub mod concepts {}
#[doc = include_str!("guide/links.md")]
#[doc = include_str!("../docs/guide/recipes.md")]
pub mod recipes {}
#[doc = include_str!("guide/links.md")]
#[doc = include_str!("../docs/guide/providers.md")]
pub mod providers {}
#[doc = include_str!("guide/links.md")]
#[doc = include_str!("../docs/guide/other_clients.md")]
pub mod other_clients {}
#[doc = include_str!("guide/links.md")]
#[doc = include_str!("../docs/guide/long_jobs.md")]
pub mod long_jobs {}
#[doc = include_str!("guide/links.md")]
#[doc = include_str!("../docs/guide/authors.md")]
pub mod authors {}
#[doc = include_str!("guide/links.md")]
#[doc = include_str!("../docs/guide/errors.md")]
pub mod errors {}
#[doc = include_str!("guide/links.md")]
#[doc = include_str!("../docs/guide/telemetry.md")]
pub mod telemetry {}
#[cfg(feature = "dpop")]
#[doc = include_str!("guide/links.md")]
#[doc = include_str!("../docs/guide/dpop.md")]
pub mod dpop {}
#[doc = include_str!("guide/links.md")]
#[doc = include_str!("../docs/guide/order.md")]
pub mod order {}
#[doc = include_str!("guide/links.md")]
#[doc = include_str!("../docs/guide/coming_from.md")]
pub mod coming_from {}
#[doc = include_str!("guide/links.md")]
#[doc = include_str!("../docs/guide/choosing.md")]
pub mod choosing {}
