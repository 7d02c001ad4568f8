//! The token endpoint: RFC 6749 §6, answered as §5 has it, or with cookies as the Seqera platform
//! does.

use bytes::Bytes;
use http::{HeaderValue, Method, Response, StatusCode, header, request::Parts};
use serde_json::json;

use super::{
    answer::json_response,
    grants::{Issued, NotIssued},
    settings::Settings,
    shared::{Shared, now},
};

/// How tokens are handed out.
#[derive(Clone, Copy)]
pub(super) enum Style {
    Json,
    /// In the cookies `JWT` and `JWT_REFRESH_TOKEN`.
    Cookies,
}

/// What the server does with a call that no script catches.
pub(super) fn answer(
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
        return refuse("invalid_request", "a form with grant_type and refresh_token is wanted");
    };
    if grant_type != "refresh_token" {
        return refuse("unsupported_grant_type", "only refresh_token is");
    }
    let state = &mut *shared.state();
    match state.grants.refresh(&token, now()) {
        Ok(issued) => {
            state.log.count(Some(&issued.subject), |counts| counts.tokens_issued += 1);
            match style {
                Style::Json => as_json(&shared.settings, &issued),
                Style::Cookies => as_cookies(&issued),
            }
        }
        Err(NotIssued::Reused(subject)) => {
            state.log.count(Some(&subject), |counts| counts.reuses += 1);
            refuse("invalid_grant", "a spent refresh token came again, the grant is revoked")
        }
        Err(NotIssued::Revoked) => refuse("invalid_grant", "the grant is revoked"),
        Err(NotIssued::Unknown) => refuse("invalid_grant", "the refresh token is unknown"),
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
    let mut answer = json!({ "access_token": issued.access, "token_type": "Bearer" });
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
        // Base64, dots and tildes fit any header.
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
fn refuse(error: &str, description: &str) -> Response<Bytes> {
    not_cached(json_response(
        StatusCode::BAD_REQUEST,
        &json!({ "error": error, "error_description": description }),
    ))
}
