//! A listener whose connections can be reset from inside a handler.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use axum::{
    extract::connect_info::Connected,
    serve::{IncomingStream, Listener},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
};

/// The connection that a request came on.
#[derive(Clone, Default)]
pub(super) struct Wire(Arc<AtomicBool>);

impl Wire {
    /// Turns the response to this request into a TCP reset.
    pub(super) fn reset(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

pub(super) struct Loopback(pub(super) TcpListener);

impl Listener for Loopback {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        let (stream, peer) = Listener::accept(&mut self.0).await;
        // Best effort: without it, responses are slower but correct.
        let _ = stream.set_nodelay(true);
        (Connection { stream, wire: Wire::default() }, peer)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

impl Connected<IncomingStream<'_, Loopback>> for Wire {
    fn connect_info(stream: IncomingStream<'_, Loopback>) -> Self {
        stream.io().wire.clone()
    }
}

pub(super) struct Connection {
    stream: TcpStream,
    wire: Wire,
}

impl Connection {
    fn check(&self) -> io::Result<()> {
        if self.wire.0.load(Ordering::Relaxed) {
            // Only this setting turns a close into a reset. Zero does not block, and tokio's method
            // for it is newer than the oldest supported tokio.
            #[allow(deprecated)]
            self.stream.set_linger(Some(std::time::Duration::ZERO))?;
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        Ok(())
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check()?;
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check()?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check()?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
