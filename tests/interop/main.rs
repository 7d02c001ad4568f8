//! Against real servers: `oidc-provider`, a certified OAuth server, with an nginx before it that
//! fails on request.
//!
//! They are in `tests/peers`. Without node, nginx or the provider's packages each test says why it
//! is skipped; with `CI` set it fails. Each test has servers of its own, so that all of them may
//! run at once.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod api_faults;
mod client_auth;
mod long_run;
mod peers;
mod rotation;
mod token_faults;
mod tokens;
