//! `cargo bench` prints the table of what a request costs.
//!
//! It is measured in a package of its own, `benches/micro`: here, the dev-dependencies would switch
//! on features of tokio and reqwest that users do not have.

use std::{
    env,
    path::Path,
    process::{Command, ExitCode},
};

fn main() -> ExitCode {
    // `cargo test --all-targets` runs benches too, without this.
    if !env::args().any(|argument| argument == "--bench") {
        return ExitCode::SUCCESS;
    }
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/micro/Cargo.toml");
    let table = Command::new(env!("CARGO"))
        .args(["run", "--quiet", "--release", "--bin", "table", "--manifest-path"])
        .arg(manifest)
        .status();
    match table {
        Ok(status) if status.success() => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}
