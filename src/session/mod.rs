//! The shared state of everybody who uses one login, and its life.

mod adopt;
mod builder;
mod capture;
mod changes;
mod credential;
mod expiry;
mod interleave;
mod logout;
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
    state::SessionState,
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
    telemetry::Telemetry,
    time::{Now, within},
    token::{Arrival, Lifetime, Tokens},
};

/// One login: its tokens, where they may go, and how they are renewed. Shared by every request,
/// client and task that uses it.
///
/// Cloning is cheap, and clones are the same session. An idle session runs no task, timer or
/// thread.
#[derive(Clone)]
pub struct Session(Arc<Inner>);

struct Inner {
    current: ArcSwap<State>,
    /// For those who wait for another token, another login or the end.
    changed: Notify,
    /// Held while a new state is made, never across an await.
    writer: Mutex<()>,
    subscribers: OnceLock<watch::Sender<SessionState>>,
    timer: Timer,
    /// Held by the running refresh: never two at once.
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
    /// What the refresher says of it.
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
    /// Starts building a session with these tokens.
    pub fn builder(tokens: Tokens) -> SessionBuilder {
        SessionBuilder::new(tokens)
    }

    /// The present tokens; `None` if there are none, e.g. after [`clear`](Self::clear).
    pub fn tokens(&self) -> Option<Tokens> {
        let state = self.load();
        state.has_tokens().then(|| state.tokens())
    }

    /// What the session is called in logs and metrics
    /// ([`SessionBuilder::name`](crate::SessionBuilder::name)); `None` if it has no name.
    pub fn name(&self) -> Option<&str> {
        self.telemetry().name()
    }

    /// A counter that rises each time the access token changes.
    pub fn generation(&self) -> u64 {
        self.load().generation
    }

    /// What the session is doing. Worked out when asked.
    pub fn state(&self) -> SessionState {
        self.load().public(Instant::now())
    }

    /// Tells of each change of [`state`](Self::state).
    pub fn subscribe(&self) -> watch::Receiver<SessionState> {
        let _writer = interleave::lock(&self.0.writer);
        let state = self.0.current.load();
        let now = state.public(Instant::now());
        let sender = self.0.subscribers.get_or_init(|| watch::Sender::new(now));
        let receiver = sender.subscribe();
        self.tell_subscribers(&state, true);
        receiver
    }

    /// Refreshes now, or joins the refresh that is under way, whatever the token's age and the
    /// cool-down. A failure that another process of a fleet has shared counts all the same.
    ///
    /// # Errors
    /// What the refresh failed with; [`LoginRequired`](ErrorKind::LoginRequired) without a call
    /// when the refresh token was rejected before, or there is none; [`Closed`](ErrorKind::Closed);
    /// [`Internal`](ErrorKind::Internal) at once when the session's own refresher or store calls it.
    pub async fn refresh(&self) -> Result<Tokens, Error> {
        if self.is_within_own_work() {
            return Err(Error::new(
                ErrorKind::Internal,
                "a refresh was requested from within the session's own refresher or store",
            ));
        }
        self.look_for_login().await;
        self.forget_failures();
        match self.join(|state, _| state.on_demand(), None) {
            Join::Wait(waiter) => {
                self.wait(&waiter).await?;
            }
            Join::Fail(error) => return Err(error),
            Join::Go { .. } => {}
        }
        Ok(self.load().tokens())
    }

    /// A new login: these tokens from now on, whatever a refresh under way will bring. Ends
    /// [`LoginRequired`](SessionState::LoginRequired) and a cool-down, and saves the tokens at
    /// once.
    ///
    /// # Errors
    /// [`Closed`](ErrorKind::Closed); [`Store`](ErrorKind::Store) when the store could not save
    /// them: the session uses them all the same, and tries to save them again before the next
    /// rotation.
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

    /// Logs out: no token is left here or in the store, and every request fails with
    /// [`LoginRequired`](ErrorKind::LoginRequired), unsent, until
    /// [`replace_tokens`](Self::replace_tokens). Those who wait for a refresh are freed with the
    /// same error, and what it brings is dropped.
    ///
    /// # Errors
    /// [`Closed`](ErrorKind::Closed); [`Store`](ErrorKind::Store) when the store could not be
    /// cleared.
    pub async fn clear(&self) -> Result<(), Error> {
        self.log_out().await
    }

