//! What a server that ends an HTTP/2 stream or connection says about the request: it was never
//! seen, or possibly processed.

use reqwest::{Client, retry};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::*;

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;

// RFC 9113 §7
const NO_ERROR: u32 = 0;
const INTERNAL_ERROR: u32 = 2;
const REFUSED_STREAM: u32 = 7;
const CANCEL: u32 = 8;
const ENHANCE_YOUR_CALM: u32 = 11;

/// The first request's stream.
const STREAM: u32 = 1;

#[tokio::test]
async fn only_refused_stream_is_known_unsent() {
    let table = [
        (reset(REFUSED_STREAM), true),
        (reset(NO_ERROR), false),
        (reset(INTERNAL_ERROR), false),
        (reset(CANCEL), false),
        (goaway(0, NO_ERROR), true),
        // The server may have processed the request.
        (goaway(STREAM, NO_ERROR), false),
        (goaway(0, INTERNAL_ERROR), false),
        (goaway(0, REFUSED_STREAM), false),
        (goaway(0, ENHANCE_YOUR_CALM), false),
        (Vec::new(), false),
    ];
    for (last_words, unseen) in table {
        let url = start(last_words.clone()).await;
        let client = Client::builder()
            .http2_prior_knowledge()
            .retry(retry::never())
            .pool_max_idle_per_host(0)
            .build()
            .unwrap();
        let refresher =
            OAuthRefresh::new(url).http_client(client).backoff(Duration::ZERO, Duration::ZERO);

        let (result, log) = run(&refresher.max_attempts(2).retry_lost(false)).await;

        let error = result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{last_words:?}");
        assert_eq!(
            (error.attempts(), error.possibly_consumed()),
            if unseen { (2, false) } else { (1, true) },
            "{last_words:?}"
        );
        assert_eq!(log.retries().len(), usize::from(unseen), "{last_words:?}");
    }
}

fn reset(code: u32) -> Vec<u8> {
    // GOAWAY follows, so that no later attempt takes this connection.
    [frame(RST_STREAM, STREAM, &code.to_be_bytes()), goaway(STREAM, NO_ERROR)].concat()
}

fn goaway(last: u32, code: u32) -> Vec<u8> {
    frame(GOAWAY, 0, &[last.to_be_bytes(), code.to_be_bytes()].concat())
}

fn frame(kind: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&[length[1], length[2], length[3], kind, 0], &stream.to_be_bytes()[..], payload].concat()
}

/// A token endpoint that ends each connection with these frames when a request comes.
async fn start(last_words: Vec<u8>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/token", listener.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            // A client may disconnect once it has seen enough. That is no failure of the server.
            let _ = end(stream, &last_words).await;
        }
    });
    url
}

async fn end(mut stream: TcpStream, last_words: &[u8]) -> std::io::Result<()> {
    stream.read_exact(&mut [0; b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".len()]).await?;
    stream.write_all(&frame(SETTINGS, 0, &[])).await?;
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        stream.read_exact(&mut vec![0; length as usize]).await?;
        if head[3] == HEADERS {
            break;
        }
    }
    stream.write_all(last_words).await?;
    stream.shutdown().await?;
    // Reads the rest of the client's data, so that closing causes no TCP reset.
    while stream.read(&mut [0; 1024]).await? > 0 {}
    Ok(())
}
