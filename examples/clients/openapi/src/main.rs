//! A client that OpenAPI Generator made (library `reqwest`, `supportMiddleware=true`) works with
//! the chain without changes. Its own token fields must stay empty, because they would set a second
//! header. It streams its uploads, which `buffer_bodies` makes replayable.

use generated::apis::{configuration::Configuration, pet_api};
use reqwest_reauth::{OAuthRefresh, Session, reqwest, testing::AuthServer};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

fn configuration(session: &Session, base: &str) -> Configuration {
    Configuration {
        base_path: base.to_owned(),
        client: session.wrap(reqwest::Client::new()),
        ..Configuration::default()
    }
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let server = AuthServer::start().await;
    let session = Session::builder(server.login())
        .origin(server.origin())
        .refresher(OAuthRefresh::new(server.token_endpoint()))
        .buffer_bodies(1024 * 1024)
        .build()?;
    server.expire_now();

    let file = std::env::temp_dir().join(format!("reqwest-reauth-upload-{}", std::process::id()));
    std::fs::write(&file, "a photograph of a pet")?;
    let uploaded = pet_api::upload_file(
        &configuration(&session, server.origin()),
        7,
        None,
        Some(file.clone()),
    )
    .await;
    std::fs::remove_file(&file)?;
    uploaded?;

    let counts = server.counts();
    assert_eq!(counts.refused, 1, "rejected calls");
    assert_eq!(counts.token_calls, 1, "refreshes");
    assert_eq!(counts.api_hits, 2, "calls");
    let bodies: Vec<_> = server.requests().into_iter().map(|request| request.body).collect();
    assert_eq!(bodies[0], bodies[1]);
    assert!(String::from_utf8_lossy(&bodies[1]).contains("a photograph of a pet"));
    println!("generated client: one rejected upload, one refresh, one second upload");
    println!("1 passed, 0 failed");
    Ok(())
}
