//! What the token endpoint receives (RFC 6749 §6), through the default client and through the
//! user's client.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{Extensions, HeaderValue};
use reqwest::{Client, Request, Response, redirect};
use reqwest_middleware::{ClientBuilder, Middleware, Next};
use reqwest_retry::{RetryTransientMiddleware, policies::ExponentialBackoff};

use super::*;

#[tokio::test]
async fn asks_by_post_with_a_form_and_for_json() {
    let endpoint = TokenEndpoint::start([Reply::token()]).await;
    let (result, log) = run(&quick(&endpoint)).await;
    let tokens = result.unwrap();
    assert_eq!(access(&tokens), "new-access");
    assert_eq!(refresh(&tokens), Some("new-refresh-token"));
    let seen = endpoint.seen();
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].line, "POST /token HTTP/1.1");
    assert_eq!(seen[0].form, "grant_type=refresh_token&refresh_token=old-refresh-token");
    assert_eq!(seen[0].header("accept"), Some("application/json"));
    assert_eq!(seen[0].header("content-type"), Some("application/x-www-form-urlencoded"));
    assert_eq!(seen[0].header("accept-encoding"), Some("identity"));
    assert_eq!(
        seen[0].header("user-agent"),
        Some(concat!("reqwest-reauth/", env!("CARGO_PKG_VERSION")))
    );
    for absent in ["authorization", "cookie"] {
        assert_eq!(seen[0].header(absent), None);
    }
    assert!(log.retries().is_empty() && log.kept().is_empty());
}

#[tokio::test]
async fn each_way_of_naming_the_client() {
    let endpoint = TokenEndpoint::start([Reply::token()]).await;
    let form = "grant_type=refresh_token&refresh_token=old-refresh-token";
    let table = [
        (quick(&endpoint).client_id("me"), None, format!("{form}&client_id=me")),
        (
            quick(&endpoint).client_secret_post("me", "a&b"),
            None,
            format!("{form}&client_id=me&client_secret=a%26b"),
        ),
        (quick(&endpoint).client_secret_basic("me", "s"), Some("me:s"), form.to_owned()),
        (
            quick(&endpoint).client_secret_basic("m:e", "p%w d/+"),
            Some("m%3Ae:p%25w+d%2F%2B"),
            form.to_owned(),
        ),
        (
            quick(&endpoint).client_secret_basic_raw("m e", "~+/=$!:%ü"),
            Some("m e:~+/=$!:%ü"),
            form.to_owned(),
        ),
        (
            quick(&endpoint).client_id("x").client_secret_basic("me", "s"),
            Some("me:s"),
            form.to_owned(),
        ),
        (
            quick(&endpoint).scope("a b").param("resource", "https://x/").param("n", ""),
            None,
            format!("{form}&scope=a+b&resource=https%3A%2F%2Fx%2F&n="),
        ),
    ];
    for (number, (refresher, basic, form)) in table.into_iter().enumerate() {
        run(&refresher).await.0.unwrap();
        let seen = &endpoint.seen()[number];
        let basic = basic.map(|pair| format!("Basic {}", STANDARD.encode(pair)));
        assert_eq!(seen.header("authorization"), basic.as_deref());
        assert_eq!(seen.form, form);
    }
}

#[tokio::test]
async fn redirects_of_the_form_are_not_followed() {
    let other = TokenEndpoint::start([Reply::token()]).await;
    for status in [301, 302, 303, 307, 308] {
        let (result, _, endpoint) =
            answered(Reply::with(status, &[&format!("Location: {}", other.url)], "")).await;
        let error = result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BadResponse);
        assert_eq!(error.status().unwrap().as_u16(), status);
        assert!(!error.possibly_consumed());
        assert_eq!(endpoint.count(), 1);
        assert_eq!(other.count(), 0);
    }
}

/// Adds a header.
struct Marks;

#[async_trait]
impl Middleware for Marks {
    async fn handle(
        &self,
        mut request: Request,
        ext: &mut Extensions,
        next: Next<'_>,
    ) -> reqwest_middleware::Result<Response> {
        request.headers_mut().insert("x-mark", HeaderValue::from_static("yes"));
        next.run(request, ext).await
    }
}

