//! What only the compiler can check about the public types. It does not compile if a trait is
//! missing.

use std::{error::Error as StdError, fmt, hash::Hash};

use reqwest_reauth::{
    AccessToken, Anonymous, Authorize, Capture, CaptureIgnored, Error, ErrorKind, Event, FileStore,
    MemoryStore, NotReplayed, OAuthRefresh, OnRefreshFailure, Outcome, Refresh, RefreshContext,
    RefreshToken, Replay, ReplayBody, Session, SessionBuilder, SessionState, StoreLock, Tokens,
    Verdict, heartbeat,
};

const fn shared<T: Send + Sync + Unpin + 'static>() {}
const fn debug<T: fmt::Debug>() {}
const fn cloned<T: Clone>() {}
const fn compared<T: PartialEq + Eq>() {}
const fn hashed<T: Eq + Hash>() {}
const fn displayed<T: fmt::Display>() {}
const fn made_from_nothing<T: Default>() {}

/// Calls a check for each of these types.
macro_rules! each {
    ($check:ident: $($type:ty),+ $(,)?) => { const _: () = { $($check::<$type>();)+ }; };
}

// C-SEND-SYNC. All tasks share a session, and its values travel with them.
each!(shared: AccessToken, Anonymous, Authorize, Capture, CaptureIgnored, Error, ErrorKind, Event,
    FileStore, MemoryStore, NotReplayed, OAuthRefresh, OnRefreshFailure, Outcome, Refresh,
    RefreshContext, RefreshToken, Replay, ReplayBody, Session, SessionBuilder, SessionState,
    StoreLock, Tokens, Verdict, heartbeat::Heartbeat, heartbeat::HeartbeatHandle,
    heartbeat::Health, heartbeat::Failure, heartbeat::Stopped);

// C-DEBUG. tests/secrets.rs checks what they must not show.
each!(debug: AccessToken, Anonymous, Authorize, Capture, CaptureIgnored, Error, ErrorKind, Event,
    FileStore, MemoryStore, NotReplayed, OAuthRefresh, OnRefreshFailure, Outcome, Refresh,
    RefreshContext, RefreshToken, Replay, ReplayBody, Session, SessionBuilder, SessionState,
    StoreLock, Tokens, Verdict, heartbeat::Heartbeat, heartbeat::HeartbeatHandle,
    heartbeat::Health, heartbeat::Failure, heartbeat::Stopped);

// C-COMMON-TRAITS. Not `SessionBuilder` and `Heartbeat`, which are used once.
each!(cloned: AccessToken, Anonymous, CaptureIgnored, Error, ErrorKind, Event, FileStore,
    Authorize, Capture, MemoryStore, NotReplayed, OAuthRefresh, OnRefreshFailure, Outcome,
    Refresh, RefreshToken, Replay, ReplayBody, Session, SessionState, Tokens, Verdict, heartbeat::Health, heartbeat::Failure, heartbeat::Stopped);
each!(compared: AccessToken, Anonymous, CaptureIgnored, ErrorKind, NotReplayed, OnRefreshFailure,
    RefreshToken, SessionState, Verdict);
// Keys of maps and labels. Tokens are not among them, because the hash of a secret is easily
// mistaken for something harmless.
each!(hashed: CaptureIgnored, ErrorKind, NotReplayed, SessionState);
each!(displayed: Error, SessionState, heartbeat::Failure);
each!(made_from_nothing: Anonymous, heartbeat::Health, MemoryStore, OnRefreshFailure, Outcome, Tokens);

// C-GOOD-ERR.
const fn error<T: StdError + Send + Sync + 'static>() {}
each!(error: Error);
