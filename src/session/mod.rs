//! The shared state of a login, and its lifecycle.
//!
//! | file | content |
//! | --- | --- |
//! | `builder` | the settings |
//! | `decisions` `state` `cooldown` `expiry` | pure: what a request does, how the state changes, when a token is due |
//! | `update` | the only writer of the state |
//! | `refresh` `persist` | one refresh at a time, and the session's use of its store |
//! | `capture` `adopt` | tokens from responses, and logins of other processes |
//! | `credential` `observe` `scope` | tokens for other clients, what they report, and the session of a task |
//! | `logout` `changes` `timer` | logout, and how others wait for a change |
//! | `runtime` `within` | where the session's work runs, and how it avoids waiting for itself |

mod adopt;
mod builder;
mod capture;
mod changes;
mod cooldown;
mod credential;
mod decisions;
mod expiry;
mod interleave;
mod logout;
mod observe;
mod persist;
mod refresh;
mod runtime;
mod scope;
mod signature;
mod state;
mod timer;
mod update;
mod within;

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

use arc_swap::ArcSwap;
use reqwest::{Request, Response};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use url::Url;

pub use self::{
    builder::{OnRefreshFailure, SessionBuilder},
    credential::Credential,
};
use self::{
    persist::StoreSync,
    refresh::{InFlight, RefreshResult, Turn},
    runtime::Runtimes,
    timer::Timer,
};
pub(crate) use self::{
    refresh::{Allowance, Ending, Join, Waiter},
    signature::Signature,
    state::{Captured, Since, State},
};
#[cfg(feature = "dpop")]
use crate::dpop::Dpop;
use crate::{
    error::{Error, ErrorKind},
    event::{Event, Listeners},
    policy::{Channels, Origin, Placement, Verdict},
    refresher::Refresher,
    session_state::SessionState,
    telemetry::Telemetry,
    time::{Now, within},
    token::{Arrival, Lifetime, Tokens},
};

/// A login: its tokens, where they may be sent, and how they are refreshed. Every request, client
/// and task that uses the login shares the session.
///
/// Cloning is cheap, and clones are the same session. An idle session runs no task, timer or
/// thread. [`SessionBuilder`] lists all settings with their defaults.
///
/// ```
/// use reqwest_reauth::{OAuthRefresh, Session, reqwest, testing::AuthServer};
///
/// #[tokio::main]
/// async fn main() -> Result<(), Box<dyn std::error::Error>> {
///     // A test server (feature `test-util`).
///     let server = AuthServer::start().await;
///     let session = Session::builder(server.login())
///         .origin(server.origin())
///         .refresher(OAuthRefresh::new(server.token_endpoint()))
///         .build()?;
///     let client = session.wrap(reqwest::Client::new());
///
///     // The API rejects the token. The chain refreshes it and replays the request.
///     server.expire_now();
///     let response = client.get(server.url("/jobs")).send().await?;
///     assert_eq!(response.status(), 200);
///     assert_eq!(session.generation(), 2);
///     Ok(())
/// }
/// ```
#[derive(Clone)]
pub struct Session(Arc<Inner>);

struct Inner {
    current: ArcSwap<State>,
    /// Notifies those who wait for another token, another login, or the close.
    changed: Notify,
    /// Held while a new state is made, never across an await.
    writer: Mutex<()>,
    subscribers: OnceLock<watch::Sender<SessionState>>,
    timer: Timer,
    /// Held by the running refresh, so that there is never a second one.
    turn: Turn,
    origins: Box<[Origin]>,
    refresher: Option<Box<dyn Refresher>>,
    store: Option<Box<StoreSync>>,
    listeners: Listeners,
    telemetry: Telemetry,
    placement: Placement,
    #[cfg(feature = "dpop")]
    dpop: Option<Arc<Dpop>>,
    channels: Channels,
    override_authorization: bool,
    buffer_bodies: usize,
    refresh_ahead: Option<Duration>,
    cooldown: Duration,
    /// The refresher's limit of the cool-down.
    longest_cooldown: Option<Duration>,
    store_timeout: Duration,
    refresh_timeout: Duration,
    on_refresh_failure: OnRefreshFailure,
    rejected_if: Option<RejectedIf>,
    replay_if: Option<ReplayIf>,
    wait_timeout: Option<Duration>,
    runtimes: Runtimes,
}

