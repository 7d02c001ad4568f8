//! Saves captured tokens behind the requests that brought them.

use tokio::runtime::Handle;

use super::{
    super::Session,
    sync::{Look, StoreSync},
};
use crate::event::Event;

impl Session {
    /// Saves a captured token behind the request.
    pub(in crate::session) fn save_soon(&self) {
        let Some(store) = &self.0.store else { return };
        let mut memory = store.memory();
        memory.dirty = true;
        if memory.saver {
            return;
        }
        let Ok(runtime) = Handle::try_current() else {
            return;
        };
        memory.saver = true;
        let saver = BackgroundSave::new(self.clone());
        drop(memory);
        runtime.spawn(async move { saver.work().await });
    }

    /// A capture that came during a flight that brought nothing newer. At the end, what could not
    /// be saved before, too.
    pub(in crate::session) fn save_what_is_left(&self, at_the_end: bool) {
        let left = self
            .0
            .store
            .as_ref()
            .is_some_and(|store| store.memory().dirty || at_the_end && store.has_unsaved());
        if left {
            self.save_soon();
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
            store.memory().dirty = false;
            self.save_once(store).await;
            let mut memory = store.memory();
            if !memory.dirty {
                memory.saver = false;
                return;
            }
        }
    }

    async fn save_once(&self, store: &StoreSync) {
        let session = &self.0;
        let (lock, _turn) = match session.lock_and_turn(store).await {
            Ok(both) => both,
            Err(error) => {
                store.memory().unsaved = Some(session.load().tokens());
                return session.emit(&Event::StoreFailed { error });
            }
        };
        let login = session.load().login;
        match store.look(session).await {
            Look::Changed(theirs) => {
                // Another process has rotated it: ours is spent.
                if let Some(refresh) = theirs.refresh_token() {
                    let _ = session.keep_refresh(login, refresh.clone());
                }
            }
            // It may have been rotated: ours is not to be put back.
            Look::Failed if session.load().refresh.is_some() => {
                store.memory().unsaved = Some(session.load().tokens());
                return;
            }
            // Without one nothing can be lost, and a broken file is mended by the save.
            Look::Same | Look::Failed => {}
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
            let mut memory = store.memory();
            // Its runtime may be gone before the work was done.
            memory.dirty |= std::mem::take(&mut memory.saver);
            drop(memory);
            store.savers.send_modify(|savers| *savers -= 1);
        }
    }
}
