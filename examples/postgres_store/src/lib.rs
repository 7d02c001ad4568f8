//! Two stores that are not part of `reqwest-reauth`, as examples of [`TokenStore`]. Each is one
//! file, to be copied and changed.
//!
//! - [`PostgresStore`] keeps each login in a row of PostgreSQL, for processes on several machines.
//! - [`SecretStore`] keeps a login in a directory with the layout of a mounted Kubernetes secret,
//!   for processes on one machine.
//!
//! The program of this package checks both with `testing::store_conformance`, and with servers that
//! stop and start.
//!
//! [`TokenStore`]: reqwest_reauth::TokenStore

mod postgres;
mod secret;

pub use self::{postgres::PostgresStore, secret::SecretStore};
