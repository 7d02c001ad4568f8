//! 200 tasks, one client, one connection pool, and a token of its own for each task.
//!
//! `cargo run --example many_tasks` starts a server in this process, which calls all tokens off
//! twice on the way, so that 200 tasks are refused at once and each has to refresh for itself. Then
//! it looks at what the server saw: no request may ever have carried another task's token. It exits
//! with 1 if one did, or if a task was refused anything.

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

/// A task's work: some requests in each stage. It knows the client and its own address, and nothing
/// of tokens.
async fn work(client: ClientWithMiddleware, jobs: String, stage: Arc<Barrier>) -> usize {
    let mut served = 0;
    for number in 0..STAGES * REQUESTS {
        if number > 0 && number % REQUESTS == 0 {
            // Everybody is here, then all tokens are called off, then everybody goes on.
            stage.wait().await;
            stage.wait().await;
        }
        let answer = client.put(format!("{jobs}/{number}")).body("progress").send().await;
        served += usize::from(answer.is_ok_and(|answer| answer.status().is_success()));
        // What a real task does between two requests.
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
        // The scope goes around the future that is spawned: nothing is inherited by a task that is
        // spawned inside one.
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

/// `/task-7/0` is a request of `task-7`.
fn has_its_own_token(request: &Recorded) -> bool {
    let task = request.uri.path().split('/').nth(1);
    task.is_some() && task == request.subject.as_deref()
}
