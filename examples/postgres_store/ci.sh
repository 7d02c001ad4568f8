#!/usr/bin/env bash
# Checks both stores. Needs PostgreSQL's programs, and installs them if they are missing (as root on Debian). It starts its own server.
set -euo pipefail
cd "$(dirname "$0")"
if ! ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1; then
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq
  apt-get install -qq -y --no-install-recommends postgresql
fi
cargo fmt --check
cargo clippy --quiet --locked --all-targets -- -D warnings
cargo run --quiet --locked
