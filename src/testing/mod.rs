//! A scripted API and token server on a real socket, to test a client against. Feature `test-util`.
//!
//! [`AuthServer`] is both servers that a signed-in client speaks to: an API that wants a bearer
//! token, and a token endpoint. Without settings they behave as a good server does. Settings make
//! them strict, or like a server in the field; scripts make them fail; and afterwards they tell
//! what they saw. This crate's own tests use nothing else.
//!
//! ```
//! use std::time::Duration;
//! use reqwest_reauth::testing::{Answer, AuthServer};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let server = AuthServer::builder().lifetime(Duration::from_secs(600)).start().await;
//! let tokens = server.login();
//!
//! // Your client, with its session, in place of a bare one. Here nobody refreshes:
//! let client = reqwest::Client::new();
//! let token = tokens.access_token().ok_or("none")?;
//! let send = || client.get(server.url("/jobs")).bearer_auth(token.expose_secret()).send();
//!
//! assert_eq!(send().await?.status(), 200);
//! server.expire_now();
//! assert_eq!(send().await?.status(), 401);
//!
//! // What it saw, and how often.
//! assert_eq!((server.api_hits(), server.refused(), server.token_calls()), (2, 1, 0));
//! assert_eq!(server.requests()[0].uri.path(), "/jobs");
//!
//! // The next two calls of the token endpoint fail, each in its way.
//! server.script_token_endpoint([Answer::Status(502), Answer::StatusRetryAfter(503, Duration::from_secs(1))]);
//! # Ok(())
//! # }
//! ```
//!
//! # The API
//!
//! Every path but those of the token endpoint is the API, for every method. A request whose token
//! is taken gets 200 and, as JSON, what the server saw: `method`, `path`, `query`, `subject`,
//! `body_length`, `body_sha256`. The query can ask for something else: `?status=404` for another
//! status, `?location=URL` for that header with it, `?echo` for the request's own body.
//!
//! # The server of Airflow
//!
//! ```no_run
//! # use std::time::Duration;
//! # use reqwest_reauth::testing::{AuthServer, Refusal};
//! # async fn f() {
//! // A new token by header in the last fifth of a token's life; 403 for what has expired; no token endpoint in use.
//! let server = AuthServer::builder().reissue_after(0.8).refusal(Refusal::Forbidden403);
//! // With apache/airflow#67944, also for ten seconds after the expiry.
//! let server = server.grace(Duration::from_secs(10)).start().await;
//! # }
//! ```
//!
//! # Signatures
//!
//! Access tokens are JWTs, signed with HS256 and the key in [`AuthServer::signing_key`], so that a
//! test can make tokens of its own or verify the server's with any library. The server signs
//! without `jsonwebtoken`'s cryptography, and leaves the choice of its backend to you.

mod answer;
mod api;
mod conformance;
#[cfg(feature = "dpop")]
mod dpop;
mod grants;
mod hold;
mod jwt;
mod log;
mod serve;
mod settings;
mod shared;
mod token_endpoint;
mod wire;

use std::{
    fmt,
    net::Ipv4Addr,
    sync::{Arc, atomic::Ordering},
};

use http::StatusCode;
use tokio::net::TcpListener;

pub use self::conformance::store_conformance;
#[cfg(feature = "dpop")]
pub use self::dpop::Dpop;
pub use self::{
    answer::Answer,
    hold::Hold,
    log::{Counts, Recorded},
    settings::{AuthServerBuilder, Refusal, Rotation},
};
use self::{settings::Settings, shared::Shared};
use crate::{error::Error, token::Tokens};

/// An API and a token endpoint on one port of 127.0.0.1, until it is dropped: see the
/// [module](self).
///
/// It runs on the runtime that it was started on. Its clock is the wall clock, ahead by what a test
/// has [advanced](tokio::time::advance) that runtime's: a test can let a token end in no time. When it is dropped, it answers what has begun,
/// takes no new connection, and cuts those that [hang](Answer::Hang). Its memory is bounded: it
/// keeps the newest 16,384 requests, 1 MiB of the body of each and 64 MiB together, and a few
/// counters a login.
pub struct AuthServer {
    shared: Arc<Shared>,
}

impl AuthServer {
    /// A server with every setting at its default.
    ///
    /// # Panics
    /// If no port can be had.
    pub async fn start() -> Self {
        Self::builder().start().await
    }

    /// A server's settings.
    pub fn builder() -> AuthServerBuilder {
        AuthServerBuilder::new()
    }

    async fn serve(settings: Settings) -> Self {
        let bound = async {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
            let origin = format!("http://{}", listener.local_addr()?);
            Ok::<_, std::io::Error>((listener, origin))
        };
        let (listener, origin) = bound
            .await
            .unwrap_or_else(|error| panic!("no port on the loopback interface: {error}"));
        let shared = Arc::new(Shared::new(settings, origin));
        tokio::spawn(serve::run(listener, &shared));
        Self { shared }
    }

    /// `http://127.0.0.1:PORT`: what a session trusts.
    pub fn origin(&self) -> &str {
        &self.shared.origin
    }

