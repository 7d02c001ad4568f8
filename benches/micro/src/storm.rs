//! Storms: requests through one session that are all rejected at once, and the ideal to compare
//! them with.

use std::{
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use http::{Extensions, header::AUTHORIZATION};
use reqwest::{Request, Response};
use reqwest_middleware::{ClientBuilder, ClientWithMiddleware, Middleware, Next, Result};
use reqwest_reauth::{ClientBuilderExt, Outcome, Session, Tokens, refresh_with};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{Barrier, watch},
    task::JoinSet,
};

use crate::{ORIGIN, answer, connection};

/// One client whose requests are all rejected at once, and a token endpoint that responds after
/// `delay`.
pub struct Storm {
    client: ClientWithMiddleware,
    waiters: usize,
    calls: Arc<AtomicUsize>,
}

/// Runs when all requests wait, before the token endpoint responds, for example to measure the
/// memory.
pub type Look = Arc<dyn Fn() + Send + Sync>;

impl Storm {
    pub fn new(waiters: usize, delay: Duration, look: Look) -> Self {
        let calls = Arc::new(AtomicUsize::new(0));
        let tokens = Tokens::new("old").unwrap().with_refresh_token("a-refresh-token").unwrap();
        let renew = {
            let calls = Arc::clone(&calls);
            refresh_with(move |_| {
                calls.fetch_add(1, Ordering::SeqCst);
                let look = Arc::clone(&look);
                async move {
                    pause(delay).await;
                    look();
                    Tokens::new("new")
                }
            })
        };
        let session = Session::builder(tokens).origin(ORIGIN).refresher(renew).build().unwrap();
        let client = ClientBuilder::new(connection())
            .with_session(session)
            .with(Refusing::all(waiters))
            .build();
        Self { client, waiters, calls }
    }

    /// Sends the requests, and asserts that all of them waited for a single call to the token
    /// endpoint.
    pub async fn run(&self) {
        let mut tasks = JoinSet::new();
        for _ in 0..self.waiters {
            let client = self.client.clone();
            tasks.spawn(async move {
                let response = client.get(ORIGIN).send().await.unwrap();
                assert_eq!(response.status(), 200);
                assert!(
                    response
                        .extensions()
                        .get::<Outcome>()
                        .is_some_and(|outcome| outcome.refreshed && outcome.replayed)
                );
            });
        }
        tasks.join_all().await;
        assert_eq!(self.calls.load(Ordering::SeqCst), 1);
    }
}

/// The minimum cost of a storm: two sends for each request through a bare client, with a single
/// wait between them.
pub struct Ideal {
    client: ClientWithMiddleware,
    waiters: usize,
    delay: Duration,
    look: Look,
}

impl Ideal {
    pub fn new(waiters: usize, delay: Duration, look: Look) -> Self {
        let client = ClientBuilder::new(connection()).with(Refusing::all(waiters)).build();
        Self { client, waiters, delay, look }
    }

    pub async fn run(&self) {
        let (answered, _) = watch::channel(false);
        let rejected = Arc::new(AtomicUsize::new(0));
        let mut tasks = JoinSet::new();
        for _ in 0..self.waiters {
            let (client, rejected) = (self.client.clone(), Arc::clone(&rejected));
            let mut answer = answered.subscribe();
            tasks.spawn(async move {
                let response =
                    client.get(ORIGIN).header(AUTHORIZATION, "Bearer old").send().await.unwrap();
                assert_eq!(response.status(), 401);
                rejected.fetch_add(1, Ordering::SeqCst);
                answer.wait_for(|answered| *answered).await.unwrap();
                let response =
                    client.get(ORIGIN).header(AUTHORIZATION, "Bearer new").send().await.unwrap();
                assert_eq!(response.status(), 200);
            });
        }
        // All requests must be rejected before the wait begins.
        while rejected.load(Ordering::SeqCst) < self.waiters {
            tokio::task::yield_now().await;
        }
        pause(self.delay).await;
        (self.look)();
        answered.send_replace(true);
        tasks.join_all().await;
    }
}

/// Even without a delay, other tasks run first.
async fn pause(delay: Duration) {
    if delay.is_zero() {
        tokio::task::yield_now().await;
    } else {
        tokio::time::sleep(delay).await;
    }
}

/// A server on a socket and a separate thread. It rejects the old token once this many connections
/// have sent it, and issues a new one at `POST /token` after `delay`. Returns its address, and the
/// number of token calls.
pub fn serve(waiters: usize, delay: Duration) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    listener.set_nonblocking(true).unwrap();
    let (address, calls) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let counted = Arc::clone(&calls);
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = TcpListener::from_std(listener).unwrap();
            let everybody = Arc::new(Barrier::new(waiters));
            loop {
                let (connection, _) = listener.accept().await.unwrap();
                tokio::spawn(answer_all(
                    connection,
                    Arc::clone(&everybody),
                    delay,
                    Arc::clone(&counted),
                ));
            }
        });
    });
    (address, calls)
}

async fn answer_all(
    mut connection: TcpStream,
    everybody: Arc<Barrier>,
    delay: Duration,
    calls: Arc<AtomicUsize>,
) {
    connection.set_nodelay(true).unwrap();
    let mut buffer = Vec::with_capacity(4096);
    while connection.read_buf(&mut buffer).await.is_ok_and(|read| read > 0) {
        let text = String::from_utf8_lossy(&buffer);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        // The refresh token is the last member of the form.
        if head.starts_with("POST") && !body.ends_with("a-refresh-token") {
            continue;
        }
        let (status, body) = if head.starts_with("POST") {
            calls.fetch_add(1, Ordering::SeqCst);
            tokio::time::sleep(delay).await;
            ("200 OK", r#"{"access_token":"new","expires_in":3600}"#)
        } else if head.contains("Bearer new") {
            ("200 OK", "{}")
        } else {
            everybody.wait().await;
            ("401 Unauthorized", "{}")
        };
        let answer = format!(
            "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        buffer.clear();
        if connection.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// Rejects the old token once this many requests have sent it, so that all are rejected at once.
struct Refusing(Arc<Barrier>);

impl Refusing {
    fn all(waiters: usize) -> Self {
        Self(Arc::new(Barrier::new(waiters)))
    }
}

impl Middleware for Refusing {
    fn handle<'this, 'extensions, 'next, 'future>(
        &'this self,
        request: Request,
        _: &'extensions mut Extensions,
        _: Next<'next>,
    ) -> Pin<Box<dyn Future<Output = Result<Response>> + Send + 'future>>
    where
        'this: 'future,
        'extensions: 'future,
        'next: 'future,
        Self: 'future,
    {
        if request.headers()[AUTHORIZATION] == "Bearer new" {
            return Box::pin(std::future::ready(Ok(answer(&request, 200))));
        }
        Box::pin(async move {
            self.0.wait().await;
            Ok(answer(&request, 401))
        })
    }
}
