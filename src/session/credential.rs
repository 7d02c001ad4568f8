//! Tokens for other clients: what they ask the session for, and what they tell it.

use std::{
    fmt,
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, SystemTime},
};

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use reqwest::{Response, ResponseBuilderExt};
use tokio::time::Instant;
use url::Url;

use super::{
    OnRefreshFailure, Session,
    refresh::{Ending, Join},
    state::{Phase, Since, State, Step, cooling_down, step_while_cooling_down},
};
use crate::{
    error::{Error, ErrorKind},
    policy::{self, Reply, Verdict},
    time::Now,
    token::AccessToken,
};

/// How often one call waits for a refresh: a new login may supersede the first, and the API may
/// reject what the second brings.
const MOST_WAITS: usize = 3;

/// A token that works now, for a client that takes no `ClientWithMiddleware`: from
/// [`Session::credential`].
///
/// It is a snapshot, good for one call. Ask the session again for the next call: while the token is
/// good, that costs next to nothing. Cloning is cheap. It is in no `Debug`.
#[derive(Clone)]
pub struct Credential {
    session: Session,
    /// The session's state that it was taken from.
    state: Arc<State>,
    access: AccessToken,
    header: HeaderValue,
    /// The nonce that the last request carried.
    #[cfg(feature = "dpop")]
    carried: Arc<std::sync::Mutex<crate::dpop::Carried>>,
}

impl Credential {
    /// What goes on one request with this method and URL: the right way for every placement. Values
    /// are marked sensitive. With `Placement::dpop` there are two headers, and the proof among them
    /// is good for this request alone.
    ///
    /// # Errors
    /// [`UntrustedOrigin`](ErrorKind::UntrustedOrigin) for a URL that is of no origin of the
    /// session; what the signer of a key fails with.
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

    /// The name and the value of the header that carries the token, for clients that take one.
    pub fn header(&self) -> (&HeaderName, &HeaderValue) {
        (self.session.placement().name(), &self.header)
    }

    /// The token itself.
    pub fn access_token(&self) -> &AccessToken {
        &self.access
    }

    /// The session's [generation](Session::generation) that the token is of.
    pub fn generation(&self) -> u64 {
        self.state.generation()
    }

    /// When the token ends, on the local clock; `None` if it is not known.
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

/// Tokens for clients that take no `ClientWithMiddleware`.
impl Session {
    /// A token that may be sent to this URL now.
    ///
    /// A token that has expired, or that the API rejected, is renewed first: all callers and all
    /// requests of the session wait for the same refresh, and the cool-down after a failure holds
    /// here too. A token near its end is renewed in the background. A session that cannot refresh
    /// gives what it has. While the token is good this costs one atomic load.
    ///
    /// A token that the API rejected is not given again, and neither is one that the token endpoint
    /// issued in place of a rejected one and that was rejected as well: inside the cool-down that is
    /// [`CoolingDown`](ErrorKind::CoolingDown).
    ///
    /// ```no_run
    /// # async fn f(session: reqwest_reauth::Session) -> Result<(), reqwest_reauth::Error> {
    /// let url = "https://api.example.com/jobs";
    /// let credential = session.credential(url).await?;
    /// let headers = credential.headers(&http::Method::GET, url).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`UntrustedOrigin`](ErrorKind::UntrustedOrigin) for a URL that is of no origin of the
    /// session, or is none at all; otherwise what a request of the chain would fail with.
    pub async fn credential(&self, url: impl AsRef<str>) -> Result<Credential, Error> {
        self.trusted(url.as_ref())?;
        self.credential_with(None).await
    }

    /// As [`credential`](Self::credential), with at least this much life left, for long downloads
    /// and streams: a token that ends sooner is renewed first.
    ///
    /// There is one such refresh a cool-down. After that, or if it fails while the token is good,
    /// the caller gets the token that there is. Where the token endpoint issues tokens that live
    /// shorter than this, the next one is asked for when half of the life is over. A token whose end
    /// is not known counts as long enough.
    ///
    /// # Errors
    /// As [`credential`](Self::credential).
    pub async fn credential_valid_for(
        &self,
        url: impl AsRef<str>,
        at_least: Duration,
    ) -> Result<Credential, Error> {
        self.trusted(url.as_ref())?;
        self.credential_with(Some(at_least)).await
    }

    /// Says that the API rejected this credential.
    ///
    /// It starts nothing: the next [`credential`](Self::credential), or the next request of the
    /// chain, renews the token first. Nothing happens if the session has a newer token already, or
    /// if the credential is another session's.
    pub fn reject(&self, credential: &Credential) {
        let generation = credential.generation();
        if !self.is(&credential.session) || self.generation() != generation {
            return;
        }
        self.update(|state| {
            if state.generation == generation {
                state.known_rejected = true;
                state.renew_first = true;
                // So that the next request looks closer.
                state.due = Some(Instant::now());
            }
        });
    }

