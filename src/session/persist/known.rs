//! What a session knows about its store. Pure: only methods of [`Known`] change its flags.

mod saving;

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

use super::marks::{Advice, Heard, advise};
use crate::{
    store::{Says, StoredFailure},
    token::{RefreshToken, Tokens},
};

/// How many saves of unknown outcome, and how many rejected refresh tokens, are remembered.
const REMEMBERED: usize = 8;

#[derive(Default)]
#[allow(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub(super) struct Known {
    /// What the store held when this session last read or wrote it.
    seen: Option<Tokens>,
    /// Whether this session has read or written the store.
    looked: bool,
    /// The tokens to save, until they are known to be saved.
    unsaved: Option<Tokens>,
    /// Saves since the last read that seemed to fail but may have succeeded. Only the last few are
    /// kept.
    tried: VecDeque<Tokens>,
    /// The unsaved tokens come from the caller, and the store has not been read since. Its content
    /// is older.
    announced: bool,
    /// The number of the newest login. It is set before the session's state shows that login, so
    /// that nothing of an earlier login replaces it.
    login: u64,
    /// The refresh token that was last in the store, as far as is known. Another process may have
    /// spent it.
    shared: Option<RefreshToken>,
    /// The refresh token that the session was given, until it is stored or spent.
    given: Option<RefreshToken>,
    /// A stored refresh token that is tried before the session's own. The session adopts it only
    /// together with the tokens that it obtains.
    candidate: Option<RefreshToken>,
    /// Refresh tokens that this session has exchanged for others. Only the last few are kept.
    spent: VecDeque<RefreshToken>,
    /// Refresh tokens that the token endpoint has permanently rejected. Only the last few are kept.
    dead: VecDeque<RefreshToken>,
    /// When the store was last searched for another login.
    looked_for_login: Option<Instant>,
    /// The stored login, if it is bound to another key than the session's (RFC 7800). It is neither
    /// adopted nor overwritten.
    elsewhere: Option<Tokens>,
    /// The last such key that was reported.
    told_of: Option<Box<str>>,
    /// The caller has given tokens that are not saved yet. They replace any stored login.
    replaces: bool,
    /// The failure that was last seen beside the tokens.
    heard: Option<Box<Heard>>,
    /// A grant has returned another refresh token than the one in the request, so each can be sent
    /// only once.
    rotates: bool,
    /// Whether a captured token is waiting to be saved.
    dirty: bool,
    /// Whether a background save is running or about to start.
    saving: bool,
}

impl Known {
    pub(super) fn new(given: Option<RefreshToken>) -> Self {
        Self { given, ..Self::default() }
    }

    // ---- queries

    /// Whether the stored tokens are known: this session has seen them, may have saved them, or is
    /// about to replace them with newer ones.
    pub(super) fn knows(&self, found: &Tokens) -> bool {
        self.announced
            || self.is_rolled_back(found)
            || self.seen.iter().chain(&self.tried).any(|known| known.same_as(found))
    }

    /// Whether the store has lost a save of this session, for example in a failover: it holds a
    /// refresh token that this session has spent.
    fn is_rolled_back(&self, found: &Tokens) -> bool {
        found.refresh_token().is_some_and(|refresh| self.spent.contains(refresh))
    }

    /// What the store held when this session last read or wrote it.
    pub(super) fn seen(&self) -> Option<&Tokens> {
        self.seen.as_ref()
    }

    /// Whether the store holds the session's login: one of its tokens, or tokens that this session
    /// has seen there or may have saved.
    pub(super) fn is_same_login(&self, found: &Tokens, held: &Tokens) -> bool {
        let shares_a_token = found.refresh_token().is_some()
            && found.refresh_token() == held.refresh_token()
            || found.access_token().is_some() && found.access_token() == held.access_token();
        shares_a_token || self.seen.iter().chain(&self.tried).any(|known| known.same_as(found))
    }

    /// Whether another process has stored these tokens since this session last read the store, but
    /// not before the response to `asked` was known.
    pub(super) fn is_theirs(&self, found: &Tokens, asked: Option<&RefreshToken>) -> bool {
        self.looked
            && !self.knows(found)
            && found.refresh_token().is_some_and(|refresh| Some(refresh) != asked)
    }

    /// Whether another process may have spent this refresh token.
    pub(super) fn is_shared(&self, refresh: &RefreshToken) -> bool {
        self.shared.as_ref() == Some(refresh)
    }

    pub(super) fn candidate(&self, login: u64) -> Option<&RefreshToken> {
        self.candidate.as_ref().filter(|_| self.login == login)
    }

    /// Whether another process has stored these tokens. `own` are the session's tokens.
    pub(super) fn is_foreign(&self, found: &Tokens, own: &Tokens) -> bool {
        !self.knows(found) && !found.same_as(own)
    }

    /// The content of the store, with this refresh token instead of its own.
    pub(super) fn seen_with(&self, refresh: RefreshToken) -> Tokens {
        let mut tokens = self.seen.clone().unwrap_or_else(Tokens::empty);
        tokens.set_refresh(Some(refresh));
        tokens
    }

    /// Whether refresh tokens are known to rotate.
    pub(super) fn rotates(&self) -> bool {
        self.rotates
    }

    /// Whether the store holds another login than the one that ended, and another process stored
    /// it. `dead` are the session's tokens.
    pub(super) fn is_another_login(&self, found: &Tokens, dead: &Tokens) -> bool {
        if self.knows(found) {
            return false;
        }
        match (found.refresh_token(), found.access_token()) {
            (Some(refresh), _) => {
                Some(refresh) != dead.refresh_token() && !self.dead.contains(refresh)
            }
            (None, Some(access)) => Some(access) != dead.access_token(),
            (None, None) => false,
        }
    }

