//! A scripted API and token endpoint on a real socket, to test clients against. Requires the
//! feature `test-util`.
//!
//! [`AuthServer`] is both servers that an authenticated client talks to: an API that requires a
//! bearer token, and a token endpoint. By default they behave like a well-behaved server. Settings
//! make them stricter, or similar to a particular server. Scripts make them fail. The recorded
//! requests show what they received. This crate's own tests use the same server.
//!
//! ```
//! use std::time::Duration;
//!
//! use reqwest_reauth::testing::{Answer, AuthServer};
//!
//! #[tokio::main(flavor = "current_thread")]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let server = AuthServer::builder().lifetime(Duration::from_secs(600)).start().await;
//!     let tokens = server.login();
//!
//!     // Use your own client and session here. This bare client does not refresh.
//!     let client = reqwest::Client::new();
//!     let token = tokens.access_token().ok_or("no access token")?;
//!     let send = || client.get(server.url("/jobs")).bearer_auth(token.expose_secret()).send();
//!
//!     assert_eq!(send().await?.status(), 200);
//!     server.expire_now();
//!     assert_eq!(send().await?.status(), 401);
//!
//!     // The server records what it receives.
//!     assert_eq!(server.api_hits(), 2);
//!     assert_eq!(server.refused(), 1);
//!     assert_eq!(server.token_calls(), 0);
//!     assert_eq!(server.requests()[0].uri.path(), "/jobs");
//!
//!     // The next two calls to the token endpoint fail.
//!     server.script_token_endpoint([
//!         Answer::Status(502),
//!         Answer::StatusRetryAfter(503, Duration::from_secs(1)),
//!     ]);
//!     Ok(())
//! }
//! ```
//!
//! # The API
//!
//! Every path except those of the token endpoint belongs to the API, for every method. A request
//! with a valid token gets 200 and a JSON description of itself: `method`, `path`, `query`,
//! `subject`, `body_length`, `body_sha256`. The query can ask for another response: `?status=404`
//! for another status, `?location=URL` for a `Location` header, `?echo` for the request's own body.
//!
//! # A server like Airflow's
//!
//! ```
//! use std::time::Duration;
//!
//! use reqwest_reauth::testing::{AuthServer, Refusal};
//!
//! #[tokio::main(flavor = "current_thread")]
//! async fn main() {
//!     let server = AuthServer::builder()
//!         // A new token in the response header during the last fifth of a token's lifetime.
//!         .reissue_after(0.8)
//!         // 403 for an expired token.
//!         .refusal(Refusal::Forbidden403)
//!         // With apache/airflow#67944, also a new token for ten seconds after the expiry.
//!         .grace(Duration::from_secs(10))
//!         .start()
//!         .await;
//! }
//! ```
//!
//! # Signatures
//!
//! Access tokens are JWTs, signed by HS256 with the key in [`AuthServer::signing_key`]. A test can
//! therefore create its own tokens, or verify the server's with any library. The server does not
//! use the cryptography of `jsonwebtoken`, so the choice of its backend is yours.

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

/// An API and a token endpoint on one port of 127.0.0.1, until the value is dropped. See the
/// [module](self).
///
/// The server runs on the runtime that it was started on. Its clock is the wall clock plus the time
/// by which a test has advanced that runtime's clock with `tokio::time::advance`, so a test can let
/// a token expire without waiting. When the server is dropped, it responds to open requests, accepts
/// no new connections, and closes those that [hang](Answer::Hang). Its memory is bounded: it keeps
/// the newest 16,384 requests, up to 1 MiB of each body and 64 MiB of bodies together, and a few
/// counters for each login.
pub struct AuthServer {
    shared: Arc<Shared>,
}

impl AuthServer {
    /// Starts a server with default settings.
    ///
    /// # Panics
    /// Panics if no port is available.
    pub async fn start() -> Self {
        Self::builder().start().await
    }

    /// Returns a builder for a server's settings.
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

    /// Returns `http://127.0.0.1:PORT`, the origin for a session.
    pub fn origin(&self) -> &str {
        &self.shared.origin
    }

