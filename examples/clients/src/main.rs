//! One session for clients that do not accept a `ClientWithMiddleware`.
//!
//! Each adapter runs against `testing::AuthServer` with an expired token: one rejected call, one
//! refresh, and one successful second call. Each adapter is in its own file, short enough to be
//! copied. The guide's page "Other clients" shows them too.

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
