//! A token endpoint that responds from a script, byte for byte, and records what it saw.

use std::{sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
};

#[derive(Clone)]
pub(super) enum Reply {
    /// These bytes, then the connection is closed.
    Bytes(Vec<u8>),
    /// These bytes, each part after its delay, in which the response stalls.
    Slow(Vec<(Duration, Vec<u8>)>),
    /// These bytes, then nothing until the client disconnects.
    Stall(Vec<u8>),
    /// These bytes, then more of a body for as long as the client reads.
    Endless(Vec<u8>),
}

impl Reply {
    pub(super) fn with(status: u16, headers: &[&str], body: impl AsRef<[u8]>) -> Self {
        let body = body.as_ref();
        Self::Bytes([head(status, headers, Some(body.len())), body.to_vec()].concat())
    }

    pub(super) fn json(status: u16, body: impl AsRef<[u8]>) -> Self {
        Self::with(status, &["Content-Type: application/json"], body)
    }

    pub(super) fn status(status: u16) -> Self {
        Self::with(status, &[], "")
    }

    pub(super) fn token() -> Self {
        Self::json(
            200,
            r#"{"access_token":"new-access","refresh_token":"new-refresh-token","token_type":"Bearer"}"#,
        )
    }

    /// The connection ends before the body is whole.
    pub(super) fn cut(status: u16, body: &str) -> Self {
        Self::Bytes([head(status, &[], Some(body.len() + 100)), body.as_bytes().to_vec()].concat())
    }

    /// The connection ends without a response.
    pub(super) fn reset() -> Self {
        Self::Bytes(Vec::new())
    }
}

pub(super) fn head(status: u16, headers: &[&str], length: Option<usize>) -> Vec<u8> {
    let length = length.map(|length| format!("Content-Length: {length}"));
    let first = format!("HTTP/1.1 {status} X");
    let lines = [first.as_str(), "Connection: close"]
        .into_iter()
        .chain(headers.iter().copied())
        .chain(length.as_deref());
    lines.chain([""]).flat_map(|line| [line.as_bytes(), b"\r\n"].concat()).collect()
}

/// A request as it was received.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) line: String,
    pub(super) headers: Vec<(String, String)>,
    pub(super) form: String,
}

impl Seen {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.iter().filter(|(found, _)| found == name);
        let value = values.next().map(|(_, value)| value.as_str());
        assert!(values.next().is_none(), "{name} came twice");
        value
    }

    pub(super) fn member(&self, name: &str) -> Option<String> {
        let mut values =
            form_urlencoded::parse(self.form.as_bytes()).filter(|(found, _)| found == name);
        let value = values.next().map(|(_, value)| value.into_owned());
        assert!(values.next().is_none(), "{name} came twice");
        value
    }
}

pub(super) struct TokenEndpoint {
    pub(super) url: String,
    seen: Arc<watch::Sender<Vec<Seen>>>,
    stalled: Arc<watch::Sender<usize>>,
}

impl TokenEndpoint {
    /// Responds from the script, and repeats the last response.
    pub(super) async fn start(script: impl IntoIterator<Item = Reply>) -> Self {
        let script: Vec<Reply> = script.into_iter().collect();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/token", listener.local_addr().unwrap());
        let seen = Arc::new(watch::Sender::new(Vec::new()));
        let stalled = Arc::new(watch::Sender::new(0));
        let (notes, stalls) = (Arc::clone(&seen), Arc::clone(&stalled));
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let (script, notes, stalls) =
                    (script.clone(), Arc::clone(&notes), Arc::clone(&stalls));
                tokio::spawn(async move {
                    let Some(request) = read(&mut stream).await else {
                        return;
                    };
                    let mut number = 0;
                    notes.send_modify(|notes| {
                        notes.push(request);
                        number = notes.len();
                    });
                    answer(stream, script[number.min(script.len()) - 1].clone(), &stalls).await;
                });
            }
        });
        Self { url, seen, stalled }
    }

    pub(super) fn seen(&self) -> Vec<Seen> {
        self.seen.borrow().clone()
    }

    pub(super) fn count(&self) -> usize {
        self.seen.borrow().len()
    }

    /// Waits until this many responses stall.
    pub(super) async fn until_stalled(&self, times: usize) {
        self.stalled.subscribe().wait_for(|stalled| *stalled >= times).await.unwrap();
    }

    /// The refresh tokens in the requests, in order.
    pub(super) fn asked_with(&self) -> Vec<String> {
        self.seen().iter().map(|seen| seen.member("refresh_token").unwrap()).collect()
    }
}

async fn read(stream: &mut TcpStream) -> Option<Seen> {
    let mut bytes = Vec::new();
    loop {
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
        let text = String::from_utf8_lossy(&bytes);
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            continue;
        };
        let mut lines = head.lines();
        let line = lines.next()?.to_owned();
        let headers: Vec<_> = lines
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
            .collect();
        let length = headers
            .iter()
            .find(|(name, _)| name == "content-length")
            .map_or(0, |(_, value)| value.parse().unwrap());
        if body.len() >= length {
            return Some(Seen { line, headers, form: body.to_owned() });
        }
    }
}

async fn answer(mut stream: TcpStream, reply: Reply, stalled: &watch::Sender<usize>) {
    // A client may disconnect once it has seen enough. That is no failure of the server.
    match reply {
        Reply::Bytes(bytes) => {
            let _ = stream.write_all(&bytes).await;
            let _ = stream.shutdown().await;
        }
        Reply::Slow(parts) => {
            for (delay, bytes) in parts {
                stalled.send_modify(|stalled| *stalled += 1);
                tokio::time::sleep(delay).await;
                let _ = stream.write_all(&bytes).await;
            }
            let _ = stream.shutdown().await;
        }
        Reply::Stall(bytes) => {
            let _ = stream.write_all(&bytes).await;
            stalled.send_modify(|stalled| *stalled += 1);
            let _ = stream.read(&mut [0]).await;
        }
        Reply::Endless(bytes) => {
            let _ = stream.write_all(&bytes).await;
            while stream.write_all(&[b' '; 16 * 1024]).await.is_ok() {}
        }
    }
}
