//! Judges what an attempt brought: a function from an answer to a verdict.

use std::time::SystemTime;

use http::{HeaderMap, StatusCode, header::DATE};

use super::{
    cookies::TokenCookies,
    failure::Failure,
    request::{Answer, End},
    response::Members,
    retry::{AskedWait, asked_wait},
};
use crate::token::{AccessToken, RefreshToken, Tokens};

pub(super) struct Judgement {
    pub(super) verdict: Verdict,
    /// A refresh token other than the one that was asked with.
    pub(super) rotated: Option<RefreshToken>,
    pub(super) asked_wait: AskedWait,
    /// What the body said, for the error's text.
    pub(super) said: Members,
}

#[derive(Debug)]
pub(super) enum Verdict {
    Granted(Tokens),
    Failed(Failure),
}

/// `now` is the local clock, used where the answer has no `Date`.
pub(super) fn judge(answer: Answer, asked_with: &RefreshToken, now: SystemTime) -> Judgement {
    let Answer { status, headers, mut body } = answer;
    let now = date(&headers).unwrap_or(now);
    let asked_wait = asked_wait(&headers, now);
    if status.is_success() {
        let cookies = TokenCookies::read(&headers, now);
        let mut said = Members::read(&mut body.bytes);
        let offered = cookies
            .refresh
            .or_else(|| RefreshToken::new(said.refresh_token.as_deref()?.clone()).ok());
        let rotated = offered.clone().filter(|offered| offered != asked_with);
        let verdict = match granted(cookies.access, &mut said, status, body.end) {
            Ok(access) => Verdict::Granted(tokens(access, offered, &said)),
            // The token that was asked with is spent by now, so the new one has to be tried.
            Err(Failure::Lost | Failure::Unusable(NO_ACCESS_TOKEN | TOO_LARGE))
                if rotated.is_some() =>
            {
                Verdict::Failed(Failure::Salvaged)
            }
            Err(failure) => Verdict::Failed(failure),
        };
        return Judgement { verdict, rotated, asked_wait, said };
    }
    let said = match body.end {
        End::TooLarge => Members::default(),
        End::Whole | End::Cut => Members::read(&mut body.bytes),
    };
    let verdict = Verdict::Failed(rejected(status, said.error.as_deref().map(String::as_str)));
    Judgement { verdict, rotated: None, asked_wait, said }
}

const NO_ACCESS_TOKEN: &str = "the answer has no usable access token";
const TOO_LARGE: &str = "the answer is over 1 MiB";

/// The access token of a 2xx: cookies first, whatever the body is.
fn granted(
    cookie: Option<AccessToken>,
    said: &mut Members,
    status: StatusCode,
    end: End,
) -> Result<AccessToken, Failure> {
    if let Some(access) = cookie {
        return Ok(access);
    }
    match end {
        End::Cut => return Err(Failure::Lost),
        End::TooLarge => return Err(Failure::Unusable(TOO_LARGE)),
        End::Whole => {}
    }
    if let Some(code) = &said.error {
        return Err(rejected(status, Some(code)));
    }
    if said.token_type.as_ref().is_some_and(|kind| !kind.eq_ignore_ascii_case("bearer")) {
        return Err(Failure::Unusable("the token's type is not Bearer"));
    }
    let access = said.access_token.as_deref().filter(|_| said.complete).cloned();
    access
        .and_then(|access| AccessToken::new(access).ok())
        .ok_or(Failure::Unusable(NO_ACCESS_TOKEN))
}

fn tokens(access: AccessToken, refresh: Option<RefreshToken>, said: &Members) -> Tokens {
    let tokens = Tokens::of(Some(access), refresh);
    match said.expires_in {
        Some(lifetime) => tokens.with_expires_in(lifetime),
        None => tokens,
    }
}

/// An answer without tokens, by its status first and then by its code (RFC 6749 §5.2).
pub(super) fn rejected(status: StatusCode, code: Option<&str>) -> Failure {
    match (status.as_u16(), code) {
        (408 | 425 | 429 | 500 | 502 | 503 | 504, _)
        | (_, Some("temporarily_unavailable" | "server_error")) => Failure::Busy,
        (501, _) => Failure::Rejected,
        (500.., _) => Failure::Down,
        (200..=299 | 400..=499, Some("invalid_grant")) => Failure::GrantOver,
        _ => Failure::Rejected,
    }
}

