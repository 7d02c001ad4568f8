//! Tokens for other clients: how they get a token, and how they report a rejection.

use std::{
    fmt,
    future::Future,
    sync::Arc,
    time::{Duration, SystemTime},
};

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use tokio::time::Instant;
use url::Url;

use super::{
    OnRefreshFailure, Session,
    refresh::{Ending, Join},
    state::State,
};
use crate::{
    error::{Error, ErrorKind},
    policy::Reply,
    token::AccessToken,
};

/// How often one call waits for a refresh. A new login may supersede the first refresh, and the API
/// may reject the token of the second.
const MOST_WAITS: usize = 3;

/// A valid token for a client that does not accept a `ClientWithMiddleware`.
/// [`Session::credential`] returns it.
///
/// It is a snapshot for a single call. Ask the session again for the next call: while the token is
/// valid, that costs almost nothing. Cloning is cheap. `Debug` does not show the token.
///
/// ```
/// use reqwest_reauth::{Session, reqwest, testing::AuthServer};
///
/// #[tokio::main]
/// async fn main() -> Result<(), Box<dyn std::error::Error>> {
///     // A test server (feature `test-util`).
///     let server = AuthServer::start().await;
///     let session = Session::builder(server.login()).origin(server.origin()).build()?;
///
///     // Any HTTP client can send these headers.
///     let url = server.url("/jobs");
///     let credential = session.credential(&url).await?;
///     let headers = credential.headers(&reqwest::Method::GET, &url).await?;
///
///     let response = reqwest::Client::new().get(&url).headers(headers).send().await?;
///     assert_eq!(response.status(), 200);
///     Ok(())
/// }
/// ```
#[derive(Clone)]
pub struct Credential {
    pub(super) session: Session,
    /// The session's state when the credential was taken.
    pub(super) state: Arc<State>,
    access: AccessToken,
    header: HeaderValue,
    /// The nonce of the last request.
    #[cfg(feature = "dpop")]
    pub(super) carried: Arc<std::sync::Mutex<crate::dpop::Carried>>,
}

impl Credential {
    /// Returns the headers for one request with this method and URL. This works for every
    /// placement. Values are marked sensitive.
    ///
    /// With `Placement::dpop` there are two headers. The proof in them is valid for this request
    /// only.
    ///
    /// # Errors
    /// [`UntrustedOrigin`](ErrorKind::UntrustedOrigin) for a URL outside the session's origins, and
    /// the error of the signer of a key.
    pub async fn headers(&self, method: &Method, url: impl AsRef<str>) -> Result<HeaderMap, Error> {
        let url = self.session.trusted(url.as_ref())?;
        let (name, value) = self.header();
        #[allow(unused_mut, reason = "the feature dpop adds a header")]
        let mut headers = HeaderMap::from_iter([(name.clone(), value.clone())]);
        #[cfg(feature = "dpop")]
        self.add_proof(method, &url, &mut headers).await?;
        #[cfg(not(feature = "dpop"))]
        let _ = (method, url, std::future::ready(()).await);
        Ok(headers)
    }

    #[cfg(feature = "dpop")]
    async fn add_proof(
        &self,
        method: &Method,
        url: &Url,
        headers: &mut HeaderMap,
    ) -> Result<(), Error> {
        use crate::{
            dpop::{DPOP, Role},
            time::within,
        };
        let Some(dpop) = self.session.dpop() else { return Ok(()) };
        let proving = dpop.prove(Role::Api, method, url, Some(&self.access));
        let proved = match self.session.wait_limit(None) {
            Some(limit) => within(limit, proving).await,
            None => Ok(proving.await),
        };
        let (proof, carried) = proved.map_err(|_| Error::of(ErrorKind::TimedOut))??;
        headers.insert(DPOP, proof);
        *self.carried.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = carried;
        Ok(())
    }

    /// Returns the name and the value of the header that carries the token, for clients that accept
    /// a single header.
    pub fn header(&self) -> (&HeaderName, &HeaderValue) {
        (self.session.placement().name(), &self.header)
    }

    /// Returns the token itself.
    pub fn access_token(&self) -> &AccessToken {
        &self.access
    }

    /// Returns the session's [generation](Session::generation) of this token.
    pub fn generation(&self) -> u64 {
        self.state.generation()
    }

