#!/usr/bin/env bash
# Prints the table of what a request costs. The package benches/micro measures it: in the crate itself the dev-dependencies would switch
# on features of tokio and reqwest that users do not have.
set -euo pipefail
cd "$(dirname "$0")/.."
exec cargo run --quiet --release --locked --manifest-path benches/micro/Cargo.toml --bin table -- "$@"
