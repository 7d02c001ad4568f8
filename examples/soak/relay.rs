//! A TCP relay that can go down and come back on the same port, like a restarted server.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{JoinHandle, JoinSet},
};

pub(crate) struct Relay {
    address: SocketAddr,
    upstream: String,
    running: Option<(watch::Sender<()>, JoinHandle<()>)>,
}

impl Relay {
    /// `upstream` is `host:port`.
    pub(crate) async fn to(upstream: &str) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let mut relay =
            Self { address: listener.local_addr()?, upstream: upstream.to_owned(), running: None };
        relay.run(listener);
        Ok(relay)
    }

    pub(crate) fn origin(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Closes the listener and every connection.
    pub(crate) async fn down(&mut self) {
        if let Some((stop, task)) = self.running.take() {
            drop(stop);
            // The task neither panics nor is aborted.
            let _ = task.await;
        }
    }

    pub(crate) async fn up(&mut self) -> io::Result<()> {
        let listener = TcpListener::bind(self.address).await?;
        self.run(listener);
        Ok(())
    }

    fn run(&mut self, listener: TcpListener) {
        let (stop, mut stopped) = watch::channel(());
        let upstream = self.upstream.clone();
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        if let Ok((client, _)) = accepted {
                            connections.spawn(relay(client, upstream.clone()));
                        }
                    }
                    // Removes finished connections.
                    Some(_) = connections.join_next() => {}
                    _ = stopped.changed() => break,
                }
            }
            connections.shutdown().await;
        });
        self.running = Some((stop, task));
    }
}

async fn relay(mut client: TcpStream, upstream: String) {
    let Ok(mut server) = TcpStream::connect(upstream).await else {
        return;
    };
    // Best effort: without it, responses are slower but correct.
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    if copy_bidirectional(&mut client, &mut server).await.is_err() {
        // Passes a reset on as a reset. Tokio's method without the deprecation is newer than the
        // oldest supported tokio.
        #[allow(deprecated)]
        let _ = client.set_linger(Some(Duration::ZERO));
    }
}
