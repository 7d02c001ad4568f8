//! The token endpoint (RFC 6749 §6). It responds as in §5, or with cookies like Seqera Platform's.

use bytes::Bytes;
use http::{HeaderValue, Method, Response, StatusCode, header, request::Parts};
use serde_json::json;

use super::{
    answer::json_response,
    grants::{Issued, NotIssued},
    settings::Settings,
    shared::Shared,
};

/// How tokens are returned.
#[derive(Clone, Copy)]
pub(super) enum Style {
    Json,
    /// In the cookies `JWT` and `JWT_REFRESH_TOKEN`.
    Cookies,
}

/// Handles a call without a script.
pub(super) fn respond(
    shared: &Shared,
    style: Style,
    parts: &Parts,
    body: &Bytes,
) -> Response<Bytes> {
    if parts.method != Method::POST {
        let mut response =
            json_response(StatusCode::METHOD_NOT_ALLOWED, &json!({ "error": "invalid_request" }));
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("POST"));
        return response;
    }
    let form = parts.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let is_form = form.is_some_and(|form| form.starts_with("application/x-www-form-urlencoded"));
    let (grant_type, token) = (field(body, "grant_type"), refresh_token(body));
    let (Some(grant_type), Some(token), true) = (grant_type, token, is_form) else {
        return reject("invalid_request", "a form with grant_type and refresh_token is wanted");
    };
    if grant_type != "refresh_token" {
        return reject("unsupported_grant_type", "only refresh_token is");
    }
    let state = &mut *shared.state();
    #[cfg(feature = "dpop")]
    if let Some(response) = proof::fault(shared, state, parts, &token) {
        return response;
    }
    match state.grants.refresh(&token, shared.now()) {
        Ok(issued) => {
            state.log.count(Some(&issued.subject), |counts| counts.tokens_issued += 1);
            match style {
                Style::Json => as_json(&shared.settings, &issued),
                Style::Cookies => as_cookies(&issued),
            }
        }
        Err(NotIssued::Reused(subject)) => {
            state.log.count(Some(&subject), |counts| counts.reuses += 1);
            reject("invalid_grant", "a spent refresh token came again, the grant is revoked")
        }
        Err(NotIssued::Revoked) => reject("invalid_grant", "the grant is revoked"),
        Err(NotIssued::Unknown) => reject("invalid_grant", "the refresh token is unknown"),
    }
}

/// The token endpoint's response to an invalid proof (RFC 9449 §5 and §8).
#[cfg(feature = "dpop")]
mod proof {
    use super::{Bytes, Parts, Response, Shared, reject};
    use crate::testing::{
        dpop::{At, Fault, Proven},
        shared::{State, wall},
    };

    pub(super) fn fault(
        shared: &Shared,
        state: &mut State,
        parts: &Parts,
        refresh_token: &str,
    ) -> Option<Response<Bytes>> {
        let url = format!("{}{}", shared.origin, parts.uri.path());
        let request = Proven {
            headers: &parts.headers,
            method: &parts.method,
            url: &url,
            access_token: None,
        };
        let checked = state.dpop.as_mut()?.check(At::TokenEndpoint, &request, wall());
        let subject = state.grants.subject_of(refresh_token);
        let error = match (checked, subject) {
            (Ok(key), Some(subject)) if !state.grants.is_bound_to(&subject, &key) => {
                return Some(reject("invalid_grant", "the login is bound to another key"));
            }
            (Ok(_), _) => return None,
            (Err(Fault::WantsNonce), _) => reject("use_dpop_nonce", "a nonce is wanted"),
            (Err(Fault::Invalid(why)), _) => reject("invalid_dpop_proof", why),
        };
        if shared.settings.dpop.as_ref()?.spends_first {
            let _ = state.grants.refresh(refresh_token, shared.now());
        }
        Some(error)
    }
}

pub(super) fn refresh_token(body: &[u8]) -> Option<String> {
    field(body, "refresh_token")
}

fn field(body: &[u8], wanted: &str) -> Option<String> {
    form_urlencoded::parse(body)
        .find_map(|(name, value)| (name == wanted).then(|| value.into_owned()))
}

fn as_json(settings: &Settings, issued: &Issued) -> Response<Bytes> {
    let lifetime = settings.lifetime;
    #[cfg(feature = "dpop")]
    let bound = settings.dpop.as_ref().is_some_and(|dpop| !dpop.says_bearer);
    #[cfg(not(feature = "dpop"))]
    let bound = false;
    let token_type = if bound { "DPoP" } else { "Bearer" };
    let mut answer = json!({ "access_token": issued.access, "token_type": token_type });
    answer["expires_in"] = if lifetime.subsec_nanos() == 0 {
        lifetime.as_secs().into()
    } else {
        lifetime.as_secs_f64().into()
    };
    if let Some(refresh) = &issued.refresh {
        answer["refresh_token"] = refresh.as_str().into();
    }
    not_cached(json_response(StatusCode::OK, &answer))
}

fn as_cookies(issued: &Issued) -> Response<Bytes> {
    let mut response = json_response(StatusCode::OK, &json!({}));
    let refresh = issued.refresh.as_ref().map(|token| ("JWT_REFRESH_TOKEN", token));
    for (name, token) in [("JWT", &issued.access)].into_iter().chain(refresh) {
        // Base64, dots and tildes are valid in any header.
        if let Ok(mut cookie) =
            HeaderValue::from_str(&format!("{name}={token}; Path=/; HttpOnly; SameSite=Strict"))
        {
            cookie.set_sensitive(true);
            response.headers_mut().append(header::SET_COOKIE, cookie);
        }
    }
    not_cached(response)
}

/// RFC 6749 §5.1.
fn not_cached(mut response: Response<Bytes>) -> Response<Bytes> {
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// RFC 6749 §5.2.
fn reject(error: &str, description: &str) -> Response<Bytes> {
    not_cached(json_response(
        StatusCode::BAD_REQUEST,
        &json!({ "error": error, "error_description": description }),
    ))
}
