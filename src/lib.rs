//! placeholder
mod error;
mod event;
mod oauth;
mod refresher;
mod token;
pub use error::{Error, ErrorKind};
pub use event::{CaptureIgnored, Event, NotReplayed};
pub use oauth::OAuthRefresh;
pub use refresher::{Flight, Refresher, refresh_with};
pub use token::{AccessToken, RefreshToken, Tokens};