    /// Returns when the token expires, on the local clock, or `None` if that is not known.
    pub fn expires_at(&self) -> Option<SystemTime> {
        self.state.tokens().expires_at()
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential")
            .field("generation", &self.generation())
            .field("expires_at", &self.expires_at())
            .finish_non_exhaustive()
    }
}

/// Tokens for clients that do not accept a `ClientWithMiddleware`.
impl Session {
    /// Returns a token that may be sent to this URL now.
    ///
    /// If the token has expired, or the API rejected it, it is refreshed first. All callers and all
    /// requests of the session wait for the same refresh, and the cool-down after a failure applies
    /// here too. A token that is about to expire is refreshed in the background. A session that
    /// cannot refresh returns its current token. While the token is valid, a call costs one atomic
    /// load.
    ///
    /// A rejected token is never returned again. If the token endpoint has replaced it, and the new
    /// token was rejected too, calls during the cool-down fail with
    /// [`CoolingDown`](ErrorKind::CoolingDown).
    ///
    /// See [`Credential`] for an example.
    ///
    /// # Errors
    /// [`UntrustedOrigin`](ErrorKind::UntrustedOrigin) for a URL outside the session's origins, or
    /// for an invalid URL. Otherwise the error with which a request through the chain would fail.
    pub async fn credential(&self, url: impl AsRef<str>) -> Result<Credential, Error> {
        self.trusted(url.as_ref())?;
        self.credential_with(None).await
    }

    /// Like [`credential`](Self::credential), but returns a token with at least this much lifetime
    /// left, for long downloads and streams. A token that expires sooner is refreshed first.
    ///
    /// This causes at most one refresh per cool-down. After that, or if the refresh fails while the
    /// token is still valid, the caller gets the current token. If the token endpoint issues tokens
    /// with a shorter lifetime than this, the next refresh happens after half of the lifetime. A
    /// token with an unknown expiry counts as long enough.
    ///
    /// # Errors
    /// As for [`credential`](Self::credential).
    pub async fn credential_valid_for(
        &self,
        url: impl AsRef<str>,
        at_least: Duration,
    ) -> Result<Credential, Error> {
        self.trusted(url.as_ref())?;
        self.credential_with(Some(at_least)).await
    }

    /// Reports that the API rejected this credential.
    ///
    /// It does not start a refresh. The next [`credential`](Self::credential), or the next request
    /// through the chain, refreshes the token first. Nothing happens if the session already holds a
    /// newer token, or if the credential belongs to another session.
    pub fn reject(&self, credential: &Credential) {
        let generation = credential.generation();
        if !self.is(&credential.session) || self.generation() != generation {
            return;
        }
        self.update(|state| {
            if state.generation == generation {
                state.known_rejected = true;
                state.renew_first = true;
                // Makes the next request leave the fast path.
                state.due = Some(Instant::now());
            }
        });
    }

