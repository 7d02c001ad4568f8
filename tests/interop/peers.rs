//! The servers of `tests/peers`: started for one test, stopped when dropped.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU16, Ordering},
    },
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use reqwest_middleware::{ClientBuilder, ClientWithMiddleware};
use reqwest_reauth::{ClientBuilderExt as _, Event, OAuthRefresh, Session, SessionBuilder, Tokens};
use serde_json::Value;
use tempfile::TempDir;

pub(crate) const API: &str = "/resource/echo";
pub(crate) const TOKEN: &str = "/token";
pub(crate) const REVOCATION: &str = "/token/revocation";

/// nginx in front of oidc-provider.
pub(crate) struct Peers {
    nginx: Server,
    provider: Server,
    control: reqwest::Client,
}

/// A login, as `/seed` returns it.
pub(crate) struct Seed {
    pub(crate) access: String,
    pub(crate) refresh: String,
    pub(crate) lifetime: Duration,
}

impl Peers {
    /// `settings` are the environment of `server.mjs`.
    pub(crate) fn start(settings: &[(&str, &str)]) -> Self {
        let provider = Server::start("oidc-provider", None, settings);
        let nginx = Server::start("faults", Some(provider.port), &[]);
        // A connection that outlives nginx's restart would be useless.
        let control = reqwest::Client::builder()
            .pool_max_idle_per_host(0)
            .timeout(Duration::from_secs(10))
            .build()
            .unwrap();
        Self { nginx, provider, control }
    }

    /// nginx: the origin of sessions and the address of clients.
    pub(crate) fn origin(&self) -> String {
        format!("http://127.0.0.1:{}", self.nginx.port)
    }

    pub(crate) fn api(&self) -> String {
        self.origin() + API
    }

    /// The provider itself, without nginx.
    pub(crate) fn direct_origin(&self) -> String {
        format!("http://127.0.0.1:{}", self.provider.port)
    }

    pub(crate) fn refresher(&self) -> OAuthRefresh {
        OAuthRefresh::new(self.origin() + TOKEN)
            .backoff(Duration::from_millis(100), Duration::from_millis(400))
    }

    /// With the credentials of the client `plain`.
    pub(crate) fn plain_refresher(&self) -> OAuthRefresh {
        self.refresher().client_secret_basic("plain-client", "plain-secret")
    }

    pub(crate) async fn seed(&self, client: &str) -> Seed {
        self.seed_of(&format!("client={client}")).await
    }

    /// A login that is bound to the key with this thumbprint, for the userinfo endpoint.
    pub(crate) async fn bound_seed(&self, thumbprint: &str) -> Seed {
        self.seed_of(&format!("client=plain&jkt={thumbprint}")).await
    }

    /// Advances the provider's clock.
    pub(crate) async fn later(&self, seconds: u64) {
        let url = format!("{}/later?seconds={seconds}", self.direct_origin());
        let _: Value = self.control.post(url).json_answer().await;
    }

    async fn seed_of(&self, query: &str) -> Seed {
        let url = format!("{}/seed?{query}", self.direct_origin());
        let seed: Value = self.control.post(url).json_answer().await;
        Seed {
            access: seed["access_token"].as_str().unwrap().to_owned(),
            refresh: seed["refresh_token"].as_str().unwrap().to_owned(),
            lifetime: Duration::from_secs(seed["expires_in"].as_u64().unwrap()),
        }
    }

    /// What access tokens are for.
    pub(crate) fn resource(&self) -> String {
        self.direct_origin() + API
    }

    pub(crate) fn revocation(&self) -> String {
        self.origin() + REVOCATION
    }

    /// The private key of a client that signs, as DER.
    pub(crate) async fn key(&self, name: &str) -> Vec<u8> {
        let keys: BTreeMap<String, String> =
            self.control.get(format!("{}/keys", self.direct_origin())).json_answer().await;
        STANDARD.decode(&keys[name]).unwrap()
    }

    /// A session with its own grant.
    pub(crate) async fn session(&self, refresher: OAuthRefresh) -> (Session, Events) {
        let tokens = self.seed("plain").await.tokens();
        let (builder, events) = self.builder(tokens, refresher);
        (builder.build().unwrap(), events)
    }

    pub(crate) fn builder(
        &self,
        tokens: Tokens,
        refresher: OAuthRefresh,
    ) -> (SessionBuilder, Events) {
        let events = Events::default();
        let builder = Session::builder(tokens)
            .origin(self.origin())
            .origin(self.direct_origin())
            .refresher(refresher)
            .on_event(events.listener());
        (builder, events)
    }

    /// Queues faults for a path: see `tests/peers/README.md`.
    pub(crate) async fn fault(&self, path: &str, fault: &str, times: usize) {
        let (kind, arg) = fault.split_once(' ').unwrap_or((fault, ""));
        let url = format!("{}/__faults", self.origin());
        let query = [("path", path), ("kind", kind), ("arg", arg), ("times", &times.to_string())];
        let _: Value = self.control.post(url).query(&query).json_answer().await;
    }

    /// Ends an opaque access token before its time.
    pub(crate) async fn expire(&self, access_token: &str) {
        let url = format!("{}/expire", self.direct_origin());
        let _: Value = self.control.post(url).query(&[("token", access_token)]).json_answer().await;
    }

    /// The number of requests that reached nginx.
    pub(crate) async fn hits(&self, request: &str) -> u64 {
        let hits: BTreeMap<String, u64> =
            self.control.get(format!("{}/__faults", self.origin())).json_answer().await;
        hits.get(request).copied().unwrap_or(0)
    }

    /// Forgets counts and queued faults.
    pub(crate) async fn forget(&self) {
        let _: Value =
            self.control.delete(format!("{}/__faults", self.origin())).json_answer().await;
    }

