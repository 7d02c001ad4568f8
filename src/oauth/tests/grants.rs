//! Grants without a refresh token, late parameters, and the fallback refresher.

use std::sync::atomic::{AtomicU32, Ordering};

use super::*;

const EXCHANGE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";

fn credentials(endpoint: &TokenEndpoint) -> OAuthRefresh {
    paced(OAuthRefresh::client_credentials(&endpoint.url).client_secret_post("me", "a secret"))
}

fn paced(refresher: OAuthRefresh) -> OAuthRefresh {
    refresher.backoff(Duration::from_millis(2), Duration::from_millis(4))
}

fn said(code: &str) -> Reply {
    Reply::json(400, format!(r#"{{"error":"{code}"}}"#))
}

/// Counts up, so that each assertion is different.
fn counting(
    prefix: &'static str,
) -> impl Fn() -> std::future::Ready<Result<String, crate::BoxError>> {
    let made = AtomicU32::new(0);
    move || {
        let number = made.fetch_add(1, Ordering::SeqCst) + 1;
        std::future::ready(Ok(format!("{prefix}-{number}")))
    }
}

#[tokio::test]
async fn a_grant_without_refresh_token_takes_none() {
    let script = [Reply::status(502), Reply::status(502), Reply::token()];
    let endpoint = TokenEndpoint::start(script).await;
    let (brought, log) = run(&credentials(&endpoint)).await;
    let brought = brought.unwrap();
    assert_eq!(access(&brought), "new-access");
    assert_eq!(refresh(&brought), None);
    assert_eq!(endpoint.count(), 3);
    assert_eq!(log.kept(), Vec::<String>::new());
    for seen in endpoint.seen() {
        assert_eq!(seen.form, "grant_type=client_credentials&client_id=me&client_secret=a+secret");
    }
}

#[tokio::test]
async fn no_code_ends_a_login_without_refresh_token() {
    for code in ["invalid_grant", "invalid_client"] {
        let endpoint = TokenEndpoint::start([said(code)]).await;
        let error = run(&credentials(&endpoint)).await.0.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ClientRejected, "{code}");
        assert_eq!(error.oauth_error(), Some(code));
        assert_eq!(endpoint.count(), 1, "{code}");
    }
}

#[tokio::test]
async fn nothing_is_spent_by_a_lost_response() {
    let endpoint = TokenEndpoint::start([Reply::reset(), said("invalid_grant")]).await;
    let error = run(&credentials(&endpoint)).await.0.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ClientRejected);
    assert!(!error.possibly_consumed());
    let endpoint = TokenEndpoint::start([Reply::reset()]).await;
    let error = run(&credentials(&endpoint).max_attempts(2)).await.0.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(!error.possibly_consumed());
}

