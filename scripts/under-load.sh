#!/usr/bin/env bash
# Runs the tests several times (default 10) while a busy loop occupies each core.
#   scripts/under-load.sh [rounds]
set -euo pipefail
cd "$(dirname "$0")/.."

rounds=${1:-10}
cargo test --locked --no-run

busy=()
trap 'kill "${busy[@]}" 2>/dev/null' EXIT
for _ in $(seq "$(nproc)"); do
  while :; do :; done &
  busy+=($!)
done

failed=0
for round in $(seq "$rounds"); do
  echo "== round $round"
  cargo test --locked --quiet --no-fail-fast || failed=$((failed + 1))
done
echo "$failed of $rounds rounds failed"
[ "$failed" -eq 0 ]
