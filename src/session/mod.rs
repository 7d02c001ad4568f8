//! The shared state of everybody who uses one login, and its life.

mod builder;
mod expiry;
mod flight;
mod memory;
mod saver;
mod scope;
mod state;
mod vault;

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, OnceLock, PoisonError, Weak},
    time::Duration,
};

use arc_swap::ArcSwap;
use http::HeaderName;
use reqwest::{Request, Response};
use tokio::{
    runtime::Handle,
    sync::watch,
    time::{Instant, timeout},
};
use url::Url;

pub use self::{
    builder::{OnRefreshFailure, SessionBuilder},
    state::SessionState,
};
pub(crate) use self::{
    flight::{Cell, Ending},
    state::{Captured, State},
};
use self::{state::Step, vault::Vault};
use crate::{
    error::{Error, ErrorKind},
    event::{Event, Listeners},
    policy::{Origin, Verdict},
    refresher::Refresher,
    telemetry,
    token::{AccessToken, Arrival, Lifetime, RefreshToken, Tokens},
};

/// One login: its tokens, where they may go, and how they are renewed. Shared by every request, client and task that uses it.
///
/// Cloning is cheap, and clones are the same session. An idle session runs no task, timer or thread.
#[derive(Clone)]
pub struct Session(Arc<Inner>);

struct Inner {
    current: ArcSwap<State>,
    /// Held while a new state is made, never across an await.
    writer: Mutex<()>,
    subscribers: OnceLock<watch::Sender<SessionState>>,
    /// Held by the flight: never two at once.
    turn: tokio::sync::Mutex<()>,
    origins: Box<[Origin]>,
    refresher: Option<Box<dyn Refresher>>,
    vault: Option<Box<Vault>>,
    listeners: Listeners,
    capture_header: HeaderName,
    refresh_ahead: Option<Duration>,
    cooldown: Duration,
    flight_timeout: Duration,
    on_refresh_failure: OnRefreshFailure,
    rejected_if: Option<RejectedIf>,
    replay_if: Option<ReplayIf>,
}

type RejectedIf = Box<dyn Fn(&Response, Verdict) -> bool + Send + Sync>;
type ReplayIf = Box<dyn Fn(&Request) -> bool + Send + Sync>;

/// What a request is to do, with the flight to wait for.
pub(crate) enum Boarding {
    /// Go on. `started`: a flight began behind it.
    Go {
        started: bool,
    },
    Wait(Ticket),
    Fail(Error),
}

