//! What a session did, told to its listeners. Nothing here can change what happens.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use http::StatusCode;

use crate::error::Error;

/// Something that a session did. Told to the listeners of
/// [`SessionBuilder::on_event`](crate::SessionBuilder::on_event), and to `tracing` under the target
/// `reqwest_reauth`.
///
/// Variants may get more fields: match them with `..`.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// The API replaced the token through the response header.
    #[non_exhaustive]
    Captured {
        /// The session's generation with the new token.
        generation: u64,
    },
    /// An answer carried the header, and it was not taken.
    #[non_exhaustive]
    CaptureIgnored {
        /// Why not.
        reason: CaptureIgnored,
    },
    /// A request to an origin of the session has an `Authorization` header of its own (with
    /// [`Placement::header`](crate::Placement::header), a header of that name), and was sent with
    /// that one: nothing is captured, refreshed or replayed for it. Generated clients with a bearer
    /// field of their own do this. Told for each such request.
    /// [`SessionBuilder::override_authorization`](crate::SessionBuilder::override_authorization)
    /// makes the session's token win.
    #[non_exhaustive]
    CallerAuthorization {},
    /// A refresh begins. Unless a new login or a logout overtakes it, `Refreshed` or
    /// `RefreshFailed` follows.
    #[non_exhaustive]
    RefreshStarted {
        /// The generation to be renewed.
        generation: u64,
    },
    /// An attempt of the refresh failed, and another follows.
    #[non_exhaustive]
    RefreshRetrying {
        /// The attempt that failed, from 1.
        attempt: u32,
        /// How long until the next.
        delay: Duration,
        /// What the token endpoint answered, if it did.
        status: Option<StatusCode>,
    },
    /// A refresh brought a token.
    #[non_exhaustive]
    Refreshed {
        /// The session's generation with the new token.
        generation: u64,
        /// How many times the token endpoint was asked: 0 when the token came from the store.
        attempts: u32,
    },
    /// A refresh ended without a token.
    #[non_exhaustive]
    RefreshFailed {
        /// Why.
        error: Error,
    },
    /// A rejected request was sent again.
    #[non_exhaustive]
    Replayed {
        /// The generation it was sent again with.
        generation: u64,
        /// What the API answered this time.
        status: StatusCode,
    },
    /// A rejected request was not sent again.
    #[non_exhaustive]
    NotReplayed {
        /// Why not.
        reason: NotReplayed,
    },
    /// The token store failed. The request goes on.
    #[non_exhaustive]
    StoreFailed {
        /// Why.
        error: Error,
    },
    /// A login that another process had stored took the place of one that was over.
    #[non_exhaustive]
    StoredLoginAdopted {
        /// The session's generation with the stored token.
        generation: u64,
    },
    /// The store holds a login that is bound to another key than the session's, and that is not
    /// used (RFC 7800).
    #[non_exhaustive]
    StoredLoginIgnored {
        /// The thumbprint (RFC 7638) of the key that the stored login is bound to.
        thumbprint: String,
    },
    /// The first refresher had nothing to ask with, or its login was over, and the other one is
    /// asked.
    #[non_exhaustive]
    FellBack {
        /// Why the first one was of no use.
        error: Arc<str>,
    },
    /// A logout could not revoke a token at the authorization server. The logout stands.
    #[non_exhaustive]
    RevocationFailed {
        /// Why.
        error: Error,
    },
}

/// Why a token in a response header was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CaptureIgnored {
    /// The answer came from somewhere that is none of the session's origins, e.g. after a redirect.
    UntrustedOrigin,
    /// The value is no token: empty, over 64 KiB, several, or with other characters than visible
    /// ASCII.
    Malformed,
    /// The session has had another token since the request was sent: a late answer never undoes a
    /// newer token.
    Superseded,
    /// It is the token that the session has already.
    Unchanged,
}

/// Why a rejected request was not sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum NotReplayed {
    /// Its body is a stream, and no [`ReplayBody`](crate::ReplayBody) can make a fresh one.
    BodyNotReplayable,
    /// It has been sent again once already.
    AlreadyReplayed,
    /// [`SessionBuilder::replay_if`](crate::SessionBuilder::replay_if) said no.
    RuledOut,
}

type Listener = Arc<dyn Fn(&Event) + Send + Sync>;

/// A session's listeners.
#[derive(Clone, Default)]
pub(crate) struct Listeners(Vec<Listener>);

impl Listeners {
    pub(crate) fn add(&mut self, listener: impl Fn(&Event) + Send + Sync + 'static) {
        self.0.push(Arc::new(listener));
    }

    /// Tells everybody. Never call it with a lock held: a listener may use the session.
    /// `panicked` is called for each listener that panics: an observer cannot change what happens.
    pub(crate) fn emit(&self, event: &Event, panicked: impl Fn()) {
        for listener in &self.0 {
            if catch_unwind(AssertUnwindSafe(|| listener(event))).is_err() {
                panicked();
            }
        }
    }
}
