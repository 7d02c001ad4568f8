//! `OAuthRefresh` against a scripted token endpoint on a loopback socket: what the endpoint saw,
//! and how its responses were handled.

mod grants;
#[cfg(feature = "http2")]
mod http2;
mod kept;
mod responses;
mod retries;
mod sending;
mod server;
mod settings;
mod trust;

use std::{
    error::Error as _,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use http::StatusCode;

use self::server::{Reply, TokenEndpoint};
use super::OAuthRefresh;
use crate::{
    error::{Error, ErrorKind},
    refresher::{RefreshContext, RefreshLog, Refresher},
    token::{RefreshToken, Tokens},
};

const OLD: &str = "old-refresh-token";

/// Records what a session would do.
struct Log {
    tokens: Mutex<Tokens>,
    kept: Mutex<Vec<String>>,
    retries: Mutex<Vec<(u32, Duration, Option<u16>)>>,
    switches: Mutex<Vec<String>>,
    forgot: Mutex<bool>,
}

impl Log {
    fn new(tokens: Tokens) -> Arc<Self> {
        Arc::new(Self {
            tokens: Mutex::new(tokens),
            kept: Mutex::default(),
            retries: Mutex::default(),
            switches: Mutex::default(),
            forgot: Mutex::default(),
        })
    }

    fn kept(&self) -> Vec<String> {
        self.kept.lock().unwrap().clone()
    }

    fn retries(&self) -> Vec<(u32, Duration, Option<u16>)> {
        self.retries.lock().unwrap().clone()
    }

    fn switches(&self) -> Vec<String> {
        self.switches.lock().unwrap().clone()
    }

    fn forgot(&self) -> bool {
        *self.forgot.lock().unwrap()
    }

    fn retried_statuses(&self) -> Vec<(u32, Option<u16>)> {
        self.retries().into_iter().map(|(attempt, _, status)| (attempt, status)).collect()
    }
}

#[async_trait]
impl RefreshLog for Log {
    fn tokens(&self) -> Tokens {
        self.tokens.lock().unwrap().clone()
    }

    fn retrying(&self, failed_attempt: u32, delay: Duration, status: Option<StatusCode>) {
        self.retries.lock().unwrap().push((
            failed_attempt,
            delay,
            status.map(|status| status.as_u16()),
        ));
    }

    async fn keep(&self, refresh_token: RefreshToken) {
        self.kept.lock().unwrap().push(refresh_token.expose_secret().to_owned());
        self.tokens.lock().unwrap().set_refresh(Some(refresh_token));
    }

    fn fell_back(&self, error: &Error) {
        self.switches.lock().unwrap().push(error.to_string());
    }

    fn forget_refresh_token(&self) {
        *self.forgot.lock().unwrap() = true;
    }
}

/// One refresh with [`OLD`] and an access token `old-access-token`.
async fn run(refresher: &OAuthRefresh) -> (Result<Tokens, Error>, Arc<Log>) {
    let log = Log::new(Tokens::new("old-access-token").unwrap().with_refresh_token(OLD).unwrap());
    let context = RefreshContext::new(Arc::clone(&log) as Arc<dyn RefreshLog>);
    (refresher.refresh(&context).await, log)
}

/// A refresher for this endpoint without pauses between attempts.
fn quick(endpoint: &TokenEndpoint) -> OAuthRefresh {
    OAuthRefresh::new(&endpoint.url).backoff(Duration::from_millis(2), Duration::from_millis(4))
}

/// The result of a refresh with this single response, and the log.
async fn answered(reply: Reply) -> (Result<Tokens, Error>, Arc<Log>, TokenEndpoint) {
    let endpoint = TokenEndpoint::start([reply]).await;
    let (result, log) = run(&quick(&endpoint)).await;
    (result, log, endpoint)
}

fn access(tokens: &Tokens) -> &str {
    tokens.access_token().unwrap().expose_secret()
}

fn refresh(tokens: &Tokens) -> Option<&str> {
    tokens.refresh_token().map(RefreshToken::expose_secret)
}

/// Every text of an error.
fn texts(error: &Error) -> String {
    let whole = anyhow::Error::new(error.clone());
    let links = whole.chain().map(|link| format!("{link} {link:?}"));
    links.chain([format!("{whole:#} {whole:?}")]).collect::<Vec<_>>().join("\n")
}
