//! Judges the response of an attempt: a pure function from a response to a verdict.

use std::time::{Duration, SystemTime};

use http::{
    HeaderMap, StatusCode,
    header::{CONTENT_TYPE, DATE},
};

use super::{
    body::{Body, End},
    codes::{by_code, by_status, is_no_bearer_type},
    cookies::TokenCookies,
    failure::Failure,
    response::Members,
    retry::AskedWait,
    wire::RawResponse,
};
use crate::{
    time::asked_wait,
    token::{AccessToken, RefreshToken, Tokens},
};

/// How long Microsoft Entra asks a throttled client to wait.
const THROTTLED: Duration = Duration::from_secs(60);

pub(super) struct Judgement {
    pub(super) verdict: Verdict,
    /// A refresh token other than the one in the request.
    pub(super) rotated: Option<RefreshToken>,
    /// The rotated token comes from a body with a damaged coding, and may be wrong.
    pub(super) is_doubtful: bool,
    pub(super) asked_wait: AskedWait,
    /// The members of the body, for the error's text.
    pub(super) said: Members,
}

#[derive(Clone, Debug)]
pub(super) enum Verdict {
    Granted(Tokens),
    Failed(Failure),
}

/// Judges a response with a decoded body. `now` is the local clock, which stands in for a missing
/// `Date` header.
pub(super) fn judge(
    response: &RawResponse,
    asked_with: Option<&RefreshToken>,
    now: SystemTime,
) -> Judgement {
    let RawResponse { status, headers, body, is_bound, .. } = response;
    let now = date(headers).unwrap_or(now);
    let cookies = if status.is_success() {
        TokenCookies::read(headers, now)
    } else {
        TokenCookies::default()
    };
    let said = members(*status, headers, body);
    let (mut verdict, rotated) = verdict(*status, cookies, &said, body.end, asked_with);
    if *is_bound {
        verdict = bound(verdict, &said);
    }
    let mut asked_wait = asked_wait(headers, now);
    if matches!(verdict, Verdict::Failed(Failure::Throttled)) {
        asked_wait = asked_wait.max(Some(THROTTLED));
    }
    Judgement { verdict, rotated, is_doubtful: body.end == End::Damaged, asked_wait, said }
}

pub(super) const NO_ACCESS_TOKEN: &str = "the response has no usable access token";
const TOO_LARGE: &str = "the response is over 1 MiB";
const NOT_BEARER: &str = "the token's type is not Bearer";
const NOT_BOUND: &str = "the token's type is not DPoP";
const DAMAGED: &str = "the response's gzip is damaged";
const UNDECODABLE: &str = "the response has a content coding that was not requested";

/// For tokens that are bound to a key, a token of another type is a downgrade (RFC 9449 §5) and is
/// never used, and the type `DPoP` is accepted.
fn bound(verdict: Verdict, said: &Members) -> Verdict {
    let is_bound = said.token_type().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("DPoP"));
    match verdict {
        Verdict::Granted(_) if !is_bound => Verdict::Failed(Failure::Unusable(NOT_BOUND)),
        Verdict::Failed(Failure::Unusable(NOT_BEARER)) if is_bound => match said.access_token() {
            Some(access) if said.complete => {
                Verdict::Granted(tokens(access.clone(), said.refresh_token().cloned(), said))
            }
            _ => Verdict::Failed(Failure::Unusable(NO_ACCESS_TOKEN)),
        },
        verdict => verdict,
    }
}

/// The members of a body. A truncated error response is ignored.
fn members(status: StatusCode, headers: &HeaderMap, body: &Body) -> Members {
    if body.end == End::TooLarge && !status.is_success() {
        return Members::default();
    }
    let is_form = headers.get(CONTENT_TYPE).is_some_and(|kind| {
        let kind = kind.as_bytes().split(|&byte| byte == b';').next().unwrap_or_default();
        kind.trim_ascii().eq_ignore_ascii_case(b"application/x-www-form-urlencoded")
    });
    Members::read(&body.bytes, is_form, body.end == End::Whole)
}

/// The verdict on a response, and the new refresh token in it.
///
/// Only a 2xx contains tokens. An error response may echo the request's token, or describe the
/// problem in a member of the same name.
pub(super) fn verdict(
    status: StatusCode,
    cookies: TokenCookies,
    said: &Members,
    end: End,
    asked_with: Option<&RefreshToken>,
) -> (Verdict, Option<RefreshToken>) {
    if !status.is_success() {
        return (Verdict::Failed(rejected(status, said)), None);
    }
    let offered = cookies.refresh.or_else(|| said.refresh_token().cloned());
    let rotated = offered.clone().filter(|offered| Some(offered) != asked_with);
    let verdict = match granted(cookies.access, said, status, end) {
        Ok(access) => Verdict::Granted(tokens(access, offered, said)),
        // The refresh token in the request is spent, so the new one has to be tried.
        Err(Failure::Lost | Failure::Unusable(NO_ACCESS_TOKEN | TOO_LARGE | DAMAGED))
            if rotated.is_some() =>
        {
            Verdict::Failed(Failure::Salvaged)
        }
        Err(failure) => Verdict::Failed(failure),
    };
    (verdict, rotated)
}

