//! The record beside a store's lock: the refresh token that its holder sends.
//!
//! A holder writes the record before it sends the token. Once it knows the response, it restores
//! what it found, or removes the record, when it releases the lock. A later holder that finds the
//! record knows that the response to that call was lost: the sender died, was cut off, or gave up
//! (contract 5.7).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use crate::error::Error;

/// The length of a record, which is a SHA-256 hash in hexadecimal.
pub(super) const RECORD_BYTES: usize = 64;

/// A held lock whose store keeps such a record.
#[async_trait]
pub(super) trait KeepsRecord: Send + Sync {
    fn record(&self) -> &SendRecord;

    /// Writes the record. Fails with [`lock_lapsed`](super::failure::lock_lapsed) if the lock is no
    /// longer held.
    async fn write(self: Arc<Self>, of: String) -> Result<(), Error>;
}

/// What is known of the record while the lock is held. Pure.
#[derive(Debug, Default)]
pub(super) struct SendRecord(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// What the previous holders have left.
    found: Option<String>,
    /// What this holder has written.
    written: Option<String>,
    call: Call,
}

/// What is known of the call that the record names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Call {
    /// There was none, or its response is not known.
    #[default]
    Open,
    /// The token endpoint has responded, without new tokens.
    Failed,
    /// No earlier call matters.
    Over,
    /// The token endpoint has issued tokens that could not be stored.
    Unsaved,
}

/// What to do with the record when the lock is released.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum AtRelease {
    Leave,
    Remove,
    Restore(String),
}

impl SendRecord {
    /// Creates the record of a new holder. A text that is no hash counts as no record.
    pub(super) fn found(text: Option<&[u8]>) -> Self {
        let is_hash = |text: &&str| {
            text.len() == RECORD_BYTES && text.bytes().all(|byte| byte.is_ascii_hexdigit())
        };
        let found = text.and_then(|text| std::str::from_utf8(text).ok()).filter(is_hash);
        Self(Mutex::new(State { found: found.map(str::to_owned), ..State::default() }))
    }

    /// Whether a previous holder has sent this refresh token and lost the response.
    pub(super) fn is_lost(&self, of: &str) -> bool {
        self.state().found.as_deref() == Some(of)
    }

    /// Whether the record has to be written before this refresh token is sent.
    pub(super) fn needs(&self, of: &str) -> bool {
        let mut state = self.state();
        let is_there = state.written.as_deref() == Some(of);
        if is_there {
            state.call = Call::Open;
        }
        !is_there
    }

    pub(super) fn writes(&self, of: &str) {
        let mut state = self.state();
        state.written = Some(of.to_owned());
        state.call = Call::Open;
    }

    /// Records that the response to the call is known.
    pub(super) fn responded(&self) {
        let mut state = self.state();
        if state.call == Call::Open {
            state.call = Call::Failed;
        }
    }

    /// Records that no earlier call matters: there are newer tokens in the store, or none.
    pub(super) fn forget(&self) {
        self.state().call = Call::Over;
    }

    /// Records that the token endpoint has issued tokens that could not be stored.
    pub(super) fn is_unsaved(&self) {
        self.state().call = Call::Unsaved;
    }

    pub(super) fn at_release(&self) -> AtRelease {
        let state = self.state();
        let now = state.written.as_ref().or(state.found.as_ref());
        let wanted = match state.call {
            Call::Open | Call::Unsaved => now,
            Call::Failed => state.found.as_ref(),
            Call::Over => None,
        };
        match wanted {
            wanted if wanted == now => AtRelease::Leave,
            Some(found) => AtRelease::Restore(found.clone()),
            None => AtRelease::Remove,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(letter: &str) -> String {
        letter.repeat(RECORD_BYTES)
    }

    #[test]
    fn what_a_release_leaves_behind() {
        type Steps = fn(&SendRecord);
        let sent: Steps = |record| record.writes(&hash("a"));
        let failed: Steps = |record| {
            record.writes(&hash("a"));
            record.responded();
        };
        let granted: Steps = |record| {
            record.writes(&hash("a"));
            record.forget();
            record.responded();
        };
        let unsaved: Steps = |record| {
            record.writes(&hash("a"));
            record.is_unsaved();
            record.responded();
        };
        let sent_again: Steps = |record| {
            record.writes(&hash("a"));
            record.responded();
            assert!(!record.needs(&hash("a")));
        };
        let sent_another: Steps = |record| {
            record.writes(&hash("b"));
            record.forget();
            assert!(record.needs(&hash("a")));
            record.writes(&hash("a"));
        };
        let nothing_sent: Steps = SendRecord::responded;
        let replaced: Steps = SendRecord::forget;
        let restored = || AtRelease::Restore(hash("b"));
        // The columns: what the holder does, and the release if the previous holder left nothing,
        // the same token, and another one.
        let table = [
            (sent, [AtRelease::Leave, AtRelease::Leave, AtRelease::Leave]),
            (failed, [AtRelease::Remove, AtRelease::Leave, restored()]),
            (granted, [AtRelease::Remove, AtRelease::Remove, AtRelease::Remove]),
            (unsaved, [AtRelease::Leave, AtRelease::Leave, AtRelease::Leave]),
            (sent_again, [AtRelease::Leave, AtRelease::Leave, AtRelease::Leave]),
            (sent_another, [AtRelease::Leave, AtRelease::Leave, AtRelease::Leave]),
            (nothing_sent, [AtRelease::Leave, AtRelease::Leave, AtRelease::Leave]),
            (replaced, [AtRelease::Leave, AtRelease::Remove, AtRelease::Remove]),
        ];
        for (row, (steps, expected)) in table.into_iter().enumerate() {
            let found = [None, Some(hash("a")), Some(hash("b"))];
            for (found, expected) in found.into_iter().zip(expected) {
                let record = SendRecord::found(found.as_deref().map(str::as_bytes));
                steps(&record);
                assert_eq!(record.at_release(), expected, "row {row}, found {found:?}");
            }
        }
    }

    #[test]
    fn a_record_names_the_lost_token() {
        let record = SendRecord::found(Some(hash("a").as_bytes()));
        assert!(record.is_lost(&hash("a")));
        assert!(!record.is_lost(&hash("b")));
        record.writes(&hash("b"));
        assert!(record.is_lost(&hash("a")), "the own call says nothing of an earlier one");
        assert!(!record.is_lost(&hash("b")));
    }

    #[test]
    fn odd_records_are_none() {
        let long = "a".repeat(RECORD_BYTES + 1);
        for odd in ["", "a", "keep", &long, &"x".repeat(RECORD_BYTES)] {
            let record = SendRecord::found(Some(odd.as_bytes()));
            assert!(!record.is_lost(odd), "{odd}");
        }
    }
}
