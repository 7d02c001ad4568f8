//! Tests of the file alone, and a simulation of six hours with a kubelet.

use std::{
    fs,
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{Extensions, header::AUTHORIZATION};
use reqwest::{Request, Response, ResponseBuilderExt as _};
use reqwest_middleware::{ClientBuilder, Middleware, Next};
use tokio::time::{Instant, sleep};

use super::*;
use crate::{ClientBuilderExt as _, Event, Session, time::suspend};

const ORIGIN: &str = "https://api.example.com";

/// A JWT with this `exp` and this lifetime.
fn jwt(exp: SystemTime, life: Duration) -> String {
    let exp = exp.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64();
    let claims = format!(r#"{{"iat":{},"exp":{exp}}}"#, exp - life.as_secs_f64());
    format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims))
}

fn in_an_hour() -> String {
    jwt(wall() + Duration::from_secs(3600), Duration::from_secs(7200))
}

#[tokio::test]
async fn a_token_ends_at_its_own_exp() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token");
    let token = in_an_hour();
    fs::write(&path, format!("\n {token}\r\n")).unwrap();
    let file = FileRefresh::new(&path);
    let context = RefreshContext::for_test(Tokens::empty());
    let brought = file.refresh(&context).await.unwrap();
    assert_eq!(brought.access_token().unwrap().expose_secret(), token);
    let left = brought.expires_at().unwrap().duration_since(wall()).unwrap();
    assert!(left.as_secs().abs_diff(3600) < 60, "{left:?}");
    let lifetime = brought.lifetime(crate::token::Arrival::Issued).unwrap();
    let span = lifetime.until.duration_since(lifetime.from);
    assert!(span.as_secs().abs_diff(3600) < 60, "{span:?}");
    assert_eq!(file.longest_cooldown(), Some(Duration::from_secs(1)));
    assert!(!file.can_revoke());
}

#[tokio::test]
async fn the_same_or_an_expired_token_is_no_news() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token");
    let file = FileRefresh::new(&path);
    let minute = Duration::from_secs(60);
    let (good, expired) = (in_an_hour(), jwt(wall() - minute, minute));
    let empty = Tokens::empty();
    for (content, held, news) in [
        (&good, &empty, true),
        (&good, &Tokens::new(&good).unwrap(), false),
        (&good, &Tokens::new(&expired).unwrap(), true),
        (&expired, &empty, false),
        (&"opaque".to_owned(), &empty, true),
        (&"opaque".to_owned(), &Tokens::new("opaque").unwrap(), false),
    ] {
        fs::write(&path, content).unwrap();
        assert_eq!(file.has_news(held).await.unwrap(), news);
        let context = RefreshContext::for_test(held.clone());
        let kind = file.refresh(&context).await.map(drop).map_err(|error| error.kind());
        assert_eq!(kind, if news { Ok(()) } else { Err(ErrorKind::Unavailable) });
    }
}

#[tokio::test]
async fn a_file_without_a_token_is_unavailable() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token");
    let file = FileRefresh::new(&path);
    let empty = Tokens::empty();
    for content in [None, Some(""), Some("two words")] {
        if let Some(content) = content {
            fs::write(&path, content).unwrap();
        }
        let error = file.has_news(&empty).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.is_transient());
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(cause.starts_with(&format!("{}: ", path.display())), "{cause}");
        assert!(!cause.contains("two words"), "{cause}");
    }
}

/// Rejects expired tokens with this status and without a challenge.
struct Api {
    status: u16,
    failed: Arc<Mutex<usize>>,
}

#[async_trait]
impl Middleware for Api {
    async fn handle(
        &self,
        request: Request,
        _: &mut Extensions,
        _: Next<'_>,
    ) -> reqwest_middleware::Result<Response> {
        let header = request.headers()[AUTHORIZATION].to_str().unwrap();
        let token = Tokens::new(header.trim_start_matches("Bearer ")).unwrap();
        let is_good = token.expires_at().is_some_and(|at| at > wall());
        if !is_good {
            *self.failed.lock().unwrap() += 1;
        }
        let response = http::Response::builder().url(request.url().clone()).status(if is_good {
            200
        } else {
            self.status
        });
        Ok(response.body("").unwrap().into())
    }
}

/// Advances the local clock together with the paused clock.
struct Clocks {
    start: Instant,
    wall: SystemTime,
}

impl Clocks {
    fn start() -> Self {
        Self { start: Instant::now(), wall: wall() }
    }

    async fn sleep(&self, span: Duration) {
        sleep(span).await;
        let behind = (self.wall + self.start.elapsed()).duration_since(wall());
        suspend(behind.unwrap_or_default());
    }

    fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }
}

/// One row of the simulation.
struct Row {
    what: &'static str,
    life: u64,
    /// The age of the first token when the session starts.
    age: u64,
    /// The API's status for an expired token.
    status: u16,
    /// When the file is unreadable, in seconds from the start.
    unreadable: std::ops::Range<u64>,
    refresh_failures: std::ops::RangeInclusive<usize>,
}

/// Renews the token in the file after 80 % of its lifetime, at most a minute late.
async fn kubelet(path: &Path, clocks: &Clocks, row: &Row) {
    let life = Duration::from_secs(row.life);
    let mut minted = wall() - Duration::from_secs(row.age);
    let mut token = jwt(minted + life, life);
    loop {
        let at = clocks.elapsed().as_secs();
        if row.unreadable.contains(&at) {
            let _ = fs::remove_file(path);
        } else {
            // The kubelet swaps a symlink. A rename is just as atomic.
            let next = path.with_extension("next");
            fs::write(&next, &token).unwrap();
            fs::rename(&next, path).unwrap();
        }
        clocks.sleep(Duration::from_secs(10)).await;
        let age = wall().duration_since(minted).unwrap();
        if age >= life.mul_f64(0.8) {
            minted = wall();
            token = jwt(minted + life, life);
        }
    }
}

/// Six hours with a request every five seconds.
async fn six_hours(row: Row) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token");
    let clocks = Clocks::start();
    let (events, rejected) = (Arc::new(Mutex::new(Vec::new())), Arc::default());
    let listener = Arc::clone(&events);
    let session = Session::builder(Tokens::empty())
        .origin(ORIGIN)
        .refresher(FileRefresh::new(&path))
        .on_event(move |event| listener.lock().unwrap().push(event.clone()))
        .build()
        .unwrap();
    let client = ClientBuilder::new(reqwest::Client::new())
        .with_session(session.clone())
        .with(Api { status: row.status, failed: Arc::clone(&rejected) })
        .build();
    let requests = async {
        let mut failed = 0;
        while clocks.elapsed() < Duration::from_secs(6 * 3600) {
            // Not in step with the kubelet.
            clocks.sleep(Duration::from_millis(5003)).await;
            let sent = client.get(ORIGIN).send().await;
            failed += usize::from(!sent.is_ok_and(|response| response.status() == 200));
        }
        failed
    };
    let failed = tokio::select! {
        failed = requests => failed,
        () = kubelet(&path, &clocks, &row) => unreachable!(),
    };
    let what = row.what;
    assert_eq!(failed, 0, "{what}");
    assert_eq!(*rejected.lock().unwrap(), 0, "{what}");
    let events = events.lock().unwrap();
    let count = |wanted: fn(&Event) -> bool| events.iter().filter(|event| wanted(event)).count();
    let refreshed = count(|event| matches!(event, Event::Refreshed { .. }));
    // One refresh for each token, and none for an unchanged file.
    let renewals = usize::try_from((6 * 3600 + row.age) * 10 / (row.life * 8)).unwrap();
    assert!(refreshed.abs_diff(renewals) <= 1, "{what}: {refreshed}, {renewals}");
    assert_eq!(count(|event| matches!(event, Event::RefreshStarted { .. })), refreshed, "{what}");
    let failures = count(|event| matches!(event, Event::RefreshFailed { .. }));
    assert!(row.refresh_failures.contains(&failures), "{what}: {failures}");
    assert_eq!(events.len(), 2 * refreshed + failures, "{what}");
    assert_eq!(session.generation(), 1 + u64::try_from(refreshed).unwrap(), "{what}");
}

macro_rules! rows {
    ($($name:ident: $row:expr;)*) => {$(
        #[tokio::test(start_paused = true)]
        async fn $name() {
            six_hours(Row { what: stringify!($name), ..$row }).await;
        }
    )*};
}

/// A token of one hour, an API that responds with 401, and a file that is always readable.
const PLAIN: Row =
    Row { what: "", life: 3600, age: 0, status: 401, unreadable: 0..0, refresh_failures: 0..=0 };

rows! {
    kubelet_ten_minutes_and_a_bare_403: Row { life: 600, status: 403, ..PLAIN };
    kubelet_an_hour_and_no_expiry_given: Row { status: 403, ..PLAIN };
    kubelet_a_file_unreadable_for_40_minutes:
        Row { unreadable: 1180..3580, refresh_failures: 1..=40, status: 403, ..PLAIN };
    kubelet_the_same_token_is_no_event: Row { ..PLAIN };
    kubelet_a_token_that_is_old_when_read: Row { age: 2400, status: 403, ..PLAIN };
}
