//! The four middleware, and the order they stand in.
//!
//! ```text
//! Replay → Refresh → Capture → Authorize → the connection
//! ```
//!
//! | file | what it has |
//! | --- | --- |
//! | `replay` `refresh` `capture` `authorize` | one middleware each, as what it does before a request is sent and what it does with the response |
//! | `all` | the four in one, for a client that has them all |
//! | `proof` | the proof that goes with a token that is bound to a key (feature `dpop`) |
//! | `copy` | what a request is sent again from |
//! | `buffer` | streams that are read before they are sent |
//! | `sent` | what a request carries: how it was sent, and what it has spent |
//! | `source` | which session a request is sent for |
//!
//! Before a request is sent they do as little as they can: nothing that a request which is not
//! rejected has to pay for. After it they learn what was sent from the [`Sent`](sent::Sent) note,
//! which [`Authorize`] leaves in the response's extensions only when somebody needs it.

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
    /// They are added as one middleware, at half the cost of the four one by one
    /// ([`with`](ClientBuilder::with)), which leave room for others between them.
    ///
    /// A request's own timeout also bounds its wait for a refresh. That of the whole client
    /// (`reqwest::Client::builder().timeout(…)`) does not, since reqwest does not tell a middleware
    /// what it is: set
    /// [`SessionBuilder::wait_timeout`](crate::SessionBuilder::wait_timeout) to it.
    fn with_session(self, session: Session) -> Self;

    /// Adds the same four for the session of the task that sends: see [`Session::scope`].
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

/// Where a middleware finds its session. A [`Session`] among the request's extensions goes before
/// either.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum SessionSource {
    /// This one, whatever the task's.
    Fixed(Session),
    /// The task's, see [`Session::scope`].
    Scoped,
}

impl From<Session> for SessionSource {
    fn from(session: Session) -> Self {
        Self::Fixed(session)
    }
}

impl Session {
    /// Wraps a client in the whole chain: short for
    /// `ClientBuilder::new(client).with_session(session.clone()).build()`.
    ///
    /// ```
    /// # use reqwest_reauth::{Error, Session, Tokens};
    /// # fn main() -> Result<(), Error> {
    /// let session = Session::builder(Tokens::new("token")?).origin("https://api.example.com").build()?;
    /// let client = session.wrap(reqwest::Client::new());
    /// # Ok(())
    /// # }
    /// ```
    pub fn wrap(&self, client: reqwest::Client) -> ClientWithMiddleware {
        ClientBuilder::new(client).with_session(self.clone()).build()
    }
}
