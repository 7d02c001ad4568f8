//! One refresh at a time, for everyone who waits.
//!
//! A flight is a task of its own. It belongs to the session and not to the request that started it:
//! when every caller is dropped it goes on, since the token endpoint may have spent the refresh
//! token already.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use http::StatusCode;
use tokio::{
    runtime::Handle,
    time::{Instant, timeout},
};

use super::{
    Session,
    cell::{Cell, Ending, Landing, broken_off},
    vault::Look,
};
use crate::{
    error::{Error, ErrorKind},
    event::Event,
    refresher::{Flight, FlightLog, Refresher},
    telemetry,
    token::{Arrival, RefreshToken, Tokens},
    unwind::unwound,
};

/// Takes a flight off. Without a runtime to run it, it ends at once.
pub(super) fn launch(session: &Session, cell: Arc<Cell>) {
    let guard = Guard { session: session.clone(), cell };
    if let Ok(runtime) = Handle::try_current() {
        runtime.spawn(fly(guard));
    }
}

/// Clears the session's slot and frees the waiters when a flight ends, also when its runtime is
/// shut down under it.
struct Guard {
    session: Session,
    cell: Arc<Cell>,
}

impl Guard {
    fn finish(&self, outcome: Landing) {
        let Self { session, cell } = self;
        session.end_flight(cell, outcome.as_ref().err());
        cell.set_lock(None);
        if let Err(error) = &outcome
            && session.is_current(cell.epoch())
        {
            session.emit(&Event::RefreshFailed { error: error.clone() });
        }
        cell.resolve(outcome);
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if !self.cell.is_resolved() {
            self.finish(Err(broken_off()));
        }
        self.session.end_flight(&self.cell, None);
        self.cell.set_lock(None);
        self.cell.end();
    }
}

async fn fly(guard: Guard) {
    let Guard { session, cell } = &guard;
    let inner = &*session.0;
    let begun = Instant::now();
    let mut turn = None;
    let log = Arc::new(Log::new(session, cell));
    let obtained = timeout(inner.flight_timeout, async {
        // A flight that was overtaken may still be winding up. Never two calls at once.
        turn = Some(inner.turn.lock().await);
        log.catch_up();
        session.emit(&Event::RefreshStarted { generation: cell.generation() });
        tokio::select! {
            biased;
            () = cell.overtaken() => None,
            obtained = unwound(obtain(session, cell, &log)) => {
                Some(obtained.unwrap_or_else(|| Err(Error::new(ErrorKind::Internal, "the refresher panicked"))))
            }
        }
    })
    .await;
    let outcome = match obtained {
        Ok(Some(Ok(brought))) => brought.bring(session, cell, &log).await,
        Ok(Some(Err(error))) => Err(error),
        Ok(None) => Ok(Ending::Overtaken),
        Err(_) => Err(log.cut_short()),
    };
    match &outcome {
        Ok(Ending::Landed) => telemetry::flight(None, begun.elapsed()),
        Err(error) => telemetry::flight(Some(error), begun.elapsed()),
        Ok(Ending::Overtaken) => {}
    }
    guard.finish(outcome);
    drop(turn);
    session.save_what_is_left(false);
}

/// New tokens, and where they come from.
enum Brought {
    /// Another process stored them since this session last looked.
    Stored(Tokens),
    /// The token endpoint issued them.
    Issued { tokens: Tokens, attempts: u32 },
}

/// Lock, load, adopt if somebody else has been there, else ask the token endpoint.
async fn obtain(session: &Session, cell: &Cell, log: &Arc<Log>) -> Result<Brought, Error> {
    let Some(refresher) = &session.0.refresher else {
        return Err(super::state::no_token());
    };
    let Some(vault) = &session.0.vault else {
        return ask(&**refresher, log).await;
    };
    log.is_at(Stage::Locking);
    match vault.lock().await {
        Ok(lock) => cell.set_lock(Some(lock)),
        Err(error) => session.emit(&Event::StoreFailed { error }),
    }
    log.is_at(Stage::Looking);

    let mut tried: Vec<RefreshToken> = Vec::new();
    let mut maybe_spent = false;
    let mut look = vault.look(session).await;
    log.catch_up();
    if matches!(look, Look::Same) && vault.has_unsaved() {
        // The last save failed: what it should have kept must be safe before it is spent.
        session.save_under(cell, None, &log.tokens()).await;
    }
    loop {
        if let Look::Changed(theirs) = look {
            if session.can_use(&theirs) {
                return Ok(Brought::Stored(theirs));
            }
            if let Some(refresh) = theirs.refresh_token().filter(|refresh| !tried.contains(refresh))
            {
                // Kept at once: whatever becomes of this flight, the session's own is the older
                // one.
                log.ask_with(refresh.clone());
                drop(session.keep_refresh(cell.epoch(), refresh.clone()));
            }
        }
        let error = match ask(&**refresher, log).await {
            Err(error) if error.kind() == ErrorKind::LoginRequired => error,
            other => return other,
        };
        // Afterwards: the refresher may have gone on with one that it kept.
        let asked = log.tokens().refresh_token().cloned();
        maybe_spent |= asked.as_ref().is_some_and(|asked| vault.is_shared(asked));
        tried.extend(asked);
        // Before a grant is believed dead: somebody else may have renewed it, or the session has
        // another one.
        look = vault.look(session).await;
        let theirs = matches!(&look, Look::Changed(theirs) if session.can_use(theirs)
            || theirs.refresh_token().is_some_and(|refresh| !tried.contains(refresh)));
        if !theirs {
            match vault.given().filter(|own| !tried.contains(own)) {
                Some(own) => log.ask_with(own),
                // A process that died may have spent it without leaving a trace.
                None if maybe_spent && !error.nothing_to_ask_with() => {
                    return Err(error.with_possibly_consumed());
                }
                None => return Err(error),
            }
            look = Look::Same;
        }
    }
}

