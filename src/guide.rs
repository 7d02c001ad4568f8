//! The guide: concepts, recipes, the order beside other middleware, other clients, authors of client
//! libraries, errors, telemetry, and coming from elsewhere.
//!
//! <div style="max-width: 60em">
#![doc = include_str!("../docs/sequence.svg")]
//! </div>
//!
//! The picture: 401 for an old token, a token endpoint that fails once, and the replay. Everybody
//! else who is rejected meanwhile waits for the same flight.

#[doc = include_str!("../docs/guide/authors.md")]
pub mod authors {}
#[doc = include_str!("../docs/guide/coming_from.md")]
pub mod coming_from {}
#[doc = include_str!("../docs/guide/concepts.md")]
pub mod concepts {}
#[cfg(feature = "dpop")]
#[doc = include_str!("../docs/guide/dpop.md")]
pub mod dpop {}
#[doc = include_str!("../docs/guide/errors.md")]
pub mod errors {}
#[doc = include_str!("../docs/guide/long_jobs.md")]
pub mod long_jobs {}
#[doc = include_str!("../docs/guide/order.md")]
pub mod order {}
#[doc = include_str!("../docs/guide/other_clients.md")]
pub mod other_clients {}
#[doc = include_str!("../docs/guide/providers.md")]
pub mod providers {}
#[doc = include_str!("../docs/guide/recipes.md")]
pub mod recipes {}
#[doc = include_str!("../docs/guide/telemetry.md")]
pub mod telemetry {}
