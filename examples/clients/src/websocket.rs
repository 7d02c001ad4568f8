//! A WebSocket whose handshake carries a credential. When the server closes with 4401, the client
//! refreshes the token and connects again.

use axum::{
    Router,
    extract::{State, WebSocketUpgrade, ws},
    response::{IntoResponse, Response},
    routing::get,
};
use futures_util::{SinkExt, StreamExt};
use http::{HeaderMap, Method, StatusCode};
use reqwest_reauth::{Credential, Reply, Session, reqwest};
use tokio::net::TcpStream;
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{Error, Message, client::IntoClientRequest},
};

use crate::{
    login::{BoxError, Login},
    tonic_call::is_good,
};

/// The close code of servers for an expired token.
const UNAUTHORIZED: u16 = 4401;

type Stream = WebSocketStream<MaybeTlsStream<TcpStream>>;

pub struct Socket {
    session: Session,
    /// With the scheme `http` or `https`, like the session's origins.
    url: String,
    credential: Credential,
    stream: Stream,
}

impl Socket {
    pub async fn connect(session: &Session, url: &str) -> Result<Self, BoxError> {
        let (stream, credential) = handshake(session, url).await?;
        Ok(Self { session: session.clone(), url: url.to_owned(), credential, stream })
    }

    pub async fn send(&mut self, text: &str) -> Result<(), Error> {
        self.stream.send(Message::text(text)).await
    }

    /// Returns the next message. If the server reports an expired token, refreshes the token and
    /// connects again. The program itself repeats whatever it has to send after a connect.
    pub async fn next(&mut self) -> Option<Result<Message, BoxError>> {
        loop {
            match self.stream.next().await? {
                Ok(Message::Close(Some(frame))) if u16::from(frame.code) == UNAUTHORIZED => {
                    self.session.reject(&self.credential);
                    match handshake(&self.session, &self.url).await {
                        Ok((stream, credential)) => {
                            (self.stream, self.credential) = (stream, credential);
                        }
                        Err(error) => return Some(Err(error)),
                    }
                }
                other => return Some(other.map_err(BoxError::from)),
            }
        }
    }
}

async fn handshake(session: &Session, url: &str) -> Result<(Stream, Credential), BoxError> {
    // Turns http:// into ws:// and https:// into wss://.
    let address = url.replacen("http", "ws", 1);
    let connected = session
        .with_credential(url, |credential| {
            let address = address.clone();
            async move {
                match open(&address, url, &credential).await {
                    Ok(stream) => Reply::Accepted(Ok((stream, credential))),
                    Err(Error::Http(response)) if response.status() == StatusCode::UNAUTHORIZED => {
                        Reply::Rejected(Err(Error::Http(response)))
                    }
                    Err(error) => Reply::Inconclusive(Err(error)),
                }
            }
        })
        .await?;
    Ok(connected?)
}

async fn open(address: &str, url: &str, credential: &Credential) -> Result<Stream, Error> {
    let mut request = address.into_client_request()?;
    let headers = credential.headers(&Method::GET, url).await;
    request.headers_mut().extend(headers.map_err(|error| Error::Io(std::io::Error::other(error)))?);
    let (stream, _) = connect_async(request).await?;
    Ok(stream)
}

/// A server that asks the API whether a token is valid, and closes the socket on request.
async fn serve(
    State((http, api)): State<(reqwest::Client, String)>,
    headers: HeaderMap,
    upgrade: WebSocketUpgrade,
) -> Response {
    if !is_good(&http, &api, &headers).await {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    upgrade.on_upgrade(|mut socket| async move {
        let _ = socket.send(ws::Message::text("welcome")).await;
        if let Some(Ok(_)) = socket.recv().await {
            let frame = ws::CloseFrame { code: UNAUTHORIZED, reason: "token expired".into() };
            let _ = socket.send(ws::Message::Close(Some(frame))).await;
        }
    })
}

pub async fn run() -> Result<(), BoxError> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let origin = format!("http://{}", listener.local_addr()?);
    let login = Login::expired(&[&origin]).await?;
    let router = Router::new()
        .route("/socket", get(serve))
        .with_state((reqwest::Client::new(), login.server.url("/socket")));
    tokio::spawn(axum::serve(listener, router).into_future());

    let mut socket = Socket::connect(&login.session, &format!("{origin}/socket")).await?;
    assert_eq!(socket.next().await.ok_or("closed")??, Message::text("welcome"));
    login.check("WebSocket");

    // The server closes with 4401. The client refreshes the token and connects again.
    socket.send("close, please").await?;
    assert_eq!(socket.next().await.ok_or("closed")??, Message::text("welcome"));
    let counts = login.server.counts();
    assert_eq!(counts.token_calls, 2);
    assert_eq!(counts.refused, 1);
    println!("WebSocket: closed with 4401, renewed and connected again");
    Ok(())
}
