//! An API and a token endpoint that record what was sent to whom, for property tests.

use std::{
    collections::{HashSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use async_trait::async_trait;
use reqwest_reauth::{Error, ErrorKind, RefreshContext, RefreshToken, Refresher, Session, Tokens};

use super::{Api, Seen, answer, pair};

/// How the token endpoint responds.
#[derive(Clone, Copy, Debug)]
pub enum Grant {
    /// A new pair, with this lifetime in seconds.
    Issue(Option<u64>),
    SameRefreshToken,
    Fail(ErrorKind),
    /// A new refresh token beside an unusable access token.
    KeepAndFail,
    /// The same, followed by a valid pair for the refresh token that was kept.
    KeepAndIssue,
    Hang,
    Panic,
}

/// A request as the API saw it.
#[derive(Clone, Debug)]
pub struct Asked {
    pub request: String,
    pub token: String,
    pub refused: bool,
}

#[derive(Clone)]
pub struct World(Arc<Mutex<Account>>);

#[derive(Default)]
struct Account {
    grants: VecDeque<(u64, Grant)>,
    session: Option<Session>,
    /// The number of the newest token.
    last: usize,
    /// Tokens up to this number are rejected.
    revoked: Option<usize>,
    requests: Vec<Asked>,
    calls: usize,
    now: usize,
    most: usize,
    /// Refresh tokens that a received response has replaced.
    spent: HashSet<String>,
    reused_token: Option<String>,
    expected: String,
    renewed: bool,
    /// The number of new logins and logouts.
    changes: usize,
    generation: u64,
}

impl World {
    pub fn new(grants: Vec<(u64, Grant)>) -> Self {
        let account =
            Account { grants: grants.into(), expected: "r0".to_owned(), ..Account::default() };
        Self(Arc::new(Mutex::new(account)))
    }

    fn account(&self) -> MutexGuard<'_, Account> {
        self.0.lock().unwrap()
    }

    /// Checks each generation that is seen from here on against the earlier ones.
    pub fn watch(&self, session: &Session) {
        self.account().session = Some(session.clone());
    }

    /// Stops watching. The session owns this refresher, and the cycle would outlive the test.
    pub fn stop_watching(&self) {
        self.account().session = None;
    }

    pub fn api(&self) -> Api {
        let world = self.clone();
        Api::new(move |seen| {
            let world = world.clone();
            async move { world.serve(seen).await }
        })
    }

    /// The path is `/<request>/<milliseconds>/<whether it brings a token>`.
    async fn serve(self, seen: Seen) -> http::response::Builder {
        assert_eq!(seen.authorization.len(), 1, "{seen:?}");
        let token = seen.token().unwrap().to_owned();
        let parts: Vec<_> = seen.url.rsplit('/').take(3).collect();
        let (brings_token, takes, request) =
            (parts[0] == "1", parts[1].parse().unwrap(), parts[2].to_owned());
        let place = {
            let mut account = self.account();
            account.see_generation();
            account.requests.push(Asked { request, token: token.clone(), refused: false });
            account.requests.len() - 1
        };
        if takes > 0 {
            tokio::time::sleep(Duration::from_millis(takes)).await;
        }
        let mut account = self.account();
        account.see_generation();
        let number: usize = token[1..].parse().unwrap();
        let refused = account.revoked.is_some_and(|revoked| number <= revoked);
        account.requests[place].refused = refused;
        let answer = answer(if refused { 401 } else { 200 });
        if brings_token {
            account.last += 1;
            answer.header("refreshed-api-token", format!("c{}", account.last))
        } else {
            answer
        }
    }

    pub fn revoke(&self) {
        let mut account = self.account();
        account.revoked = Some(account.last);
    }

    /// A new login, whose tokens must not be lost from now on.
    pub fn new_login(&self) -> Tokens {
        let mut account = self.account();
        account.last += 1;
        account.changes += 1;
        account.expected = format!("n{}", account.last);
        pair(&format!("u{}", account.last), &account.expected)
    }

    pub fn logout(&self) {
        let mut account = self.account();
        account.changes += 1;
        account.expected.clear();
    }

    pub fn requests(&self) -> Vec<Asked> {
        self.account().requests.clone()
    }

    pub fn calls(&self) -> usize {
        self.account().calls
    }

    pub fn most_at_once(&self) -> usize {
        self.account().most
    }

    pub fn reused_token(&self) -> Option<String> {
        self.account().reused_token.clone()
    }

    pub fn last_refresh_token(&self) -> String {
        self.account().expected.clone()
    }

    /// Whether the session's initial tokens have been replaced.
    pub fn was_renewed(&self) -> bool {
        self.account().expected != "r0" || self.account().renewed
    }

    /// A response with the new refresh token was received.
    fn replaces(&self, old: &str, new: &str, changes: usize) {
        let mut account = self.account();
        account.spent.insert(old.to_owned());
        if account.changes == changes {
            new.clone_into(&mut account.expected);
            account.renewed = true;
        }
    }

    fn make(&self) -> usize {
        let mut account = self.account();
        account.last += 1;
        account.last
    }
}

impl Account {
    fn see_generation(&mut self) {
        if let Some(session) = &self.session {
            let generation = session.generation();
            assert!(generation >= self.generation, "the generation fell");
            self.generation = generation;
        }
    }
}

struct Busy(World);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.account().now -= 1;
    }
}

