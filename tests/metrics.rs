//! The metrics that are recorded through the `metrics` facade.
#![allow(clippy::unwrap_used, reason = "a test may")]

use std::{
    collections::BTreeMap,
    future::Future,
    sync::{Arc, Mutex, atomic::Ordering},
    time::Duration,
};

use metrics::{
    Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit,
    atomics::AtomicU64,
};
use reqwest_middleware::ClientBuilder;
use reqwest_reauth::{
    ClientBuilderExt, DpopKey, Error, ErrorKind, FileStore, OAuthRefresh, Placement, Session,
    Tokens,
    heartbeat::{Heartbeat, Stopped},
    refresh_with,
    testing::{Answer, AuthServer, Dpop},
};

/// Counters, and how many values each histogram got.
#[derive(Clone, Default)]
struct Counts {
    numbers: Cells,
    gauges: Cells,
    described: Arc<Mutex<Descriptions>>,
}

type Descriptions = BTreeMap<String, (Option<Unit>, String)>;
type Cells = Arc<Mutex<BTreeMap<String, Arc<AtomicU64>>>>;

struct Values(Arc<AtomicU64>);

impl metrics::HistogramFn for Values {
    fn record(&self, _: f64) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Counts {
    fn describe(&self, name: &KeyName, unit: Option<Unit>, text: &SharedString) {
        let text = (unit, text.to_string());
        self.described.lock().unwrap().insert(name.as_str().to_owned(), text);
    }

    fn cell(cells: &Cells, key: &Key) -> Arc<AtomicU64> {
        let labels: Vec<_> =
            key.labels().map(|label| format!("{}={}", label.key(), label.value())).collect();
        let name = format!("{}{{{}}}", key.name(), labels.join(","));
        Arc::clone(cells.lock().unwrap().entry(name).or_default())
    }

    fn all(&self) -> Vec<(String, u64)> {
        self.numbers
            .lock()
            .unwrap()
            .iter()
            .map(|(name, count)| (name.clone(), count.load(Ordering::Relaxed)))
            .collect()
    }
}

impl Recorder for Counts {
    fn describe_counter(&self, name: KeyName, unit: Option<Unit>, text: SharedString) {
        self.describe(&name, unit, &text);
    }

    fn describe_gauge(&self, name: KeyName, unit: Option<Unit>, text: SharedString) {
        self.describe(&name, unit, &text);
    }

    fn describe_histogram(&self, name: KeyName, unit: Option<Unit>, text: SharedString) {
        self.describe(&name, unit, &text);
    }

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(Self::cell(&self.numbers, key))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(Self::cell(&self.gauges, key))
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(Arc::new(Values(Self::cell(&self.numbers, key))))
    }
}

/// The metrics that are recorded while this runs, on one thread.
fn counted(scenario: impl Future<Output = ()>) -> Vec<(String, u64)> {
    recorded(scenario).all()
}

fn recorded(scenario: impl Future<Output = ()>) -> Counts {
    let counts = Counts::default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    metrics::with_local_recorder(&counts, || runtime.block_on(scenario));
    counts
}

