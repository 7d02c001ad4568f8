//! 200 tasks with one client and one connection pool, and a separate token for each task.
//!
//! `cargo run --example many_tasks` starts a server in this process. The server rejects all current
//! tokens twice, so that 200 tasks are rejected at once and each has to refresh its own token. At
//! the end the example checks what the server saw: no request may have carried another task's
//! token. It exits with 1 if a request did, or if a task's request failed because of its token.

use std::{process::ExitCode, sync::Arc};

use reqwest_middleware::{ClientBuilder, ClientWithMiddleware};
use reqwest_reauth::{
    ClientBuilderExt, OAuthRefresh, Session,
    testing::{AuthServer, Recorded},
};
use tokio::{
    sync::Barrier,
    task::JoinSet,
    time::{Duration, Instant, sleep},
};

const TASKS: usize = 200;
const STAGES: usize = 3;
const REQUESTS: usize = 15;

/// The work of a task: a few requests in each stage. It knows the client and its own URL, but no
/// tokens.
async fn work(client: ClientWithMiddleware, jobs: String, stage: Arc<Barrier>) -> usize {
    let mut served = 0;
    for number in 0..STAGES * REQUESTS {
        if number > 0 && number % REQUESTS == 0 {
            // All tasks arrive, all tokens are rejected from now on, and all tasks continue.
            stage.wait().await;
            stage.wait().await;
        }
        let answer = client.put(format!("{jobs}/{number}")).body("progress").send().await;
        served += usize::from(answer.is_ok_and(|answer| answer.status().is_success()));
        // Stands for the work of a real task between two requests.
        sleep(Duration::from_millis(50)).await;
    }
    served
}

#[tokio::main]
async fn main() -> Result<ExitCode, Box<dyn std::error::Error>> {
    let server = AuthServer::start().await;
    let client = ClientBuilder::new(reqwest::Client::new()).with_scoped_sessions().build();
    let stage = Arc::new(Barrier::new(TASKS + 1));
    let began = Instant::now();

    let mut tasks = JoinSet::new();
    for number in 0..TASKS {
        let name = format!("task-{number}");
        let session = Session::builder(server.login_as(&name))
            .origin(server.origin())
            .refresher(OAuthRefresh::new(server.token_endpoint()))
            .build()?;
        // The scope wraps the spawned future, because a task that is spawned inside a scope does
        // not inherit it.
        tasks.spawn(session.scope(work(
            client.clone(),
            server.url(&format!("/{name}")),
            Arc::clone(&stage),
        )));
    }
    for _ in 1..STAGES {
        stage.wait().await;
        server.expire_now();
        stage.wait().await;
    }
    let done: usize = tasks.join_all().await.into_iter().sum();

    let requests = server.requests();
    let crossed = requests.iter().filter(|request| !has_its_own_token(request)).count();
    println!("{TASKS} tasks on one client, {:.1} s", began.elapsed().as_secs_f64());
    println!("  requests served       {done:>6} of {}", TASKS * STAGES * REQUESTS);
    println!("  requests seen         {:>6}", requests.len());
    println!("  refused, and replayed {:>6}", server.refused());
    println!("  tokens renewed        {:>6}", server.counts().tokens_issued);
    println!("  with another's token  {crossed:>6}");
    let good = crossed == 0 && done == TASKS * STAGES * REQUESTS;
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Whether a request to `/task-7/0` carries the token of `task-7`.
fn has_its_own_token(request: &Recorded) -> bool {
    let task = request.uri.path().split('/').nth(1);
    task.is_some() && task == request.subject.as_deref()
}