    pub(super) fn given(&self, login: u64) -> Option<&RefreshToken> {
        self.given.as_ref().filter(|_| self.login == login)
    }

    /// Whether a captured token is waiting to be saved.
    pub(super) fn is_dirty(&self) -> bool {
        self.dirty
    }

    /// Whether tokens of this login still have to be saved, and it is the newest login.
    pub(super) fn is_to_save(&self, login: u64) -> bool {
        self.login == login && self.unsaved.is_some()
    }

    pub(super) fn has_unsaved(&self) -> bool {
        self.unsaved.is_some() || self.dirty && !self.saving
    }

    /// The stored login, if it is bound to another key than the session's.
    pub(super) fn elsewhere(&self) -> Option<&Tokens> {
        self.elsewhere.as_ref()
    }

    // ---- reading the store

    /// The number of the newest login. It is read before the store is loaded, for
    /// [`finds`](Self::finds).
    pub(super) fn login(&self) -> u64 {
        self.login
    }

    /// Whether the store may be searched for another login now. This is limited to once per
    /// cool-down.
    pub(super) fn looks_for_login(&mut self, now: Instant, cooldown: Duration) -> bool {
        let due = self.looked_for_login.is_none_or(|last| now >= last + cooldown);
        if due {
            self.looked_for_login = Some(now);
        }
        due
    }

    /// Records that the token endpoint has permanently rejected this refresh token.
    pub(super) fn died(&mut self, refresh: &RefreshToken) {
        self.dead.truncate(REMEMBERED - 1);
        self.dead.push_front(refresh.clone());
    }

    /// Records that the store holds these tokens. Returns whether another process has stored them.
    /// `own` are the session's tokens. `before` is the newest login when the load began, because
    /// the load says nothing about a later one.
    pub(super) fn finds(&mut self, found: &Tokens, own: &Tokens, before: u64) -> bool {
        let theirs = self.is_foreign(found, own);
        if self.unsaved.as_ref().is_some_and(|unsaved| unsaved.same_as(found)) {
            // The save that seemed to fail has succeeded.
            self.unsaved = None;
        }
        self.announced &= self.login != before;
        if self.is_rolled_back(found) && self.unsaved.is_none() {
            self.unsaved = Some(own.clone());
        }
        self.sees(found);
        if theirs {
            self.unsaved = None;
            self.replaces = false;
        }
        theirs
    }

    /// Ignores a stored login that is bound to another key than `own`. Returns any other login, and
    /// the thumbprint of the other key if it has to be reported.
    pub(super) fn check_key(
        &mut self,
        found: Option<Tokens>,
        own: Option<&str>,
    ) -> (Option<Tokens>, Option<String>) {
        let theirs = found.as_ref().and_then(Tokens::key_thumbprint);
        let Some(theirs) = theirs.filter(|theirs| Some(*theirs) != own) else {
            self.elsewhere = None;
            return (found, None);
        };
        let told = self.told_of.as_deref() == Some(theirs);
        let news = (!told).then(|| theirs.to_owned());
        if !told {
            self.told_of = Some(theirs.into());
        }
        self.elsewhere = found;
        (None, news)
    }

    /// Whether a login that is bound to another key prevents a save. If so, the tokens no longer
    /// wait to be saved.
    pub(super) fn is_kept_out(&mut self) -> bool {
        let kept_out = self.elsewhere.is_some() && !self.replaces;
        if kept_out {
            self.unsaved = None;
        }
        kept_out
    }

    /// Records that the store is empty.
    pub(super) fn finds_nothing(&mut self, before: u64) {
        self.looked = true;
        self.announced &= self.login != before;
    }

    /// Records that this session has just read or written these tokens.
    pub(super) fn sees(&mut self, found: &Tokens) {
        if let Some(refresh) = found.refresh_token() {
            self.given.take_if(|given| given == refresh);
            self.shared = Some(refresh.clone());
        }
        self.rotates |= found.rotates();
        self.seen = Some(found.clone());
        self.looked = true;
        self.tried.clear();
    }

    /// The content of the store when this session last read it, whatever key it is bound to.
    pub(super) fn last_seen(&self) -> Option<&Tokens> {
        self.elsewhere.as_ref().or(self.seen.as_ref())
    }

    // ---- shared failures

    /// Records the mark beside the tokens. Returns whether it differs from the previous one.
    pub(super) fn hears(&mut self, mark: Option<StoredFailure>, now: Instant) -> bool {
        let before = self.heard.as_ref().map(|heard| heard.mark().clone());
        let is_news = mark != before;
        self.heard = Heard::next(self.heard.take(), mark, now);
        is_news
    }

    /// Records that this session itself has left the mark.
    pub(super) fn tells(&mut self, mark: StoredFailure, now: Instant) {
        self.heard = Some(Box::new(Heard::own(mark, now)));
    }

    pub(super) fn advice(
        &self,
        refresh: Option<&RefreshToken>,
        sent_to: Option<&str>,
        now: Instant,
    ) -> Advice {
        advise(self.heard.as_deref(), refresh, sent_to, now)
    }

    /// Whether the mark already says that these refresh tokens are invalid.
    pub(super) fn has_told(&self, says: &Says) -> bool {
        match (self.heard.as_ref().and_then(|heard| heard.says()), says) {
            (Some(Says::Dead { of: told, .. }), Says::Dead { of, .. }) => {
                of.iter().all(|of| told.contains(of))
            }
            _ => false,
        }
    }

    pub(super) fn has_heard(&self) -> bool {
        self.heard.is_some()
    }
}

#[cfg(test)]
mod tests;
