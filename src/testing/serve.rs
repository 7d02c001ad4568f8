//! Scripts, holds and records around the two endpoints. [`api`](super::api) and
//! [`token_endpoint`](super::token_endpoint) build the responses, and [`shared`](super::shared)
//! holds the common state.

use std::{
    future::Future,
    sync::{Arc, atomic::Ordering},
};

use axum::{
    Router,
    body::Body,
    extract::{ConnectInfo, Request, State as Extract},
    routing::any,
};
use bytes::Bytes;
use http::{Response, StatusCode, request::Parts};
use tokio::net::TcpListener;

use super::{
    answer::{self, Answer},
    api,
    log::Recorded,
    shared::Shared,
    token_endpoint::{self, Style},
    wire::{Loopback, Wire},
};

pub(super) const TOKEN_PATH: &str = "/oauth/token";
pub(super) const COOKIE_TOKEN_PATH: &str = "/oauth/access_token";
const MOST_BODY_BYTES: usize = 64 << 20;

/// Serves until the server is dropped. Open requests still get their responses.
pub(super) fn run(listener: TcpListener, shared: &Arc<Shared>) -> impl Future<Output = ()> + use<> {
    let token = |style| {
        any(
            move |Extract(shared): Extract<Arc<Shared>>,
                  ConnectInfo(wire): ConnectInfo<Wire>,
                  request: Request| async move {
                token_call(shared, wire, style, request).await
            },
        )
    };
    let router = Router::new()
        .route(TOKEN_PATH, token(Style::Json))
        .route(COOKIE_TOKEN_PATH, token(Style::Cookies))
        .fallback(api_request)
        .with_state(Arc::clone(shared));
    let until = Arc::clone(shared);
    async move {
        let service = router.into_make_service_with_connect_info::<Wire>();
        let stopped = async move { until.stopped().await };
        // `serve` never returns an error.
        let _ = axum::serve(Loopback(listener), service).with_graceful_shutdown(stopped).await;
    }
}

async fn api_request(
    Extract(shared): Extract<Arc<Shared>>,
    ConnectInfo(wire): ConnectInfo<Wire>,
    request: Request,
) -> Response<Body> {
    let Ok((parts, body)) = read(request).await else {
        return too_large();
    };
    let (number, scripted) = {
        let mut state = shared.state();
        let presented = api::presented(&shared, &parts)
            .and_then(|token| state.grants.judge(token, shared.now()).0);
        let (subject, id) = presented.map(|presented| (presented.subject, presented.id)).unzip();
        state.log.count(subject.as_deref(), |counts| counts.api_hits += 1);
        let number = state.log.api.add(record(&parts, &body, subject, id));
        (number, state.api_script.pop_front().unwrap_or(Answer::Work))
    };
    shared.api_gate.pass().await;
    let work = || api::respond(&shared, &parts, &body, number);
    let mut response = perform(&shared, &wire, scripted, work).await;
    add_nonce(&shared, true, &mut response);
    shared.state().log.api.complete(number, |record| record.status = Some(response.status()));
    response
}

async fn token_call(
    shared: Arc<Shared>,
    wire: Wire,
    style: Style,
    request: Request,
) -> Response<Body> {
    let Ok((parts, body)) = read(request).await else {
        return too_large();
    };
    let _in_flight = InFlight::one_more(&shared);
    let (number, scripted) = {
        let mut state = shared.state();
        let subject =
            token_endpoint::refresh_token(&body).and_then(|token| state.grants.subject_of(&token));
        state.log.count(subject.as_deref(), |counts| counts.token_calls += 1);
        let number = state.log.token.add(record(&parts, &body, subject, None));
        (number, state.token_script.pop_front().unwrap_or(Answer::Work))
    };
    shared.token_gate.pass().await;
    let work = || token_endpoint::respond(&shared, style, &parts, &body);
    let mut response = perform(&shared, &wire, scripted, work).await;
    add_nonce(&shared, false, &mut response);
    shared.state().log.token.complete(number, |record| record.status = Some(response.status()));
    response
}

/// Adds the current nonce to a response, whatever its status, if nonces are used.
fn add_nonce(shared: &Shared, is_api: bool, response: &mut Response<Body>) {
    #[cfg(feature = "dpop")]
    if let Some(judge) = &mut shared.state().dpop {
        use super::dpop::At;
        let at = if is_api { At::Api } else { At::TokenEndpoint };
        judge.add_nonce(at, response.headers_mut());
    }
    #[cfg(not(feature = "dpop"))]
    let _ = (shared, is_api, response);
}

async fn perform(
    shared: &Shared,
    wire: &Wire,
    answer: Answer,
    work: impl FnOnce() -> Response<Bytes>,
) -> Response<Body> {
    match answer {
        Answer::Work => work().map(Body::from),
        Answer::Delay(length) => {
            shared.pause(length).await;
            work().map(Body::from)
        }
        Answer::Late(length) => {
            let response = work();
            shared.pause(length).await;
            response.map(Body::from)
        }
        Answer::Lost => {
            wire.reset();
            work().map(Body::from)
        }
        Answer::Cut => answer::cut(work()),
        Answer::Reset => {
            wire.reset();
            Response::default()
        }
        Answer::Hang => {
            shared.stopped().await;
            wire.reset();
            Response::default()
        }
        Answer::Status(status) => answer::page(status, None).map(Body::from),
        Answer::StatusRetryAfter(status, wait) => answer::page(status, Some(wait)).map(Body::from),
        Answer::Html200 => {
            answer::html("Welcome", "please accept the terms of this network").map(Body::from)
        }
        Answer::Json(value) => answer::json_response(StatusCode::OK, &value).map(Body::from),
        Answer::Response(response) => response.map(Body::from),
    }
}

async fn read(request: Request) -> Result<(Parts, Bytes), axum::Error> {
    let (parts, body) = request.into_parts();
    Ok((parts, axum::body::to_bytes(body, MOST_BODY_BYTES).await?))
}

fn too_large() -> Response<Body> {
    answer::page(StatusCode::PAYLOAD_TOO_LARGE.as_u16(), None).map(Body::from)
}

fn record(
    parts: &Parts,
    body: &Bytes,
    subject: Option<String>,
    token_id: Option<String>,
) -> Recorded {
    Recorded {
        method: parts.method.clone(),
        uri: parts.uri.clone(),
        headers: parts.headers.clone(),
        body: body.clone(),
        body_length: body.len() as u64,
        subject,
        token_id,
        status: None,
        refused: false,
        reissued: false,
    }
}

/// Counts a call to the token endpoint for as long as it lives.
struct InFlight<'a>(&'a Shared);

impl<'a> InFlight<'a> {
    fn one_more(shared: &'a Shared) -> Self {
        let now = shared.calls_now.fetch_add(1, Ordering::SeqCst) + 1;
        shared.calls_max.fetch_max(now, Ordering::SeqCst);
        Self(shared)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.calls_now.fetch_sub(1, Ordering::SeqCst);
    }
}
