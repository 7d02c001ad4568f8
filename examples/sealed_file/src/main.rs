//! Runs the store against a real secret service: first starts, later starts, and a key that is gone.

use std::{
    env,
    error::Error,
    fs,
    path::Path,
    process::{Child, Command},
};

use reqwest_reauth::{
    ErrorKind, OAuthRefresh, Session, TokenStore as _, Tokens, testing::AuthServer,
};
use reqwest_reauth_sealed_file::{entry, sealed_store};

type Result<T = ()> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

const NAME: &str = "reqwest-reauth-example";
const PROCESSES: u32 = 4;

#[tokio::main]
async fn main() -> Result {
    // Another process: it takes the key, and reads the login of the first, if there is one.
    if let Some(path) = env::args().nth(1) {
        let store = sealed_store(Path::new(&path), NAME).await?;
        store.load().await?;
        let lock = store.lock().await?;
        return Ok(store.save(&lock, &Tokens::new("of-a-process")?).await?);
    }
    let dir = tempfile::tempdir()?;
    all_make_one_key(&dir.path().join("first/login.json"))?;
    println!("{PROCESSES} first starts make one key: ok");
    let path = dir.path().join("login.json");
    a_login_outlives_its_session(&path).await?;
    println!("a login outlives its session, and no token is in the file: ok");
    a_lost_key_changes_nothing(&path).await?;
    println!("a key that is gone changes nothing: ok");
    println!("3 passed, 0 failed");
    Ok(())
}

/// Each can read what the others have saved.
fn all_make_one_key(path: &Path) -> Result {
    let start = |_| Command::new(env::current_exe()?).arg(path).spawn();
    let processes: Vec<Child> = (0..PROCESSES).map(start).collect::<std::io::Result<_>>()?;
    for mut process in processes {
        assert!(process.wait()?.success());
    }
    assert_eq!(entry(NAME)?.get_secret()?.len(), 32);
    Ok(())
}

async fn a_login_outlives_its_session(path: &Path) -> Result {
    let server = AuthServer::start().await;
    let session = async |tokens: Tokens| -> Result<Session> {
        let builder = Session::builder(tokens)
            .origin(server.origin())
            .refresher(OAuthRefresh::new(server.token_endpoint()))
            .store(sealed_store(path, NAME).await?);
        Ok(builder.restore().await?)
    };
    let first = session(server.login()).await?;
    let tokens = first.refresh().await?;
    first.close().await?;
    let content = fs::read_to_string(path)?;
    for token in [
        tokens.access_token().map(|token| token.expose_secret().to_owned()),
        tokens.refresh_token().map(|token| token.expose_secret().to_owned()),
    ] {
        assert!(!content.contains(&token.ok_or("a token is missing")?), "{content}");
    }
    session(Tokens::empty()).await?.refresh().await?;
    assert_eq!(server.token_calls(), 2);
    assert_eq!(server.counts().reuses, 0);
    Ok(())
}

/// The user has reset the keyring, so there is another key.
async fn a_lost_key_changes_nothing(path: &Path) -> Result {
    entry(NAME)?.delete_credential()?;
    let content = fs::read(path)?;
    let store = sealed_store(path, NAME).await?;
    let error = store.load().await.expect_err("it is another key");
    assert_eq!(error.kind(), ErrorKind::Store);
    let why = error.source().ok_or("no reason")?.to_string();
    assert!(why.contains("key"), "{why}");
    let lock = store.lock().await?;
    store.save(&lock, &Tokens::new("new")?).await.expect_err("it is another key");
    assert_eq!(fs::read(path)?, content);
    Ok(entry(NAME)?.delete_credential()?)
}
