//! Saves captured tokens behind the requests that brought them.

use tokio::runtime::Handle;

use super::{
    Session,
    vault::{Look, Vault},
};
use crate::event::Event;

impl Session {
    /// Saves a captured token behind the request.
    pub(super) fn save_soon(&self) {
        let Some(vault) = &self.0.vault else { return };
        let mut memory = vault.memory();
        memory.dirty = true;
        if memory.saver {
            return;
        }
        let Ok(runtime) = Handle::try_current() else { return };
        memory.saver = true;
        let saver = Saver::new(self.clone());
        drop(memory);
        runtime.spawn(async move { saver.work().await });
    }

    /// A capture that came during a flight that brought nothing newer. At the end, what could not
    /// be saved before, too.
    pub(super) fn save_what_is_left(&self, at_the_end: bool) {
        let left = self
            .0
            .vault
            .as_ref()
            .is_some_and(|vault| vault.memory().dirty || at_the_end && vault.has_unsaved());
        if left {
            self.save_soon();
        }
    }
}

/// Saves captured tokens, the newest each time, until there is nothing left to save.
struct Saver(Session);

impl Saver {
    fn new(session: Session) -> Self {
        if let Some(vault) = &session.0.vault {
            vault.savers.send_modify(|savers| *savers += 1);
        }
        Self(session)
    }

    async fn work(&self) {
        let Some(vault) = &self.0.0.vault else { return };
        loop {
            vault.memory().dirty = false;
            self.save_once(vault).await;
            let mut memory = vault.memory();
            if !memory.dirty {
                memory.saver = false;
                return;
            }
        }
    }

    async fn save_once(&self, vault: &Vault) {
        let session = &self.0;
        let (lock, _turn) = match session.lock_and_turn(vault).await {
            Ok(both) => both,
            Err(error) => {
                vault.memory().unsaved = Some(session.load().tokens());
                return session.emit(&Event::StoreFailed { error });
            }
        };
        let epoch = session.load().epoch;
        match vault.look(session).await {
            Look::Changed(theirs) => {
                // Another process has rotated it: ours is spent.
                if let Some(refresh) = theirs.refresh_token() {
                    let _ = session.keep_refresh(epoch, refresh.clone());
                }
            }
            // It may have been rotated: ours is not to be put back.
            Look::Failed if session.load().refresh.is_some() => {
                vault.memory().unsaved = Some(session.load().tokens());
                return;
            }
            // Without one nothing can be lost, and a broken file is mended by the save.
            Look::Same | Look::Failed => {}
        }
        let state = session.load();
        if state.has_tokens() {
            let _ = vault.save(session, epoch, &lock, &state.tokens()).await;
        }
    }
}

impl Drop for Saver {
    fn drop(&mut self) {
        if let Some(vault) = &self.0.0.vault {
            let mut memory = vault.memory();
            // Its runtime may be gone before the work was done.
            memory.dirty |= std::mem::take(&mut memory.saver);
            drop(memory);
            vault.savers.send_modify(|savers| *savers -= 1);
        }
    }
}
