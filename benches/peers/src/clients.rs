//! The contestants: the setup of each, and one GET through it.

use std::{error::Error, future::Future, pin::Pin, sync::Arc, time::Duration};

use aliri_reqwest::AccessTokenMiddleware;
use aliri_tokens::{
    TokenWatcher, backoff::ErrorBackoffConfig, jitter::NullJitter, sources::ConstTokenSource,
};
use http::{Extensions, HeaderValue, header};
use predicates::prelude::predicate;
use reqwest::{Request, Response, StatusCode};
use reqwest_auth::AuthorizationHeaderMiddleware;
use reqwest_middleware::{ClientBuilder, Middleware, Next, Result};
use reqwest_reauth::{ClientBuilderExt, Session, Tokens, refresh_with};
use token_source::TokenSource;
use tokio::sync::Mutex;

use crate::server::TOKEN;

/// Sends one request, reads the response, and returns the status.
pub type Client = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = u16> + Send>> + Send + Sync>;

pub struct Contestant {
    pub name: &'static str,
    pub client: Client,
    /// Plain reqwest of the same version.
    pub plain: Client,
}

/// A client from an expression that makes a request builder, whatever the types of the reqwest
/// behind it.
macro_rules! client {
    ($client:ident, $url:ident => $request:expr) => {{
        let ($client, $url) = ($client, $url.to_owned());
        Arc::new(move || {
            let request =
                $request.header(header::ACCEPT, HeaderValue::from_static("application/json"));
            Box::pin(async move {
                let response = request.send().await.unwrap();
                let status = response.status().as_u16();
                response.bytes().await.unwrap();
                status
            }) as Pin<Box<dyn Future<Output = u16> + Send>>
        }) as Client
    }};
}

pub async fn contestants(url: &str) -> Vec<Contestant> {
    let bearer = HeaderValue::from_str(&format!("Bearer {TOKEN}")).unwrap();
    let plain = {
        let (client, bearer) = (reqwest::Client::new(), bearer.clone());
        client!(client, url => client.get(&url).header(header::AUTHORIZATION, bearer.clone()))
    };
    let plain_again = {
        let (client, bearer) = (reqwest::Client::new(), bearer.clone());
        client!(client, url => client.get(&url).header(header::AUTHORIZATION, bearer.clone()))
    };
    let plain_old = {
        let (client, bearer) = (reqwest_old::Client::new(), bearer.clone());
        client!(client, url => client.get(&url).header(header::AUTHORIZATION, bearer.clone()))
    };
    let bare = {
        let client = ClientBuilder::new(reqwest::Client::new()).build();
        client!(client, url => client.get(&url).header(header::AUTHORIZATION, bearer.clone()))
    };
    let reauth = {
        let client = ClientBuilder::new(reqwest::Client::new()).with_session(session(url)).build();
        client!(client, url => client.get(&url))
    };
    let by_hand = {
        let client = ClientBuilder::new(reqwest::Client::new())
            .with(ByHand { token: Mutex::new(TOKEN.to_owned()) })
            .build();
        client!(client, url => client.get(&url))
    };
    let aliri = {
        let source = ConstTokenSource::new(TOKEN);
        let watcher = TokenWatcher::spawn_from_token_source(
            source,
            NullJitter,
            ErrorBackoffConfig::default(),
        )
        .await
        .unwrap();
        let middleware = AccessTokenMiddleware::new(watcher).with_predicate(predicate::always());
        let client = reqwest_middleware_old::ClientBuilder::new(reqwest_old::Client::new())
            .with(middleware)
            .build();
        client!(client, url => client.get(&url))
    };
    let reqwest_auth = {
        let source: Arc<dyn TokenSource> = Arc::new(Constant(format!("Bearer {TOKEN}")));
        let middleware = AuthorizationHeaderMiddleware::from(source);
        let client = reqwest_middleware_old::ClientBuilder::new(reqwest_old::Client::new())
            .with(middleware)
            .build();
        client!(client, url => client.get(&url))
    };
    let contestant =
        |name, client, plain: &Client| Contestant { name, client, plain: Arc::clone(plain) };
    vec![
        contestant("reqwest-reauth, the whole chain", reauth, &plain),
        contestant("mutex, copy and retry by hand", by_hand, &plain),
        contestant("aliri_reqwest 0.5 (reqwest 0.12)", aliri, &plain_old),
        contestant("reqwest-auth 1.0 (reqwest 0.12)", reqwest_auth, &plain_old),
        contestant("reqwest-middleware 0.5, nothing in it", bare, &plain),
        contestant("plain reqwest against itself", plain_again, &plain),
    ]
}

fn session(url: &str) -> Session {
    let tokens = Tokens::new(TOKEN).unwrap().with_refresh_token("a-refresh-token").unwrap();
    Session::builder(tokens.with_expires_in(Duration::from_secs(3600)))
        .origin(url)
        .refresher(refresh_with(|tokens| async move { Ok(tokens) }))
        .build()
        .unwrap()
}

#[derive(Debug)]
struct Constant(String);

#[async_trait::async_trait]
impl TokenSource for Constant {
    async fn token(&self) -> std::result::Result<String, Box<dyn Error + Send + Sync>> {
        Ok(self.0.clone())
    }
}

/// A common hand-written client: the token behind a mutex, a copy of each request, and a new token
/// and one retry after a 401.
struct ByHand {
    token: Mutex<String>,
}

#[async_trait::async_trait]
impl Middleware for ByHand {
    async fn handle(
        &self,
        mut request: Request,
        extensions: &mut Extensions,
        next: Next<'_>,
    ) -> Result<Response> {
        let again = request.try_clone();
        let token = self.token.lock().await.clone();
        sign(&mut request, &token);
        let response = next.clone().run(request, extensions).await?;
        match again {
            Some(mut again) if response.status() == StatusCode::UNAUTHORIZED => {
                let mut current = self.token.lock().await;
                // Another thread may have been faster.
                if *current == token {
                    *current = TOKEN.to_owned();
                }
                sign(&mut again, &current);
                drop(current);
                next.run(again, extensions).await
            }
            _ => Ok(response),
        }
    }
}

fn sign(request: &mut Request, token: &str) {
    let value = HeaderValue::from_str(&format!("Bearer {token}")).unwrap();
    request.headers_mut().insert(header::AUTHORIZATION, value);
}
