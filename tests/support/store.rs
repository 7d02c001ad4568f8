//! A store that fails according to a script, and records what was done to it.

use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use reqwest_reauth::{Error, ErrorKind, StoreLock, TokenStore, Tokens};
use tokio::sync::{Semaphore, watch};

/// The outcome of one call. Without a script, calls succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Well,
    Down,
    Hang,
    Panic,
    /// Continues once the gate has a permit.
    Gated,
    /// Does its work, but reports a failure.
    Lies,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    Lock,
    Unlock,
    Load,
    /// Access and refresh token.
    Save(String, String),
    Clear,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    Lock,
    Load,
    Save,
    Clear,
}

#[derive(Clone)]
pub struct FakeStore(Arc<Shared>);

struct Shared {
    held: Mutex<Option<Tokens>>,
    ops: watch::Sender<Vec<Op>>,
    begun: watch::Sender<Vec<Call>>,
    script: Mutex<VecDeque<(Call, Fate)>>,
    always: Mutex<Vec<(Call, Fate)>>,
    lock: Arc<Semaphore>,
    gate: Arc<Semaphore>,
}

impl Default for FakeStore {
    fn default() -> Self {
        Self(Arc::new(Shared {
            held: Mutex::default(),
            ops: watch::Sender::default(),
            begun: watch::Sender::default(),
            script: Mutex::default(),
            always: Mutex::default(),
            lock: Arc::new(Semaphore::new(1)),
            gate: Arc::new(Semaphore::new(0)),
        }))
    }
}

impl FakeStore {
    pub fn holding(tokens: Tokens) -> Self {
        let store = Self::default();
        store.put(tokens);
        store
    }

    /// Stores tokens without the lock, as another process would.
    pub fn put(&self, tokens: Tokens) {
        *self.0.held.lock().unwrap() = Some(tokens);
    }

    pub fn stored(&self) -> Option<Tokens> {
        self.0.held.lock().unwrap().clone()
    }

    /// The stored access and refresh token.
    pub fn held(&self) -> Option<(String, String)> {
        self.0.held.lock().unwrap().as_ref().map(texts)
    }

    /// Scripts the next calls of this kind, one each.
    pub fn next(&self, call: Call, fates: impl IntoIterator<Item = Fate>) {
        self.0.script.lock().unwrap().extend(fates.into_iter().map(|fate| (call, fate)));
    }

    /// Scripts all further calls of this kind.
    pub fn always(&self, call: Call, fate: Fate) {
        let mut always = self.0.always.lock().unwrap();
        always.retain(|(other, _)| *other != call);
        always.push((call, fate));
    }

    /// Lets all further calls succeed.
    pub fn heal(&self) {
        self.0.script.lock().unwrap().clear();
        self.0.always.lock().unwrap().clear();
    }

    pub fn open_gate(&self) {
        self.0.gate.add_permits(1);
    }

    pub fn ops(&self) -> Vec<Op> {
        self.0.ops.borrow().clone()
    }

    pub fn saves(&self) -> Vec<(String, String)> {
        let saves = |op| {
            if let Op::Save(access, refresh) = op { Some((access, refresh)) } else { None }
        };
        self.ops().into_iter().filter_map(saves).collect()
    }

    /// Waits until these operations have happened.
    pub async fn until(&self, wanted: impl Fn(&[Op]) -> bool) {
        self.0.ops.subscribe().wait_for(|ops| wanted(ops)).await.unwrap();
    }

    /// Waits until a call of this kind has started, whatever its outcome.
    pub async fn until_begun(&self, call: Call) {
        self.0.begun.subscribe().wait_for(|calls| calls.contains(&call)).await.unwrap();
    }

