//! All tests that need no feature and no external server, in one binary, because each binary costs
//! a link.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may")]

#[path = "../support/raw.rs"]
mod raw;
#[path = "../support/mod.rs"]
mod support;
#[path = "../support/workers.rs"]
mod workers;

mod api;
mod auth_server;
mod beats;
mod bound_logins;
mod budget;
mod buffer;
mod cancel;
mod capture;
mod chain;
mod channels;
mod credential;
mod dpop;
mod dpop_rules;
mod expiry;
mod fleet;
mod fleet_as_one;
mod foreign_code;
mod frozen;
mod grants;
mod heartbeat;
mod heartbeat_thread;
mod hostile;
mod lapsed;
mod logins;
mod logout;
mod long_jobs;
mod lost;
mod lost_in_fleet;
mod many_tasks;
mod one_client;
mod origin;
mod placement;
mod promises;
mod properties;
mod provider_guide;
mod providers;
mod race;
mod refresh;
mod rejection;
mod rejections;
mod replaced;
mod replay;
mod runtimes;
mod scope;
mod session;
mod session_store;
mod session_store_faults;
mod store;
mod store_conformance;
mod store_sealed;
#[cfg(unix)]
mod store_steps;
#[cfg(unix)]
mod store_trust;
mod stored_logins;
mod subsets;