/// The codes that mean something here, or that a specification lists. They are shown as they are:
/// no secret is spelt like one.
pub(super) fn known_code(code: &str) -> Option<&'static str> {
    const CODES: [&str; 9] = [
        "invalid_request",
        "invalid_client",
        "invalid_grant",
        "unauthorized_client",
        "unsupported_grant_type",
        "invalid_scope",
        "invalid_target",
        "temporarily_unavailable",
        "server_error",
    ];
    CODES.into_iter().find(|known| *known == code)
}

fn date(headers: &HeaderMap) -> Option<SystemTime> {
    httpdate::parse_http_date(headers.get(DATE)?.to_str().ok()?).ok()
}

#[cfg(test)]
mod tests {
    use http::{HeaderValue, header::SET_COOKIE};
    use zeroize::Zeroizing;

    use super::{super::request::Body, *};

    const OLD: &str = "old-refresh";

    fn judged(status: u16, cookies: &[&'static str], body: &str, end: End) -> Judgement {
        let headers =
            cookies.iter().map(|cookie| (SET_COOKIE, HeaderValue::from_static(cookie))).collect();
        let body = Body { bytes: Zeroizing::new(body.as_bytes().to_vec()), end };
        let answer = Answer { status: StatusCode::from_u16(status).unwrap(), headers, body };
        judge(answer, &RefreshToken::new(OLD).unwrap(), SystemTime::UNIX_EPOCH)
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
        use Failure::{Busy, Down, GrantOver, Rejected};
        let coded = |code: &str| format!(r#"{{"error":"{code}"}}"#);
        let mut table = Vec::new();
        for status in [408, 425, 429, 500, 502, 503, 504] {
            table.push((status, String::new(), Busy));
            table.push((status, coded("invalid_grant"), Busy));
            table.push((status, coded("invalid_client"), Busy));
        }
        for status in [200, 302, 400, 401, 403, 501, 505] {
            table.push((status, coded("temporarily_unavailable"), Busy));
            table.push((status, coded("server_error"), Busy));
        }
        for status in [200, 201, 400, 401, 403] {
            table.push((status, coded("invalid_grant"), GrantOver));
            for code in [
                "invalid_client",
                "unauthorized_client",
                "unsupported_grant_type",
                "invalid_scope",
                "invalid_request",
                "invalid_target",
                "odd",
                "INVALID_GRANT",
            ] {
                table.push((status, coded(code), Rejected));
            }
        }
        for status in
            [301, 302, 303, 304, 307, 308, 400, 401, 403, 404, 405, 410, 413, 418, 422, 501]
        {
            table.push((status, String::new(), Rejected));
            table.push((status, "<html>".into(), Rejected));
        }
        for status in [505, 507, 511, 520, 599, 900] {
            table.push((status, String::new(), Down));
            table.push((status, coded("invalid_grant"), Down));
        }
        for (status, body, expected) in table {
            assert_eq!(
                seen(&judged(status, &[], &body, End::Whole)),
                (Err(expected), None),
                "{status} {body}"
            );
        }
    }

    /// Cookies, body, how the body ended; the verdict and the rotated refresh token.
    type Case<'t> = (
        &'t [&'static str],
        &'t str,
        End,
        Result<(String, Option<String>), Failure>,
        Option<&'t str>,
    );

    #[test]
    #[allow(clippy::too_many_lines, reason = "a table of cases")]
    fn only_a_whole_answer_with_a_bearer_token_is_a_grant() {
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
    fn no_more_is_believed_of_a_refusal_than_its_code() {
        let body = r#"{"error":"invalid_client","access_token":"a","refresh_token":"new"}"#;
        assert_eq!(
            seen(&judged(401, &["JWT=c"], body, End::Whole)),
            (Err(Failure::Rejected), None)
        );
        // A code that arrived before the break is one; the body of a rejection that is too long is
        // not looked at.
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
