//! What is retried, when, and how it ends.

use http::Extensions;
use reqwest::{Client, Request, Response};
use reqwest_middleware::{ClientBuilder, Middleware, Next};
use tokio::{sync::Notify, time::Instant};

use super::{server::head, *};

/// A token endpoint without a socket, so that the clock can be paused. It is always busy, and
/// records the times of the calls.
struct Busy {
    retry_after: Option<&'static str>,
    asked: Arc<Mutex<Vec<Asked>>>,
}

/// The time of the call. The test's clock is paused except during waits, which `reqwest-retry`
/// computes with the real clock: real time that passes counts towards the wait.
struct Asked {
    by_the_test: Instant,
    really: std::time::Instant,
}

#[async_trait]
impl Middleware for Busy {
    async fn handle(
        &self,
        _: Request,
        _: &mut Extensions,
        _: Next<'_>,
    ) -> reqwest_middleware::Result<Response> {
        self.asked
            .lock()
            .unwrap()
            .push(Asked { by_the_test: Instant::now(), really: std::time::Instant::now() });
        let mut answer = http::Response::builder().status(503);
        if let Some(wait) = self.retry_after {
            answer = answer.header("retry-after", wait);
        }
        Ok(Response::from(answer.body("").unwrap()))
    }
}

/// The waits that were announced, and the refresh's failure.
async fn waits(
    retry_after: Option<&'static str>,
    set: impl FnOnce(OAuthRefresh) -> OAuthRefresh,
) -> (Vec<Duration>, Error) {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let busy = Busy { retry_after, asked: Arc::clone(&asked) };
    let client = ClientBuilder::new(Client::new()).with(busy).build();
    let refresher = set(OAuthRefresh::new("https://t.example.com").http_client(client));
    let (result, log) = run(&refresher).await;
    let asked = asked.lock().unwrap();
    let told: Vec<_> = log.retries().into_iter().map(|(_, told, _)| told).collect();
    assert_eq!(told.len(), asked.len() - 1);
    // The waits match the announced ones, apart from the timer's milliseconds.
    for (pair, told) in asked.windows(2).zip(&told) {
        let gap = pair[1].by_the_test - pair[0].by_the_test;
        assert!(gap <= *told + Duration::from_millis(3), "{told:?} {gap:?}");
        assert!(*told <= gap + (pair[1].really - pair[0].really), "{told:?} {gap:?}");
    }
    (told, result.unwrap_err())
}

#[tokio::test(start_paused = true)]
async fn six_attempts_and_backoff_by_default() {
    let mut all = Vec::new();
    for _ in 0..30 {
        let (told, error) = waits(None, |refresher| refresher).await;
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert_eq!(error.attempts(), 6);
        assert_eq!(told.len(), 5);
        for (wait, step) in told.iter().zip([500, 1000, 2000, 4000, 8000]) {
            let step = Duration::from_millis(step);
            assert!(step / 2 <= *wait && *wait <= step, "{wait:?} of {step:?}");
        }
        all.push(told);
    }
    assert!(all.iter().any(|told| *told != all[0]));
}

#[tokio::test(start_paused = true)]
async fn deadline_and_retry_after_defaults() {
    let begun = Instant::now();
    let (told, error) = waits(Some("30"), |refresher| refresher).await;
    assert_eq!(told.len(), 1);
    assert_eq!(error.attempts(), 2);
    assert_eq!(error.retry_after(), Some(Duration::from_secs(30)));
    assert!(
        begun.elapsed() < Duration::from_secs(31),
        "a wait was begun that ends after the deadline"
    );
    let (told, error) = waits(Some("31"), |refresher| refresher).await;
    assert_eq!(told.len(), 0);
    assert_eq!(error.attempts(), 1);
    let (told, error) =
        waits(Some("31"), |refresher| refresher.max_retry_after(Duration::from_secs(31))).await;
    assert_eq!(told.len(), 1);
    assert_eq!(error.attempts(), 2);
}

