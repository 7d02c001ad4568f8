#!/usr/bin/env bash
# All tests under LeakSanitizer: what keeps itself alive in a circle (a session, its refresher, a flight, a waiter) fails its test file.
# The crate forbids unsafe code, so that leaks are what a sanitizer can find in it. Needs nightly, and takes some minutes.
#
#   scripts/leaks.sh [argument of cargo test...]
set -euo pipefail
cd "$(dirname "$0")/.."

if ! cargo +nightly --version >/dev/null 2>&1; then
  echo "leaks: skipped, there is no nightly toolchain"
  exit 0
fi
target=$(rustc -vV | sed -n 's/^host: //p')
[ $# -gt 0 ] || set -- --lib --tests
# A target is named so that build scripts and macros are built without it.
RUSTFLAGS="-Zsanitizer=leak" CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target}/leaks \
  cargo +nightly test --quiet --locked --target "$target" --no-fail-fast "$@"
