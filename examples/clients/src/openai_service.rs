//! async-openai accepts a tower service. Here the whole chain is that service.

use async_openai::{
    Client, config::OpenAIConfig, error::OpenAIError, middleware::HttpRequestFactory,
};
use reqwest_reauth::{Session, reqwest};
use serde_json::Value;

use crate::login::{BoxError, Login};

/// async-openai sets its key as the `Authorization` header. The session needs
/// `override_authorization`.
pub fn openai(session: &Session, base: &str) -> Client<OpenAIConfig> {
    let client = session.wrap(reqwest::Client::new());
    let service = tower::service_fn(move |factory: HttpRequestFactory| {
        let client = client.clone();
        async move {
            let request = factory.build().await?;
            client.execute(request).await.map_err(|error| OpenAIError::Boxed(error.into()))
        }
    });
    let config = OpenAIConfig::new().with_api_base(base).with_api_key("not used");
    Client::with_config(config).with_http_service(service)
}

pub async fn run() -> Result<(), BoxError> {
    let login = Login::expired(&[]).await?;
    let openai = openai(&login.session, &login.server.url("/v1"));
    let _: Value = openai.models().list_byot().await?;
    login.check("async-openai");
    Ok(())
}