#[async_trait]
impl Refresher for World {
    async fn refresh(&self, context: &RefreshContext) -> Result<Tokens, Error> {
        let asked = context
            .tokens()
            .refresh_token()
            .map(|token| token.expose_secret().to_owned())
            .unwrap_or_default();
        let (changes, takes, grant) = {
            let mut account = self.account();
            account.see_generation();
            account.calls += 1;
            account.now += 1;
            account.most = account.most.max(account.now);
            if account.spent.contains(&asked) {
                account.reused_token = Some(asked.clone());
            }
            let (takes, grant) = account.grants.pop_front().unwrap_or((0, Grant::Issue(None)));
            (account.changes, takes, grant)
        };
        let _busy = Busy(self.clone());
        if takes > 0 {
            tokio::time::sleep(Duration::from_millis(takes)).await;
        }
        match grant {
            Grant::Issue(lifetime) => Ok(self.issue(&asked, lifetime, changes)),
            Grant::SameRefreshToken => {
                let number = self.make();
                Tokens::new(format!("t{number}"))
            }
            Grant::Fail(kind) => Err(Error::new(kind, "scripted")),
            Grant::KeepAndFail => {
                self.keep(context, &asked, changes).await?;
                Err(Error::new(ErrorKind::BadResponse, "scripted"))
            }
            Grant::KeepAndIssue => {
                let kept = self.keep(context, &asked, changes).await?;
                Ok(self.issue(&kept, None, changes))
            }
            Grant::Hang => std::future::pending().await,
            Grant::Panic => panic!("the refresher panics, as the script says"),
        }
    }

    fn can_refresh(&self, tokens: &Tokens) -> bool {
        tokens.refresh_token().is_some()
    }
}

impl World {
    fn issue(&self, asked: &str, lifetime: Option<u64>, changes: usize) -> Tokens {
        let number = self.make();
        let refresh = format!("r{number}");
        self.replaces(asked, &refresh, changes);
        let tokens = pair(&format!("t{number}"), &refresh);
        match lifetime {
            Some(lifetime) => tokens.with_expires_in(Duration::from_secs(lifetime)),
            None => tokens,
        }
    }

    async fn keep(
        &self,
        context: &RefreshContext,
        asked: &str,
        changes: usize,
    ) -> Result<String, Error> {
        let kept = format!("k{}", self.make());
        self.replaces(asked, &kept, changes);
        context.keep(RefreshToken::new(kept.clone())?).await;
        Ok(kept)
    }
}