type RejectedIf = Box<dyn Fn(&Response, Verdict) -> bool + Send + Sync>;
pub(crate) type ReplayIf = Box<dyn Fn(&Request) -> bool + Send + Sync>;

impl Session {
    /// Returns a builder for a session with these tokens.
    pub fn builder(tokens: Tokens) -> SessionBuilder {
        SessionBuilder::new(tokens)
    }

    /// Returns the current tokens, or `None` if there are none, for example after
    /// [`clear`](Self::clear).
    pub fn tokens(&self) -> Option<Tokens> {
        let state = self.load();
        state.has_tokens().then(|| state.tokens())
    }

    /// Returns the session's name in logs and metrics
    /// ([`SessionBuilder::name`](crate::SessionBuilder::name)), if it has one.
    pub fn name(&self) -> Option<&str> {
        self.telemetry().name()
    }

    /// Returns a counter that increases each time the access token changes. It starts at 1.
    pub fn generation(&self) -> u64 {
        self.load().generation
    }

    /// Returns the session's current state, computed at the time of the call.
    pub fn state(&self) -> SessionState {
        self.load().public(Instant::now())
    }

    /// Returns a receiver that is notified whenever [`state`](Self::state) changes.
    pub fn subscribe(&self) -> watch::Receiver<SessionState> {
        let _writer = interleave::lock(&self.0.writer);
        let state = self.0.current.load();
        let now = state.public(Instant::now());
        let sender = self.0.subscribers.get_or_init(|| watch::Sender::new(now));
        let receiver = sender.subscribe();
        self.tell_subscribers(&state, true);
        receiver
    }

    /// Refreshes now, or joins the refresh in progress, whatever the age of the token and the
    /// cool-down. Returns the new tokens. A failure that another process has shared through the
    /// store still counts.
    ///
    /// In [`LoginRequired`](SessionState::LoginRequired), a login that another process has stored
    /// is returned without a call to the token endpoint.
    ///
    /// # Errors
    /// - The error of the refresh.
    /// - [`LoginRequired`](ErrorKind::LoginRequired), without a call to the token endpoint, if the
    ///   refresh token was rejected before or there is none.
    /// - [`Closed`](ErrorKind::Closed) if the session is closed.
    /// - [`Internal`](ErrorKind::Internal), at once, if the session's own refresher or store calls
    ///   it.
    pub async fn refresh(&self) -> Result<Tokens, Error> {
        if self.is_within_own_work() {
            return Err(Error::new(
                ErrorKind::Internal,
                "a refresh was requested from within the session's own refresher or store",
            ));
        }
        if self.look_for_login().await {
            let adopted = self.load();
            if adopted.access.is_some() && !adopted.is_expired(Instant::now()) {
                return Ok(adopted.tokens());
            }
        }
        self.forget_failures();
        match self.join(|state, _| state.on_demand(), None) {
            Join::Wait(waiter) => {
                self.wait(&waiter, None).await?;
            }
            Join::Fail(error) => return Err(error),
            Join::Go { .. } => {}
        }
        Ok(self.load().tokens())
    }

    /// Replaces the tokens, for example after the user has signed in again.
    ///
    /// The result of a refresh in progress is discarded. The call ends
    /// [`LoginRequired`](SessionState::LoginRequired) and a cool-down, and saves the tokens at
    /// once.
    ///
    /// # Errors
    /// - [`Closed`](ErrorKind::Closed) if the session is closed.
    /// - [`Store`](ErrorKind::Store) if the store could not save the tokens. The session uses them
    ///   nevertheless, and retries the save before the next rotation.
    pub async fn replace_tokens(&self, tokens: Tokens) -> Result<(), Error> {
        let lifetime = tokens.lifetime(Arrival::Handed);
        let due = self.due(lifetime);
        let login = self.supersede(Ok(Ending::Superseded), |state| {
            let superseded = state.replace(&tokens, lifetime, due);
            if let Some(store) = &self.0.store {
                store.announce(state.login, &tokens);
            }
            superseded
        })?;
        self.run_there(move |session| async move { session.within(session.save_now(login)).await })
            .await
    }

