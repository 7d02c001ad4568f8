#!/usr/bin/env bash
# Mutation testing: changes src in one place at a time and checks whether a test fails. Takes hours.
#
#   scripts/mutants.sh                   all of it; the result goes to docs/mutants.md
#   scripts/mutants.sh policy            only this folder; the result is printed
#   scripts/mutants.sh session expiry    only src/session/**/expiry.rs
#   scripts/mutants.sh root error        only src/error.rs
#   scripts/mutants.sh --sample          half the mutants of src/policy/origin.rs, for CI; a survivor fails the step
#
# Each mutant runs against the tests of its folder first, and a survivor then against all others. All tests must pass beforehand.
# Environment: JOBS is the number of parallel mutants (default 1). IN_PLACE=1 changes the files of this checkout one at a time and restores
# them. That saves building the dependencies for each folder, but the checkout must not be used in the meantime.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! cargo mutants --version >/dev/null 2>&1; then
  echo "mutants: skipped, cargo-mutants is not installed (cargo install --locked cargo-mutants@27.1.0)"
  exit 0
fi

# `lib` stands for the unit tests of the folder. Other names are modules of tests/all.
declare -A about=(
  [policy]="lib"
  [chain]="chain replay rejection rejections capture subsets scope"
  [session]="refresh rejections session expiry session_store scope"
  [oauth]="lib"
  [root]="lib"
  [token]="lib"
  [time]="lib"
  [dpop]="lib"
  [store]="store session_store"
  [heartbeat]="heartbeat"
  [testing]="auth_server"
)

# No debug information, and incremental builds: each mutant differs from the previous one in one function.
export CARGO_PROFILE_DEV_DEBUG=0 CARGO_PROFILE_TEST_DEBUG=0 RUST_BACKTRACE=0 CARGO_INCREMENTAL=1
out=target/mutants

mutate() { # seconds that the tests may take, arguments of cargo mutants
  local limit=$1 status=0 place=(--jobs "${JOBS:-1}")
  shift
  [ -z "${IN_PLACE:-}" ] || place=(--in-place)
  cargo mutants --no-shuffle --colors never --baseline skip --timeout "$limit" --build-timeout 1800 "${place[@]}" "$@" || status=$?
  # Exit code 2 is a survivor and 3 a timeout. Both are results.
  case $status in 0 | 2 | 3) ;; *) exit "$status" ;; esac
}

if [ "${1:-}" = --sample ]; then
  rm -rf "$out/sample"
  mkdir -p "$out/sample"
  mutate 60 --file src/policy/origin.rs --shard 0/2 --output "$out/sample" --cargo-arg=--lib -- policy::
  survivors=$out/sample/mutants.out/missed.txt
  echo "mutants: $(wc -l <"$out/sample/mutants.out/caught.txt") caught, $(wc -l <"$survivors") survived"
  [ ! -s "$survivors" ] || { cat "$survivors"; exit 1; }
  exit 0
fi

folders=(policy chain session oauth root token heartbeat store testing)
for folder in time dpop; do [ ! -d "src/$folder" ] || folders+=("$folder"); done
[ $# -eq 0 ] || folders=("$1")
for folder in "${folders[@]}"; do
  if [ "$folder" = root ]; then files=$(echo src/*.rs); else files=$(find "src/$folder" -name "${2:-*}.rs" -not -path "*/tests*" | sort); fi
  if [ "${about[$folder]}" = lib ]; then
    tests=(--cargo-arg=--lib)
    [ "$folder" = root ] || tests+=(-- "$folder::")
  else
    mapfile -t modules < <(printf '%s::\n' ${about[$folder]})
    tests=(--cargo-arg=--test=all -- "${modules[@]}")
  fi
  for file in $files; do
    name=$(basename "$file" .rs)
    [ "${2:-$name}" = "$name" ] || continue
    # Keeps files of the same name in two folders below this one apart.
    one=$out/$folder/$(sed -e "s|^src/||" -e 's|/|-|g' -e 's|\.rs$||' <<<"$file")
    rm -rf "$one"
    mkdir -p "$one"
    mutate 60 --file "$file" --output "$one" "${tests[@]}"
    if [ -s "$one/mutants.out/missed.txt" ]; then
      # All tests take minutes on a busy machine. With a shorter time limit, each survivor would count as caught.
      mutate 900 --file "$file" --output "$one" --iterate --cargo-arg=--lib --cargo-arg=--tests
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
        # The result of the second run takes precedence.
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