#[tokio::test]
async fn a_user_agent_of_the_clients_own_stays() {
    let endpoint = TokenEndpoint::start([Reply::token()]).await;
    let ours = concat!("reqwest-reauth/", env!("CARGO_PKG_VERSION"));
    let agent = |name: &str| Client::builder().user_agent(name).build().unwrap();
    for (client, expected) in
        [(Client::new(), ours), (agent("their-own/1"), "their-own/1"), (agent("a\"b"), "a\"b")]
    {
        let client = ClientBuilder::new(client).with(Marks).build();
        run(&quick(&endpoint).http_client(client)).await.0.unwrap();
        assert_eq!(endpoint.seen().last().unwrap().header("user-agent"), Some(expected));
    }
}

#[tokio::test]
async fn a_redirect_to_another_origin_is_not_believed() {
    let elsewhere = TokenEndpoint::start([Reply::token()]).await;
    let endpoint =
        TokenEndpoint::start([Reply::with(307, &[&format!("Location: {}", elsewhere.url)], "")])
            .await;
    let client = Client::builder().redirect(redirect::Policy::limited(3)).build().unwrap();
    let (result, log) = run(&quick(&endpoint).http_client(client)).await;
    let error = result.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ClientRejected);
    assert_eq!(error.attempts(), 1);
    assert!(error.possibly_consumed());
    let origin = elsewhere.url.strip_suffix("/token").unwrap();
    assert!(texts(&error).contains(origin), "{}", texts(&error));
    assert_eq!(endpoint.count(), 1);
    assert_eq!(elsewhere.count(), 1);
    assert_eq!(log.kept().len(), 0);
}

#[tokio::test]
async fn a_passed_in_client_is_used_whole() {
    let first = TokenEndpoint::start([
        Reply::status(503),
        Reply::with(307, &["Location: /other"], ""),
        Reply::token(),
    ])
    .await;
    let client = Client::builder().redirect(redirect::Policy::limited(3)).build().unwrap();
    let client = ClientBuilder::new(client).with(Marks).build();
    let (result, log) = run(&quick(&first).http_client(client)).await;
    assert_eq!(access(&result.unwrap()), "new-access");
    assert_eq!(log.retried_statuses(), [(1, Some(503))]);
    // The user's client keeps its own redirect policy.
    assert_eq!(first.count(), 3);
    for seen in first.seen() {
        assert_eq!(seen.header("x-mark"), Some("yes"));
    }
}

#[tokio::test]
async fn a_redirect_loop_is_client_rejected() {
    let endpoint = TokenEndpoint::start([Reply::with(307, &["Location: /token"], "")]).await;
    let client = Client::builder().redirect(redirect::Policy::limited(2)).build().unwrap();
    let (result, log) = run(&quick(&endpoint).http_client(client)).await;
    assert_eq!(result.unwrap_err().kind(), ErrorKind::ClientRejected);
    assert_eq!(endpoint.count(), 3);
    assert_eq!(log.retries().len(), 0);
}

/// Fails instead of sending.
struct Refuses(Refusal);

type Refusal = fn() -> reqwest_middleware::Error;

#[async_trait]
impl Middleware for Refuses {
    async fn handle(
        &self,
        _: Request,
        _: &mut Extensions,
        _: Next<'_>,
    ) -> reqwest_middleware::Result<Response> {
        Err(self.0())
    }
}

#[tokio::test]
async fn an_unsendable_request_quotes_no_secret() {
    let endpoint = TokenEndpoint::start([Reply::token()]).await;
    let table: [(Refusal, &str); 3] = [
        (
            || reqwest_middleware::Error::Middleware(anyhow::anyhow!("quota used up")),
            "quota used up",
        ),
        (
            || {
                reqwest_middleware::Error::Middleware(anyhow::anyhow!(
                    "will not send old-refresh-token"
                ))
            },
            "contains a secret",
        ),
        (|| Error::of(ErrorKind::NoSession).into(), "no session in this task's scope"),
    ];
    for (refuse, expected) in table {
        let client = ClientBuilder::new(Client::new()).with(Refuses(refuse)).build();
        let (result, log) = run(&quick(&endpoint).http_client(client)).await;
        let error = result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert_eq!(error.attempts(), 1);
        assert!(!error.possibly_consumed());
        assert!(
            texts(&error).contains(expected) && !texts(&error).contains(OLD),
            "{}",
            texts(&error)
        );
        assert!(log.retries().is_empty());
    }
    assert_eq!(endpoint.count(), 0);
}

