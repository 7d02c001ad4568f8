#!/usr/bin/env bash
# Prints the table of the cost of a request. The package benches/micro measures it, because in the crate itself the dev-dependencies would
# enable features of tokio and reqwest that users do not have.
set -euo pipefail
cd "$(dirname "$0")/.."
exec cargo run --quiet --release --locked --manifest-path benches/micro/Cargo.toml --bin table -- "$@"
