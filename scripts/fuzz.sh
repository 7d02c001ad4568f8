#!/bin/sh
# Fuzzes all targets, or the named ones, for some seconds each (default 20), and prints the number of executions.
#   scripts/fuzz.sh [seconds] [target...]
set -u
cd "$(dirname "$0")/.." || exit 1

seconds=${1:-20}
[ $# -gt 0 ] && shift

if ! cargo +nightly --version >/dev/null 2>&1; then
    echo "fuzz: skipped, there is no nightly toolchain"
    exit 0
fi
if ! cargo +nightly fuzz --version >/dev/null 2>&1; then
    echo "fuzz: skipped, cargo-fuzz is not installed"
    exit 0
fi

target_dir=${CARGO_TARGET_DIR:-$PWD/fuzz/target}
targets=${*:-$(cargo +nightly fuzz list)}
# The crate forbids unsafe code, so more executions find more than a sanitizer would.
cargo +nightly fuzz build --sanitizer none || exit 1

# What earlier runs have found worth keeping, reduced with `-merge=1`.
mkdir -p "$target_dir/corpus"
tar -xzf fuzz/corpus.tar.gz -C "$target_dir/corpus" || exit 1

failed=0
for target in $targets; do
    corpus="$target_dir/corpus/$target"
    log="$target_dir/fuzz-$target.log"
    mkdir -p "$corpus"
    # New inputs go into the first directory. The seeds are only read.
    if cargo +nightly fuzz run --sanitizer none "$target" "$corpus" "fuzz/seeds/$target" -- \
        -max_total_time="$seconds" -max_len=20000 -timeout=60 -rss_limit_mb=512 -print_final_stats=1 >"$log" 2>&1; then
        echo "fuzz: $target: $(sed -n 's/^stat::number_of_executed_units: *//p' "$log") executions in $seconds s, no finding"
    else
        echo "fuzz: $target: finding, see $log"
        tail -n 30 "$log"
        failed=1
    fi
done
exit $failed
