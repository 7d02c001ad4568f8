#!/usr/bin/env bash
# Counts the instructions of a request through the chain and fails where a workload takes over 5 % more than
# benches/instructions.toml says. `--accept` writes that file anew instead.
#
# Without valgrind or gungraun-runner it says so and passes, except in CI.
set -euo pipefail
exec "$(dirname "$0")/bench.sh" "${1:---check}"
