#!/usr/bin/env bash
# Counts the instructions of a request through the chain and fails if a workload takes over 5 % more than
# benches/instructions.toml says. `--accept` rewrites that file instead.
#
# Without valgrind or gungraun-runner the script reports that and passes, except in CI.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/bench.sh "${1:---check}"
# A DPoP proof against a signature. A build of its own: the rest is measured without the feature.
cargo bench --quiet --locked --manifest-path benches/micro/Cargo.toml --features dpop --bench proof
