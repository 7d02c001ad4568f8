//! One call to the token endpoint: the client's authentication, and a response read within limits.

use std::{future::Future, iter::once, sync::OnceLock};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use form_urlencoded::byte_serialize;
use http::{
    HeaderMap, HeaderValue, StatusCode,
    header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_TYPE, USER_AGENT},
};
use reqwest::{Client, Response, redirect, retry};
use reqwest_middleware::ClientWithMiddleware;
use url::Url;
use zeroize::Zeroizing;

use super::{
    body::{BODY_LIMIT, Body, End, append},
    failure::{Cause, Failure},
    parameters::NotMade,
    proof::{Carried, Prover},
    redact::{Secrets, foreign},
    settings::{ClientAuth, Settings},
    transport::{self, Named, Transport, unwrapped},
    wire::{RawResponse, TokenRequest},
};
use crate::{
    anonymous::Anonymous,
    error::{Error, ErrorKind},
    time::Limit,
};

pub(super) enum CallError {
    NotMade(NotMade),
    /// The parameters were not computed in time.
    NotMadeInTime,
    /// The session now has another refresh token, or must make no more calls.
    Superseded,
    TimedOut,
    /// The client followed a redirect, and the response comes from this other origin.
    Strayed(StatusCode, String),
    Failed(reqwest_middleware::Error),
}

/// A call without a response.
pub(super) struct CallFailed {
    pub(super) failure: Failure,
    pub(super) status: Option<StatusCode>,
    pub(super) cause: Cause,
}

impl CallError {
    pub(super) fn read(self, secrets: &Secrets) -> CallFailed {
        let (failure, status, cause): (_, _, Cause) = match self {
            Self::NotMade(not_made) => (not_made.failure(), None, not_made.cause(secrets)),
            Self::NotMadeInTime => {
                (Failure::Unreached, None, "the parameters were not ready in time".into())
            }
            Self::Superseded => {
                (Failure::Unreached, None, "another process has used the store meanwhile".into())
            }
            Self::TimedOut => (Failure::Lost, None, "the attempt timed out".into()),
            Self::Strayed(status, origin) => {
                tracing::error!(
                    target: "reqwest_reauth",
                    %origin,
                    "the token endpoint redirected to another origin: its response is not used"
                );
                let cause = format!("the token endpoint redirected to another origin, {origin}");
                (Failure::Strayed, Some(status), cause.into())
            }
            Self::Failed(error) => match unwrapped(error) {
                Transport::Own(error) => {
                    let (status, failure) = (error.status(), transport::failure(&error));
                    let cause = match transport::blocked(&error) {
                        Some(what) => Named { what, source: error.without_url() }.into(),
                        None => error.without_url().into(),
                    };
                    (failure, status, cause)
                }
                Transport::Inside(failure, status) => {
                    (failure, status, "the request failed in the client's middleware".into())
                }
                Transport::Foreign(error) => (Failure::Down, None, foreign(&error, secrets)),
            },
        };
        CallFailed { failure, status, cause }
    }
}

/// Builds a request and sends it. The attempt's time limit covers building it, its headers and its
/// body. If the limit runs out after the headers have arrived, the response still counts.
///
/// With a key, the request carries a proof. If the endpoint demands a nonce and `may_repeat` returns
/// `true`, the request is built and sent once more. `sends` is called for each request before it is
/// sent.
pub(super) async fn exchange<R, M>(
    http: &ClientWithMiddleware,
    limit: &mut Limit,
    prover: &Prover,
    make: impl Fn() -> R,
    may_repeat: impl Fn() -> M,
    mut sends: impl FnMut(&mut TokenRequest),
) -> Result<RawResponse, CallError>
where
    R: Future<Output = Result<TokenRequest, NotMade>>,
    M: Future<Output = bool>,
{
    let mut was_challenged = false;
    loop {
        let (mut request, carried) = made(limit, prover, make()).await?;
        sends(&mut request);
        let endpoint = request.endpoint.clone();
        let mut response = ask(http, request, limit).await?;
        let asks_again = prover.asks_again(&endpoint, &response, &carried);
        if !asks_again || was_challenged {
            response.is_bound = prover.is_bound();
            response.was_challenged = was_challenged;
            return Ok(response);
        }
        if !may_repeat().await {
            return Err(CallError::Superseded);
        }
        was_challenged = true;
    }
}

async fn made(
    limit: &mut Limit,
    prover: &Prover,
    building: impl Future<Output = Result<TokenRequest, NotMade>>,
) -> Result<(TokenRequest, Carried), CallError> {
    let proving = async {
        let mut request = building.await?;
        let carried = prover.prove(&mut request).await?;
        Ok((request, carried))
    };
    match limit.run(proving).await {
        Ok(made) => made.map_err(CallError::NotMade),
        Err(_) => Err(CallError::NotMadeInTime),
    }
}

async fn ask(
    http: &ClientWithMiddleware,
    request: TokenRequest,
    limit: &mut Limit,
) -> Result<RawResponse, CallError> {
    let TokenRequest { endpoint, headers, form, .. } = request;
    let request = http
        .post(endpoint.clone())
        .headers(headers)
        .body(Bytes::from_owner(form))
        // The user's client may contain this crate's chain, which would sign the request or wait
        // for this very refresh.
        .with_extension(Anonymous);
    let response = limit
        .run(request.send())
        .await
        .map_err(|_| CallError::TimedOut)?
        .map_err(CallError::Failed)?;
    let status = response.status();
    if is_elsewhere(response.url(), &endpoint) {
        return Err(CallError::Strayed(status, response.url().origin().ascii_serialization()));
    }
    let headers = response.headers().clone();
    let body = read(response, limit).await;
    Ok(RawResponse::new(status, headers, body))
}

