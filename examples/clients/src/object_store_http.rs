//! object_store accepts an HTTP service for each of its stores. Here the whole chain is that
//! service.

use http_body_util::BodyExt;
use object_store::{
    ClientOptions, ObjectStoreExt,
    client::{
        HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse,
        HttpResponseBody, HttpService,
    },
    http::HttpBuilder,
};
use reqwest_reauth::{
    Session,
    reqwest::{self, Body},
    reqwest_middleware::ClientWithMiddleware,
};

use crate::login::{BoxError, Login};

#[derive(Debug)]
pub struct SignedIn(pub Session);

impl HttpConnector for SignedIn {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(Chain(self.0.wrap(reqwest::Client::new()))))
    }
}

#[derive(Debug)]
struct Chain(ClientWithMiddleware);

#[async_trait::async_trait]
impl HttpService for Chain {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let request = reqwest::Request::try_from(request.map(Body::wrap))
            .map_err(|error| HttpError::new(HttpErrorKind::Unknown, error))?;
        // `Unknown` is not retried. To let object_store retry transient failures, return `Request`
        // if `reqwest_reauth::Error::is_transient`.
        let response = self
            .0
            .execute(request)
            .await
            .map_err(|error| HttpError::new(HttpErrorKind::Unknown, error))?;
        let response = http::Response::<Body>::from(response);
        let decode = |error| HttpError::new(HttpErrorKind::Decode, error);
        Ok(response.map(|body| HttpResponseBody::new(body.map_err(decode))))
    }
}

pub async fn run() -> Result<(), BoxError> {
    let login = Login::expired(&[]).await?;
    let store = HttpBuilder::new()
        .with_url(login.server.origin())
        .with_client_options(ClientOptions::new().with_allow_http(true))
        .with_http_connector(SignedIn(login.session.clone()))
        .build()?;
    store.put(&"reports/1".into(), "a report".into()).await?;
    login.check("object_store");
    let bodies: Vec<_> = login.server.requests().into_iter().map(|request| request.body).collect();
    assert_eq!(bodies, ["a report", "a report"]);
    Ok(())
}