    /// Returns the URL of an API path, which begins with a slash.
    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.shared.origin)
    }

    /// Returns the URL of the token endpoint that responds with JSON (RFC 6749 §5.1).
    pub fn token_endpoint(&self) -> String {
        self.url(serve::TOKEN_PATH)
    }

    /// Returns the URL of the token endpoint that responds with the cookies `JWT` and
    /// `JWT_REFRESH_TOKEN`, like Seqera Platform's.
    pub fn cookie_token_endpoint(&self) -> String {
        self.url(serve::COOKIE_TOKEN_PATH)
    }

    /// Returns the HS256 key that signs the access tokens. It is random for each server.
    pub fn signing_key(&self) -> Vec<u8> {
        self.shared.state().grants.key().bytes().to_vec()
    }

    /// Creates a login, independent of all others, and returns its tokens. Its subject is
    /// `login-1`, `login-2` and so on.
    pub fn login(&self) -> Tokens {
        let number = {
            let mut state = self.shared.state();
            state.logins += 1;
            state.logins
        };
        self.login_as(&format!("login-{number}"))
    }

    /// Creates a login of this subject and returns its tokens. An earlier login of the same subject
    /// ends: its access tokens are rejected, and its refresh token counts as spent.
    ///
    /// # Panics
    /// Panics if the tokens would exceed 64 KiB, because the subject or the
    /// [claims](AuthServerBuilder::claim) are that long.
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

    /// Rejects all access tokens issued so far, whatever their `exp` says. Refresh tokens stay
    /// valid.
    pub fn expire_now(&self) {
        self.shared.state().grants.expire_now();
    }

    /// Ends a login: its access tokens are rejected, and its refresh token is an `invalid_grant`.
    pub fn revoke(&self, subject: &str) {
        self.shared.state().grants.revoke(subject);
    }

    /// Returns whether a login was [revoked](Self::revoke), or lost its grant because a spent
    /// refresh token was reused.
    pub fn is_revoked(&self, subject: &str) -> bool {
        self.shared.state().grants.is_revoked(subject)
    }

    /// Rejects the next `requests` API requests that carry a token with this status, even if the
    /// token is valid. The response has the challenge of RFC 6750 (`invalid_token`), except for a
    /// 403 from a server with [`Refusal::Forbidden403`].
    pub fn refuse_next(&self, requests: usize, status: StatusCode) {
        if requests > 0 {
            self.shared.state().refuse_next.push_back((requests, status));
        }
    }

    /// Adds a new token in `Refreshed-API-Token` to the next `answers` API responses for tokens
    /// that this server has signed, even to rejections and for expired tokens.
    pub fn reissue_next(&self, answers: usize) {
        self.shared.state().reissue_next += answers;
    }

    /// Generates a new nonce for both endpoints. Requires the feature `dpop`.
    #[cfg(feature = "dpop")]
    pub fn rotate_nonces(&self) {
        if let Some(judge) = &mut self.shared.state().dpop {
            judge.rotate();
        }
    }

    /// Scripts the responses of the token endpoint to the next calls, one each. They follow the
    /// remaining responses of earlier scripts.
    pub fn script_token_endpoint(&self, answers: impl IntoIterator<Item = Answer>) {
        self.shared.state().token_script.extend(answers);
    }

    /// Scripts the responses of the API to the next requests, one each. They follow the remaining
    /// responses of earlier scripts.
    pub fn script_api(&self, answers: impl IntoIterator<Item = Answer>) {
        self.shared.state().api_script.extend(answers);
    }

    /// Holds back calls to the token endpoint, before they are processed, for as long as the
    /// returned value lives. A test can wait until calls have arrived, instead of sleeping:
    ///
    /// ```
    /// use reqwest_reauth::testing::AuthServer;
    ///
    /// #[tokio::main(flavor = "current_thread")]
    /// async fn main() -> Result<(), Box<dyn std::error::Error>> {
    ///     let server = AuthServer::start().await;
    ///     let hold = server.hold_token_calls();
    ///     let call = tokio::spawn(reqwest::Client::new().post(server.token_endpoint()).send());
    ///     // The call has arrived, and is not processed until the release.
    ///     hold.waiting(1).await;
    ///     hold.release();
    ///     call.await??;
    ///     Ok(())
    /// }
    /// ```
    pub fn hold_token_calls(&self) -> Hold {
        self.shared.token_gate.hold()
    }

    /// Holds back requests to the API. See [`hold_token_calls`](Self::hold_token_calls).
    pub fn hold_api(&self) -> Hold {
        self.shared.api_gate.hold()
    }

    /// Returns the newest 16,384 requests to the API, in order of arrival.
    pub fn requests(&self) -> Vec<Recorded> {
        self.shared.state().log.api.all()
    }

    /// Returns the newest 16,384 calls to the token endpoint, in order of arrival.
    pub fn token_requests(&self) -> Vec<Recorded> {
        self.shared.state().log.token.all()
    }

    /// Discards the recorded requests and calls. The counts are kept.
    pub fn forget_requests(&self) {
        let mut state = self.shared.state();
        state.log.api.forget();
        state.log.token.forget();
    }

    /// Returns the number of requests to the API.
    pub fn api_hits(&self) -> u64 {
        self.counts().api_hits
    }

    /// Returns the number of API requests that were rejected because of their token.
    pub fn refused(&self) -> u64 {
        self.counts().refused
    }

    /// Returns the number of API responses that carried a new token.
    pub fn reissued(&self) -> u64 {
        self.counts().reissued
    }

    /// Returns the number of calls to the token endpoint.
    pub fn token_calls(&self) -> u64 {
        self.counts().token_calls
    }

    /// Returns the highest number of simultaneous calls to the token endpoint.
    pub fn concurrent_token_calls_max(&self) -> usize {
        self.shared.calls_max.load(Ordering::SeqCst)
    }

    /// Returns all counts.
    pub fn counts(&self) -> Counts {
        self.shared.state().log.total
    }

    /// Returns the counts of one login.
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
