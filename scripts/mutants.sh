#!/usr/bin/env bash
# Mutation testing: changes src/{session,chain,oauth,policy} in one place at a time and asks whether a test notices. Takes hours.
#
#   scripts/mutants.sh                       all of it; the result goes to docs/mutants.md
#   scripts/mutants.sh src/policy/*.rs ...   only these files; the result is printed
#
# Environment: JOBS, how many mutants at once; default 1.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! cargo mutants --version >/dev/null 2>&1; then
  echo "mutants: skipped, cargo-mutants is not installed (cargo install --locked cargo-mutants@27.1.0)"
  exit 0
fi

# Not those that need a server, that test the test server, or that are about stores and the worker.
skipped=" auth_server fleet fleet_redis heartbeat memory redis store "
arguments=(--cargo-test-arg=--lib)
for file in tests/*.rs; do
  name=$(basename "$file" .rs)
  [[ $skipped == *" $name "* ]] || arguments+=("--cargo-test-arg=--test=$name")
done
for file in "$@"; do arguments+=(--file "$file"); done

# Nobody debugs a mutant.
export CARGO_PROFILE_DEV_DEBUG=0 CARGO_PROFILE_TEST_DEBUG=0 RUST_BACKTRACE=0
status=0
cargo mutants --no-shuffle --colors never --jobs "${JOBS:-1}" --output . "${arguments[@]}" || status=$?
# 2 is a survivor, 3 a timeout: both are results.
[ "$status" -le 3 ] && [ "$status" -ne 1 ] || exit "$status"

python3 - "$#" <<'PYTHON'
import collections, datetime, json, pathlib, subprocess, sys

outcomes = json.loads(pathlib.Path("mutants.out/outcomes.json").read_text())
mutants = [one for one in outcomes["outcomes"] if one["scenario"] != "Baseline"]
counts = collections.Counter(one["summary"] for one in mutants)
missed = sorted(one["scenario"]["Mutant"]["name"] for one in mutants if one["summary"] == "MissedMutant")
commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
lines = [
    f"Run on {datetime.date.today()} at {commit}, cargo-mutants {outcomes['cargo_mutants_version']}: {len(mutants)} mutants, "
    f"{counts['CaughtMutant']} caught, {counts['Timeout']} caught by the time limit, {counts['Unviable']} that do not compile, "
    f"{len(missed)} survived.",
    "",
    *(f"- `{name}`" for name in missed),
]
print("\n".join(lines))
if sys.argv[1] == "0":
    page = pathlib.Path("docs/mutants.md")
    begin, end = "<!-- last run -->\n", "<!-- end of last run -->\n"
    before, rest = page.read_text().split(begin)
    page.write_text(before + begin + "\n" + "\n".join(lines).rstrip() + "\n\n" + end + rest.split(end)[1])
sys.exit(1 if missed else 0)
PYTHON
