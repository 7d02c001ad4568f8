//! Any subset of the four middleware works, and each does its own part (contract §1.1).

use std::time::Duration;

use crate::support::{Api, Issuer, ORIGIN, answer, held, outcome_of, pair, url};
use http::Extensions;
use reqwest::{Request, Response};
use reqwest_middleware::{ClientBuilder, ClientWithMiddleware, Middleware, Next};
use reqwest_reauth::{
    Authorize, Capture, ClientBuilderExt, OnRefreshFailure, Refresh, Replay, Session,
};

#[derive(Clone, Copy, Debug)]
#[allow(clippy::struct_excessive_bools, reason = "each is a layer")]
struct Subset {
    replay: bool,
    refresh: bool,
    capture: bool,
    authorize: bool,
}

/// All fifteen non-empty subsets.
fn subsets() -> impl Iterator<Item = Subset> {
    (1..16_u8).map(|bits| Subset {
        replay: bits & 1 != 0,
        refresh: bits & 2 != 0,
        capture: bits & 4 != 0,
        authorize: bits & 8 != 0,
    })
}

impl Subset {
    fn client(self, session: &Session, api: &Api) -> ClientWithMiddleware {
        let mut client = ClientBuilder::new(reqwest::Client::new());
        if self.replay {
            client = client.with(Replay::new(session.clone()));
        }
        if self.refresh {
            client = client.with(Refresh::new(session.clone()));
        }
        if self.capture {
            client = client.with(Capture::new(session.clone()));
        }
        if self.authorize {
            client = client.with(Authorize::new(session.clone()));
        }
        client.with(api.clone()).build()
    }
}

fn session(issuer: &Issuer) -> Session {
    Session::builder(pair("t0", "r0")).origin(ORIGIN).refresher(issuer.clone()).build().unwrap()
}

/// What the API saw: a token if the request is signed, none otherwise.
fn sent(subset: Subset, tokens: &[&str]) -> Vec<String> {
    let tokens = if subset.authorize { tokens } else { &[""] };
    tokens.iter().map(|token| (*token).to_owned()).collect()
}

