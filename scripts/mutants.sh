#!/usr/bin/env bash
# Mutation testing: changes src in one place at a time and asks whether a test notices. Takes hours.
#
#   scripts/mutants.sh                   all of it; the result goes to docs/mutants.md
#   scripts/mutants.sh policy            only this folder; the result is printed
#   scripts/mutants.sh session expiry    only src/session/expiry.rs
#   scripts/mutants.sh root error        only src/error.rs
#
# First with the tests that are about the file; who survives that meets all the others. All tests have to pass before.
# Environment: JOBS, how many mutants at once; default 1. IN_PLACE=1, to change the files of this checkout, one at a time, and put them
# back: spares building the dependencies anew for each folder, in a checkout in which nobody works meanwhile.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! cargo mutants --version >/dev/null 2>&1; then
  echo "mutants: skipped, cargo-mutants is not installed (cargo install --locked cargo-mutants@27.1.0)"
  exit 0
fi

# `lib` are the unit tests of the folder.
declare -A about=(
  [policy]="lib"
  [chain]="whole replay refusals"
  [chain/authorize]="refusals subsets"
  [chain/capture]="capture subsets"
  [chain/mod]="whole replay refusals scope"
  [session]="flight session"
  [session/boarding]="flight refusals session"
  [session/builder]="session expiry session_store"
  [session/cell]="flight session runtimes"
  [session/expiry]="lib"
  [session/flight]="flight session_store"
  [session/memory]="session_store session_store_faults"
  [session/publish]="flight session session_store"
  [session/saver]="session_store session_store_faults"
  [session/scope]="scope"
  [session/state]="lib"
  [session/vault]="session_store session_store_faults"
  [oauth]="lib"
  [root]="lib"
  [root/event]="session secrets"
  [root/telemetry]="metrics"
  [token]="lib"
  [store]="lib"
  [store/file]="store"
  [store/disk]="lib store"
  [store/memory]="store"
  [store/mod]="store session_store"
  [store/redis]="redis"
  [store/link]="redis"
  [store/lock]="redis"
  [store/script]="redis"
  [heartbeat]="heartbeat"
  [heartbeat/mod]="heartbeat metrics"
  [heartbeat/schedule]="lib"
  [testing]="auth_server"
  [testing/grants]="lib auth_server"
  [testing/jwt]="lib auth_server"
)
declare -A features=(
  # HTTP/2 is what tests/tls.rs and src/oauth/tests/http2.rs are about. With TLS, each client that a test makes takes its time.
  [oauth]="http2,rustls"
  [store]="redis"
  [root]="metrics"
  [heartbeat]="metrics"
)
# Those that need a server, that test the test server, or that take long and are about something else. What only they hold has to meet
# them first.
skipped=" auth_server fleet fleet_redis memory metrics redis scale tls "

# Nobody debugs a mutant.
export CARGO_PROFILE_DEV_DEBUG=0 CARGO_PROFILE_TEST_DEBUG=0 RUST_BACKTRACE=0

run() { # folder, file, test names, seconds that they may take, further arguments
  local folder=$1 file=$2 names=$3 limit=$4 status=0 name arguments=() filter=()
  shift 4
  [ -z "${features[$folder]:-}" ] || arguments+=("--features=${features[$folder]}")
  if [ -n "${IN_PLACE:-}" ]; then arguments+=(--in-place); else arguments+=(--jobs "${JOBS:-1}"); fi
  for name in $names; do
    if [ "$name" = lib ]; then arguments+=(--cargo-arg=--lib); else arguments+=("--cargo-arg=--test=$name"); fi
  done
  [ "$names" != lib ] || [ "$folder" = root ] || filter=(-- "$folder::")
  cargo mutants --no-shuffle --colors never --baseline skip --timeout "$limit" --build-timeout 1800 --file "$file" \
    --output "target/mutants/$folder/$(basename "$file" .rs)" "${arguments[@]}" "$@" "${filter[@]}" || status=$?
  # 2 is a survivor, 3 a timeout: both are results.
  case $status in 0 | 2 | 3) ;; *) exit "$status" ;; esac
}

others="lib"
for file in tests/*.rs; do
  name=$(basename "$file" .rs)
  [[ $skipped == *" $name "* ]] || others+=" $name"
done
folders=(policy chain session oauth root token heartbeat store testing)
[ $# -eq 0 ] || folders=("$1")
for folder in "${folders[@]}"; do
  if [ "$folder" = root ]; then files=$(echo src/*.rs); else files=$(find "src/$folder" -name "${2:-*}.rs" -not -path "*/tests*" | sort); fi
  for file in $files; do
    name=$(basename "$file" .rs)
    [ "${2:-$name}" = "$name" ] || continue
    rm -rf "target/mutants/$folder/$name"
    mkdir -p "target/mutants/$folder/$name"
    run "$folder" "$file" "${about[$folder/$name]:-${about[$folder]}}" 60
    if [ -s "target/mutants/$folder/$name/mutants.out/missed.txt" ]; then
      # All of them take minutes on a busy machine: less, and each survivor would count as caught by the time limit.
      run "$folder" "$file" "$others" 900 --iterate
    fi
  done
done

python3 - $# "${folders[@]}" <<'PYTHON'
import collections, datetime, json, pathlib, subprocess, sys

def outcomes(path):
    if not path.exists():
        return {}
    return {one["scenario"]["Mutant"]["name"]: one["summary"]
            for one in json.loads(path.read_text())["outcomes"] if one["scenario"] != "Baseline"}

ask = lambda *command: subprocess.run(command, capture_output=True, text=True).stdout.strip()
lines = [
    f"Run on {datetime.date.today()} at {ask('git', 'rev-parse', '--short', 'HEAD')} with {ask('cargo', 'mutants', '--version')}.",
    "",
    "| folder | mutants | caught | caught by the time limit | do not compile | survived |",
    "| --- | ---: | ---: | ---: | ---: | ---: |",
]
missed = []
for folder in sys.argv[2:]:
    summaries = {}
    for out in pathlib.Path("target/mutants", folder).iterdir():
        # The second run's word goes before the first's.
        summaries |= outcomes(out / "mutants.out.old/outcomes.json") | outcomes(out / "mutants.out/outcomes.json")
    counts = collections.Counter(summaries.values())
    columns = [len(summaries)] + [counts[summary] for summary in ("CaughtMutant", "Timeout", "Unviable", "MissedMutant")]
    lines.append(f"| `{'src' if folder == 'root' else f'src/{folder}'}` | " + " | ".join(map(str, columns)) + " |")
    missed += sorted(name for name, summary in summaries.items() if summary == "MissedMutant")
lines += ["", "Survived:" if missed else "None survived.", "", *(f"- `{name}`" for name in missed)]
print("\n".join(lines))
if sys.argv[1] == "0":
    page = pathlib.Path("docs/mutants.md")
    begin, end = "<!-- last run -->\n", "<!-- end of last run -->\n"
    before, rest = page.read_text().split(begin)
    page.write_text(before + begin + "\n" + "\n".join(lines).rstrip() + "\n\n" + end + rest.split(end)[1])
sys.exit(1 if missed else 0)
PYTHON