    /// Calls `call` with a credential, and again with another credential if the API rejected the
    /// first.
    ///
    /// The closure reports the API's reaction to the token with a [`Reply`]. The value of the
    /// second call is returned, whatever it is. If there is no other token, the value of the first
    /// call is returned.
    ///
    /// Each call of the closure receives its own credential. Clone the other client into the
    /// future; most clients are cheap to clone:
    ///
    /// ```
    /// use reqwest_reauth::{OAuthRefresh, Reply, Session, reqwest, testing::AuthServer};
    ///
    /// #[tokio::main]
    /// async fn main() -> Result<(), Box<dyn std::error::Error>> {
    ///     // A test server (feature `test-util`).
    ///     let server = AuthServer::start().await;
    ///     let session = Session::builder(server.login())
    ///         .origin(server.origin())
    ///         .refresher(OAuthRefresh::new(server.token_endpoint()))
    ///         .build()?;
    ///     // Stands for a client that accepts only a token.
    ///     let client = reqwest::Client::new();
    ///     let url = server.url("/jobs");
    ///
    ///     server.expire_now();
    ///     let response = session
    ///         .with_credential(&url, |credential| {
    ///             let token = credential.access_token().expose_secret();
    ///             let request = client.get(&url).bearer_auth(token);
    ///             async move {
    ///                 match request.send().await {
    ///                     Ok(response) => match response.status().as_u16() {
    ///                         401 => Reply::Rejected(Ok(response)),
    ///                         500.. => Reply::Inconclusive(Ok(response)),
    ///                         _ => Reply::Accepted(Ok(response)),
    ///                     },
    ///                     Err(error) => Reply::Inconclusive(Err(error)),
    ///                 }
    ///             }
    ///         })
    ///         .await??;
    ///     assert_eq!(response.status(), 200);
    ///     Ok(())
    /// }
    /// ```
    ///
    /// For a client that cannot be cloned, use [`credential`](Self::credential) and
    /// [`reject`](Self::reject).
    ///
    /// # Errors
    /// As for [`credential`](Self::credential). If the refresh after a rejection fails, its error
    /// is returned or, with [`OnRefreshFailure::ReturnResponse`], the value of the first call.
    pub async fn with_credential<T, F, Fut>(
        &self,
        url: impl AsRef<str>,
        mut call: F,
    ) -> Result<T, Error>
    where
        F: FnMut(Credential) -> Fut,
        Fut: Future<Output = Reply<T>>,
    {
        let first = self.credential(url.as_ref()).await?;
        let value = match self.call(&first, &mut call).await {
            Reply::Rejected(value) => value,
            Reply::Accepted(value) | Reply::Inconclusive(value) | Reply::Again(value) => {
                return Ok(value);
            }
        };
        self.reject(&first);
        let second = match self.credential_with(None).await {
            Ok(second) => second,
            Err(_) if self.on_refresh_failure() == OnRefreshFailure::ReturnResponse => {
                return Ok(value);
            }
            Err(_) if self.load().is_withheld(Instant::now()) => return Ok(value),
            Err(error) => return Err(error),
        };
        if second.generation() == first.generation() || second.access == first.access {
            return Ok(value);
        }
        drop(value);
        match self.call(&second, &mut call).await {
            Reply::Rejected(value) => {
                self.reject(&second);
                self.replay_rejected(second.generation());
                Ok(value)
            }
            Reply::Accepted(value) | Reply::Inconclusive(value) | Reply::Again(value) => Ok(value),
        }
    }

    /// Makes one call, and repeats it once with the same token if the closure asks for that.
    async fn call<T, F, Fut>(&self, credential: &Credential, call: &mut F) -> Reply<T>
    where
        F: FnMut(Credential) -> Fut,
        Fut: Future<Output = Reply<T>>,
    {
        let reply = match call(credential.clone()).await {
            Reply::Again(_) => call(credential.clone()).await,
            reply => reply,
        };
        if let Reply::Accepted(_) = reply
            && credential.state.is_on_probation()
        {
            self.accepted(credential.generation());
        }
        reply
    }

    /// Parses a URL to which the token may be sent.
    pub(super) fn trusted(&self, url: &str) -> Result<Url, Error> {
        let url = Url::parse(url).map_err(|error| Error::new(ErrorKind::UntrustedOrigin, error))?;
        match self.origin_of(&url) {
            Some(_) => Ok(url),
            None => Err(Error::of(ErrorKind::UntrustedOrigin)),
        }
    }

    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    async fn credential_with(&self, at_least: Option<Duration>) -> Result<Credential, Error> {
        // Within the refresh itself, it would wait for the refresh that waits for it.
        let waits = if self.is_within_own_work() { 0 } else { MOST_WAITS };
        if waits > 0 {
            self.look_for_login().await;
        }
        for _ in 0..waits {
            let state = self.load();
            let rejected = state.known_rejected.then_some(state.generation);
            drop(state);
            let waiter = match self.join(|state, now| state.for_credential(at_least, now), rejected)
            {
                Join::Go { .. } => break,
                Join::Fail(error) => return Err(error),
                Join::Wait(waiter) => waiter,
            };
            match self.wait(&waiter, self.wait_limit(None)).await {
                Ok(Ending::Refreshed | Ending::Superseded) => {}
                // Not even the store holds a refresh token.
                Err(error) if error.nothing_to_ask_with() => break,
                Err(_) if self.load().is_usable(Instant::now()) => break,
                Err(error) => return Err(error),
            }
        }
        let state = self.load_full();
        let access = state.token_to_send()?.clone();
        let header = state.header_to_send()?.clone();
        Ok(Credential {
            session: self.clone(),
            state,
            access,
            header,
            #[cfg(feature = "dpop")]
            carried: Arc::default(),
        })
    }

    /// Records that the API rejected this generation in the chain, so that no credential is
    /// returned for it.
    pub(crate) fn mark_rejected(&self, generation: u64) {
        let state = self.load();
        if state.generation == generation && !state.known_rejected {
            drop(state);
            self.update(|state| state.known_rejected |= state.generation == generation);
        }
    }
}
