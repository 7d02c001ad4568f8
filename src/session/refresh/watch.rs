//! How a refresh waits for its turn: it watches the store, and goes home with what another process
//! stores there, or with the failure that it leaves, without taking the lock (contract 10.8).

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    time::Duration,
};

use tokio::time::sleep;

use super::{
    super::{Session, can_refresh, persist::Advice, state::cooling_down},
    in_flight::InFlight,
    obtain::{Next, Search},
    progress::Progress,
};
use crate::{
    error::Error,
    refresher::{RefreshLog, Refresher},
    store::{Says, StoreLock, fingerprint},
    token::Tokens,
};

/// Most locks are free at once: only later is the store watched.
const HEAD_START: Duration = Duration::from_millis(20);
/// Between two calls of a store that tells of a change where there is none.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// How a wait for the lock ends.
pub(super) enum Waited {
    Locked(Result<StoreLock, Error>),
    /// Another process stored tokens that spare the call.
    Stored(Tokens),
}

/// Tells the other processes of a failure that is theirs too, before the lock is free.
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
    /// Waits for the lock, or for what its holder brings. Fails as the holder did, where that
    /// failure is everybody's.
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
                        // After the watch has begun, so that no failure comes between the two.
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
                // The store cannot tell: its lock alone is waited for.
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

    /// There may be newer tokens beside the failure.
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

    /// What to do about the failure of another process, with the refresh token that would be sent.
    fn advice(&self) -> Advice {
        let sent_to = self.session.0.refresher.as_deref().and_then(sent_to);
        let asked = self.progress.tokens();
        self.store.advice(asked.refresh_token(), sent_to.as_deref())
    }

    /// Fails as another process did a moment ago.
    pub(super) fn heed(&self) -> Result<(), Error> {
        match self.advice() {
            // Whether there is another refresh token is found out on the way.
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

    /// The same while the lock is waited for.
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

/// A panic in the user's answer counts as unknown.
pub(super) fn sent_to(refresher: &dyn Refresher) -> Option<String> {
    catch_unwind(AssertUnwindSafe(|| refresher.sends_to())).unwrap_or_default()
}
