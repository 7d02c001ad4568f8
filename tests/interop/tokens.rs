//! Access tokens of both kinds, and tokens from a header.

use std::time::{Duration, Instant};

use reqwest_reauth::Outcome;
use serde_json::Value;

use crate::peers::{Peers, client};

pub(crate) async fn two_second_tokens_are_renewed_in_time() {
    for format in ["jwt", "opaque"] {
        let peers = Peers::start(&[("TTL", "2"), ("FORMAT", format)]);
        let (session, _) = peers.session(peers.plain_refresher()).await;
        let client = client(&session);
        let begun = Instant::now();
        let mut requests = 0;
        while begun.elapsed() < Duration::from_secs(5) {
            assert_eq!(client.get(peers.api()).send().await.unwrap().status(), 200, "{format}");
            requests += 1;
            // A client that sends a hundred requests a second while tokens live and end.
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        // Joins a refresh that may be in progress.
        session.refresh().await.unwrap();
        let calls = peers.hits("POST /token").await;
        assert!(
            requests > 20 && (2..=5).contains(&calls),
            "{format}: {requests} requests, {calls} calls"
        );
        assert_eq!(session.generation(), 1 + calls);
        if format == "opaque" {
            // The expiry is not rounded: the token is refreshed before the provider rejects it.
            assert_eq!(peers.answered("GET /resource/echo 401").await, 0);
        }
    }
}

pub(crate) async fn a_reissued_token_needs_no_call() {
    for format in ["jwt", "opaque"] {
        let peers = Peers::start(&[("TTL", "60"), ("FORMAT", format)]);
        let (session, _) = peers.session(peers.plain_refresher()).await;
        let client = client(&session);
        let mut ids = Vec::new();
        for renew in ["", "?renew=1", "", "?renew=1", ""] {
            let response = client.get(peers.api() + renew).send().await.unwrap();
            assert_eq!(response.status(), 200);
            let captured =
                response.extensions().get::<Outcome>().is_some_and(|outcome| outcome.captured);
            assert_eq!(captured, !renew.is_empty(), "{format}");
            let echo: Value = response.json().await.unwrap();
            ids.push(echo["token_id"].as_str().unwrap().to_owned());
        }
        assert_eq!(ids[0], ids[1]);
        assert_eq!(ids[2], ids[3]);
        assert!(ids[1] != ids[2] && ids[3] != ids[4], "{ids:?}");
        assert_eq!(session.generation(), 3);
        assert_eq!(peers.hits("POST /token").await, 0);
        // The refresh token is unchanged.
        session.refresh().await.unwrap();
        assert_eq!(client.get(peers.api()).send().await.unwrap().status(), 200);
    }
}
