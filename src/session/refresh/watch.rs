//! How a refresh waits for the lock. It watches the store, and ends with the tokens or the failure
//! that another process stores there, without taking the lock (contract 10.8).

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    time::Duration,
};

use tokio::time::sleep;

use super::{
    super::{Session, can_refresh, cooldown::cooling_down, persist::Advice},
    in_flight::InFlight,
    progress::{Next, Progress},
    search::{Search, Waited},
};
use crate::{
    error::Error,
    refresher::{RefreshLog, Refresher},
    store::{Says, fingerprint},
    token::Tokens,
};

/// How long to wait for the lock before the store is watched. Most locks are free at once.
const HEAD_START: Duration = Duration::from_millis(20);
/// The first pause between calls of a store that reports changes where there are none.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Shares a failure that concerns the other processes too, before the lock is released.
pub(super) async fn tell(
    session: &Session,
    in_flight: &InFlight,
    progress: &Progress,
    error: &Error,
) {
    let (Some(store), Some(refresher)) = (&session.0.store, &session.0.refresher) else { return };
    let Some(lock) = in_flight.lock().filter(|_| !progress.searched().heeds) else { return };
    let mut rejected = progress.searched().tried.clone();
    rejected.extend(progress.tokens().refresh_token().cloned());
    rejected.dedup();
    let of = match sent_to(&**refresher) {
        Some(to) => rejected.iter().map(|refresh| fingerprint(refresh, &[&to])).collect(),
        None => Vec::new(),
    };
    if let Some(says) = Says::of_error(error, session.cooldown_after(error), of) {
        store.tell(session, &lock, says).await;
    }
}

impl Search<'_> {
    /// Waits for the lock, or for the tokens of its holder. Fails like the holder did if that
    /// failure concerns all processes.
    pub(super) async fn lock_or_watch(&self) -> Result<Waited, Error> {
        let mut lock = pin!(self.store.lock());
        tokio::select! {
            biased;
            locked = &mut lock => return Ok(Waited::Locked(locked)),
            () = sleep(HEAD_START) => {}
        }
        let mut seen = self.store.last_seen();
        let mut has_heard = false;
        let mut pause = FIRST_PAUSE;
        loop {
            let found = 'found: {
                let mut change = pin!(self.store.watch(seen.as_ref()));
                loop {
                    tokio::select! {
                        biased;
                        found = &mut change => break 'found found,
                        locked = &mut lock => return Ok(Waited::Locked(locked)),
                        // Loaded after the watch has started, so that no failure in between is
                        // missed.
                        _ = self.store.hear(self.session), if !has_heard => {
                            has_heard = true;
                            if self.is_warned()
                                && let Some(stored) = self.look_then_heed().await?
                            {
                                return Ok(Waited::Stored(stored));
                            }
                        }
                    }
                }
            };
            let Ok(found) = found else {
                // The store cannot report changes, so only the lock is awaited.
                return Ok(Waited::Locked(lock.await));
            };
            let is_news = !is_same(found.as_ref(), seen.as_ref());
            seen.clone_from(&found);
            let own = self.store.of_own_key(self.session, found);
            let shown = self.store.look_at(self.session, own);
            if let Some(Next::Take(stored)) = self.consider(shown) {
                return Ok(Waited::Stored(stored));
            }
            let hears_news = self.store.hear(self.session).await;
            has_heard = true;
            self.heed_early()?;
            if is_news || hears_news {
                pause = FIRST_PAUSE;
            } else {
                tokio::select! {
                    biased;
                    locked = &mut lock => return Ok(Waited::Locked(locked)),
                    () = sleep(pause) => {}
                }
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }

    /// Reads the store before obeying a failure, because there may be newer tokens beside it.
    async fn look_then_heed(&self) -> Result<Option<Tokens>, Error> {
        let look = self.store.look(self.session).await;
        if let Some(Next::Take(stored)) = self.consider(look) {
            return Ok(Some(stored));
        }
        self.heed_early()?;
        Ok(None)
    }

    fn is_warned(&self) -> bool {
        !matches!(self.advice(), Advice::Ask)
    }

    /// What to do about the failure of another process, given the refresh token to send.
    fn advice(&self) -> Advice {
        let sent_to = self.session.0.refresher.as_deref().and_then(sent_to);
        let asked = self.progress.tokens();
        self.store.advice(asked.refresh_token(), sent_to.as_deref())
    }

    /// Fails if another process failed a moment ago.
    pub(super) fn heed(&self) -> Result<(), Error> {
        match self.advice() {
            // The search shows whether there is another refresh token.
            Advice::Ask | Advice::Dead(_) => Ok(()),
            Advice::LoggedOut(error) => {
                self.progress.searched().heeds = true;
                Err(error)
            }
            Advice::StandBack { cause, left } => {
                self.progress.searched().heeds = true;
                let error = cooling_down(&cause);
                self.in_flight.stand_back(cause, left);
                Err(error)
            }
        }
    }

    /// Does the same while the refresh waits for the lock.
    fn heed_early(&self) -> Result<(), Error> {
        match self.advice() {
            Advice::Dead(error) if !self.has_another_way() => {
                if let Some(dead) = self.progress.tokens().refresh_token() {
                    self.store.died(dead);
                }
                self.progress.searched().heeds = true;
                Err(error)
            }
            _ => self.heed(),
        }
    }

    /// Whether a refresh could succeed without the refresh token that would be sent now.
    fn has_another_way(&self) -> bool {
        let mut tokens = self.progress.tokens();
        let given = self.store.given(self.in_flight.login());
        let is_another = |given| Some(&given) != tokens.refresh_token();
        if given.is_some_and(is_another) {
            return true;
        }
        tokens.set_refresh(None);
        let refresher = self.session.0.refresher.as_deref();
        refresher.is_some_and(|refresher| can_refresh(refresher, &tokens))
    }
}

fn is_same(one: Option<&Tokens>, other: Option<&Tokens>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => one.same_as(other),
        (one, other) => one.is_none() && other.is_none(),
    }
}

/// A panic in the user's code counts as unknown.
pub(super) fn sent_to(refresher: &dyn Refresher) -> Option<String> {
    catch_unwind(AssertUnwindSafe(|| refresher.sends_to())).unwrap_or_default()
}