/// A place in a flight.
pub(crate) struct Ticket {
    cell: Arc<Cell>,
    generation: u64,
    /// The flight began with this one.
    pub(crate) started: bool,
}

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
        let _writer = self.0.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let state = self.0.current.load();
        let now = state.public(Instant::now());
        let sender = self.0.subscribers.get_or_init(|| watch::Sender::new(now));
        let receiver = sender.subscribe();
        self.tell_subscribers(&state, true);
        receiver
    }

    /// Refreshes now, or joins the refresh that is under way, whatever the token's age and the cool-down.
    ///
    /// # Errors
    /// What the refresh failed with; [`LoginRequired`](ErrorKind::LoginRequired) without a call when the refresh token was refused
    /// before, or there is none; [`Closed`](ErrorKind::Closed).
    pub async fn refresh(&self) -> Result<Tokens, Error> {
        match self.board(|state, _| state.on_demand(), false) {
            Boarding::Wait(ticket) => {
                self.wait(&ticket).await?;
            }
            Boarding::Fail(error) => return Err(error),
            Boarding::Go { .. } => {}
        }
        Ok(self.load().tokens())
    }

    /// A new login: these tokens from now on, whatever a refresh under way will bring. Ends
    /// [`LoginRequired`](SessionState::LoginRequired) and a cool-down, and saves the tokens at once.
    ///
    /// # Errors
    /// [`Closed`](ErrorKind::Closed); [`Store`](ErrorKind::Store) when the store could not save them: the session uses them all
    /// the same, and tries to save them again before the next rotation.
    pub async fn replace_tokens(&self, tokens: Tokens) -> Result<(), Error> {
        let lifetime = tokens.lifetime(Arrival::Handed);
        let due = self.due(lifetime);
        let epoch = self.overtake(Ok(Ending::Overtaken), |state| {
            if let Some(vault) = &self.0.vault {
                vault.announce(&tokens);
            }
            state.replace(&tokens, lifetime, due)
        })?;
        if let Some(vault) = &self.0.vault {
            // Once more: a flight that was not yet overtaken may have put its own in place of it.
            vault.announce(&tokens);
        }
        self.save_now(epoch).await
    }

    /// Logs out: no token is left here or in the store, and every request fails with
    /// [`LoginRequired`](ErrorKind::LoginRequired), unsent, until [`replace_tokens`](Self::replace_tokens). Those who wait for a
    /// refresh are freed with the same error, and what it brings is dropped.
    ///
    /// # Errors
    /// [`Closed`](ErrorKind::Closed); [`Store`](ErrorKind::Store) when the store could not be cleared.
    pub async fn clear(&self) -> Result<(), Error> {
        let epoch = self.overtake(Err(state::logged_out()), State::clear)?;
        self.clear_store(epoch).await
    }

    /// Ends the session: nothing is sent any more, and those who wait for a refresh are freed at once with
    /// [`Closed`](ErrorKind::Closed). A refresh under way is let to its end, and its tokens are saved, before this returns: a
    /// rotated refresh token is not lost by a shutdown.
    ///
    /// # Errors
    /// None at present.
    pub async fn close(&self) -> Result<(), Error> {
        let flight = self.update(|state| {
            state.phase = state::Phase::Closed;
            state.flight.clone()
        });
        let flights_end = async {
            if let Some(flight) = flight {
                flight.resolve(Err(Error::of(ErrorKind::Closed)));
                flight.ended().await;
            }
            // One that was overtaken may still be winding up.
            drop(self.0.turn.lock().await);
        };
        // Not for ever: their runtime may have come to a stop.
        let _ = timeout(self.longest_flight(), flights_end).await;
        if let Some(vault) = &self.0.vault {
            self.save_what_is_left(true);
            vault.settled().await;
        }
        Ok(())
    }

    fn overtake(&self, outcome: flight::Landing, change: impl FnOnce(&mut State) -> Option<Arc<Cell>>) -> Result<u64, Error> {
        let (flight, epoch) = self.update(|state| {
            if matches!(state.phase, state::Phase::Closed) {
                return Err(Error::of(ErrorKind::Closed));
            }
            Ok((change(state), state.epoch))
        })?;
        if let Some(flight) = flight {
            flight.overtake(outcome);
        }
        Ok(epoch)
    }
}

/// For the chain.
impl Session {
    pub(crate) fn load(&self) -> arc_swap::Guard<Arc<State>> {
        self.0.current.load()
    }

    pub(crate) fn load_full(&self) -> Arc<State> {
        self.0.current.load_full()
    }

    pub(crate) fn emit(&self, event: &Event) {
        telemetry::event(event);
        self.0.listeners.emit(event);
    }