/// Whether a response comes from another origin than the endpoint. A response that middleware has
/// made up has no URL; `reqwest` then reports a placeholder.
fn is_elsewhere(url: &Url, endpoint: &Url) -> bool {
    url.origin() != endpoint.origin() && url.host_str() != Some("no.url.provided.local")
}

/// The user's client, or the default client.
pub(super) fn client(settings: &Settings) -> Result<ClientWithMiddleware, Error> {
    match &settings.http {
        Some(http) => Ok(http.clone()),
        None => default_client()
            .map(Into::into)
            .map_err(|error| Error::new(ErrorKind::InvalidConfig, error.without_url())),
    }
}

/// The client of the process, built on first use. It keeps no idle connections, because a pooled
/// connection may belong to a runtime that is gone, and a stale one can lose a single-use token. It
/// decodes nothing, because a compressed body can expand without limit.
fn default_client() -> reqwest::Result<Client> {
    static CLIENT: OnceLock<Client> = OnceLock::new();
    if let Some(client) = CLIENT.get() {
        return Ok(client.clone());
    }
    let client = Client::builder()
        .redirect(redirect::Policy::none())
        .retry(retry::never())
        .pool_max_idle_per_host(0)
        .no_gzip()
        .no_brotli()
        .no_deflate()
        .no_zstd()
        .build()?;
    Ok(CLIENT.get_or_init(|| client).clone())
}

/// Allocates once at full size, so that no shorter copy is left unwiped.
pub(super) fn joined<'t>(pieces: impl Iterator<Item = &'t str>) -> Zeroizing<String> {
    Zeroizing::new(pieces.collect::<Vec<_>>().concat())
}

pub(super) fn headers(settings: &Settings) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
    // Some firewalls respond with 403 to requests without a `User-Agent`
    // (planningcenter/developers#1310).
    if !settings.http.as_ref().is_some_and(has_user_agent) {
        headers.insert(USER_AGENT, HeaderValue::from_static(OUR_USER_AGENT));
    }
    let basic = match &settings.client {
        ClientAuth::Basic { id, secret } => basic(id, secret),
        ClientAuth::BasicRaw { id, secret } => basic_raw(id, secret),
        ClientAuth::Unnamed
        | ClientAuth::Public { .. }
        | ClientAuth::Post { .. }
        | ClientAuth::Assertion { .. } => return headers,
    };
    // Base64 is always a valid header value.
    if let Ok(mut value) = HeaderValue::from_maybe_shared(Bytes::from_owner(basic)) {
        value.set_sensitive(true);
        headers.insert(AUTHORIZATION, value);
    }
    headers
}

const OUR_USER_AGENT: &str = concat!("reqwest-reauth/", env!("CARGO_PKG_VERSION"));

/// Whether a client has a default `User-Agent`. `reqwest` adds default headers below all
/// middleware, only if the request lacks them, and exposes them only in its `Debug`.
fn has_user_agent(client: &ClientWithMiddleware) -> bool {
    let inner: &Client = client.as_ref();
    format!("{inner:?}").contains("\"user-agent\": ")
}

/// RFC 6749 §2.3.1: id and secret are form-encoded before they are joined. Real servers reject
/// reserved characters otherwise.
pub(super) fn basic(id: &str, secret: &str) -> Zeroizing<String> {
    basic_of(&joined(
        byte_serialize(id.as_bytes()).chain(once(":")).chain(byte_serialize(secret.as_bytes())),
    ))
}

/// RFC 7617: id and secret unchanged, for servers that do not decode them.
pub(super) fn basic_raw(id: &str, secret: &str) -> Zeroizing<String> {
    basic_of(&joined([id, ":", secret].into_iter()))
}

fn basic_of(pair: &str) -> Zeroizing<String> {
    const SCHEME: &str = "Basic ";
    let mut value =
        Zeroizing::new(String::with_capacity(SCHEME.len() + pair.len().div_ceil(3) * 4));
    value.push_str(SCHEME);
    STANDARD.encode_string(pair.as_bytes(), &mut value);
    value
}

async fn read(mut response: Response, limit: &mut Limit) -> Body {
    let mut bytes = Zeroizing::new(Vec::new());
    let read = limit.run(async {
        loop {
            match response.chunk().await {
                Ok(Some(chunk)) => {
                    let (taken, left) = chunk.split_at(chunk.len().min(BODY_LIMIT - bytes.len()));
                    append(&mut bytes, taken);
                    if !left.is_empty() {
                        return End::TooLarge;
                    }
                }
                Ok(None) => return End::Whole,
                Err(_) => return End::Cut,
            }
        }
    });
    let end = read.await.unwrap_or(End::Cut);
    Body { bytes, end }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::OAuthRefresh;

    #[test]
    fn basic_raw_encodes_nothing() {
        let encoded = |pair: &str| format!("Basic {}", STANDARD.encode(pair));
        assert_eq!(*basic_raw("a b", "~+/=$!:%ü"), encoded("a b:~+/=$!:%ü"));
    }

    #[test]
    fn basic_form_encodes_id_and_secret_first() {
        let encoded = |pair: &str| format!("Basic {}", STANDARD.encode(pair));
        assert_eq!(*basic("id", "secret"), encoded("id:secret"));
        assert_eq!(*basic("a:b", "p%q r+ü/"), encoded("a%3Ab:p%25q+r%2B%C3%BC%2F"));
        let refresher =
            OAuthRefresh::new("https://t.example.com").client_secret_basic("id", "secret");
        let headers = headers(&refresher.0);
        assert!(headers[AUTHORIZATION].is_sensitive());
        assert!(!format!("{headers:?}").contains(&STANDARD.encode("id:secret")));
    }
}
