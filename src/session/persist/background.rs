//! Saves captured tokens in the background, so that requests do not wait.

use std::sync::Arc;

use super::{
    super::{Session, refresh::Work},
    saver::Saver,
    sync::{Look, StoreSync},
};
use crate::event::Event;

impl StoreSync {
    /// Saves a captured token in the background.
    pub(in crate::session) fn save_soon(&self, session: &Session) {
        let mut known = self.known();
        if !known.wants_save() {
            return;
        }
        known.background_starts();
        drop(known);
        let background = BackgroundSave::new(session.clone());
        *self.saver() = Arc::downgrade(&background.saver);
        session.spawn(background, |background| {
            let (session, saver) = (background.session.clone(), Arc::clone(&background.saver));
            Work::task(saver, session.within(async move { background.work().await }))
        });
    }

    /// Saves a token that was captured during a refresh that obtained nothing newer. At the end,
    /// also saves whatever could not be saved before.
    pub(in crate::session) fn save_what_is_left(&self, session: &Session, at_the_end: bool) {
        if self.known().is_dirty() || at_the_end && self.has_unsaved() {
            self.save_soon(session);
        }
    }
}

/// Saves captured tokens, always the newest, until nothing is left to save.
struct BackgroundSave {
    session: Session,
    saver: Arc<Saver>,
}

impl BackgroundSave {
    fn new(session: Session) -> Self {
        if let Some(store) = &session.0.store {
            store.savers.send_modify(|savers| *savers += 1);
        }
        Self { session, saver: Arc::new(Saver::new()) }
    }

    async fn work(&self) {
        let Some(store) = &self.session.0.store else { return };
        loop {
            self.saver.begins();
            store.known().round_begins();
            self.save_once(store).await;
            if store.known().round_ends() {
                return;
            }
        }
    }

    async fn save_once(&self, store: &StoreSync) {
        let session = &self.session;
        let (lock, _turn) = match store.lock_and_turn_of_saver(session).await {
            Ok(both) => both,
            Err(error) => {
                store.postpone(session);
                return session.emit(&Event::StoreFailed { error });
            }
        };
        let login = session.load().login;
        match store.peek(session).await {
            // The stored tokens may belong to another login, or contain a later refresh token. The
            // two are not mixed, and the next refresh decides (contract 10.2).
            Look::Changed(theirs)
                if theirs.refresh_token().is_some() || session.load().refresh.is_some() =>
            {
                return;
            }
            // The stored refresh token may have been rotated, so ours must not replace it.
            Look::Failed if session.load().refresh.is_some() => {
                store.postpone(session);
                return;
            }
            // Without a refresh token nothing can be lost, and the save repairs a broken file.
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
        if let Some(store) = &self.session.0.store {
            store.known().background_is_gone();
            store.savers.send_modify(|savers| *savers -= 1);
        }
    }
}
