//! Adopts a login that another process has stored, which ends `LoginRequired` (contract 10.3).

use tokio::time::Instant;

use super::{Session, persist::StoreSync, state::State};
use crate::{
    event::Event,
    token::{Arrival, Tokens},
};

impl Session {
    /// If the login is over, looks for another one in the store: at most once per cool-down,
    /// without the store's lock, and without a call to the token endpoint. The `store_timeout`
    /// bounds it. Returns whether it has adopted one.
    pub(crate) async fn look_for_login(&self) -> bool {
        let Some(store) = self.0.store.as_deref() else { return false };
        let state = self.load_full();
        if !state.may_look_for_login()
            || self.is_within_own_work()
            || !store.may_look_for_login(Instant::now(), self.0.cooldown)
        {
            return false;
        }
        let Some(found) = self.within(store.find_login(self, &state.tokens())).await else {
            return false;
        };
        let adopted = self.adopt_login(store, &state, &found);
        if let Some(generation) = adopted {
            self.emit(&Event::StoredLoginAdopted { generation });
        }
        adopted.is_some()
    }

    /// Returns `None` if the session has changed in the meantime.
    fn adopt_login(&self, store: &StoreSync, seen: &State, found: &Tokens) -> Option<u64> {
        let lifetime = found.lifetime(Arrival::Handed);
        let due = self.due(lifetime);
        self.update(|state| {
            if state.login != seen.login || !state.may_look_for_login() {
                return None;
            }
            state.replace(found, lifetime, due);
            store.adopts(state.login, found);
            Some(state.generation)
        })
    }
}