    /// The address of a path of the API, which begins with a slash.
    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.shared.origin)
    }

    /// The token endpoint that answers with JSON (RFC 6749 §5.1).
    pub fn token_endpoint(&self) -> String {
        self.url(serve::TOKEN_PATH)
    }

    /// The token endpoint that answers with the cookies `JWT` and `JWT_REFRESH_TOKEN`, as the
    /// Seqera platform's does.
    pub fn cookie_token_endpoint(&self) -> String {
        self.url(serve::COOKIE_TOKEN_PATH)
    }

    /// The HS256 key that access tokens are signed with, random for each server.
    pub fn signing_key(&self) -> Vec<u8> {
        self.shared.state().grants.key().bytes().to_vec()
    }

    /// Tokens of a new login, independent of all others. Its subject is `login-1`, `login-2` and so
    /// on.
    pub fn login(&self) -> Tokens {
        let number = {
            let mut state = self.shared.state();
            state.logins += 1;
            state.logins
        };
        self.login_as(&format!("login-{number}"))
    }

    /// Tokens of a new login of this subject. An earlier login of the same subject is over: its
    /// access tokens are refused, and its refresh token counts as spent.
    ///
    /// # Panics
    /// If the tokens would be over 64 KiB, for a subject or [claims](AuthServerBuilder::claim) of
    /// that size.
    pub fn login_as(&self, subject: &str) -> Tokens {
        let issued = self.shared.state().grants.login(subject, self.shared.now());
        let tokens = Tokens::new(issued.access).and_then(|tokens| match issued.refresh {
            Some(refresh) => tokens.with_refresh_token(refresh),
            None => Ok(tokens),
        });
        let tokens = tokens.unwrap_or_else(|error: Error| panic!("{error}"));
        if self.shared.settings.opaque {
            tokens.with_expires_in(self.shared.settings.lifetime)
        } else {
            tokens
        }
    }

    /// All access tokens issued so far are refused from now on, whatever their `exp` says. Refresh
    /// tokens stay good.
    pub fn expire_now(&self) {
        self.shared.state().grants.expire_now();
    }

    /// Ends a login: its access tokens are refused, its refresh token is `invalid_grant`.
    pub fn revoke(&self, subject: &str) {
        self.shared.state().grants.revoke(subject);
    }

    /// Whether a login was [revoked](Self::revoke), or has lost its grant to a spent refresh token
    /// that came again.
    pub fn is_revoked(&self, subject: &str) -> bool {
        self.shared.state().grants.is_revoked(subject)
    }

    /// The next `requests` requests to the API that bring a token are refused with this status,
    /// however good the token. The challenge of RFC 6750 (`invalid_token`) comes with it, except
    /// with 403 from a server that was built with [`Refusal::Forbidden403`].
    pub fn refuse_next(&self, requests: usize, status: StatusCode) {
        if requests > 0 {
            self.shared.state().refuse_next.push_back((requests, status));
        }
    }

    /// The next `answers` answers of the API to tokens that this server has signed bring a new one
    /// in `Refreshed-API-Token`, refusals and expired tokens included.
    pub fn reissue_next(&self, answers: usize) {
        self.shared.state().reissue_next += answers;
    }

    /// Makes a new nonce at both endpoints. Feature `dpop`.
    #[cfg(feature = "dpop")]
    pub fn rotate_nonces(&self) {
        if let Some(judge) = &mut self.shared.state().dpop {
            judge.rotate();
        }
    }

    /// What the token endpoint answers to the next calls, one each. They add to what is left of
    /// earlier scripts.
    pub fn script_token_endpoint(&self, answers: impl IntoIterator<Item = Answer>) {
        self.shared.state().token_script.extend(answers);
    }

    /// What the API answers to the next requests, one each. They add to what is left of earlier
    /// scripts.
    pub fn script_api(&self, answers: impl IntoIterator<Item = Answer>) {
        self.shared.state().api_script.extend(answers);
    }

    /// Holds calls of the token endpoint back, before anything is done, as long as the returned
    /// value lives. A test can wait until they are there, instead of sleeping:
    ///
    /// ```no_run
    /// # use reqwest_reauth::testing::AuthServer;
    /// # async fn f(server: AuthServer) {
    /// let hold = server.hold_token_calls();
    /// // ... start requests that have to refresh ...
    /// hold.waiting(1).await;
    /// // ... now a refresh is under way, and stays so until:
    /// hold.release();
    /// # }
    /// ```
    pub fn hold_token_calls(&self) -> Hold {
        self.shared.token_gate.hold()
    }

    /// The same for requests to the API.
    pub fn hold_api(&self) -> Hold {
        self.shared.api_gate.hold()
    }

    /// The requests to the API in the order in which they came, the newest 16,384 at most.
    pub fn requests(&self) -> Vec<Recorded> {
        self.shared.state().log.api.all()
    }

    /// The calls of the token endpoint, likewise.
    pub fn token_requests(&self) -> Vec<Recorded> {
        self.shared.state().log.token.all()
    }

    /// Forgets the requests and calls that were recorded. Counts go on.
    pub fn forget_requests(&self) {
        let mut state = self.shared.state();
        state.log.api.forget();
        state.log.token.forget();
    }

    /// How many requests came to the API.
    pub fn api_hits(&self) -> u64 {
        self.counts().api_hits
    }

    /// How many requests the API has refused for their token.
    pub fn refused(&self) -> u64 {
        self.counts().refused
    }

    /// How many answers of the API brought a new token.
    pub fn reissued(&self) -> u64 {
        self.counts().reissued
    }

    /// How many calls came to the token endpoint.
    pub fn token_calls(&self) -> u64 {
        self.counts().token_calls
    }

    /// The most calls of the token endpoint that were under way at the same time.
    pub fn concurrent_token_calls_max(&self) -> usize {
        self.shared.calls_max.load(Ordering::SeqCst)
    }

    /// All counts.
    pub fn counts(&self) -> Counts {
        self.shared.state().log.total
    }

    /// The counts of one login.
    pub fn counts_of(&self, subject: &str) -> Counts {
        self.shared.state().log.by_subject.get(subject).copied().unwrap_or_default()
    }
}

impl Drop for AuthServer {
    fn drop(&mut self) {
        self.shared.stopped.send_replace(true);
    }
}

impl fmt::Debug for AuthServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthServer")
            .field("origin", &self.shared.origin)
            .field("counts", &self.counts())
            .finish_non_exhaustive()
    }
}
