//! Which responses reject a token, and which do not (RFC 9110 §11.6.1, RFC 6750 §3, RFC 9470 §3).

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use crate::{
    raw::{Counter, Reply, Server},
    support::pass,
};
use reqwest_middleware::{ClientBuilder, ClientWithMiddleware};
use reqwest_reauth::{
    ClientBuilderExt, NotReplayed, Outcome, Session, SessionBuilder, Tokens, Verdict,
};
use tokio::sync::{Notify, Semaphore};

fn builder(server: &Server) -> SessionBuilder {
    Session::builder(Tokens::new("old").unwrap()).origin(server.origin())
}

fn client(session: &Session) -> ClientWithMiddleware {
    ClientBuilder::new(reqwest::Client::new()).with_session(session.clone()).build()
}

/// Responds to `old` with this status and these challenges, and accepts all other tokens. Returns
/// whether the token was refreshed.
async fn renews(status: u16, challenges: &'static [&'static [u8]]) -> bool {
    let server = Server::simple(move |seen| match seen.token() {
        Some("old") => challenges
            .iter()
            .enumerate()
            .fold(Reply::status(status), |reply, (index, value)| {
                reply.header(
                    ["WWW-Authenticate", "www-authenticate", "Www-AUTHENTICATE"][index % 3],
                    value,
                )
            })
            .body("the answer"),
        _ => Reply::status(200),
    })
    .await;
    let counter = Counter::default();
    let session = builder(&server).refresher(counter.clone()).build().unwrap();
    let response = client(&session).get(server.url("/")).send().await.unwrap();
    let shown: Vec<_> = challenges.iter().map(|value| String::from_utf8_lossy(value)).collect();
    if counter.calls() == 0 {
        // A response that is no rejection is returned to the caller unchanged.
        assert_eq!(response.status().as_u16(), status, "{shown:?}");
        assert_eq!(server.count(), 1, "{shown:?}");
        assert!(response.extensions().get::<Outcome>().is_none(), "{shown:?}");
        assert_eq!(response.text().await.unwrap(), "the answer");
        return false;
    }
    assert_eq!(response.status().as_u16(), 200, "{shown:?}");
    assert_eq!(counter.calls(), 1, "{shown:?}");
    assert_eq!(server.count(), 2, "{shown:?}");
    true
}

#[tokio::test]
async fn a_401_rejects_unless_challenges_differ() {
    let table: &[(&[&[u8]], bool)] = &[
        (&[], true),
        (&[b"Bearer realm=\"a, b=c; d\", error=\"invalid_token\""], true),
        (&[b"Negotiate YII=", b"NTLM"], false),
        (&[b"Negotiate", b"Basic realm=\"x\"", b"bEARER"], true),
        (&[b"Bearer realm=\"y\"", b"Bearer error=\"insufficient_scope\""], false),
        (&[b"\x80\xff, Bearer"], true),
    ];
    for (challenges, expected) in table {
        let shown: Vec<_> = challenges.iter().map(|value| String::from_utf8_lossy(value)).collect();
        assert_eq!(renews(401, challenges).await, *expected, "{shown:?}");
    }
}

#[tokio::test]
async fn a_403_rejects_if_it_says_invalid_token() {
    let table: &[(&[&[u8]], bool)] = &[
        (&[], false),
        (&[b"Bearer error=\"insufficient_scope\""], false),
        (&[b"Basic realm=\"x\"", b"Bearer error=\"invalid_token\""], true),
    ];
    for (challenges, expected) in table {
        let shown: Vec<_> = challenges.iter().map(|value| String::from_utf8_lossy(value)).collect();
        assert_eq!(renews(403, challenges).await, *expected, "{shown:?}");
    }
}

#[tokio::test]
async fn no_other_status_rejects() {
    for status in [200, 302, 407, 421, 425, 500] {
        assert!(!renews(status, &[b"Bearer error=\"invalid_token\""]).await, "{status}");
    }
}