/// The access token of a 2xx. Cookies take precedence over the body.
fn granted(
    cookie: Option<AccessToken>,
    said: &Members,
    status: StatusCode,
    end: End,
) -> Result<AccessToken, Failure> {
    if let Some(access) = cookie {
        return Ok(access);
    }
    match end {
        End::Cut => return Err(Failure::Lost),
        End::TooLarge => return Err(Failure::Unusable(TOO_LARGE)),
        End::Damaged => return Err(Failure::Unusable(DAMAGED)),
        End::Undecodable => return Err(Failure::Unusable(UNDECODABLE)),
        End::Whole => {}
    }
    let access = said.access_token().filter(|_| said.complete);
    let code = if access.is_some() { said.own_code() } else { said.code() };
    if let Some(failure) = code.and_then(|code| by_code(code, said.description())) {
        return Err(failure);
    }
    // Beside a token, an `error` object without a known code is ignored. Without a token, any
    // `error` counts.
    if if access.is_some() { code.is_some() } else { said.is_error() } {
        return Err(rejected(status, said));
    }
    if said.token_type().is_some_and(is_no_bearer_type) {
        return Err(Failure::Unusable(NOT_BEARER));
    }
    access.cloned().ok_or(Failure::Unusable(NO_ACCESS_TOKEN))
}

fn tokens(access: AccessToken, refresh: Option<RefreshToken>, said: &Members) -> Tokens {
    let tokens = Tokens::of(Some(access), refresh);
    match said.lifetime() {
        Some(lifetime) => tokens.with_expires_in(lifetime),
        None => tokens,
    }
}

/// Judges a response without tokens, first by its status and then by its code (RFC 6749 §5.2).
pub(super) fn rejected(status: StatusCode, said: &Members) -> Failure {
    by_status(status)
        .or_else(|| by_code(said.code()?, said.description()))
        .unwrap_or(Failure::Rejected)
}

pub(super) fn date(headers: &HeaderMap) -> Option<SystemTime> {
    httpdate::parse_http_date(headers.get(DATE)?.to_str().ok()?).ok()
}

#[cfg(test)]
mod tests {
    use http::{HeaderValue, header::SET_COOKIE};
    use zeroize::Zeroizing;

    use super::*;

    const OLD: &str = "old-refresh";

