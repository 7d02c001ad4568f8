//! Sessions without a login of a person: grants, another refresher, refreshers that look first.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use reqwest_reauth::{
    Error, ErrorKind, Event, MemoryStore, OAuthRefresh, RefreshContext, Refresher, Session,
    SessionBuilder, SessionState, TokenStore, Tokens, refresh_with,
};

use crate::{
    raw::{Reply, Server},
    support::{Api, Events, ORIGIN, answer, error_of, held, pair, settle, texts, url},
};

fn session(tokens: Tokens, refresher: impl Refresher) -> SessionBuilder {
    Session::builder(tokens).origin(ORIGIN).refresher(refresher)
}

fn credentials(endpoint: &Server) -> OAuthRefresh {
    let refresher = OAuthRefresh::client_credentials(endpoint.url("/token"));
    refresher.backoff(Duration::from_millis(2), Duration::from_millis(4))
}

/// Replies in their order, the last one again and again.
async fn scripted(script: impl IntoIterator<Item = Reply>) -> Server {
    let script: Vec<Reply> = script.into_iter().collect();
    Server::simple(move |seen| script[seen.number.min(script.len()) - 1].clone()).await
}

fn issued(access: &str) -> Reply {
    Reply::status(200).json(format!(r#"{{"access_token":"{access}","token_type":"Bearer"}}"#))
}

fn said(code: &str) -> Reply {
    Reply::status(400).json(format!(r#"{{"error":"{code}"}}"#))
}

#[tokio::test]
async fn a_crowd_starts_from_nothing_with_one_refresh() {
    let endpoint = scripted([Reply::status(502), Reply::status(502), issued("t1")]).await;
    let session = session(Tokens::empty(), credentials(&endpoint)).build().unwrap();
    assert_eq!(session.state(), SessionState::Active);
    let api = Api::accepting(|token| token == "t1");
    let client = api.client(&session);
    let send = |_| {
        let request = client.get(url("/jobs"));
        tokio::spawn(async move { request.send().await.unwrap().status().as_u16() })
    };
    let requests: Vec<_> = (0..256).map(send).collect();
    for request in requests {
        assert_eq!(request.await.unwrap(), 200);
    }
    assert_eq!(endpoint.count(), 3);
    assert_eq!(api.tokens_seen(), vec!["t1"; 256]);
}

#[tokio::test]
async fn credentials_that_are_rejected_cool_down() {
    let endpoint = scripted([said("invalid_grant"), issued("t1")]).await;
    let session = session(Tokens::empty(), credentials(&endpoint)).build().unwrap();
    let client = Api::accepting(|_| true).client(&session);
    let error = error_of(client.get(url("/jobs")).send().await);
    assert_eq!(error.kind(), ErrorKind::ClientRejected);
    let error = error_of(client.get(url("/jobs")).send().await);
    assert_eq!(error.kind(), ErrorKind::CoolingDown);
    assert_eq!(endpoint.count(), 1);
    session.refresh().await.unwrap();
    assert_eq!(held(&session), texts("t1", ""));
}

#[tokio::test]
async fn a_logout_ends_a_service_account_too() {
    let endpoint = scripted([issued("t1"), issued("t2")]).await;
    let session = session(Tokens::empty(), credentials(&endpoint)).build().unwrap();
    let client = Api::accepting(|_| true).client(&session);
    assert_eq!(client.get(url("/jobs")).send().await.unwrap().status(), 200);
    session.clear().await.unwrap();
    let error = error_of(client.get(url("/jobs")).send().await);
    assert_eq!(error.kind(), ErrorKind::LoginRequired);
    assert_eq!(endpoint.count(), 1);
    session.replace_tokens(Tokens::empty()).await.unwrap();
    assert_eq!(client.get(url("/jobs")).send().await.unwrap().status(), 200);
    assert_eq!(endpoint.count(), 2);
}

#[tokio::test]
async fn a_dead_refresh_token_is_forgotten() {
    let first = scripted([said("invalid_grant")]).await;
    let second = scripted([issued("t1"), issued("t2")]).await;
    let refresher = OAuthRefresh::new(first.url("/token")).or_else(credentials(&second));
    let (store, events) = (MemoryStore::default(), Events::default());
    let session = session(pair("old", "dead"), refresher)
        .store(store.clone())
        .on_event(events.listener())
        .build()
        .unwrap();
    let client = Api::accepting(|token| token.starts_with('t')).client(&session);
    assert_eq!(client.get(url("/jobs")).send().await.unwrap().status(), 200);
    assert_eq!(held(&session), texts("t1", ""));
    let stored = store.load().await.unwrap().unwrap();
    assert_eq!(stored.refresh_token(), None);
    assert_eq!(stored.access_token().unwrap().expose_secret(), "t1");
    let events = events.all();
    let switch = events.iter().position(|event| matches!(event, Event::FellBack { .. })).unwrap();
    assert!(matches!(events[switch - 1], Event::RefreshStarted { .. }));
    assert!(matches!(events[switch + 1], Event::Refreshed { attempts: 2, .. }), "{events:?}");
    // The next refresh asks the other one at once.
    session.refresh().await.unwrap();
    assert_eq!(first.count(), 1);
    assert_eq!(second.count(), 2);
}

#[tokio::test]
async fn the_store_is_tried_before_the_switch() {
    let first = Server::simple(|seen| {
        let form = String::from_utf8_lossy(&seen.body).into_owned();
        if form.contains("refresh_token=stored") { issued("t1") } else { said("invalid_grant") }
    })
    .await;
    let second = scripted([issued("t2")]).await;
    let refresher = OAuthRefresh::new(first.url("/token")).or_else(credentials(&second));
    let store = MemoryStore::default();
    let session = session(pair("old", "given"), refresher).store(store.clone()).build().unwrap();
    // Another process stores it while the first one is asked.
    let lock = store.lock().await.unwrap();
    store.save(&lock, &Tokens::from_refresh_token("stored").unwrap()).await.unwrap();
    drop(lock);
    session.refresh().await.unwrap();
    assert_eq!(held(&session), texts("t1", "stored"));
    assert_eq!(second.count(), 0);
}

#[tokio::test]
async fn the_switch_waits_for_the_store() {
    let store = MemoryStore::default();
    let other_process = store.clone();
    let second = scripted([issued("t2")]).await;
    let first = Server::start(move |_| {
        let store = other_process.clone();
        async move {
            // The session's refresh has the lock: this is a store without one.
            let lock = reqwest_reauth::StoreLock::none();
            store.save(&lock, &pair("theirs", "next")).await.unwrap();
            said("invalid_grant")
        }
    })
    .await;
    let events = Events::default();
    let refresher = OAuthRefresh::new(first.url("/token")).or_else(credentials(&second));
    let session = session(pair("old", "given"), refresher)
        .store(store)
        .on_event(events.listener())
        .build()
        .unwrap();
    session.refresh().await.unwrap();
    assert_eq!(held(&session), texts("theirs", "next"));
    assert_eq!(first.count(), 1);
    assert_eq!(second.count(), 0);
    assert_eq!(events.count(|event| matches!(event, Event::FellBack { .. })), 0);
}

/// Returns what it has, and counts the calls.
#[derive(Clone, Default)]
struct Source {
    news: Arc<Mutex<Option<Result<bool, Error>>>>,
    looks: Arc<AtomicUsize>,
    calls: Arc<AtomicUsize>,
}

impl Source {
    fn says(&self, news: Result<bool, Error>) {
        *self.news.lock().unwrap() = Some(news);
    }

    fn counts(&self) -> (usize, usize) {
        (self.looks.load(Ordering::SeqCst), self.calls.load(Ordering::SeqCst))
    }
}

#[async_trait]
impl Refresher for Source {
    async fn refresh(&self, _: &RefreshContext) -> Result<Tokens, Error> {
        let call = self.calls.fetch_add(1, Ordering::SeqCst) + 1;
        Ok(Tokens::new(format!("t{call}"))?.with_expires_in(Duration::from_secs(600)))
    }

    async fn has_news(&self, held: &Tokens) -> Result<bool, Error> {
        assert_eq!(held.refresh_token(), None);
        self.looks.fetch_add(1, Ordering::SeqCst);
        self.news.lock().unwrap().clone().unwrap_or(Ok(true))
    }

    fn longest_cooldown(&self) -> Option<Duration> {
        Some(Duration::from_secs(1))
    }
}

#[tokio::test(start_paused = true)]
async fn without_news_there_is_no_refresh_and_no_event() {
    let (source, events) = (Source::default(), Events::default());
    source.says(Ok(false));
    let tokens = Tokens::new("held").unwrap().with_expires_in(Duration::from_secs(600));
    let session =
        session(tokens, Box::new(source.clone())).on_event(events.listener()).build().unwrap();
    let api = Api::accepting(|token| token == "held");
    let client = api.client(&session);
    // In the window, a request looks at most once in a cool-down.
    tokio::time::advance(Duration::from_secs(599)).await;
    for _ in 0..5 {
        assert_eq!(client.get(url("/jobs")).send().await.unwrap().status(), 200);
        settle().await;
    }
    assert_eq!(source.counts(), (1, 0));
    assert_eq!(session.state(), SessionState::Active);
    // The caller's own refresh obtains nothing either, and the token is valid.
    assert_eq!(session.refresh().await.unwrap().access_token().unwrap().expose_secret(), "held");
    assert_eq!(session.generation(), 1);
    assert_eq!(source.counts(), (2, 0));
    assert_eq!(events.all().len(), 0);
    // After the end it is of no use.
    tokio::time::advance(Duration::from_secs(2)).await;
    let error = error_of(client.get(url("/jobs")).send().await);
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert_eq!(error.api_status(), None);
    tokio::time::advance(Duration::from_secs(1)).await;
    source.says(Ok(true));
    assert_eq!(client.get(url("/jobs")).send().await.unwrap().status(), 401);
    assert_eq!(source.counts().1, 1);
}

#[tokio::test(start_paused = true)]
async fn a_rejected_token_without_news_is_unavailable() {
    let (source, events) = (Source::default(), Events::default());
    source.says(Ok(false));
    let session = session(Tokens::new("held").unwrap(), Arc::new(source.clone()))
        .on_event(events.listener())
        .build()
        .unwrap();
    let client = Api::accepting(|token| token == "t1").client(&session);
    let error = error_of(client.get(url("/jobs")).send().await);
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert_eq!(error.api_status().unwrap().as_u16(), 401);
    assert_eq!(events.all().len(), 0);
    assert_eq!(source.counts(), (1, 0));
    // The refresher bounds the cool-down of 10 s.
    source.says(Ok(true));
    assert_eq!(error_of(client.get(url("/jobs")).send().await).kind(), ErrorKind::CoolingDown);
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(client.get(url("/jobs")).send().await.unwrap().status(), 200);
    assert_eq!(events.count(|event| matches!(event, Event::Refreshed { .. })), 1);
}

#[tokio::test(start_paused = true)]
async fn a_failed_has_news_is_a_failed_refresh() {
    let (source, events) = (Source::default(), Events::default());
    source.says(Err(Error::new(ErrorKind::Unavailable, "unreadable")));
    let session =
        session(Tokens::empty(), source.clone()).on_event(events.listener()).build().unwrap();
    let client = Api::new(|_| async { answer(200) }).client(&session);
    let error = error_of(client.get(url("/jobs")).send().await);
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(matches!(&events.all()[..], [Event::RefreshFailed { .. }]), "{:?}", events.all());
}

#[tokio::test(start_paused = true)]
async fn the_refresher_bounds_every_cooldown() {
    let long = Error::new(ErrorKind::Unavailable, "busy").with_retry_after(Duration::from_secs(60));
    let source = Source::default();
    source.says(Err(long));
    let session = session(Tokens::empty(), source.clone()).build().unwrap();
    assert!(session.refresh().await.is_err());
    assert_eq!(session.state(), SessionState::CoolingDown);
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(session.state(), SessionState::Active);
}

/// Counts the forwarded calls.
struct Everything(Arc<Mutex<Vec<&'static str>>>);

#[async_trait]
impl Refresher for Everything {
    async fn refresh(&self, context: &RefreshContext) -> Result<Tokens, Error> {
        self.0.lock().unwrap().push("refresh");
        Ok(context.tokens())
    }

    fn check(&self) -> Result<(), Error> {
        self.0.lock().unwrap().push("check");
        Ok(())
    }

    fn can_refresh(&self, _: &Tokens) -> bool {
        self.0.lock().unwrap().push("can_refresh");
        false
    }

    async fn has_news(&self, _: &Tokens) -> Result<bool, Error> {
        self.0.lock().unwrap().push("has_news");
        Ok(false)
    }

    async fn revoke(&self, _: &Tokens) -> Result<(), Error> {
        self.0.lock().unwrap().push("revoke");
        Err(Error::new(ErrorKind::Unavailable, "x"))
    }

    fn can_revoke(&self) -> bool {
        self.0.lock().unwrap().push("can_revoke");
        true
    }

    fn longest_cooldown(&self) -> Option<Duration> {
        self.0.lock().unwrap().push("longest_cooldown");
        Some(Duration::ZERO)
    }
}

#[tokio::test]
async fn pointers_to_a_refresher_forward_everything() {
    async fn ask(refresher: impl Refresher) {
        let context = RefreshContext::for_test(Tokens::new("t").unwrap());
        assert!(refresher.refresh(&context).await.is_ok());
        assert!(refresher.check().is_ok());
        assert!(!refresher.can_refresh(&Tokens::empty()));
        assert!(!refresher.has_news(&Tokens::empty()).await.unwrap());
        assert!(refresher.revoke(&Tokens::empty()).await.is_err());
        assert!(refresher.can_revoke());
        assert_eq!(refresher.longest_cooldown(), Some(Duration::ZERO));
    }
    let seen = Arc::new(Mutex::new(Vec::new()));
    ask(Arc::new(Everything(Arc::clone(&seen)))).await;
    ask(Box::new(Everything(Arc::clone(&seen)))).await;
    ask(Box::new(Everything(Arc::clone(&seen))) as Box<dyn Refresher>).await;
    let each =
        ["refresh", "check", "can_refresh", "has_news", "revoke", "can_revoke", "longest_cooldown"];
    assert_eq!(*seen.lock().unwrap(), each.repeat(3));
}

#[tokio::test]
async fn a_refresher_has_defaults_for_all_but_one() {
    struct Plain;
    #[async_trait]
    impl Refresher for Plain {
        async fn refresh(&self, context: &RefreshContext) -> Result<Tokens, Error> {
            context.keep(reqwest_reauth::RefreshToken::new("next")?).await;
            context.retrying(1, Duration::ZERO, None);
            Ok(context.tokens())
        }
    }
    let held = pair("t", "r");
    assert!(Plain.has_news(&held).await.unwrap());
    assert!(Plain.revoke(&held).await.is_ok());
    assert_eq!(Plain.longest_cooldown(), None);
    let context = RefreshContext::for_test(held);
    assert_eq!(context.kept(), None);
    let brought = Plain.refresh(&context).await.unwrap();
    assert_eq!(brought.refresh_token().unwrap().expose_secret(), "next");
    assert_eq!(context.kept().unwrap().expose_secret(), "next");
    let minted = refresh_with(|held| async { Ok(held) });
    assert!(minted.has_news(&Tokens::empty()).await.unwrap());
}
