//! Keeps a [`reqwest`] client signed in.

mod chain;
mod error;
mod event;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;
mod oauth;
mod policy;
mod refresher;
mod session;
mod store;
mod telemetry;
#[cfg(feature = "test-util")]
pub mod testing;
mod token;

pub use chain::{Anonymous, Authorize, Capture, ClientBuilderExt, Outcome, Refresh, Replay, ReplayBody, SessionSource};
pub use error::{Error, ErrorKind};
pub use event::{CaptureIgnored, Event, NotReplayed};
pub use oauth::OAuthRefresh;
pub use policy::Verdict;
pub use refresher::{Flight, Refresher, refresh_with};
pub use session::{OnRefreshFailure, Session, SessionBuilder, SessionState};
#[cfg(feature = "redis")]
pub use store::RedisStore;
pub use store::{FileStore, MemoryStore, StoreLock, TokenStore};
pub use token::{AccessToken, RefreshToken, Tokens};