    /// Calls `call` with a credential, and once more with another one if the API rejected the first.
    ///
    /// The closure says with [`Reply`] what became of the token. The second call's value is the
    /// caller's, whatever it is. If there is no other token, the first value is.
    ///
    /// The closure is called with a credential of its own each time. Clone the other client into
    /// the future, as most of them are cheap to clone:
    ///
    /// ```no_run
    /// # #[derive(Clone)] struct Client;
    /// # impl Client { async fn jobs(&self, _: &str) -> (u16, String) { (200, String::new()) } }
    /// # async fn f(session: reqwest_reauth::Session, client: Client) -> Result<(), reqwest_reauth::Error> {
    /// use reqwest_reauth::Reply;
    ///
    /// let jobs = session
    ///     .with_credential("https://api.example.com", |credential| {
    ///         let client = client.clone();
    ///         async move {
    ///             match client.jobs(credential.access_token().expose_secret()).await {
    ///                 (401, body) => Reply::Rejected(body),
    ///                 (500.., body) => Reply::Inconclusive(body),
    ///                 (_, body) => Reply::Accepted(body),
    ///             }
    ///         }
    ///     })
    ///     .await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// For a client that cannot be cloned, use [`credential`](Self::credential) and
    /// [`reject`](Self::reject).
    ///
    /// # Errors
    /// As [`credential`](Self::credential). If the refresh after a rejection fails, its error, or
    /// with [`OnRefreshFailure::ReturnResponse`] the first value.
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

    /// One call, repeated once with the same token if it asks for that.
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

    /// What the chain would make of this response to a request with that credential: takes the
    /// tokens that it brings, and judges whether it rejects the token
    /// ([`SessionBuilder::rejected_if`](crate::SessionBuilder::rejected_if) included).
    ///
    /// A rejection that is observed rejects nothing by itself: [`reject`](Self::reject) and
    /// [`Reply::Rejected`] do. [`Verdict::reply`] makes a [`Reply`] of the verdict. `url` is where
    /// the response came from, after redirects. From elsewhere than an origin of the session, and
    /// for a credential of another session, nothing is taken and nothing is a rejection.
    ///
    /// ```no_run
    /// # async fn f(session: reqwest_reauth::Session, http: reqwest::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// let url = "https://api.example.com/jobs";
    /// let result = session
    ///     .with_credential(url, |credential| {
    ///         let (session, http) = (session.clone(), http.clone());
    ///         async move {
    ///             let (name, value) = credential.header();
    ///             let response = http.get(url).header(name, value).send().await.unwrap();
    ///             session
    ///                 .observe(&credential, response.url(), response.status(), response.headers())
    ///                 .reply(response)
    ///         }
    ///     })
    ///     .await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn observe(
        &self,
        credential: &Credential,
        url: impl AsRef<str>,
        status: StatusCode,
        headers: &HeaderMap,
    ) -> Verdict {
        let Ok(url) = self.trusted(url.as_ref()) else {
            return Verdict::unrelated(status);
        };
        if !self.is(&credential.session) {
            return Verdict::unrelated(status);
        }
        let taken = if self.channels().may_bring(headers) {
            self.take(credential.generation(), &url, headers)
        } else {
            super::capture::Taken::default()
        };
        let sent = credential.state.signature();
        let since = self.load().since(&sent, status);
        if since == Since::OtherLogin {
            return Verdict::unrelated(status);
        }
        let mut verdict = policy::is_rejection(
            status,
            headers,
            self.placement().challenge_scheme(),
            taken.replaced || since == Since::Replaced,
            sent.has_expired(Now::read()),
        );
        verdict.captured = taken.adopted;
        #[cfg(feature = "dpop")]
        if self.observe_proof(credential, &url, &mut verdict, status, headers) {
            return verdict;
        }
        if let Some(rule) = self.rejected_if()
            && let Some(response) = response_for(&url, status, headers)
        {
            let ruled = catch_unwind(AssertUnwindSafe(|| rule(&response, verdict)));
            verdict.rejected = ruled.unwrap_or(verdict.rejected);
        }
        verdict
    }