    /// Ends the session: nothing is sent any more, and those who wait for a refresh are freed at
    /// once with [`Closed`](ErrorKind::Closed). A refresh under way is let to its end, and its
    /// tokens are saved, before this returns: a rotated refresh token is not lost by a shutdown.
    ///
    /// It takes at most two seconds and twice the
    /// [`refresh_timeout`](SessionBuilder::refresh_timeout) and, with a store, sixteen times the
    /// [`store_timeout`](SessionBuilder::store_timeout), also when the runtime of that refresh, or
    /// of a save, has come to a stop.
    ///
    /// # Errors
    /// None at present.
    pub async fn close(&self) -> Result<(), Error> {
        let flight = self.update(|state| {
            state.phase = state::Phase::Closed;
            state.in_flight.clone()
        });
        let flights_end = async {
            if let Some(flight) = flight {
                flight.resolve(Err(Error::of(ErrorKind::Closed)));
                flight.ended().await;
            }
            // One that was superseded may still be winding up.
            self.0.turn.free().await;
        };
        // Not for ever: their runtime may have come to a stop.
        let _ = within(self.longest_refresh(), flights_end).await;
        if let Some(store) = &self.0.store {
            self.save_what_is_left(true);
            let _ = within(self.longest_refresh(), store.settled()).await;
        }
        Ok(())
    }

    /// [`close`](Self::close) for a shutdown that has only so much time, e.g. the 30 s that
    /// Kubernetes leaves after SIGTERM. Returns within `limit`.
    ///
    /// What has come by then, captured tokens included, is saved if the store takes it in that time.
    /// What is left goes on behind it for as long as the runtime lives: a call to the token endpoint
    /// that is still out is not aborted, since that would spend the refresh token.
    ///
    /// # Errors
    /// [`TimedOut`](ErrorKind::TimedOut) if something was left: a refresh that had not ended, or
    /// tokens that the store did not take.
    #[allow(clippy::disallowed_methods, reason = "a look would be too late (contract 12.4)")]
    pub async fn close_within(&self, limit: Duration) -> Result<(), Error> {
        let closing = async {
            if let Some(store) = &self.0.store {
                // Not only after the refresh, which may take longer than this.
                store.save_what_is_left(self, true);
            }
            self.close().await
        };
        // Not `within`: whoever asks for this is about to be killed, after a freeze all the more.
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
        let (flight, login) = self.update(|state| {
            if matches!(state.phase, state::Phase::Closed) {
                return Err(Error::of(ErrorKind::Closed));
            }
            Ok((change(state), state.login))
        })?;
        if let Some(flight) = flight {
            flight.supersede(outcome);
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

    /// The gauge of states does not follow what time alone changes.
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

    pub(crate) fn placement(&self) -> &Placement {
        &self.0.placement
    }

    /// The session's side of RFC 9449, if its tokens are bound to a key.
    #[cfg(feature = "dpop")]
    pub(crate) fn dpop(&self) -> Option<&Arc<Dpop>> {
        self.0.dpop.as_ref()
    }

    /// Of the key that the session's tokens are bound to.
    pub(crate) fn key_thumbprint(&self) -> Option<&str> {
        #[cfg(feature = "dpop")]
        return self.0.dpop.as_ref().map(|dpop| dpop.key().thumbprint());
        #[cfg(not(feature = "dpop"))]
        None
    }

    pub(crate) fn channels(&self) -> &Channels {
        &self.0.channels
    }

    /// Whether the session's token replaces the caller's own header.
    pub(crate) fn overrides_authorization(&self) -> bool {
        self.0.override_authorization
    }

    /// Up to how many bytes of a stream are read before it is sent.
    pub(crate) fn buffer_bodies(&self) -> usize {
        self.0.buffer_bodies
    }

    pub(crate) fn on_refresh_failure(&self) -> OnRefreshFailure {
        self.0.on_refresh_failure
    }

    pub(crate) fn rejected_if(&self) -> Option<&RejectedIf> {
        self.0.rejected_if.as_ref()
    }

    pub(crate) fn replay_if(&self) -> Option<&ReplayIf> {
        self.0.replay_if.as_ref()
    }

    /// Which of the session's origins this URL is of, if it names no user and is written as almost
    /// all are. `None` says nothing.
    #[inline]
    pub(crate) fn plain_origin_of(&self, url: &Url) -> Option<usize> {
        self.0.origins.iter().position(|origin| origin.covers_plainly(url))
    }

    /// Which of the session's origins this URL is of.
    pub(crate) fn origin_of(&self, url: &Url) -> Option<usize> {
        self.0.origins.iter().position(|origin| origin.covers(url))
    }

    pub(crate) fn is_of_origin(&self, index: usize, url: &Url) -> bool {
        self.0.origins.get(index).is_some_and(|origin| origin.covers(url))
    }

    /// When the present access token was received, and when it ends. After a suspend both are what
    /// they would be if the monotonic clock had not stood still.
    pub(crate) fn lifetime(&self) -> Option<Lifetime> {
        self.load().lifetime_at(Now::read())
    }

    /// An answer accepted the token of generation `sent`: should it be rejected now, it is renewed
    /// again.
    pub(crate) fn accepted(&self, sent: u64) {
        self.update(|state| {
            if state.generation == sent {
                state.probation = None;
            }
        });
    }
}

/// A panic in the user's answer counts as no.
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