#[tokio::test(start_paused = true)]
async fn capture_and_authorize_capture() {
    for subset in subsets() {
        let issuer = Issuer::new([]);
        let session = session(&issuer);
        let api = Api::new(|_| async { answer(404).header("refreshed-api-token", "c1") });
        let response = subset.client(&session, &api).get(url("/")).send().await.unwrap();
        let captured = subset.capture && subset.authorize;
        assert_eq!(response.status().as_u16(), 404, "{subset:?}");
        assert_eq!(outcome_of(&response).captured, captured, "{subset:?}");
        assert_eq!(held(&session).0, if captured { "c1" } else { "t0" }, "{subset:?}");
        assert_eq!(api.tokens_seen(), sent(subset, &["t0"]), "{subset:?}");
        assert_eq!(issuer.calls(), 0, "{subset:?}");
        // The header must not appear in logs.
        assert_eq!(
            response.headers()["refreshed-api-token"].is_sensitive(),
            subset.capture,
            "{subset:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn refresh_and_replay_recover() {
    for subset in subsets() {
        let issuer = Issuer::new([]);
        let session = session(&issuer);
        let api = Api::accepting(|token| token == "t1");
        let response = subset.client(&session, &api).get(url("/")).send().await.unwrap();
        let refreshed = subset.authorize && subset.refresh;
        let replayed = refreshed && subset.replay;
        assert_eq!(response.status().as_u16(), if replayed { 200 } else { 401 }, "{subset:?}");
        assert_eq!(issuer.calls(), usize::from(refreshed), "{subset:?}");
        assert_eq!(outcome_of(&response).refreshed, refreshed, "{subset:?}");
        assert_eq!(
            api.tokens_seen(),
            sent(subset, if replayed { &["t0", "t1"] } else { &["t0"] }),
            "{subset:?}"
        );
        if refreshed {
            assert_eq!(
                subset.client(&session, &api).get(url("/")).send().await.unwrap().status(),
                200,
                "{subset:?}"
            );
            assert_eq!(issuer.calls(), 1, "{subset:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn replay_accepts_a_token_from_any_source() {
    for subset in subsets() {
        let issuer = Issuer::new([]);
        let session = session(&issuer);
        let api = Api::new({
            let session = session.clone();
            move |seen| {
                let session = session.clone();
                async move {
                    if seen.token() == Some("t1") {
                        return answer(200);
                    }
                    session.refresh().await.unwrap();
                    answer(401)
                }
            }
        });
        let response = subset.client(&session, &api).get(url("/")).send().await.unwrap();
        let replayed = subset.authorize && subset.replay;
        assert_eq!(response.status().as_u16(), if replayed { 200 } else { 401 }, "{subset:?}");
        assert_eq!(issuer.calls(), 1, "{subset:?}");
        assert_eq!(outcome_of(&response).replayed, replayed, "{subset:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_captured_token_needs_no_refresh() {
    for subset in subsets() {
        let issuer = Issuer::new([]);
        let session = session(&issuer);
        let api = Api::new(|seen| async move {
            match seen.token() {
                Some("t0") | None => answer(403).header("refreshed-api-token", "c1"),
                _ => answer(200),
            }
        });
        let response = subset.client(&session, &api).get(url("/")).send().await.unwrap();
        let replayed = subset.authorize && subset.capture && subset.replay;
        assert_eq!(response.status().as_u16(), if replayed { 200 } else { 403 }, "{subset:?}");
        assert_eq!(issuer.calls(), 0, "{subset:?}");
        assert_eq!(outcome_of(&response).replayed, replayed, "{subset:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn each_layer_does_its_own_part() {
    for subset in subsets() {
        let issuer = Issuer::new([]);
        let tokens = pair("t0", "r0").with_expires_in(Duration::ZERO);
        let session =
            Session::builder(tokens).origin(ORIGIN).refresher(issuer.clone()).build().unwrap();
        let api = Api::new(|_| async { answer(200) });
        let response = subset.client(&session, &api).get(url("/")).send().await.unwrap();
        assert_eq!(response.status().as_u16(), 200, "{subset:?}");
        assert_eq!(issuer.calls(), usize::from(subset.refresh), "{subset:?}");
        assert_eq!(
            api.tokens_seen(),
            sent(subset, &[if subset.refresh { "t1" } else { "t0" }]),
            "{subset:?}"
        );

        session.clear().await.unwrap();
        let failed = subset.client(&session, &api).get(url("/")).send().await.is_err();
        assert_eq!(failed, subset.refresh || subset.authorize, "{subset:?}");
        assert_eq!(api.seen().len(), if failed { 1 } else { 2 }, "{subset:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_foreign_request_passes_every_subset() {
    for subset in subsets() {
        let issuer = Issuer::new([]);
        let session = session(&issuer);
        let api = Api::new(|_| async { answer(401).header("refreshed-api-token", "c1") });
        let client = subset.client(&session, &api);
        client.get("https://elsewhere.example/").send().await.unwrap();
        client.get(url("/")).header("authorization", "Bearer own").send().await.unwrap();
        client.get(url("/")).with_extension(reqwest_reauth::Anonymous).send().await.unwrap();
        assert_eq!(api.tokens_seen(), ["", "own", ""], "{subset:?}");
        assert_eq!(held(&session).0.as_str(), "t0", "{subset:?}");
        assert_eq!(issuer.calls(), 0, "{subset:?}");

        session.close().await.unwrap();
        client.get(url("/")).header("authorization", "Bearer own").send().await.unwrap();
        client.get(url("/")).with_extension(reqwest_reauth::Anonymous).send().await.unwrap();
        assert_eq!(api.tokens_seen()[3..], ["own", ""], "{subset:?}");
    }
}

/// Notes whether the requests that pass have a session among their extensions.
#[derive(Clone, Default)]
struct Probe(std::sync::Arc<std::sync::Mutex<Vec<bool>>>);

#[async_trait::async_trait]
impl Middleware for Probe {
    async fn handle(
        &self,
        request: Request,
        extensions: &mut Extensions,
        next: Next<'_>,
    ) -> reqwest_middleware::Result<Response> {
        self.0.lock().unwrap().push(extensions.get::<Session>().is_some());
        next.run(request, extensions).await
    }
}

#[tokio::test(start_paused = true)]
async fn a_chain_below_learns_no_session() {
    let issuer = Issuer::new([]);
    let session = session(&issuer);
    let api = Api::accepting(|token| token == "t1");
    let probe = Probe::default();
    let client = ClientBuilder::new(reqwest::Client::new())
        .with_session(session)
        .with(probe.clone())
        .with(api.clone())
        .build();
    assert_eq!(client.get(url("/")).send().await.unwrap().status(), 200);
    assert_eq!(api.tokens_seen().len(), 2);
    assert_eq!(probe.0.lock().unwrap().clone(), vec![false, false]);
}

#[tokio::test(start_paused = true)]
async fn of_two_captures_one_captures() {
    let events = crate::support::Events::default();
    let session = Session::builder(pair("t0", "r0"))
        .origin(ORIGIN)
        .on_event(events.listener())
        .build()
        .unwrap();
    let api = Api::new(|_| async { answer(200).header("refreshed-api-token", "c1") });
    let client = ClientBuilder::new(reqwest::Client::new())
        .with(Capture::new(session.clone()))
        .with(Capture::new(session.clone()))
        .with(Authorize::new(session.clone()));
    let response = client.with(api).build().get(url("/")).send().await.unwrap();
    assert!(outcome_of(&response).captured);
    assert_eq!(held(&session).0.as_str(), "c1");
    assert_eq!(events.all().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn of_two_refreshes_one_refreshes() {
    for fails in [false, true] {
        let script = if fails {
            vec![crate::support::Turn::Fail(Duration::ZERO, crate::support::unavailable())]
        } else {
            vec![]
        };
        let issuer = Issuer::new(script);
        let events = crate::support::Events::default();
        let builder = Session::builder(pair("t0", "r0"))
            .origin(ORIGIN)
            .refresher(issuer.clone())
            .on_event(events.listener());
        let session = builder.on_refresh_failure(OnRefreshFailure::ReturnResponse).build().unwrap();
        let api = Api::accepting(|_| false);
        let client = ClientBuilder::new(reqwest::Client::new())
            .with(Refresh::new(session.clone()))
            .with(Refresh::new(session.clone()))
            .with(Authorize::new(session.clone()));
        let response = client.with(api.clone()).build().get(url("/")).send().await.unwrap();
        let outcome = outcome_of(&response);
        assert_eq!(outcome.refreshed, !fails);
        assert_eq!(outcome.refresh_error.is_some(), fails);
        assert_eq!(api.seen().len(), 1);
        assert_eq!(issuer.calls(), 1);
        assert_eq!(events.all().len(), 2);
    }
}
