//! Keeps a [`reqwest`] client signed in.
//!
//! Jobs run for hours; access tokens live for minutes. Wrap your client in this chain of
//! [`reqwest-middleware`](reqwest_middleware), and a token that the API rejects, or replaces
//! through the response header `Refreshed-API-Token`, never reaches your code as a failure.
//!
//! ```text
//! client.send()
//!   └ Replay      keeps a copy; sends once more when the token that was rejected is no longer the current one
//!      └ Refresh     makes sure a usable token is there; renews it when the API refuses it
//!         └ Capture     takes `Refreshed-API-Token` off every answer, whatever its status
//!            └ Authorize   puts `Authorization: Bearer …` on
//!               └ the connection
//! ```
//!
//! # Quick start
//!
//! ```no_run
//! use reqwest_middleware::ClientBuilder;
//! use reqwest_reauth::{ClientBuilderExt, OAuthRefresh, Session, Tokens};
//!
//! # async fn f() -> Result<(), Box<dyn std::error::Error>> {
//! let tokens = Tokens::new("access-token")?.with_refresh_token("refresh-token")?;
//! let session = Session::builder(tokens)
//!     .origin("https://api.example.com")
//!     .refresher(OAuthRefresh::new("https://api.example.com/oauth/access_token"))
//!     .build()?;
//! let client = ClientBuilder::new(reqwest::Client::new()).with_session(session).build();
//!
//! let answer = client.get("https://api.example.com/jobs").send().await?;
//! # Ok(())
//! # }
//! ```
//!
//! For a heartbeat in a long-running job, see [`heartbeat`]. For everything else, see the
//! [`guide`]: [concepts](guide::concepts), [recipes](guide::recipes), [errors](guide::errors),
//! [telemetry](guide::telemetry), and [coming from elsewhere](guide::coming_from).
//!
//! # What is guaranteed
//!
//! - **One refresh at a time** for a session, however many requests, clients and tasks use it.
//!   Everybody who waits gets its result.
//! - **A refresh outlives its callers.** Dropping all of them loses nothing: a rotated refresh
//!   token is kept before anything else is judged, and is in the [store](TokenStore), if there is
//!   one, before a request uses what came with it.
//! - **Failures of the token endpoint are told apart.** A 502 is retried with backoff and
//!   `Retry-After`; `invalid_grant` is believed once and not asked again; after any failure the
//!   endpoint is let be for a while.
//! - **A late answer never undoes a newer token**, and a token is taken from nobody but the API
//!   itself.
//! - **A rejected request is sent again at most once**, whole, with another token, or not at all: a
//!   streamed body is never sent empty or half.
//! - **Tokens go to the session's origins only**, and are in no `Debug`, `Display`, error or log.
//!
//! # What is not
//!
//! - A request that fails for other reasons is not retried: that is `reqwest-retry`'s work, outside
//!   this chain.
//! - No login flow: tokens come from you, and [`Session::replace_tokens`] takes new ones.
//! - A crash between the token endpoint's answer and the save loses the login at a server without a
//!   grace for spent refresh tokens. The next process's error says
//!   [`possibly_consumed`](Error::possibly_consumed) if the spent token was in its store.
//! - Copies of a token in the buffers of the HTTP stack are not wiped.
//!
//! # Order
//!
//! Retries and tracing of whole calls go outside the chain, rate limits and request signing inside;
//! nothing that turns a status into an error may stand inside. [The page on order](guide::order)
//! has the reasons.
//!
//! # Errors
//!
//! A request fails with [`reqwest_middleware::Error`]; [`Error::find_in`] finds this crate's
//! [`Error`] inside, which names what the API and what the token endpoint answered, apart. [The
//! page on errors](guide::errors) says what to do about each kind.
//!
//! # Features
//!
//! None is on by default. Those of TLS are reqwest's, passed through: a crate that depends on
//! reqwest with its defaults needs none.
//!
//! | feature | what it adds |
//! | --- | --- |
//! | `redis` | `RedisStore`: one login for a fleet on several machines |
//! | `metrics` | counters and histograms through the `metrics` facade |
//! | `test-util` | `testing::AuthServer`: a scripted API and token server to test clients against |
//! | `rustls`, `rustls-no-provider`, `native-tls`, `http2`, `system-proxy` | reqwest's features of the same names |

#![cfg_attr(docsrs, feature(doc_cfg))]

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
mod session;
mod store;
mod telemetry;
#[cfg(feature = "test-util")]
pub mod testing;
mod time;
mod token;
mod valid_for;

pub use anonymous::Anonymous;
pub use chain::{Authorize, Capture, ClientBuilderExt, Refresh, Replay, ReplayBody, SessionSource};
#[cfg(feature = "dpop")]
pub use dpop::{DpopAlg, DpopKey, DpopKeyPem};
pub use error::{Error, ErrorKind};
pub use event::{CaptureIgnored, Event, NotReplayed};
pub use oauth::{OAuthRefresh, Reading, TokenResponse};
pub use outcome::Outcome;
pub use policy::{CaptureFrom, Placement, Reply, Verdict, same_origin_redirects};
pub use refresher::{RefreshContext, Refresher, refresh_with};
pub use retry::{AuthRetryStrategy, is_retryable};
pub use session::{Credential, OnRefreshFailure, Session, SessionBuilder, SessionState};
#[cfg(feature = "redis")]
pub use store::RedisStore;
pub use store::{FileStore, MemoryStore, StoreLock, TokenStore};
pub use token::{AccessToken, RefreshToken, Tokens};
pub use valid_for::ValidFor;

pub use {reqwest, reqwest_middleware};

/// Compiles the README's examples.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
