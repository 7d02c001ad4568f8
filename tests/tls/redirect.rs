//! Why the lowest version of reqwest is 0.13.4: earlier ones keep `Authorization` on a redirect
//! from https to http if host and port stay the same (contract 8.1).

use std::{
    net::Ipv4Addr,
    sync::{Arc, Mutex},
};

use reqwest::Certificate;
use reqwest_middleware::ClientBuilder;
use reqwest_reauth::{ClientBuilderExt as _, Session, Tokens};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpListener,
    task::JoinSet,
};

use crate::{acceptor, self_signed};

/// Whether a request came over TLS, and its `Authorization`.
type Seen = Arc<Mutex<Vec<(bool, Option<String>)>>>;

#[tokio::test(flavor = "multi_thread")]
async fn a_downgrade_to_http_drops_the_token() {
    let (origin, certificate, seen, _serving) = both_schemes_on_one_port().await;
    let session = Session::builder(Tokens::new("secret").unwrap()).origin(&origin).build().unwrap();
    let http = reqwest::Client::builder()
        .tls_backend_rustls()
        .tls_certs_only([certificate])
        .build()
        .unwrap();
    let client = ClientBuilder::new(http).with_session(session).build();

    let response = client.get(format!("{origin}/")).send().await.unwrap();

    assert_eq!(response.url().scheme(), "http");
    let seen = seen.lock().unwrap().clone();
    assert_eq!(seen, [(true, Some("Bearer secret".to_owned())), (false, None)]);
}

/// Redirects TLS requests to plain http at the same host and port.
async fn both_schemes_on_one_port() -> (String, Certificate, Seen, JoinSet<()>) {
    const TLS_HANDSHAKE: u8 = 22;

    let made = self_signed();
    let certificate = Certificate::from_der(made.cert.der()).unwrap();
    let acceptor = acceptor(&made, "http/1.1");
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let seen = Seen::default();
    let shared = Arc::clone(&seen);
    let mut serving = JoinSet::new();
    serving.spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let mut first = [0];
            tcp.peek(&mut first).await.unwrap();
            let request = if first == [TLS_HANDSHAKE] {
                let tls = acceptor.accept(tcp).await.unwrap();
                let head = format!("302 Found\r\nlocation: http://{address}/");
                (true, respond(tls, &head).await)
            } else {
                (false, respond(tcp, "200 OK").await)
            };
            shared.lock().unwrap().push(request);
        }
    });
    (format!("https://{address}"), certificate, seen, serving)
}

/// Reads a request and responds to it. Returns its `Authorization`.
async fn respond(mut stream: impl AsyncRead + AsyncWrite + Unpin, head: &str) -> Option<String> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        request.push(stream.read_u8().await.unwrap());
    }
    let response = format!("HTTP/1.1 {head}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    stream.write_all(response.as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    let request = String::from_utf8(request).unwrap();
    request.lines().find_map(|line| line.strip_prefix("authorization: ")).map(str::to_owned)
}
