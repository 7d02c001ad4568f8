//! Saves, and the removal of a login.
//!
//! Every save holds the store's lock and follows a load, so that a refresh token that another
//! process has rotated is never restored.

use std::future::Future;

use tokio::sync::MutexGuard;

use super::{
    super::{Session, refresh::InFlight},
    sync::StoreSync,
};
use crate::{
    error::{Error, ErrorKind},
    event::Event,
    store::{StoreLock, is_lock_lapsed},
    time::within,
    token::{RefreshToken, Tokens},
};

impl StoreSync {
    /// Whether another process has changed the stored tokens since this session last read them, but
    /// not before the response to `asked` was known.
    async fn is_theirs(&self, session: &Session, asked: Option<&RefreshToken>) -> bool {
        let Ok(Some(found)) = self.load(session).await else {
            return false;
        };
        self.known().is_theirs(&found, asked)
    }

    /// Saves tokens and records the result. The intention is recorded first, because the caller may
    /// be cancelled before the save ends.
    pub(in crate::session) async fn save(
        &self,
        session: &Session,
        login: u64,
        lock: &StoreLock,
        tokens: &Tokens,
    ) -> Result<(), Error> {
        if !self.known().intends(login, tokens, None) {
            return Ok(());
        }
        let tokens = tokens.clone().with_rotates(self.known().rotates());
        let tokens = &tokens.bound_to(session.key_thumbprint());
        self.known().tries(tokens);
        let mut saved = self.bounded(self.store.save(lock, tokens)).await;
        if saved.as_ref().is_err_and(is_lock_lapsed) && self.save_again(session, tokens).await {
            saved = Ok(());
        }
        match &saved {
            Ok(()) => {
                let current = tokens.same_as(&session.load().tokens());
                self.known().saved(tokens, current);
            }
            Err(error) => session.emit(&Event::StoreFailed { error: error.clone() }),
        }
        saved
    }

    /// Repeats a save under a new lock, after the previous lock lapsed while its holder was
    /// suspended, if the store still holds what this session last saw (contract 10.5).
    async fn save_again(&self, session: &Session, tokens: &Tokens) -> bool {
        let again = async {
            let lock = self.bounded(self.store.lock()).await?;
            let found = self.load(session).await?;
            let theirs = found.is_some_and(|found| !self.known().knows(&found));
            if theirs || self.known().is_kept_out() {
                return Ok(false);
            }
            self.bounded(self.store.save(&lock, tokens)).await.map(|()| true)
        };
        matches!(again.await, Ok::<_, Error>(true))
    }

    /// Saves the result of a refresh under its lock. The refresh has already read the store, unless
    /// it could not get the lock. `asked` is the refresh token for which the token endpoint issued
    /// the tokens.
    pub(in crate::session) async fn save_under(
        &self,
        session: &Session,
        refresh: &InFlight,
        asked: Option<&RefreshToken>,
        tokens: &Tokens,
    ) {
        if !self.known().intends(refresh.login(), tokens, asked) {
            return;
        }
        let (lock, has_looked) = match refresh.lock() {
            Some(lock) => (lock, true),
            None => match self.bounded(self.store.lock()).await {
                Ok(lock) => (lock, false),
                Err(error) => return session.emit(&Event::StoreFailed { error }),
            },
        };
        let _turn = match self.turn().await {
            Ok(turn) => turn,
            Err(error) => return session.emit(&Event::StoreFailed { error }),
        };
        // There may be a new login, or another process may have stored tokens while the lock was
        // free. The next refresh uses those.
        if !session.is_current(refresh.login())
            || !has_looked && self.is_theirs(session, asked).await
        {
            return self.known().settles(tokens);
        }
        if self.known().is_kept_out() {
            return;
        }
        if asked.is_some() {
            // Until they are saved, because the runtime may be shut down during the save.
            lock.issued(false);
        }
        let saved = self.save(session, refresh.login(), &lock, tokens).await;
        if asked.is_some() {
            lock.issued(saved.is_ok());
        }
        if saved.is_ok() && tokens.access_token().is_some() {
            self.take_back_heard(session, &lock).await;
        }
    }

