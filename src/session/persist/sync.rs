//! A session's dealings with its store: what was seen there last, and what is still to be saved.
//!
//! Every save is made under the store's lock and after a load, so that a refresh token that another
//! process has rotated is never put back. The store's lock is never waited for while `saving` is
//! held.

use std::{
    future::Future,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Mutex as AsyncMutex, MutexGuard, watch},
    time::timeout,
};

use super::{
    super::{Session, refresh::InFlight},
    known::Known,
};
use crate::{
    catch_panic::catch_panic,
    error::{Error, ErrorKind},
    event::Event,
    store::{StoreLock, TokenStore},
    token::{RefreshToken, Tokens},
};

pub(in crate::session) struct StoreSync {
    store: Box<dyn TokenStore>,
    limit: Duration,
    memory: Mutex<Known>,
    /// One save at a time.
    saving: AsyncMutex<()>,
    /// Savers in the background.
    pub(in crate::session) savers: watch::Sender<usize>,
}

/// What a look into the store shows.
pub(in crate::session) enum Look {
    /// Nothing that this session does not know.
    Same,
    /// What somebody else has stored since.
    Changed(Tokens),
    /// The store failed.
    Failed,
}

impl StoreSync {
    pub(in crate::session) fn new(
        store: Box<dyn TokenStore>,
        limit: Duration,
        given: Option<RefreshToken>,
    ) -> Self {
        let memory = Mutex::new(Known { given, ..Known::default() });
        Self { store, limit, memory, saving: AsyncMutex::new(()), savers: watch::Sender::new(0) }
    }

    pub(in crate::session) fn memory(&self) -> std::sync::MutexGuard<'_, Known> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(in crate::session) fn limit(&self) -> Duration {
        self.limit
    }

    /// Waits for the store's lock. Not bounded here: the flight is.
    pub(in crate::session) async fn lock(&self) -> Result<StoreLock, Error> {
        catch_panic(self.store.lock()).await.unwrap_or_else(|| Err(panicked()))
    }

    async fn load(&self) -> Result<Option<Tokens>, Error> {
        self.bounded(self.store.load()).await
    }

    async fn bounded<T>(&self, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        match timeout(self.limit, catch_panic(work)).await {
            Ok(Some(done)) => done,
            // What the flight has brought is not to be lost with it.
            Ok(None) => Err(panicked()),
            Err(_) => Err(Error::new(ErrorKind::Store, "the store did not answer in time")),
        }
    }

    /// The turn to save. Not waited for for ever: whoever has it may be on a runtime that nobody
    /// drives any more.
    async fn turn(&self) -> Result<MutexGuard<'_, ()>, Error> {
        let turn = timeout(self.limit.saturating_mul(4), self.saving.lock()).await;
        turn.map_err(|_| Error::new(ErrorKind::Store, "the save before did not end in time"))
    }

    /// Looks into the store. One that fails is passed over with an event.
    pub(in crate::session) async fn look(&self, session: &Session) -> Look {
        match self.load().await {
            Ok(Some(found)) => self.compare(found, &session.load().tokens()),
            Ok(None) => {
                let mut memory = self.memory();
                (memory.looked, memory.announced) = (true, false);
                Look::Same
            }
            Err(error) => {
                session.emit(&Event::StoreFailed { error });
                Look::Failed
            }
        }
    }

    fn compare(&self, found: Tokens, own: &Tokens) -> Look {
        let mut memory = self.memory();
        let known = memory.knows(&found);
        if memory.unsaved.as_ref().is_some_and(|unsaved| unsaved.same_as(&found)) {
            // The save that seemed to fail was made all the same.
            memory.unsaved = None;
        }
        memory.announced = false;
        memory.sees(&found);
        if known || found.same_as(own) {
            return Look::Same;
        }
        memory.unsaved = None;
        Look::Changed(found)
    }

    /// What the store holds at the start, for
    /// [`SessionBuilder::restore`](super::SessionBuilder::restore).
    pub(in crate::session) async fn open(&self) -> Result<Option<Tokens>, Error> {
        let found = self.load().await?;
        let mut memory = self.memory();
        match &found {
            Some(found) => memory.sees(found),
            None => memory.looked = true,
        }
        drop(memory);
        Ok(found)
    }

    /// The refresh token to fall back on when the one from the store is dead.
    pub(in crate::session) fn given(&self) -> Option<RefreshToken> {
        self.memory().given.clone()
    }

    /// The login is alive: what the session was given is not needed.
    pub(in crate::session) fn forget_given(&self) {
        self.memory().given = None;
    }

    /// Whether another process may have spent this refresh token, and died before it could save the
    /// next: it is, or was, in the store.
    pub(in crate::session) fn is_shared(&self, refresh: &RefreshToken) -> bool {
        self.memory().shared.as_ref() == Some(refresh)
    }

    pub(in crate::session) fn has_unsaved(&self) -> bool {
        let memory = self.memory();
        memory.unsaved.is_some() || memory.dirty && !memory.saver
    }

    /// The user has given these tokens: whatever the store holds is older, and they are to be
    /// saved.
    pub(in crate::session) fn announce(&self, tokens: &Tokens) {
        let mut memory = self.memory();
        memory.unsaved = Some(tokens.clone());
        (memory.announced, memory.dirty) = (true, false);
        memory.given = tokens.refresh_token().cloned();
    }

    /// Takes down what is to be saved, unless the user has spoken since. `asked` as for
    /// [`Session::save_under`].
    fn intend(
        &self,
        session: &Session,
        login: u64,
        asked: Option<&RefreshToken>,
        tokens: &Tokens,
    ) -> bool {
        let mut memory = self.memory();
        let current = session.is_current(login);
        if current {
            memory.unsaved = Some(tokens.clone());
            // It is spent. Another one is not needed only once there is an access token too.
            memory.given.take_if(|given| Some(&*given) == asked);
        }
        current
    }

    /// Somebody else has stored it since this session last looked, though not before the answer to
    /// `asked` was known.
    async fn is_theirs(&self, asked: Option<&RefreshToken>) -> bool {
        let Ok(Some(found)) = self.load().await else {
            return false;
        };
        let memory = self.memory();
        memory.looked
            && !memory.knows(&found)
            && found.refresh_token().is_some_and(|refresh| Some(refresh) != asked)
    }

    /// Saves and takes down the result. The intention comes first: whoever waits for this may be
    /// gone before it is done.
    pub(in crate::session) async fn save(
        &self,
        session: &Session,
        login: u64,
        lock: &StoreLock,
        tokens: &Tokens,
    ) -> Result<(), Error> {
        if !self.intend(session, login, None, tokens) {
            return Ok(());
        }
        self.memory().tries(tokens);
        let saved = self.bounded(self.store.save(lock, tokens)).await;
        match &saved {
            Ok(()) => {
                let mut memory = self.memory();
                memory.sees(tokens);
                memory.settle(tokens);
                if tokens.same_as(&session.load().tokens()) {
                    memory.dirty = false;
                }
            }
            Err(error) => session.emit(&Event::StoreFailed { error: error.clone() }),
        }
        saved
    }

    /// Waits until no saver is at work.
    pub(in crate::session) async fn settled(&self) {
        let _ = self.savers.subscribe().wait_for(|savers| *savers == 0).await;
    }
}

