//! A minimal server on a separate thread: 200 and two bytes for every request with the token, and
//! 401 for all others.

use std::{net::TcpListener, thread};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

pub const TOKEN: &str = "an.access.token";

/// Returns the URL of the server.
pub fn start() -> String {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    listener.set_nonblocking(true).unwrap();
    let url = format!("http://{}/v1/things", listener.local_addr().unwrap());
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            loop {
                let (connection, _) = listener.accept().await.unwrap();
                tokio::spawn(serve(connection));
            }
        });
    });
    url
}

async fn serve(mut connection: TcpStream) {
    connection.set_nodelay(true).unwrap();
    let signed = format!("Bearer {TOKEN}\r\n");
    let mut buffer = Vec::with_capacity(4096);
    while connection.read_buf(&mut buffer).await.is_ok_and(|read| read > 0) {
        // The clients send no bodies, and no second request before the first response.
        if !buffer.ends_with(b"\r\n\r\n") {
            continue;
        }
        let is_signed = buffer.windows(signed.len()).any(|window| window == signed.as_bytes());
        let status = if is_signed { "200 OK" } else { "401 Unauthorized" };
        buffer.clear();
        let answer = format!(
            "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{{}}"
        );
        if connection.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}