    /// Logs out: removes the tokens from the session and the store, and revokes them if the
    /// [refresher](crate::Refresher::revoke) can.
    ///
    /// Every request then fails with [`LoginRequired`](ErrorKind::LoginRequired) without being
    /// sent, until [`replace_tokens`](Self::replace_tokens). Requests that wait for a refresh fail
    /// with the same error at once, and the result of that refresh is discarded.
    ///
    /// # Errors
    /// - [`Closed`](ErrorKind::Closed) if the session is closed.
    /// - [`Store`](ErrorKind::Store) if the store could not be cleared.
    pub async fn clear(&self) -> Result<(), Error> {
        self.log_out().await
    }

    /// Closes the session. No further request is sent, and requests that wait for a refresh fail at
    /// once with [`Closed`](ErrorKind::Closed).
    ///
    /// A refresh in progress runs to completion, and its tokens are saved before this returns, so
    /// that a shutdown loses no rotated refresh token.
    ///
    /// The call takes at most two seconds and twice the
    /// [`refresh_timeout`](SessionBuilder::refresh_timeout) and, with a store, sixteen times the
    /// [`store_timeout`](SessionBuilder::store_timeout), even if the runtime of that refresh or of
    /// a save has stopped.
    ///
    /// # Errors
    /// Currently none.
    pub async fn close(&self) -> Result<(), Error> {
        let in_flight = self.update(|state| {
            state.phase = state::Phase::Closed;
            state.in_flight.clone()
        });
        let refresh_ends = async {
            if let Some(in_flight) = in_flight {
                in_flight.resolve(Err(Error::of(ErrorKind::Closed)));
                in_flight.ended().await;
            }
            // A superseded refresh may still be ending.
            self.0.turn.free().await;
        };
        // Bounded, because the runtime of the refresh may have stopped.
        let _ = within(self.longest_refresh(), refresh_ends).await;
        if let Some(store) = &self.0.store {
            self.save_what_is_left(true);
            let _ = within(self.longest_refresh(), store.settled()).await;
        }
        Ok(())
    }

    /// Closes the session within `limit`, for a shutdown with little time, such as the 30 s that
    /// Kubernetes allows after SIGTERM. See [`close`](Self::close).
    ///
    /// Tokens that have arrived by then, including captured ones, are saved if the store accepts
    /// them in time. Unfinished work continues in the background for as long as the runtime lives:
    /// a call to the token endpoint is not aborted, because that would spend the refresh token.
    ///
    /// # Errors
    /// [`TimedOut`](ErrorKind::TimedOut) if work was left: a refresh that had not ended, or tokens
    /// that the store had not saved.
    #[allow(clippy::disallowed_methods, reason = "a look would be too late (contract 12.4)")]
    pub async fn close_within(&self, limit: Duration) -> Result<(), Error> {
        let closing = async {
            if let Some(store) = &self.0.store {
                // Also before the refresh ends, which may take longer than the limit.
                store.save_what_is_left(self, true);
            }
            self.close().await
        };
        // Not `within`: the caller is about to be killed, especially after a freeze.
        match tokio::time::timeout(limit, closing).await {
            Ok(closed) if !self.has_something_left() => closed,
            _ => Err(Error::of(ErrorKind::TimedOut)),
        }
    }

    fn has_something_left(&self) -> bool {
        let running = self.load().in_flight.is_some() || !self.0.turn.is_free();
        running || self.0.store.as_ref().is_some_and(|store| !store.is_settled())
    }

    fn supersede(
        &self,
        outcome: RefreshResult,
        change: impl FnOnce(&mut State) -> Option<Arc<InFlight>>,
    ) -> Result<u64, Error> {
        let (in_flight, login) = self.update(|state| {
            if matches!(state.phase, state::Phase::Closed) {
                return Err(Error::of(ErrorKind::Closed));
            }
            Ok((change(state), state.login))
        })?;
        if let Some(in_flight) = in_flight {
            in_flight.supersede(outcome);
        }
        Ok(login)
    }
}

/// For the chain.
impl Session {
    #[inline]
    pub(crate) fn load(&self) -> arc_swap::Guard<Arc<State>> {
        self.0.current.load()
    }

