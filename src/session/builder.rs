use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::OnceLock,
    time::Duration,
};

use arc_swap::ArcSwap;
use reqwest::{Request, Response};
use tokio::{runtime::Handle, sync::Notify};

use super::{
    Inner, RejectedIf, ReplayIf, Session, expiry, persist::StoreSync, refresh::Turn,
    runtime::Runtimes, state::State, timer::Timer,
};
#[cfg(feature = "dpop")]
use crate::dpop::Dpop;
use crate::{
    error::{Error, ErrorKind},
    event::{Event, Listeners},
    policy::{CaptureFrom, Channels, Origin, Placement, Verdict},
    refresher::Refresher,
    store::TokenStore,
    telemetry::Telemetry,
    token::{Arrival, Tokens},
};

/// What the caller of a request gets if its token was rejected and the refresh failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OnRefreshFailure {
    /// The typed [`Error`](crate::Error).
    #[default]
    ReturnError,
    /// The API's response, with the error in its [`Outcome`](crate::Outcome).
    ReturnResponse,
}

/// The settings of a [`Session`].
///
/// # Defaults
///
/// | setting | default |
/// | --- | --- |
/// | [`origin`](Self::origin) | none: at least one is required |
/// | [`name`](Self::name) | none |
/// | [`refresher`](Self::refresher) | none: tokens come only from the response header and from [`Session::replace_tokens`] |
/// | [`store`](Self::store) | none: tokens live as long as the process |
/// | [`on_event`](Self::on_event) | no listener |
/// | [`placement`](Self::placement) | `Authorization: Bearer …` |
/// | [`override_authorization`](Self::override_authorization) | off: the caller's own header is kept |
/// | [`capture`](Self::capture) | the response header `Refreshed-API-Token` |
/// | [`buffer_bodies`](Self::buffer_bodies) | off: a streamed body is sent once |
/// | [`refresh_ahead`](Self::refresh_ahead) | the last fifth of a token's lifetime, at most 60 s |
/// | [`cooldown`](Self::cooldown) | 10 s |
/// | [`refresh_timeout`](Self::refresh_timeout) | 90 s |
/// | [`store_timeout`](Self::store_timeout) | 5 s |
/// | [`refresh_without_store`](Self::refresh_without_store) | off: a rotating refresh token is not sent while the store fails |
/// | [`on_refresh_failure`](Self::on_refresh_failure) | [`OnRefreshFailure::ReturnError`] |
/// | [`rejected_if`](Self::rejected_if) | the built-in rule |
/// | [`replay_if`](Self::replay_if) | every request |
/// | [`wait_timeout`](Self::wait_timeout) | none: a request waits until the refresh ends |
/// | [`runtime`](Self::runtime) | the runtime of the request that starts the refresh |
/// | [`allow_plain_http`](Self::allow_plain_http) | off: plain `http` only on loopback |
#[must_use]
pub struct SessionBuilder {
    tokens: Tokens,
    name: Option<String>,
    origins: Vec<String>,
    refresher: Option<Box<dyn Refresher>>,
    store: Option<Box<dyn TokenStore>>,
    listeners: Listeners,
    placement: Placement,
    /// Empty means the default.
    capture: Vec<CaptureFrom>,
    override_authorization: bool,
    buffer_bodies: usize,
    refresh_ahead: Option<Duration>,
    cooldown: Duration,
    store_timeout: Duration,
    refresh_without_store: bool,
    refresh_timeout: Duration,
    on_refresh_failure: OnRefreshFailure,
    rejected_if: Option<RejectedIf>,
    replay_if: Option<ReplayIf>,
    wait_timeout: Option<Duration>,
    runtime: Option<Handle>,
    allow_plain_http: bool,
}

impl SessionBuilder {
    pub(super) fn new(tokens: Tokens) -> Self {
        Self {
            tokens,
            name: None,
            origins: Vec::new(),
            refresher: None,
            store: None,
            listeners: Listeners::default(),
            placement: Placement::bearer(),
            capture: Vec::new(),
            override_authorization: false,
            buffer_bodies: 0,
            refresh_ahead: None,
            cooldown: Duration::from_secs(10),
            store_timeout: Duration::from_secs(5),
            refresh_without_store: false,
            refresh_timeout: Duration::from_secs(90),
            on_refresh_failure: OnRefreshFailure::ReturnError,
            rejected_if: None,
            replay_if: None,
            wait_timeout: None,
            runtime: None,
            allow_plain_http: false,
        }
    }

