//! What a session knows about its store. Pure: only methods of [`Known`] change its flags.

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

    // ---- saving

    /// Records that a logout has begun, so that tokens of an earlier login are no longer saved.
    pub(super) fn logs_out(&mut self, login: u64) {
        self.login = login;
    }

    /// Records that the caller has given these tokens. They are to be saved, and the content of the
    /// store is older.
    pub(super) fn announce(&mut self, login: u64, tokens: &Tokens) {
        self.unsaved = Some(tokens.clone());
        (self.announced, self.dirty) = (true, false);
        self.holds(tokens);
        self.replaces = true;
        self.login = login;
        self.candidate = None;
        self.given = tokens.refresh_token().cloned();
    }

    /// Records that the session adopts the login that the store holds. Nothing is left to save.
    pub(super) fn adopts(&mut self, login: u64, tokens: &Tokens) {
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
    pub(super) fn announcement_failed(&mut self, login: u64) {
        if self.login == login {
            self.announced &= !self.looked;
        }
    }

    /// Records that these tokens are to be saved. `asked` is the refresh token that they were
    /// issued for, which is spent. Another refresh token is dispensable only once there is an
    /// access token too.
    ///
    /// Returns `false` for tokens of an earlier login, which are not saved.
    pub(super) fn intends(
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
    pub(super) fn postpones(&mut self, login: u64, tokens: Tokens) {
        if self.login == login {
            self.unsaved = Some(tokens);
        }
    }

    /// Records that a save of these tokens begins.
    pub(super) fn tries(&mut self, tokens: &Tokens) {
        self.tried.truncate(REMEMBERED - 1);
        self.tried.push_front(tokens.clone());
    }

    /// Records that these tokens are stored. `current` says that the session holds no newer ones.
    pub(super) fn saved(&mut self, tokens: &Tokens, current: bool) {
        self.sees(tokens);
        self.settles(tokens);
        self.elsewhere = None;
        if current {
            self.dirty = false;
        }
    }

    /// Records that these tokens are saved, or no longer have to be.
    pub(super) fn settles(&mut self, tokens: &Tokens) {
        if self.unsaved.as_ref().is_some_and(|unsaved| unsaved.same_as(tokens)) {
            (self.unsaved, self.announced, self.replaces) = (None, false, false);
        }
    }

    /// Sets the refresh token that the next refresh tries first. `None` clears it after a token was
    /// obtained, or after it was rejected.
    pub(super) fn set_candidate(&mut self, login: u64, refresh: Option<RefreshToken>) {
        if self.login == login {
            self.candidate = refresh;
        }
    }

    /// Records that the login works, so that the refresh token that the session was given is no
    /// longer needed.
    pub(super) fn forgets_given(&mut self, login: u64) {
        if self.login == login {
            self.given = None;
        }
    }

    /// Records a logout. If the store could not be cleared, its content may still be there, and
    /// does not count as another login.
    pub(super) fn forgets_login(&mut self, login: u64, cleared: bool) {
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
    pub(super) fn wants_save(&mut self) -> bool {
        self.dirty = true;
        !self.saving
    }

    pub(super) fn background_starts(&mut self) {
        self.saving = true;
    }

    /// Records that a background save begins a round. Tokens that are captured from now on need
    /// another round.
    pub(super) fn round_begins(&mut self) {
        self.dirty = false;
    }

    /// Returns whether nothing is left to save, so that the background save ends.
    pub(super) fn round_ends(&mut self) -> bool {
        self.saving = self.dirty;
        !self.dirty
    }

    /// Records that the background save has ended, possibly with its runtime and before its work
    /// was done.
    pub(super) fn background_is_gone(&mut self) {
        self.dirty |= std::mem::take(&mut self.saving);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(access: &str, refresh: &str) -> Tokens {
        Tokens::new(access).unwrap().with_refresh_token(refresh).unwrap()
    }

    #[test]
    fn tokens_of_nobody_known_are_theirs() {
        let (own, theirs) = (pair("a", "r"), pair("b", "s"));
        let mut known = Known::default();
        assert!(!known.finds(&own, &own, known.login()), "the session holds them");
        assert!(!known.finds(&own, &theirs, known.login()), "the session has seen them there");
        assert!(known.finds(&theirs, &own, known.login()), "somebody else has stored them");
        known.tries(&own);
        assert!(
            !known.finds(&own, &theirs, known.login()),
            "a save of this session may have put them there"
        );
        known.announce(1, &pair("c", "t"));
        assert!(
            !known.finds(&theirs, &own, known.login()),
            "what was announced is newer than any of them"
        );
        assert!(known.has_unsaved(), "and is still to be saved");
    }

    #[test]
    fn a_login_of_another_key_is_kept_as_it_is() {
        let of = |key: &str| Some(pair("a", "r").with_key_thumbprint(key));
        let mut known = Known::default();
        for own in [None, Some("own")] {
            let (found, _) = known.check_key(of("other"), own);
            assert!(found.is_none() && known.is_kept_out(), "{own:?}");
        }
        let (found, told) = known.check_key(of("own"), Some("own"));
        assert!(found.is_some() && told.is_none() && !known.is_kept_out());
        let (found, _) = known.check_key(Some(pair("a", "r")), Some("own"));
        assert!(found.is_some(), "no key is named");
        let told: Vec<_> = ["other", "third", "third", "other"]
            .map(|key| known.check_key(of(key), Some("own")).1)
            .into_iter()
            .flatten()
            .collect();
        assert_eq!(told, ["third", "other"], "each once in a row");
    }

    #[test]
    fn given_tokens_take_the_place_of_any_login() {
        let mut known = Known::default();
        known.check_key(Some(pair("a", "r").with_key_thumbprint("other")), None);
        let given = pair("b", "s");
        known.announce(1, &given);
        assert!(!known.is_kept_out() && known.has_unsaved());
        known.saved(&given, true);
        known.check_key(Some(pair("c", "t").with_key_thumbprint("other")), None);
        assert!(known.intends(1, &given, None) && known.is_kept_out());
        assert!(!known.has_unsaved(), "what is kept out waits no longer");
    }

    #[test]
    fn a_store_that_lost_a_save_gets_it_again() {
        let (old, new) = (pair("a", "r"), pair("b", "s"));
        let mut known = Known::default();
        known.sees(&old);
        assert!(known.intends(0, &new, old.refresh_token()));
        known.saved(&new, true);
        assert!(!known.has_unsaved());
        assert!(!known.finds(&old, &new, known.login()), "it is older than what is held");
        assert!(known.has_unsaved(), "and what is held is stored again before it is spent");
    }

    #[test]
    fn a_save_of_a_former_login_settles_nothing() {
        let (first, second) = (pair("a", "r"), pair("b", "s"));
        let mut known = Known::default();
        known.announce(1, &second);
        known.saved(&first, false);
        assert!(known.has_unsaved());
        known.saved(&second, true);
        assert!(!known.has_unsaved());
    }

    /// Contract 8.4.
    #[test]
    fn no_more_than_eight_of_each_is_remembered() {
        let mut known = Known::default();
        for number in 0..20 {
            let tokens = pair(&format!("a{number}"), &format!("r{number}"));
            known.tries(&tokens);
            known.died(tokens.refresh_token().unwrap());
        }
        assert_eq!(known.tried.len(), REMEMBERED);
        assert_eq!(known.dead.len(), REMEMBERED);
        assert!(known.knows(&pair("a19", "r19")));
        assert!(!known.knows(&pair("a0", "r0")));
    }

    #[test]
    fn a_background_save_that_dies_leaves_its_work() {
        let mut known = Known::default();
        assert!(known.wants_save(), "nobody saves yet");
        known.background_starts();
        assert!(!known.wants_save(), "the running one makes another round");
        known.round_begins();
        assert!(!known.has_unsaved());
        known.background_is_gone();
        assert!(known.has_unsaved());
        known.background_starts();
        known.round_begins();
        assert!(known.round_ends());
        known.background_is_gone();
        assert!(!known.has_unsaved());
    }
}
