//! Gets the tokens of a refresh: from the store if another process was faster, otherwise from the
//! token endpoint. `docs/decisions/0005` explains the order of the steps.

use std::sync::Arc;

use super::{
    super::{Session, can_refresh, state::no_token},
    in_flight::InFlight,
    progress::{Next, Progress, Stage},
    search::Search,
};
use crate::{
    error::{Error, ErrorKind},
    event::Event,
    refresher::{RefreshContext, RefreshLog, Refresher},
    token::Tokens,
};

/// New tokens, and their source.
pub(super) enum NewTokens {
    /// Another process has stored them since this session last read the store.
    Stored(Tokens),
    /// The token endpoint issued them.
    Issued { tokens: Tokens, attempts: u32 },
    /// The refresher has nothing new.
    NoNews,
    /// A later login superseded the refresh before any call.
    Superseded,
}

/// Gets new tokens if the refresher has something new.
pub(super) async fn obtain_news(
    session: &Session,
    in_flight: &InFlight,
    progress: &Arc<Progress>,
) -> Result<NewTokens, Error> {
    if let Some(refresher) = session.0.refresher.as_deref()
        && !refresher.has_news(&progress.tokens()).await?
    {
        return Ok(NewTokens::NoNews);
    }
    session.emit(&Event::RefreshStarted { generation: in_flight.generation() });
    obtain(session, in_flight, progress).await
}

/// Locks and reads the store, calls the token endpoint, and reads the store again before it
/// concludes that the login is over.
async fn obtain(
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
    let search = Search::new(session, store, in_flight, progress);
    let mut next = search.lock_and_look().await?;
    loop {
        match next {
            Next::Take(stored) => return Ok(NewTokens::Stored(stored)),
            Next::Superseded => return Ok(NewTokens::Superseded),
            Next::Ask => {}
        }
        let result = ask(refresher, progress).await;
        let found = progress.searched().found.take();
        next = match (result, found) {
            (Err(error), Some(found)) => {
                progress.searched().shared |= error.possibly_consumed();
                found?
            }
            (Err(error), None) if error.kind() == ErrorKind::LoginRequired => {
                search.after_login_required(error).await?
            }
            (result, _) => return result,
        };
    }
}

/// Does the same without a store.
async fn ask_without_store(
    session: &Session,
    refresher: &dyn Refresher,
    progress: &Arc<Progress>,
) -> Result<NewTokens, Error> {
    loop {
        let result = ask(refresher, progress).await;
        if progress.searched().found.take().is_some() {
            continue;
        }
        let error = match result {
            Err(error) if error.kind() == ErrorKind::LoginRequired => error,
            result => return result,
        };
        let asked = progress.tokens().refresh_token().cloned();
        let error = session.mark_if_lost(error, asked.as_ref());
        progress.searched().tried.extend(asked);
        match progress.captured_meanwhile() {
            Some(held) => progress.ask_with(held),
            None => return Err(error),
        }
    }
}

/// Calls the refresher, which may make several attempts.
async fn ask(refresher: &dyn Refresher, progress: &Arc<Progress>) -> Result<NewTokens, Error> {
    if !can_refresh(refresher, &progress.tokens()) {
        return Err(no_token());
    }
    if let Some(dead) = progress.known_dead()
        && !can_refresh(refresher, &without_refresh(progress.tokens()))
    {
        return Err(dead);
    }
    if progress.is_over() {
        // The process was suspended during a wait. A call now would spend the refresh token for
        // nothing.
        return Err(progress.cut_short());
    }
    if !progress.may_ask().await {
        // The result of the new look replaces this error.
        return Err(progress.cut_short());
    }
    let context = RefreshContext::new(Arc::clone(progress) as Arc<dyn RefreshLog>);
    progress.is_at(Stage::Asking { failed_attempts: 0 });
    // Assumed until the refresher says otherwise.
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

fn without_refresh(mut tokens: Tokens) -> Tokens {
    tokens.set_refresh(None);
    tokens
}
