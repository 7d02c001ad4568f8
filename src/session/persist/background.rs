//! Saves captured tokens behind the requests that brought them.

use super::{
    super::Session,
    sync::{Look, StoreSync},
};
use crate::event::Event;

impl StoreSync {
    /// Saves a captured token behind the request.
    pub(in crate::session) fn save_soon(&self, session: &Session) {
        let mut known = self.known();
        if !known.wants_save() {
            return;
        }
        known.background_starts();
        drop(known);
        let background = BackgroundSave::new(session.clone());
        session.spawn(background, |background| {
            let session = background.0.clone();
            session.within(async move { background.work().await })
        });
    }

    /// A capture that came during a refresh that brought nothing newer. At the end, what could not
    /// be saved before, too.
    pub(in crate::session) fn save_what_is_left(&self, session: &Session, at_the_end: bool) {
        if self.known().is_dirty() || at_the_end && self.has_unsaved() {
            self.save_soon(session);
        }
    }
}

/// Saves captured tokens, the newest each time, until there is nothing left to save.
struct BackgroundSave(Session);

impl BackgroundSave {
    fn new(session: Session) -> Self {
        if let Some(store) = &session.0.store {
            store.savers.send_modify(|savers| *savers += 1);
        }
        Self(session)
    }

    async fn work(&self) {
        let Some(store) = &self.0.0.store else { return };
        loop {
            store.known().round_begins();
            self.save_once(store).await;
            if store.known().round_ends() {
                return;
            }
        }
    }

    async fn save_once(&self, store: &StoreSync) {
        let session = &self.0;
        let (lock, _turn) = match store.lock_and_turn(session).await {
            Ok(both) => both,
            Err(error) => {
                store.postpone(session);
                return session.emit(&Event::StoreFailed { error });
            }
        };
        let login = session.load().login;
        match store.peek(session).await {
            // Of another login, perhaps, or of a later refresh token: the two are not mixed, and
            // the next refresh decides (contract 10.2).
            Look::Changed(theirs)
                if theirs.refresh_token().is_some() || session.load().refresh.is_some() =>
            {
                return;
            }
            // It may have been rotated: ours is not to be put back.
            Look::Failed if session.load().refresh.is_some() => {
                store.postpone(session);
                return;
            }
            // Without one nothing can be lost, and a broken file is mended by the save.
            Look::Same | Look::Changed(_) | Look::Failed => {}
        }
        if store.known().is_kept_out() {
            return;
        }
        let state = session.load();
        if state.has_tokens() {
            let _ = store.save(session, login, &lock, &state.tokens()).await;
        }
    }
}

impl Drop for BackgroundSave {
    fn drop(&mut self) {
        if let Some(store) = &self.0.0.store {
            store.known().background_is_gone();
            store.savers.send_modify(|savers| *savers -= 1);
        }
    }
}
