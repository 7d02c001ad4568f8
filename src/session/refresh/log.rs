//! The reports of a refresher to its session.

use std::{sync::PoisonError, time::Duration};

use async_trait::async_trait;
use http::StatusCode;

use super::{
    super::persist::Advice,
    progress::{Next, Progress, Stage},
    search::{Search, needs_the_store},
    watch::sent_to,
};
use crate::{
    error::Error,
    event::Event,
    refresher::RefreshLog,
    token::{RefreshToken, Tokens},
};

/// How often the store's lock is taken again for one call, if it lapses at once.
const LOCKS: usize = 3;

#[async_trait]
impl RefreshLog for Progress {
    fn tokens(&self) -> Tokens {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    #[cfg(feature = "dpop")]
    fn dpop(&self) -> Option<std::sync::Arc<crate::dpop::Dpop>> {
        self.session.dpop().cloned()
    }

    fn retrying(&self, failed_attempt: u32, delay: Duration, status: Option<StatusCode>) {
        self.is_at(Stage::Asking { failed_attempts: failed_attempt });
        self.session.emit(&Event::RefreshRetrying { attempt: failed_attempt, delay, status });
    }

    fn sending(&self, maybe_sent: bool) {
        let asked = self.tokens().refresh_token().cloned().filter(|_| maybe_sent);
        self.in_flight.set_unanswered(asked);
    }

    async fn keep(&self, refresh_token: RefreshToken) {
        let asked = RefreshLog::tokens(self).refresh_token().cloned();
        self.searched().kept = Some(refresh_token.clone());
        let kept = self.hold(refresh_token.clone());
        self.ask_with(refresh_token);
        if let Some(tokens) = kept {
            self.session.save_under(&self.in_flight, asked.as_ref(), &tokens).await;
        }
    }

    fn known_dead(&self) -> Option<Error> {
        let store = self.session.0.store.as_deref()?;
        let sent_to = sent_to(self.session.0.refresher.as_deref()?)?;
        let asked = self.tokens();
        match store.advice(asked.refresh_token(), Some(&sent_to)) {
            Advice::Dead(error) => Some(error),
            _ => None,
        }
    }

    async fn may_ask(&self) -> bool {
        let Some(store) = self.session.0.store.as_deref() else { return true };
        if self.searched().found.is_some() {
            // The refresher has been told already.
            return false;
        }
        let stage = self.stage();
        for _ in 0..LOCKS {
            if self.records(store).await {
                return true;
            }
            let next = Search::new(&self.session, store, &self.in_flight, self).lock_again().await;
            self.is_at(stage);
            if !matches!(next, Ok(Next::Ask)) {
                self.searched().found = Some(next);
                return false;
            }
        }
        let may = self.records(store).await || !store.is_needed();
        if !may {
            self.searched().found = Some(Err(needs_the_store()));
        }
        may
    }

    async fn may_fall_back(&self) -> bool {
        let Some(store) = self.session.0.store.as_deref() else {
            self.searched().tried.extend(self.tokens().refresh_token().cloned());
            let Some(held) = self.captured_meanwhile() else { return true };
            self.ask_with(held);
            self.searched().found = Some(Ok(Next::Ask));
            return false;
        };
        let found = Search::new(&self.session, store, &self.in_flight, self).look_again().await;
        let nothing = found.is_none();
        self.searched().found = found.map(Ok);
        nothing
    }

    fn fell_back(&self, error: &Error) {
        self.session.emit(&Event::FellBack { error: error.to_string().into() });
    }

    fn forget_refresh_token(&self) {
        self.searched().forgets = true;
    }
}
