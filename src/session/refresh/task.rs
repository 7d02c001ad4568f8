//! The refresh itself, from its start to its end.
//!
//! It is a separate task. It belongs to the session, not to the request that started it: it
//! continues even if every caller is dropped, because the token endpoint may already have spent the
//! refresh token.

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::time::Instant;

use super::{
    super::Session,
    in_flight::{Ending, InFlight, RefreshResult, broken_off},
    obtain::{NewTokens, obtain_news},
    progress::{Progress, Stage},
    watch::tell,
    work::Work,
};
use crate::{
    catch_panic::catch_panic,
    error::{Error, ErrorKind},
    event::Event,
    refresher::RefreshLog,
    time::{Limit, wall, within},
    token::{Arrival, Tokens},
};

/// Starts a refresh. Without a runtime it fails at once.
pub(super) fn spawn(session: &Session, in_flight: Arc<InFlight>) {
    let guard = Guard { session: session.clone(), in_flight };
    session.spawn(guard, |guard| {
        let (session, in_flight) = (guard.session.clone(), Arc::clone(&guard.in_flight));
        Work::task(in_flight, session.within(run(guard)))
    });
}

async fn run(guard: Guard) {
    let Guard { session, in_flight } = &guard;
    let begun = Instant::now();
    let mut turn = None;
    let mut limit = Limit::after(session.0.refresh_timeout);
    let progress = Arc::new(Progress::new(session, in_flight, limit.clone()));
    let work = async {
        // A superseded refresh may still be ending. There are never two calls at once.
        turn = Some(session.0.turn.take(in_flight).await);
        progress.is_at(Stage::Looking);
        if !progress.catch_up() {
            return None;
        }
        let begun = AtomicBool::new(false);
        let mut obtaining = pin!(catch_panic(async {
            begun.store(true, Ordering::Relaxed);
            obtain_news(session, in_flight, &progress).await
        }));
        let obtained = tokio::select! {
            biased;
            () = in_flight.superseded() => {
                if !begun.load(Ordering::Relaxed) {
                    return None;
                }
                // A logout revokes without the lock, and may need the lock itself.
                in_flight.set_lock(None);
                let left = in_flight.revoked_by()?.saturating_duration_since(Instant::now());
                within(left, obtaining).await.unwrap_or_else(|_| {
                    Some(Err(Error::new(ErrorKind::TimedOut, "the refresh did not finish in time")))
                })
            }
            obtained = &mut obtaining => obtained,
        };
        Some(obtained.unwrap_or_else(|| Err(panicked())))
    };
    let obtained = limit.run(work).await;
    if let Some(revoked_by) = in_flight.revoked_by() {
        logged_out(&guard, obtained.ok().flatten(), &progress, revoked_by).await;
        drop(turn);
        return;
    }
    let outcome = match obtained {
        Ok(Some(Ok(NewTokens::NoNews))) => {
            guard.finish_without_news();
            return;
        }
        Ok(Some(Ok(brought))) => adopt(brought, session, in_flight, &progress).await,
        Ok(Some(Err(error))) => Err(error),
        Ok(None) => Ok(Ending::Superseded),
        Err(_) => {
            if turn.is_none() {
                // The previous refresh has had the same time limit, so its runtime must have
                // stopped.
                session.0.turn.evict();
            }
            Err(progress.cut_short())
        }
    };
    match &outcome {
        Ok(Ending::Refreshed) => session.telemetry().refresh(None, begun.elapsed()),
        Err(error) => session.telemetry().refresh(Some(error), begun.elapsed()),
        Ok(Ending::Superseded) => {}
    }
    if let Err(error) = &outcome {
        tell(session, in_flight, &progress, error).await;
    }
    guard.finish(outcome);
    drop(turn);
    session.save_what_is_left(false);
}

/// Revokes the tokens of a refresh that a logout has superseded.
async fn logged_out(
    guard: &Guard,
    obtained: Option<Result<NewTokens, Error>>,
    progress: &Progress,
    revoked_by: Instant,
) {
    let kept = progress.searched().kept.take();
    let brought = match obtained {
        Some(Ok(NewTokens::Issued { mut tokens, .. })) => {
            if tokens.refresh_token().is_none() {
                tokens.set_refresh(kept);
            }
            tokens
        }
        other => {
            if let Some(Err(error)) = other
                && error.kind() == ErrorKind::TimedOut
            {
                // The refresh may still obtain tokens, but nothing will receive them.
                guard.session.emit(&Event::RevocationFailed { error });
            }
            Tokens::of(None, kept)
        }
    };
    guard.session.revoke(&brought, revoked_by).await;
    guard.finish(Ok(Ending::Superseded));
}

