//! The fallback refresher, for when the login of the first grant is over.

use std::sync::PoisonError;

use tokio::time::Instant;

use super::{attempts::Failed, settings::Other};
use crate::{
    error::{Error, ErrorKind},
    refresher::{RefreshContext, Refresher},
    time::within,
    token::Tokens,
};

impl Other {
    /// Runs the fallback within the same refresh and under the same deadline.
    /// `spends_refresh_token` says whether the first grant uses the refresh token.
    pub(super) async fn ask(
        &self,
        context: &RefreshContext,
        first: Failed,
        deadline: Option<Instant>,
        spends_refresh_token: bool,
    ) -> Result<Tokens, Error> {
        let Failed { error, .. } = first;
        if !self.can_refresh(&context.tokens()) || !context.may_fall_back().await {
            return Err(error);
        }
        context.fell_back(&error);
        let next = context.for_next(error.attempts(), deadline);
        let brought = self.refresher.refresh(&next);
        let brought = match deadline {
            Some(deadline) => within(deadline.saturating_duration_since(Instant::now()), brought)
                .await
                .unwrap_or_else(|_| {
                    Err(Error::new(ErrorKind::Unavailable, "the deadline has passed"))
                }),
            // The deadline is beyond the range of the clock.
            None => brought.await,
        };
        match brought {
            Ok(tokens) => {
                *self.brought.lock().unwrap_or_else(PoisonError::into_inner) =
                    tokens.access_token().cloned();
                if spends_refresh_token && tokens.access_token().is_some() && is_dead(&error) {
                    context.forget_refresh_token();
                }
                Ok(tokens)
            }
            Err(last) if last.attempts() == 0 => Err(last.with_attempts(next.attempts())),
            Err(last) => {
                let attempts = last.attempts().saturating_add(error.attempts());
                Err(last.with_attempts(attempts))
            }
        }
    }

    pub(super) fn can_refresh(&self, tokens: &Tokens) -> bool {
        let mut tokens = tokens.clone();
        tokens.set_refresh(None);
        self.refresher.can_refresh(&tokens)
    }

    /// Splits the tokens to revoke: the first result is for the first refresher, the second for the
    /// fallback. The fallback revokes only the last access token that it obtained.
    pub(super) fn share(&self, tokens: &Tokens) -> (Tokens, Tokens) {
        let brought = self.brought.lock().unwrap_or_else(PoisonError::into_inner);
        let (refresh, access) = (tokens.refresh_token().cloned(), tokens.access_token().cloned());
        if access.is_some() && *brought == access {
            (Tokens::of(None, refresh), Tokens::of(access, None))
        } else {
            (Tokens::of(access, refresh), Tokens::empty())
        }
    }
}

/// Returns whether the refresh token is no longer valid. After the listed codes a person has to
/// act, and the refresh token may work again.
fn is_dead(error: &Error) -> bool {
    let waits_for_a_person = ["login_required", "interaction_required", "consent_required"];
    error.kind() == ErrorKind::LoginRequired
        && !error.nothing_to_ask_with()
        && !error.oauth_error().is_some_and(|code| waits_for_a_person.contains(&code))
}
