//! Memory stays flat, whatever the servers send: at most 16 MiB above the start.

// What stands beside the tests may unwrap as they do.
#![allow(clippy::unwrap_used)]

#[path = "support/raw.rs"]
mod raw;

use std::{io::Write as _, time::Duration};

use flate2::{Compression, write::GzEncoder};
use peak_alloc::PeakAlloc;
use raw::{Counter, Reply, Server};
use reqwest_middleware::ClientBuilder;
use reqwest_reauth::{ClientBuilderExt, Error, ErrorKind, OAuthRefresh, Session, Tokens};

#[global_allocator]
static ALLOCATED: PeakAlloc = PeakAlloc;

const MOST: usize = 16 << 20;
const BLANKS: [u8; 16 << 10] = [b' '; 16 << 10];

/// The maximum allocation above the start, including the servers in this process.
async fn peak<T>(work: impl Future<Output = T>) -> (T, usize) {
    ALLOCATED.reset_peak_usage();
    let before = ALLOCATED.current_usage();
    let done = work.await;
    (done, ALLOCATED.peak_usage().saturating_sub(before))
}

/// 16 MiB of blanks in 16 KiB: 64 of them, as RFC 1952 §2.2 lets a file have, are one GiB.
fn bomb() -> Vec<u8> {
    let mut zip = GzEncoder::new(Vec::new(), Compression::best());
    for _ in 0..1024 {
        zip.write_all(&BLANKS).unwrap();
    }
    zip.finish().unwrap()
}

/// A single test, because the allocator counts for the whole process.
#[tokio::test]
async fn endless_and_bomb_responses_are_bounded() {
    let bomb = bomb();
    assert!(bomb.len() < 20 << 10);
    let body = |status: u16| Reply::status(status).header("content-type", "application/json");
    let replies = [
        ("endless", body(200).endless(BLANKS)),
        ("endless refusal", body(400).endless(vec![b'x'; 64 << 10])),
        ("endless trouble", body(503).endless(vec![b'x'; 64 << 10])),
        ("deep", body(200).endless(vec![b'['; 64 << 10])),
        ("bomb", body(200).header("content-encoding", "gzip").repeated(&bomb, 64)),
        ("bomb of a refusal", body(400).header("content-encoding", "gzip").repeated(&bomb, 64)),
    ];
    // The token endpoint, called by the crate's own client and by a client that decompresses.
    for unzips in [false, true] {
        for (name, reply) in &replies {
            let (reply, api) = (reply.clone(), Server::simple(|_| Reply::status(401)).await);
            let endpoint = Server::simple(move |_| reply.clone()).await;
            let mut refresher = OAuthRefresh::new(endpoint.url("/token"))
                .attempt_timeout(Duration::from_secs(20))
                .backoff(Duration::from_millis(1), Duration::from_millis(1))
                .max_attempts(2);
            if unzips {
                refresher =
                    refresher.http_client(reqwest::Client::builder().gzip(true).build().unwrap());
            }
            let tokens = Tokens::new("old").unwrap().with_refresh_token("refresh").unwrap();
            let session =
                Session::builder(tokens).origin(api.origin()).refresher(refresher).build().unwrap();
            let client = ClientBuilder::new(reqwest::Client::new()).with_session(session).build();
            let (sent, peak) = peak(client.get(api.url("/")).send()).await;
            let error = sent.unwrap_err();
            let kind = Error::find_in(&error).unwrap().kind();
            assert!(
                matches!(
                    kind,
                    ErrorKind::BadResponse | ErrorKind::ClientRejected | ErrorKind::Unavailable
                ),
                "{name} {unzips} {kind:?}"
            );
            assert!(peak <= MOST, "{name} {unzips}: {} KiB", peak >> 10);
        }
    }
    // The API. A short part of a rejected response is read before it is dropped.
    for (name, reply) in &replies {
        let reply = reply.clone();
        let api = Server::simple(move |seen| {
            if seen.token() == Some("old") {
                reply.clone().with_status(401)
            } else {
                Reply::status(200)
            }
        })
        .await;
        let session = Session::builder(Tokens::new("old").unwrap())
            .origin(api.origin())
            .refresher(Counter::default())
            .build()
            .unwrap();
        let http = reqwest::Client::builder().gzip(true).build().unwrap();
        let client = ClientBuilder::new(http).with_session(session).build();
        let (sent, peak) = peak(client.get(api.url("/")).send()).await;
        assert_eq!(sent.unwrap().status(), 200, "{name}");
        assert!(peak <= MOST, "{name}: {} KiB", peak >> 10);
    }
    // A thousand responses with tokens of the maximum length leave one token behind.
    let api = Server::simple(|seen| {
        Reply::status(200).header("Refreshed-API-Token", format!("{:x<16384}", seen.number))
    })
    .await;
    let session =
        Session::builder(Tokens::new("old").unwrap()).origin(api.origin()).build().unwrap();
    let client = ClientBuilder::new(reqwest::Client::new()).with_session(session.clone()).build();
    for count in [100, 1000] {
        let before = ALLOCATED.current_usage();
        for _ in 0..count {
            client.get(api.url("/")).send().await.unwrap();
        }
        // The server's own log grows with each request.
        let logged = count * (32 << 10);
        assert!(
            ALLOCATED.current_usage().saturating_sub(before) <= logged + (1 << 20),
            "after {count}"
        );
    }
    assert_eq!(session.generation(), 1101);
}
