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
    super::{Session, persist::Look},
    in_flight::{Ending, InFlight, RefreshResult, broken_off},
};
use crate::{
    catch_panic::catch_panic,
    error::{Error, ErrorKind},
    event::Event,
    refresher::{RefreshContext, RefreshLog, Refresher},
    telemetry,
    token::{Arrival, RefreshToken, Tokens},
};

/// Takes a flight off. Without a runtime to run it, it ends at once.
pub(super) fn spawn(session: &Session, in_flight: Arc<InFlight>) {
    let guard = Guard { session: session.clone(), in_flight };
    if let Ok(runtime) = Handle::try_current() {
        runtime.spawn(run(guard));
    }
}

/// Clears the session's slot and frees the waiters when a flight ends, also when its runtime is
/// shut down under it.
struct Guard {
    session: Session,
    in_flight: Arc<InFlight>,
}

impl Guard {
    fn finish(&self, outcome: RefreshResult) {
        let Self { session, in_flight } = self;
        session.end_refresh(in_flight, outcome.as_ref().err());
        in_flight.set_lock(None);
        if let Err(error) = &outcome
            && session.is_current(in_flight.epoch())
        {
            session.emit(&Event::RefreshFailed { error: error.clone() });
        }
        in_flight.resolve(outcome);
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if !self.in_flight.is_resolved() {
            self.finish(Err(broken_off()));
        }
        self.session.end_refresh(&self.in_flight, None);
        self.in_flight.set_lock(None);
        self.in_flight.end();
    }
}

async fn run(guard: Guard) {
    let Guard { session, in_flight } = &guard;
    let inner = &*session.0;
    let begun = Instant::now();
    let mut turn = None;
    let log = Arc::new(Log::new(session, in_flight));
    let obtained = timeout(inner.refresh_timeout, async {
        // A flight that was superseded may still be winding up. Never two calls at once.
        turn = Some(inner.turn.lock().await);
        log.catch_up();
        session.emit(&Event::RefreshStarted { generation: in_flight.generation() });
        tokio::select! {
            biased;
            () = in_flight.superseded() => None,
            obtained = catch_panic(obtain(session, in_flight, &log)) => {
                Some(obtained.unwrap_or_else(|| Err(Error::new(ErrorKind::Internal, "the refresher panicked"))))
            }
        }
    })
    .await;
    let outcome = match obtained {
        Ok(Some(Ok(brought))) => brought.adopt(session, in_flight, &log).await,
        Ok(Some(Err(error))) => Err(error),
        Ok(None) => Ok(Ending::Superseded),
        Err(_) => Err(log.cut_short()),
    };
    match &outcome {
        Ok(Ending::Refreshed) => telemetry::flight(None, begun.elapsed()),
        Err(error) => telemetry::flight(Some(error), begun.elapsed()),
        Ok(Ending::Superseded) => {}
    }
    guard.finish(outcome);
    drop(turn);
    session.save_what_is_left(false);
}

/// New tokens, and where they come from.
enum NewTokens {
    /// Another process stored them since this session last looked.
    Stored(Tokens),
    /// The token endpoint issued them.
    Issued { tokens: Tokens, attempts: u32 },
}

