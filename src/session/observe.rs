//! What the session learns from a response that another client received.

use std::panic::{AssertUnwindSafe, catch_unwind};

use http::{HeaderMap, StatusCode};
use reqwest::{Response, ResponseBuilderExt};
use url::Url;

use super::{Session, credential::Credential, state::Since};
use crate::{
    policy::{self, Verdict},
    time::Now,
};

impl Session {
    /// Processes the response to a request with this credential as the chain would: captures its
    /// tokens, and judges whether it rejects the token
    /// ([`SessionBuilder::rejected_if`](crate::SessionBuilder::rejected_if) included).
    ///
    /// The verdict alone does not reject the token. Pass it on with [`reject`](Self::reject), or as
    /// a [`Reply`](crate::Reply) through [`Verdict::reply`]. `url` is the URL of the response, after
    /// redirects.
    /// If that URL is outside the session's origins, or if the credential belongs to another
    /// session, nothing is captured and nothing counts as a rejection.
    ///
    /// ```
    /// use reqwest_reauth::{OAuthRefresh, Reply, Session, reqwest, testing::AuthServer};
    ///
    /// #[tokio::main]
    /// async fn main() -> Result<(), Box<dyn std::error::Error>> {
    ///     // A test server (feature `test-util`).
    ///     let server = AuthServer::start().await;
    ///     let session = Session::builder(server.login())
    ///         .origin(server.origin())
    ///         .refresher(OAuthRefresh::new(server.token_endpoint()))
    ///         .build()?;
    ///     let http = reqwest::Client::new();
    ///     let url = server.url("/jobs");
    ///
    ///     server.expire_now();
    ///     let response = session
    ///         .with_credential(&url, |credential| {
    ///             let (session, http, url) = (session.clone(), http.clone(), url.clone());
    ///             async move {
    ///                 let (name, value) = credential.header();
    ///                 match http.get(url).header(name, value).send().await {
    ///                     Ok(response) => {
    ///                         let (url, status) = (response.url(), response.status());
    ///                         let verdict = session.observe(&credential, url, status, response.headers());
    ///                         verdict.reply(Ok(response))
    ///                     }
    ///                     Err(error) => Reply::Inconclusive(Err(error)),
    ///                 }
    ///             }
    ///         })
    ///         .await??;
    ///     assert_eq!(response.status(), 200);
    ///     Ok(())
    /// }
    /// ```
    pub fn observe(
        &self,
        credential: &Credential,
        url: impl AsRef<str>,
        status: StatusCode,
        headers: &HeaderMap,
    ) -> Verdict {
        let Ok(url) = self.trusted(url.as_ref()) else {
            return Verdict::unrelated(status);
        };
        if !self.is(&credential.session) {
            return Verdict::unrelated(status);
        }
        let taken = if self.channels().may_bring(headers) {
            self.take(credential.generation(), &url, headers)
        } else {
            super::capture::Taken::default()
        };
        let sent = credential.state.signature();
        let since = self.load().since(&sent, status);
        if since == Since::OtherLogin {
            return Verdict::unrelated(status);
        }
        let mut verdict = policy::is_rejection(
            status,
            headers,
            self.placement().challenge_scheme(),
            taken.replaced || since == Since::Replaced,
            sent.has_expired(Now::read),
        );
        verdict.captured = taken.adopted;
        #[cfg(feature = "dpop")]
        if self.observe_proof(credential, &url, &mut verdict, status, headers) {
            return verdict;
        }
        if let Some(rule) = self.rejected_if()
            && let Some(response) = response_for(&url, status, headers)
        {
            let ruled = catch_unwind(AssertUnwindSafe(|| rule(&response, verdict)));
            verdict.rejected = ruled.unwrap_or(verdict.rejected);
        }
        verdict
    }

    /// Stores the nonce and reads what the response says about the proof. Returns whether the
    /// response concerns only the proof.
    #[cfg(feature = "dpop")]
    fn observe_proof(
        &self,
        credential: &Credential,
        url: &Url,
        verdict: &mut Verdict,
        status: StatusCode,
        headers: &HeaderMap,
    ) -> bool {
        use crate::dpop::{Challenge, Role, api_challenge};
        let Some(dpop) = self.dpop() else { return false };
        let carried = {
            let carried = &credential.carried;
            carried.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
        };
        dpop.take_nonce(Role::Api, url, headers);
        match api_challenge(status, headers, carried.as_deref()) {
            Challenge::UseNonce => {
                verdict.rejected = false;
                verdict.new_nonce = dpop.has_other_nonce(Role::Api, url, &carried);
                verdict.inconclusive = true;
                true
            }
            Challenge::InvalidProof => {
                verdict.rejected = false;
                verdict.inconclusive = true;
                true
            }
            // A demand in the body is not visible here.
            Challenge::AskBody | Challenge::Nothing => false,
        }
    }
}

/// Builds a response for the rule of `rejected_if`.
fn response_for(url: &Url, status: StatusCode, headers: &HeaderMap) -> Option<Response> {
    let mut response =
        http::Response::builder().status(status).url(url.clone()).body(Vec::new()).ok()?;
    response.headers_mut().clone_from(headers);
    Some(response.into())
}
