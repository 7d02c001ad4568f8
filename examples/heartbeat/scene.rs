//! The server, and what it does to a heartbeat.
//!
//! The causes of each event:
//! - captured: the heartbeat moves beats into the last fifth of each token's lifetime, and the
//!   job's own requests fall into it too.
//! - rejected and replayed: two lifetimes after the start, the server stands still for one lifetime
//!   and a second. The tokens of the held requests have then expired, so they get 403, and only the
//!   refresh token is left.
//! - refreshed: the token endpoint accepts each refresh token once. An nginx in front of it
//!   responds with 502, then with 503 and `Retry-After: 1`, then passes the call on. This happens
//!   once every five lifetimes.
//!
//! With `--grace` the same standstill needs no refresh.

use std::{env, sync::Arc, time::Duration};

use reqwest::Url;
use reqwest_reauth::{
    OAuthRefresh, Session, Tokens,
    testing::{Answer, AuthServer, Refusal},
};
use tokio::task::JoinHandle;

use crate::{AnyError, options::Options, story::Story};

/// The server and its session.
pub(crate) struct Scene {
    pub(crate) introduction: String,
    pub(crate) session: Session,
    pub(crate) beat: String,
    pub(crate) job: Option<String>,
    pub(crate) server: Option<Arc<AuthServer>>,
    troubles: Option<JoinHandle<()>>,
}

impl Scene {
    pub(crate) async fn embedded(options: &Options, story: &Arc<Story>) -> Result<Self, AnyError> {
        let mut server = AuthServer::builder()
            .lifetime(options.ttl)
            .reissue_after(0.8)
            .refusal(Refusal::Forbidden403);
        if options.grace {
            server = server.grace(options.ttl * 5);
        }
        let server = Arc::new(server.start().await);
        let session = Session::builder(server.login_as("job-7"))
            .origin(server.origin())
            .refresher(OAuthRefresh::new(server.cookie_token_endpoint()))
            // New tokens come through the header here. The token endpoint is only for when that has
            // failed.
            .refresh_ahead(Duration::ZERO)
            .on_event(story.listener())
            .build()?;
        let grace = if options.grace {
            ", and takes expired ones for a while"
        } else {
            ", and rejects expired ones with 403"
        };
        let troubles = tokio::spawn(troubles(Arc::clone(&server), options.ttl, Arc::clone(story)));
        Ok(Self {
            introduction: format!(
                "{} reissues {:?} tokens in their last fifth{grace}",
                server.origin(),
                options.ttl
            ),
            session,
            beat: server.url("/jobs/7/heartbeat?status=204"),
            job: Some(server.url("/jobs/7/progress")),
            server: Some(server),
            troubles: Some(troubles),
        })
    }

    pub(crate) fn real(options: &Options, url: &Url, story: &Arc<Story>) -> Result<Self, AnyError> {
        let variable = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
        let access = variable("REAUTH_ACCESS_TOKEN").ok_or("REAUTH_ACCESS_TOKEN is not set")?;
        let mut tokens = Tokens::new(access)?;
        if let Some(refresh) = variable("REAUTH_REFRESH_TOKEN") {
            tokens = tokens.with_refresh_token(refresh)?;
        }
        let origin = url.origin().ascii_serialization();
        let mut session =
            Session::builder(tokens).name("heartbeat").origin(&origin).on_event(story.listener());
        if let Some(endpoint) = variable("REAUTH_TOKEN_ENDPOINT") {
            let refresher = OAuthRefresh::new(endpoint);
            session = session.refresher(match variable("REAUTH_CLIENT_ID") {
                Some(id) => refresher.client_id(id),
                None => refresher,
            });
        }
        let session = session.build()?;
        Ok(Self {
            introduction: format!("{} {}", options.method, options.beat_url(url)),
            session,
            beat: options.beat_url(url),
            job: None,
            server: None,
            troubles: None,
        })
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        if let Some(troubles) = &self.troubles {
            troubles.abort();
        }
    }
}

/// Two lifetimes after the start, and then every five lifetimes, the server stands still until
/// every token has expired.
async fn troubles(server: Arc<AuthServer>, ttl: Duration, story: Arc<Story>) {
    tokio::time::sleep(ttl * 2).await;
    loop {
        server.script_token_endpoint([
            Answer::Status(502),
            Answer::StatusRetryAfter(503, Duration::from_secs(1)),
        ]);
        let standstill = ttl + Duration::from_secs(1);
        let hold = server.hold_api();
        tokio::time::sleep(standstill).await;
        story.add_news(format!("standstill of {standstill:?}"));
        hold.release();
        tokio::time::sleep((ttl * 5).saturating_sub(standstill)).await;
    }
}
