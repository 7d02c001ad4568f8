//! The failures that a session shares with the others that use its store.

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
    /// The content of the store as far as this session knows, for [`watch`](Self::watch).
    pub(in crate::session) fn last_seen(&self) -> Option<Tokens> {
        self.known().last_seen().cloned()
    }

    /// Waits until the store holds other tokens than `seen`, or another failure. The limit of the
    /// refresh bounds the wait.
    pub(in crate::session) async fn watch(
        &self,
        seen: Option<&Tokens>,
    ) -> Result<Option<Tokens>, Error> {
        let change = catch_panic(self.store.wait_for_change(seen));
        change.await.unwrap_or_else(|| Err(panicked()))
    }

    /// Judges a change of the store.
    pub(in crate::session) fn look_at(&self, session: &Session, found: Option<Tokens>) -> Look {
        let before = self.known().login();
        self.found(session, found, before)
    }

    /// Loads the failure that another process has stored. Returns whether it differs from the
    /// previous one.
    pub(in crate::session) async fn hear(&self, session: &Session) -> bool {
        match self.bounded(self.store.load_failure()).await {
            Ok(mark) => self.known().hears(mark, Instant::now()),
            Err(error) => {
                session.emit(&Event::StoreFailed { error });
                false
            }
        }
    }

    /// What to do about the failure that was loaded last.
    pub(in crate::session) fn advice(
        &self,
        refresh: Option<&RefreshToken>,
        sent_to: Option<&str>,
    ) -> Advice {
        self.known().advice(refresh, sent_to, Instant::now())
    }

    /// Shares a failure with the other processes, under the lock.
    pub(in crate::session) async fn tell(&self, session: &Session, lock: &StoreLock, says: Says) {
        if self.known().has_told(&says) {
            return;
        }
        let mark = StoredFailure::new(says);
        // Recorded before the save, which may report an error although it succeeds.
        self.known().tells(mark.clone(), Instant::now());
        if let Err(error) = self.bounded(self.store.save_failure(lock, &mark)).await {
            // Each of the other processes finds out by itself.
            session.emit(&Event::StoreFailed { error });
        }
    }

    /// Tells the other processes that the login with these refresh tokens is over.
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

    /// Withdraws the shared failure, because there are newer tokens.
    pub(super) async fn take_back_heard(&self, session: &Session, lock: &StoreLock) {
        if self.known().has_heard() {
            self.take_back(session, lock).await;
        }
    }

    /// Withdraws any shared failure, because the caller has given new tokens.
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
