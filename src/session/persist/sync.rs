//! Locks and loads. The store's lock is never awaited while `saving` is held.

use std::{
    future::Future,
    pin::pin,
    sync::{Mutex, PoisonError, Weak},
    time::Duration,
};

use tokio::{
    sync::{Mutex as AsyncMutex, MutexGuard, watch},
    time::Instant,
};

use super::{
    super::{Session, interleave::lock},
    known::Known,
    saver::Saver,
};
use crate::{
    catch_panic::{StorePanicked, catch_panic},
    error::{Error, ErrorKind, printable},
    event::Event,
    store::{StoreLock, TokenStore},
    time::within,
    token::{RefreshToken, Tokens},
};

pub(in crate::session) struct StoreSync {
    pub(super) store: Box<dyn TokenStore>,
    limit: Duration,
    /// No other session uses this store, so even a rotating refresh token is sent without it.
    alone: bool,
    known: Mutex<Known>,
    /// Allows one save at a time.
    saving: AsyncMutex<()>,
    /// The background save that started last.
    saver: Mutex<Weak<Saver>>,
    /// The number of background saves.
    pub(in crate::session) savers: watch::Sender<usize>,
}

/// The result of reading the store.
pub(in crate::session) enum Look {
    /// Nothing that this session does not know.
    Same,
    /// Tokens that another process has stored since.
    Changed(Tokens),
    /// The store failed.
    Failed,
}

impl StoreSync {
    pub(in crate::session) fn new(
        store: Box<dyn TokenStore>,
        limit: Duration,
        given: Option<RefreshToken>,
        alone: bool,
    ) -> Self {
        let known = Mutex::new(Known::new(given));
        Self {
            store,
            limit,
            alone,
            known,
            saving: AsyncMutex::new(()),
            saver: Mutex::default(),
            savers: watch::Sender::new(0),
        }
    }

