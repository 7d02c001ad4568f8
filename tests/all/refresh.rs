//! One refresh at a time, for all requests (contract: one refresh, before expiry).

use std::{sync::Arc, time::Duration};

use crate::support::{Api, Events, Issuer, ORIGIN, Turn, answer, unavailable, url};
use reqwest_reauth::{
    Error, ErrorKind, Event, OnRefreshFailure, Outcome, RefreshContext, Refresher, Session,
    SessionState, Tokens, refresh_with,
};
use tokio::{sync::Barrier, time::Instant};

const SECOND: Duration = Duration::from_secs(1);

fn session(issuer: &Issuer) -> Session {
    let tokens = Tokens::new("t0").unwrap().with_refresh_token("r0").unwrap();
    Session::builder(tokens).origin(ORIGIN).refresher(issuer.clone()).build().unwrap()
}

fn newest(token: &str) -> impl Fn(&str) -> bool + Send + Sync + 'static {
    let token = token.to_owned();
    move |seen| seen == token
}

#[tokio::test(start_paused = true)]
async fn a_rejected_request_is_replayed() {
    let issuer = Issuer::new([Turn::Issue(SECOND, None)]);
    let session = session(&issuer);
    let api = Api::accepting(newest("t1"));
    let response = api.client(&session).get(url("/a")).send().await.unwrap();
    assert_eq!(response.status(), 200);
    let outcome = response.extensions().get::<Outcome>().unwrap();
    assert!(outcome.refreshed && outcome.replayed && !outcome.captured);
    assert_eq!(api.tokens_seen(), ["t0", "t1"]);
    assert_eq!(issuer.asked(), [Some("r0".to_owned())]);
    assert_eq!(session.tokens().unwrap().refresh_token().unwrap().expose_secret(), "r1");
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_rejections_cost_one_call() {
    let issuer = Issuer::new([Turn::Issue(SECOND, None)]);
    let session = session(&issuer);
    let barrier = Arc::new(Barrier::new(10_000));
    let api = Api::new({
        let barrier = Arc::clone(&barrier);
        move |seen| {
            let barrier = Arc::clone(&barrier);
            async move {
                if seen.token() == Some("t1") {
                    return answer(200);
                }
                barrier.wait().await;
                answer(401)
            }
        }
    });
    let client = api.client(&session);
    let requests: Vec<_> = (0..10_000).map(|_| tokio::spawn(client.get(url("/")).send())).collect();
    for request in requests {
        assert_eq!(request.await.unwrap().unwrap().status(), 200);
    }
    assert_eq!(issuer.calls(), 1);
    assert_eq!(api.seen().len(), 20_000);
}

#[tokio::test(start_paused = true)]
async fn a_refresh_outlives_its_callers() {
    let issuer = Issuer::new([Turn::Gated]);
    let session = session(&issuer);
    let api = Api::accepting(newest("t1"));
    let client = api.client(&session);
    let request = tokio::spawn(client.get(url("/")).send());
    session.subscribe().wait_for(|state| *state == SessionState::Refreshing).await.unwrap();
    request.abort();
    assert!(request.await.unwrap_err().is_cancelled());
    issuer.gate.add_permits(1);
    session.subscribe().wait_for(|state| *state == SessionState::Active).await.unwrap();
    assert_eq!(client.get(url("/")).send().await.unwrap().status(), 200);
    assert_eq!(issuer.calls(), 1);
    assert_eq!(api.tokens_seen(), vec!["t0".to_owned(), "t1".to_owned()]);
}

#[tokio::test(start_paused = true)]
async fn a_failed_refresh_names_both_servers() {
    let issuer = Issuer::new([Turn::Fail(SECOND, unavailable())]);
    let events = Events::default();
    let tokens = Tokens::new("t0").unwrap().with_refresh_token("r0").unwrap();
    let session = Session::builder(tokens)
        .origin(ORIGIN)
        .refresher(issuer.clone())
        .on_event(events.listener())
        .build()
        .unwrap();
    let api = Api::accepting(newest("t2"));
    let client = api.client(&session);

    let error = client.get(url("/")).send().await.unwrap_err();
    let error = Error::find_in(&error).unwrap();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert_eq!(error.status().unwrap().as_u16(), 502);
    assert_eq!(error.api_status().unwrap().as_u16(), 401);
    assert_eq!(session.state(), SessionState::CoolingDown);

    let error = client.get(url("/")).send().await.unwrap_err();
    let error = Error::find_in(&error).unwrap();
    assert_eq!(error.kind(), ErrorKind::CoolingDown);
    assert_eq!(error.api_status().unwrap().as_u16(), 401);
    assert!(error.is_transient());
    assert_eq!(issuer.calls(), 1);

    tokio::time::advance(Duration::from_secs(10)).await;
    assert_eq!(session.state(), SessionState::Active);
    assert_eq!(client.get(url("/")).send().await.unwrap().status(), 200);
    assert_eq!(issuer.calls(), 2);
    assert_eq!(events.count(|event| matches!(event, Event::RefreshFailed { .. })), 1);
}

#[tokio::test(start_paused = true)]
async fn attempts_are_counted_by_whoever_can() {
    for (error, attempts) in [(unavailable(), 1), (unavailable().with_attempts(5), 5)] {
        let issuer = Issuer::new([Turn::Fail(SECOND, error)]);
        assert_eq!(session(&issuer).refresh().await.unwrap_err().attempts(), attempts);
    }
}

#[tokio::test(start_paused = true)]
async fn return_response_returns_the_rejection() {
    let issuer = Issuer::new([Turn::Fail(SECOND, unavailable())]);
    let tokens = Tokens::new("t0").unwrap().with_refresh_token("r0").unwrap();
    let session = Session::builder(tokens)
        .origin(ORIGIN)
        .refresher(issuer.clone())
        .on_refresh_failure(OnRefreshFailure::ReturnResponse)
        .build()
        .unwrap();
    let api = Api::accepting(newest("t1"));
    let response = api.client(&session).get(url("/")).send().await.unwrap();
    assert_eq!(response.status(), 401);
    let error = response.extensions().get::<Outcome>().unwrap().refresh_error.clone().unwrap();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert_eq!(api.seen().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_dead_grant_is_requested_once() {
    let dead = Error::new(ErrorKind::LoginRequired, "scripted");
    let issuer = Issuer::new([Turn::Fail(Duration::ZERO, dead)]);
    let session = session(&issuer);
    let api = Api::accepting(newest("new"));
    let client = api.client(&session);
    for _ in 0..5 {
        let error = client.get(url("/")).send().await.unwrap_err();
        assert_eq!(Error::find_in(&error).unwrap().kind(), ErrorKind::LoginRequired);
        tokio::time::advance(Duration::from_secs(3600)).await;
    }
    assert_eq!(issuer.calls(), 1);
    assert_eq!(session.state(), SessionState::LoginRequired);
    assert_eq!(session.refresh().await.unwrap_err().kind(), ErrorKind::LoginRequired);
    session.replace_tokens(Tokens::new("new").unwrap()).await.unwrap();
    assert_eq!(client.get(url("/")).send().await.unwrap().status(), 200);
    assert_eq!(issuer.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_panicking_refresher_is_internal() {
    let issuer = Issuer::new([Turn::Panic]);
    let session = session(&issuer);
    let api = Api::accepting(newest("t2"));
    let client = api.client(&session);
    let error = client.get(url("/")).send().await.unwrap_err();
    assert_eq!(Error::find_in(&error).unwrap().kind(), ErrorKind::Internal);
    assert_eq!(client.get(url("/")).send().await.unwrap().status(), 200);
    assert_eq!(issuer.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_hanging_refresher_is_cut_off_by_the_session() {
    let issuer = Issuer::new([Turn::Hang]);
    let session = session(&issuer);
    let begun = Instant::now();
    assert_eq!(session.refresh().await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(begun.elapsed().as_secs(), 90);
}

#[tokio::test(start_paused = true)]
async fn only_expired_tokens_make_requests_wait() {
    let issuer = Issuer::new([Turn::Issue(SECOND, Some(100 * SECOND)), Turn::Gated]);
    let tokens = Tokens::new("t0")
        .unwrap()
        .with_refresh_token("r0")
        .unwrap()
        .with_expires_in(Duration::ZERO);
    let session =
        Session::builder(tokens).origin(ORIGIN).refresher(issuer.clone()).build().unwrap();
    let api = Api::accepting(|_| true);
    let client = api.client(&session);
    let response = client.get(url("/")).send().await.unwrap();
    assert!(response.extensions().get::<Outcome>().unwrap().refreshed);
    tokio::time::advance(83 * SECOND).await;
    client.get(url("/")).send().await.unwrap();
    assert_eq!(api.tokens_seen(), ["t1", "t1"]);
    issuer.gate.add_permits(1);
    session.subscribe().wait_for(|state| *state == SessionState::Active).await.unwrap();
    client.get(url("/")).send().await.unwrap();
    assert_eq!(api.tokens_seen().last().unwrap().as_str(), "t2");
    assert_eq!(issuer.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_token_expired_on_arrival_cools_down() {
    let issuer = Issuer::new((0..9).map(|_| Turn::Issue(Duration::ZERO, Some(Duration::ZERO))));
    let session = session(&issuer);
    session.refresh().await.unwrap();
    let api = Api::accepting(|_| true);
    let client = api.client(&session);
    for _ in 0..20 {
        client.get(url("/")).send().await.unwrap();
        tokio::time::advance(SECOND).await;
    }
    assert!((2..=3).contains(&issuer.calls()), "{}", issuer.calls());
}

#[tokio::test(start_paused = true)]
async fn rejecting_every_token_is_no_stampede() {
    let issuer = Issuer::new([]);
    let session = session(&issuer);
    let api = Api::accepting(|_| false);
    let client = api.client(&session);
    for _ in 0..50 {
        assert_eq!(client.get(url("/")).send().await.unwrap().status(), 401);
    }
    assert_eq!(issuer.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn replace_and_clear_supersede_a_refresh() {
    let issuer = Issuer::new([Turn::Gated, Turn::Gated]);
    let session = session(&issuer);
    let refresh = tokio::spawn({
        let session = session.clone();
        async move { session.refresh().await }
    });
    session.subscribe().wait_for(|state| *state == SessionState::Refreshing).await.unwrap();
    session.clear().await.unwrap();
    issuer.gate.add_permits(2);
    assert_eq!(refresh.await.unwrap().unwrap_err().kind(), ErrorKind::LoginRequired);
    assert!(session.tokens().is_none());
    let api = Api::accepting(|_| true);
    let error = api.client(&session).get(url("/")).send().await.unwrap_err();
    assert_eq!(Error::find_in(&error).unwrap().kind(), ErrorKind::LoginRequired);
    assert!(api.seen().is_empty());
}

#[tokio::test(start_paused = true)]
async fn close_frees_waiters_and_ends_the_refresh() {
    let issuer = Issuer::new([Turn::Issue(5 * SECOND, None)]);
    let session = session(&issuer);
    let api = Api::accepting(newest("t1"));
    let client = api.client(&session);
    let request = tokio::spawn(client.get(url("/")).send());
    session.subscribe().wait_for(|state| *state == SessionState::Refreshing).await.unwrap();
    let begun = Instant::now();
    let closing = tokio::spawn({
        let session = session.clone();
        async move { session.close().await }
    });
    let error = request.await.unwrap().unwrap_err();
    assert_eq!(Error::find_in(&error).unwrap().kind(), ErrorKind::Closed);
    assert_eq!(begun.elapsed(), Duration::ZERO);
    closing.await.unwrap().unwrap();
    assert_eq!(begun.elapsed(), 5 * SECOND);
    assert_eq!(session.tokens().unwrap().access_token().unwrap().expose_secret(), "t1");
    let error = client.get(url("/")).send().await.unwrap_err();
    assert_eq!(Error::find_in(&error).unwrap().kind(), ErrorKind::Closed);
    assert_eq!(api.seen().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_cut_off_call_is_possibly_consumed() {
    for (tokens, may_have) in
        [(crate::support::pair("t0", "r0"), true), (Tokens::new("t0").unwrap(), false)]
    {
        let refresher = refresh_with(|_| std::future::pending());
        let session = Session::builder(tokens)
            .origin(ORIGIN)
            .refresher(refresher)
            .refresh_timeout(SECOND)
            .build()
            .unwrap();
        let error = session.refresh().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert_eq!(error.attempts(), 1);
        assert_eq!(error.possibly_consumed(), may_have);
    }
}

#[tokio::test(start_paused = true)]
async fn a_cut_off_refresh_counts_its_attempts() {
    struct Retries;

    #[async_trait::async_trait]
    impl Refresher for Retries {
        async fn refresh(&self, context: &RefreshContext) -> Result<Tokens, Error> {
            context.retrying(1, SECOND, None);
            context.retrying(2, SECOND, None);
            std::future::pending().await
        }
    }

    let session = Session::builder(crate::support::pair("t0", "r0"))
        .origin(ORIGIN)
        .refresher(Retries)
        .refresh_timeout(SECOND);
    assert_eq!(session.build().unwrap().refresh().await.unwrap_err().attempts(), 3);
}