    fn judged(status: u16, cookies: &[&'static str], body: &str, end: End) -> Judgement {
        let headers =
            cookies.iter().map(|cookie| (SET_COOKIE, HeaderValue::from_static(cookie))).collect();
        let body = Body { bytes: Zeroizing::new(body.as_bytes().to_vec()), end };
        let response = RawResponse::new(StatusCode::from_u16(status).unwrap(), headers, body);
        judge(&response, Some(&RefreshToken::new(OLD).unwrap()), SystemTime::UNIX_EPOCH)
    }

    /// `(access, refresh)` or the failure, and the rotated refresh token.
    type Seen = (Result<(String, Option<String>), Failure>, Option<String>);

    fn seen(judgement: &Judgement) -> Seen {
        let text = |token: &RefreshToken| token.expose_secret().to_owned();
        let verdict = match &judgement.verdict {
            Verdict::Granted(tokens) => Ok((
                tokens.access_token().unwrap().expose_secret().to_owned(),
                tokens.refresh_token().map(text),
            )),
            Verdict::Failed(failure) => Err(*failure),
        };
        (verdict, judgement.rotated.as_ref().map(text))
    }

    #[test]
    fn statuses_come_first_then_codes() {
        use Failure::{Busy, Down, GrantOver, Lost, Rejected, Throttled, Unusable};
        let coded = |code: &str| format!(r#"{{"error":"{code}"}}"#);
        let bodies =
            ["invalid_grant", "invalid_client", "temporarily_unavailable", "odd"].map(coded);
        let redirects = Unusable("the token endpoint redirects");
        let mut table = Vec::new();
        for (statuses, failure) in [
            ([408, 502, 504, 520, 521, 522, 523, 524].as_slice(), Lost),
            (&[409, 423, 425, 429, 500, 503, 529], Busy),
            (&[301, 302, 303, 304, 307, 308], redirects),
            (&[407, 505, 507, 511, 525, 599, 900], Down),
            (&[501], Rejected),
        ] {
            for status in statuses {
                table.extend(bodies.iter().map(|body| (*status, body.clone(), failure)));
                table.push((*status, String::new(), failure));
            }
        }
        for status in [200, 201, 400, 401, 403, 422] {
            for code in ["temporarily_unavailable", "server_error", "slow_down"] {
                table.push((status, coded(code), Busy));
            }
            for code in ["invalid_grant", "bad_refresh_token", "login_required", "INVALID_GRANT"] {
                table.push((status, coded(code), GrantOver));
            }
            for code in ["invalid_client", "invalid_scope", "invalid_target", "odd"] {
                table.push((status, coded(code), Rejected));
            }
            let described =
                |text: &str| format!(r#"{{"error":"invalid_grant","error_description":"{text}"}}"#);
            table.push((status, described("token request is already being processed"), Busy));
            table.push((status, described("AADSTS50196: a client loop"), Throttled));
        }
        for status in [400, 401, 403, 404, 405, 410, 413, 418, 422] {
            table.push((status, String::new(), Rejected));
            table.push((status, "<html>".into(), Rejected));
        }
        for (status, body, expected) in table {
            assert_eq!(
                seen(&judged(status, &[], &body, End::Whole)),
                (Err(expected), None),
                "{status} {body}"
            );
        }
    }

    #[test]
    fn a_throttled_client_stays_away_for_a_minute() {
        let body = r#"{"error":"invalid_grant","error_description":"AADSTS50196: x"}"#;
        let asked = |headers: HeaderMap| {
            let body = Body { bytes: Zeroizing::new(body.into()), end: End::Whole };
            let response = RawResponse::new(StatusCode::BAD_REQUEST, headers, body);
            judge(&response, None, SystemTime::UNIX_EPOCH).asked_wait.unwrap().as_secs()
        };
        assert_eq!(asked(HeaderMap::new()), 60);
        for (seconds, expected) in [("5", 60), ("90", 90)] {
            let value = HeaderValue::from_static(seconds);
            assert_eq!(asked([(http::header::RETRY_AFTER, value)].into_iter().collect()), expected);
        }
    }

    /// The input is cookies, body and how the body ended; the result is the verdict and the rotated
    /// refresh token.
    type Case<'t> = (
        &'t [&'static str],
        &'t str,
        End,
        Result<(String, Option<String>), Failure>,
        Option<&'t str>,
    );

    #[test]
    #[allow(clippy::too_many_lines, reason = "a table of cases")]
    fn only_a_whole_bearer_response_is_a_grant() {
        use End::{Cut, TooLarge, Whole};
        use Failure::{Busy, GrantOver, Lost, Rejected, Salvaged, Unusable};
        let ok = |access: &str, refresh: Option<&str>| {
            Ok((access.to_owned(), refresh.map(str::to_owned)))
        };
        let no_token = Err(Unusable(NO_ACCESS_TOKEN));
        let not_bearer = Err(Unusable("the token's type is not Bearer"));
        let new = Some("new");
        let table: Vec<Case<'_>> = vec![
            (&[], r#"{"access_token":"a"}"#, Whole, ok("a", None), None),
            (&[], r#"{"access_token":"a","refresh_token":"new"}"#, Whole, ok("a", new), new),
            (
                &[],
                r#"{"access_token":"a","refresh_token":"old-refresh"}"#,
                Whole,
                ok("a", Some(OLD)),
                None,
            ),
            (&[], r#"{"access_token":"a","refresh_token":""}"#, Whole, ok("a", None), None),
            (
                &[],
                r#"{"access_token":"a","refresh_token":null,"error":null}"#,
                Whole,
                ok("a", None),
                None,
            ),
            (
                &[],
                r#"{"access_token":"a","error":"","token_type":"bEARER"}"#,
                Whole,
                ok("a", None),
                None,
            ),
            (&[], r#"{"access_token":"a","token_type":1}"#, Whole, ok("a", None), None),
            (&[], r#"{"access_token":"a","token_type":"mac"}"#, Whole, not_bearer.clone(), None),
            (
                &[],
                r#"{"access_token":"a","token_type":"mac","refresh_token":"new"}"#,
                Whole,
                not_bearer,
                new,
            ),
            (&[], r#"{"access_token":"a","error":"invalid_grant"}"#, Whole, Err(GrantOver), None),
            (
                &[],
                r#"{"access_token":"a","error":"odd","refresh_token":"new"}"#,
                Whole,
                Err(Rejected),
                new,
            ),
            (&[], r#"{"error":"server_error"}"#, Whole, Err(Busy), None),
            (&[], "", Whole, no_token.clone(), None),
            (&[], "{}", Whole, no_token.clone(), None),
            (&[], "<html>", Whole, no_token.clone(), None),
            (&[], r#"{"access_token":""}"#, Whole, no_token.clone(), None),
            (&[], r#"{"access_token":"a b"}"#, Whole, no_token.clone(), None),
            (&[], r#"{"access_token":"a","code":"invalid_grant"}"#, Whole, ok("a", None), None),
            (&[], r#"{"access_token":"a","error":{"code":"ok"}}"#, Whole, ok("a", None), None),
            (&[], r#"{"error":{"code":"odd"}}"#, Whole, Err(Rejected), None),
            (&[], r#"{"error":40013}"#, Whole, Err(Rejected), None),
            (&[], r#"{"code":"odd"}"#, Whole, no_token.clone(), None),
            (&[], r#"{"code":"invalid_grant"}"#, Whole, Err(GrantOver), None),
            (&[], "access_token=a&refresh_token=new", Whole, ok("a", new), new),
            (&[], "access_token=a&refresh_token=new", Cut, Err(Lost), None),
            (&[], "refresh_token=new&access_token=a", Cut, Err(Salvaged), new),
            (&[], r#"{"accessToken":"a","refreshToken":"new"}"#, Whole, ok("a", new), new),
            (&[], r#"{"refresh_token":"new","x":"#, End::Damaged, Err(Salvaged), new),
            (&[], r#"{"access_token":"a"}"#, End::Damaged, Err(Unusable(DAMAGED)), None),
            (&[], "", End::Undecodable, Err(Unusable(UNDECODABLE)), None),
            (&["JWT=c"], "", End::Undecodable, ok("c", None), None),
            (&[], r#"{"access_token":"a\r\nX: y"}"#, Whole, no_token.clone(), None),
            (
                &[],
                r#"{"access_token":7,"refresh_token":"old-refresh"}"#,
                Whole,
                no_token.clone(),
                None,
            ),
            (&[], r#"{"access_token":"a","x":NaN}"#, Whole, no_token, None),
            (&[], r#"{"access_token":"a b","refresh_token":"new"}"#, Whole, Err(Salvaged), new),
            (&[], r#"{"refresh_token":"new"}"#, Whole, Err(Salvaged), new),
            (&[], r#"{"refresh_token":"new","access_token":"a"#, Cut, Err(Salvaged), new),
            (&[], r#"{"refresh_token":"ne"#, Cut, Err(Lost), None),
            (&[], r#"{"access_token":"a"}"#, Cut, Err(Lost), None),
            (&[], "", Cut, Err(Lost), None),
            (&[], r#"{"error":"invalid_grant""#, Cut, Err(Lost), None),
            (&[], r#"{"access_token":"a""#, TooLarge, Err(Unusable(TOO_LARGE)), None),
            (&[], r#"{"refresh_token":"new","x":"#, TooLarge, Err(Salvaged), new),
            (&["JWT=c"], "", Whole, ok("c", None), None),
            (
                &["JWT=c"],
                r#"{"access_token":"a","error":"invalid_grant","token_type":"x"}"#,
                Whole,
                ok("c", None),
                None,
            ),
            (&["JWT=c"], r#"{"refresh_token":"new"}"#, Whole, ok("c", new), new),
            (&["JWT=c"], r#"{"refresh_token":"new","#, Cut, ok("c", new), new),
            (
                &["JWT=c", "JWT_REFRESH_TOKEN=cr"],
                r#"{"refresh_token":"new"}"#,
                TooLarge,
                ok("c", Some("cr")),
                Some("cr"),
            ),
            (&["JWT=; Max-Age=0"], "", Whole, Err(Unusable(NO_ACCESS_TOKEN)), None),
            (&["JWT=; Max-Age=0"], r#"{"access_token":"a"}"#, Whole, ok("a", None), None),
            (&["JWT=deleted", "JWT_REFRESH_TOKEN=cr"], "", Whole, Err(Salvaged), Some("cr")),
            (&["JWT=a b", "JWT_REFRESH_TOKEN="], "", Whole, Err(Unusable(NO_ACCESS_TOKEN)), None),
        ];
        for (cookies, body, end, verdict, rotated) in table {
            let expected = (verdict, rotated.map(str::to_owned));
            for status in [200, 201, 204, 299] {
                assert_eq!(
                    seen(&judged(status, cookies, body, end)),
                    expected,
                    "{status} {cookies:?} {body} {end:?}"
                );
            }
        }
    }

    #[test]
    fn an_error_response_gives_its_code_alone() {
        let body = r#"{"error":"invalid_client","access_token":"a","refresh_token":"new"}"#;
        assert_eq!(
            seen(&judged(401, &["JWT=c"], body, End::Whole)),
            (Err(Failure::Rejected), None)
        );
        // A code before the break counts. The body of an oversized rejection is ignored.
        assert_eq!(
            seen(&judged(400, &[], r#"{"error":"invalid_grant","x"#, End::Cut)).0,
            Err(Failure::GrantOver)
        );
        assert_eq!(
            seen(&judged(400, &[], r#"{"error":"invalid_grant","x"#, End::TooLarge)).0,
            Err(Failure::Rejected)
        );
    }
}