#[test]
fn a_session_is_counted_in_its_state() {
    let counts = Counts::default();
    let states = || {
        let gauges = counts.gauges.lock().unwrap();
        let gauges = gauges
            .iter()
            .map(|(name, bits)| (name.clone(), f64::from_bits(bits.load(Ordering::Relaxed))));
        gauges.filter(|(_, count)| *count != 0.0).collect::<Vec<_>>()
    };
    let in_state = |state: &str, session: &str| {
        format!("reauth.session.state{{reauth.state={state}{session}}}")
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    metrics::with_local_recorder(&counts, || {
        let session = |name: Option<&str>| {
            let ends =
                refresh_with(|_| async { Err(Error::new(ErrorKind::LoginRequired, "revoked")) });
            let builder = Session::builder(Tokens::new("t0").unwrap()).refresher(ends);
            let builder = builder.origin("https://api.example.com");
            match name {
                Some(name) => builder.name(name).build().unwrap(),
                None => builder.build().unwrap(),
            }
        };
        let (one, other, named) = (session(None), session(None), session(Some("seqera")));
        let of_name = ",reauth.session=seqera";
        assert_eq!(states(), [(in_state("active", of_name), 1.0), (in_state("active", ""), 2.0)]);
        runtime.block_on(named.refresh()).unwrap_err();
        runtime.block_on(other.close()).unwrap();
        let expected = [
            (in_state("active", ""), 1.0),
            (in_state("closed", ""), 1.0),
            (in_state("login_required", of_name), 1.0),
        ];
        assert_eq!(states(), expected);
        drop((one, other, named));
        assert_eq!(states(), []);
    });
}

#[test]
fn repeats_for_a_nonce_are_counted() {
    let counts = recorded(async {
        let server = AuthServer::builder().dpop(Dpop::new().api_nonces(1)).start().await;
        let session = Session::builder(server.login())
            .origin(server.origin())
            .placement(Placement::dpop(DpopKey::generate().unwrap()))
            .build()
            .unwrap();
        let client = session.wrap(reqwest::Client::new());
        for _ in 0..3 {
            client.get(server.url("/a")).send().await.unwrap();
        }
    });
    let repeats: Vec<_> =
        counts.all().into_iter().filter(|(name, _)| name.starts_with("reauth.dpop")).collect();
    assert_eq!(repeats, [("reauth.dpop.nonce_repeats{}".to_owned(), 1)]);
}

#[test]
fn metrics_are_named_and_described() {
    let counts = recorded(async {
        let server = AuthServer::start().await;
        let session = Session::builder(server.login()).name("seqera").origin(server.origin());
        let refresher = refresh_with(|_| async { Err(Error::new(ErrorKind::Unavailable, "down")) });
        let session = session.refresher(refresher).build().unwrap();
        let client =
            ClientBuilder::new(reqwest::Client::new()).with_session(session.clone()).build();
        server.expire_now();
        client.get(server.url("/")).send().await.unwrap_err();
        let url = server.url("/");
        let heartbeat = Heartbeat::new(client, move |client| client.get(&url)).session(session);
        heartbeat.max_failures(1).spawn().unwrap().finished().await;
    });
    let names: Vec<_> = counts.all().into_iter().map(|(name, _)| name).collect();
    assert!(names.iter().all(|name| name.contains("reauth.session=seqera")), "{names:#?}");
    let failed =
        |kind| format!("reauth.requests.failed{{error.type={kind},reauth.session=seqera}}");
    for kind in ["unavailable", "cooling_down"] {
        assert!(names.contains(&failed(kind)), "{kind}: {names:#?}");
    }
    let ended = "reauth.heartbeat.ended{reauth.reason=too_many_failures,reauth.session=seqera}";
    assert!(names.iter().any(|name| name == ended), "{names:#?}");
    let described = counts.described.lock().unwrap();
    for name in names.iter().map(|name| name.split('{').next().unwrap()) {
        let (unit, text) = &described[name];
        let seconds = name.ends_with(".duration");
        assert_eq!(*unit, Some(if seconds { Unit::Seconds } else { Unit::Count }), "{name}");
        assert!(!text.is_empty(), "{name}");
    }
    assert!(described.len() >= 13, "{described:#?}");
}

#[test]
fn refreshes_and_captures_are_counted() {
    let counts = counted(async {
        let server = AuthServer::start().await;
        let step = Duration::from_millis(1);
        let refresher = OAuthRefresh::new(server.token_endpoint()).backoff(step, step);
        let session = Session::builder(server.login())
            .origin(server.origin())
            .refresher(refresher)
            .build()
            .unwrap();
        let client = ClientBuilder::new(reqwest::Client::new()).with_session(session).build();
        server.script_token_endpoint([Answer::Status(502)]);
        server.expire_now();
        assert_eq!(client.get(server.url("/")).send().await.unwrap().status(), 200);
        server.reissue_next(1);
        assert_eq!(client.get(server.url("/")).send().await.unwrap().status(), 200);
    });
    let expected = [
        ("reauth.captures{reauth.result=adopted}", 1),
        ("reauth.flight.duration{error.type=none}", 1),
        ("reauth.flight.retries{http.response.status_code=502}", 1),
        ("reauth.flights{error.type=none}", 1),
        ("reauth.replays{http.response.status_code=200}", 1),
        ("reauth.wait.duration{}", 1),
    ];
    assert_eq!(counts, expected.map(|(name, count)| (name.to_owned(), count)));
}

#[test]
fn failures_are_counted_by_reason() {
    let dir = tempfile::tempdir().unwrap();
    let counts = counted(async {
        let server = AuthServer::start().await;
        let unavailable =
            refresh_with(|_| async { Err(Error::new(ErrorKind::Unavailable, "down")) });
        // A directory is no token file: neither at the first request nor in the refresh.
        let session =
            Session::builder(server.login()).origin(server.origin()).refresher(unavailable);
        let session = session.store(FileStore::new(dir.path())).build().unwrap();
        let client = ClientBuilder::new(reqwest::Client::new()).with_session(session).build();
        let malformed =
            http::Response::builder().header("refreshed-api-token", "two words").body("".into());
        server.script_api([Answer::Response(malformed.unwrap())]);
        assert_eq!(client.get(server.url("/")).send().await.unwrap().status(), 200);
        server.refuse_next(2, http::StatusCode::UNAUTHORIZED);
        client.get(server.url("/")).send().await.unwrap_err();

        let session = Session::builder(server.login()).origin(server.origin()).replay_if(|_| false);
        let session =
            session.refresher(OAuthRefresh::new(server.token_endpoint())).build().unwrap();
        let client = ClientBuilder::new(reqwest::Client::new()).with_session(session).build();
        assert_eq!(client.get(server.url("/")).send().await.unwrap().status(), 401);
    });
    let expected = [
        ("reauth.captures{reauth.result=malformed}", 1),
        ("reauth.flight.duration{error.type=none}", 1),
        ("reauth.flight.duration{error.type=unavailable}", 1),
        ("reauth.flights{error.type=none}", 1),
        ("reauth.flights{error.type=unavailable}", 1),
        ("reauth.not_replayed{reauth.reason=ruled_out}", 1),
        ("reauth.requests.failed{error.type=unavailable}", 1),
        ("reauth.store.failures{}", 2),
        ("reauth.wait.duration{}", 2),
    ];
    assert_eq!(counts, expected.map(|(name, count)| (name.to_owned(), count)));
}

#[test]
fn an_overtaken_refresh_is_no_failure() {
    let counts = counted(async {
        let session =
            Session::builder(Tokens::new("t0").unwrap()).origin("https://api.example.com");
        let session = session.refresher(refresh_with(|_| std::future::pending())).build().unwrap();
        let (refreshed, replaced) = tokio::join!(session.refresh(), async {
            tokio::task::yield_now().await;
            session.replace_tokens(Tokens::new("t1").unwrap()).await
        });
        assert_eq!(refreshed.unwrap().access_token().unwrap().expose_secret(), "t1");
        replaced.unwrap();
        session.close().await.unwrap();
    });
    assert_eq!(counts, [("reauth.wait.duration{}".to_owned(), 1)]);
}

/// Otherwise a token endpoint that hangs would hide the longest waits.
#[test]
fn a_wait_that_is_cut_short_is_counted() {
    let counts = counted(async {
        let server = AuthServer::start().await;
        let session = Session::builder(server.login()).origin(server.origin());
        let session = session.refresher(refresh_with(|_| std::future::pending()));
        let session = session.wait_timeout(Duration::from_millis(1)).build().unwrap();
        server.expire_now();
        let client = session.wrap(reqwest::Client::new());
        client.get(server.url("/")).send().await.unwrap_err();
        // Supersedes the refresh, which would otherwise be counted when its runtime is dropped.
        session.replace_tokens(Tokens::new("another").unwrap()).await.unwrap();
    });
    let expected =
        [("reauth.requests.failed{error.type=timed_out}", 1), ("reauth.wait.duration{}", 1)];
    assert_eq!(counts, expected.map(|(name, count)| (name.to_owned(), count)));
}

#[test]
fn failed_beats_are_counted_by_reason() {
    let counts = counted(async {
        let server = AuthServer::start().await;
        let plain = ClientBuilder::new(reqwest::Client::new()).build();
        let session = Session::builder(Tokens::empty()).origin(server.origin());
        let unavailable =
            refresh_with(|_| async { Err(Error::new(ErrorKind::Unavailable, "down")) });
        let session = session.refresher(unavailable).build().unwrap();
        let without_token =
            ClientBuilder::new(reqwest::Client::new()).with_session(session).build();
        let once = |heartbeat: reqwest_reauth::heartbeat::Heartbeat| async {
            let stopped = heartbeat.max_failures(1).spawn().unwrap().finished().await;
            assert!(
                matches!(
                    stopped,
                    Stopped::TooManyFailures { failures: 1, .. } | Stopped::ByStatus { .. }
                ),
                "{stopped:?}"
            );
        };
        let (url, token) = (server.url("/"), server.login());
        let header = format!("Bearer {}", token.access_token().unwrap().expose_secret());
        let signed_in = {
            let url = url.clone();
            Heartbeat::new(plain.clone(), move |client| {
                client.get(url.clone()).header("authorization", header.clone())
            })
        };
        once(signed_in.stop_on(|status| status == 200)).await;
        let to =
            |client, url: String| Heartbeat::new(client, move |client| client.get(url.clone()));
        once(to(plain.clone(), url.clone())).await;
        once(to(without_token, url.clone())).await;
        once(to(plain.clone(), "http://127.0.0.1:0/".to_owned())).await;
        let hold = server.hold_api();
        once(to(plain.clone(), url).timeout(Duration::from_millis(1))).await;
        hold.release();
        once(Heartbeat::new(plain, |_| panic!("a closure that panics"))).await;
    });
    let beats: Vec<_> =
        counts.into_iter().filter(|(name, _)| name.starts_with("reauth.heartbeat.beat")).collect();
    let causes = ["auth", "none", "panicked", "status", "timed_out", "transport"];
    let expected = ["reauth.heartbeat.beat.duration", "reauth.heartbeat.beats"]
        .into_iter()
        .flat_map(|name| causes.map(|cause| (format!("{name}{{error.type={cause}}}"), 1)));
    assert_eq!(beats, expected.collect::<Vec<_>>());
}