    /// How often the provider sent this response, for example `POST /token 200`.
    pub(crate) async fn answered(&self, answer: &str) -> u64 {
        self.answered_at_least(answer, 0).await
    }

    /// Waits until the count has this value. The provider counts a response after it is written,
    /// which may be later for a response that is not awaited.
    pub(crate) async fn answered_at_least(&self, answer: &str, times: u64) -> u64 {
        let ask = self.control.get(format!("{}/stats", self.direct_origin()));
        let ask = ask
            .query(&[("answer", answer), ("times", &times.to_string())])
            .timeout(Duration::from_secs(20));
        let stats: BTreeMap<String, u64> = ask.json_answer().await;
        stats.get(answer).copied().unwrap_or(0)
    }

    /// Stops nginx. Its open requests are cut.
    pub(crate) fn stop_nginx(&self) {
        tokio::task::block_in_place(|| self.nginx.stop());
    }

    pub(crate) fn start_nginx(&self) {
        tokio::task::block_in_place(|| self.nginx.start_again(self.provider.port)).unwrap();
    }
}

impl Seed {
    pub(crate) fn refresh_alone(&self) -> Tokens {
        Tokens::from_refresh_token(&self.refresh).unwrap()
    }

    pub(crate) fn tokens(&self) -> Tokens {
        Tokens::new(&self.access)
            .unwrap()
            .with_refresh_token(&self.refresh)
            .unwrap()
            .with_expires_in(self.lifetime)
    }
}

pub(crate) fn client(session: &Session) -> ClientWithMiddleware {
    ClientBuilder::new(reqwest::Client::new()).with_session(session.clone()).build()
}

pub(crate) fn refresh_token(session: &Session) -> String {
    session.tokens().unwrap().refresh_token().unwrap().expose_secret().to_owned()
}

/// The events of a session, in order.
#[derive(Clone, Default)]
pub(crate) struct Events(Arc<Mutex<Vec<Event>>>);

impl Events {
    fn listener(&self) -> impl Fn(&Event) + Send + Sync + 'static {
        let events = Arc::clone(&self.0);
        move |event| events.lock().unwrap().push(event.clone())
    }

    /// The status and delay of each failed attempt that was followed by another.
    pub(crate) fn retries(&self) -> Vec<(Option<u16>, Duration)> {
        let events = self.0.lock().unwrap();
        let retries = events.iter().filter_map(|event| match event {
            Event::RefreshRetrying { delay, status, .. } => {
                Some((status.map(|status| status.as_u16()), *delay))
            }
            _ => None,
        });
        retries.collect()
    }

    pub(crate) fn count(&self, wanted: impl Fn(&Event) -> bool) -> usize {
        self.0.lock().unwrap().iter().filter(|event| wanted(event)).count()
    }
}

/// A server that a script of `tests/peers` starts.
struct Server {
    scripts: PathBuf,
    port: u16,
    run: TempDir,
}

impl Server {
    fn start(name: &str, upstream: Option<u16>, settings: &[(&str, &str)]) -> Self {
        let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers").join(name);
        let mut last = String::new();
        // Another process may take the port before the server does.
        for _ in 0..5 {
            let server = Self {
                scripts: scripts.clone(),
                port: free_port(),
                run: tempfile::tempdir().unwrap(),
            };
            match server.script("start.sh", upstream, settings) {
                Ok(()) => return server,
                Err(error) => last = error,
            }
        }
        panic!("{name}: {last}");
    }

    fn start_again(&self, upstream: u16) -> Result<(), String> {
        self.script("start.sh", Some(upstream), &[])
    }

    fn stop(&self) {
        self.script("stop.sh", None, &[]).unwrap();
    }

    fn script(
        &self,
        name: &str,
        upstream: Option<u16>,
        settings: &[(&str, &str)],
    ) -> Result<(), String> {
        let output = Command::new(self.scripts.join(name))
            .arg(self.port.to_string())
            .args(upstream.map(|port| port.to_string()))
            .env("RUN_DIR", self.run.path())
            .env("OWNER_PID", std::process::id().to_string())
            .envs(settings.iter().copied())
            .output()
            .unwrap();
        if output.status.success() {
            Ok(())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // A panic here would hide the panic of the test.
        if let Err(error) = self.script("stop.sh", None, &[]) {
            eprintln!("not stopped: {error}");
        }
    }
}

/// Below the range of ports for outgoing connections.
fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = u16::try_from(std::process::id() % 10_000).unwrap();
    loop {
        let port = 12_000 + (first + NEXT.fetch_add(1, Ordering::Relaxed)) % 20_000;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}

/// Why the servers cannot run here.
pub(crate) fn missing() -> Option<String> {
    let runs = |program: &str| Command::new(program).arg("--version").output().is_ok();
    for program in ["bash", "curl", "node"] {
        if !runs(program) {
            return Some(format!("{program} is not installed"));
        }
    }
    if Command::new("nginx").arg("-v").output().is_err()
        || !Path::new("/usr/lib/nginx/modules/ngx_http_lua_module.so").exists()
    {
        return Some("nginx with its Lua module is not installed".to_owned());
    }
    let packages =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers/oidc-provider/node_modules");
    (!packages.exists()).then(|| {
        "oidc-provider is not installed: run tests/peers/oidc-provider/install.sh".to_owned()
    })
}

trait JsonAnswer {
    async fn json_answer<T: serde::de::DeserializeOwned>(self) -> T;
}

impl JsonAnswer for reqwest::RequestBuilder {
    async fn json_answer<T: serde::de::DeserializeOwned>(self) -> T {
        self.send().await.unwrap().error_for_status().unwrap().json().await.unwrap()
    }
}
