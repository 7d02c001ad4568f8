#!/usr/bin/env bash
# Makes the generated client, then builds every adapter and runs it against testing::AuthServer.
set -euo pipefail
cd "$(dirname "$0")"
if ! command -v java >/dev/null 2>&1; then
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq
  apt-get install -qq -y --no-install-recommends openjdk-17-jre-headless
fi
./generate.sh
cargo run --quiet --locked --manifest-path openapi/Cargo.toml
cargo run --quiet --locked