    pub(crate) fn load_full(&self) -> Arc<State> {
        self.0.current.load_full()
    }

    pub(crate) fn emit(&self, event: &Event) {
        let telemetry = self.telemetry();
        telemetry.event(event);
        self.0.listeners.emit(event, || telemetry.listener_panicked());
    }

    /// Updates the gauge of states, which does not follow changes that only time causes.
    #[cfg_attr(not(feature = "metrics"), allow(clippy::unused_self))]
    pub(crate) fn tell_state(&self) {
        #[cfg(feature = "metrics")]
        {
            let _writer = interleave::lock(&self.0.writer);
            self.telemetry().state(Some(self.load().public(Instant::now())));
        }
    }

    pub(crate) fn cooldown(&self) -> Duration {
        self.0.cooldown
    }

    pub(crate) fn telemetry(&self) -> &Telemetry {
        &self.0.telemetry
    }

    #[inline]
    pub(crate) fn placement(&self) -> &Placement {
        &self.0.placement
    }

    /// The session's DPoP state (RFC 9449), if its tokens are bound to a key.
    #[cfg(feature = "dpop")]
    pub(crate) fn dpop(&self) -> Option<&Arc<Dpop>> {
        self.0.dpop.as_ref()
    }

    /// The thumbprint of the key that the session's tokens are bound to.
    #[cfg_attr(not(feature = "dpop"), allow(clippy::unused_self, reason = "no key without `dpop`"))]
    pub(crate) fn key_thumbprint(&self) -> Option<&str> {
        #[cfg(feature = "dpop")]
        return self.0.dpop.as_ref().map(|dpop| dpop.key().thumbprint());
        #[cfg(not(feature = "dpop"))]
        None
    }

    #[inline]
    pub(crate) fn channels(&self) -> &Channels {
        &self.0.channels
    }

    /// Whether the session's token replaces the caller's own header.
    #[inline]
    pub(crate) fn overrides_authorization(&self) -> bool {
        self.0.override_authorization
    }

    /// The maximum number of bytes of a stream to buffer.
    #[inline]
    pub(crate) fn buffer_bodies(&self) -> usize {
        self.0.buffer_bodies
    }

    pub(crate) fn on_refresh_failure(&self) -> OnRefreshFailure {
        self.0.on_refresh_failure
    }

    #[inline]
    pub(crate) fn rejected_if(&self) -> Option<&RejectedIf> {
        self.0.rejected_if.as_ref()
    }

    pub(crate) fn replay_if(&self) -> Option<&ReplayIf> {
        self.0.replay_if.as_ref()
    }

    /// The index of the URL's origin among the session's origins, if the URL has no user info and
    /// is written in the usual form. `None` says nothing.
    #[inline]
    pub(crate) fn plain_origin_of(&self, url: &Url) -> Option<usize> {
        self.0.origins.iter().position(|origin| origin.covers_plainly(url))
    }

    /// The index of the URL's origin among the session's origins.
    pub(crate) fn origin_of(&self, url: &Url) -> Option<usize> {
        self.0.origins.iter().position(|origin| origin.covers(url))
    }

    pub(crate) fn is_of_origin(&self, index: usize, url: &Url) -> bool {
        self.0.origins.get(index).is_some_and(|origin| origin.covers(url))
    }

    /// When the current access token was received, and when it expires. After a suspend, both are
    /// adjusted by the time during which the monotonic clock stood still.
    pub(crate) fn lifetime(&self) -> Option<Lifetime> {
        self.load().lifetime_at(Now::read())
    }

    /// Records that a response accepted the token of generation `sent`. If it is rejected later, it
    /// is refreshed again.
    pub(crate) fn accepted(&self, sent: u64) {
        self.update(|state| {
            if state.generation == sent {
                state.probation = None;
            }
        });
    }
}

/// A panic in the user's code counts as `false`.
fn can_refresh(refresher: &dyn Refresher, tokens: &Tokens) -> bool {
    catch_unwind(AssertUnwindSafe(|| refresher.can_refresh(tokens))).unwrap_or(false)
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("name", &self.name())
            .field("generation", &self.generation())
            .field("state", &self.state())
            .field("origins", &self.0.origins)
            .finish_non_exhaustive()
    }
}
