#!/usr/bin/env bash
# Runs all tests under LeakSanitizer. A reference cycle (of a session, its refresher, a refresh, a waiter) fails its test file.
# The crate forbids unsafe code, so leaks are all that a sanitizer can find. Needs nightly, and takes some minutes.
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
# An explicit target keeps the sanitizer out of build scripts and macros.
RUSTFLAGS="-Zsanitizer=leak" CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target}/leaks \
  cargo +nightly test --quiet --locked --target "$target" --no-fail-fast "$@"
