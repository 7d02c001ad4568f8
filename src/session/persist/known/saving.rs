//! What a session still has to save. A child of `known`, whose flags it changes.

use super::{Known, REMEMBERED};
use crate::token::{RefreshToken, Tokens};

impl Known {
    /// Records that a logout has begun, so that tokens of an earlier login are no longer saved.
    pub(in crate::session::persist) fn logs_out(&mut self, login: u64) {
        self.login = login;
    }

    /// Records that the caller has given these tokens. They are to be saved, and the content of the
    /// store is older.
    pub(in crate::session::persist) fn announce(&mut self, login: u64, tokens: &Tokens) {
        self.unsaved = Some(tokens.clone());
        (self.announced, self.dirty) = (true, false);
        self.holds(tokens);
        self.replaces = true;
        self.login = login;
        self.candidate = None;
        self.given = tokens.refresh_token().cloned();
    }

    /// Records that the session adopts the login that the store holds. Nothing is left to save.
    pub(in crate::session::persist) fn adopts(&mut self, login: u64, tokens: &Tokens) {
        (self.unsaved, self.candidate, self.given) = (None, None, None);
        (self.announced, self.replaces, self.dirty) = (false, false, false);
        self.holds(tokens);
        self.login = login;
    }

    /// Records that the session holds these tokens, so they are not spent, whatever was known
    /// before.
    fn holds(&mut self, tokens: &Tokens) {
        self.spent.retain(|spent| Some(spent) != tokens.refresh_token());
    }

    /// Records that the announced tokens could not be saved. The previous content of the store is
    /// known, so other content comes from another process.
    pub(in crate::session::persist) fn announcement_failed(&mut self, login: u64) {
        if self.login == login {
            self.announced &= !self.looked;
        }
    }

    /// Records that these tokens are to be saved. `asked` is the refresh token that they were
    /// issued for, which is spent. Another refresh token is dispensable only once there is an
    /// access token too.
    ///
    /// Returns `false` for tokens of an earlier login, which are not saved.
    pub(in crate::session::persist) fn intends(
        &mut self,
        login: u64,
        tokens: &Tokens,
        asked: Option<&RefreshToken>,
    ) -> bool {
        let current = self.login == login;
        if current {
            let is_another = |asked: &&RefreshToken| {
                tokens.refresh_token().is_some_and(|refresh| refresh != *asked)
            };
            if let Some(asked) = asked.filter(is_another) {
                self.rotates = true;
                self.spent.truncate(REMEMBERED - 1);
                self.spent.push_front(asked.clone());
            }
            self.holds(tokens);
            self.unsaved = Some(tokens.clone());
            self.given.take_if(|given| Some(&*given) == asked);
        }
        current
    }

    /// Records that a save was not possible now. The tokens wait for the next save.
    pub(in crate::session::persist) fn postpones(&mut self, login: u64, tokens: Tokens) {
        if self.login == login {
            self.unsaved = Some(tokens);
        }
    }

    /// Records that a save of these tokens begins.
    pub(in crate::session::persist) fn tries(&mut self, tokens: &Tokens) {
        self.tried.truncate(REMEMBERED - 1);
        self.tried.push_front(tokens.clone());
    }

    /// Records that these tokens are stored. `current` says that the session holds no newer ones.
    pub(in crate::session::persist) fn saved(&mut self, tokens: &Tokens, current: bool) {
        self.sees(tokens);
        self.settles(tokens);
        self.elsewhere = None;
        if current {
            self.dirty = false;
        }
    }

    /// Records that these tokens are saved, or no longer have to be.
    pub(in crate::session::persist) fn settles(&mut self, tokens: &Tokens) {
        if self.unsaved.as_ref().is_some_and(|unsaved| unsaved.same_as(tokens)) {
            (self.unsaved, self.announced, self.replaces) = (None, false, false);
        }
    }

    /// Sets the refresh token that the next refresh tries first. `None` clears it after a token was
    /// obtained, or after it was rejected.
    pub(in crate::session::persist) fn set_candidate(
        &mut self,
        login: u64,
        refresh: Option<RefreshToken>,
    ) {
        if self.login == login {
            self.candidate = refresh;
        }
    }

    /// Records that the login works, so that the refresh token that the session was given is no
    /// longer needed.
    pub(in crate::session::persist) fn forgets_given(&mut self, login: u64) {
        if self.login == login {
            self.given = None;
        }
    }

    /// Records a logout. If the store could not be cleared, its content may still be there, and
    /// does not count as another login.
    pub(in crate::session::persist) fn forgets_login(&mut self, login: u64, cleared: bool) {
        if self.login != login {
            return;
        }
        let old = std::mem::take(self);
        (self.saving, self.looked, self.heard) = (old.saving, old.looked, old.heard);
        self.login = old.login;
        if !cleared {
            (self.seen, self.tried) = (old.seen, old.tried);
            (self.elsewhere, self.told_of) = (old.elsewhere, old.told_of);
        }
    }

    // ---- the background save

    /// Records a captured token to save. Returns whether a background save has to be started.
    pub(in crate::session::persist) fn wants_save(&mut self) -> bool {
        self.dirty = true;
        !self.saving
    }

    pub(in crate::session::persist) fn background_starts(&mut self) {
        self.saving = true;
    }

    /// Records that a background save begins a round. Tokens that are captured from now on need
    /// another round.
    pub(in crate::session::persist) fn round_begins(&mut self) {
        self.dirty = false;
    }

    /// Returns whether nothing is left to save, so that the background save ends.
    pub(in crate::session::persist) fn round_ends(&mut self) -> bool {
        self.saving = self.dirty;
        !self.dirty
    }

    /// Records that the background save has ended, possibly with its runtime and before its work
    /// was done.
    pub(in crate::session::persist) fn background_is_gone(&mut self) {
        self.dirty |= std::mem::take(&mut self.saving);
    }
}
