//! placeholder
mod error;
mod event;
mod refresher;
mod store;
mod token;
pub use error::{Error, ErrorKind};
pub use event::{CaptureIgnored, Event, NotReplayed};
pub use refresher::{Flight, Refresher, refresh_with};
#[cfg(feature = "redis")]
pub use store::RedisStore;
pub use store::{FileStore, MemoryStore, StoreLock, TokenStore};
pub use token::{AccessToken, RefreshToken, Tokens};