/// The verdict that the rule received, and its result.
type Told = Arc<Mutex<Vec<(u16, Verdict)>>>;

#[tokio::test]
async fn a_bare_403_rejects_an_expired_token() {
    // Without a refresher the current token is sent. The rule shows the verdict.
    for (expired, status, refused) in [
        (true, 403, true),
        (false, 403, false),
        (true, 401, true),
        (true, 407, false),
        (true, 425, false),
    ] {
        let server = Server::simple(move |_| {
            Reply::status(status).json(r#"{"detail":"Invalid auth token"}"#)
        })
        .await;
        let told = Told::default();
        let tokens = Tokens::new("old").unwrap().with_expires_in(Duration::from_secs(if expired {
            0
        } else {
            3600
        }));
        let session = Session::builder(tokens)
            .origin(server.origin())
            .rejected_if({
                let told = Arc::clone(&told);
                move |response, verdict| {
                    told.lock().unwrap().push((response.status().as_u16(), verdict));
                    verdict.rejected
                }
            })
            .build()
            .unwrap();
        let response = client(&session).get(server.url("/")).send().await.unwrap();
        assert_eq!(response.status().as_u16(), status);
        assert_eq!(server.count(), 1);
        let told = told.lock().unwrap();
        let [(seen, verdict)] = told[..] else { panic!("asked {} times", told.len()) };
        assert_eq!(seen, status);
        assert_eq!(verdict.rejected, refused);
        assert_eq!(verdict.token_expired, expired);
    }
}

#[tokio::test]
async fn a_token_that_expires_on_the_way_is_renewed() {
    let lifetime = Duration::from_secs(3600);
    // The API responds only after the token has expired, by the same clock as the session's.
    let server = Server::start(move |seen| async move {
        match seen.token() {
            Some("old") => {
                pass(lifetime).await;
                Reply::status(403).json(r#"{"detail":"Invalid auth token"}"#)
            }
            _ => Reply::status(200),
        }
    })
    .await;
    let counter = Counter::default();
    let session = Session::builder(Tokens::new("old").unwrap().with_expires_in(lifetime))
        .origin(server.origin())
        .refresh_ahead(Duration::ZERO)
        .refresher(counter.clone())
        .build()
        .unwrap();
    let response = client(&session).get(server.url("/")).send().await.unwrap();
    assert_eq!(response.status().as_u16(), 200);
    assert_eq!(counter.calls(), 1);
    assert_eq!(server.tokens(), [Some("old".into()), Some("t1".into())]);
}

/// The request was sent before the expiry of its token. Its response arrives afterwards, when
/// another request has refreshed the token.
#[tokio::test]
async fn the_verdict_is_about_the_token_that_was_sent() {
    let lifetime = Duration::from_secs(3600);
    let (arrived, held) = (Arc::new(Notify::new()), Arc::new(Semaphore::new(0)));
    let server = Server::start({
        let (arrived, held) = (Arc::clone(&arrived), Arc::clone(&held));
        move |seen| {
            let (arrived, held) = (Arc::clone(&arrived), Arc::clone(&held));
            async move {
                if seen.token() != Some("old") {
                    return Reply::status(200);
                }
                arrived.notify_one();
                held.acquire().await.unwrap().forget();
                Reply::status(403)
            }
        }
    })
    .await;
    let (counter, told) = (Counter::default(), Told::default());
    let session = Session::builder(Tokens::new("old").unwrap().with_expires_in(lifetime))
        .origin(server.origin())
        .refresh_ahead(Duration::ZERO)
        .refresher(counter.clone())
        .rejected_if({
            let told = Arc::clone(&told);
            move |response, verdict| {
                told.lock().unwrap().push((response.status().as_u16(), verdict));
                verdict.rejected
            }
        })
        .build()
        .unwrap();
    let late = tokio::spawn(client(&session).get(server.url("/")).send());
    arrived.notified().await;
    pass(lifetime).await;
    assert_eq!(client(&session).get(server.url("/")).send().await.unwrap().status(), 200);
    held.add_permits(1);
    assert_eq!(late.await.unwrap().unwrap().status(), 200);
    assert_eq!(counter.calls(), 1);
    let sent = [Some("old".into()), Some("t1".into()), Some("t1".into())];
    assert_eq!(server.tokens(), sent);
    let told = told.lock().unwrap();
    let late = told.iter().find(|(status, _)| *status == 403).unwrap().1;
    assert!(late.rejected);
    assert!(late.token_expired);
}

#[tokio::test]
async fn a_rule_of_the_user_replaces_the_built_in_one() {
    // Responses that no built-in rule treats as a rejection.
    let server = Server::simple(|seen| match seen.token() {
        Some("old") => Reply::status(440).header("X-Session", "over"),
        _ => Reply::status(200),
    })
    .await;
    let counter = Counter::default();
    let session = builder(&server)
        .refresher(counter.clone())
        .rejected_if(|response, verdict| {
            verdict.rejected || response.headers().contains_key("x-session")
        })
        .build()
        .unwrap();
    let response = client(&session).get(server.url("/")).send().await.unwrap();
    assert_eq!(response.status().as_u16(), 200);
    assert_eq!(counter.calls(), 1);
    assert_eq!(server.count(), 2);

    // And what every built-in rule does.
    let server = Server::simple(|_| Reply::status(401)).await;
    let counter = Counter::default();
    let session =
        builder(&server).refresher(counter.clone()).rejected_if(|_, _| false).build().unwrap();
    let response = client(&session).get(server.url("/")).send().await.unwrap();
    assert_eq!(response.status().as_u16(), 401);
    assert_eq!(counter.calls(), 0);
    assert_eq!(server.count(), 1);
}

#[tokio::test]
async fn a_rule_that_rejects_all_refreshes_once() {
    let server = Server::simple(|_| Reply::status(200)).await;
    let counter = Counter::default();
    let session =
        builder(&server).refresher(counter.clone()).rejected_if(|_, _| true).build().unwrap();
    let response = client(&session).get(server.url("/")).send().await.unwrap();
    let outcome = response.extensions().get::<Outcome>().cloned().unwrap();
    assert_eq!(response.status().as_u16(), 200);
    assert_eq!(counter.calls(), 1);
    assert_eq!(server.count(), 2);
    assert_eq!(outcome.not_replayed, Some(NotReplayed::AlreadyReplayed));
}

#[tokio::test]
async fn without_a_refresher_rejections_pass() {
    let server = Server::simple(|_| Reply::status(401).body("refused")).await;
    let session = builder(&server).build().unwrap();
    let response = client(&session).get(server.url("/")).send().await.unwrap();
    assert_eq!(response.status().as_u16(), 401);
    assert_eq!(server.count(), 1);
    assert_eq!(response.text().await.unwrap(), "refused");
}

#[tokio::test]
async fn an_old_tokens_rejection_is_only_replayed() {
    let held = Arc::new(Semaphore::new(0));
    let server = Server::start({
        let held = Arc::clone(&held);
        move |seen| {
            let held = Arc::clone(&held);
            async move {
                match seen.token() {
                    Some("old") => {
                        held.acquire().await.unwrap().forget();
                        Reply::status(401)
                    }
                    _ => Reply::status(200),
                }
            }
        }
    })
    .await;
    let counter = Counter::default();
    let session = builder(&server).refresher(counter.clone()).build().unwrap();
    let request = tokio::spawn(client(&session).get(server.url("/")).send());
    while server.count() == 0 {
        tokio::task::yield_now().await;
    }
    session.replace_tokens(Tokens::new("newer").unwrap()).await.unwrap();
    held.add_permits(1);
    let response = request.await.unwrap().unwrap();
    assert_eq!(response.status().as_u16(), 200);
    assert_eq!(counter.calls(), 0);
    assert_eq!(server.tokens(), [Some("old".into()), Some("newer".into())]);
}
