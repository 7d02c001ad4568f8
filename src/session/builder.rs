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

/// What a request's caller gets when its token was rejected and could not be renewed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OnRefreshFailure {
    /// The typed [`Error`](crate::Error).
    #[default]
    ReturnError,
    /// The API's own answer, with the error in its [`Outcome`](crate::Outcome).
    ReturnResponse,
}

/// All settings of a [`Session`].
///
/// | setting | default |
/// | --- | --- |
/// | [`origin`](Self::origin) | none: at least one is required |
/// | [`name`](Self::name) | none |
/// | [`refresher`](Self::refresher) | none: tokens come only from the response header and from [`Session::replace_tokens`] |
/// | [`store`](Self::store) | none: tokens live as long as the process |
/// | [`placement`](Self::placement) | `Authorization: Bearer …` |
/// | [`override_authorization`](Self::override_authorization) | off: the caller's own header wins |
/// | [`capture`](Self::capture) | the response header `Refreshed-API-Token` |
/// | [`buffer_bodies`](Self::buffer_bodies) | off: a streaming body is sent once |
/// | [`refresh_ahead`](Self::refresh_ahead) | the last fifth of a token's lifetime, at most 60 s |
/// | [`cooldown`](Self::cooldown) | 10 s |
/// | [`refresh_timeout`](Self::refresh_timeout) | 90 s |
/// | [`store_timeout`](Self::store_timeout) | 5 s |
/// | [`on_refresh_failure`](Self::on_refresh_failure) | [`OnRefreshFailure::ReturnError`] |
/// | [`rejected_if`](Self::rejected_if) | the built-in rule |
/// | [`replay_if`](Self::replay_if) | every request |
/// | [`wait_timeout`](Self::wait_timeout) | none: a wait ends with the refresh |
/// | [`runtime`](Self::runtime) | that of the request that starts a refresh |
/// | plain http | only to loopback |
#[must_use]
pub struct SessionBuilder {
    tokens: Tokens,
    name: Option<String>,
    origins: Vec<String>,
    refresher: Option<Box<dyn Refresher>>,
    store: Option<Box<dyn TokenStore>>,
    listeners: Listeners,
    placement: Placement,
    /// Empty: the default.
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

    /// What the session is called in logs and metrics: the field `session` of every `tracing`
    /// event and the label `reauth.session` of every metric, the heartbeat's included. Default:
    /// none, and neither is there. Give each login a name of its own, and not one for each task:
    /// metrics keep a series for each name.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Adds an origin that the token may be sent to: scheme, host and port of this URL, compared
    /// after URL normalisation. A path counts for nothing. Requests elsewhere carry no token, and
    /// nothing is taken from their answers.
    pub fn origin(mut self, origin: impl AsRef<str>) -> Self {
        self.origins.push(origin.as_ref().to_owned());
        self
    }

    /// How new tokens are brought: [`OAuthRefresh`](crate::OAuthRefresh),
    /// [`refresh_with`](crate::refresh_with), or your own.
    pub fn refresher(mut self, refresher: impl Refresher) -> Self {
        self.refresher = Some(Box::new(refresher));
        self
    }

    /// Where the tokens outlive the process. What the store holds is tried before the tokens that
    /// the session was given: it is looked into at the first refresh, or at once by
    /// [`restore`](Self::restore).
    pub fn store(mut self, store: impl TokenStore) -> Self {
        self.store = Some(Box::new(store));
        self
    }

    /// Adds a listener for events. It is called on the task that does the work: keep it short. Its
    /// panics are caught. One that holds the session keeps it from ever being dropped.
    pub fn on_event(mut self, listener: impl Fn(&Event) + Send + Sync + 'static) -> Self {
        self.listeners.add(listener);
        self
    }

    /// Where the access token goes on a request. Default: [`Placement::bearer`].
    pub fn placement(mut self, placement: Placement) -> Self {
        self.placement = placement;
        self
    }

