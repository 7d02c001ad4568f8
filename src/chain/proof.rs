//! The DPoP part of `Authorize`: proofs for requests, and nonces from responses (RFC 9449).

use std::{collections::VecDeque, future::poll_fn, pin::Pin, time::Duration};

use http::Extensions;
use http_body::Body as _;
use reqwest::{Body, Request, Response, ResponseBuilderExt as _};
use reqwest_middleware::{Next, Result};
use url::Url;

use super::{buffer::Begun, sent::Proof, signed::Signed};
use crate::{
    dpop::{Carried, Challenge, DPOP, Dpop, Role, api_challenge, says_use_nonce},
    error::{Error, ErrorKind},
    time::within,
};

/// How much of a body is searched for a demand for a nonce, and for how long.
const PEEK_BYTES: usize = 64 * 1024;
const PEEK_TIME: Duration = Duration::from_millis(100);

/// Sends a request whose token is bound to a key.
pub(super) async fn send(
    signed: Signed<'_>,
    mut request: Request,
    extensions: &mut Extensions,
    next: Next<'_>,
) -> Result<Response> {
    let Some(dpop) = signed.session.dpop() else {
        return next.run(request, extensions).await;
    };
    let carried = prove(dpop, &signed, &mut request).await?;
    let url = request.url().clone();
    let response = next.run(request, extensions).await?;
    // After a redirect to another origin, the nonce belongs to that server.
    if signed.session.origin_of(response.url()).is_some() {
        dpop.take_nonce(Role::Api, response.url(), response.headers());
    }
    let (mut response, proof) = judge(dpop, &url, &carried, response).await;
    if proof != Proof::Fine || signed.needs_note(&response) {
        response.extensions_mut().insert(signed.note(proof));
    }
    Ok(response)
}

/// Adds the proof. The time that a signer takes counts towards the request's timeout.
async fn prove(
    dpop: &Dpop,
    signed: &Signed<'_>,
    request: &mut Request,
) -> std::result::Result<Carried, Error> {
    let token = signed.proving.as_ref();
    let proving = dpop.prove(Role::Api, request.method(), request.url(), token);
    let proved = match signed.session.wait_limit(request.timeout().copied()) {
        Some(limit) => within(limit, proving).await,
        None => Ok(proving.await),
    };
    let (proof, carried) = proved.map_err(|_| Error::of(ErrorKind::TimedOut))??;
    request.headers_mut().insert(DPOP, proof);
    Ok(carried)
}

/// Returns what the response says about the proof.
async fn judge(dpop: &Dpop, url: &Url, carried: &Carried, response: Response) -> (Response, Proof) {
    let challenge = api_challenge(response.status(), response.headers(), carried.as_deref());
    let (response, wants_nonce) = match challenge {
        Challenge::Nothing => return (response, Proof::Fine),
        Challenge::InvalidProof => return (response, Proof::Rejected),
        Challenge::UseNonce => (response, true),
        Challenge::AskBody => peek(response).await,
    };
    if !wants_nonce {
        return (response, Proof::Fine);
    }
    // A proof is valid for the request's URL. After a redirect it was used for another one.
    let is_ours = response.url() == url && dpop.has_other_nonce(Role::Api, url, carried);
    (response, if is_ours { Proof::WantsNonce } else { Proof::Rejected })
}

/// Reads the start of the body to see whether it demands a nonce, and returns the response with its
/// whole body.
async fn peek(response: Response) -> (Response, bool) {
    let url = response.url().clone();
    let (parts, mut body) = http::Response::<Body>::from(response).into_parts();
    let (mut read, mut bytes) = (VecDeque::new(), Vec::new());
    let reading = async {
        while bytes.len() < PEEK_BYTES {
            match poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
                Some(Ok(frame)) => {
                    bytes.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
                    read.push_back(frame);
                }
                Some(Err(error)) => return Some(error),
                None => break,
            }
        }
        None
    };
    let error = within(PEEK_TIME, reading).await.unwrap_or(None);
    let wants_nonce = says_use_nonce(&bytes);
    let whole = Body::wrap(Begun { read, error, rest: body });
    // The builder fails only for an invalid header, and gets none. It records the URL in the
    // response.
    let mut response = http::Response::builder().url(url).body(whole).unwrap_or_default();
    *response.status_mut() = parts.status;
    *response.version_mut() = parts.version;
    *response.headers_mut() = parts.headers;
    response.extensions_mut().extend(parts.extensions);
    (Response::from(response), wants_nonce)
}
