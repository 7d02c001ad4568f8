//! Sender-constrained tokens (RFC 9449): keys, proofs, and the nonces that servers hand out.
//!
//! `key` holds a private key or somebody else's signer, `jwk` is its public half, `proof` builds
//! what is signed, and `nonce` keeps the newest nonce of each server. All decisions are pure; only
//! a signature is awaited, since a signer may be a device.

#![allow(dead_code, unused_imports, reason = "the chain is about to use it")]

mod jwk;
mod key;
mod nonce;
mod proof;

#[cfg(test)]
mod tests;

pub use key::{DpopAlg, DpopKey, DpopKeyPem};
pub(crate) use nonce::{Challenge, Nonces, Role, api_challenge, nonce_in, says_use_nonce};