async fn ask(refresher: &dyn Refresher, log: &Arc<Log>) -> Result<Brought, Error> {
    if !super::can_refresh(refresher, &log.tokens()) {
        return Err(super::state::no_token());
    }
    let flight = Flight::new(Arc::clone(log) as Arc<dyn FlightLog>);
    log.is_at(Stage::Asking { failed_attempts: 0 });
    let answer = refresher.refresh(&flight).await;
    log.is_at(Stage::Looking);
    match answer {
        Ok(tokens) => Ok(Brought::Issued { tokens, attempts: flight.attempts() }),
        Err(error) if error.attempts() == 0 && !error.nothing_to_ask_with() => {
            Err(error.with_attempts(flight.attempts()))
        }
        Err(error) => Err(error),
    }
}

impl Brought {
    /// Saves, then makes visible. Not bounded by the flight's time limit: what is here must not be
    /// lost.
    async fn bring(self, session: &Session, cell: &Cell, log: &Log) -> Landing {
        let (mut tokens, attempts, arrival) = match self {
            Brought::Stored(tokens) => (tokens, 0, Arrival::Handed),
            Brought::Issued { tokens, attempts } => (tokens, attempts, Arrival::Issued),
        };
        if tokens.access_token().is_none() {
            if let Some(refresh) = tokens.refresh_token() {
                log.keep(refresh.clone()).await;
            }
            return Err(Error::new(
                ErrorKind::BadResponse,
                "the refresher brought no access token",
            )
            .with_attempts(attempts));
        }
        if tokens.refresh_token().is_none() {
            tokens.set_refresh(log.tokens().refresh_token().cloned());
        }
        let lifetime = tokens.lifetime(arrival);
        let tokens = tokens.with_lifetime(lifetime);
        if attempts > 0 && session.is_current(cell.epoch()) {
            let asked = log.tokens().refresh_token().cloned();
            // Kept before it is saved: the runtime may go away meanwhile, and the one before is
            // spent.
            if let Some(refresh) = tokens.refresh_token() {
                drop(session.keep_refresh(cell.epoch(), refresh.clone()));
            }
            if let Some(vault) = &session.0.vault {
                vault.forget_given();
            }
            session.save_under(cell, asked.as_ref(), &tokens).await;
        }
        let Some(generation) = session.land(cell.epoch(), &tokens, lifetime, arrival) else {
            return Ok(Ending::Overtaken);
        };
        session.emit(&Event::Refreshed { generation, attempts });
        Ok(Ending::Landed)
    }
}

/// The session's end of a [`Flight`].
struct Log {
    session: Session,
    cell: Arc<Cell>,
    asked: Mutex<Tokens>,
    stage: Mutex<Stage>,
}

/// What a flight is doing, for when its time is up.
#[derive(Clone, Copy)]
enum Stage {
    /// Waiting for its turn, or looking into the store.
    Looking,
    /// Waiting for the store's lock.
    Locking,
    Asking {
        failed_attempts: u32,
    },
}

impl Log {
    fn new(session: &Session, cell: &Arc<Cell>) -> Self {
        Self {
            session: session.clone(),
            cell: Arc::clone(cell),
            asked: Mutex::new(session.load().tokens()),
            stage: Mutex::new(Stage::Looking),
        }
    }

    fn is_at(&self, stage: Stage) {
        *self.stage.lock().unwrap_or_else(PoisonError::into_inner) = stage;
    }

    /// The flight's time is up.
    fn cut_short(&self) -> Error {
        let too_long = || {
            Error::new(ErrorKind::Unavailable, "the refresh took longer than the flight timeout")
        };
        match *self.stage.lock().unwrap_or_else(PoisonError::into_inner) {
            Stage::Looking => too_long(),
            Stage::Locking => Error::new(ErrorKind::Store, "the store's lock was not free in time"),
            // A call may be in the air.
            Stage::Asking { failed_attempts } => {
                let error = too_long().with_attempts(failed_attempts.saturating_add(1));
                if self.tokens().refresh_token().is_some() {
                    error.with_possibly_consumed()
                } else {
                    error
                }
            }
        }
    }

    /// Takes what the session has got while the flight waited. What the user has given since is
    /// another flight's.
    fn catch_up(&self) {
        let state = self.session.load();
        if state.epoch == self.cell.epoch() {
            *self.asked.lock().unwrap_or_else(PoisonError::into_inner) = state.tokens();
        }
    }

    /// Goes on with this refresh token.
    fn ask_with(&self, refresh: RefreshToken) {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).set_refresh(Some(refresh));
    }
}

#[async_trait]
impl FlightLog for Log {
    fn tokens(&self) -> Tokens {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn retrying(&self, failed_attempt: u32, delay: Duration, status: Option<StatusCode>) {
        self.is_at(Stage::Asking { failed_attempts: failed_attempt });
        self.session.emit(&Event::RefreshRetrying { attempt: failed_attempt, delay, status });
    }

    async fn keep(&self, refresh_token: RefreshToken) {
        let asked = FlightLog::tokens(self).refresh_token().cloned();
        self.ask_with(refresh_token.clone());
        if let Some(tokens) = self.session.keep_refresh(self.cell.epoch(), refresh_token) {
            self.session.save_under(&self.cell, asked.as_ref(), &tokens).await;
        }
    }
}
