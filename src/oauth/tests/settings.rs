//! Settings that cannot work are rejected before anything is sent.

use super::*;

fn problem(refresher: &OAuthRefresh) -> Option<ErrorKind> {
    refresher.check().err().map(|error| error.kind())
}

#[test]
fn endpoints_are_https_or_on_loopback() {
    let good = [
        "https://t.example.com",
        "https://t.example.com:8443/token?tenant=1",
        "http://127.0.0.1:1/token",
        "http://127.9.9.9/token",
        "http://[::1]/token",
        "http://localhost/token",
        "http://t.localhost/token",
    ];
    for url in good {
        assert_eq!(problem(&OAuthRefresh::new(url)), None, "{url}");
    }
    let bad = [
        "",
        "/token",
        "t.example.com/token",
        "ftp://t.example.com/token",
        "data:text/plain,x",
        "https://me@t.example.com/token",
        "https://me:pa55@t.example.com/token",
        "https://:pa55@t.example.com/token",
        "https://t.example.com/token#part",
    ];
    for url in bad {
        for refresher in [OAuthRefresh::new(url), OAuthRefresh::new(url).allow_plain_http()] {
            assert_eq!(problem(&refresher), Some(ErrorKind::InvalidConfig), "{url}");
            let error = refresher.check().unwrap_err();
            assert!(!texts(&error).contains("pa55"));
        }
    }
    for url in [
        "http://t.example.com/token",
        "http://10.0.0.1/",
        "http://localhost.example.com/",
        "http://[::2]/",
    ] {
        assert_eq!(problem(&OAuthRefresh::new(url)), Some(ErrorKind::InvalidConfig), "{url}");
        assert_eq!(problem(&OAuthRefresh::new(url).allow_plain_http()), None, "{url}");
    }
}

#[test]
fn zero_limits_and_doubled_members_fail() {
    let new = || OAuthRefresh::new("https://t.example.com");
    let bad = [
        new().max_attempts(0),
        new().attempt_timeout(Duration::ZERO),
        new().deadline(Duration::ZERO),
        new().param("grant_type", "password"),
        new().param("refresh_token", "x"),
        new().scope("a").param("scope", "b"),
        new().param("client_id", "other").client_id("me"),
        new().client_secret_post("me", "s").param("client_secret", "other"),
        new().client_secret_basic_raw("m:e", "s"),
        new().client_secret_basic_raw("me\u{7f}", "s"),
        new().client_secret_basic_raw("me", "s\n"),
    ];
    for refresher in bad {
        assert_eq!(problem(&refresher), Some(ErrorKind::InvalidConfig), "{refresher:?}");
    }
    let good = [
        new().backoff(Duration::ZERO, Duration::ZERO).max_retry_after(Duration::ZERO),
        new()
            .backoff(Duration::MAX, Duration::MAX)
            .deadline(Duration::MAX)
            .attempt_timeout(Duration::MAX),
        new()
            .param("client_id", "me")
            .param("resource", "a")
            .param("resource", "b")
            .client_secret_basic("me", "s"),
        new().client_secret_basic_raw("m e", "s:"),
    ];
    for refresher in good {
        assert_eq!(problem(&refresher), None);
    }
}

#[tokio::test]
async fn invalid_settings_send_nothing() {
    let endpoint = TokenEndpoint::start([Reply::token()]).await;
    let error = run(&quick(&endpoint).max_attempts(0)).await.0.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidConfig);
    assert_eq!(endpoint.count(), 0);
}

#[tokio::test]
async fn absurd_durations_are_no_limit() {
    let endpoint = TokenEndpoint::start([Reply::status(503), Reply::token()]).await;
    let most = Duration::MAX;
    let refresher = quick(&endpoint).deadline(most).attempt_timeout(most).max_retry_after(most);
    run(&refresher).await.0.unwrap();
    // An endless wait in an endless refresh is not started either.
    let endpoint =
        TokenEndpoint::start([Reply::with(503, &["Retry-After: 99999999999999999999"], "")]).await;
    let refresher = OAuthRefresh::new(&endpoint.url).deadline(most).max_retry_after(most);
    assert_eq!(run(&refresher).await.0.unwrap_err().kind(), ErrorKind::Unavailable);
}

#[tokio::test]
async fn without_a_refresh_token_nothing_is_sent() {
    let endpoint = TokenEndpoint::start([Reply::token()]).await;
    let refresher = quick(&endpoint);
    for tokens in [Tokens::empty(), Tokens::new("a").unwrap()] {
        assert!(!refresher.can_refresh(&tokens));
        let error = refresher.refresh(&RefreshContext::new(Log::new(tokens))).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::LoginRequired);
        assert!(error.nothing_to_ask_with());
        assert_eq!(error.attempts(), 0);
    }
    assert!(refresher.can_refresh(&Tokens::from_refresh_token("r").unwrap()));
    assert_eq!(endpoint.count(), 0);
}

#[test]
fn the_default_client_outlives_its_runtime() {
    for _ in 0..3 {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (result, log, _) = answered(Reply::token()).await;
            result.unwrap();
            assert!(log.retries().is_empty());
        });
    }
}