    /// Records beside the lock that this refresh token is about to be sent. Returns whether the
    /// lock is still held.
    pub(in crate::session) async fn records(
        &self,
        session: &Session,
        lock: &StoreLock,
        refresh: &RefreshToken,
    ) -> bool {
        match self.bounded(lock.sends(refresh)).await {
            Ok(()) => true,
            Err(error) if is_lock_lapsed(&error) => false,
            Err(error) => {
                // If the response is lost, the next process does not learn it.
                session.emit(&Event::StoreFailed { error });
                true
            }
        }
    }

    /// Acquires what a save or a logout needs first.
    pub(super) async fn lock_and_turn(
        &self,
        session: &Session,
    ) -> Result<(StoreLock, MutexGuard<'_, ()>), Error> {
        Ok((self.lock_for(session, self.lock()).await?, self.turn().await?))
    }

    /// Does the same for a background save, which must not cancel itself.
    pub(super) async fn lock_and_turn_of_saver(
        &self,
        session: &Session,
    ) -> Result<(StoreLock, MutexGuard<'_, ()>), Error> {
        Ok((self.lock_for(session, self.lock_of_store()).await?, self.turn().await?))
    }

    /// The lock of the refresh in progress, or the store's own.
    async fn lock_for(
        &self,
        session: &Session,
        locking: impl Future<Output = Result<StoreLock, Error>>,
    ) -> Result<StoreLock, Error> {
        if let Some(lock) = session.load().in_flight.as_ref().and_then(|refresh| refresh.lock()) {
            return Ok(lock);
        }
        match within(session.0.refresh_timeout, locking).await {
            Ok(lock) => lock,
            Err(_) => Err(Error::new(ErrorKind::Store, "the store's lock was not free in time")),
        }
    }

    /// Saves the tokens that the user has given, whatever the store holds.
    pub(in crate::session) async fn save_now(
        &self,
        session: &Session,
        login: u64,
    ) -> Result<(), Error> {
        let (lock, _turn) = match self.lock_and_turn(session).await {
            Ok(both) => both,
            Err(error) => {
                self.known().announcement_failed(login);
                session.emit(&Event::StoreFailed { error: error.clone() });
                return Err(error);
            }
        };
        // Withdrawn before other processes can see the new tokens.
        self.take_back_failure(session, &lock).await;
        lock.forget_calls();
        // A capture may have saved them already, and another process may have rotated them since.
        if !self.known().is_to_save(login) {
            return Ok(());
        }
        self.look(session).await;
        self.save(session, login, &lock, &session.load().tokens()).await
    }

    /// Clears the store, and tells the other processes. `stored` receives its content, if that
    /// belongs to the login that the session `held`. If the store cannot be read, `stored` receives
    /// what this session last saw there.
    pub(in crate::session) async fn clear(
        &self,
        session: &Session,
        login: u64,
        held: &Tokens,
        stored: &mut Option<Tokens>,
    ) -> Result<(), Error> {
        let cleared: Result<(), Error> = async {
            let (lock, _turn) = self.lock_and_turn(session).await?;
            if !session.is_current(login) {
                return Ok(());
            }
            *stored = self.known().seen().cloned();
            let mut forgotten = stored.clone();
            if let Ok(found) = self.load(session).await {
                forgotten.clone_from(&found);
                *stored = found.filter(|found| self.known().is_same_login(found, held));
            }
            self.bounded(self.store.clear(&lock)).await?;
            lock.forget_calls();
            let forgotten = forgotten.as_ref().and_then(Tokens::refresh_token);
            self.tell_logout(session, &lock, held.refresh_token().into_iter().chain(forgotten))
                .await;
            Ok(())
        }
        .await;
        if let Err(error) = &cleared {
            session.emit(&Event::StoreFailed { error: error.clone() });
        }
        self.known().forgets_login(login, cleared.is_ok());
        cleared
    }
}
