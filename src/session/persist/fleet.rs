//! What a session hears from the others that share its store, and what it tells them.

use tokio::time::Instant;

use super::{
    super::Session,
    marks::Advice,
    sync::{Look, StoreSync, panicked},
};
use crate::{
    catch_panic::catch_panic,
    error::Error,
    event::Event,
    store::{Says, StoreLock, StoredFailure, fingerprint},
    token::{RefreshToken, Tokens},
};

impl StoreSync {
    /// What the store holds as far as this session knows, for [`watch`](Self::watch).
    pub(in crate::session) fn last_seen(&self) -> Option<Tokens> {
        self.known().last_seen().cloned()
    }

    /// Waits until the store holds something else than `seen`, or another failure. Not bounded
    /// here: the refresh is.
    pub(in crate::session) async fn watch(
        &self,
        seen: Option<&Tokens>,
    ) -> Result<Option<Tokens>, Error> {
        let change = catch_panic(self.store.wait_for_change(seen));
        change.await.unwrap_or_else(|| Err(panicked()))
    }

    /// What a change of the store shows.
    pub(in crate::session) fn look_at(&self, session: &Session, found: Option<Tokens>) -> Look {
        let before = self.known().login();
        self.found(session, found, before)
    }

    /// Looks for the failure that another process has left. Whether it is another one than before.
    pub(in crate::session) async fn hear(&self, session: &Session) -> bool {
        match self.bounded(self.store.load_failure()).await {
            Ok(mark) => self.known().hears(mark, Instant::now()),
            Err(error) => {
                session.emit(&Event::StoreFailed { error });
                false
            }
        }
    }

    /// What to do about the failure that was heard of last.
    pub(in crate::session) fn advice(
        &self,
        refresh: Option<&RefreshToken>,
        sent_to: Option<&str>,
    ) -> Advice {
        self.known().advice(refresh, sent_to, Instant::now())
    }

    /// Tells the others of a failure, under the lock.
    pub(in crate::session) async fn tell(&self, session: &Session, lock: &StoreLock, says: Says) {
        if self.known().has_told(&says) {
            return;
        }
        let mark = StoredFailure::new(says);
        // Before it is stored: the store may say that it failed, and have it all the same.
        self.known().tells(mark.clone(), Instant::now());
        if let Err(error) = self.bounded(self.store.save_failure(lock, &mark)).await {
            // Each of them finds out by itself.
            session.emit(&Event::StoreFailed { error });
        }
    }

    /// Tells the others that a login is over that had these refresh tokens.
    pub(super) async fn tell_logout<'t>(
        &self,
        session: &Session,
        lock: &StoreLock,
        forgotten: impl Iterator<Item = &'t RefreshToken>,
    ) {
        let mut of: Vec<_> = forgotten.map(|refresh| fingerprint(refresh, &[])).collect();
        of.dedup();
        if !of.is_empty() {
            self.tell(session, lock, Says::Cleared { of }).await;
        }
    }

    /// There are newer tokens: a failure that was told before concerns nobody any more.
    pub(super) async fn take_back_heard(&self, session: &Session, lock: &StoreLock) {
        if self.known().has_heard() {
            self.take_back(session, lock).await;
        }
    }

    /// The caller has given new tokens: no failure that was left before says anything about them.
    pub(super) async fn take_back_failure(&self, session: &Session, lock: &StoreLock) {
        if matches!(self.bounded(self.store.load_failure()).await, Ok(Some(_))) {
            self.take_back(session, lock).await;
        }
        self.known().hears(None, Instant::now());
    }

    async fn take_back(&self, session: &Session, lock: &StoreLock) {
        let nothing = StoredFailure::new(Says::Nothing);
        match self.bounded(self.store.save_failure(lock, &nothing)).await {
            Ok(()) => drop(self.known().hears(None, Instant::now())),
            Err(error) => session.emit(&Event::StoreFailed { error }),
        }
    }
}