    /// Takes the nonce, and reads what the response says of the proof. Whether it speaks of that
    /// alone.
    #[cfg(feature = "dpop")]
    fn observe_proof(
        &self,
        credential: &Credential,
        url: &Url,
        verdict: &mut Verdict,
        status: StatusCode,
        headers: &HeaderMap,
    ) -> bool {
        use crate::dpop::{Challenge, Role, api_challenge};
        let Some(dpop) = self.dpop() else { return false };
        let carried = {
            let carried = &credential.carried;
            carried.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
        };
        dpop.take_nonce(Role::Api, url, headers);
        match api_challenge(status, headers, carried.as_deref()) {
            Challenge::UseNonce => {
                verdict.rejected = false;
                verdict.new_nonce = dpop.has_other_nonce(Role::Api, url, &carried);
                verdict.inconclusive = true;
                true
            }
            Challenge::InvalidProof => {
                verdict.rejected = false;
                verdict.inconclusive = true;
                true
            }
            // What a body asks for cannot be seen from here.
            Challenge::AskBody | Challenge::Nothing => false,
        }
    }

    /// A URL that the token may be sent to.
    fn trusted(&self, url: &str) -> Result<Url, Error> {
        let url = Url::parse(url).map_err(|error| Error::new(ErrorKind::UntrustedOrigin, error))?;
        match self.origin_of(&url) {
            Some(_) => Ok(url),
            None => Err(Error::of(ErrorKind::UntrustedOrigin)),
        }
    }

    fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    async fn credential_with(&self, at_least: Option<Duration>) -> Result<Credential, Error> {
        // Within the refresh itself it would wait for what waits for it.
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
            match self.wait_within(&waiter, None).await {
                Ok(Ending::Refreshed | Ending::Superseded) => {}
                // Not even the store had something to ask with.
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

    /// The API rejected this generation in the chain: no credential is given with it.
    pub(crate) fn mark_rejected(&self, generation: u64) {
        let state = self.load();
        if state.generation == generation && !state.known_rejected {
            drop(state);
            self.update(|state| state.known_rejected |= state.generation == generation);
        }
    }
}

/// For the rule of `rejected_if`, which is asked about a response.
fn response_for(url: &Url, status: StatusCode, headers: &HeaderMap) -> Option<Response> {
    let mut response =
        http::Response::builder().status(status).url(url.clone()).body(Vec::new()).ok()?;
    response.headers_mut().clone_from(headers);
    Some(response.into())
}

/// What is asked of a state before it gives a credential.
impl State {
    pub(super) fn for_credential(&self, at_least: Option<Duration>, now: Instant) -> Step {
        if let Phase::Closed = self.phase {
            return Step::Fail(Error::of(ErrorKind::Closed));
        }
        if self.access.is_none() {
            return self.step_without_token(now);
        }
        if self.is_usable(now) {
            return match self.should_refresh(now) {
                Step::Go | Step::GoAndRenew if self.is_too_short(at_least, now) => Step::Wait,
                step => step,
            };
        }
        match &self.phase {
            _ if self.in_flight.is_some() => Step::Wait,
            _ if !self.renewable => Step::Go,
            Phase::LoginRequired(cause) => Step::Fail(cause.clone()),
            Phase::CoolingDown { until, cause } if now < *until => step_while_cooling_down(cause),
            _ if self.is_withheld(now) => Step::Fail(cooling_down(&Error::new(
                ErrorKind::Unavailable,
                "the api rejected the latest token",
            ))),
            // It came expired, and another would too.
            _ if !self.known_rejected && self.is_paused_for_expiry(now) => Step::Go,
            _ => Step::Wait,
        }
    }

    /// Before a request that wants this much life left.
    pub(super) fn should_refresh_valid_for(&self, at_least: Duration, now: Instant) -> Step {
        match self.should_refresh(now) {
            Step::Go | Step::GoAndRenew
                if self.is_usable(now) && self.is_too_short(Some(at_least), now) =>
            {
                Step::Wait
            }
            step => step,
        }
    }

    /// Whether the token is good, as far as is known.
    pub(crate) fn is_usable(&self, now: Instant) -> bool {
        self.access.is_some() && !self.known_rejected && !self.is_expired(now)
    }

    /// Whether the API rejected the token, and another one would be rejected too (contract 3.6).
    fn is_withheld(&self, now: Instant) -> bool {
        self.known_rejected && self.rejections_start_no_refresh(now)
    }

    /// Whether a refresh for the sake of a longer life is worth it: one a cool-down.
    fn is_too_short(&self, at_least: Option<Duration>, now: Instant) -> bool {
        let (Some(at_least), Some(lifetime)) = (at_least, self.lifetime) else {
            return false;
        };
        if lifetime.until.saturating_duration_since(now) >= at_least {
            return false;
        }
        if self.in_flight.is_some() {
            return true;
        }
        let issued_lately = self.issued_pause.is_some_and(|until| now < until);
        let whole = lifetime.until.saturating_duration_since(lifetime.from);
        let all_are_short = self.issued_pause.is_some() && whole < at_least;
        let first_half = now.saturating_duration_since(lifetime.from) < whole / 2;
        self.may_renew(now) && !issued_lately && !(all_are_short && first_half)
    }
}
