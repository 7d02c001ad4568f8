//! A redis-server for the test alone.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its own part")]
#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers outside of test functions

use std::{
    io::{BufRead, BufReader},
    net::TcpListener,
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
};

use redis::FromRedisValue;
use reqwest_reauth::RedisStore;

/// Why no server can run here.
pub fn missing() -> Option<String> {
    let version = Command::new("redis-server").arg("--version").stdout(Stdio::null()).status();
    version.is_err().then(|| "redis-server is not installed".to_owned())
}

pub struct Server {
    pub port: u16,
    options: Vec<String>,
    pub process: Child,
    log: BufReader<ChildStdout>,
    dir: tempfile::TempDir,
}

impl Server {
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    pub fn start_with(options: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options: Vec<_> = options.iter().map(ToString::to_string).collect();
        // Another process may take the port before the server starts.
        (0..10)
            .find_map(|_| {
                let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
                launch(port, dir.path(), &options).map(|(process, log)| (port, process, log))
            })
            .map(|(port, process, log)| Self { port, options, process, log, dir })
            .expect("redis-server does not start")
    }

    /// Kills the server. Its data stays on disk.
    pub fn stop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    pub fn start_again(&mut self) {
        (self.process, self.log) = launch(self.port, self.dir.path(), &self.options).unwrap();
    }

    pub fn url(&self) -> String {
        // A cluster has one database.
        let database =
            if self.options.iter().any(|option| option == "--cluster-enabled") { 0 } else { 3 };
        format!("redis://127.0.0.1:{}/{database}", self.port)
    }

    /// Starts a cluster of two nodes, each with half of the slots.
    pub fn start_cluster() -> [Self; 2] {
        let node = || Self::start_with(&["--cluster-enabled", "yes"]);
        let nodes = [node(), node()];
        for (node, slots) in nodes.iter().zip([["0", "8191"], ["8192", "16383"]]) {
            node.ask::<()>(&["CLUSTER", "ADDSLOTSRANGE", slots[0], slots[1]]);
        }
        let port = nodes[1].port.to_string();
        nodes[0].ask::<()>(&["CLUSTER", "MEET", "127.0.0.1", &port]);
        for node in &nodes {
            let is_ready = || node.ask::<String>(&["CLUSTER", "INFO"]).contains("cluster_state:ok");
            while !is_ready() {
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
        }
        nodes
    }

    pub async fn store(&self) -> RedisStore {
        RedisStore::connect(&self.url(), "login").await.unwrap()
    }

    /// The result of a Redis command.
    pub fn ask<T: FromRedisValue>(&self, words: &[&str]) -> T {
        let mut connection = redis::Client::open(self.url()).unwrap().get_connection().unwrap();
        let mut command = redis::cmd(words[0]);
        for word in &words[1..] {
            command.arg(word);
        }
        command.query(&mut connection).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Returns `None` if the server did not start. A TLS server (`tls-port 0` among its options)
/// listens on that port with TLS only.
fn launch(port: u16, dir: &Path, options: &[String]) -> Option<(Child, BufReader<ChildStdout>)> {
    let port = port.to_string();
    let port_option = if options.iter().any(|option| option == "--tls-cert-file") {
        ["--port", "0", "--tls-port", &port]
    } else {
        ["--tls-port", "0", "--port", &port]
    };
    let mut process = Command::new("redis-server")
        .args([
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--appendonly",
            "yes",
            "--appendfsync",
            "always",
            "--dir",
        ])
        .arg(dir)
        .args(port_option)
        .args(options)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = BufReader::new(process.stdout.take().unwrap());
    let mut line = String::new();
    while log.read_line(&mut line).unwrap() > 0 {
        if line.contains("Ready to accept connections") {
            return Some((process, log));
        }
        line.clear();
    }
    process.wait().unwrap();
    None
}