    pub(crate) fn capture_header(&self) -> &HeaderName {
        &self.0.capture_header
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

    /// Which of the session's origins this URL is of.
    pub(crate) fn origin_of(&self, url: &Url) -> Option<usize> {
        self.0.origins.iter().position(|origin| origin.covers(url))
    }

    pub(crate) fn is_of_origin(&self, index: usize, url: &Url) -> bool {
        self.0.origins.get(index).is_some_and(|origin| origin.covers(url))
    }

    /// When the present access token was received, and when it ends.
    pub(crate) fn lifetime(&self) -> Option<Lifetime> {
        self.load().lifetime
    }

    /// Before a request is sent: whether to wait. `may_start`: whether it may start a flight, or only join one.
    pub(crate) fn before_sending(&self, may_start: bool) -> Boarding {
        self.board(
            |state, now| match state.before_sending(now) {
                Step::Wait | Step::GoAndRenew if !may_start && state.flight.is_none() => Step::Go,
                step => step,
            },
            false,
        )
    }

    /// After the API refused a token of generation `sent`. `may_start` as above.
    pub(crate) fn after_refusal(&self, sent: u64, may_start: bool) -> Boarding {
        self.board(
            |state, now| match state.after_refusal(sent, now) {
                Step::Wait if !may_start && state.flight.is_none() => Step::Go,
                step => step,
            },
            true,
        )
    }

    /// Waits for a flight, and says whether it brought a token. One that fails is no failure if the token has changed meanwhile.
    pub(crate) async fn wait(&self, ticket: &Ticket) -> Result<Ending, Error> {
        let begun = Instant::now();
        let outcome = self.outcome_of(&ticket.cell).await;
        telemetry::wait(begun.elapsed());
        if outcome.is_err() {
            let state = self.load();
            if state.generation != ticket.generation && state.access.is_some() && !matches!(state.phase, state::Phase::Closed) {
                return Ok(Ending::Overtaken);
            }
        }
        outcome
    }

    async fn outcome_of(&self, cell: &Arc<Cell>) -> flight::Landing {
        if Handle::try_current().is_err() {
            // Nothing here could tell the time.
            return cell.wait().await;
        }
        if let Ok(outcome) = timeout(self.longest_flight(), cell.wait()).await {
            return outcome;
        }
        // The runtime that runs it is not shut down, but nobody drives it any more.
        let error = Error::new(ErrorKind::Unavailable, "the runtime that runs the refresh has come to a stop");
        self.end_flight(cell, Some(&error));
        cell.resolve(Err(error.clone()));
        Err(error)
    }

    /// Longer than any flight on a runtime that runs: its own limit, and what the store may take to save what it brought.
    fn longest_flight(&self) -> Duration {
        let saving = self.0.vault.as_ref().map_or(Duration::ZERO, |vault| vault.limit().saturating_mul(6));
        self.0.flight_timeout.saturating_add(saving).saturating_add(Duration::from_secs(1))
    }

    /// Takes a token that an answer to a request of generation `sent` brought.
    pub(crate) fn capture(&self, sent: u64, token: &AccessToken) -> Captured {
        let lifetime = Tokens::of(Some(token.clone()), None).lifetime(Arrival::Issued);
        let due = self.due(lifetime);
        let captured = self.update(|state| state.capture(sent, token, lifetime, due));
        if let Captured::Adopted { .. } = captured {
            self.save_soon();
        }
        captured
    }

    /// An answer accepted the token of generation `sent`: should it be refused now, it is renewed again.
    pub(crate) fn accepted(&self, sent: u64) {
        self.update(|state| {
            if state.generation == sent {
                state.probation = None;
            }
        });
    }

    /// Decides and, where it has to, starts a flight, in one step. Most need no more than a look: the lock is for the first.
    fn board(&self, decide: impl Fn(&State, Instant) -> Step, refused: bool) -> Boarding {
        let now = Instant::now();
        let state = self.load();
        match (decide(&state, now), &state.flight) {
            (Step::Go, _) => return Boarding::Go { started: false },
            (Step::Fail(error), _) => return Boarding::Fail(error),
            (Step::Wait, Some(cell)) if state.refused || !refused => {
                return Boarding::Wait(Ticket { cell: Arc::clone(cell), generation: state.generation, started: false });
            }
            _ => {}
        }
        drop(state);
        let mut started = None;
        let boarding = self.update(|state| {
            let step = decide(state, now);
            let (background, generation) = match step {
                Step::Go => return Boarding::Go { started: false },
                Step::Fail(error) => return Boarding::Fail(error),
                Step::GoAndRenew => (true, state.generation),
                Step::Wait => (false, state.generation),
            };
            state.refused |= refused;
            let cell = state.flight.get_or_insert_with(|| {
                let cell = Arc::new(Cell::new(state.epoch, generation));
                started = Some(Arc::clone(&cell));
                cell
            });
            let ticket = Ticket { cell: Arc::clone(cell), generation, started: started.is_some() };
            if background { Boarding::Go { started: ticket.started } } else { Boarding::Wait(ticket) }
        });
        if let Some(cell) = started {
            flight::launch(self, cell);
        }
        boarding
    }
}

/// For flights and saves.
impl Session {
    fn is_current(&self, epoch: u64) -> bool {
        self.load().epoch == epoch
    }

