//! Each fault of the table in `tests/peers/README.md`, at the API: a response that is no rejection
//! is returned to the caller, and causes no refresh.

use std::time::Duration;

use reqwest_reauth::Outcome;

use crate::peers::{API, Peers, client};

/// The result for the caller.
#[derive(Debug, PartialEq)]
enum Gets {
    Answer(u16),
    /// The status, and a body that breaks off.
    Broken(u16),
    NoAnswer,
}

/// The columns: the fault, the result for the caller, and how often the provider executed the
/// request.
const TABLE: [(&str, Gets, u64); 13] = [
    ("ok", Gets::Answer(200), 1),
    ("down", Gets::Answer(502), 0),
    ("hang", Gets::Answer(504), 0),
    ("status 503 30", Gets::Answer(503), 0),
    ("status 404", Gets::Answer(404), 0),
    ("status 407", Gets::Answer(407), 0),
    // The token has not expired, and nothing says that the token is the reason: RFC 6750 §3.1
    // requires 401 for that.
    ("status 403", Gets::Answer(403), 0),
    ("html200", Gets::Answer(200), 0),
    ("slow 200", Gets::Answer(200), 1),
    ("late 200", Gets::Answer(200), 1),
    ("reset", Gets::NoAnswer, 0),
    ("lost", Gets::NoAnswer, 1),
    ("cut", Gets::Broken(200), 1),
];

pub(crate) async fn a_fault_of_the_api_is_the_callers() {
    let peers = Peers::start(&[("TTL", "60")]);
    let (session, _) = peers.session(peers.plain_refresher()).await;
    let client = client(&session);
    for (fault, expected, executed) in TABLE {
        peers.forget().await;
        let before = peers.answered("POST /resource/echo 200").await;
        peers.fault(API, fault, 1).await;

        let sent =
            client.post(peers.api()).body("payload").timeout(Duration::from_secs(10)).send().await;

        let got = match sent {
            Ok(response) => {
                let status = response.status().as_u16();
                assert!(response.extensions().get::<Outcome>().is_none(), "{fault}");
                if response.bytes().await.is_ok() {
                    Gets::Answer(status)
                } else {
                    Gets::Broken(status)
                }
            }
            Err(_) => Gets::NoAnswer,
        };
        assert_eq!(got, expected, "{fault}");
        assert_eq!(peers.hits("POST /resource/echo").await, 1, "{fault}");
        let now = peers.answered_at_least("POST /resource/echo 200", before + executed).await;
        assert_eq!(now, before + executed, "{fault}");
        assert_eq!(peers.hits("POST /token").await, 0, "{fault}");
    }
    assert_eq!(session.generation(), 1);
}

pub(crate) async fn the_replays_fault_is_the_callers() {
    let peers = Peers::start(&[("TTL", "60")]);
    for (fault, expected, executed) in TABLE {
        peers.forget().await;
        let (session, _) = peers.session(peers.plain_refresher()).await;
        peers.fault(API, "status 401", 1).await;
        peers.fault(API, fault, 1).await;

        let sent = client(&session).put(peers.api()).timeout(Duration::from_secs(10)).send().await;

        match sent {
            // This server does not support PUT. Its own 404 shows that the request arrived.
            Ok(response) => {
                let outcome = response.extensions().get::<Outcome>().unwrap();
                assert!(outcome.refreshed && outcome.replayed, "{fault}");
                let status = response.status().as_u16();
                let through = executed == 1 && status == 404;
                assert!(through || expected == Gets::Answer(status), "{fault}: {status}");
            }
            Err(_) => assert_eq!(expected, Gets::NoAnswer, "{fault}"),
        }
        assert_eq!(peers.hits("PUT /resource/echo").await, 2, "{fault}");
        assert_eq!(peers.hits("POST /token").await, 1, "{fault}");
        assert_eq!(session.generation(), 2, "{fault}");
    }
}
