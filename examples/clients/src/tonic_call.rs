//! A gRPC client fetches a credential for each call, because its channel does not use reqwest.

use reqwest_reauth::{Error, Reply, Session, reqwest, testing::AuthServer};
use tonic::{
    Code, Request, Response, Status,
    metadata::MetadataMap,
    transport::{Channel, server::TcpIncoming},
};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse,
    health_client::HealthClient,
    health_server::{Health, HealthServer},
};

use crate::login::{BoxError, Login};

/// `origin` is the address of the channel and one of the session's origins.
pub async fn check(
    session: &Session,
    origin: &str,
    client: &HealthClient<Channel>,
    message: HealthCheckRequest,
) -> Result<Result<Response<HealthCheckResponse>, Status>, Error> {
    session
        .with_credential(origin, |credential| {
            let (mut client, message) = (client.clone(), message.clone());
            async move {
                let (name, value) = credential.header();
                let headers = http::HeaderMap::from_iter([(name.clone(), value.clone())]);
                let metadata = MetadataMap::from_headers(headers);
                match client.check(Request::from_parts(metadata, Default::default(), message)).await
                {
                    Err(status) if status.code() == Code::Unauthenticated => {
                        Reply::Rejected(Err(status))
                    }
                    Err(status) if status.code() == Code::Unavailable => {
                        Reply::Inconclusive(Err(status))
                    }
                    result => Reply::Accepted(result),
                }
            }
        })
        .await
}

/// A server that asks the API whether a token is valid.
struct Server {
    http: reqwest::Client,
    api: String,
}

#[tonic::async_trait]
impl Health for Server {
    type WatchStream = futures_util::stream::Empty<Result<HealthCheckResponse, Status>>;

    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let headers = request.metadata().clone().into_headers();
        match is_good(&self.http, &self.api, &headers).await {
            true => Ok(Response::new(HealthCheckResponse { status: 1 })),
            false => Err(Status::unauthenticated("the token is not accepted")),
        }
    }

    async fn watch(
        &self,
        _: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("watch"))
    }
}

/// Whether the API accepts the token in these headers.
pub async fn is_good(http: &reqwest::Client, api: &str, headers: &http::HeaderMap) -> bool {
    let Some(token) = headers.get("authorization") else {
        return false;
    };
    let response = http.get(api).header("authorization", token).send().await;
    response.is_ok_and(|response| response.status().is_success())
}

fn server(api: &AuthServer) -> Server {
    Server { http: reqwest::Client::new(), api: api.url("/grpc") }
}

pub async fn run() -> Result<(), BoxError> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let origin = format!("http://{}", listener.local_addr()?);
    let login = Login::expired(&[&origin]).await?;
    let serving = tonic::transport::Server::builder()
        .add_service(HealthServer::new(server(&login.server)))
        .serve_with_incoming(TcpIncoming::from(listener));
    tokio::spawn(serving);

    let channel = Channel::from_shared(origin.clone())?.connect().await?;
    let client = HealthClient::new(channel);
    let message = HealthCheckRequest { service: String::new() };
    let response = check(&login.session, &origin, &client, message).await??;
    assert_eq!(response.into_inner().status, 1);
    login.check("tonic");
    Ok(())
}
