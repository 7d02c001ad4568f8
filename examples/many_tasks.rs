//! 200 tasks, one client, one connection pool, and a token of its own for each task.
//!
//! `cargo run --example many_tasks` starts a server in this process, whose tokens live two seconds, and which calls all of them off
//! twice on the way. Then it looks at what the server saw: no request may ever have carried another task's token. It exits with 1 if
//! one did, or if a task was refused anything.

use std::{process::ExitCode, time::Duration};

use reqwest_middleware::{ClientBuilder, ClientWithMiddleware};
use reqwest_reauth::{ClientBuilderExt, OAuthRefresh, Session, testing::AuthServer};
use tokio::{task::JoinSet, time::Instant};

const TASKS: usize = 200;
const REQUESTS: usize = 40;

/// A task's work. It knows the client and its own name, and nothing of tokens.
async fn work(client: ClientWithMiddleware, jobs: String) -> reqwest_middleware::Result<usize> {
    let mut served = 0;
    for number in 0..REQUESTS {
        let answer = client.put(format!("{jobs}/{number}")).body("progress").send().await?;
        served += usize::from(answer.status().is_success());
        // What a real task does between two requests.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(served)
}

#[tokio::main]
async fn main() -> Result<ExitCode, Box<dyn std::error::Error>> {
    let server = AuthServer::builder().lifetime(Duration::from_secs(2)).start().await;
    let client = ClientBuilder::new(reqwest::Client::new()).with_scoped_sessions().build();
    let began = Instant::now();

    let mut tasks = JoinSet::new();
    for number in 0..TASKS {
        let name = format!("task-{number}");
        let session = Session::builder(server.login_as(&name))
            .origin(server.origin())
            .refresher(OAuthRefresh::new(server.token_endpoint()))
            .build()?;
        // The scope goes around the future that is spawned: nothing is inherited by a task that is spawned inside one.
        tasks.spawn(session.scope(work(client.clone(), server.url(&format!("/{name}")))));
    }
    // In the midst of everything, 200 times 401.
    for second in [1, 2] {
        tokio::time::sleep_until(began + Duration::from_millis(second * 1300)).await;
        server.expire_now();
    }
    let (mut done, mut failed) = (0, 0);
    while let Some(task) = tasks.join_next().await {
        match task? {
            Ok(requests) => done += requests,
            Err(error) => {
                failed += 1;
                eprintln!("a task failed: {error}");
            }
        }
    }

    let requests = server.requests();
    // `/task-7/0` is a request of `task-7`.
    let own = |path: &str, subject: &str| path.strip_prefix('/').is_some_and(|path| path.starts_with(&format!("{subject}/")));
    let crossed =
        requests.iter().filter(|request| !request.subject.as_deref().is_some_and(|who| own(request.uri.path(), who))).count();

    println!("{TASKS} tasks on one client, {:.1} s", began.elapsed().as_secs_f64());
    println!("  requests served       {done:>6} of {}", TASKS * REQUESTS);
    println!("  requests seen         {:>6}", requests.len());
    println!("  tokens refused        {:>6}", server.refused());
    println!("  tokens renewed        {:>6}", server.counts().tokens_issued);
    println!("  with another's token  {crossed:>6}");
    let good = crossed == 0 && failed == 0 && done == TASKS * REQUESTS;
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
