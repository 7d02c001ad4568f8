//! `RedisStore` against a real Redis, alone and under a fleet.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may")]

#[path = "../support/redis_server.rs"]
mod redis_server;
#[path = "../support/workers.rs"]
mod workers;

mod fleet;
mod store;
