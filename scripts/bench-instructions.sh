#!/usr/bin/env bash
# Counts the instructions of a request through the chain and fails if a workload takes over 5 % more than
# benches/instructions.toml says. `--accept` rewrites that file instead.
#
# Without valgrind or gungraun-runner the script reports that and passes, except in CI.
set -euo pipefail
exec "$(dirname "$0")/bench.sh" "${1:---check}"