    /// Sets the name of the session in logs and metrics. Default: none.
    ///
    /// The name is the field `session` of every `tracing` event and the label `reauth.session` of
    /// every metric, including those of a heartbeat. Without a name both are absent. Give each
    /// login its own name, but not each task, because metrics keep a series for each name.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Adds an origin to which the token may be sent: scheme, host and port of this URL, compared
    /// after URL normalisation.
    ///
    /// The path is ignored. Requests to other origins carry no token, and nothing is captured from
    /// their responses.
    pub fn origin(mut self, origin: impl AsRef<str>) -> Self {
        self.origins.push(origin.as_ref().to_owned());
        self
    }

    /// Sets the source of new tokens: [`OAuthRefresh`](crate::OAuthRefresh),
    /// [`FileRefresh`](crate::FileRefresh), [`refresh_with`](crate::refresh_with), or your own
    /// [`Refresher`]. Default: none.
    pub fn refresher(mut self, refresher: impl Refresher) -> Self {
        self.refresher = Some(Box::new(refresher));
        self
    }

    /// Sets a store, which keeps the tokens beyond the process. Default: none.
    ///
    /// Stored tokens are tried before the tokens that the session was given. The store is read at
    /// the first refresh, or at once with [`restore`](Self::restore).
    pub fn store(mut self, store: impl TokenStore) -> Self {
        self.store = Some(Box::new(store));
        self
    }

    /// Adds a listener for events. It runs on the task that does the work, so keep it short. A
    /// panic in it is caught.
    ///
    /// A listener that captures the session creates a reference cycle: that session is never
    /// dropped.
    pub fn on_event(mut self, listener: impl Fn(&Event) + Send + Sync + 'static) -> Self {
        self.listeners.add(listener);
        self
    }

    /// Sets where a request carries the access token. Default: [`Placement::bearer`].
    pub fn placement(mut self, placement: Placement) -> Self {
        self.placement = placement;
        self
    }

    /// Sets where the API's responses carry new tokens. Default: the header `Refreshed-API-Token`,
    /// as in Apache Airflow.
    ///
    /// The first call replaces the default, and each further call adds a channel. If two channels
    /// of a response carry different tokens, both are ignored. A [`HeaderName`](http::HeaderName)
    /// is short for [`CaptureFrom::header`].
    pub fn capture(mut self, from: impl Into<CaptureFrom>) -> Self {
        self.capture.push(from.into());
        self
    }

    /// Makes the session replace the caller's own `Authorization` header (with
    /// [`Placement::header`], the header of that name) on requests to its origins. Default: off.
    ///
    /// By default, a request with such a header is sent unchanged, and nothing is captured,
    /// refreshed or replayed for it. A generated client with its own bearer field disables the
    /// chain in this way. Each such request is reported as [`Event::CallerAuthorization`]. With
    /// [`Anonymous`](crate::Anonymous) a request is still sent without a token.
    pub fn override_authorization(mut self) -> Self {
        self.override_authorization = true;
        self
    }

    /// Buffers a streaming body of at most `limit` bytes before it is sent, so that it can be
    /// replayed. Default: off.
    ///
    /// This is for uploads of generated clients, which cannot attach a
    /// [`ReplayBody`](crate::ReplayBody).
    ///
    /// A stream that is longer, or that does not end within one second (or within the request's own
    /// timeout, if that is shorter), is sent in full as a stream, but only once. If the stream
    /// fails while it is buffered, the request fails without being sent. Only requests that carry
    /// the session's token are buffered.
    pub fn buffer_bodies(mut self, limit: usize) -> Self {
        self.buffer_bodies = limit;
        self
    }

    /// Sets how long before its expiry a token is refreshed in the background. Default: the last
    /// fifth of its lifetime, at most 60 s.
    ///
    /// The value is limited to half the lifetime. Zero refreshes a token only after it has expired.
    pub fn refresh_ahead(mut self, window: Duration) -> Self {
        self.refresh_ahead = Some(window);
        self
    }

    /// Sets how long to wait after a failed refresh before calling the token endpoint again.
    /// Default: 10 s. A `Retry-After` can extend it, up to five minutes.
    ///
    /// The same interval also limits repeated refreshes after a success. If a new token arrives
    /// already expired, or the API rejects it before ever accepting it, no other refresh starts
    /// until the interval is over.
    pub fn cooldown(mut self, pause: Duration) -> Self {
        self.cooldown = pause;
        self
    }

    /// Sets the time limit of each load and save. Default: 5 s.
    pub fn store_timeout(mut self, limit: Duration) -> Self {
        self.store_timeout = limit;
        self
    }