impl Session {
    /// Saves what a flight brought, under its lock. It has looked already, unless it could not get
    /// the lock. `asked`: the refresh token for which the token endpoint gave these.
    pub(in crate::session) async fn save_under(
        &self,
        refresh: &InFlight,
        asked: Option<&RefreshToken>,
        tokens: &Tokens,
    ) {
        let Some(store) = &self.0.store else { return };
        if !store.intend(self, refresh.login(), asked, tokens) {
            return;
        }
        let (lock, has_looked) = match refresh.lock() {
            Some(lock) => (lock, true),
            None => match store.bounded(store.store.lock()).await {
                Ok(lock) => (lock, false),
                Err(error) => return self.emit(&Event::StoreFailed { error }),
            },
        };
        let _turn = match store.turn().await {
            Ok(turn) => turn,
            Err(error) => return self.emit(&Event::StoreFailed { error }),
        };
        // The user may have spoken while this waited, or another process while nobody held the
        // lock: the next flight takes theirs.
        if !self.is_current(refresh.login()) || !has_looked && store.is_theirs(asked).await {
            return store.memory().settle(tokens);
        }
        let _ = store.save(self, refresh.login(), &lock, tokens).await;
    }

    /// What a save, or a logout, has to have first.
    pub(in crate::session) async fn lock_and_turn<'a>(
        &self,
        store: &'a StoreSync,
    ) -> Result<(StoreLock, MutexGuard<'a, ()>), Error> {
        Ok((self.lock_store(store).await?, store.turn().await?))
    }

    /// The lock of the running flight, or the store's own.
    async fn lock_store(&self, store: &StoreSync) -> Result<StoreLock, Error> {
        if let Some(lock) = self.load().in_flight.as_ref().and_then(|refresh| refresh.lock()) {
            return Ok(lock);
        }
        match timeout(self.0.refresh_timeout, store.lock()).await {
            Ok(lock) => lock,
            Err(_) => Err(Error::new(ErrorKind::Store, "the store's lock was not free in time")),
        }
    }

    /// Saves the tokens that the user gave, in place of whatever is there.
    pub(in crate::session) async fn save_now(&self, login: u64) -> Result<(), Error> {
        let Some(store) = &self.0.store else {
            return Ok(());
        };
        let (lock, _turn) = match self.lock_and_turn(store).await {
            Ok(both) => both,
            Err(error) => {
                let mut memory = store.memory();
                // What it held before is known: another content is somebody else's word.
                memory.announced &= !memory.looked;
                drop(memory);
                self.emit(&Event::StoreFailed { error: error.clone() });
                return Err(error);
            }
        };
        if !self.is_current(login) {
            return Ok(());
        }
        store.look(self).await;
        store.save(self, login, &lock, &self.load().tokens()).await
    }

    /// Forgets what is stored.
    pub(in crate::session) async fn clear_store(&self, login: u64) -> Result<(), Error> {
        let Some(store) = &self.0.store else {
            return Ok(());
        };
        let cleared = async {
            let (lock, _turn) = self.lock_and_turn(store).await?;
            if self.is_current(login) {
                store.bounded(store.store.clear(&lock)).await
            } else {
                Ok(())
            }
        }
        .await;
        if let Err(error) = &cleared {
            self.emit(&Event::StoreFailed { error: error.clone() });
        }
        if self.is_current(login) {
            let mut memory = store.memory();
            let old = std::mem::take(&mut *memory);
            (memory.saver, memory.looked) = (old.saver, old.looked);
            if cleared.is_err() {
                // It may still be there, and is nobody else's word.
                (memory.seen, memory.tried) = (old.seen, old.tried);
            }
        }
        cleared
    }
}

fn panicked() -> Error {
    Error::new(ErrorKind::Store, "the store panicked")
}
