//! A logout: clears the tokens in memory and in the store first, then revokes them.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use tokio::{runtime::Handle, time::Instant};

use super::{
    Session,
    refresh::InFlight,
    state::{State, logged_out},
};
use crate::{
    catch_panic::catch_panic,
    error::{Error, ErrorKind},
    event::Event,
    refresher::{Refresher, Several},
    time::within,
    token::Tokens,
};

impl Session {
    pub(super) async fn log_out(&self) -> Result<(), Error> {
        let waits = self.0.refresher.as_deref().is_some_and(can_revoke);
        let mut held = Tokens::empty();
        let mut in_flight: Option<Arc<InFlight>> = None;
        let login = self.supersede(Err(logged_out()), |state: &mut State| {
            held = state.tokens();
            let refresh = state.clear();
            if let Some(store) = &self.0.store {
                store.logs_out(state.login);
            }
            let refresh = refresh?;
            if waits {
                refresh.log_out(self.revoked_by());
                in_flight = Some(Arc::clone(&refresh));
            }
            Some(refresh)
        })?;
        self.run_there(move |session| {
            let (held, in_flight) = (held.clone(), in_flight.clone());
            async move { session.forget_and_revoke(login, held, in_flight).await }
        })
        .await
    }

    async fn forget_and_revoke(
        &self,
        login: u64,
        held: Tokens,
        in_flight: Option<Arc<InFlight>>,
    ) -> Result<(), Error> {
        let mut stored = None;
        let cleared = match &self.0.store {
            Some(store) => self.within(store.clear(self, login, &held, &mut stored)).await,
            None => Ok(()),
        };
        let revoked_by = self.revoked_by();
        self.revoke(&held, revoked_by).await;
        if let Some(stored) = stored {
            self.revoke(&stored.without(&held), revoked_by).await;
        }
        if let Some(in_flight) = in_flight {
            let _ = within(until(revoked_by), in_flight.ended()).await;
        }
        cleared
    }

    /// The time one store timeout from now.
    fn revoked_by(&self) -> Instant {
        let now = Instant::now();
        now.checked_add(self.0.store_timeout).unwrap_or(now)
    }

    /// Revokes the tokens of a login that was cleared. A failure becomes an event.
    pub(super) async fn revoke(&self, tokens: &Tokens, revoked_by: Instant) {
        let Some(refresher) = self.0.refresher.as_deref() else { return };
        if tokens.access_token().is_none() && tokens.refresh_token().is_none() {
            return;
        }
        let revoking = refresher.revoke(tokens);
        #[cfg(feature = "dpop")]
        let revoking = crate::dpop::for_logout(self.dpop().cloned(), revoking);
        let revoking = self.within(catch_panic(revoking));
        let revoked = if Handle::try_current().is_ok() {
            within(until(revoked_by), revoking).await
        } else {
            // There is no runtime, and so no timer.
            Ok(revoking.await)
        };
        let revoked = match revoked {
            Ok(Some(revoked)) => revoked,
            Ok(None) => Err(Error::new(ErrorKind::Internal, "the refresher panicked")),
            Err(_) => Err(Error::new(
                ErrorKind::Unavailable,
                "the revocation did not finish within the store timeout",
            )),
        };
        for error in revoked.err().into_iter().flat_map(Several::each) {
            self.emit(&Event::RevocationFailed { error });
        }
    }
}

fn until(end: Instant) -> Duration {
    end.saturating_duration_since(Instant::now())
}

/// A panic in the user's code counts as `false`.
fn can_revoke(refresher: &dyn Refresher) -> bool {
    catch_unwind(AssertUnwindSafe(|| refresher.can_revoke())).unwrap_or(false)
}
