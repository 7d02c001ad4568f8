//! The four middleware, in this order:
//!
//! ```text
//! Replay → Refresh → Capture → Authorize → the connection
//! ```
//!
//! | file | content |
//! | --- | --- |
//! | `replay` `refresh` `capture` `authorize` | one middleware each, split into the work before a request and the work after it |
//! | `all` | the four as one middleware, for a client that uses them all |
//! | `proof` | the proof for a token that is bound to a key (feature `dpop`) |
//! | `copy` | the copy from which a request is replayed |
//! | `buffer` | streams that are buffered before they are sent |
//! | `sent` | what a request carries: how it was sent, and its budget |
//! | `source` | which session a request is sent for |
//!
//! The middleware do as little as possible before a request, so that a request that is not rejected
//! costs almost nothing. After a request they learn what was sent from the [`Sent`](sent::Sent)
//! note. [`Authorize`] leaves that note in the response's extensions only if another middleware
//! needs it. The four as one keep it beside the response.

mod all;
mod authorize;
mod buffer;
mod capture;
mod copy;
#[cfg(feature = "dpop")]
mod proof;
mod refresh;
mod replay;
mod sent;
mod signed;
mod source;

use reqwest_middleware::{ClientBuilder, ClientWithMiddleware};

use self::all::Chain;
pub use self::{
    authorize::Authorize,
    capture::Capture,
    refresh::Refresh,
    replay::{Replay, ReplayBody},
};
use crate::session::Session;

/// Adds the whole chain to a client.
pub trait ClientBuilderExt: Sized {
    /// Adds [`Replay`], [`Refresh`], [`Capture`] and [`Authorize`], in this order, for one session.
    ///
    /// They are added as one middleware, at half the cost of the four. Add them one by one with
    /// [`with`](ClientBuilder::with) to put other middleware between them.
    ///
    /// A request's own timeout also bounds its wait for a refresh. The timeout of the whole client
    /// (`reqwest::Client::builder().timeout(…)`) does not, because reqwest does not expose it to
    /// middleware. Set [`SessionBuilder::wait_timeout`](crate::SessionBuilder::wait_timeout) to the
    /// same value.
    fn with_session(self, session: Session) -> Self;

    /// Adds the same four middleware for the session of the task that sends the request. See
    /// [`Session::scope`].
    fn with_scoped_sessions(self) -> Self;
}

impl ClientBuilderExt for ClientBuilder {
    fn with_session(self, session: Session) -> Self {
        self.with(Chain { source: SessionSource::Fixed(session) })
    }

    fn with_scoped_sessions(self) -> Self {
        self.with(Chain { source: SessionSource::Scoped })
    }
}

/// Where a middleware finds its session. A [`Session`] among the request's extensions takes
/// precedence over both.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum SessionSource {
    /// This session, whatever the scope of the task.
    Fixed(Session),
    /// The session of the task. See [`Session::scope`].
    Scoped,
}

impl From<Session> for SessionSource {
    fn from(session: Session) -> Self {
        Self::Fixed(session)
    }
}

impl Session {
    /// Wraps a client in the whole chain. This is short for
    /// `ClientBuilder::new(client).with_session(session.clone()).build()`.
    ///
    /// ```
    /// use reqwest_reauth::{Error, Session, Tokens};
    ///
    /// fn main() -> Result<(), Error> {
    ///     let session =
    ///         Session::builder(Tokens::new("token")?).origin("https://api.example.com").build()?;
    ///     let client = session.wrap(reqwest::Client::new());
    ///     Ok(())
    /// }
    /// ```
    pub fn wrap(&self, client: reqwest::Client) -> ClientWithMiddleware {
        ClientBuilder::new(client).with_session(self.clone()).build()
    }
}
