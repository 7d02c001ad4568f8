//! What a session remembers of its store.

use std::collections::VecDeque;

use crate::token::{RefreshToken, Tokens};

#[derive(Default)]
#[allow(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub(in crate::session) struct Known {
    /// What the store held when this session last looked or saved.
    pub(in crate::session) seen: Option<Tokens>,
    /// This session has looked, or saved.
    pub(in crate::session) looked: bool,
    /// What a save is to keep, until it is known to have kept it.
    pub(in crate::session) unsaved: Option<Tokens>,
    /// Saves that were tried since this session last looked, and may have been made all the same.
    /// The last few.
    pub(in crate::session) tried: VecDeque<Tokens>,
    /// What is unsaved is the user's word, and the store has not been looked into since: what it
    /// holds is older.
    pub(in crate::session) announced: bool,
    /// The refresh token that was last in the store, as far as is known: another process may have
    /// spent it.
    pub(in crate::session) shared: Option<RefreshToken>,
    /// The refresh token that the session was given, as long as it has been neither stored nor
    /// spent.
    pub(in crate::session) given: Option<RefreshToken>,
    /// A capture waits to be saved.
    pub(in crate::session) dirty: bool,
    /// A saver is at work, or will be.
    pub(in crate::session) saver: bool,
}

impl Known {
    /// Whether the store holds what this session has seen there, may have put there, or is to put
    /// something newer in place of.
    pub(in crate::session) fn knows(&self, found: &Tokens) -> bool {
        self.announced || self.seen.iter().chain(&self.tried).any(|known| known.same_as(found))
    }

    /// The store holds these tokens.
    pub(in crate::session) fn sees(&mut self, found: &Tokens) {
        if let Some(refresh) = found.refresh_token() {
            self.given.take_if(|given| given == refresh);
            self.shared = Some(refresh.clone());
        }
        self.seen = Some(found.clone());
        self.looked = true;
        self.tried.clear();
    }

    pub(in crate::session) fn tries(&mut self, tokens: &Tokens) {
        self.tried.truncate(7);
        self.tried.push_front(tokens.clone());
    }

    /// These tokens are saved, or no longer to be.
    pub(in crate::session) fn settle(&mut self, tokens: &Tokens) {
        if self.unsaved.as_ref().is_some_and(|unsaved| unsaved.same_as(tokens)) {
            (self.unsaved, self.announced) = (None, false);
        }
    }
}