    /// Where the API's responses bring new tokens. Default: the header `Refreshed-API-Token`
    /// (Apache Airflow's). The first call replaces the default, each further one adds a channel.
    ///
    /// Two channels of one response that bring different tokens are ignored. A
    /// [`HeaderName`](http::HeaderName) is short for [`CaptureFrom::header`].
    pub fn capture(mut self, from: impl Into<CaptureFrom>) -> Self {
        self.capture.push(from.into());
        self
    }

    /// Makes the session's token win over the caller's own `Authorization` header (with
    /// [`Placement::header`], over a header of that name), at the session's origins.
    ///
    /// Without this, a request with such a header is sent unchanged, and nothing is captured,
    /// refreshed or replayed for it. That is how a generated client with a bearer field of its own
    /// switches the chain off; each such request is an
    /// [`Event::CallerAuthorization`]. [`Anonymous`](crate::Anonymous) still sends a request without
    /// a token.
    pub fn override_authorization(mut self) -> Self {
        self.override_authorization = true;
        self
    }

    /// Reads a streaming body of at most `limit` bytes into memory before it is sent, so that it can
    /// be replayed: for uploads of generated clients, which cannot attach a
    /// [`ReplayBody`](crate::ReplayBody). Default: off.
    ///
    /// A stream that is longer, or that has not ended after one second (or after the request's own
    /// timeout, if that is shorter), is sent as a stream, whole and once. A stream that fails while
    /// it is read fails the request, unsent. The streams of requests that carry no token of the
    /// session are not read.
    pub fn buffer_bodies(mut self, limit: usize) -> Self {
        self.buffer_bodies = limit;
        self
    }

    /// How long before its expiry a token is renewed in the background. Default: the last fifth of
    /// its lifetime, at most 60 s. It is cut to half the lifetime; zero renews only when the token
    /// has ended.
    pub fn refresh_ahead(mut self, window: Duration) -> Self {
        self.refresh_ahead = Some(window);
        self
    }

    /// How long the token endpoint is let be after a refresh failed. Default: 10 s. A `Retry-After`
    /// can make it longer, up to five minutes.
    ///
    /// After a refresh that succeeded, its token is not renewed within the same time because it had
    /// ended when it came, nor because the API refuses it before it has accepted it once.
    pub fn cooldown(mut self, pause: Duration) -> Self {
        self.cooldown = pause;
        self
    }

    /// The limit for each load and save. Default: 5 s.
    pub fn store_timeout(mut self, limit: Duration) -> Self {
        self.store_timeout = limit;
        self
    }

    /// Sends a refresh token that is known to rotate also while the store cannot be locked or read.
    /// For a store that no other session uses: where several send one such token, a strict token
    /// endpoint revokes the login. Default: such a refresh fails with
    /// [`Store`](ErrorKind::Store), which is transient, until the store is back.
    pub fn refresh_without_store(mut self) -> Self {
        self.refresh_without_store = true;
        self
    }

    /// The limit for a refresh, whatever the refresher does, the wait for the store's lock
    /// included. Default: 90 s. Saving what it brought comes on top, bounded by
    /// [`store_timeout`](Self::store_timeout).
    ///
    /// Give it more than the refresher's own deadline (60 s of
    /// [`OAuthRefresh`](crate::OAuthRefresh)): a call that is cut off may have spent the refresh
    /// token.
    pub fn refresh_timeout(mut self, limit: Duration) -> Self {
        self.refresh_timeout = limit;
        self
    }

    /// The longest that a request waits for a refresh, and so do
    /// [`credential`](Session::credential) and [`with_credential`](Session::with_credential). It
    /// bounds each wait and not the sum of two; [`refresh`](Session::refresh) is not bounded. The
    /// caller gets [`TimedOut`](ErrorKind::TimedOut), and the refresh goes on. If the request has a
    /// timeout of its own, the shorter one counts. Default: none.
    ///
    /// Set it to the timeout of the client, if that has one: reqwest does not tell a middleware
    /// what `Client::builder().timeout(…)` is.
    pub fn wait_timeout(mut self, limit: Duration) -> Self {
        self.wait_timeout = Some(limit);
        self
    }

