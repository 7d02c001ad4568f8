//! Responses to requests whose token has been replaced since they were sent (contract 2.5).

use std::sync::Arc;

use reqwest_middleware::{ClientBuilder, ClientWithMiddleware};
use reqwest_reauth::{ClientBuilderExt, Error, Session, Tokens, refresh_with};
use tokio::sync::{Notify, Semaphore};

use crate::raw::{Reply, Server};

/// An API that holds the first request until a signal, and then responds with this status.
struct Slow {
    api: Server,
    arrived: Arc<Notify>,
    gate: Arc<Semaphore>,
}

impl Slow {
    async fn answering(status: u16) -> Self {
        let (arrived, gate) = (Arc::new(Notify::new()), Arc::new(Semaphore::new(0)));
        let (told, opened) = (Arc::clone(&arrived), Arc::clone(&gate));
        let api = Server::start(move |seen| {
            let (told, opened) = (Arc::clone(&told), Arc::clone(&opened));
            async move {
                if seen.token() != Some("old") {
                    return Reply::status(200);
                }
                told.notify_one();
                let _ = opened.acquire().await;
                Reply::status(status)
            }
        })
        .await;
        Self { api, arrived, gate }
    }

    fn session(&self) -> (Session, ClientWithMiddleware) {
        let tokens = Tokens::new("old").unwrap().with_refresh_token("r0").unwrap();
        let session = Session::builder(tokens)
            .origin(self.api.origin())
            .refresher(refresh_with(|_| async { Tokens::new("fresh")?.with_refresh_token("r1") }))
            .build()
            .unwrap();
        let client =
            ClientBuilder::new(reqwest::Client::new()).with_session(session.clone()).build();
        (session, client)
    }

    /// The response to a request that was sent with `old`, after `change`, and the tokens that the
    /// API saw.
    async fn after(
        &self,
        change: impl AsyncFnOnce(&Session),
    ) -> (Result<u16, Error>, Vec<Option<String>>) {
        let (session, client) = self.session();
        let sent = tokio::spawn(client.get(self.api.url("/")).send());
        self.arrived.notified().await;
        change(&session).await;
        self.gate.add_permits(1);
        let result = match sent.await.unwrap() {
            Ok(response) => Ok(response.status().as_u16()),
            Err(error) => Err(Error::find_in(&error).expect("an error of ours").clone()),
        };
        (result, self.api.tokens())
    }
}

fn tokens(refresh: &str) -> Tokens {
    Tokens::new("fresh").unwrap().with_refresh_token(refresh).unwrap()
}

fn old_then_fresh() -> Vec<Option<String>> {
    ["old", "fresh"].map(|token| Some(token.to_owned())).to_vec()
}

#[tokio::test]
async fn a_403_to_a_token_that_was_renewed_is_replayed() {
    for status in [401, 403] {
        let slow = Slow::answering(status).await;
        let (result, seen) =
            slow.after(async |session| drop(session.refresh().await.unwrap())).await;
        assert_eq!(result.unwrap(), 200, "{status}");
        assert_eq!(seen, old_then_fresh(), "{status}");
    }
}

#[tokio::test]
async fn a_403_across_the_same_login_is_replayed() {
    let slow = Slow::answering(403).await;
    let (result, seen) =
        slow.after(async |session| session.replace_tokens(tokens("r0")).await.unwrap()).await;
    assert_eq!(result.unwrap(), 200);
    assert_eq!(seen, old_then_fresh());
}

#[tokio::test]
async fn only_a_401_is_replayed_across_another_login() {
    for (status, expected, sent) in [(401, 200, 2), (403, 403, 1)] {
        let slow = Slow::answering(status).await;
        let (result, seen) = slow
            .after(async |session| session.replace_tokens(tokens("other")).await.unwrap())
            .await;
        assert_eq!(result.unwrap(), expected);
        assert_eq!(seen.len(), sent, "{status}");
    }
}

#[tokio::test]
async fn nothing_is_replayed_across_a_logout() {
    for status in [401, 403] {
        let slow = Slow::answering(status).await;
        let (result, seen) = slow.after(async |session| session.clear().await.unwrap()).await;
        assert_eq!(result.unwrap(), status);
        assert_eq!(seen.len(), 1);

        let slow = Slow::answering(status).await;
        let (result, seen) = slow
            .after(async |session| {
                session.clear().await.unwrap();
                session.replace_tokens(tokens("r0")).await.unwrap();
            })
            .await;
        assert_eq!(result.unwrap(), status);
        assert_eq!(seen.len(), 1);
    }
}

#[tokio::test]
async fn a_403_to_the_present_token_is_the_callers() {
    let slow = Slow::answering(403).await;
    let (result, seen) = slow.after(async |_| {}).await;
    assert_eq!(result.unwrap(), 403);
    assert_eq!(seen.len(), 1);
}
