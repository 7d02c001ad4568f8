//! One login for clients that take no `ClientWithMiddleware`.
//!
//! Each adapter is run against `testing::AuthServer` with a token that has expired: one rejected
//! call, one refresh, one second call, success. The adapters are in files of their own, each short
//! enough to be pasted; the guide's page "Other clients" has them too.

mod login;
mod object_store_http;
mod octocrab_service;
mod openai_service;
mod tonic_call;
mod websocket;

use self::login::BoxError;

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    octocrab_service::run().await?;
    object_store_http::run().await?;
    openai_service::run().await?;
    tonic_call::run().await?;
    websocket::run().await?;
    println!("5 passed, 0 failed");
    Ok(())
}
