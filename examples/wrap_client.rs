//! What the author of an API client adds to keep its users signed in: the ten lines of `connect`.
//!
//! `cargo run --example wrap_client` runs it against a small server in this process.

use reqwest_middleware::{ClientBuilder, ClientWithMiddleware};
use reqwest_reauth::{
    ClientBuilderExt, Error, OAuthRefresh, Outcome, Session, Tokens, testing::AuthServer,
};

/// Returns a client for the API at `base` that keeps expired tokens from its user.
fn connect(base: &str, tokens: Tokens) -> Result<ClientWithMiddleware, Error> {
    let session = Session::builder(tokens)
        .origin(base)
        .refresher(OAuthRefresh::new(format!("{base}/oauth/token")).client_id("my-client"))
        .build()?;
    Ok(ClientBuilder::new(reqwest::Client::new()).with_session(session).build())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let server = AuthServer::start().await;
    let client = connect(server.origin(), server.login())?;

    let answer = client.post(server.url("/jobs")).body("one").send().await?;
    println!("the first request:  {}", answer.status());

    // All current tokens are rejected from now on, and so is the next request. The caller does not
    // notice.
    server.expire_now();
    let answer = client.post(server.url("/jobs")).body("two").send().await?;
    println!("the second request: {}, {:?}", answer.status(), answer.extensions().get::<Outcome>());

    println!(
        "the server saw {} requests, refused {}, and renewed once: {}",
        server.api_hits(),
        server.refused(),
        server.token_calls()
    );
    Ok(())
}
