//! Before expiry (contract §7), on the paused clock.

use std::time::{Duration, SystemTime};

use crate::support::{
    Api, Events, Issuer, ORIGIN, Turn, answer, error_of, outcome_of, pair, settle, unavailable,
    until, url,
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use reqwest_reauth::{
    ErrorKind, Event, OnRefreshFailure, Session, SessionBuilder, SessionState, Tokens,
};
use tokio::time::advance;

const SECOND: Duration = Duration::from_secs(1);

/// A JWT with these claims, in seconds from now.
fn jwt(name: &str, iat: Option<i64>, exp: i64) -> String {
    let now = i64::try_from(SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs()).unwrap();
    let iat = iat.map(|iat| format!(r#""iat":{},"#, now + iat)).unwrap_or_default();
    let claims = format!(r#"{{{iat}"sub":"{name}","exp":{}}}"#, now + exp);
    format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims))
}

fn builder(issuer: &Issuer, tokens: Tokens) -> SessionBuilder {
    Session::builder(tokens).origin(ORIGIN).refresher(issuer.clone())
}

/// Sends one request a second until there is another call to the token endpoint. Returns how long
/// that took.
async fn seconds_until_asked(session: &Session, issuer: &Issuer, at_most: u64) -> u64 {
    let api = Api::accepting(|_| true);
    let client = api.client(session);
    let before = issuer.calls();
    for second in 0..=at_most {
        client.get(url("/")).send().await.unwrap();
        settle().await;
        if issuer.calls() > before {
            return second;
        }
        advance(SECOND).await;
    }
    panic!("not asked within {at_most} s");
}

#[tokio::test(start_paused = true)]
async fn the_default_window_is_a_fifth_or_60_s() {
    for (lifetime, earliest, latest) in [(100, 80, 82), (3600, 3540, 3546), (10, 8, 9)] {
        let issuer = Issuer::new([]);
        let session =
            builder(&issuer, pair("t0", "r0").with_expires_in(lifetime * SECOND)).build().unwrap();
        let asked = seconds_until_asked(&session, &issuer, u64::from(lifetime)).await;
        assert!((earliest..=latest).contains(&asked), "{lifetime}: {asked}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_window_is_at_most_half_the_lifetime() {
    for (window, earliest, latest) in [(30, 70, 73), (1000, 50, 55), (0, 100, 100)] {
        let issuer = Issuer::new([]);
        let tokens = pair("t0", "r0").with_expires_in(100 * SECOND);
        let session = builder(&issuer, tokens).refresh_ahead(window * SECOND).build().unwrap();
        let asked = seconds_until_asked(&session, &issuer, 100).await;
        assert!((earliest..=latest).contains(&asked), "{window}: {asked}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_fleet_does_not_renew_in_step() {
    let mut due = std::collections::BTreeSet::new();
    for _ in 0..30 {
        let issuer = Issuer::new([]);
        let session =
            builder(&issuer, pair("t0", "r0").with_expires_in(3600 * SECOND)).build().unwrap();
        advance(3535 * SECOND).await;
        due.insert(seconds_until_asked(&session, &issuer, 30).await);
    }
    assert!(due.len() > 2, "{due:?}");
}

#[tokio::test(start_paused = true)]
async fn a_failed_background_refresh_is_silent() {
    let issuer = Issuer::new((0..9).map(|_| Turn::Fail(Duration::ZERO, unavailable())));
    let tokens = pair("t0", "r0").with_expires_in(100 * SECOND);
    let session = builder(&issuer, tokens)
        .on_refresh_failure(OnRefreshFailure::ReturnResponse)
        .build()
        .unwrap();
    let api = Api::accepting(|_| true);
    let client = api.client(&session);
    for _ in 0..100 {
        assert_eq!(client.get(url("/")).send().await.unwrap().status(), 200);
        settle().await;
        advance(SECOND).await;
    }
    // Twenty seconds in the window, with one refresh per cool-down of ten.
    assert!((1..=3).contains(&issuer.calls()), "{}", issuer.calls());
    let sent = api.seen().len();
    until(&session, SessionState::Active).await;
    let error = error_of(client.get(url("/")).send().await);
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert_eq!(error.api_status(), None);
    let error = error_of(client.get(url("/")).send().await);
    assert_eq!(error.kind(), ErrorKind::CoolingDown);
    assert_eq!(error.api_status(), None);
    assert_eq!(api.seen().len(), sent);
}

#[tokio::test(start_paused = true)]
async fn a_panicking_background_refresh_cools_down() {
    let issuer = Issuer::new((0..99).map(|_| Turn::Panic));
    let session = builder(&issuer, pair("t0", "r0").with_expires_in(100 * SECOND)).build().unwrap();
    advance(85 * SECOND).await;
    let api = Api::accepting(|_| true);
    let client = api.client(&session);
    for _ in 0..10 {
        assert_eq!(client.get(url("/")).send().await.unwrap().status(), 200);
        settle().await;
    }
    assert_eq!(issuer.calls(), 1);
    advance(10 * SECOND).await;
    client.get(url("/")).send().await.unwrap();
    settle().await;
    assert_eq!(issuer.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_cut_off_refresh_spends_no_budget() {
    let issuer = Issuer::new([Turn::Panic]);
    let session = builder(&issuer, pair("t0", "r0").with_expires_in(100 * SECOND)).build().unwrap();
    advance(85 * SECOND).await;
    let api = Api::new(|_| async {
        settle().await;
        answer(401)
    });
    let client = api.client(&session);
    assert_eq!(client.get(url("/")).send().await.unwrap().status(), 401);
    assert_eq!(issuer.calls(), 2);
    assert_eq!(api.tokens_seen(), ["t0", "t2"]);
}

#[tokio::test(start_paused = true)]
async fn a_rejection_joins_its_background_refresh() {
    let issuer = Issuer::new([Turn::Issue(SECOND, None)]);
    let session = builder(&issuer, pair("t0", "r0").with_expires_in(100 * SECOND)).build().unwrap();
    advance(85 * SECOND).await;
    let api = Api::accepting(|token| token == "t1");
    let response = api.client(&session).get(url("/")).send().await.unwrap();
    assert_eq!(response.status().as_u16(), 200);
    assert_eq!(issuer.calls(), 1);
    assert!(outcome_of(&response).refreshed && outcome_of(&response).replayed);
}

#[tokio::test(start_paused = true)]
async fn past_expiry_all_requests_wait() {
    let issuer = Issuer::new([Turn::Issue(SECOND, None)]);
    let session =
        builder(&issuer, pair("t0", "r0").with_expires_in(Duration::ZERO)).build().unwrap();
    let api = Api::accepting(|_| true);
    let client = api.client(&session);
    let requests: Vec<_> = (0..50).map(|_| tokio::spawn(client.get(url("/")).send())).collect();
    for request in requests {
        assert!(outcome_of(&request.await.unwrap().unwrap()).refreshed);
    }
    assert_eq!(issuer.calls(), 1);
    assert!(api.tokens_seen().iter().all(|token| token == "t1"));
}

#[tokio::test(start_paused = true)]
async fn without_a_refresher_the_token_is_sent() {
    let session = Session::builder(Tokens::new("t0").unwrap().with_expires_in(Duration::ZERO))
        .origin(ORIGIN)
        .build()
        .unwrap();
    let api = Api::accepting(|token| token == "t0");
    assert_eq!(api.client(&session).get(url("/")).send().await.unwrap().status(), 200);
}

#[tokio::test(start_paused = true)]
async fn expires_in_precedes_the_jwts_lifetime() {
    // Both claims an hour off; a lifetime of 100 s.
    for offset in [-3600, 3600] {
        let fresh = Tokens::new(jwt("a", Some(offset), offset + 100)).unwrap();
        let issuer = Issuer::new([Turn::Bring(Duration::ZERO, fresh)]);
        let session = builder(&issuer, pair("t0", "r0")).build().unwrap();
        session.refresh().await.unwrap();
        let asked = seconds_until_asked(&session, &issuer, 100).await;
        assert!((80..=82).contains(&asked), "{offset}: {asked}");
    }
    let given = Tokens::new(jwt("b", Some(0), 100)).unwrap().with_refresh_token("r0").unwrap();
    let issuer = Issuer::new([]);
    let session = builder(&issuer, given.with_expires_in(10 * SECOND)).build().unwrap();
    assert!((8..=9).contains(&seconds_until_asked(&session, &issuer, 10).await));
}

#[tokio::test(start_paused = true)]
async fn a_given_jwt_ends_by_the_local_clock() {
    let old = Tokens::new(jwt("a", Some(-7200), -3600)).unwrap().with_refresh_token("r0").unwrap();
    for replaced in [false, true] {
        let issuer = Issuer::new([]);
        let session = builder(&issuer, if replaced { pair("t0", "r0") } else { old.clone() })
            .build()
            .unwrap();
        if replaced {
            session.replace_tokens(old.clone()).await.unwrap();
        }
        assert_eq!(seconds_until_asked(&session, &issuer, 0).await, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn hostile_claims_are_no_hint() {
    let claims = [
        "{\"exp\":1e400}",
        "{\"exp\":-1}",
        "{\"exp\":\"soon\"}",
        "{",
        "[]",
        "{\"exp\":18446744073709551615}",
    ];
    for claims in claims {
        let issuer = Issuer::new([]);
        let token = format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims));
        let session =
            builder(&issuer, Tokens::new(token).unwrap().with_refresh_token("r0").unwrap())
                .build()
                .unwrap();
        let api = Api::accepting(|_| true);
        for _ in 0..3 {
            assert_eq!(api.client(&session).get(url("/")).send().await.unwrap().status(), 200);
            advance(86_400 * SECOND).await;
        }
        assert_eq!(issuer.calls(), 0, "{claims}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_expired_capture_refreshes_once() {
    let issuer = Issuer::new((0..99).map(|_| Turn::Issue(Duration::ZERO, Some(3600 * SECOND))));
    let events = Events::default();
    let session = builder(&issuer, pair("t0", "r0")).on_event(events.listener()).build().unwrap();
    let count = std::sync::atomic::AtomicUsize::new(0);
    let api = Api::new(move |_| {
        let n = count.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        let ended = jwt(&format!("c{n}"), Some(0), -10);
        async move { answer(200).header("refreshed-api-token", ended) }
    });
    let client = api.client(&session);
    for _ in 0..20 {
        assert_eq!(client.get(url("/")).send().await.unwrap().status(), 200);
        advance(SECOND).await;
    }
    assert_eq!(events.count(|event| matches!(event, Event::Captured { .. })), 20);
    assert!((1..=3).contains(&issuer.calls()), "{}", issuer.calls());
}
