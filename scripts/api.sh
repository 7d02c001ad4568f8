#!/usr/bin/env bash
# The public API against the committed listing, and a build with the oldest versions of what Cargo.toml allows. Both need nightly.
#
#   scripts/api.sh            compares
#   scripts/api.sh --update   writes docs/public-api.txt: for a change that is meant, with a line in CHANGELOG.md
set -euo pipefail
cd "$(dirname "$0")/.."

if ! cargo +nightly --version >/dev/null 2>&1; then
  echo "api: skipped, there is no nightly toolchain"
  exit 0
fi

if cargo public-api --version >/dev/null 2>&1; then
  listing=docs/public-api.txt now=$(mktemp)
  trap 'rm -f "$now"' EXIT
  # Without what the compiler or a derive adds.
  CARGO_TARGET_DIR=target/public-api cargo +nightly public-api -sss --all-features --color never >"$now"
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

# In a copy, so that Cargo.lock stays; without the development dependencies, which nobody's build has.
copy=$PWD/target/minimal-versions
rm -rf "$copy/crate"
mkdir -p "$copy/crate"
git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents -t "$copy/crate"
cd "$copy/crate"
export CARGO_TARGET_DIR=$copy/target
sed -i '/^\[dev-dependencies\]/,/^\[\[/{/^\[\[/!d}' Cargo.toml
cp Cargo.toml whole.toml
oldest() {
  rm -f Cargo.lock
  cargo +nightly update --quiet -Z direct-minimal-versions
  cargo check --quiet --lib "$@"
}
# The redis crate wants a newer tokio than the rest, and a feature cannot say so.
sed -i -e '/^redis = {/d' -e 's/^redis = \[.*/redis = ["dep:rustls"]/' Cargo.toml
others=$(cargo metadata --no-deps --format-version 1 | python3 -c '
import json, sys
print(*(name for name in json.load(sys.stdin)["packages"][0]["features"] if name not in ("default", "redis")), sep=",")')
oldest --features "$others"
echo "api: builds with the oldest direct dependencies"
sed 's/^tokio = { version = "1.[0-9]*"/tokio = { version = "1.51"/' whole.toml >Cargo.toml
oldest --all-features
echo "api: with redis too"