#[tokio::test]
async fn a_refresh_token_alone_is_no_token() {
    let endpoint = TokenEndpoint::start([Reply::json(200, r#"{"refresh_token":"r"}"#)]).await;
    let (result, log) = run(&credentials(&endpoint)).await;
    assert_eq!(result.unwrap_err().kind(), ErrorKind::BadResponse);
    assert_eq!(endpoint.count(), 1);
    assert!(log.kept().is_empty());
}

#[test]
fn grant_type_is_not_empty_or_refresh_token() {
    let check = |grant: &str| OAuthRefresh::grant("https://t.example.com", grant).check();
    for grant in ["", " ", "refresh_token"] {
        assert_eq!(check(grant).unwrap_err().kind(), ErrorKind::InvalidConfig, "{grant:?}");
    }
    assert!(check(EXCHANGE).is_ok());
    let new = || OAuthRefresh::client_credentials("https://t.example.com");
    let bad = [
        new().param("refresh_token", "x"),
        new().param_with("grant_type", counting("x")),
        new()
            .param_file("client_assertion", "x")
            .client_assertion_with("me", |_| async { Ok(String::new()) }),
        new().client_assertion_with("me", |_| async { Ok(String::new()) }).param("client_id", "x"),
        new().revocation_endpoint("/revoke"),
        new().revocation_endpoint("http://t.example.com/revoke"),
        new().or_else(OAuthRefresh::new("nowhere")),
    ];
    for refresher in bad {
        assert_eq!(refresher.check().unwrap_err().kind(), ErrorKind::InvalidConfig);
    }
    let replaced = new().client_assertion_with("me", |_| async { Ok(String::new()) });
    assert!(replaced.client_id("me").param("client_assertion", "x").check().is_ok());
    assert!(new().revocation_endpoint("https://t.example.com/revoke").check().is_ok());
}

#[tokio::test]
async fn each_attempt_has_its_own_late_parameters() {
    let script = [Reply::status(502), Reply::reset(), Reply::token()];
    let endpoint = TokenEndpoint::start(script).await;
    let token_endpoint = endpoint.url.clone();
    let assertions = AtomicU32::new(0);
    let refresher = paced(OAuthRefresh::new(&endpoint.url))
        .param_with("nonce", counting("n"))
        .client_assertion_with("me", move |audience| {
            assert_eq!(audience.as_str(), token_endpoint);
            let number = assertions.fetch_add(1, Ordering::SeqCst) + 1;
            async move { Ok(format!("assertion-{number}")) }
        });
    run(&refresher).await.0.unwrap();
    let seen = endpoint.seen();
    assert_eq!(seen.len(), 3);
    for (at, seen) in seen.iter().enumerate() {
        assert_eq!(seen.member("nonce"), Some(format!("n-{}", at + 1)));
        assert_eq!(seen.member("client_assertion"), Some(format!("assertion-{}", at + 1)));
        assert_eq!(seen.member("client_id").as_deref(), Some("me"));
        assert_eq!(
            seen.member("client_assertion_type").as_deref(),
            Some("urn:ietf:params:oauth:client-assertion-type:jwt-bearer")
        );
    }
}

#[tokio::test]
async fn a_file_is_read_anew_at_each_attempt() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token");
    std::fs::write(&path, " first\r\n").unwrap();
    let endpoint = TokenEndpoint::start([Reply::status(503), Reply::token()]).await;
    let rewritten = path.clone();
    let refresher = paced(OAuthRefresh::grant(&endpoint.url, EXCHANGE))
        .param_file("subject_token", &path)
        // Computed after the first, so the next attempt reads what this writes.
        .param_with("n", move || {
            std::fs::write(&rewritten, "second").unwrap();
            async { Ok("x".to_owned()) }
        });
    run(&refresher).await.0.unwrap();
    let tokens: Vec<_> = endpoint.seen().iter().map(|seen| seen.member("subject_token")).collect();
    assert_eq!(tokens, [Some("first".to_owned()), Some("second".to_owned())]);
}

#[tokio::test]
async fn a_failed_late_parameter_is_retried() {
    let endpoint = TokenEndpoint::start([Reply::token()]).await;
    let made = AtomicU32::new(0);
    let refresher = credentials(&endpoint).param_with("x", move || {
        let number = made.fetch_add(1, Ordering::SeqCst);
        async move { if number < 2 { Err("the signer is away".into()) } else { Ok("y".into()) } }
    });
    let (brought, log) = run(&refresher).await;
    assert_eq!(access(&brought.unwrap()), "new-access");
    assert_eq!(endpoint.count(), 1);
    assert_eq!(log.retried_statuses(), [(1, None), (2, None)]);
}

#[tokio::test]
async fn a_failed_late_parameter_is_reported() {
    let endpoint = TokenEndpoint::start([Reply::token()]).await;
    let away = || credentials(&endpoint).max_attempts(2);
    let invalid = || Error::new(ErrorKind::InvalidConfig, "no key");
    let table = [
        (
            away().param_with("x", || async { Err("signer is away, a secret".into()) }),
            (ErrorKind::Unavailable, 2),
            "the parameter x could not be created",
        ),
        (
            away().param_with("x", || async { Err("signer is away".into()) }),
            (ErrorKind::Unavailable, 2),
            "the parameter x could not be created: signer is away",
        ),
        (
            away().param_file("x", "/nowhere/token"),
            (ErrorKind::Unavailable, 2),
            "the parameter x could not be created: /nowhere/token: ",
        ),
        (
            away().param_with(
                "x",
                move || async move { Err(std::io::Error::other(invalid()).into()) },
            ),
            (ErrorKind::InvalidConfig, 1),
            "no key",
        ),
        (
            away().param_with("x", || async { panic!("as the script says") }),
            (ErrorKind::Internal, 1),
            "the closure for the parameter x panicked",
        ),
        (
            away().attempt_timeout(Duration::from_millis(20)).param_with("x", std::future::pending),
            (ErrorKind::Unavailable, 2),
            "the parameters were not ready in time",
        ),
        (
            away().deadline(Duration::from_millis(20)).param_with("x", std::future::pending),
            (ErrorKind::Unavailable, 1),
            "the deadline has passed",
        ),
    ];
    for (refresher, expected, text) in table {
        let error = run(&refresher).await.0.unwrap_err();
        assert_eq!((error.kind(), error.attempts()), expected, "{text}");
        assert!(texts(&error).contains(text), "{text}: {}", texts(&error));
        assert!(!texts(&error).contains("a secret"), "{text}");
        assert!(!error.possibly_consumed(), "{text}");
    }
    assert_eq!(endpoint.count(), 0);
}

#[tokio::test]
async fn no_text_repeats_a_late_parameter() {
    let body = r#"{"error":"bad","error_description":"signed-assertion-1 has expired"}"#;
    let endpoint = TokenEndpoint::start([Reply::json(400, body)]).await;
    let refresher = credentials(&endpoint).param_with("assertion", counting("signed-assertion"));
    let error = run(&refresher).await.0.unwrap_err();
    assert!(!texts(&error).contains("signed-assertion"), "{}", texts(&error));
}

#[tokio::test]
async fn the_fallback_runs_when_the_login_is_over() {
    let first = TokenEndpoint::start([Reply::status(503), said("invalid_grant")]).await;
    let second = TokenEndpoint::start([Reply::status(502), Reply::token()]).await;
    let refresher = quick(&first).or_else(credentials(&second));
    let (brought, log) = run(&refresher).await;
    let brought = brought.unwrap();
    assert_eq!(access(&brought), "new-access");
    assert_eq!(refresh(&brought), None);
    assert_eq!(first.asked_with(), [OLD, OLD]);
    assert!(second.seen().iter().all(|seen| seen.member("refresh_token").is_none()));
    // The numbering continues.
    assert_eq!(log.retried_statuses(), [(1, Some(503)), (3, Some(502))]);
    let switches = log.switches();
    let [switch] = &switches[..] else { panic!("{switches:?}") };
    assert!(switch.contains("returned 400, error invalid_grant, 2 attempts"), "{switch}");
    assert!(log.forgot());
}

#[tokio::test]
async fn a_login_that_waits_for_a_person_is_kept() {
    for code in ["login_required", "interaction_required", "consent_required"] {
        let rule = format!(r#"{{"error":"{code}"}}"#);
        let first = TokenEndpoint::start([Reply::json(400, rule)]).await;
        let second = TokenEndpoint::start([Reply::token()]).await;
        let (result, log) = run(&quick(&first).or_else(credentials(&second))).await;
        // If the code ends the login.
        if result.is_ok() {
            assert_eq!(second.count(), 1, "{code}");
        }
        assert!(!log.forgot(), "{code}");
    }
}

#[tokio::test]
async fn the_error_is_the_fallbacks_attempts_add_up() {
    let first = TokenEndpoint::start([Reply::status(503), said("invalid_grant")]).await;
    let second = TokenEndpoint::start([said("invalid_client")]).await;
    let (result, log) = run(&quick(&first).or_else(credentials(&second))).await;
    let error = result.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ClientRejected);
    assert_eq!(error.attempts(), 3);
    assert!(!log.forgot());
    let minted = crate::refresh_with(|_| async { Err(Error::of(ErrorKind::Unavailable)) });
    let error = run(&quick(&first).or_else(minted)).await.0.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert_eq!(error.attempts(), 2);
}

#[tokio::test]
async fn other_failures_do_not_fall_back() {
    for reply in [said("invalid_client"), Reply::status(500), Reply::status(200)] {
        let first = TokenEndpoint::start([reply]).await;
        let second = TokenEndpoint::start([Reply::token()]).await;
        let refresher = quick(&first).max_attempts(1).or_else(credentials(&second));
        assert!(run(&refresher).await.0.is_err());
        assert_eq!(second.count(), 0);
    }
}

#[tokio::test]
async fn a_grant_with_an_ending_code_falls_back() {
    let first = TokenEndpoint::start([said("invalid_grant")]).await;
    let second = TokenEndpoint::start([Reply::token()]).await;
    let bearer = OAuthRefresh::grant(&first.url, "urn:ietf:params:oauth:grant-type:jwt-bearer");
    let (brought, log) = run(&paced(bearer).or_else(credentials(&second))).await;
    assert_eq!(access(&brought.unwrap()), "new-access");
    // It was never sent.
    assert!(!log.forgot());
}

#[tokio::test]
async fn a_missing_refresh_token_falls_back_too() {
    let first = TokenEndpoint::start([said("invalid_grant")]).await;
    let second = TokenEndpoint::start([Reply::token()]).await;
    let refresher = quick(&first).or_else(credentials(&second));
    assert!(refresher.can_refresh(&Tokens::empty()));
    assert!(!quick(&first).or_else(quick(&second)).can_refresh(&Tokens::empty()));
    let context = RefreshContext::new(Log::new(Tokens::empty()));
    let brought = refresher.refresh(&context).await.unwrap();
    assert_eq!(access(&brought), "new-access");
    assert_eq!(context.attempts(), 1);
    assert_eq!(first.count(), 0);
    assert_eq!(second.count(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_deadline_bounds_the_fallback_too() {
    let hangs = crate::refresh_with(|_| std::future::pending());
    let first = OAuthRefresh::new("https://t.example.com").deadline(Duration::from_secs(20));
    let context = RefreshContext::new(Log::new(Tokens::empty()));
    let begun = tokio::time::Instant::now();
    let error = first.or_else(hangs).refresh(&context).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert_eq!(begun.elapsed().as_secs(), 20);
}

#[tokio::test]
async fn revocation_names_each_token_and_the_client() {
    let endpoint = TokenEndpoint::start([
        Reply::status(503),
        Reply::status(200),
        Reply::reset(),
        Reply::status(200),
    ])
    .await;
    let refresher = paced(OAuthRefresh::new("http://127.0.0.1:1/token"))
        .revocation_endpoint(&endpoint.url)
        .param("audience", "not sent")
        .param_with("late", || async { Err("not made".into()) })
        .client_assertion_with("me", |audience| async move { Ok(audience.to_string()) });
    let tokens = Tokens::new("at").unwrap().with_refresh_token("rt").unwrap();
    assert!(refresher.can_revoke());
    refresher.revoke(&tokens).await.unwrap();
    let forms: Vec<_> = endpoint.seen().into_iter().map(|seen| seen.form).collect();
    let client = "client_id=me&client_assertion_type=urn%3Aietf%3Aparams%3Aoauth%3A\
                  client-assertion-type%3Ajwt-bearer&client_assertion=http%3A%2F%2F127.0.0.1%3A1%2Ftoken";
    let refresh = format!("token=rt&token_type_hint=refresh_token&{client}");
    let access = format!("token=at&token_type_hint=access_token&{client}");
    assert_eq!(forms, [refresh.clone(), refresh, access.clone(), access]);
}

#[tokio::test]
async fn each_failed_revocation_is_reported() {
    let refused = Reply::json(400, r#"{"error":"unsupported_token_type"}"#);
    let endpoint = TokenEndpoint::start([refused, Reply::status(403)]).await;
    let refresher = quick(&endpoint).revocation_endpoint(&endpoint.url);
    let tokens = Tokens::new("access").unwrap().with_refresh_token("refresh").unwrap();
    let error = refresher.revoke(&tokens).await.unwrap_err();
    let each = crate::refresher::Several::each(error);
    let seen: Vec<_> = each
        .iter()
        .map(|error| (error.status().map(|status| status.as_u16()), error.oauth_error()))
        .collect();
    assert_eq!(seen, [(Some(400), Some("unsupported_token_type")), (Some(403), None)]);
    assert_eq!(endpoint.count(), 2);
    assert!(!OAuthRefresh::new(&endpoint.url).can_revoke());
}

#[tokio::test]
async fn a_token_is_revoked_where_it_came_from() {
    let second = TokenEndpoint::start([Reply::status(200)]).await;
    let minted = crate::refresh_with(|_| async { Tokens::new("minted") });
    let refresher =
        OAuthRefresh::new("https://t.example.com").revocation_endpoint(&second.url).or_else(minted);
    let context = RefreshContext::new(Log::new(Tokens::empty()));
    assert_eq!(access(&refresher.refresh(&context).await.unwrap()), "minted");
    refresher.revoke(&Tokens::new("minted").unwrap()).await.unwrap();
    assert_eq!(second.count(), 0);
    refresher.revoke(&Tokens::new("another").unwrap()).await.unwrap();
    assert_eq!(second.count(), 1);
}
