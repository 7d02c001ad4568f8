//! A server that responds with any bytes, for what no HTTP library would send.
#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    clippy::unwrap_used,
    reason = "each test file uses its own part"
)]

use std::{
    future::Future,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use reqwest_reauth::{Error, RefreshContext, Refresher, Tokens};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::AbortHandle,
};

/// A request as it was received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Counted from 1 over all connections.
    pub number: usize,
    pub method: String,
    pub target: String,
    pub version: String,
    /// Names in lower case, in the order received.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Seen {
    pub fn all(&self, name: &str) -> Vec<&str> {
        self.headers
            .iter()
            .filter(|(known, _)| known == name)
            .map(|(_, value)| value.as_str())
            .collect()
    }

    /// The only bearer token.
    pub fn token(&self) -> Option<&str> {
        match self.all("authorization")[..] {
            [value] => value.strip_prefix("Bearer "),
            _ => None,
        }
    }

    /// The request without its authorization.
    pub fn rest(&self) -> (String, String, String, Vec<(String, String)>, Vec<u8>) {
        let headers =
            self.headers.iter().filter(|(name, _)| name != "authorization").cloned().collect();
        (self.method.clone(), self.target.clone(), self.version.clone(), headers, self.body.clone())
    }
}

/// What follows the bytes of a response.
#[derive(Clone, Debug)]
enum Then {
    KeepAlive,
    Close,
    Stall,
    /// Repeats these bytes this often.
    Repeat(Arc<[u8]>, u64),
}

#[derive(Clone, Debug)]
pub struct Reply {
    head: Vec<u8>,
    body: Option<Vec<u8>>,
    then: Then,
}

impl Reply {
    pub fn status(status: u16) -> Self {
        Self {
            head: format!("HTTP/1.1 {status} Test\r\n").into_bytes(),
            body: Some(Vec::new()),
            then: Then::KeepAlive,
        }
    }

    /// Sends only these bytes, then closes the connection.
    pub fn bytes(bytes: impl Into<Vec<u8>>) -> Self {
        Self { head: bytes.into(), body: None, then: Then::Close }
    }

    /// The same response with another status.
    pub fn with_status(mut self, status: u16) -> Self {
        self.head[9..12].copy_from_slice(status.to_string().as_bytes());
        self
    }

    pub fn header(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.head.extend([name.as_bytes(), b": ", value.as_ref(), b"\r\n"].concat());
        self
    }

    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = Some(body.into());
        self
    }

    pub fn json(self, body: impl Into<Vec<u8>>) -> Self {
        self.header("content-type", "application/json").body(body)
    }

    /// Announces `length` bytes and sends none.
    pub fn stalled(mut self, length: usize) -> Self {
        self.head.extend(format!("content-length: {length}\r\n\r\n").into_bytes());
        Self { body: None, then: Then::Stall, ..self }
    }

    /// Sends this chunk until the client disconnects.
    pub fn endless(self, chunk: impl AsRef<[u8]>) -> Self {
        self.repeated(chunk, u64::MAX)
    }

    /// Sends this chunk `times` times, then the end.
    pub fn repeated(mut self, chunk: impl AsRef<[u8]>, times: u64) -> Self {
        let chunk = chunk.as_ref();
        self.head.extend(b"transfer-encoding: chunked\r\n\r\n");
        let chunk = [format!("{:x}\r\n", chunk.len()).as_bytes(), chunk, b"\r\n"].concat();
        Self { body: None, then: Then::Repeat(chunk.into(), times), ..self }
    }

    fn to_bytes(&self, to_head: bool) -> Vec<u8> {
        let Some(body) = &self.body else {
            return self.head.clone();
        };
        let status = std::str::from_utf8(&self.head[9..12]).unwrap_or_default();
        let mut bytes = self.head.clone();
        if !matches!(status, "204" | "304") {
            bytes.extend(format!("content-length: {}\r\n", body.len()).into_bytes());
        }
        bytes.extend(b"\r\n");
        if !to_head && !matches!(status, "204" | "304") {
            bytes.extend(body);
        }
        bytes
    }
}

type Answering = dyn Fn(Seen) -> Pin<Box<dyn Future<Output = Reply> + Send>> + Send + Sync;

/// A server on a free port of 127.0.0.1, until it is dropped.
pub struct Server {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    task: AbortHandle,
}

