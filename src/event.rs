//! Events that a session reports to its listeners. A listener cannot change what the session does.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use http::StatusCode;

use crate::error::Error;

/// Something that a session did.
///
/// Events go to the listeners of [`SessionBuilder::on_event`](crate::SessionBuilder::on_event) and
/// to `tracing`, under the target `reqwest_reauth`.
///
/// Variants may gain fields: match them with `..`.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// The API replaced the token through the response header.
    #[non_exhaustive]
    Captured {
        /// The session's generation with the new token.
        generation: u64,
    },
    /// A response carried the header, but its token was not captured.
    #[non_exhaustive]
    CaptureIgnored {
        /// Why the token was not captured.
        reason: CaptureIgnored,
    },
    /// A request to an origin of the session was sent with its own `Authorization` header (with
    /// [`Placement::header`](crate::Placement::header), its own header of that name).
    ///
    /// Nothing is captured, refreshed or replayed for such a request. Generated clients with a
    /// bearer field cause this. The event is reported for each such request.
    /// [`SessionBuilder::override_authorization`](crate::SessionBuilder::override_authorization)
    /// makes the session replace the header with its own token.
    #[non_exhaustive]
    CallerAuthorization {},
    /// A refresh started. `Refreshed` or `RefreshFailed` follows, unless a new login or a logout
    /// supersedes the refresh.
    #[non_exhaustive]
    RefreshStarted {
        /// The generation of the token that is being refreshed.
        generation: u64,
    },
    /// An attempt of the refresh failed, and another attempt follows.
    #[non_exhaustive]
    RefreshRetrying {
        /// The number of the attempt that failed, counted from 1.
        attempt: u32,
        /// The wait before the next attempt.
        delay: Duration,
        /// The status of the token endpoint's response, if there was a response.
        status: Option<StatusCode>,
    },
    /// A refresh obtained a token.
    #[non_exhaustive]
    Refreshed {
        /// The session's generation with the new token.
        generation: u64,
        /// The number of calls to the token endpoint: 0 if the token came from the store.
        attempts: u32,
    },
    /// A refresh ended without a token.
    #[non_exhaustive]
    RefreshFailed {
        /// The cause.
        error: Error,
    },
    /// A rejected request was replayed.
    #[non_exhaustive]
    Replayed {
        /// The generation of the token that the replay was sent with.
        generation: u64,
        /// The status of the API's response to the replay.
        status: StatusCode,
    },
    /// A rejected request was not replayed.
    #[non_exhaustive]
    NotReplayed {
        /// Why the request was not replayed.
        reason: NotReplayed,
    },
    /// The token store failed. The request continues.
    #[non_exhaustive]
    StoreFailed {
        /// The cause.
        error: Error,
    },
    /// The session adopted a login that another process had stored, because its own login was over.
    #[non_exhaustive]
    StoredLoginAdopted {
        /// The session's generation with the stored token.
        generation: u64,
    },
    /// The session ignored the login in the store, because that login is bound to another key than
    /// the session's (RFC 7800).
    #[non_exhaustive]
    StoredLoginIgnored {
        /// The thumbprint (RFC 7638) of the key that the stored login is bound to.
        thumbprint: String,
    },
    /// The session's refresher could not refresh, or its login was over, and the fallback refresher
    /// takes over.
    #[non_exhaustive]
    FellBack {
        /// The error of the first refresher.
        error: Arc<str>,
    },
    /// A logout could not revoke a token at the authorization server. The logout itself is
    /// complete.
    #[non_exhaustive]
    RevocationFailed {
        /// The cause.
        error: Error,
    },
}

/// Why a token in a response header was not captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CaptureIgnored {
    /// The response came from outside the session's origins, for example after a redirect.
    UntrustedOrigin,
    /// The value is not a token: it is empty, longer than 64 KiB, present more than once, or
    /// contains a character other than visible ASCII.
    Malformed,
    /// The session has received another token since the request was sent. A late response never
    /// undoes a newer token.
    Superseded,
    /// The value is the token that the session already holds.
    Unchanged,
}

/// Why a rejected request was not replayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum NotReplayed {
    /// The body is a stream, and the request has no [`ReplayBody`](crate::ReplayBody) to produce a
    /// fresh one.
    BodyNotReplayable,
    /// The request has already been replayed once.
    AlreadyReplayed,
    /// [`SessionBuilder::replay_if`](crate::SessionBuilder::replay_if) returned `false`.
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

    /// Calls every listener. The caller must not hold a lock, because a listener may use the
    /// session. `panicked` is called for each listener that panics; the remaining listeners still
    /// run.
    pub(crate) fn emit(&self, event: &Event, panicked: impl Fn()) {
        for listener in &self.0 {
            if catch_unwind(AssertUnwindSafe(|| listener(event))).is_err() {
                panicked();
            }
        }
    }
}