/// Saves new tokens, then publishes them. The refresh timeout does not bound this, because issued
/// tokens must not be lost.
async fn adopt(
    new: NewTokens,
    session: &Session,
    in_flight: &InFlight,
    progress: &Progress,
) -> RefreshResult {
    let (mut tokens, attempts, arrival) = match new {
        NewTokens::Stored(tokens) => (tokens, 0, Arrival::Handed),
        NewTokens::Issued { tokens, attempts } => (tokens, attempts, Arrival::Issued),
        NewTokens::NoNews | NewTokens::Superseded => return Ok(Ending::Superseded),
    };
    if tokens.access_token().is_none() {
        if let Some(refresh) = tokens.refresh_token() {
            progress.keep(refresh.clone()).await;
        }
        return Err(Error::new(ErrorKind::BadResponse, "the refresher returned no access token")
            .with_attempts(attempts));
    }
    if tokens.refresh_token().is_none() {
        if progress.searched().forgets {
            session.forget_refresh(in_flight.login(), &progress.searched().tried);
        }
        let held = if progress.searched().forgets {
            session.load().refresh.clone()
        } else {
            // A refresh token from a response is newer than the one in the request.
            let captured = progress.captured_meanwhile();
            captured.or_else(|| progress.tokens().refresh_token().cloned())
        };
        tokens.set_refresh(held);
    }
    let lifetime = tokens.lifetime(arrival);
    let issued = (arrival == Arrival::Issued).then(wall).or(tokens.issued_at());
    let tokens = tokens.with_lifetime(lifetime).with_issued_at(issued);
    if arrival == Arrival::Issued && session.is_current(in_flight.login()) {
        let asked = progress.tokens().refresh_token().cloned();
        // Kept before it is saved, because the previous token is spent and the runtime may be shut
        // down during the save.
        if let Some(refresh) = tokens.refresh_token() {
            drop(progress.hold(refresh.clone()));
        }
        if let Some(store) = &session.0.store {
            store.forget_given(in_flight.login());
        }
        session.save_under(in_flight, asked.as_ref(), &tokens).await;
    }
    let trial = match arrival {
        Arrival::Issued => Some(session.0.cooldown),
        // Another process may have obtained the tokens a moment ago (contract 3.6).
        Arrival::Handed => tokens.is_issued_within(session.0.cooldown),
    };
    let Some(generation) = session.adopt_tokens(in_flight.login(), &tokens, lifetime, trial) else {
        if let Some(revoked_by) = in_flight.revoked_by().filter(|_| arrival == Arrival::Issued) {
            session.revoke(&tokens, revoked_by).await;
        }
        return Ok(Ending::Superseded);
    };
    if let Some(store) = &session.0.store {
        store.set_candidate(in_flight.login(), None);
    }
    // Recorded before a listener is told, because a listener may hold this task up.
    in_flight.decide(&Ok(Ending::Refreshed));
    session.emit(&Event::Refreshed { generation, attempts });
    Ok(Ending::Refreshed)
}

/// Clears the session's slot and releases the waiters when a refresh ends, even if its runtime is
/// shut down.
struct Guard {
    session: Session,
    in_flight: Arc<InFlight>,
}

impl Guard {
    /// Ends a refresh whose refresher had nothing new. There is no event.
    fn finish_without_news(&self) {
        let error = self.session.end_without_news(&self.in_flight);
        self.in_flight.set_lock(None);
        self.in_flight.resolve(error.map_or(Ok(Ending::Superseded), Err));
    }

    fn finish(&self, outcome: RefreshResult) {
        let Self { session, in_flight } = self;
        in_flight.decide(&outcome);
        session.end_refresh(in_flight, outcome.as_ref().err());
        in_flight.set_lock(None);
        if let Err(error) = &outcome
            && session.is_current(in_flight.login())
        {
            session.emit(&Event::RefreshFailed { error: error.clone() });
        }
        in_flight.resolve(outcome);
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if self.in_flight.resolved().is_none() {
            self.finish(Err(self.in_flight.mark(broken_off())));
        }
        self.session.end_refresh(&self.in_flight, None);
        self.in_flight.set_lock(None);
        self.in_flight.end();
    }
}

fn panicked() -> Error {
    Error::new(ErrorKind::Internal, "the refresher panicked")
}
