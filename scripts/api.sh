#!/usr/bin/env bash
# Compares the public API with the committed listing, and builds with the oldest dependencies that Cargo.toml allows. Both need nightly.
#
#   scripts/api.sh            compares
#   scripts/api.sh --update   writes docs/public-api.txt, for an intended change (with a line in CHANGELOG.md)
#   scripts/api.sh --oldest   only the build with the oldest versions, with redis too
set -euo pipefail
cd "$(dirname "$0")/.."

if ! cargo +nightly --version >/dev/null 2>&1; then
  echo "api: skipped, there is no nightly toolchain"
  exit 0
fi

target=${CARGO_TARGET_DIR:-$PWD/target}
if [ "${1:-}" = --oldest ]; then
  :
elif cargo public-api --version >/dev/null 2>&1; then
  listing=docs/public-api.txt now=$(mktemp)
  trap 'rm -f "$now"' EXIT
  # Includes derives and auto traits, so that a lost Clone or Send shows. Omits the blanket impls that every type has.
  CARGO_TARGET_DIR=$target/public-api cargo +nightly public-api -s --all-features --color never >"$now"
  if [ "${1:-}" = --update ]; then
    cp "$now" "$listing"
    echo "api: $listing has $(wc -l <"$listing") items"
  elif diff -u "$listing" "$now"; then
    echo "api: as listed, $(wc -l <"$listing") items"
  else
    echo "api: differs from $listing; if that is meant: scripts/api.sh --update"
    exit 1
  fi
else
  echo "api: the listing is skipped, cargo-public-api is not installed (cargo install --locked cargo-public-api@0.52.0)"
fi

# Builds a copy, so that Cargo.lock stays unchanged, and without the development dependencies, which users do not build.
copy=$PWD/target/minimal-versions
rm -rf "$copy"
mkdir -p "$copy"
git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents -t "$copy"
cd "$copy"
export CARGO_TARGET_DIR=$target/minimal-versions
sed -i '/^\[dev-dependencies\]/,/^\[\[/{/^\[\[/!d}' Cargo.toml
cp Cargo.toml whole.toml
oldest() {
  rm -f Cargo.lock
  cargo +nightly update --quiet -Z direct-minimal-versions
  cargo check --quiet --lib "$@"
}
# The redis crate requires a newer tokio than the rest, and a feature cannot express that.
sed -i -e '/^redis = {/d' -e 's/^redis = \[.*/redis = ["dep:rustls"]/' Cargo.toml
others=$(cargo metadata --no-deps --format-version 1 | python3 -c '
import json, sys
print(*(name for name in json.load(sys.stdin)["packages"][0]["features"] if name not in ("default", "redis")), sep=",")')
oldest --features "$others"
echo "api: builds with the oldest direct dependencies"
[ "${1:-}" = --oldest ] || exit 0
sed 's/^tokio = { version = "1.[0-9]*"/tokio = { version = "1.51"/' whole.toml >Cargo.toml
oldest --all-features
echo "api: with redis too"
