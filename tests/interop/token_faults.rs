//! Each fault of the table in `tests/peers/README.md`, at the token endpoint.

use std::time::{Duration, Instant};

use reqwest_reauth::{ErrorKind, OAuthRefresh, Outcome, SessionState};

use crate::peers::{Peers, TOKEN, client};

const MS: fn(u64) -> Duration = Duration::from_millis;

/// How a refresh with a fault ends.
enum Ends {
    /// With tokens, after a retry that followed this status.
    AfterRetry(Option<u16>),
    AtOnce,
    Fails {
        kind: ErrorKind,
        status: Option<u16>,
        attempts: u32,
        possibly_consumed: bool,
    },
}

/// Whether the provider's refresh token is still valid afterwards.
#[derive(PartialEq)]
enum Grant {
    Kept,
    Lost,
}

struct Case {
    fault: &'static str,
    with: fn(OAuthRefresh) -> OAuthRefresh,
    ends: Ends,
    grant: Grant,
}

fn as_it_is(refresher: OAuthRefresh) -> OAuthRefresh {
    refresher
}

fn impatient(refresher: OAuthRefresh) -> OAuthRefresh {
    // Enough time for a response that is not delayed, even on a busy machine.
    refresher.attempt_timeout(MS(1000))
}

fn cautious(refresher: OAuthRefresh) -> OAuthRefresh {
    refresher.retry_lost(false)
}

#[rustfmt::skip]
fn table() -> Vec<Case> {
    use Ends::{Fails, AtOnce, AfterRetry};
    use Grant::{Kept, Lost};
    use ErrorKind::{ClientRejected, Unavailable, BadResponse, LoginRequired};
    let fails = |kind, status: u16, attempts, possibly_consumed| Fails {
        kind, status: (status > 0).then_some(status), attempts, possibly_consumed,
    };
    let case = |fault, with, ends, grant| Case { fault, with, ends, grant };
    vec![
        case("ok",              as_it_is,  AtOnce,                                Kept),
        case("down",            as_it_is,  AfterRetry(Some(502)),                 Kept),
        case("hang",            as_it_is,  AfterRetry(Some(504)),                 Kept),
        case("hang",            impatient, AfterRetry(None),                      Kept),
        case("status 429",      as_it_is,  AfterRetry(Some(429)),                 Kept),
        case("status 500",      as_it_is,  AfterRetry(Some(500)),                 Kept),
        case("status 503 1",    as_it_is,  AfterRetry(Some(503)),                 Kept),
        case("status 501",      as_it_is,  fails(ClientRejected, 501, 1, false),  Kept),
        case("status 507",      as_it_is,  fails(Unavailable, 507, 1, false),     Kept),
        case("status 404",      as_it_is,  fails(ClientRejected, 404, 1, false),  Kept),
        case("status 401",      as_it_is,  fails(ClientRejected, 401, 1, false),  Kept),
        case("html200",         as_it_is,  fails(BadResponse, 200, 1, false),     Kept),
        case("slow 300",        as_it_is,  AtOnce,                                Kept),
        // The client has disconnected before nginx passes the call on, so the provider never sees
        // it.
        case("slow 2000",       impatient, AfterRetry(None),                      Kept),
        case("late 300",        as_it_is,  AtOnce,                                Kept),
        case("reset",           as_it_is,  AfterRetry(None),                      Kept),
        case("reset",           cautious,  fails(Unavailable, 0, 1, true),        Kept),
        // The provider has no grace: the refresh token is spent, and using it again ends the grant.
        case("late 2000",       impatient, fails(LoginRequired, 400, 2, true),    Lost),
        case("lost",            as_it_is,  fails(LoginRequired, 400, 2, true),    Lost),
        case("lost",            cautious,  fails(Unavailable, 0, 1, true),        Lost),
        case("cut",             as_it_is,  fails(LoginRequired, 400, 2, true),    Lost),
        case("cut",             cautious,  fails(Unavailable, 200, 1, true),      Lost),
    ]
}