#[tokio::test]
async fn passing_codes_are_retried() {
    for status in [408, 409, 423, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529] {
        let endpoint = TokenEndpoint::start([
            Reply::status(status),
            Reply::json(status, r#"{"error":"invalid_grant"}"#),
            Reply::with(status, &[], "<html>"),
            Reply::token(),
        ])
        .await;
        let (result, log) = run(&quick(&endpoint)).await;
        assert_eq!(access(&result.unwrap()), "new-access");
        assert_eq!(log.retried_statuses(), [1, 2, 3].map(|attempt| (attempt, Some(status))));
        let forms: Vec<_> = endpoint.seen().into_iter().map(|seen| seen.form).collect();
        assert_eq!(forms, ["grant_type=refresh_token&refresh_token=old-refresh-token"; 4]);
    }
    for code in ["temporarily_unavailable", "server_error", "slow_down", "rate_limit_exceeded"] {
        let body = format!(r#"{{"error":"{code}"}}"#);
        let endpoint = TokenEndpoint::start([
            Reply::json(400, &body),
            Reply::json(200, &body),
            Reply::json(403, body),
            Reply::token(),
        ])
        .await;
        let (result, log) = run(&quick(&endpoint)).await;
        result.unwrap();
        assert_eq!(log.retried_statuses(), [(1, Some(400)), (2, Some(200)), (3, Some(403))]);
    }
}

#[tokio::test]
async fn attempts_run_out() {
    for attempts in [1, 2, 6] {
        let endpoint =
            TokenEndpoint::start([Reply::json(503, r#"{"error":"temporarily_unavailable"}"#)])
                .await;
        let (result, log) = run(&quick(&endpoint).max_attempts(attempts)).await;
        let error = result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert_eq!(error.attempts(), attempts);
        assert_eq!(error.status(), Some(StatusCode::SERVICE_UNAVAILABLE));
        assert_eq!(error.oauth_error(), Some("temporarily_unavailable"));
        assert!(!error.possibly_consumed());
        assert_eq!(endpoint.count(), attempts as usize);
        assert_eq!(log.retries().len(), attempts as usize - 1);
    }
}

#[tokio::test]
async fn other_failures_are_not_asked_about_again() {
    for (status, kind) in [
        (400, ErrorKind::ClientRejected),
        (404, ErrorKind::ClientRejected),
        (501, ErrorKind::ClientRejected),
        (505, ErrorKind::Unavailable),
        (407, ErrorKind::Unavailable),
        (302, ErrorKind::BadResponse),
    ] {
        let (result, log, endpoint) = answered(Reply::status(status)).await;
        let error = result.unwrap_err();
        assert_eq!(error.kind(), kind);
        assert_eq!(error.status().unwrap().as_u16(), status);
        assert_eq!(error.attempts(), 1);
        assert_eq!(endpoint.count(), 1);
        assert_eq!(log.retries().len(), 0);
    }
}

/// Advances tokio's clock without waiting.
async fn pass(span: Duration) {
    tokio::time::pause();
    tokio::time::advance(span).await;
    tokio::time::resume();
}

/// One refresh whose attempt timeout runs out as soon as a response stalls, and never before.
async fn refresh_past_stalls(
    endpoint: &TokenEndpoint,
    stalls: usize,
    refresher: OAuthRefresh,
) -> (Result<Tokens, Error>, Arc<Log>) {
    let limit = Duration::from_secs(600);
    let refresher = refresher.attempt_timeout(limit).deadline(limit * 100);
    let passing = async {
        for stalled in 1..=stalls {
            endpoint.until_stalled(stalled).await;
            pass(limit).await;
        }
    };
    tokio::join!(run(&refresher), passing).0
}

#[tokio::test]
async fn a_lost_response_waits_the_first_step() {
    let lost = [
        Reply::reset(),
        Reply::cut(200, r#"{"access_token":"a""#),
        Reply::cut(200, ""),
        Reply::Stall(Vec::new()),
        Reply::Stall(head(200, &[], Some(100))),
    ];
    let script = lost.into_iter().chain([Reply::token()]);
    let endpoint = TokenEndpoint::start(script).await;
    let first = Duration::from_millis(10);
    let refresher = OAuthRefresh::new(&endpoint.url).backoff(first, Duration::from_secs(9));
    let (result, log) = refresh_past_stalls(&endpoint, 2, refresher).await;
    assert_eq!(access(&result.unwrap()), "new-access");
    assert_eq!(
        log.retried_statuses(),
        [(1, None), (2, Some(200)), (3, Some(200)), (4, None), (5, Some(200))]
    );
    for (_, delay, _) in log.retries() {
        assert!(first / 2 <= delay && delay <= first, "{delay:?}");
    }
}

#[tokio::test]
async fn without_retry_lost_a_lost_response_ends_it() {
    for reply in [
        Reply::reset(),
        Reply::cut(200, "{"),
        Reply::Stall(Vec::new()),
        Reply::Stall(head(200, &[], Some(9))),
        Reply::status(408),
        Reply::status(502),
        Reply::status(504),
        Reply::status(520),
    ] {
        let stalls = usize::from(matches!(reply, Reply::Stall(_)));
        let endpoint = TokenEndpoint::start([reply]).await;
        let refresher = quick(&endpoint).retry_lost(false);
        let (result, log) = refresh_past_stalls(&endpoint, stalls, refresher).await;
        let error = result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert_eq!(error.attempts(), 1);
        assert!(error.possibly_consumed());
        assert_eq!(endpoint.count(), 1);
        assert_eq!(log.retries().len(), 0);
    }
}

#[tokio::test]
async fn a_gateway_status_waits_the_first_step() {
    let first = Duration::from_millis(10);
    let script = [502, 504, 408, 520, 524].map(Reply::status);
    let endpoint = TokenEndpoint::start(script.into_iter().chain([Reply::token()])).await;
    let refresher = OAuthRefresh::new(&endpoint.url).backoff(first, Duration::from_secs(9));
    let (result, log) = run(&refresher).await;
    assert_eq!(access(&result.unwrap()), "new-access");
    assert_eq!(log.retries().len(), 5);
    assert!(log.retries().iter().all(|(_, delay, _)| *delay <= first + Duration::from_millis(1)));
}

#[tokio::test]
async fn salesforce_at_work_is_retried() {
    let body = |code: &str, text: &str| {
        Reply::json(400, format!(r#"{{"error":"{code}","error_description":"{text}"}}"#))
    };
    let script = [
        body("invalid_grant", "token request is already being processed"),
        body("unknown_error", "Retry your request"),
    ];
    let endpoint = TokenEndpoint::start(script.clone().into_iter().chain([Reply::token()])).await;
    let (result, _) = run(&quick(&endpoint)).await;
    assert_eq!(access(&result.unwrap()), "new-access");
    let endpoint = TokenEndpoint::start(script).await;
    let error = run(&quick(&endpoint)).await.0.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert_eq!(error.attempts(), 6);
    assert!(!error.possibly_consumed());
}

#[tokio::test]
async fn entras_throttle_is_no_end_of_the_login() {
    let body = r#"{"error":"invalid_grant","error_description":"AADSTS50196: client loop"}"#;
    let (result, _, endpoint) = answered(Reply::json(400, body)).await;
    let error = result.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert_eq!(endpoint.count(), 1);
    assert_eq!(error.retry_after(), Some(Duration::from_secs(60)));
}

#[tokio::test]
async fn retry_after_counts_with_each_status_and_code() {
    let wait = "Retry-After: 60";
    let statuses = [408, 409, 423, 425, 429, 500, 502, 503, 504, 520, 524, 529]
        .map(|status| Reply::with(status, &[wait], ""));
    let codes = ["temporarily_unavailable", "server_error", "slow_down", "rate_limit_exceeded"]
        .map(|code| Reply::with(400, &[wait], format!(r#"{{"error":"{code}"}}"#)));
    for reply in statuses.into_iter().chain(codes) {
        let Reply::Bytes(shown) = &reply else { unreachable!() };
        let shown = String::from_utf8_lossy(shown).into_owned();
        let (result, _, endpoint) = answered(reply).await;
        let error = result.unwrap_err();
        let seen = (error.kind(), error.retry_after(), endpoint.count());
        let expected = (ErrorKind::Unavailable, Some(Duration::from_secs(60)), 1);
        assert_eq!(seen, expected, "{shown}");
    }
}

#[tokio::test]
async fn headers_and_body_share_the_attempt_timeout() {
    let body = r#"{"access_token":"late","refresh_token":"late-refresh"}"#;
    let head = head(200, &["Content-Type: application/json"], Some(body.len()));
    let slow = Reply::Slow(vec![
        (Duration::from_secs(70), head),
        (Duration::from_secs(70), body.as_bytes().to_vec()),
    ]);
    let endpoint = TokenEndpoint::start([slow, Reply::token()]).await;
    let limit = Duration::from_secs(100);
    let refresher = quick(&endpoint).attempt_timeout(limit).deadline(limit * 100);
    let passing = async {
        // The headers come after 70 s, and the limit is over after 101 s.
        for (stalled, seconds) in [(1, 70), (2, 31)] {
            endpoint.until_stalled(stalled).await;
            // What was sent before the stall is read.
            for _ in 0..1000 {
                tokio::task::yield_now().await;
            }
            pass(Duration::from_secs(seconds)).await;
        }
    };
    let (result, log) = tokio::join!(run(&refresher), passing).0;
    assert_eq!(access(&result.unwrap()), "new-access");
    assert_eq!(log.retried_statuses(), [(1, Some(200))]);
}

#[tokio::test]
async fn after_a_lost_response_possibly_consumed() {
    let invalid_grant = || Reply::json(400, r#"{"error":"invalid_grant"}"#);
    let rescue = || Reply::json(200, r#"{"refresh_token":"rescued-token"}"#);
    let table = [
        (vec![Reply::reset(), invalid_grant()], ErrorKind::LoginRequired, true),
        (vec![Reply::reset(), Reply::status(503)], ErrorKind::Unavailable, true),
        (vec![Reply::reset()], ErrorKind::Unavailable, true),
        (vec![Reply::status(504), invalid_grant()], ErrorKind::LoginRequired, true),
        (vec![Reply::status(524)], ErrorKind::Unavailable, true),
        (vec![Reply::status(503), invalid_grant()], ErrorKind::LoginRequired, false),
        // The token that may be spent is no longer the one in the request.
        (vec![Reply::reset(), rescue(), invalid_grant()], ErrorKind::LoginRequired, false),
        (
            vec![Reply::reset(), rescue(), Reply::reset(), invalid_grant()],
            ErrorKind::LoginRequired,
            true,
        ),
    ];
    for (number, (script, kind, consumed)) in table.into_iter().enumerate() {
        let endpoint = TokenEndpoint::start(script).await;
        let error = run(&quick(&endpoint)).await.0.unwrap_err();
        assert_eq!(error.kind(), kind, "{number}");
        assert_eq!(error.possibly_consumed(), consumed, "{number}");
    }
}

#[tokio::test]
async fn a_stalled_rejection_goes_by_its_headers() {
    for (status, kind, count) in
        [(403, ErrorKind::ClientRejected, 1), (503, ErrorKind::Unavailable, 2)]
    {
        let endpoint = TokenEndpoint::start([Reply::Stall(head(status, &[], Some(9)))]).await;
        let refresher = quick(&endpoint).max_attempts(2);
        let error = refresh_past_stalls(&endpoint, count, refresher).await.0.unwrap_err();
        assert_eq!(error.kind(), kind);
        assert!(!error.possibly_consumed());
        assert_eq!(endpoint.count(), count);
    }
}

#[tokio::test]
async fn the_deadline_is_over_everything() {
    let endpoint = TokenEndpoint::start([Reply::Stall(Vec::new())]).await;
    let begun = Instant::now();
    let deadline = Duration::from_secs(600);
    let refresher = quick(&endpoint).attempt_timeout(deadline * 100).deadline(deadline);
    let passing = async {
        endpoint.until_stalled(1).await;
        pass(deadline).await;
    };
    let error = tokio::join!(run(&refresher), passing).0.0.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert_eq!(error.attempts(), 1);
    assert!(error.possibly_consumed());
    assert!(begun.elapsed() < deadline * 2, "the attempt's timeout was waited for");

    // A wait that would end later is not started.
    let endpoint = TokenEndpoint::start([Reply::status(503)]).await;
    let refresher = OAuthRefresh::new(&endpoint.url)
        .deadline(Duration::from_secs(20))
        .backoff(Duration::MAX, Duration::MAX);
    let (result, log) = run(&refresher).await;
    let error = result.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert_eq!(error.attempts(), 1);
    assert_eq!(log.retries().len(), 0);
    assert!(begun.elapsed() < deadline * 2);
}

/// A session whose store hangs.
struct StuckKeep(Arc<Log>, Arc<Notify>);

#[async_trait]
impl RefreshLog for StuckKeep {
    fn tokens(&self) -> Tokens {
        self.0.tokens()
    }

    fn retrying(&self, _: u32, _: Duration, _: Option<StatusCode>) {}

    async fn keep(&self, refresh_token: RefreshToken) {
        self.0.keep(refresh_token).await;
        self.1.notify_one();
        std::future::pending::<()>().await;
    }
}

#[tokio::test]
async fn the_deadline_covers_the_rescue_save() {
    let endpoint =
        TokenEndpoint::start([Reply::json(200, r#"{"refresh_token":"rescued-token"}"#)]).await;
    let log = Log::new(Tokens::from_refresh_token(OLD).unwrap());
    let stuck = Arc::new(Notify::new());
    let context = RefreshContext::new(Arc::new(StuckKeep(Arc::clone(&log), Arc::clone(&stuck))));
    let deadline = Duration::from_secs(600);
    let refresher = quick(&endpoint).attempt_timeout(deadline).deadline(deadline);
    let passing = async {
        stuck.notified().await;
        pass(deadline).await;
    };
    let error = tokio::join!(refresher.refresh(&context), passing).0.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BadResponse);
    assert!(!error.possibly_consumed());
    assert_eq!(log.kept(), ["rescued-token"]);
}

#[tokio::test]
async fn retry_after_is_the_least_wait() {
    let now = "Date: Wed, 01 Jan 2025 00:00:00 GMT";
    let table: [(&[&str], bool); 6] = [
        (&["Retry-After: 1"], true),
        // By the server's clock, which is far from the local one.
        (&[now, "Retry-After: Wed, 01 Jan 2025 00:00:01 GMT"], true),
        (&["Retry-After: 0"], false),
        (&["Retry-After: soon"], false),
        (&["Retry-After: -5"], false),
        (&[now, "Retry-After: Tue, 31 Dec 2024 00:00:00 GMT"], false),
    ];
    for (headers, waits) in table {
        let endpoint = TokenEndpoint::start([Reply::with(429, headers, ""), Reply::token()]).await;
        let begun = Instant::now();
        let (result, log) = run(&quick(&endpoint)).await;
        result.unwrap();
        let delay = log.retries()[0].1;
        if waits {
            assert_eq!(delay, Duration::from_secs(1), "{headers:?}");
            assert!(begun.elapsed() >= Duration::from_millis(999));
        } else {
            assert!(delay <= Duration::from_millis(4), "{headers:?}");
        }
    }
}

#[tokio::test]
async fn too_long_a_retry_after_ends_it() {
    for (value, seconds) in [("86400", 86_400), ("31", 31), ("99999999999999999999", u64::MAX)] {
        let (result, log, endpoint) =
            answered(Reply::with(503, &[&format!("Retry-After: {value}")], "")).await;
        let error = result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert_eq!(error.retry_after(), Some(Duration::from_secs(seconds)));
        assert_eq!(error.attempts(), 1);
        assert_eq!(endpoint.count(), 1);
        assert_eq!(log.retries().len(), 0);
    }
}

#[tokio::test]
async fn the_last_retry_after_stays_with_the_error() {
    let endpoint =
        TokenEndpoint::start([Reply::with(429, &["Retry-After: 0"], ""), Reply::status(503)]).await;
    let error = run(&quick(&endpoint).max_attempts(2)).await.0.unwrap_err();
    assert_eq!(error.status(), Some(StatusCode::SERVICE_UNAVAILABLE));
    assert_eq!(error.retry_after(), Some(Duration::ZERO));
}

#[tokio::test]
async fn the_last_status_outlives_a_lost_response() {
    let endpoint = TokenEndpoint::start([Reply::status(502), Reply::reset()]).await;
    let error = run(&quick(&endpoint).max_attempts(2)).await.0.unwrap_err();
    assert_eq!(error.status(), Some(StatusCode::BAD_GATEWAY));
    assert_eq!(error.attempts(), 2);
}
