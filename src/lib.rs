//! Keeps a [`reqwest`] client signed in.
//!
//! Jobs run for hours; access tokens live for minutes. Wrap your client in this chain of
//! [`reqwest-middleware`](reqwest_middleware). When the API rejects a token, or replaces it through
//! the response header `Refreshed-API-Token`, your code sees one successful response, unless the
//! token cannot be renewed.
//!
//! ```text
//! client.send()
//!   └ Replay      replays a rejected request once, if the session has a newer token
//!      └ Refresh     ensures a usable token, and refreshes it when the API rejects it
//!         └ Capture     captures a new token from every response, whatever its status
//!            └ Authorize   attaches the token
//!               └ the connection
//! ```
//!
//! # Quick start
//!
//! ```no_run
//! use reqwest_reauth::{OAuthRefresh, Session, Tokens};
//!
//! #[tokio::main]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let tokens = Tokens::new("access-token")?.with_refresh_token("refresh-token")?;
//!     let session = Session::builder(tokens)
//!         .origin("https://api.example.com")
//!         .refresher(OAuthRefresh::new("https://api.example.com/oauth/access_token"))
//!         .build()?;
//!     let client = session.wrap(reqwest::Client::new());
//!
//!     let response = client.get("https://api.example.com/jobs").send().await?;
//!     println!("{}", response.status());
//!     Ok(())
//! }
//! ```
//!
//! The [`guide`] has the rest: [getting started](guide::getting_started),
//! [concepts](guide::concepts), [recipes](guide::recipes), [errors](guide::errors),
//! [telemetry](guide::telemetry), [other crates](guide::choosing) and more. For a heartbeat in a
//! long-running job, see [`heartbeat`].
//!
//! # Guarantees
//!
//! - **One refresh at a time.** All requests, clients and tasks that share a session wait for the
//!   same refresh and get its result.
//! - **A refresh outlives its callers.** Dropping a request does not stop it. A new refresh token
//!   is kept before the rest of the response is judged. With a [store](TokenStore), it is saved
//!   before a request uses the access token that came with it.
//! - **Failures of the token endpoint are distinguished.** A 502 is retried with backoff and
//!   `Retry-After`. After `invalid_grant` the session makes no more calls until it gets a new
//!   login. After any other failure it makes no more calls for a cool-down (10 s by default).
//! - **A late response never undoes a newer token**, and responses from other origins cannot
//!   replace one.
//! - **A rejected request is replayed at most once**, in full and with another token, or not at
//!   all. A streamed body is never sent empty or truncated.
//! - **A timer never discards a response that has arrived**, even if the process was stopped or the
//!   machine was suspended in the meantime.
//! - **Tokens go to the session's origins only**, and appear in no `Debug`, `Display`, error or log.
//!
//! # Scope
//!
//! - The chain does not retry requests that fail for other reasons. `reqwest-retry` does, outside
//!   the chain.
//! - There is no login flow. Your program obtains the first tokens, and passes those of a later
//!   login to [`Session::replace_tokens`].
//! - If the process dies between the token endpoint's response and the save of the new refresh
//!   token, a server without a grace period for spent refresh tokens ends the login. The error of
//!   the next process that shares the store says so:
//!   [`possibly_consumed`](Error::possibly_consumed).
//! - Copies of a token in the buffers of the HTTP stack are not wiped.
//!
//! # Order
//!
//! Retries and tracing of whole calls belong outside the chain, rate limits and request signing
//! inside. Middleware that turns a status into an error must not be inside. [The page on
//! order](guide::order) has the reasons.
//!
//! # Errors
//!
//! A request fails with [`reqwest_middleware::Error`]. [`Error::find_in`] finds this crate's
//! [`Error`] inside it, which describes the API's response and the token endpoint's response
//! separately. [The page on errors](guide::errors) says how to react to each kind.
//!
//! # Features
//!
//! No feature is enabled by default. The TLS and HTTP/2 features are reqwest's, passed through. A
//! crate that depends on reqwest with its default features needs none of them.
//!
//! | feature | what it adds |
//! | --- | --- |
//! | `redis` | `RedisStore`: one login for processes on several machines |
//! | `metrics` | counters and histograms through the `metrics` facade |
//! | `dpop` | `Placement::dpop`: tokens that are bound to a key (RFC 9449) |
//! | `test-util` | `testing::AuthServer`: a scripted API and token endpoint to test clients against |
//! | `rustls`, `rustls-no-provider`, `native-tls`, `http2`, `system-proxy` | reqwest's features of the same names |

#![cfg_attr(docsrs, feature(doc_cfg))]
#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

mod anonymous;
mod catch_panic;
mod chain;
#[cfg(feature = "dpop")]
mod dpop;
mod error;
mod event;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;
pub mod guide;
pub mod heartbeat;
mod oauth;
mod outcome;
mod policy;
mod refresher;
mod retry;
mod secret_file;
mod session;
mod session_state;
mod store;
mod telemetry;
#[cfg(feature = "test-util")]
#[allow(clippy::disallowed_methods, reason = "a test's own server")]
pub mod testing;
mod time;
mod token;
mod token_file;
mod valid_for;

pub use anonymous::Anonymous;
pub use chain::{Authorize, Capture, ClientBuilderExt, Refresh, Replay, ReplayBody, SessionSource};
#[cfg(feature = "dpop")]
pub use dpop::{DpopAlg, DpopKey, DpopKeyPem};
pub use error::{BoxError, Error, ErrorKind};
pub use event::{CaptureIgnored, Event, NotReplayed};
pub use oauth::{OAuthRefresh, Reading, TokenResponse};
pub use outcome::Outcome;
pub use policy::{CaptureFrom, Placement, Reply, Verdict, same_origin_redirects};
pub use refresher::{RefreshContext, Refresher, refresh_with};
pub use retry::{AuthRetryStrategy, is_retryable};
pub use session::{Credential, OnRefreshFailure, Session, SessionBuilder};
pub use session_state::SessionState;
#[cfg(feature = "redis")]
pub use store::RedisStore;
pub use store::{FileStore, MemoryStore, StoreLock, StoredFailure, TokenStore};
pub use token::{AccessToken, RefreshToken, Tokens};
pub use token_file::FileRefresh;
pub use valid_for::ValidFor;

pub use {reqwest, reqwest_middleware};

/// Compiles the README's examples.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
