//! Revokes tokens at the revocation endpoint (RFC 7009).

use std::time::Duration;

use http::StatusCode;
use reqwest_middleware::ClientWithMiddleware;
use serde::Deserialize;
use tokio::{
    sync::Notify,
    time::{Instant, sleep},
};
use url::Url;
use zeroize::Zeroizing;

use super::{
    classify::rejected,
    codes::known_code,
    failure::Failure,
    host_and_port,
    proof::Prover,
    request::{self, CallFailed},
    response::Members,
    retry::{AskedWait, Next, Pace},
    settings::Settings,
    wire::RawResponse,
};
use crate::{
    error::Error,
    refresher::Several,
    time::{Limit, asked_wait, wall, within},
    token::{AccessToken, RefreshToken, Tokens},
};

/// How long the access token waits for the revocation of the refresh token.
const HEAD_START: Duration = Duration::from_secs(1);

/// The revocation of one token.
struct Revocation<'a> {
    settings: &'a Settings,
    http: &'a ClientWithMiddleware,
    token_endpoint: &'a Url,
    endpoint: &'a Url,
    tokens: &'a Tokens,
}

/// How one attempt failed.
struct FailedAttempt {
    failure: Failure,
    status: Option<StatusCode>,
    asked_wait: AskedWait,
    error: Error,
}

impl Settings {
    /// Revokes the refresh token, then the access token. The access token is revoked even if the
    /// refresh token cannot be revoked or its revocation is slow.
    pub(super) async fn revoke(&self, tokens: &Tokens) -> Result<(), Error> {
        let Some(Some(endpoint)) = self.revocation.as_deref() else {
            return Ok(());
        };
        let token_endpoint = self.checked()?;
        let http = request::client(self)?;
        let revocation =
            Revocation { settings: self, http: &http, token_endpoint, endpoint, tokens };
        let refresh = tokens.refresh_token().map(RefreshToken::expose_secret);
        let access = tokens.access_token().map(AccessToken::expose_secret);
        let first_is_done = Notify::new();
        let first = async {
            let revoked = revocation.revoke(refresh, "refresh_token").await;
            first_is_done.notify_one();
            revoked
        };
        let second = async {
            let _ = within(HEAD_START, first_is_done.notified()).await;
            revocation.revoke(access, "access_token").await
        };
        let (first, second) = tokio::join!(first, second);
        Several::result([first.err(), second.err()])
    }
}

impl Revocation<'_> {
    async fn revoke(&self, token: Option<&str>, hint: &str) -> Result<(), Error> {
        let Some(token) = token else { return Ok(()) };
        let begun = Instant::now();
        // A lost revocation spends nothing.
        let pace = Pace { retry_lost: true, ..self.settings.pace };
        let mut attempt = 0;
        loop {
            attempt += 1;
            let Err(failed) = self.attempt(token, hint).await else { return Ok(()) };
            let FailedAttempt { failure, status, asked_wait, error } = failed;
            let elapsed = begun.elapsed();
            match pace.next(failure, attempt, asked_wait, elapsed, fastrand::f64()) {
                Next::TryAfter(wait) => sleep(wait).await,
                Next::End => {
                    let error = error
                        .with_attempts(attempt)
                        .with_token_endpoint(|| host_and_port(self.endpoint));
                    return Err(match status {
                        Some(status) => error.with_status(status),
                        None => error,
                    });
                }
            }
        }
    }

    async fn attempt(&self, token: &str, hint: &str) -> Result<(), FailedAttempt> {
        let Self { settings, http, token_endpoint, endpoint, tokens } = self;
        let mut made = Vec::new();
        let mut limit = Limit::after(settings.attempt_timeout);
        let response = request::exchange(
            http,
            &mut limit,
            &Prover::of_logout(),
            || settings.revocation_request(token_endpoint, endpoint, token, hint),
            || std::future::ready(true),
            |request| made = std::mem::take(&mut request.made),
        )
        .await;
        match response {
            // RFC 7009 §2.2: the status alone decides, and an unknown token counts as revoked.
            Ok(response) if response.status.is_success() => Ok(()),
            Ok(response) => Err(self.rejected(&response, &made, hint)),
            Err(call_error) => {
                let secrets = settings.secrets([*tokens], &made);
                let CallFailed { failure, status, cause } = call_error.read(&secrets);
                let error = Error::new(failure.kind(), cause);
                Err(FailedAttempt { failure, status, asked_wait: None, error })
            }
        }
    }

    fn rejected(
        &self,
        response: &RawResponse,
        made: &[Zeroizing<String>],
        hint: &str,
    ) -> FailedAttempt {
        let failure = rejected(response.status, &Members::default());
        let mut error = Error::new(failure.kind(), format!("the {hint} could not be revoked"));
        let said: Option<Said> = serde_json::from_slice(&response.body.bytes).ok();
        if let Some(code) = said.and_then(|said| said.error) {
            let code = match known_code(&code) {
                Some(known) => Some(known.to_owned()),
                None => self.settings.secrets([self.tokens], made).clean(&code),
            };
            if let Some(code) = code {
                error = error.with_escaped_oauth_error(&code);
            }
        }
        FailedAttempt {
            failure,
            status: Some(response.status),
            asked_wait: asked_wait(&response.headers, wall()),
            error,
        }
    }
}

/// RFC 7009 §2.2.1.
#[derive(Deserialize)]
struct Said {
    error: Option<String>,
}
