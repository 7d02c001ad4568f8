//! The API: checks the access token, and echoes the request.

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, StatusCode, header, request::Parts};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::{
    answer::json_response,
    grants::Standing,
    settings::Refusal,
    shared::{Shared, State},
};

const REISSUED: HeaderName = HeaderName::from_static("refreshed-api-token");

/// Handles a request without a script. `number` is the number of its record.
pub(super) fn respond(
    shared: &Shared,
    parts: &Parts,
    body: &Bytes,
    number: usize,
) -> Response<Bytes> {
    let now = shared.now();
    let state = &mut *shared.state();
    let Some(token) = presented(shared, parts) else {
        note(state, number, None, true, false);
        return reject(
            shared,
            StatusCode::UNAUTHORIZED,
            r#"Bearer realm="api""#,
            "Missing auth token",
        );
    };
    #[cfg(feature = "dpop")]
    if let Some(response) = proof::fault(shared, state, parts, token, now) {
        note(state, number, None, true, false);
        return response;
    }
    let (presented, standing) = state.grants.judge(token, now);
    let subject = presented.as_ref().map(|presented| presented.subject.clone());
    let scripted = scripted_rejection(state);
    let due = standing == Standing::Good { reissue: true } && scripted.is_none();
    let mut refused = true;
    let mut response = match (scripted, standing) {
        (None, Standing::Good { .. }) => {
            refused = false;
            echo(parts, body, subject.as_deref())
        }
        (status, _) => reject(
            shared,
            status.unwrap_or_else(|| shared.refusal_status()),
            r#"Bearer realm="api", error="invalid_token", error_description="the access token is not taken""#,
            "Invalid auth token",
        ),
    };
    let new = presented.filter(|presented| {
        let genuine = standing != Standing::Invalid && !state.grants.is_revoked(&presented.subject);
        genuine && (due || scripted_reissue(&mut state.reissue_next))
    });
    if let Some(old) = &new {
        // Base64 and dots are valid in any header.
        if let Ok(mut value) = HeaderValue::from_str(&state.grants.reissue(old, now)) {
            value.set_sensitive(true);
            response.headers_mut().insert(REISSUED, value);
        }
    }
    note(state, number, subject.as_deref(), refused, new.is_some());
    response
}

/// The token of a request: RFC 6750 §2.1, or RFC 9449 §7.1 if proofs are required. The scheme is
/// case-insensitive.
pub(super) fn presented<'a>(shared: &Shared, parts: &'a Parts) -> Option<&'a str> {
    #[cfg(feature = "dpop")]
    let wanted = if shared.settings.dpop.is_some() { "DPoP" } else { "Bearer" };
    #[cfg(not(feature = "dpop"))]
    let wanted = {
        let _ = shared;
        "Bearer"
    };
    let (scheme, token) =
        parts.headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case(wanted).then(|| token.trim_start())
}

/// The API's response to an invalid proof (RFC 9449 §7.1 and §9).
#[cfg(feature = "dpop")]
mod proof {
    use super::{Bytes, HeaderValue, Parts, Response, Shared, State, StatusCode, header, json};
    use crate::testing::{
        answer::json_response,
        dpop::{At, Fault, Proven},
        shared::wall,
    };

    pub(super) fn fault(
        shared: &Shared,
        state: &mut State,
        parts: &Parts,
        token: &str,
        now: f64,
    ) -> Option<Response<Bytes>> {
        let url = format!("{}{}", shared.origin, parts.uri.path());
        let request = Proven {
            headers: &parts.headers,
            method: &parts.method,
            url: &url,
            access_token: Some(token),
        };
        let checked = state.dpop.as_mut()?.check(At::Api, &request, wall());
        let subject = state.grants.judge(token, now).0.map(|presented| presented.subject);
        match (checked, subject) {
            (Ok(key), Some(subject)) if !state.grants.is_bound_to(&subject, &key) => {
                Some(challenge("invalid_token", "the access token is bound to another key"))
            }
            (Ok(_), _) => None,
            (Err(Fault::WantsNonce), _) if shared.settings.dpop.as_ref()?.in_the_body => {
                let body = json!({ "error": "use_dpop_nonce" });
                Some(json_response(StatusCode::BAD_REQUEST, &body))
            }
            (Err(Fault::WantsNonce), _) => {
                Some(challenge("use_dpop_nonce", "the proof carries no nonce that is good"))
            }
            (Err(Fault::Invalid(why)), _) => Some(challenge("invalid_dpop_proof", why)),
        }
    }

    fn challenge(error: &str, why: &str) -> Response<Bytes> {
        let body = json!({ "error": error, "error_description": why });
        let mut response = json_response(StatusCode::UNAUTHORIZED, &body);
        let text = format!(r#"DPoP error="{error}", error_description="{why}", algs="ES256""#);
        if let Ok(value) = HeaderValue::from_str(&text) {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, value);
        }
        response
    }
}

fn note(state: &mut State, number: usize, subject: Option<&str>, refused: bool, reissued: bool) {
    state.log.count(subject, |counts| {
        counts.refused += u64::from(refused);
        counts.reissued += u64::from(reissued);
    });
    state
        .log
        .api
        .complete(number, |record| (record.refused, record.reissued) = (refused, reissued));
}

fn scripted_rejection(state: &mut State) -> Option<StatusCode> {
    let (left, status) = state.refuse_next.front_mut()?;
    let status = *status;
    *left -= 1;
    if *left == 0 {
        state.refuse_next.pop_front();
    }
    Some(status)
}

fn scripted_reissue(left: &mut usize) -> bool {
    let any = *left > 0;
    *left = left.saturating_sub(1);
    any
}

fn reject(
    shared: &Shared,
    status: StatusCode,
    challenge: &'static str,
    detail: &str,
) -> Response<Bytes> {
    let mut response = json_response(status, &json!({ "detail": detail }));
    let challenged =
        status == StatusCode::UNAUTHORIZED || shared.settings.refusal == Refusal::Unauthorized401;
    if challenged {
        response
            .headers_mut()
            .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
    }
    response
}

/// Builds the response that `status`, `location` and `echo` in the query ask for.
fn echo(parts: &Parts, body: &Bytes, subject: Option<&str>) -> Response<Bytes> {
    let query = |wanted: &str| {
        let mut pairs = form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes());
        pairs.find_map(|(name, value)| (name == wanted).then_some(value))
    };
    let status = query("status").and_then(|status| status.parse().ok()).unwrap_or(StatusCode::OK);
    let mut response = if query("echo").is_some() {
        let mut response = Response::new(body.clone());
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        *response.status_mut() = status;
        response
    } else {
        let seen = json!({
            "method": parts.method.as_str(),
            "path": parts.uri.path(),
            "query": parts.uri.query(),
            "subject": subject,
            "body_length": body.len(),
            "body_sha256": format!("{:x}", Sha256::digest(body)),
        });
        json_response(status, &seen)
    };
    // A body would not be sent, but its length would be announced.
    if matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
        *response.body_mut() = Bytes::new();
    }
    if let Some(location) =
        query("location").and_then(|location| HeaderValue::from_str(&location).ok())
    {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}
