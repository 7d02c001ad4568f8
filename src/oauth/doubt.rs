//! A refresh token that may be damaged.

use std::sync::{Arc, Mutex, PoisonError};

use crate::token::RefreshToken;

/// A refresh token from a damaged body and the token before it, until a grant shows which of them
/// is valid.
#[derive(Clone, Default)]
pub(super) struct Doubt(Arc<Mutex<Option<(RefreshToken, RefreshToken)>>>);

impl Doubt {
    pub(super) fn set(&self, new: RefreshToken, before: RefreshToken) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((new, before));
    }

    /// Returns the token that `asked_with` has replaced, and clears the doubt.
    pub(super) fn take(&self, asked_with: Option<&RefreshToken>) -> Option<RefreshToken> {
        let mut doubt = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        doubt.take_if(|(new, _)| Some(&*new) == asked_with).map(|(_, before)| before)
    }
}