    /// Where refreshes and the session's saves run. Default: the runtime of the request that starts
    /// one, and so it is if this one was shut down.
    ///
    /// A refresh belongs to all who use the session. If the runtime that runs it is blocked, because
    /// its thread computes for a while, or nobody drives it any more, then everybody waits. With a
    /// runtime that does nothing else this cannot happen. The `http_client` of an
    /// [`OAuthRefresh`](crate::OAuthRefresh) must then be one that no other runtime uses, since an
    /// idle connection belongs to the runtime that opened it.
    ///
    /// ```
    /// # use reqwest_reauth::{Error, Session, Tokens};
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let background = tokio::runtime::Builder::new_multi_thread()
    ///     .worker_threads(1)
    ///     .enable_all()
    ///     .build()?;
    /// let session = Session::builder(Tokens::new("t")?)
    ///     .origin("https://api.example.com")
    ///     .runtime(background.handle().clone())
    ///     .build()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn runtime(mut self, handle: Handle) -> Self {
        self.runtime = Some(handle);
        self
    }

    /// What a caller gets when the token was rejected and could not be renewed. Default: the error.
    pub fn on_refresh_failure(mut self, choice: OnRefreshFailure) -> Self {
        self.on_refresh_failure = choice;
        self
    }

    /// Replaces the rule by which an answer refuses the token. It is given the built-in rule's
    /// [`Verdict`], and is asked of every answer from the origin that the request was sent to, if
    /// the session signed the request.
    ///
    /// ```
    /// # use reqwest_reauth::{Error, Session, Tokens};
    /// # fn main() -> Result<(), Error> {
    /// let session = Session::builder(Tokens::new("t")?)
    ///     .origin("https://api.example.com")
    ///     // This API says 419 when the token has ended.
    ///     .rejected_if(|answer, verdict| verdict.rejected || answer.status().as_u16() == 419)
    ///     .build()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn rejected_if(
        mut self,
        rule: impl Fn(&Response, Verdict) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.rejected_if = Some(Box::new(rule));
        self
    }

    /// Which requests may be sent again after a rejection. Default: all, since a rejected request
    /// was not executed.
    pub fn replay_if(mut self, rule: impl Fn(&Request) -> bool + Send + Sync + 'static) -> Self {
        self.replay_if = Some(Box::new(rule));
        self
    }

    /// Allows origins with plain http beyond loopback: everybody on the way can read the token.
    pub fn allow_plain_http(mut self) -> Self {
        self.allow_plain_http = true;
        self
    }

    /// Builds the session. A store is not looked into before the first refresh.
    ///
    /// # Errors
    /// [`InvalidConfig`](ErrorKind::InvalidConfig): no origin, one that is no http(s) URL, has a
    /// user name, or is plain http; a placement or a channel whose name cannot be one; or the
    /// refresher's settings cannot work.
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
        // Works out whether it can be renewed.
        session.update(|_| ());
        Ok(session)
    }

    /// Builds the session with what the store holds, so that the first request has the stored
    /// access token.
    ///
    /// # Errors
    /// As [`build`](Self::build); [`Store`](ErrorKind::Store) when the store fails and the session
    /// was given no token to go on with. Otherwise a failing store is an [`Event::StoreFailed`].
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

/// A panic in the user's code counts as no bound.
fn longest_cooldown(refresher: &dyn Refresher) -> Option<Duration> {
    catch_unwind(AssertUnwindSafe(|| refresher.longest_cooldown())).unwrap_or_default()
}

impl std::fmt::Debug for SessionBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SessionBuilder").field("tokens", &self.tokens).finish_non_exhaustive()
    }
}
