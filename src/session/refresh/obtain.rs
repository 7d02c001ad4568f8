//! Where a refresh gets its tokens: from the store, if another process was faster, else from the
//! token endpoint. `docs/decisions/0005` explains the order of the steps.

use std::sync::Arc;

use super::{
    super::{
        Session, can_refresh,
        persist::{Look, StoreSync},
        state::no_token,
    },
    in_flight::InFlight,
    progress::{Progress, Stage},
};
use crate::{
    error::{Error, ErrorKind},
    event::Event,
    refresher::{RefreshContext, RefreshLog, Refresher},
    token::{RefreshToken, Tokens},
};

/// New tokens, and where they come from.
pub(super) enum NewTokens {
    /// Another process stored them since this session last looked.
    Stored(Tokens),
    /// The token endpoint issued them.
    Issued { tokens: Tokens, attempts: u32 },
}

/// Locks and looks into the store, asks the token endpoint, and looks again before it believes
/// that the login is over.
pub(super) async fn obtain(
    session: &Session,
    in_flight: &InFlight,
    progress: &Arc<Progress>,
) -> Result<NewTokens, Error> {
    let Some(refresher) = session.0.refresher.as_deref() else {
        return Err(no_token());
    };
    let Some(store) = session.0.store.as_deref() else {
        return ask_without_store(session, refresher, progress).await;
    };
    let mut search =
        Search { session, store, in_flight, progress, tried: Vec::new(), shared: false };
    let mut next = search.lock_and_look().await;
    loop {
        if let Next::Take(stored) = next {
            return Ok(NewTokens::Stored(stored));
        }
        match ask(refresher, progress).await {
            Err(error) if error.kind() == ErrorKind::LoginRequired => {
                next = search.after_login_required(error).await?;
            }
            result => return result,
        }
    }
}

/// The same without a store to look into.
async fn ask_without_store(
    session: &Session,
    refresher: &dyn Refresher,
    progress: &Arc<Progress>,
) -> Result<NewTokens, Error> {
    let mut tried = Vec::new();
    loop {
        let error = match ask(refresher, progress).await {
            Err(error) if error.kind() == ErrorKind::LoginRequired => error,
            result => return result,
        };
        let asked = progress.tokens().refresh_token().cloned();
        let error = session.mark_if_lost(error, asked.as_ref());
        tried.extend(asked);
        // A response may have brought another one meanwhile (contract 6.5).
        match progress.held_refresh_token().filter(|held| !tried.contains(held)) {
            Some(held) => progress.ask_with(held),
            None => return Err(error),
        }
    }
}

/// One call of the refresher, which may try several times.
async fn ask(refresher: &dyn Refresher, progress: &Arc<Progress>) -> Result<NewTokens, Error> {
    if !can_refresh(refresher, &progress.tokens()) {
        return Err(no_token());
    }
    if progress.is_over() {
        // The process was not run while this waited, and the refresh token would be spent in vain.
        return Err(progress.cut_short());
    }
    let context = RefreshContext::new(Arc::clone(progress) as Arc<dyn RefreshLog>);
    progress.is_at(Stage::Asking { failed_attempts: 0 });
    // Until the refresher says otherwise.
    progress.sending(true);
    let result = refresher.refresh(&context).await;
    progress.sending(result.as_ref().is_err_and(Error::possibly_consumed));
    progress.is_at(Stage::Looking);
    match result {
        Ok(tokens) => Ok(NewTokens::Issued { tokens, attempts: context.attempts() }),
        Err(error) if error.attempts() == 0 && !error.nothing_to_ask_with() => {
            Err(error.with_attempts(context.attempts()))
        }
        Err(error) => Err(error),
    }
}

/// What follows a look into the store.
enum Next {
    /// The store holds tokens that spare the call.
    Take(Tokens),
    /// Ask the token endpoint with the refresh token that is held now.
    Ask,
}

/// The search for a refresh token that the token endpoint accepts. Each is sent once.
struct Search<'a> {
    session: &'a Session,
    store: &'a StoreSync,
    in_flight: &'a InFlight,
    progress: &'a Progress,
    /// The refresh tokens that were rejected.
    tried: Vec<RefreshToken>,
    /// One of them is, or was, in the store: another process may have spent it, and died.
    shared: bool,
}

impl Search<'_> {
    /// Takes the store's lock and looks into the store. A store that fails is passed over.
    async fn lock_and_look(&mut self) -> Next {
        self.progress.is_at(Stage::Locking);
        match self.store.lock().await {
            Ok(lock) => self.in_flight.set_lock(Some(lock)),
            Err(error) => self.session.emit(&Event::StoreFailed { error }),
        }
        self.progress.is_at(Stage::Looking);
        let look = self.store.look(self.session).await;
        self.progress.catch_up();
        if matches!(look, Look::Same) && self.store.has_unsaved() {
            // The last save failed: what it should have kept must be safe before it is spent.
            self.session.save_under(self.in_flight, None, &self.progress.tokens()).await;
        }
        self.consider(look).unwrap_or(Next::Ask)
    }

    /// The token endpoint rejected the refresh token. Another process may have renewed it, or the
    /// session may have been given another one.
    async fn after_login_required(&mut self, error: Error) -> Result<Next, Error> {
        // Read afterwards: the refresher may have gone on with one that it kept.
        let asked = self.progress.tokens().refresh_token().cloned();
        let error = self.session.mark_if_lost(error, asked.as_ref());
        self.shared |= error.possibly_consumed()
            || asked.as_ref().is_some_and(|asked| self.store.is_shared(asked));
        self.tried.extend(asked);
        let look = self.store.look(self.session).await;
        if let Some(next) = self.consider(look) {
            return Ok(next);
        }
        // A response may have brought another one meanwhile (contract 6.5).
        let held = self.progress.held_refresh_token();
        if let Some(held) = held.filter(|held| !self.tried.contains(held)) {
            self.progress.ask_with(held);
            return Ok(Next::Ask);
        }
        if let Some(given) = self.store.given().filter(|given| !self.tried.contains(given)) {
            self.progress.ask_with(given);
            return Ok(Next::Ask);
        }
        // A process that died may have spent it without leaving a trace.
        let maybe_spent = self.shared && !error.nothing_to_ask_with();
        Err(if maybe_spent { error.with_possibly_consumed() } else { error })
    }

    /// What a look into the store offers, if anything.
    fn consider(&mut self, look: Look) -> Option<Next> {
        let Look::Changed(stored) = look else { return None };
        if self.session.can_use(&stored) {
            return Some(Next::Take(stored));
        }
        let refresh = stored.refresh_token().filter(|refresh| !self.tried.contains(refresh))?;
        // Kept at once: whatever becomes of this refresh, the session's own is the older one.
        self.progress.ask_with(refresh.clone());
        drop(self.session.keep_refresh(self.in_flight.login(), refresh.clone()));
        Some(Next::Ask)
    }
}