/// Lock, load, adopt if somebody else has been there, else ask the token endpoint.
async fn obtain(
    session: &Session,
    in_flight: &InFlight,
    log: &Arc<Log>,
) -> Result<NewTokens, Error> {
    let Some(refresher) = &session.0.refresher else {
        return Err(super::super::state::no_token());
    };
    let Some(store) = &session.0.store else {
        return ask(&**refresher, log).await;
    };
    log.is_at(Stage::Locking);
    match store.lock().await {
        Ok(lock) => in_flight.set_lock(Some(lock)),
        Err(error) => session.emit(&Event::StoreFailed { error }),
    }
    log.is_at(Stage::Looking);

    let mut tried: Vec<RefreshToken> = Vec::new();
    let mut maybe_spent = false;
    let mut look = store.look(session).await;
    log.catch_up();
    if matches!(look, Look::Same) && store.has_unsaved() {
        // The last save failed: what it should have kept must be safe before it is spent.
        session.save_under(in_flight, None, &log.tokens()).await;
    }
    loop {
        if let Look::Changed(theirs) = look {
            if session.can_use(&theirs) {
                return Ok(NewTokens::Stored(theirs));
            }
            if let Some(refresh) = theirs.refresh_token().filter(|refresh| !tried.contains(refresh))
            {
                // Kept at once: whatever becomes of this flight, the session's own is the older
                // one.
                log.ask_with(refresh.clone());
                drop(session.keep_refresh(in_flight.epoch(), refresh.clone()));
            }
        }
        let error = match ask(&**refresher, log).await {
            Err(error) if error.kind() == ErrorKind::LoginRequired => error,
            other => return other,
        };
        // Afterwards: the refresher may have gone on with one that it kept.
        let asked = log.tokens().refresh_token().cloned();
        maybe_spent |= asked.as_ref().is_some_and(|asked| store.is_shared(asked));
        tried.extend(asked);
        // Before a grant is believed dead: somebody else may have renewed it, or the session has
        // another one.
        look = store.look(session).await;
        let theirs = matches!(&look, Look::Changed(theirs) if session.can_use(theirs)
            || theirs.refresh_token().is_some_and(|refresh| !tried.contains(refresh)));
        if !theirs {
            match store.given().filter(|own| !tried.contains(own)) {
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

async fn ask(refresher: &dyn Refresher, log: &Arc<Log>) -> Result<NewTokens, Error> {
    if !super::super::can_refresh(refresher, &log.tokens()) {
        return Err(super::super::state::no_token());
    }
    let flight = RefreshContext::new(Arc::clone(log) as Arc<dyn RefreshLog>);
    log.is_at(Stage::Asking { failed_attempts: 0 });
    let answer = refresher.refresh(&flight).await;
    log.is_at(Stage::Looking);
    match answer {
        Ok(tokens) => Ok(NewTokens::Issued { tokens, attempts: flight.attempts() }),
        Err(error) if error.attempts() == 0 && !error.nothing_to_ask_with() => {
            Err(error.with_attempts(flight.attempts()))
        }
        Err(error) => Err(error),
    }
}

impl NewTokens {
    /// Saves, then makes visible. Not bounded by the flight's time limit: what is here must not be
    /// lost.
    async fn adopt(self, session: &Session, in_flight: &InFlight, log: &Log) -> RefreshResult {
        let (mut tokens, attempts, arrival) = match self {
            NewTokens::Stored(tokens) => (tokens, 0, Arrival::Handed),
            NewTokens::Issued { tokens, attempts } => (tokens, attempts, Arrival::Issued),
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
        if attempts > 0 && session.is_current(in_flight.epoch()) {
            let asked = log.tokens().refresh_token().cloned();
            // Kept before it is saved: the runtime may go away meanwhile, and the one before is
            // spent.
            if let Some(refresh) = tokens.refresh_token() {
                drop(session.keep_refresh(in_flight.epoch(), refresh.clone()));
            }
            if let Some(store) = &session.0.store {
                store.forget_given();
            }
            session.save_under(in_flight, asked.as_ref(), &tokens).await;
        }
        let Some(generation) = session.adopt_tokens(in_flight.epoch(), &tokens, lifetime, arrival)
        else {
            return Ok(Ending::Superseded);
        };
        session.emit(&Event::Refreshed { generation, attempts });
        Ok(Ending::Refreshed)
    }
}

/// The session's end of a [`RefreshContext`].
struct Log {
    session: Session,
    in_flight: Arc<InFlight>,
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
    fn new(session: &Session, in_flight: &Arc<InFlight>) -> Self {
        Self {
            session: session.clone(),
            in_flight: Arc::clone(in_flight),
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
        if state.epoch == self.in_flight.epoch() {
            *self.asked.lock().unwrap_or_else(PoisonError::into_inner) = state.tokens();
        }
    }

    /// Goes on with this refresh token.
    fn ask_with(&self, refresh: RefreshToken) {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).set_refresh(Some(refresh));
    }
}

#[async_trait]
impl RefreshLog for Log {
    fn tokens(&self) -> Tokens {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn retrying(&self, failed_attempt: u32, delay: Duration, status: Option<StatusCode>) {
        self.is_at(Stage::Asking { failed_attempts: failed_attempt });
        self.session.emit(&Event::RefreshRetrying { attempt: failed_attempt, delay, status });
    }

    async fn keep(&self, refresh_token: RefreshToken) {
        let asked = RefreshLog::tokens(self).refresh_token().cloned();
        self.ask_with(refresh_token.clone());
        if let Some(tokens) = self.session.keep_refresh(self.in_flight.epoch(), refresh_token) {
            self.session.save_under(&self.in_flight, asked.as_ref(), &tokens).await;
        }
    }
}
