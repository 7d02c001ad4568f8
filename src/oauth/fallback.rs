//! Who is asked when the first grant's login is over.

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
    /// Asks in the same refresh, under the deadline of the first one. `spends_refresh_token`: the
    /// first one does.
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
            // Beyond what the clock can hold.
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

    /// What is to be revoked by the first one, and what by this one: the access token that it
    /// brought last.
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

/// Whether the refresh token is dead. With these codes a person has to act, and it may work again
/// afterwards.
fn is_dead(error: &Error) -> bool {
    let waits_for_a_person = ["login_required", "interaction_required", "consent_required"];
    error.kind() == ErrorKind::LoginRequired
        && !error.nothing_to_ask_with()
        && !error.oauth_error().is_some_and(|code| waits_for_a_person.contains(&code))
}