pub(crate) async fn each_token_fault_ends_as_listed() {
    let peers = Peers::start(&[("TTL", "60")]);
    for Case { fault, with, ends, grant } in table() {
        peers.forget().await;
        let (session, events) = peers.session(with(peers.plain_refresher())).await;
        peers.fault(TOKEN, fault, 1).await;
        let begun = Instant::now();

        let refreshed = session.refresh().await;

        let retries = events.retries();
        match ends {
            Ends::AtOnce => {
                refreshed.unwrap_or_else(|error| panic!("{fault}: {error}"));
                assert_eq!(retries.len(), 0, "{fault}");
                assert_eq!(peers.hits("POST /token").await, 1, "{fault}");
            }
            Ends::AfterRetry(status) => {
                refreshed.unwrap_or_else(|error| panic!("{fault}: {error}"));
                assert_eq!(retries.len(), 1, "{fault}");
                assert_eq!(peers.hits("POST /token").await, 2, "{fault}");
                assert_eq!(retries[0].0, status, "{fault}");
            }
            Ends::Fails { kind, status, attempts, possibly_consumed } => {
                let error = refreshed.expect_err(fault);
                let told =
                    (error.kind(), error.status().map(|status| status.as_u16()), error.attempts());
                assert_eq!(told, (kind, status, attempts), "{fault}: {error:?}");
                assert_eq!(error.possibly_consumed(), possibly_consumed, "{fault}");
                assert_eq!(peers.hits("POST /token").await, u64::from(attempts), "{fault}");
                let expected = if kind == ErrorKind::LoginRequired {
                    SessionState::LoginRequired
                } else {
                    SessionState::CoolingDown
                };
                assert_eq!(session.state(), expected, "{fault}");
            }
        }
        if let Some(held_up) = fault.strip_prefix("slow ") {
            // If nginx had passed the first call on after all, the grant would be revoked by now.
            tokio::time::sleep_until((begun + MS(held_up.parse().unwrap()) + MS(300)).into()).await;
        }
        // A call after the cool-down gets tokens, unless the provider has revoked the grant.
        assert_eq!(session.refresh().await.is_ok(), grant == Grant::Kept, "{fault}");
    }
}

pub(crate) async fn retry_after_is_heeded_up_to_its_limit() {
    let peers = Peers::start(&[("TTL", "60")]);
    let (session, events) = peers.session(peers.plain_refresher()).await;
    peers.fault(TOKEN, "status 503 2", 1).await;
    let begun = Instant::now();
    session.refresh().await.unwrap();
    assert!(begun.elapsed() >= MS(2000));
    assert!(events.retries()[0].1 >= MS(2000));

    peers.fault(TOKEN, "status 503 31", 1).await;
    let begun = Instant::now();
    let error = session.refresh().await.unwrap_err();
    assert!(begun.elapsed() < MS(2000));
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert_eq!(error.attempts(), 1);
    assert_eq!(error.retry_after(), Some(Duration::from_secs(31)));
    assert_eq!(session.state(), SessionState::CoolingDown);
    // The token is still valid, and requests use it.
    assert_eq!(client(&session).get(peers.api()).send().await.unwrap().status(), 200);
}

pub(crate) async fn a_request_outlasts_a_failing_endpoint() {
    let peers = Peers::start(&[("TTL", "60")]);
    let (session, events) = peers.session(peers.plain_refresher()).await;
    peers.fault("/resource/echo", "status 401", 1).await;
    for fault in ["down", "status 503 1", "reset", "status 429"] {
        peers.fault(TOKEN, fault, 1).await;
    }

    let response = client(&session).post(peers.api()).body("payload").send().await.unwrap();

    assert_eq!(response.status(), 200);
    let outcome = response.extensions().get::<Outcome>().unwrap().clone();
    assert!(outcome.refreshed && outcome.replayed);
    let echo: serde_json::Value = response.json().await.unwrap();
    assert_eq!(echo["body"], "payload");
    let statuses: Vec<_> = events.retries().into_iter().map(|(status, _)| status).collect();
    assert_eq!(statuses, [Some(502), Some(503), None, Some(429)]);
    assert_eq!(peers.hits("POST /token").await, 5);
    assert_eq!(peers.hits("POST /resource/echo").await, 2);
}
