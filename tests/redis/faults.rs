//! A Redis that rejects writes for a while, and a connection that drops its data.

use std::{sync::Arc, time::Duration};

use reqwest_reauth::{RedisStore, TokenStore};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    task::{spawn_blocking, yield_now},
};

use crate::redis_server::Server;

/// A failed renewal does not release the lock, because the lease still runs.
pub(crate) async fn a_renewal_that_fails_keeps_the_lock() {
    let server = Arc::new(Server::start());
    let lease = Duration::from_secs(3);
    let store = server.store().await.lease(lease);
    let lock = store.lock().await.unwrap();
    let owner: String = server.ask(&["GET", "{login}:lock"]);

    // Redis rejects writes without a replica.
    server.ask::<()>(&["CONFIG", "SET", "min-replicas-to-write", "1"]);
    until(&server, |server| {
        server.ask::<String>(&["INFO", "errorstats"]).contains("errorstat_NOREPLICAS")
    })
    .await;
    server.ask::<()>(&["CONFIG", "SET", "min-replicas-to-write", "0"]);
    // The next renewal is in time, and restores the whole lease.
    let before = left(&server);
    until(&server, move |server| left(server) > before || left(server) < 0).await;
    assert_eq!(server.ask::<Option<String>>(&["GET", "{login}:lock"]), Some(owner));
    let tokens = reqwest_reauth::Tokens::new("a").unwrap();
    store.save(&lock, &tokens).await.unwrap();
}

fn left(server: &Server) -> i64 {
    server.ask(&["PTTL", "{login}:lock"])
}

async fn until(server: &Arc<Server>, is_so: impl Fn(&Server) -> bool + Send + Clone + 'static) {
    loop {
        let (server, is_so) = (Arc::clone(server), is_so.clone());
        if spawn_blocking(move || is_so(&server)).await.unwrap() {
            return;
        }
        yield_now().await;
    }
}

/// A proxy between a store and Redis. On demand it drops the data of all existing connections.
struct Swallow {
    port: u16,
    /// The last connection whose data is dropped, counted from 1.
    swallowed: watch::Sender<usize>,
    connections: watch::Sender<usize>,
    /// A permit for each read that was dropped.
    gone: Arc<Semaphore>,
}

impl Swallow {
    async fn before(server: &Server) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (port, redis) = (listener.local_addr().unwrap().port(), server.port);
        let (swallowed, connections) = (watch::Sender::new(0), watch::Sender::new(0));
        let gone = Arc::new(Semaphore::new(0));
        tokio::spawn({
            let (swallowed, connections, gone) =
                (swallowed.clone(), connections.clone(), Arc::clone(&gone));
            async move {
                while let Ok((mut client, _)) = listener.accept().await {
                    let number = *connections.borrow() + 1;
                    connections.send_replace(number);
                    let (mut told, gone) = (swallowed.subscribe(), Arc::clone(&gone));
                    let mut server = TcpStream::connect(("127.0.0.1", redis)).await.unwrap();
                    tokio::spawn(async move {
                        tokio::select! {
                            biased;
                            _ = told.wait_for(|up_to| *up_to >= number) => {}
                            _ = copy_bidirectional(&mut client, &mut server) => return,
                        }
                        let _ = server.shutdown().await;
                        while client.read(&mut [0; 1024]).await.is_ok_and(|length| length > 0) {
                            gone.add_permits(1);
                        }
                    });
                }
            }
        });
        Self { port, swallowed, connections, gone }
    }

    fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/3", self.port)
    }

    fn now(&self) {
        self.swallowed.send_replace(*self.connections.borrow());
    }
}

/// A connection without a response is discarded even if its callers have left. The next caller gets
/// a new connection at once.
pub(crate) async fn a_connection_whose_callers_left_is_given_up() {
    let server = Server::start();
    let swallow = Swallow::before(&server).await;
    let store = RedisStore::connect(&swallow.url(), "login").await.unwrap();
    assert!(store.load().await.unwrap().is_none());
    assert_eq!(*swallow.connections.borrow(), 1);

    swallow.now();
    // A caller with a shorter timeout than the call: it leaves as soon as its command is sent.
    tokio::select! {
        loaded = store.load() => panic!("there was a response: {loaded:?}"),
        gone = swallow.gone.acquire() => gone.unwrap().forget(),
    }
    assert!(store.load().await.unwrap().is_none());
    assert_eq!(*swallow.connections.borrow(), 2);
}