    /// Whether these tokens, from the store, spare a call to the token endpoint.
    fn can_use(&self, theirs: &Tokens) -> bool {
        let expired = theirs.lifetime(Arrival::Handed).is_some_and(|lifetime| lifetime.until <= Instant::now());
        theirs.access_token().is_some_and(|access| self.load().access.as_ref() != Some(access)) && !expired
    }

    /// Makes what a flight brought visible. `None` if the user's word has overtaken it.
    fn land(&self, epoch: u64, tokens: &Tokens, lifetime: Option<Lifetime>, arrival: Arrival) -> Option<u64> {
        let due = self.due(lifetime);
        let pause = Instant::now().checked_add(self.0.cooldown).filter(|_| arrival == Arrival::Issued);
        self.update(|state| {
            if state.epoch != epoch {
                return None;
            }
            state.land(tokens, lifetime, due, pause);
            Some(state.generation)
        })
    }

    /// Keeps a refresh token while the flight goes on. Gives back the tokens to be saved.
    fn keep_refresh(&self, epoch: u64, refresh: RefreshToken) -> Option<Tokens> {
        self.update(|state| {
            (state.epoch == epoch).then(|| {
                state.refresh = Some(refresh);
                state.tokens()
            })
        })
    }

    fn end_flight(&self, cell: &Arc<Cell>, error: Option<&Error>) {
        let is_it = |state: &State| state.flight.as_ref().is_some_and(|flight| Arc::ptr_eq(flight, cell));
        if !is_it(&self.load()) {
            return;
        }
        self.update(|state| {
            if is_it(state) {
                state.flight = None;
                state.refused = false;
                if let Some(error) = error {
                    state.fail(error, Instant::now(), self.0.cooldown);
                }
            }
        });
    }

    fn due(&self, lifetime: Option<Lifetime>) -> Option<Instant> {
        lifetime.map(|lifetime| expiry::due(lifetime, self.0.refresh_ahead, fastrand::f64()))
    }

    /// Publishes a changed copy of the state.
    fn update<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        let _writer = self.0.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let mut state = State::clone(&self.0.current.load());
        let result = change(&mut state);
        state.renewable = self.0.is_renewable(&state);
        let state = Arc::new(state);
        self.0.current.store(Arc::clone(&state));
        self.tell_subscribers(&state, false);
        result
    }

    /// Called with the writer's lock held, so that subscribers hear the changes in their order. `is_new`: somebody has subscribed.
    fn tell_subscribers(&self, state: &State, is_new: bool) {
        let Some(sender) = self.0.subscribers.get() else { return };
        let now = Instant::now();
        let public = state.public(now);
        let changed = sender.send_if_modified(|told| std::mem::replace(told, public) != public);
        if let (state::Phase::CoolingDown { until, .. }, SessionState::CoolingDown) = (&state.phase, public)
            && (changed || is_new)
            && sender.receiver_count() > 0
            && let Ok(runtime) = Handle::try_current()
        {
            // Only for subscribers: nobody else needs to know the moment at which a cool-down is over.
            runtime.spawn(tell_later(Arc::downgrade(&self.0), *until));
        }
    }
}

async fn tell_later(session: Weak<Inner>, until: Instant) {
    tokio::time::sleep_until(until).await;
    if let Some(session) = session.upgrade().map(Session) {
        let _writer = session.0.writer.lock().unwrap_or_else(PoisonError::into_inner);
        session.tell_subscribers(&session.load(), false);
    }
}

impl Inner {
    fn is_renewable(&self, state: &State) -> bool {
        match &self.refresher {
            // What to ask with may be in the store.
            Some(_) if self.vault.is_some() => true,
            Some(refresher) => can_refresh(&**refresher, &state.tokens()),
            None => false,
        }
    }
}

/// A panic in the user's answer counts as no.
fn can_refresh(refresher: &dyn Refresher, tokens: &Tokens) -> bool {
    catch_unwind(AssertUnwindSafe(|| refresher.can_refresh(tokens))).unwrap_or(false)
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("generation", &self.generation())
            .field("state", &self.state())
            .field("origins", &self.0.origins)
            .finish_non_exhaustive()
    }
}
