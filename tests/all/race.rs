//! The race of apache/airflow#67939 on a real socket: a request is sent with a valid token, which
//! has expired when the request arrives.

// Helpers of tests may unwrap as tests do.

use std::time::Duration;

use crate::support::pass;
use http::StatusCode;
use reqwest::Response;
use reqwest_middleware::ClientBuilder;
use reqwest_reauth::{
    ClientBuilderExt, OAuthRefresh, Outcome, Session,
    testing::{AuthServer, AuthServerBuilder, Refusal},
};

const LIFETIME: Duration = Duration::from_secs(3600);

fn airflow() -> AuthServerBuilder {
    AuthServer::builder().lifetime(LIFETIME).reissue_after(0.8).refusal(Refusal::Forbidden403)
}

/// Sends a request that the server processes after the token has expired.
async fn race(server: &AuthServer, can_refresh: bool) -> Response {
    let session =
        Session::builder(server.login()).origin(server.origin()).refresh_ahead(Duration::ZERO);
    let session = if can_refresh {
        session.refresher(OAuthRefresh::new(server.token_endpoint()))
    } else {
        session
    };
    let client =
        ClientBuilder::new(reqwest::Client::new()).with_session(session.build().unwrap()).build();
    let hold = server.hold_api();
    let request = tokio::spawn(client.post(server.url("/?status=409")).body("progress").send());
    hold.waiting(1).await;
    assert_eq!(server.requests()[0].subject.as_deref(), Some("login-1"));
    pass(LIFETIME).await;
    hold.release();
    request.await.unwrap().unwrap()
}

#[tokio::test]
async fn with_the_grace_the_header_is_enough() {
    for can_refresh in [false, true] {
        let server = airflow().grace(Duration::from_secs(60)).start().await;
        let response = race(&server, can_refresh).await;
        assert_eq!(response.status(), 409);
        let outcome = response.extensions().get::<Outcome>().unwrap();
        assert!(outcome.captured && !outcome.refreshed && !outcome.replayed, "{outcome:?}");
        assert_eq!(server.api_hits(), 1);
        assert_eq!(server.refused(), 0);
        assert_eq!(server.reissued(), 1);
        assert_eq!(server.token_calls(), 0);
    }
}

#[tokio::test]
async fn without_the_grace_it_lives_on_the_refresh() {
    let server = airflow().start().await;
    let response = race(&server, true).await;
    assert_eq!(response.status(), 409);
    let outcome = response.extensions().get::<Outcome>().unwrap();
    assert!(outcome.refreshed && outcome.replayed, "{outcome:?}");
    let statuses: Vec<_> =
        server.requests().iter().map(|request| (request.status, request.body.clone())).collect();
    assert_eq!(
        statuses,
        [
            (Some(StatusCode::FORBIDDEN), "progress".into()),
            (Some(StatusCode::CONFLICT), "progress".into())
        ]
    );
    assert_eq!(server.refused(), 1);
    assert_eq!(server.token_calls(), 1);
}

#[tokio::test]
async fn without_either_the_rejection_is_returned() {
    let server = airflow().start().await;
    assert_eq!(race(&server, false).await.status(), 403);
    assert_eq!(server.api_hits(), 1);
    assert_eq!(server.refused(), 1);
}
