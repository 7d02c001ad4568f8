//! One client and one pool for everything: it has the chain, and is the refresher's client too.

use reqwest_middleware::ClientBuilder;
use reqwest_reauth::{
    Anonymous, ClientBuilderExt, OAuthRefresh, ReplayBody, Session, testing::AuthServer,
};

#[tokio::test]
async fn a_scoped_client_may_be_the_refreshers_own() {
    let server = AuthServer::start().await;
    let client = ClientBuilder::new(reqwest::Client::new()).with_scoped_sessions().build();
    let refresher = OAuthRefresh::new(server.token_endpoint()).http_client(client.clone());
    let session = Session::builder(server.login())
        .origin(server.origin())
        .refresher(refresher)
        .build()
        .unwrap();
    server.expire_now();

    let answer = session.scope(client.get(server.url("/jobs")).send()).await.unwrap();
    assert_eq!(answer.status(), 200);

    let [call] = &server.token_requests()[..] else { panic!("{:?}", server.token_requests()) };
    assert!(!call.headers.contains_key("authorization"), "the token call was signed: {call:?}");
}

#[tokio::test]
async fn a_session_may_refresh_through_its_client() {
    let server = AuthServer::start().await;
    let login = server.login();
    let first = Session::builder(login.clone()).origin(server.origin()).build().unwrap();
    let client = ClientBuilder::new(reqwest::Client::new()).with_session(first).build();
    let refresher = OAuthRefresh::new(server.token_endpoint()).http_client(client);
    let session =
        Session::builder(login).origin(server.origin()).refresher(refresher).build().unwrap();

    session.refresh().await.unwrap();
    let [call] = &server.token_requests()[..] else { panic!("{:?}", server.token_requests()) };
    assert!(!call.headers.contains_key("authorization"), "the token call was signed: {call:?}");
}

#[tokio::test]
async fn replay_body_serves_anonymous_too() {
    let server = AuthServer::start().await;
    let session = Session::builder(server.login()).origin(server.origin()).build().unwrap();
    let client = ClientBuilder::new(reqwest::Client::new()).with_session(session).build();
    let body = || ReplayBody::new(|| "made".into());

    let anonymous = client.post(server.url("/a")).with_extension(Anonymous).with_extension(body());
    let own = client.post(server.url("/b")).bearer_auth("own").with_extension(body());
    anonymous.send().await.unwrap();
    own.send().await.unwrap();

    let bodies: Vec<_> = server.requests().into_iter().map(|request| request.body).collect();
    assert_eq!(bodies, ["made", "made"]);
}