    /// Sends a refresh token even if it is known to rotate and the store cannot be locked or read.
    /// Default: such a refresh fails with [`Store`](ErrorKind::Store), which is transient, until
    /// the store works again.
    ///
    /// Use it only for a store that no other session uses. If several sessions send the same
    /// rotating token, a strict token endpoint revokes the login.
    pub fn refresh_without_store(mut self) -> Self {
        self.refresh_without_store = true;
        self
    }

    /// Sets the time limit of a refresh, including the wait for the store's lock. Default: 90 s.
    /// Saving the new tokens is not included; [`store_timeout`](Self::store_timeout) bounds it.
    ///
    /// Choose a longer limit than the refresher's own deadline (60 s for
    /// [`OAuthRefresh`](crate::OAuthRefresh)), because a call that is cut off may have spent the
    /// refresh token.
    pub fn refresh_timeout(mut self, limit: Duration) -> Self {
        self.refresh_timeout = limit;
        self
    }

    /// Sets the longest wait for a refresh, for requests, [`credential`](Session::credential) and
    /// [`with_credential`](Session::with_credential). Default: none.
    ///
    /// It bounds each wait, not the sum of two. [`refresh`](Session::refresh) is not bounded. After
    /// the limit the caller gets [`TimedOut`](ErrorKind::TimedOut), and the refresh continues. If
    /// the request has its own timeout, the shorter one applies.
    ///
    /// If the client has a timeout, set this to the same value, because reqwest does not expose
    /// `Client::builder().timeout(…)` to middleware.
    pub fn wait_timeout(mut self, limit: Duration) -> Self {
        self.wait_timeout = Some(limit);
        self
    }

    /// Sets the runtime of refreshes and of the session's saves. Default: the runtime of the
    /// request that starts the work. The default also applies if the given runtime was shut down.
    ///
    /// All users of the session wait for the same refresh. If its runtime is blocked by a long
    /// computation, or is no longer driven, they all wait. A runtime that does nothing else avoids
    /// this. The `http_client` of an [`OAuthRefresh`](crate::OAuthRefresh) must then not be used on
    /// another runtime, because an idle connection belongs to the runtime that opened it.
    ///
    /// ```
    /// use reqwest_reauth::{Session, Tokens};
    ///
    /// fn main() -> Result<(), Box<dyn std::error::Error>> {
    ///     let background = tokio::runtime::Builder::new_multi_thread()
    ///         .worker_threads(1)
    ///         .enable_all()
    ///         .build()?;
    ///     let session = Session::builder(Tokens::new("token")?)
    ///         .origin("https://api.example.com")
    ///         .runtime(background.handle().clone())
    ///         .build()?;
    ///     Ok(())
    /// }
    /// ```
    pub fn runtime(mut self, handle: Handle) -> Self {
        self.runtime = Some(handle);
        self
    }

    /// Sets what the caller gets if the token was rejected and the refresh failed. Default: the
    /// error.
    pub fn on_refresh_failure(mut self, choice: OnRefreshFailure) -> Self {
        self.on_refresh_failure = choice;
        self
    }

    /// Replaces the rule that decides whether a response rejects the token. Default: the built-in
    /// rule.
    ///
    /// The closure receives the built-in rule's [`Verdict`]. It is called for every response from
    /// the origin of the request, if the session signed the request.
    ///
    /// ```
    /// use reqwest_reauth::{Error, Session, Tokens};
    ///
    /// fn main() -> Result<(), Error> {
    ///     let session = Session::builder(Tokens::new("token")?)
    ///         .origin("https://api.example.com")
    ///         // This API responds with 419 to an expired token.
    ///         .rejected_if(|response, verdict| verdict.rejected || response.status().as_u16() == 419)
    ///         .build()?;
    ///     Ok(())
    /// }
    /// ```
    pub fn rejected_if(
        mut self,
        rule: impl Fn(&Response, Verdict) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.rejected_if = Some(Box::new(rule));
        self
    }

    /// Sets which requests may be replayed after a rejection. Default: all, because a rejected
    /// request was not executed.
    pub fn replay_if(mut self, rule: impl Fn(&Request) -> bool + Send + Sync + 'static) -> Self {
        self.replay_if = Some(Box::new(rule));
        self
    }

    /// Allows origins with plain `http` outside the loopback interface. Default: not allowed.
    /// Anyone on the network path can then read the token.
    pub fn allow_plain_http(mut self) -> Self {
        self.allow_plain_http = true;
        self
    }

