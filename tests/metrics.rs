//! What is counted through the `metrics` facade.
#![allow(clippy::unwrap_used, reason = "a test may")]

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, atomic::Ordering},
};

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit, atomics::AtomicU64};
use reqwest_middleware::ClientBuilder;
use reqwest_reauth::{
    ClientBuilderExt, OAuthRefresh, Session, Tokens, refresh_with,
    testing::{Answer, AuthServer},
};

/// Counters, and how many values each histogram got.
#[derive(Clone, Default)]
struct Counts(Arc<Mutex<BTreeMap<String, Arc<AtomicU64>>>>);

struct Values(Arc<AtomicU64>);

impl metrics::HistogramFn for Values {
    fn record(&self, _: f64) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Counts {
    fn cell(&self, key: &Key) -> Arc<AtomicU64> {
        let labels: Vec<_> = key.labels().map(|label| format!("{}={}", label.key(), label.value())).collect();
        let name = format!("{}{{{}}}", key.name(), labels.join(","));
        Arc::clone(self.0.lock().unwrap().entry(name).or_default())
    }

    fn all(&self) -> Vec<(String, u64)> {
        self.0.lock().unwrap().iter().map(|(name, count)| (name.clone(), count.load(Ordering::Relaxed))).collect()
    }
}

impl Recorder for Counts {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.cell(key))
    }

    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::noop()
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(Arc::new(Values(self.cell(key))))
    }
}

#[test]
fn a_refresh_after_a_502_and_a_capture_are_counted() {
    let counts = Counts::default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    metrics::with_local_recorder(&counts, || {
        runtime.block_on(async {
            let server = AuthServer::start().await;
            let step = std::time::Duration::from_millis(1);
            let refresher = OAuthRefresh::new(server.token_endpoint()).backoff(step, step);
            let session = Session::builder(server.login()).origin(server.origin()).refresher(refresher).build().unwrap();
            let client = ClientBuilder::new(reqwest::Client::new()).with_session(session).build();
            server.script_token_endpoint([Answer::Status(502)]);
            server.expire_now();
            assert_eq!(client.get(server.url("/")).send().await.unwrap().status(), 200);
            server.reissue_next(1);
            assert_eq!(client.get(server.url("/")).send().await.unwrap().status(), 200);
        });
    });
    let expected = [
        ("reauth.captures{reauth.result=adopted}", 1),
        ("reauth.flight.duration{error.type=none}", 1),
        ("reauth.flight.retries{http.response.status_code=502}", 1),
        ("reauth.flights{error.type=none}", 1),
        ("reauth.replays{http.response.status_code=200}", 1),
        ("reauth.wait.duration{}", 1),
    ];
    assert_eq!(counts.all(), expected.map(|(name, count)| (name.to_owned(), count)));
}

#[test]
fn a_refresh_that_a_new_login_overtakes_is_no_failure() {
    let counts = Counts::default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    metrics::with_local_recorder(&counts, || {
        runtime.block_on(async {
            let session = Session::builder(Tokens::new("t0").unwrap()).origin("https://api.example.com");
            let session = session.refresher(refresh_with(|_| std::future::pending())).build().unwrap();
            let (refreshed, replaced) = tokio::join!(session.refresh(), async {
                tokio::task::yield_now().await;
                session.replace_tokens(Tokens::new("t1").unwrap()).await
            });
            assert_eq!(refreshed.unwrap().access_token().unwrap().expose_secret(), "t1");
            replaced.unwrap();
            session.close().await.unwrap();
        });
    });
    assert_eq!(counts.all(), [("reauth.wait.duration{}".to_owned(), 1)]);
}
