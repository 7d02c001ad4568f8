//! Which responses count as tokens, and what happens to refresh tokens without an access token.

use std::time::SystemTime;

use super::{server::head, *};

#[tokio::test]
async fn any_2xx_with_json_is_read_leniently() {
    let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
    let table = [
        (200, r#"{"access_token":"a"}"#.to_owned()),
        (201, r#"{"access_token":"a","expires_in":"3600","scope":null,"id_token":{}}"#.to_owned()),
        (203, format!(r#"{{"x":{deep},"access_token":"a","expires_in":1e400}}"#)),
        (200, "\u{feff}{\"access_token\":\"a\",\"token_type\":\"BEARER\"} trailing".to_owned()),
        (200, "{\"access_token\":\"b\",\"access_token\":\"a\",\"x\":\"\u{1}\"}".to_owned()),
    ];
    for (status, body) in table {
        let (result, _, endpoint) =
            answered(Reply::with(status, &["Content-Type: text/plain"], body)).await;
        let tokens = result.unwrap();
        assert_eq!(access(&tokens), "a");
        assert_eq!(refresh(&tokens), None);
        assert_eq!(endpoint.count(), 1);
    }
}

#[tokio::test]
async fn expires_in_counts_from_now() {
    let (result, ..) =
        answered(Reply::json(200, r#"{"access_token":"a","expires_in":3600}"#)).await;
    let left = result.unwrap().expires_at().unwrap().duration_since(SystemTime::now()).unwrap();
    assert!(left <= Duration::from_secs(3600) && left > Duration::from_secs(3500), "{left:?}");
    let (result, ..) = answered(Reply::json(200, r#"{"access_token":"a","expires_in":-1}"#)).await;
    assert_eq!(result.unwrap().expires_at(), None);
}

#[tokio::test]
async fn cookies_come_before_the_body() {
    let cookies = [
        "Set-Cookie: JWT=a.b.c; Path=/; HttpOnly",
        "Set-Cookie: JWT_REFRESH_TOKEN=cookie-refresh; Path=/oauth",
    ];
    for body in ["", "<html>", r#"{"access_token":"json","error":"invalid_grant"}"#] {
        let (result, ..) = answered(Reply::with(200, &cookies, body)).await;
        let tokens = result.unwrap();
        assert_eq!(access(&tokens), "a.b.c");
        assert_eq!(refresh(&tokens), Some("cookie-refresh"));
    }
    let (result, ..) =
        answered(Reply::with(200, &cookies[..1], r#"{"refresh_token":"json-refresh"}"#)).await;
    assert_eq!(refresh(&result.unwrap()), Some("json-refresh"));
}

#[tokio::test]
async fn a_logout_cookie_is_no_token() {
    let date = "Date: Wed, 01 Jan 2025 00:00:00 GMT";
    for cookie in [
        "JWT=",
        "JWT=deleted",
        "JWT=a; Max-Age=0",
        "JWT=a; Expires=Thu, 01 Jan 1970 00:00:00 GMT",
        // Expired by the server's clock.
        "JWT=a; Expires=Tue, 31 Dec 2024 23:59:59 GMT",
    ] {
        let (result, _, endpoint) =
            answered(Reply::with(204, &[date, &format!("Set-Cookie: {cookie}")], "")).await;
        let error = result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BadResponse, "{cookie}");
        assert_eq!(error.attempts(), 1, "{cookie}");
        assert_eq!(endpoint.count(), 1, "{cookie}");
    }
    // Not expired by the server's clock, whatever the local clock says.
    let (result, ..) = answered(Reply::with(
        200,
        &[date, "Set-Cookie: JWT=a; Expires=Wed, 01 Jan 2025 00:00:01 GMT"],
        "",
    ))
    .await;
    assert_eq!(access(&result.unwrap()), "a");
}

#[tokio::test]
async fn a_useless_200_is_not_retried() {
    let utf16: Vec<u8> =
        r#"{"access_token":"a"}"#.encode_utf16().flat_map(u16::to_be_bytes).collect();
    let large = format!(r#"{{"access_token":"{}"}}"#, "x".repeat(1024 * 1024));
    let over_64_kib = format!(r#"{{"access_token":"{}"}}"#, "x".repeat(64 * 1024 + 1));
    let bodies: [&[u8]; 9] = [
        b"",
        b"<html>welcome</html>",
        b"{}",
        b"[]",
        br#"{"access_token":"a","token_type":"mac"}"#,
        br#"{"access_token":"a\u0000"}"#,
        &utf16,
        large.as_bytes(),
        over_64_kib.as_bytes(),
    ];
    for body in bodies {
        let (result, log, endpoint) = answered(Reply::json(200, body)).await;
        let error = result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BadResponse);
        assert_eq!(error.status(), Some(StatusCode::OK));
        assert_eq!(error.attempts(), 1);
        assert!(error.is_transient() && error.source().is_some() && !error.possibly_consumed());
        assert_eq!(endpoint.count(), 1);
        assert_eq!(log.retries().len(), 0);
    }
}

#[tokio::test]
async fn an_endless_body_is_read_to_its_limit_only() {
    let endless =
        Reply::Endless([head(200, &[], None), b"{\"access_token\":\"a\"".to_vec()].concat());
    let (result, _, endpoint) = answered(endless).await;
    assert_eq!(result.unwrap_err().kind(), ErrorKind::BadResponse);
    assert_eq!(endpoint.count(), 1);
    // A rejection counts, however long its body is.
    let (result, _, endpoint) = answered(Reply::Endless(head(400, &[], None))).await;
    assert_eq!(result.unwrap_err().kind(), ErrorKind::ClientRejected);
    assert_eq!(endpoint.count(), 1);
}

#[tokio::test]
async fn the_body_limit_is_exact() {
    let limit = 1024 * 1024;
    // A member that ends at the limit, and one that ends a byte after it.
    let rescued = |end: usize| {
        let member = r#""refresh_token":"rescued-token""#;
        format!("{{{}{member},{}", " ".repeat(end - member.len() - 1), " ".repeat(100_000))
    };
    let whole = |length: usize| {
        format!(r#"{{"access_token":"a"{}}}"#, " ".repeat(length - r#"{"access_token":"a"}"#.len()))
    };
    let table = [
        (whole(limit), Ok("a"), vec![]),
        (whole(limit + 1), Err(ErrorKind::BadResponse), vec![]),
        (rescued(limit), Err(ErrorKind::BadResponse), vec!["rescued-token"]),
        (rescued(limit + 1), Err(ErrorKind::BadResponse), vec![]),
    ];
    for (number, (body, expected, kept)) in table.into_iter().enumerate() {
        let endpoint = TokenEndpoint::start([Reply::json(200, body)]).await;
        let (result, log) = run(&quick(&endpoint).max_attempts(1)).await;
        assert_eq!(result.as_ref().map(access).map_err(Error::kind), expected, "{number}");
        assert_eq!(log.kept(), kept, "{number}");
    }
}

fn gzip(text: &str) -> Vec<u8> {
    use std::io::Write as _;

    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

#[tokio::test]
async fn gzip_is_decoded_and_not_asked_for() {
    let zipped = gzip(r#"{"access_token":"a","refresh_token":"new-one"}"#);
    for coding in ["gzip", "x-gzip"] {
        let coding = format!("Content-Encoding: {coding}");
        let (result, _, endpoint) = answered(Reply::with(200, &[&coding], &zipped)).await;
        let tokens = result.unwrap();
        assert_eq!(access(&tokens), "a");
        assert_eq!(refresh(&tokens), Some("new-one"));
        assert_eq!(endpoint.seen()[0].header("accept-encoding"), Some("identity"));
    }
    let refusal = gzip(r#"{"error":"bad_refresh_token"}"#);
    let (result, ..) = answered(Reply::with(400, &["Content-Encoding: gzip"], refusal)).await;
    assert_eq!(result.unwrap_err().kind(), ErrorKind::LoginRequired);
}

#[tokio::test]
async fn an_undecodable_body_is_a_bad_response() {
    let zipped = gzip(r#"{"access_token":"a"}"#);
    let bomb = gzip(&" ".repeat(1024 * 1024 + 1));
    for (coding, body) in
        [("br", &zipped[..]), ("gzip", &zipped[..20]), ("gzip, gzip", &zipped), ("gzip", &bomb)]
    {
        let coding = format!("Content-Encoding: {coding}");
        let (result, _, endpoint) = answered(Reply::with(200, &[&coding], body)).await;
        let error = result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BadResponse, "{coding}");
        assert_eq!(endpoint.count(), 1, "{coding}");
    }
}

/// Gzip that breaks after the JSON text of a refresh token.
fn broken_gzip() -> Reply {
    let noise: String = (0..9000_u32).map(|n| n.wrapping_mul(2_654_435_761).to_string()).collect();
    let zipped = gzip(&format!(r#"{{"refresh_token":"doubtful-token","x":"{noise}"}}"#));
    Reply::with(200, &["Content-Encoding: gzip"], &zipped[..zipped.len() / 2])
}

#[tokio::test]
async fn a_refresh_token_in_broken_gzip_is_kept() {
    let endpoint = TokenEndpoint::start([broken_gzip(), Reply::token()]).await;
    let (result, log) = run(&quick(&endpoint)).await;
    assert_eq!(access(&result.unwrap()), "new-access");
    assert_eq!(log.kept(), ["doubtful-token"]);
    assert_eq!(endpoint.asked_with(), [OLD, "doubtful-token"]);
}

#[tokio::test]
async fn the_old_one_stays_beside_a_doubtful_one() {
    let invalid = || Reply::json(400, r#"{"error":"invalid_grant"}"#);
    let endpoint = TokenEndpoint::start([broken_gzip(), invalid(), Reply::token()]).await;
    let (result, log) = run(&quick(&endpoint)).await;
    assert_eq!(access(&result.unwrap()), "new-access");
    assert_eq!(log.kept(), ["doubtful-token", OLD]);
    assert_eq!(endpoint.asked_with(), [OLD, "doubtful-token", OLD]);
    // In the next refresh too.
    let endpoint = TokenEndpoint::start([broken_gzip(), invalid(), Reply::token()]).await;
    let refresher = quick(&endpoint).max_attempts(1);
    let (result, log) = run(&refresher).await;
    assert_eq!(result.unwrap_err().kind(), ErrorKind::BadResponse);
    let result = refresher.refresh(&RefreshContext::new(log)).await;
    assert_eq!(access(&result.unwrap()), "new-access");
    assert_eq!(endpoint.asked_with(), [OLD, "doubtful-token", OLD]);
    // Once both are rejected, the login is over.
    let endpoint = TokenEndpoint::start([broken_gzip(), invalid()]).await;
    let (result, _) = run(&quick(&endpoint)).await;
    assert_eq!(result.unwrap_err().kind(), ErrorKind::LoginRequired);
    assert_eq!(endpoint.count(), 3);
}

#[tokio::test]
async fn each_code_has_its_kind_at_any_status() {
    let table = [
        ("invalid_grant", ErrorKind::LoginRequired),
        ("invalid_client", ErrorKind::ClientRejected),
        ("unauthorized_client", ErrorKind::ClientRejected),
        ("unsupported_grant_type", ErrorKind::ClientRejected),
        ("invalid_scope", ErrorKind::ClientRejected),
        ("invalid_request", ErrorKind::ClientRejected),
        ("invalid_target", ErrorKind::ClientRejected),
        ("consent_missing", ErrorKind::ClientRejected),
    ];
    for (code, kind) in table {
        for status in [200, 400, 401] {
            let body = format!(
                r#"{{"error":"{code}","error_description":"so it is","access_token":"a"}}"#
            );
            let (result, log, endpoint) = answered(Reply::json(status, body)).await;
            let error = result.unwrap_err();
            assert_eq!(error.kind(), kind, "{status}");
            assert_eq!(error.oauth_error(), Some(code), "{status}");
            assert_eq!(error.status().unwrap().as_u16(), status);
            assert_eq!(error.attempts(), 1);
            assert_eq!(error.source().unwrap().to_string(), "the token endpoint says: so it is");
            assert!(!error.possibly_consumed() && !error.nothing_to_ask_with());
            assert_eq!(endpoint.count(), 1);
            assert_eq!(log.retries().len(), 0);
            assert_eq!(log.kept().len(), 0);
        }
    }
}

#[tokio::test]
async fn a_lone_refresh_token_is_kept_and_used() {
    let rescued = r#""refresh_token":"rescued-token""#;
    for first in [
        Reply::json(200, format!("{{{rescued}}}")),
        Reply::json(200, format!(r#"{{"access_token":"a b",{rescued},"expires_in":1e400}}"#)),
        Reply::json(200, format!(r#"{{{rescued},"x":oops"#)),
        Reply::cut(200, &format!(r#"{{{rescued},"access_token":"a"#)),
        Reply::with(
            200,
            &["Set-Cookie: JWT=; Max-Age=0", "Set-Cookie: JWT_REFRESH_TOKEN=rescued-token"],
            "",
        ),
    ] {
        let endpoint = TokenEndpoint::start([first, Reply::token()]).await;
        // The rescued token is not the one whose response was lost.
        let (result, log) = run(&quick(&endpoint).retry_lost(false)).await;
        assert_eq!(access(&result.unwrap()), "new-access");
        assert_eq!(log.kept(), ["rescued-token"]);
        assert_eq!(endpoint.asked_with(), [OLD, "rescued-token"]);
        assert_eq!(log.retried_statuses(), [(1, Some(200))]);
    }
}

#[tokio::test]
async fn a_refresh_token_is_kept_before_judging() {
    let body = |member: &str| {
        format!(r#"{{"access_token":"a",{member},"refresh_token":"rescued-token"}}"#)
    };
    for (member, kind) in [
        (r#""token_type":"mac""#, ErrorKind::BadResponse),
        (r#""error":"invalid_client""#, ErrorKind::ClientRejected),
    ] {
        let (result, log, endpoint) = answered(Reply::json(200, body(member))).await;
        assert_eq!(result.unwrap_err().kind(), kind);
        assert_eq!(log.kept(), vec!["rescued-token".to_owned()]);
        assert_eq!(endpoint.count(), 1);
    }
}

#[tokio::test]
async fn a_refresh_spends_two_new_refresh_tokens() {
    let rescues =
        (1..9).map(|number| Reply::json(200, format!(r#"{{"refresh_token":"rescue-{number}"}}"#)));
    let endpoint = TokenEndpoint::start(rescues).await;
    let (result, log) = run(&quick(&endpoint)).await;
    assert_eq!(result.unwrap_err().kind(), ErrorKind::BadResponse);
    assert_eq!(endpoint.asked_with(), [OLD, "rescue-1", "rescue-2"]);
    assert_eq!(log.kept(), ["rescue-1", "rescue-2", "rescue-3"]);
}

#[tokio::test]
async fn rescues_end_with_the_attempts() {
    let endpoint = TokenEndpoint::start([
        Reply::json(200, r#"{"refresh_token":"first-rescue"}"#),
        Reply::json(200, r#"{"refresh_token":"second-rescue"}"#),
    ])
    .await;
    let (result, log) = run(&quick(&endpoint).max_attempts(2)).await;
    let error = result.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BadResponse);
    assert_eq!(error.attempts(), 2);
    assert_eq!(log.kept(), ["first-rescue", "second-rescue"]);
    // The same token again is no rescue: the response is complete, but not a token response.
    let endpoint =
        TokenEndpoint::start([Reply::json(200, r#"{"refresh_token":"first-rescue"}"#)]).await;
    let (result, log) = run(&quick(&endpoint)).await;
    let error = result.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BadResponse);
    assert_eq!(error.attempts(), 2);
    assert_eq!(log.kept().len(), 1);
}