    /// Takes the lock, as another process would.
    pub async fn occupy(&self) -> impl Send + 'static {
        Arc::clone(&self.0.lock).acquire_owned().await.unwrap()
    }

    pub fn is_free(&self) -> bool {
        self.0.lock.available_permits() == 1
    }

    /// Asserts that each save and clear holds the lock.
    pub fn assert_locked(&self) {
        let mut locked = false;
        for op in self.ops() {
            match op {
                Op::Lock => locked = true,
                Op::Unlock => locked = false,
                Op::Load => {}
                Op::Save(..) | Op::Clear => assert!(locked, "{:?}", self.ops()),
            }
        }
    }

    /// Contract §10.2: asserts that each save holds the lock and follows a load.
    pub fn assert_orderly(&self) {
        let (mut locked, mut loaded) = (false, false);
        for op in self.ops() {
            match op {
                Op::Lock => (locked, loaded) = (true, false),
                Op::Unlock => locked = false,
                Op::Load => loaded = true,
                Op::Save(..) => assert!(locked && loaded, "{:?}", self.ops()),
                Op::Clear => assert!(locked, "{:?}", self.ops()),
            }
        }
    }

    async fn meets(&self, call: Call) -> Result<bool, Error> {
        let scripted = {
            let mut script = self.0.script.lock().unwrap();
            let next = script.iter().position(|(of, _)| *of == call);
            next.and_then(|next| script.remove(next)).map(|(_, fate)| fate)
        };
        let always = || {
            self.0.always.lock().unwrap().iter().find(|(of, _)| *of == call).map(|(_, fate)| *fate)
        };
        let fate = scripted.or_else(always).unwrap_or(Fate::Well);
        self.0.begun.send_modify(|calls| calls.push(call));
        match fate {
            Fate::Well => Ok(true),
            Fate::Down => Err(down()),
            Fate::Hang => std::future::pending().await,
            Fate::Panic => panic!("the store panics, as the script says"),
            Fate::Gated => {
                self.0.gate.acquire().await.unwrap().forget();
                Ok(true)
            }
            Fate::Lies => Ok(false),
        }
    }

    fn note(&self, op: Op) {
        self.0.ops.send_modify(|ops| ops.push(op));
    }
}

struct Held(FakeStore, Option<tokio::sync::OwnedSemaphorePermit>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.note(Op::Unlock);
        self.1.take();
    }
}

#[async_trait]
impl TokenStore for FakeStore {
    async fn load(&self) -> Result<Option<Tokens>, Error> {
        self.meets(Call::Load).await?;
        self.note(Op::Load);
        Ok(self.0.held.lock().unwrap().clone())
    }

    async fn save(&self, _lock: &StoreLock, tokens: &Tokens) -> Result<(), Error> {
        let well = self.meets(Call::Save).await?;
        let (access, refresh) = texts(tokens);
        self.put(tokens.clone());
        self.note(Op::Save(access, refresh));
        if well { Ok(()) } else { Err(down()) }
    }

    async fn clear(&self, _lock: &StoreLock) -> Result<(), Error> {
        self.meets(Call::Clear).await?;
        self.note(Op::Clear);
        *self.0.held.lock().unwrap() = None;
        Ok(())
    }

    async fn lock(&self) -> Result<StoreLock, Error> {
        self.meets(Call::Lock).await?;
        let permit = Arc::clone(&self.0.lock).acquire_owned().await.unwrap();
        self.note(Op::Lock);
        Ok(StoreLock::holding(Held(self.clone(), Some(permit))))
    }
}

impl fmt::Debug for FakeStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FakeStore").field("ops", &self.ops()).finish_non_exhaustive()
    }
}

fn down() -> Error {
    Error::new(ErrorKind::Store, "down, as the script says")
}

/// The access and refresh token as texts, empty if there is none.
pub fn texts(tokens: &Tokens) -> (String, String) {
    let access = tokens.access_token().map(|token| token.expose_secret().to_owned());
    let refresh = tokens.refresh_token().map(|token| token.expose_secret().to_owned());
    (access.unwrap_or_default(), refresh.unwrap_or_default())
}