/// A port that refuses connections, and that nobody else gets while the socket lives.
fn closed_port() -> (tokio::net::TcpSocket, String) {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let url = format!("http://{}/token?key=url-secret", socket.local_addr().unwrap());
    (socket, url)
}

#[tokio::test]
async fn connect_errors_consume_nothing() {
    let (_port, url) = closed_port();
    let refresher = || {
        OAuthRefresh::new(&url)
            .backoff(Duration::ZERO, Duration::ZERO)
            .max_attempts(3)
            .retry_lost(false)
    };
    let own_retry = || {
        RetryTransientMiddleware::new_with_policy(
            ExponentialBackoff::builder().build_with_max_retries(0),
        )
    };
    let table = [
        refresher(),
        refresher().http_client(Client::new()),
        refresher().http_client(ClientBuilder::new(Client::new()).with(own_retry()).build()),
        refresher().http_client(
            ClientBuilder::new(Client::new()).with(own_retry()).with(own_retry()).build(),
        ),
        refresher().http_client(
            ClientBuilder::new(Client::new()).with(AddsContext).with(own_retry()).build(),
        ),
        refresher().http_client(ClientBuilder::new(Client::new()).with(WrapsInItsOwn).build()),
    ];
    for refresher in table {
        let (result, log) = run(&refresher).await;
        let error = result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert_eq!(error.attempts(), 3);
        assert_eq!(error.status(), None);
        assert!(!error.possibly_consumed());
        assert_eq!(log.retried_statuses(), [(1, None), (2, None)]);
        assert!(error.source().is_some());
        assert!(!texts(&error).contains("url-secret"), "{}", texts(&error));
    }
}

struct AddsContext;

#[async_trait]
impl Middleware for AddsContext {
    async fn handle(
        &self,
        request: Request,
        ext: &mut Extensions,
        next: Next<'_>,
    ) -> reqwest_middleware::Result<Response> {
        match next.run(request, ext).await {
            Err(reqwest_middleware::Error::Middleware(error)) => {
                Err(error.context("while asking").into())
            }
            other => other,
        }
    }
}

struct WrapsInItsOwn;

#[derive(Debug, thiserror::Error)]
#[error("its own")]
struct ItsOwn(#[source] reqwest::Error);

#[async_trait]
impl Middleware for WrapsInItsOwn {
    async fn handle(
        &self,
        request: Request,
        ext: &mut Extensions,
        next: Next<'_>,
    ) -> reqwest_middleware::Result<Response> {
        match next.run(request, ext).await {
            Err(reqwest_middleware::Error::Reqwest(error)) => {
                Err(reqwest_middleware::Error::middleware(ItsOwn(error)))
            }
            other => other,
        }
    }
}

struct ErrorForStatus;

#[async_trait]
impl Middleware for ErrorForStatus {
    async fn handle(
        &self,
        request: Request,
        ext: &mut Extensions,
        next: Next<'_>,
    ) -> reqwest_middleware::Result<Response> {
        Ok(next.run(request, ext).await?.error_for_status()?)
    }
}

#[tokio::test]
async fn a_client_that_errors_on_status_works() {
    for wrapped in [false, true] {
        let endpoint = TokenEndpoint::start([Reply::status(503), Reply::status(403)]).await;
        let client = ClientBuilder::new(Client::new());
        let client = if wrapped { client.with(WrapsInItsOwn) } else { client };
        let (result, log) =
            run(&quick(&endpoint).http_client(client.with(ErrorForStatus).build())).await;
        let error = result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ClientRejected, "{wrapped}");
        assert_eq!(error.status(), Some(StatusCode::FORBIDDEN), "{wrapped}");
        assert_eq!(log.retried_statuses(), [(1, Some(503))], "{wrapped}");
    }
}
