//! HTTP/1.1 and HTTP/2 over real TLS, with a certificate that the test creates, and the effects on
//! a request that only HTTP/2 has.
#![allow(clippy::unwrap_used)] // helpers outside of test functions

mod redirect;

use std::{
    collections::VecDeque,
    net::Ipv4Addr,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http::{Version, header};
use rcgen::{CertifiedKey, KeyPair};
use reqwest::{Certificate, ClientBuilder as HttpBuilder, retry};
use reqwest_middleware::{ClientBuilder, ClientWithMiddleware};
use reqwest_reauth::{
    ClientBuilderExt as _, Error, ErrorKind, Event, OAuthRefresh, Outcome, Session,
    testing::AuthServer,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        crypto::aws_lc_rs,
        pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
    },
    server::TlsStream,
};

#[tokio::test(flavor = "multi_thread")]
async fn http_1_and_2_refresh_once() {
    for (protocol, version) in [("http/1.1", Version::HTTP_11), ("h2", Version::HTTP_2)] {
        let server = AuthServer::start().await;
        let front = Front::before(&server, protocol).await;
        let (session, _) = front.session(&server, |refresher| refresher);
        let client = client(&session, front.http().build().unwrap());
        server.expire_now();
        let mut requests = JoinSet::new();
        for number in 0..32 {
            let request = client.post(front.url("/?echo")).body(format!("body {number}"));
            requests.spawn(async move {
                let response = request.send().await.unwrap();
                assert_eq!(response.status().as_u16(), 200);
                assert_eq!(response.version(), version);
                assert_eq!(response.text().await.unwrap(), format!("body {number}"));
            });
        }
        while let Some(request) = requests.join_next().await {
            request.unwrap();
        }
        assert_eq!(server.token_calls(), 1, "{protocol}");
        assert_eq!(session.generation(), 2, "{protocol}");

        server.reissue_next(1);
        let response = client.get(front.url("/")).send().await.unwrap();
        assert!(response.extensions().get::<Outcome>().unwrap().captured);
        assert_eq!(server.token_calls(), 1, "{protocol}");
        assert_eq!(session.generation(), 3, "{protocol}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn token_call_goaway_is_retried() {
    for fault in [Fault::GoAway, Fault::RefusedStream] {
        // A server that refuses a stream has not processed it (RFC 9113 §8.7), so no response is
        // lost.
        for retry_lost in [true, false] {
            let server = AuthServer::start().await;
            let front = Front::before(&server, "h2").await;
            let (session, retries) =
                front.session(&server, |refresher| refresher.retry_lost(retry_lost));
            front.break_next([fault, fault]);

            session.refresh().await.unwrap_or_else(|error| panic!("{fault:?}: {error:?}"));

            assert_eq!(*retries.lock().unwrap(), 2, "{fault:?}");
            assert_eq!(front.connections(), 3, "{fault:?}");
            assert_eq!(server.token_calls(), 1, "{fault:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn api_goaway_is_the_callers() {
    for fault in [Fault::GoAway, Fault::RefusedStream] {
        let server = AuthServer::start().await;
        let front = Front::before(&server, "h2").await;
        let (session, _) = front.session(&server, |refresher| refresher);

        front.break_next([fault]);
        let client_without = client(&session, front.http().retry(retry::never()).build().unwrap());
        let error = client_without.get(front.url("/")).send().await.unwrap_err();
        assert!(Error::find_in(&error).is_none() && error.is_request(), "{fault:?}: {error:?}");
        assert_eq!(server.api_hits(), 0, "{fault:?}");
        assert_eq!(server.token_calls(), 0, "{fault:?}");
        assert_eq!(session.generation(), 1, "{fault:?}");

        // reqwest's own retry, which is on by default, is below the chain and independent of it.
        front.break_next([fault]);
        let response = client(&session, front.http().build().unwrap())
            .get(front.url("/"))
            .send()
            .await
            .unwrap();
        assert_eq!(response.status(), 200);
        assert!(response.extensions().get::<Outcome>().is_none());
        assert_eq!(server.api_hits(), 1, "{fault:?}");
        assert_eq!(server.token_calls(), 0, "{fault:?}");
        assert_eq!(session.generation(), 1, "{fault:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_untrusted_certificate_gets_no_token() {
    let server = AuthServer::start().await;
    let front = Front::before(&server, "h2").await;
    let stranger = Front::before(&server, "h2").await;
    let (session, _) = front.session(&server, |refresher| refresher.max_attempts(1));

    let refused = client(&session, stranger.http().build().unwrap())
        .get(front.url("/"))
        .send()
        .await
        .unwrap_err();

    assert!(refused.is_connect(), "{refused:?}");
    assert_eq!(server.api_hits(), 0);
    assert_eq!(server.token_calls(), 0);
}

/// Every text of an error and its causes.
fn texts(error: &Error) -> String {
    let chain = std::iter::successors(Some(error as &dyn std::error::Error), |link| link.source());
    chain.map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_untrusted_token_endpoint_ends_a_refresh() {
    // ramosbugs/oauth2-rs#316.
    let server = AuthServer::start().await;
    let front = Front::before(&server, "http/1.1").await;
    let stranger = Front::before(&server, "http/1.1").await;
    let http = stranger.http().build().unwrap();
    let (session, retries) =
        front.session(&server, |refresher| refresher.http_client(http.clone()));

    let error = session.refresh().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert_eq!(error.attempts(), 1);
    assert!(!error.possibly_consumed());
    assert!(texts(&error).contains("certificate of the token endpoint"), "{}", texts(&error));
    assert_eq!(*retries.lock().unwrap(), 0);
    assert_eq!(server.token_calls(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_wants_a_login_ends_a_refresh() {
    let server = AuthServer::start().await;
    let front = Front::before(&server, "http/1.1").await;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let proxy = format!("http://{}", listener.local_addr().unwrap());
    let serving = tokio::spawn(async move {
        loop {
            let (mut tcp, _) = listener.accept().await.unwrap();
            let refusal = b"HTTP/1.1 407 X\r\nContent-Length: 0\r\n\r\n";
            let _ = tcp.read(&mut [0; 1024]).await;
            let _ = tcp.write_all(refusal).await;
        }
    });
    let http = front.http().proxy(reqwest::Proxy::all(proxy).unwrap()).build().unwrap();
    let (session, retries) =
        front.session(&server, |refresher| refresher.http_client(http.clone()));

    let error = session.refresh().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert_eq!(error.attempts(), 1);
    assert!(!error.possibly_consumed());
    assert!(texts(&error).contains("the proxy requires authentication"), "{}", texts(&error));
    assert_eq!(*retries.lock().unwrap(), 0);
    serving.abort();
}

/// What a connection does instead of serving its first request.
#[derive(Clone, Copy, Debug)]
enum Fault {
    /// GOAWAY that names no stream as processed (RFC 9113 §6.8).
    GoAway,
    /// `RST_STREAM` with `REFUSED_STREAM`, then GOAWAY, so that the next attempt takes a new
    /// connection.
    RefusedStream,
}

/// TLS in front of a server without TLS.
struct Front {
    origin: String,
    certificate: Certificate,
    script: Arc<Mutex<Script>>,
    /// Aborts the connections when it is dropped.
    _serving: JoinSet<()>,
}

#[derive(Default)]
struct Script {
    connections: usize,
    faults: VecDeque<Fault>,
}

impl Front {
    async fn before(server: &AuthServer, protocol: &'static str) -> Self {
        let made = self_signed();
        let acceptor = acceptor(&made, protocol);

        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let origin = format!("https://{}", listener.local_addr().unwrap());
        let script = Arc::<Mutex<Script>>::default();
        let (upstream, shared) = (server.origin().to_owned(), Arc::clone(&script));
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let (acceptor, upstream, script) =
                    (acceptor.clone(), upstream.clone(), Arc::clone(&shared));
                connections.spawn(async move {
                    // Clients may disconnect.
                    let Ok(tls) = acceptor.accept(tcp).await else {
                        return;
                    };
                    let fault = {
                        let mut script = script.lock().unwrap();
                        script.connections += 1;
                        script.faults.pop_front()
                    };
                    match fault {
                        Some(fault) => fail(tls, fault).await.unwrap_or_default(),
                        None if protocol == "h2" => serve_h2(tls, upstream).await,
                        None => serve_h1(tls, upstream).await,
                    }
                });
            }
        });
        let certificate = Certificate::from_der(made.cert.der()).unwrap();
        Self { origin, certificate, script, _serving: serving }
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.origin)
    }

    /// A client that trusts only this server.
    fn http(&self) -> HttpBuilder {
        let timeout = Duration::from_secs(10);
        reqwest::Client::builder()
            .tls_backend_rustls()
            .tls_certs_only([self.certificate.clone()])
            .timeout(timeout)
    }

    /// A session, and how often its refreshes were retried.
    fn session(
        &self,
        server: &AuthServer,
        with: impl Fn(OAuthRefresh) -> OAuthRefresh,
    ) -> (Session, Arc<Mutex<u32>>) {
        // Like the default client: one connection per call, and no retry except ours.
        let http = self.http().retry(retry::never()).pool_max_idle_per_host(0).build().unwrap();
        let endpoint = server.token_endpoint().replace(server.origin(), &self.origin);
        let refresher = OAuthRefresh::new(endpoint)
            .http_client(http)
            .backoff(Duration::from_millis(20), Duration::from_millis(20));
        let retries = Arc::<Mutex<u32>>::default();
        let counted = Arc::clone(&retries);
        let session = Session::builder(server.login())
            .origin(&self.origin)
            .refresher(with(refresher))
            .on_event(move |event| {
                if let Event::RefreshRetrying { status: None, .. } = event {
                    *counted.lock().unwrap() += 1;
                }
            });
        (session.build().unwrap(), retries)
    }

    /// The next connections fail, one each.
    fn break_next<const N: usize>(&self, faults: [Fault; N]) {
        self.script.lock().unwrap().faults.extend(faults);
    }

    fn connections(&self) -> usize {
        self.script.lock().unwrap().connections
    }
}

fn self_signed() -> CertifiedKey<KeyPair> {
    rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap()
}

fn acceptor(made: &CertifiedKey<KeyPair>, protocol: &str) -> TlsAcceptor {
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let mut tls = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    tls.alpn_protocols = vec![protocol.into()];
    TlsAcceptor::from(Arc::new(tls))
}

fn client(session: &Session, http: reqwest::Client) -> ClientWithMiddleware {
    ClientBuilder::new(http).with_session(session.clone()).build()
}

async fn serve_h1(mut tls: TlsStream<TcpStream>, upstream: String) {
    let mut plain = TcpStream::connect(upstream.trim_start_matches("http://")).await.unwrap();
    // Each client reports the end in its own way.
    let _ = copy_bidirectional(&mut tls, &mut plain).await;
}

async fn serve_h2(tls: TlsStream<TcpStream>, upstream: String) {
    let Ok(mut connection) = h2::server::handshake(tls).await else {
        return;
    };
    let http = reqwest::Client::new();
    let mut streams = JoinSet::new();
    while let Some(Ok((request, answer))) = connection.accept().await {
        streams.spawn(hand_on(request, answer, http.clone(), upstream.clone()));
    }
}

async fn hand_on(
    request: http::Request<h2::RecvStream>,
    mut answer: h2::server::SendResponse<Bytes>,
    http: reqwest::Client,
    upstream: String,
) {
    let (parts, mut body) = request.into_parts();
    let mut bytes = Vec::new();
    while let Some(Ok(data)) = body.data().await {
        body.flow_control().release_capacity(data.len()).unwrap();
        bytes.extend_from_slice(&data);
    }
    let url = upstream + parts.uri.path_and_query().unwrap().as_str();
    let response =
        http.request(parts.method, url).headers(parts.headers).body(bytes).send().await.unwrap();
    let mut head = http::Response::builder().status(response.status()).body(()).unwrap();
    *head.headers_mut() = response.headers().clone();
    head.headers_mut().remove(header::TRANSFER_ENCODING);
    let bytes = response.bytes().await.unwrap();
    // The client may have disconnected.
    if let Ok(mut stream) = answer.send_response(head, false) {
        let _ = stream.send_data(bytes, true);
    }
}

/// Speaks just enough HTTP/2 to fail the first request.
async fn fail(mut tls: TlsStream<TcpStream>, fault: Fault) -> std::io::Result<()> {
    const SETTINGS: u8 = 4;
    const HEADERS: u8 = 1;
    const RST_STREAM: u8 = 3;
    const GOAWAY: u8 = 7;
    const REFUSED_STREAM: u32 = 7;

    tls.read_exact(&mut [0; b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".len()]).await?;
    tls.write_all(&frame(SETTINGS, 0, &[])).await?;
    loop {
        let mut head = [0; 9];
        tls.read_exact(&mut head).await?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        tls.read_exact(&mut vec![0; length as usize]).await?;
        if head[3] != HEADERS {
            continue;
        }
        let goaway =
            |last: u32| frame(GOAWAY, 0, &[last.to_be_bytes(), 0_u32.to_be_bytes()].concat());
        match fault {
            Fault::GoAway => tls.write_all(&goaway(0)).await?,
            Fault::RefusedStream => {
                tls.write_all(&frame(RST_STREAM, stream, &REFUSED_STREAM.to_be_bytes())).await?;
                tls.write_all(&goaway(stream)).await?;
            }
        }
        tls.shutdown().await?;
        // Reads the rest of the client's data, so that closing causes no TCP reset.
        while tls.read(&mut [0; 1024]).await? > 0 {}
        return Ok(());
    }
}

fn frame(kind: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, 0];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}