    /// Builds the session. The store is not read before the first refresh.
    ///
    /// # Errors
    /// [`InvalidConfig`](ErrorKind::InvalidConfig) if
    /// - there is no origin, or an origin is not an http(s) URL, has a user name, or uses plain
    ///   `http`,
    /// - the name in a placement or a channel is invalid,
    /// - the refresher's settings cannot work.
    pub fn build(self) -> Result<Session, Error> {
        if self.origins.is_empty() {
            return Err(Error::new(
                ErrorKind::InvalidConfig,
                "a session needs at least one origin",
            ));
        }
        let origins: Result<_, _> =
            self.origins.iter().map(|text| Origin::parse(text, self.allow_plain_http)).collect();
        self.placement.check()?;
        let channels = if self.capture.is_empty() {
            Channels::standard()
        } else {
            Channels::new(self.capture)?
        };
        if let Some(refresher) = &self.refresher {
            catch_unwind(AssertUnwindSafe(|| refresher.check())).unwrap_or_else(|_| {
                Err(Error::new(ErrorKind::InvalidConfig, "the refresher's check panicked"))
            })?;
        }
        let lifetime = self.tokens.lifetime(Arrival::Handed);
        let due =
            lifetime.map(|lifetime| expiry::due(lifetime, self.refresh_ahead, fastrand::f64()));
        let longest_cooldown = self.refresher.as_deref().and_then(longest_cooldown);
        let given = self.tokens.refresh_token().cloned();
        let session = Session(std::sync::Arc::new(Inner {
            current: ArcSwap::from_pointee(State::new(&self.tokens, lifetime, due)),
            changed: Notify::new(),
            writer: std::sync::Mutex::new(()),
            subscribers: OnceLock::new(),
            timer: Timer::new(),
            turn: Turn::new(),
            origins: origins?,
            refresher: self.refresher,
            store: self.store.map(|store| {
                Box::new(StoreSync::new(
                    store,
                    self.store_timeout,
                    given,
                    self.refresh_without_store,
                ))
            }),
            listeners: self.listeners,
            telemetry: Telemetry::new(self.name),
            #[cfg(feature = "dpop")]
            dpop: self.placement.dpop_key().map(|key| std::sync::Arc::new(Dpop::new(key.clone()))),
            placement: self.placement,
            channels,
            override_authorization: self.override_authorization,
            buffer_bodies: self.buffer_bodies,
            refresh_ahead: self.refresh_ahead,
            cooldown: longest_cooldown.map_or(self.cooldown, |it| it.min(self.cooldown)),
            longest_cooldown,
            store_timeout: self.store_timeout,
            refresh_timeout: self.refresh_timeout,
            on_refresh_failure: self.on_refresh_failure,
            rejected_if: self.rejected_if,
            replay_if: self.replay_if,
            wait_timeout: self.wait_timeout,
            runtimes: Runtimes::new(self.runtime),
        }));
        #[cfg(feature = "dpop")]
        if session.0.store.is_some() && session.dpop().is_some_and(|dpop| dpop.key().is_generated())
        {
            tracing::warn!(
                target: "reqwest_reauth",
                session = session.name(),
                "the stored login is bound to a key that was generated in this process: other \
                 processes, and the next run, cannot use it"
            );
        }
        // Computes whether the session can refresh.
        session.update(|_| ());
        Ok(session)
    }

    /// Builds the session with the tokens in the store, so that the first request has the stored
    /// access token.
    ///
    /// # Errors
    /// The errors of [`build`](Self::build), and [`Store`](ErrorKind::Store) if the store fails and
    /// the session was given no tokens. With tokens, a failing store is an [`Event::StoreFailed`].
    pub async fn restore(self) -> Result<Session, Error> {
        let session = self.build()?;
        if let Some(store) = &session.0.store {
            match store.open(&session).await {
                Ok(Some(stored)) => session.adopt_stored(&stored),
                Ok(None) => session.starts_logged_out(),
                Err(error) if session.load().has_tokens() => {
                    session.emit(&Event::StoreFailed { error });
                }
                Err(error) => return Err(error),
            }
        }
        Ok(session)
    }
}

/// A panic in the user's code counts as no limit.
fn longest_cooldown(refresher: &dyn Refresher) -> Option<Duration> {
    catch_unwind(AssertUnwindSafe(|| refresher.longest_cooldown())).unwrap_or_default()
}

impl std::fmt::Debug for SessionBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SessionBuilder").field("tokens", &self.tokens).finish_non_exhaustive()
    }
}