    pub(super) fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        lock(&self.known)
    }

    pub(in crate::session) fn limit(&self) -> Duration {
        self.limit
    }

    /// Waits for the store's lock. The limit of the refresh bounds the wait. If this session's own
    /// background save holds the lock, on a runtime that is no longer driven, that save is
    /// cancelled.
    pub(in crate::session) async fn lock(&self) -> Result<StoreLock, Error> {
        let mut locking = pin!(self.lock_of_store());
        loop {
            let longest = self.longest_turn();
            if let Ok(locked) = within(longest, locking.as_mut()).await {
                return locked;
            }
            let saver = self.saver().upgrade();
            if let Some(saver) = saver {
                saver.end_if_older_than(longest);
            }
        }
    }

    pub(super) fn saver(&self) -> std::sync::MutexGuard<'_, Weak<Saver>> {
        self.saver.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) async fn lock_of_store(&self) -> Result<StoreLock, Error> {
        catch_panic(self.store.lock()).await.unwrap_or_else(|| Err(panicked()))
    }

    /// Longer than any save on a running runtime.
    fn longest_turn(&self) -> Duration {
        self.limit.saturating_mul(4)
    }

    /// Loads the stored tokens for this session.
    pub(super) async fn load(&self, session: &Session) -> Result<Option<Tokens>, Error> {
        let found = self.bounded(self.store.load()).await?;
        Ok(self.of_own_key(session, found))
    }

    /// Returns the stored tokens, or `None` if they are bound to another key than the session's
    /// (contract 16.5).
    pub(in crate::session) fn of_own_key(
        &self,
        session: &Session,
        found: Option<Tokens>,
    ) -> Option<Tokens> {
        let (found, told) = self.known().check_key(found, session.key_thumbprint());
        if let Some(thumbprint) = told {
            session.emit(&Event::StoredLoginIgnored { thumbprint });
        }
        found
    }

    /// The reason why there is no login, if the stored one is bound to another key.
    pub(in crate::session) fn bound_elsewhere(&self, session: &Session) -> Option<Error> {
        let known = self.known();
        let theirs = printable(known.elsewhere()?.key_thumbprint()?);
        let own = match session.key_thumbprint() {
            Some(own) => format!("the session's is {own}"),
            None => "the session has none".to_owned(),
        };
        let text = format!("the stored login is bound to the key {theirs}, and {own}");
        let error = Error::new(ErrorKind::LoginRequired, text);
        // With its own token, the session continues.
        let goes_on = session.load().has_tokens();
        Some(if goes_on { error.with_nothing_to_ask_with() } else { error })
    }

    pub(super) async fn bounded<T>(
        &self,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        match within(self.limit, catch_panic(work)).await {
            Ok(Some(done)) => done,
            // The panic must not take the result of the refresh with it.
            Ok(None) => Err(panicked()),
            Err(_) => Err(Error::new(ErrorKind::Store, "the store did not respond in time")),
        }
    }

    /// Acquires the save lock. Bounded, because the current holder's runtime may have stopped.
    pub(super) async fn turn(&self) -> Result<MutexGuard<'_, ()>, Error> {
        let turn = within(self.longest_turn(), self.saving.lock()).await;
        turn.map_err(|_| Error::new(ErrorKind::Store, "the previous save did not finish in time"))
    }

    /// Reads the store. A failing store is skipped with an event.
    pub(in crate::session) async fn look(&self, session: &Session) -> Look {
        let before = self.known().login();
        match self.load(session).await {
            Ok(found) => self.found(session, found, before),
            Err(error) => {
                session.emit(&Event::StoreFailed { error });
                Look::Failed
            }
        }
    }

    /// Judges the content of the store. `before` is the newest login when the load began.
    pub(super) fn found(&self, session: &Session, found: Option<Tokens>, before: u64) -> Look {
        let Some(found) = found else {
            self.known().finds_nothing(before);
            return Look::Same;
        };
        let theirs = self.known().finds(&found, &session.load().tokens(), before);
        if theirs { Look::Changed(found) } else { Look::Same }
    }

    /// Reads the store, and leaves the tokens of another process to the next refresh.
    pub(super) async fn peek(&self, session: &Session) -> Look {
        let before = self.known().login();
        match self.load(session).await {
            Ok(Some(found)) => {
                let own = session.load().tokens();
                let mut known = self.known();
                if known.is_foreign(&found, &own) {
                    Look::Changed(found)
                } else {
                    known.finds(&found, &own, before);
                    Look::Same
                }
            }
            Ok(None) => {
                self.known().finds_nothing(before);
                Look::Same
            }
            Err(error) => {
                session.emit(&Event::StoreFailed { error });
                Look::Failed
            }
        }
    }

    /// Whether no later login has been announced.
    pub(in crate::session) fn is_newest(&self, login: u64) -> bool {
        self.known().login() == login
    }

    /// The stored refresh token that is tried before the session's own (contract 10.3).
    pub(in crate::session) fn candidate(&self, login: u64) -> Option<RefreshToken> {
        self.known().candidate(login).cloned()
    }

    pub(in crate::session) fn set_candidate(&self, login: u64, refresh: Option<RefreshToken>) {
        self.known().set_candidate(login, refresh);
    }

    /// The tokens to store after a stored refresh token was replaced but its access token was not
    /// adopted: the two stay together.
    pub(in crate::session) fn seen_with(&self, refresh: RefreshToken) -> Tokens {
        self.known().seen_with(refresh)
    }

    /// Reads the store at the start, for
    /// [`SessionBuilder::restore`](super::SessionBuilder::restore).
    pub(in crate::session) async fn open(
        &self,
        session: &Session,
    ) -> Result<Option<Tokens>, Error> {
        let found = self.load(session).await?;
        match &found {
            Some(found) => self.known().sees(found),
            None => self.known().finds_nothing(0),
        }
        Ok(found)
    }

    /// The refresh token to fall back on if the stored one is rejected.
    pub(in crate::session) fn given(&self, login: u64) -> Option<RefreshToken> {
        self.known().given(login).cloned()
    }

    /// Records that the login works, so that the refresh token that the session was given is no
    /// longer needed.
    pub(in crate::session) fn forget_given(&self, login: u64) {
        self.known().forgets_given(login);
    }

    /// Whether another process may have spent this refresh token and died before it saved the next:
    /// the token is or was in the store.
    pub(in crate::session) fn is_shared(&self, refresh: &RefreshToken) -> bool {
        self.known().is_shared(refresh)
    }

    /// Whether a refresh token must not be sent without the store's lock and a load: it is known to
    /// rotate, and other processes would send it too (contract 10.1).
    pub(in crate::session) fn is_needed(&self) -> bool {
        !self.alone && self.known().rotates()
    }

    /// Whether other processes or sessions may use this store.
    pub(in crate::session) fn is_shared_by_others(&self) -> bool {
        !self.alone
    }

    /// Records that the token endpoint has permanently rejected this refresh token.
    pub(in crate::session) fn died(&self, refresh: &RefreshToken) {
        self.known().died(refresh);
    }

    /// Whether the store may be searched for another login now: once per cool-down.
    pub(in crate::session) fn may_look_for_login(&self, now: Instant, cooldown: Duration) -> bool {
        self.known().looks_for_login(now, cooldown)
    }

    /// Finds a login that another process has stored since the session's own login, `dead`, ended.
    pub(in crate::session) async fn find_login(
        &self,
        session: &Session,
        dead: &Tokens,
    ) -> Option<Tokens> {
        let found = match self.load(session).await {
            Ok(found) => found?,
            Err(error) => {
                session.emit(&Event::StoreFailed { error });
                return None;
            }
        };
        let mut known = self.known();
        if !known.is_another_login(&found, dead) {
            return None;
        }
        known.sees(&found);
        Some(found)
    }

    pub(in crate::session) fn has_unsaved(&self) -> bool {
        self.known().has_unsaved()
    }

    /// Records that the user has given these tokens. They are to be saved, and the content of the
    /// store is older. Called before the session's state shows this login.
    pub(in crate::session) fn announce(&self, login: u64, tokens: &Tokens) {
        self.known().announce(login, tokens);
    }

    /// Records that the session adopts another login of the store. Called before the session's
    /// state shows it.
    pub(in crate::session) fn adopts(&self, login: u64, tokens: &Tokens) {
        self.known().adopts(login, tokens);
    }

    /// Records that a logout begins. Called before the session's state shows it.
    pub(in crate::session) fn logs_out(&self, login: u64) {
        self.known().logs_out(login);
    }

    /// Records that a save is not possible now. The session's tokens wait for the next save.
    pub(super) fn postpone(&self, session: &Session) {
        let state = session.load();
        self.known().postpones(state.login, state.tokens());
    }

    /// Whether nothing is being saved or left to save.
    pub(in crate::session) fn is_settled(&self) -> bool {
        *self.savers.borrow() == 0 && !self.has_unsaved()
    }

    /// Waits until no background save is running.
    pub(in crate::session) async fn settled(&self) {
        let _ = self.savers.subscribe().wait_for(|savers| *savers == 0).await;
    }
}

pub(super) fn panicked() -> Error {
    Error::new(ErrorKind::Store, StorePanicked)
}
