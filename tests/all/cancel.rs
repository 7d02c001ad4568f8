//! Callers that are dropped at every await point (contract §6.2).

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    task::Poll,
    time::Duration,
};

use crate::support::{
    Api, Issuer, ORIGIN, Turn, answer, held, pair, settle,
    store::{Call, FakeStore, Fate},
    texts, url,
};
use reqwest_reauth::{Session, Tokens};

const SECOND: Duration = Duration::from_secs(1);

/// Polls a future this many times, each time after it is woken. Returns its output if it has
/// completed by then.
async fn polled<F: Future + ?Sized>(times: usize, mut future: Pin<Box<F>>) -> Option<F::Output> {
    let mut left = times;
    poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        match future.as_mut().poll(context) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if left == 0 => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// An API that takes a few polls for each response, and accepts all tokens but the first.
fn api() -> Api {
    Api::new(|seen| async move {
        tokio::task::yield_now().await;
        tokio::time::sleep(SECOND).await;
        answer(if seen.token() == Some("t0") { 401 } else { 200 })
    })
}

/// A caller is dropped after n polls, for each n until it completes: the token endpoint sees at
/// most one call, the tokens are kept, and the next request has them.
async fn drop_at_every_point(tokens: impl Fn() -> Tokens, store: impl Fn() -> Option<FakeStore>) {
    for polls in 0.. {
        assert!(polls < 200, "it never completes");
        let issuer = Issuer::new([Turn::Issue(SECOND, None)]);
        let store = store();
        let builder = Session::builder(tokens()).origin(ORIGIN).refresher(issuer.clone());
        let builder = match &store {
            Some(store) => builder.store(store.clone()),
            None => builder,
        };
        let session = builder.build().unwrap();
        let api = api();
        let client = api.client(&session);
        let completed = polled(polls, Box::pin(client.get(url("/")).send())).await;
        settle().await;
        let response = client.get(url("/")).send().await.unwrap();
        assert_eq!(response.status(), 200, "{polls}");
        assert_eq!(issuer.calls(), 1, "{polls}");
        assert_eq!(issuer.most(), 1, "{polls}");
        assert_eq!(api.tokens_seen().last().unwrap().as_str(), "t1", "{polls}");
        assert_eq!(held(&session), texts("t1", "r1"), "{polls}");
        if let Some(store) = store {
            assert_eq!(store.held(), Some(texts("t1", "r1")), "{polls}");
            assert!(store.is_free(), "{polls}");
            store.assert_orderly();
        }
        if let Some(response) = completed {
            assert_eq!(response.unwrap().status(), 200);
            assert!(polls > 3, "too few await points to prove anything");
            return;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_rejected_caller_may_be_dropped() {
    drop_at_every_point(|| pair("t0", "r0"), || None).await;
}

#[tokio::test(start_paused = true)]
async fn a_caller_without_a_token_may_be_dropped() {
    drop_at_every_point(|| Tokens::from_refresh_token("r0").unwrap(), || None).await;
}

#[tokio::test(start_paused = true)]
async fn a_caller_past_expiry_may_be_dropped() {
    drop_at_every_point(|| pair("t0", "r0").with_expires_in(Duration::ZERO), || None).await;
}

#[tokio::test(start_paused = true)]
async fn a_caller_with_a_store_may_be_dropped() {
    drop_at_every_point(|| pair("t0", "r0"), || Some(FakeStore::default())).await;
}

#[tokio::test(start_paused = true)]
async fn a_manual_refresh_may_be_dropped() {
    for polls in 0..4 {
        let issuer = Issuer::new([Turn::Issue(SECOND, None)]);
        let session = Session::builder(pair("t0", "r0"))
            .origin(ORIGIN)
            .refresher(issuer.clone())
            .build()
            .unwrap();
        let refresh = session.clone();
        let completed = polled(polls, Box::pin(async move { refresh.refresh().await })).await;
        settle().await;
        assert!(completed.is_none() || polls >= 2);
        assert_eq!(api().client(&session).get(url("/")).send().await.unwrap().status(), 200);
        assert_eq!(issuer.calls(), 1, "{polls}");
        assert_eq!(held(&session), texts("t1", "r1"), "{polls}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_dropped_replace_tokens_is_still_saved() {
    for polls in 1.. {
        let (issuer, store) = (Issuer::new([]), FakeStore::holding(pair("t0", "r0")));
        store.next(Call::Save, [Fate::Gated]);
        let session = Session::builder(pair("t0", "r0"))
            .origin(ORIGIN)
            .refresher(issuer.clone())
            .store(store.clone());
        let session = session.build().unwrap();
        let replaced = session.clone();
        store.open_gate();
        let completed = polled(
            polls,
            Box::pin(async move { replaced.replace_tokens(pair("new", "rn")).await }),
        )
        .await;
        assert_eq!(held(&session), texts("new", "rn"));
        store.open_gate();
        session.refresh().await.unwrap();
        assert_eq!(issuer.asked(), [Some("rn".to_owned())], "{polls}");
        assert_eq!(store.saves(), [texts("new", "rn"), texts("t1", "r1")], "{polls}");
        if completed.is_some() {
            return;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_dropped_close_still_closes() {
    for polls in 1.. {
        let issuer = Issuer::new([Turn::Issue(SECOND, None)]);
        let session = Session::builder(pair("t0", "r0"))
            .origin(ORIGIN)
            .refresher(issuer.clone())
            .build()
            .unwrap();
        let request = tokio::spawn(api().client(&session).get(url("/")).send());
        crate::support::until(&session, reqwest_reauth::SessionState::Refreshing).await;
        let closed = session.clone();
        let completed = polled(polls, Box::pin(async move { closed.close().await })).await;
        assert_eq!(
            crate::support::error_of(request.await.unwrap()).kind(),
            reqwest_reauth::ErrorKind::Closed
        );
        session.close().await.unwrap();
        assert_eq!(issuer.calls(), 1);
        assert_eq!(held(&session), texts("t1", "r1"));
        if completed.is_some() {
            return;
        }
    }
}