struct Shared {
    answer: Box<Answering>,
    seen: Mutex<Vec<Seen>>,
    connections: AtomicUsize,
    sent: AtomicUsize,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    pub async fn start<F, R>(answer: F) -> Self
    where
        F: Fn(Seen) -> R + Send + Sync + 'static,
        R: Future<Output = Reply> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let answer = Box::new(move |seen| -> Pin<Box<dyn Future<Output = Reply> + Send>> {
            Box::pin(answer(seen))
        });
        let shared = Arc::new(Shared {
            answer,
            seen: Mutex::default(),
            connections: AtomicUsize::new(0),
            sent: AtomicUsize::new(0),
        });
        let task = tokio::spawn({
            let shared = Arc::clone(&shared);
            async move {
                while let Ok((stream, _)) = listener.accept().await {
                    shared.connections.fetch_add(1, Ordering::SeqCst);
                    let shared = Arc::clone(&shared);
                    tokio::spawn(async move { shared.serve(stream).await });
                }
            }
        });
        Self { address, shared, task: task.abort_handle() }
    }

    /// A server that responds at once.
    pub async fn simple(answer: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        Self::start(move |seen| std::future::ready(answer(&seen))).await
    }

    pub fn origin(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().unwrap().clone()
    }

    pub fn count(&self) -> usize {
        self.shared.seen.lock().unwrap().len()
    }

    /// The token of each request, in order.
    pub fn tokens(&self) -> Vec<Option<String>> {
        self.seen().iter().map(|seen| seen.token().map(str::to_owned)).collect()
    }

    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// The number of bytes written to clients.
    pub fn sent(&self) -> usize {
        self.shared.sent.load(Ordering::SeqCst)
    }
}

impl Shared {
    async fn serve(&self, mut stream: TcpStream) -> Option<()> {
        let mut buffer = Vec::new();
        loop {
            let mut seen = self.read(&mut stream, &mut buffer).await?;
            {
                let mut log = self.seen.lock().unwrap();
                seen.number = log.len() + 1;
                log.push(seen.clone());
            }
            let to_head = seen.method == "HEAD";
            let reply = (self.answer)(seen).await;
            self.write(&mut stream, &reply.to_bytes(to_head)).await.ok()?;
            match reply.then {
                Then::KeepAlive => {}
                Then::Close => return stream.shutdown().await.ok(),
                Then::Stall => {
                    // Waits until the client disconnects.
                    let _ = stream.read(&mut [0]).await;
                    return None;
                }
                Then::Repeat(chunk, times) => {
                    for _ in 0..times {
                        self.write(&mut stream, &chunk).await.ok()?;
                    }
                    self.write(&mut stream, b"0\r\n\r\n").await.ok()?;
                }
            }
        }
    }

    async fn write(&self, stream: &mut TcpStream, bytes: &[u8]) -> io::Result<()> {
        stream.write_all(bytes).await?;
        self.sent.fetch_add(bytes.len(), Ordering::SeqCst);
        Ok(())
    }

    async fn read(&self, stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<Seen> {
        let end = loop {
            if let Some(at) = find(buffer, b"\r\n\r\n") {
                break at;
            }
            more(stream, buffer).await?;
        };
        let head = String::from_utf8_lossy(&buffer[..end]).into_owned();
        buffer.drain(..end + 4);
        let mut lines = head.split("\r\n");
        let mut start = lines.next()?.splitn(3, ' ').map(str::to_owned);
        let headers = lines.filter_map(|line| line.split_once(": "));
        let mut seen = Seen {
            number: 0,
            method: start.next()?,
            target: start.next()?,
            version: start.next()?,
            headers: headers
                .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
                .collect(),
            body: Vec::new(),
        };
        if seen.all("transfer-encoding") == ["chunked"] {
            loop {
                let line = loop {
                    if let Some(at) = find(buffer, b"\r\n") {
                        break at;
                    }
                    more(stream, buffer).await?;
                };
                let length =
                    usize::from_str_radix(std::str::from_utf8(&buffer[..line]).ok()?, 16).ok()?;
                while buffer.len() < line + 2 + length + 2 {
                    more(stream, buffer).await?;
                }
                seen.body.extend(&buffer[line + 2..line + 2 + length]);
                buffer.drain(..line + 2 + length + 2);
                if length == 0 {
                    break;
                }
            }
        } else if let Some(length) =
            seen.all("content-length").first().and_then(|length| length.parse().ok())
        {
            while buffer.len() < length {
                more(stream, buffer).await?;
            }
            seen.body = buffer.drain(..length).collect();
        }
        Some(seen)
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

async fn more(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<()> {
    let mut chunk = vec![0; 64 * 1024];
    let read = stream.read(&mut chunk).await.ok().filter(|&read| read > 0)?;
    buffer.extend(&chunk[..read]);
    Some(())
}

/// Issues `t1`, `t2` and so on, and counts.
#[derive(Clone, Default)]
pub struct Counter(Arc<AtomicUsize>);

impl Counter {
    pub fn calls(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

#[async_trait::async_trait]
impl Refresher for Counter {
    async fn refresh(&self, _: &RefreshContext) -> Result<Tokens, Error> {
        Tokens::new(format!("t{}", self.0.fetch_add(1, Ordering::SeqCst) + 1))
    }
}
