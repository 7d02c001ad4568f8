//! What a beat is, how it is read, and when the loop ends (contract: heartbeat).

use std::{
    fmt, io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use futures_util::stream;
use http::StatusCode;
use reqwest::Body;
use reqwest_middleware::{ClientBuilder, ClientWithMiddleware, Middleware, Next};
use reqwest_reauth::{
    ClientBuilderExt, Error, ErrorKind, Event, MemoryStore, Outcome, Session, TokenStore, Tokens,
    heartbeat::{Beat, BoxError, Failure, Heartbeat, HeartbeatHandle, Stopped},
    refresh_with,
};
use tokio::time::{Instant, sleep, timeout};

use super::heartbeat::{Api, SECOND, after_beat, heartbeat, session, wants_t1};
use crate::support::{
    Issuer, ORIGIN, Turn, answer, every_thread_may_listen, never_asked, unavailable, url,
};

fn by_server(stopped: &Stopped, expected: &str) -> bool {
    matches!(stopped, Stopped::ByServer { reason, .. } if reason == expected)
}

/// A body for each response, and what the status says.
#[derive(Clone)]
struct Bodies(Arc<Mutex<Vec<(u16, Body)>>>);

impl Bodies {
    fn new(responses: impl IntoIterator<Item = (u16, Body)>) -> Self {
        let mut responses: Vec<_> = responses.into_iter().collect();
        responses.reverse();
        Self(Arc::new(Mutex::new(responses)))
    }

    fn client(&self) -> ClientWithMiddleware {
        ClientBuilder::new(never_asked()).with(self.clone()).build()
    }
}

#[async_trait::async_trait]
impl Middleware for Bodies {
    async fn handle(
        &self,
        request: reqwest::Request,
        _: &mut http::Extensions,
        _: Next<'_>,
    ) -> reqwest_middleware::Result<reqwest::Response> {
        use reqwest::ResponseBuilderExt as _;
        let (status, body) = self.0.lock().unwrap().pop().unwrap_or((200, "".into()));
        Ok(answer(status).url(request.url().clone()).body(body).unwrap().into())
    }
}

// ---- from_fn

#[tokio::test(start_paused = true)]
async fn a_closure_beats_in_the_sessions_scope() {
    let session = session(&Issuer::new([]));
    let seen = Arc::new(Mutex::new(Vec::new()));
    let mut number = 0;
    let handle = Heartbeat::from_fn({
        let seen = Arc::clone(&seen);
        move || {
            number += 1;
            let (seen, number) = (Arc::clone(&seen), number);
            async move {
                let here = Session::current().map(|session| session.generation());
                seen.lock().unwrap().push(here);
                match number {
                    1 | 4 => Ok(Beat::Alive),
                    2 => Err("no route".into()),
                    3 => Ok(Beat::Failed("no progress".into())),
                    _ => Ok(Beat::Stop("cancelled".into())),
                }
            }
        }
    })
    .session(session)
    .spawn()
    .unwrap();
    let failures = |health: &reqwest_reauth::heartbeat::Health| {
        (health.consecutive_failures, health.last_error.clone())
    };
    assert_eq!(failures(&after_beat(&handle, 1).await), (0, None));
    assert_eq!(failures(&after_beat(&handle, 2).await), (1, Some("no route".to_owned())));
    let third = after_beat(&handle, 3).await;
    assert_eq!(failures(&third), (2, Some("no progress".to_owned())));
    assert!(matches!(third.last_failure, Some(Failure::Beat(_))), "{third:?}");
    let stopped = handle.finished().await;
    assert!(by_server(&stopped, "cancelled"), "{stopped:?}");
    assert_eq!(handle.health().borrow().beats, 5);
    assert_eq!(*seen.lock().unwrap(), [Some(1); 5]);
}

#[tokio::test(start_paused = true)]
async fn an_error_of_ours_inside_a_closures_counts() {
    type Expected = fn(&Stopped) -> bool;
    let table: [(ErrorKind, Expected); 3] = [
        (ErrorKind::LoginRequired, |stopped| *stopped == Stopped::LoginRequired),
        (ErrorKind::Closed, |stopped| matches!(stopped, Stopped::Closed { .. })),
        (ErrorKind::Unavailable, |stopped| {
            matches!(stopped, Stopped::TooManyFailures { failures: 2, .. })
        }),
    ];
    for (kind, expected) in table {
        let handle = Heartbeat::from_fn(move || async move {
            let ours = reqwest_middleware::Error::from(Error::new(kind, "scripted"));
            Err(Box::new(ours) as BoxError)
        });
        let handle = handle.max_failures(2).spawn().unwrap();
        let stopped = handle.finished().await;
        assert!(expected(&stopped), "{kind:?}: {stopped:?}");
        assert!(matches!(handle.health().borrow().last_failure, Some(Failure::Auth(_))));
    }
}

#[tokio::test(start_paused = true)]
async fn a_hanging_or_panicking_beat_fails() {
    let mut number = 0;
    let handle = Heartbeat::from_fn(move || {
        number += 1;
        assert!(number != 2, "the closure panics, as the test says");
        async move {
            if number == 1 {
                sleep(60 * SECOND).await;
            }
            Ok(Beat::Alive)
        }
    })
    .every(30 * SECOND)
    .timeout(5 * SECOND)
    .spawn()
    .unwrap();
    let first = after_beat(&handle, 1).await.last_failure;
    assert!(matches!(first, Some(Failure::TimedOut)), "{first:?}");
    let second = after_beat(&handle, 2).await.last_failure;
    assert!(matches!(second, Some(Failure::Panicked)), "{second:?}");
    assert_eq!(after_beat(&handle, 3).await.consecutive_failures, 0);
}

#[tokio::test(start_paused = true)]
async fn stop_on_and_read_response_need_requests() {
    let closure = || Heartbeat::from_fn(|| async { Ok(Beat::Alive) });
    let wrong = [
        closure().stop_on(|_| false),
        closure().read_response(|_, beat| async { Ok(beat) }),
        closure().every(10 * SECOND).lease(10 * SECOND),
    ];
    for heartbeat in wrong {
        assert_eq!(heartbeat.spawn().unwrap_err().kind(), ErrorKind::InvalidConfig);
    }
    assert!(closure().every(10 * SECOND).lease(11 * SECOND).spawn().is_ok());
}

/// When a heartbeat whose first beat asks for `asked` makes its first three beats.
async fn beats_after(asked: Duration, lease: Option<Duration>) -> Vec<f64> {
    let (start, times) = (Instant::now(), Arc::new(Mutex::new(Vec::new())));
    let kept = Arc::clone(&times);
    let heartbeat = Heartbeat::from_fn(move || {
        kept.lock().unwrap().push(start.elapsed().as_secs_f64());
        async move { Ok(Beat::AliveEvery(asked)) }
    });
    let heartbeat = match lease {
        Some(lease) => heartbeat.lease(lease),
        None => heartbeat,
    };
    let handle = heartbeat.every(5 * SECOND).spawn().unwrap();
    after_beat(&handle, 3).await;
    times.lock().unwrap().clone()
}

#[tokio::test(start_paused = true)]
async fn a_server_sets_the_period_within_limits() {
    let hour = Duration::from_secs(3600);
    let table = [
        (30 * SECOND, None, 30.0),
        (SECOND / 10, None, 1.0),
        (24 * hour, None, 3600.0),
        (30 * SECOND, Some(20 * SECOND), 10.0),
    ];
    for (asked, lease, period) in table {
        let times = beats_after(asked, lease).await;
        for (number, at) in (1_u32..).zip(&times[1..]) {
            let early = period * f64::from(number) - at;
            assert!((-0.01..=period * 0.051).contains(&early), "{asked:?} {lease:?}: {times:?}");
        }
    }
}

// ---- read_response

#[tokio::test(start_paused = true)]
async fn a_response_is_read_whatever_its_status() {
    let bodies = Bodies::new([
        (200, "fine".into()),
        (500, "down".into()),
        (200, "no json".into()),
        (409, "cancel: by a person".into()),
    ]);
    let handle = heartbeat(bodies.client())
        .read_response(|response, beat| async move {
            assert_eq!(response.url().as_str(), url("/heartbeat"));
            let text = response.text().await?;
            match text.strip_prefix("cancel: ") {
                Some(reason) => Ok(Beat::Stop(reason.to_owned())),
                None if text == "no json" => Err("no json".into()),
                None => Ok(beat),
            }
        })
        .spawn()
        .unwrap();
    assert!(after_beat(&handle, 1).await.last_failure.is_none());
    // Returned unchanged, it is the same failure.
    let second = after_beat(&handle, 2).await.last_failure;
    assert!(
        matches!(second, Some(Failure::Status(StatusCode::INTERNAL_SERVER_ERROR))),
        "{second:?}"
    );
    let third = after_beat(&handle, 3).await;
    assert_eq!(third.last_error.as_deref(), Some("no json"));
    let stopped = handle.finished().await;
    assert!(by_server(&stopped, "by a person"), "{stopped:?}");
    assert_eq!(handle.health().borrow().last_status, Some(StatusCode::CONFLICT));
}

#[tokio::test(start_paused = true)]
async fn a_rule_can_say_that_a_404_is_alive() {
    let handle = heartbeat(Api::statuses([404]).client())
        .read_response(|_, _| async { Ok(Beat::Alive) })
        .spawn()
        .unwrap();
    let health = after_beat(&handle, 3).await;
    assert_eq!(health.consecutive_failures, 0);
    assert_eq!(health.last_status, Some(StatusCode::NOT_FOUND));
}

#[tokio::test(start_paused = true)]
async fn stop_on_comes_before_read_response() {
    for (word, by_word) in [("cancel", true), ("", false)] {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (ruled, read) = (Arc::clone(&asked), Arc::clone(&asked));
        let handle = heartbeat(Bodies::new([(410, word.into())]).client())
            .stop_on(move |status| {
                ruled.lock().unwrap().push("stop_on");
                status == 410
            })
            .read_response(move |response, beat| {
                read.lock().unwrap().push("read_response");
                async move {
                    let word = response.text().await?;
                    Ok(if word.is_empty() { beat } else { Beat::Stop(word) })
                }
            })
            .spawn()
            .unwrap();
        let stopped = handle.finished().await;
        assert_eq!(by_server(&stopped, "cancel"), by_word, "{stopped:?}");
        assert_eq!(matches!(stopped, Stopped::ByStatus { .. }), !by_word, "{stopped:?}");
        assert_eq!(*asked.lock().unwrap(), ["stop_on", "read_response"]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_mebibyte_is_read_and_no_more() {
    let chunks = |bytes: usize| {
        let chunk = vec![b'x'; 1 << 16];
        let whole = std::iter::repeat_n(chunk, bytes >> 16);
        let rest = (bytes & 0xffff > 0).then(|| vec![b'x'; bytes & 0xffff]);
        Body::wrap_stream(stream::iter(whole.chain(rest).map(Ok::<_, io::Error>)))
    };
    let bodies = Bodies::new([(200, chunks(1 << 20)), (200, chunks((1 << 20) + 1))]);
    let handle = heartbeat(bodies.client())
        .read_response(|response, beat| async move {
            let length = response.bytes().await?.len();
            assert_eq!(length, 1 << 20);
            Ok(beat)
        })
        .spawn()
        .unwrap();
    assert!(after_beat(&handle, 1).await.last_failure.is_none());
    let second = after_beat(&handle, 2).await.last_failure;
    assert!(matches!(second, Some(Failure::Beat(_))), "{second:?}");
}

#[tokio::test(start_paused = true)]
async fn reading_takes_of_the_beats_own_time() {
    let handle = heartbeat(Api::statuses([200]).client())
        .every(30 * SECOND)
        .timeout(5 * SECOND)
        .read_response(|_, beat| async {
            sleep(6 * SECOND).await;
            Ok(beat)
        })
        .spawn()
        .unwrap();
    let start = Instant::now();
    let health = after_beat(&handle, 1).await;
    assert!(matches!(health.last_failure, Some(Failure::TimedOut)), "{health:?}");
    assert_eq!(health.last_status, Some(StatusCode::OK));
    assert_eq!(start.elapsed(), 5 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn a_rule_that_panics_is_a_failed_beat() {
    let handle = heartbeat(Api::statuses([200]).client())
        .read_response(|_, _| async { panic!("a rule panics, as the test says") });
    let health = after_beat(&handle.spawn().unwrap(), 1).await;
    assert!(matches!(health.last_failure, Some(Failure::Panicked)), "{health:?}");
}

#[tokio::test(start_paused = true)]
async fn a_token_is_captured_before_the_rule_reads() {
    let api = Api::new(|_, _| async { Ok(answer(409).header("Refreshed-API-Token", "t1")) });
    let session = session(&Issuer::new([]));
    let known = session.clone();
    let handle = heartbeat(api.signed_in(&session))
        .read_response(move |response, _| {
            let captured =
                response.extensions().get::<Outcome>().is_some_and(|found| found.captured);
            let reason = format!("captured {captured}, generation {}", known.generation());
            async { Ok(Beat::Stop(reason)) }
        })
        .spawn()
        .unwrap();
    let stopped = handle.finished().await;
    assert!(by_server(&stopped, "captured true, generation 2"), "{stopped:?}");
}

// ---- lease

/// The seconds after which a heartbeat with this lease ended, and why.
async fn ended(heartbeat: Heartbeat) -> (f64, Stopped) {
    let start = Instant::now();
    let stopped = heartbeat.spawn().unwrap().finished().await;
    (start.elapsed().as_secs_f64(), stopped)
}

#[tokio::test(start_paused = true)]
async fn a_lease_ends_at_its_very_moment() {
    let hang = || {
        Api::new(|number, _| async move {
            if number > 0 {
                sleep(1000 * SECOND).await;
            }
            // The lease counts from when the beat was sent.
            sleep(SECOND).await;
            Ok(answer(200))
        })
    };
    let table = [
        // Nothing but failures: from the start. One success at 0, then none.
        (Api::statuses([500]), 30.0),
        (Api::statuses([200, 500]), 30.0),
        (Api::statuses([200, 200, 200, 500]), 50.0),
        (hang(), 30.0),
    ];
    for (number, (api, expected)) in table.into_iter().enumerate() {
        let beats = heartbeat(api.client()).every(10 * SECOND).lease(30 * SECOND);
        let (at, stopped) = ended(beats.timeout(100 * SECOND)).await;
        assert!(matches!(stopped, Stopped::LeaseLost { .. }), "{number}: {stopped:?}");
        // The tick before it was up to half a second early each.
        assert!((expected - 1.1..=expected + 0.01).contains(&at), "{number}: {at}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_api_that_flaps_keeps_the_lease() {
    let statuses = (0..1000).map(|beat| if beat % 3 == 0 { 200 } else { 500 });
    let api = Api::statuses(statuses);
    let beats = heartbeat(api.client()).every(10 * SECOND).lease(30 * SECOND).max_failures(3);
    let handle = beats.spawn().unwrap();
    assert!(timeout(600 * SECOND, handle.finished()).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_failed_beat_repeats_at_half_the_lease() {
    let api = Api::statuses([500]);
    let beats = heartbeat(api.client()).every(50 * SECOND).lease(60 * SECOND);
    let (at, _) = ended(beats).await;
    let times = api.times();
    // Then the tick, between 47.5 and 50, and again half of the remaining lease of ten seconds or
    // more.
    let due = [0.0, 30.0, 45.0];
    assert!(times.iter().zip(due).all(|(at, due)| (at - due).abs() < 0.02), "{times:?}");
    assert!((47.4..50.01).contains(&times[3]), "{times:?}");
    for pair in times[3..].windows(2) {
        let expected = ((60.0 - pair[0]) / 2.0).max(1.0);
        assert!((pair[1] - pair[0] - expected).abs() < 0.02, "{times:?}");
    }
    assert!((60.0..60.01).contains(&at), "{at}");
}

#[tokio::test(start_paused = true)]
async fn the_lease_goes_before_max_failures() {
    let beats = heartbeat(Api::statuses([500]).client()).every(10 * SECOND).lease(15 * SECOND);
    let (at, stopped) = ended(beats.max_failures(1000)).await;
    assert!(matches!(stopped, Stopped::LeaseLost { .. }), "{stopped:?}");
    assert!((15.0..15.01).contains(&at), "{at}");
}

#[tokio::test(start_paused = true)]
async fn last_success_is_when_the_beat_was_sent() {
    let api = Api::new(|_, _| async {
        std::thread::sleep(Duration::from_millis(30));
        Ok(answer(200))
    });
    let before = SystemTime::now();
    let handle = heartbeat(api.client()).spawn().unwrap();
    let health = after_beat(&handle, 1).await;
    let (sent, received) = (health.last_success_sent.unwrap(), health.last_success.unwrap());
    assert!(sent >= before, "{health:?}");
    assert!(received.duration_since(sent).unwrap() >= Duration::from_millis(30), "{health:?}");
}

// ---- Retry-After

/// A server that responds like this at first, and then as it should.
fn throttles(times: usize, status: u16, wait: impl fmt::Display) -> Api {
    let wait = wait.to_string();
    Api::new(move |number, _| {
        let first = answer(status).header("Retry-After", &wait);
        let builder = if number < times { first } else { answer(200) };
        async move { Ok(builder) }
    })
}

async fn second_beat(api: &Api, beats: Heartbeat) -> (f64, HeartbeatHandle) {
    let handle = beats.spawn().unwrap();
    after_beat(&handle, 2).await;
    (api.times()[1], handle)
}

#[tokio::test(start_paused = true)]
async fn retry_after_is_the_least_wait() {
    let date = |seconds| httpdate(SystemTime::now() + Duration::from_secs(seconds));
    let table = [
        (429, "60".to_owned(), 60.0..60.1),
        (503, "60".to_owned(), 60.0..60.1),
        // Five minutes at most. Whole seconds.
        (429, "86400".to_owned(), 300.0..300.1),
        (429, date(100), 97.0..101.0),
        // Shorter than the period, malformed, or with another status: the tick.
        (429, "3".to_owned(), 4.7..5.1),
        (429, "soon".to_owned(), 4.7..5.1),
        (500, "60".to_owned(), 4.7..5.1),
    ];
    for (status, wait, expected) in table {
        let api = throttles(1, status, &wait);
        let (at, _handle) = second_beat(&api, heartbeat(api.client())).await;
        assert!(expected.contains(&at), "{status} {wait}: {at}");
    }
}

fn httpdate(at: SystemTime) -> String {
    httpdate::fmt_http_date(at)
}

#[tokio::test(start_paused = true)]
async fn a_429_with_a_wait_does_not_count() {
    let api = Api::new(|number, _| async move {
        Ok(match number {
            0 | 2 => answer(500),
            1 => answer(429).header("Retry-After", "60"),
            _ => answer(200),
        })
    });
    let handle = heartbeat(api.client()).max_failures(2).spawn().unwrap();
    let second = after_beat(&handle, 2).await;
    assert_eq!(second.consecutive_failures, 1);
    assert_eq!(second.last_status, Some(StatusCode::TOO_MANY_REQUESTS));
    let stopped = handle.finished().await;
    assert!(matches!(stopped, Stopped::TooManyFailures { failures: 2, .. }), "{stopped:?}");
    // A 503, and a 429 without it, count.
    for api in [throttles(9, 503, 1), throttles(9, 429, "soon")] {
        let handle = heartbeat(api.client()).max_failures(2).spawn().unwrap();
        let stopped = handle.finished().await;
        assert!(matches!(stopped, Stopped::TooManyFailures { failures: 2, .. }), "{stopped:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn after_an_hour_a_429_counts() {
    let api = throttles(usize::MAX, 429, 60);
    let (at, stopped) = ended(heartbeat(api.client()).max_failures(3)).await;
    assert!(matches!(stopped, Stopped::TooManyFailures { failures: 3, .. }), "{stopped:?}");
    assert!((3720.0..3721.0).contains(&at), "{at}");
}

#[tokio::test(start_paused = true)]
async fn retry_after_leaves_a_third_of_the_lease() {
    let api = throttles(1, 429, 300);
    let beats = heartbeat(api.client()).lease(90 * SECOND);
    let (at, handle) = second_beat(&api, beats).await;
    assert!((60.0..60.01).contains(&at), "{at}");
    assert_eq!(handle.health().borrow().consecutive_failures, 0);
    // A 429 is not a success either.
    let api = throttles(usize::MAX, 429, 300);
    let (at, stopped) = ended(heartbeat(api.client()).lease(90 * SECOND)).await;
    assert!(matches!(stopped, Stopped::LeaseLost { .. }), "{stopped:?}");
    assert!((90.0..90.01).contains(&at), "{at}");
}

#[tokio::test(start_paused = true)]
async fn retry_after_is_in_time_for_the_window() {
    let api = throttles(1, 429, 300);
    let tokens = Tokens::new("t0").unwrap().with_expires_in(100 * SECOND);
    let session = Session::builder(tokens).origin(ORIGIN).build().unwrap();
    let beats = heartbeat(api.signed_in(&session)).session(session).reissue_window(0.8);
    let (at, _handle) = second_beat(&api, beats).await;
    assert!((92.4..92.6).contains(&at), "{at}");
}

#[tokio::test(start_paused = true)]
async fn beat_now_does_not_wait_for_retry_after() {
    let api = throttles(1, 429, 60);
    let handle = heartbeat(api.client()).spawn().unwrap();
    after_beat(&handle, 1).await;
    assert_eq!(handle.beat_now().await.beats, 2);
    assert!(api.times()[1] < 1.0, "{:?}", api.times());
}

// ---- the end

#[tokio::test(start_paused = true)]
async fn it_ends_with_its_session_at_once() {
    for in_flight in [false, true] {
        let api = Api::new(move |_, _| async move {
            if in_flight {
                sleep(1000 * SECOND).await;
            }
            Ok(answer(200))
        });
        let session = session(&Issuer::new([]));
        let beats = heartbeat(api.signed_in(&session)).session(session.clone());
        let handle = beats.every(500 * SECOND).timeout(900 * SECOND).spawn().unwrap();
        sleep(10 * SECOND).await;
        let start = Instant::now();
        session.close().await.unwrap();
        let stopped = handle.finished().await;
        assert!(matches!(stopped, Stopped::Closed { .. }), "{stopped:?}");
        assert!(start.elapsed() < SECOND, "in flight {in_flight}: {:?}", start.elapsed());
        assert_eq!(api.times().len(), 1, "in flight: {in_flight}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_clients_closed_session_ends_it_too() {
    let session = session(&Issuer::new([]));
    let api = Api::statuses([200]);
    let handle = heartbeat(api.signed_in(&session)).spawn().unwrap();
    after_beat(&handle, 1).await;
    session.close().await.unwrap();
    let stopped = handle.finished().await;
    assert!(matches!(stopped, Stopped::Closed { .. }), "{stopped:?}");
    assert_eq!(api.times().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn closing_frees_a_beat_that_waits() {
    let issuer = Issuer::new([Turn::Issue(60 * SECOND, None)]);
    let session = session(&issuer);
    let handle = heartbeat(wants_t1().signed_in(&session))
        .session(session.clone())
        .timeout(100 * SECOND)
        .spawn()
        .unwrap();
    sleep(SECOND).await;
    let start = Instant::now();
    let (stopped, ()) = tokio::join!(handle.finished(), async {
        let _ = timeout(5 * SECOND, session.close()).await;
    });
    assert!(matches!(stopped, Stopped::Closed { .. }), "{stopped:?}");
    assert!(start.elapsed() <= 5 * SECOND, "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn abort_leaves_the_refresh() {
    let issuer = Issuer::new([Turn::Issue(30 * SECOND, None)]);
    let session = session(&issuer);
    let handle = heartbeat(wants_t1().signed_in(&session)).timeout(100 * SECOND).spawn().unwrap();
    sleep(SECOND).await;
    let start = Instant::now();
    handle.abort();
    assert_eq!(handle.finished().await, Stopped::Requested);
    assert!(start.elapsed() < SECOND / 10, "{:?}", start.elapsed());
    assert_eq!(handle.health().borrow().beats, 0);
    sleep(60 * SECOND).await;
    assert_eq!(session.generation(), 2);
    assert_eq!(issuer.calls(), 1);
}

// ---- wait_for_login

/// A heartbeat whose first beat finds that the login is over.
fn logged_out(store: Option<MemoryStore>) -> (Session, Api, Heartbeat) {
    let error = Error::new(ErrorKind::LoginRequired, "scripted");
    let issuer = Issuer::new([Turn::Fail(Duration::ZERO, error)]);
    let tokens = Tokens::new("t0").unwrap().with_refresh_token("r0").unwrap();
    let mut builder = Session::builder(tokens).origin(ORIGIN).refresher(issuer);
    if let Some(store) = store {
        builder = builder.store(store);
    }
    let session = builder.build().unwrap();
    let api = wants_t1();
    let beats = heartbeat(api.signed_in(&session)).session(session.clone());
    (session, api, beats.wait_for_login(600 * SECOND))
}

fn new_login() -> Tokens {
    Tokens::new("t1").unwrap().with_refresh_token("r1").unwrap()
}

#[tokio::test(start_paused = true)]
async fn beats_pause_until_there_is_a_login() {
    let (session, api, beats) = logged_out(None);
    let handle = beats.max_failures(1).spawn().unwrap();
    after_beat(&handle, 1).await;
    sleep(300 * SECOND).await;
    assert_eq!(api.times().len(), 1);
    session.replace_tokens(new_login()).await.unwrap();
    let health = after_beat(&handle, 2).await;
    assert_eq!(health.consecutive_failures, 0, "{health:?}");
    let times = api.times();
    assert!((300.0..300.1).contains(&times[1]), "{times:?}");
    assert!(timeout(60 * SECOND, handle.finished()).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn without_a_login_it_ends_after_the_limit() {
    let (_session, api, beats) = logged_out(None);
    let (at, stopped) = ended(beats).await;
    assert_eq!(stopped, Stopped::LoginRequired);
    assert_eq!(api.times().len(), 1);
    assert!((600.0..600.1).contains(&at), "{at}");
}

#[tokio::test(start_paused = true)]
async fn a_login_that_another_process_stored_is_found() {
    let store = MemoryStore::default();
    let (_session, api, beats) = logged_out(Some(store.clone()));
    let handle = beats.spawn().unwrap();
    after_beat(&handle, 1).await;
    sleep(100 * SECOND).await;
    let lock = store.lock().await.unwrap();
    store.save(&lock, &new_login()).await.unwrap();
    drop(lock);
    let health = after_beat(&handle, 2).await;
    assert_eq!(health.consecutive_failures, 0, "{health:?}");
    let times = api.times();
    assert!((100.0..111.0).contains(&times[1]), "{times:?}");
}

#[tokio::test(start_paused = true)]
async fn the_lease_runs_on_while_it_waits() {
    let (_session, _, beats) = logged_out(None);
    let (at, stopped) = ended(beats.lease(30 * SECOND)).await;
    assert!(matches!(stopped, Stopped::LeaseLost { .. }), "{stopped:?}");
    assert!((30.0..30.1).contains(&at), "{at}");
}

// ---- sessions

#[tokio::test(start_paused = true)]
async fn a_session_that_the_closure_gives_wins() {
    let token = Arc::new(Mutex::new(Vec::new()));
    let api = Api::new({
        let token = Arc::clone(&token);
        move |_, seen| {
            token.lock().unwrap().push(seen);
            async { Ok(answer(200)) }
        }
    });
    let own = Session::builder(Tokens::new("own").unwrap()).origin(ORIGIN).build().unwrap();
    let given = Session::builder(Tokens::new("given").unwrap()).origin(ORIGIN).build().unwrap();
    let client = ClientBuilder::new(never_asked()).with_scoped_sessions().with(api).build();
    let handle = Heartbeat::new(client, move |client| {
        client.get(url("/heartbeat")).with_extension(given.clone())
    });
    let handle = handle.session(own).spawn().unwrap();
    after_beat(&handle, 1).await;
    assert_eq!(*token.lock().unwrap(), ["given"]);
}

// ---- what an operator sees

#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Log {
    pub(crate) fn lines(&self, level: &str) -> Vec<String> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        let lines = text.lines().map(str::trim).filter(|line| line.starts_with(level));
        lines.map(str::to_owned).collect()
    }

    pub(crate) fn here(&self) -> tracing::subscriber::DefaultGuard {
        let log = self.clone();
        let subscriber = tracing_subscriber::fmt().with_ansi(false).without_time();
        let subscriber = subscriber.with_max_level(tracing::Level::DEBUG);
        let subscriber = subscriber.with_writer(move || log.clone()).finish();
        every_thread_may_listen();
        tracing::subscriber::set_default(subscriber)
    }
}

#[tokio::test(start_paused = true)]
async fn an_hour_of_outage_is_150_warnings_at_most() {
    let log = Log::default();
    let _guard = log.here();
    let calls = Arc::new(AtomicUsize::new(0));
    let refresher = {
        let calls = Arc::clone(&calls);
        refresh_with(move |_| {
            calls.fetch_add(1, Ordering::SeqCst);
            async { Err(unavailable()) }
        })
    };
    let tokens = Tokens::new("t0").unwrap().with_refresh_token("r0").unwrap();
    let session = Session::builder(tokens)
        .name("seqera")
        .origin(ORIGIN)
        .refresher(refresher)
        .cooldown(5 * SECOND)
        .build()
        .unwrap();
    let handle = heartbeat(wants_t1().signed_in(&session)).session(session.clone()).spawn();
    let handle = handle.unwrap();
    sleep(3600 * SECOND).await;
    handle.stop().await;
    assert!(calls.load(Ordering::SeqCst) > 300, "{calls:?}");
    let warnings = log.lines("WARN");
    assert!((110..=150).contains(&warnings.len()), "{}", warnings.len());
    let counted = warnings.iter().filter(|line| line.contains("count=")).count();
    assert_eq!(counted, warnings.len() - 2, "{warnings:#?}");
    assert!(warnings.iter().all(|line| line.contains("session=\"seqera\"")), "{warnings:#?}");
    assert!(log.lines("ERROR").is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_lost_login_is_one_error_a_logout_none() {
    let log = Log::default();
    let _guard = log.here();
    let (_session, _, beats) = logged_out(None);
    ended(beats).await;
    let errors = log.lines("ERROR");
    assert_eq!(errors.len(), 1, "{errors:#?}");
    assert!(errors[0].contains("the login is lost"), "{errors:?}");

    let session = session(&Issuer::new([Turn::Issue(60 * SECOND, None)]));
    let (refreshed, cleared) = tokio::join!(session.refresh(), async {
        sleep(SECOND).await;
        session.clear().await
    });
    cleared.unwrap();
    assert_eq!(refreshed.unwrap_err().kind(), ErrorKind::LoginRequired);
    heartbeat(wants_t1().signed_in(&session)).spawn().unwrap().finished().await;
    assert_eq!(log.lines("ERROR").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_reason_is_shortened_in_the_log_alone() {
    let log = Log::default();
    let _guard = log.here();
    let reason = format!("line\nbreak {}", "x".repeat(5000));
    let told = reason.clone();
    let handle = Heartbeat::from_fn(move || {
        let told = told.clone();
        async move { Ok(Beat::Stop(told)) }
    });
    let stopped = handle.spawn().unwrap().finished().await;
    assert!(by_server(&stopped, &reason), "{stopped:?}");
    let line = log.lines("INFO").remove(0);
    assert!(line.contains("heartbeat ended") && line.contains("by_server"), "{line}");
    assert!(line.len() < 400 && line.contains("break"), "{line}");
}

#[tokio::test(start_paused = true)]
async fn listener_panics_are_logged_every_5_min() {
    let log = Log::default();
    let _guard = log.here();
    let tokens = Tokens::new("t0").unwrap().with_refresh_token("r0").unwrap();
    let session = Session::builder(tokens)
        .origin(ORIGIN)
        .refresher(refresh_with(|_| async { Err(unavailable()) }))
        .on_event(|event| {
            assert!(!matches!(event, Event::RefreshStarted { .. }), "a listener panics");
        })
        .build()
        .unwrap();
    for _ in 0..100 {
        session.refresh().await.unwrap_err();
        sleep(6 * SECOND).await;
    }
    let told = log.lines("WARN");
    assert_eq!(told.iter().filter(|line| line.contains("listener panicked")).count(), 2);
}
