#!/usr/bin/env bash
# Line coverage of src by all tests. Names the uncovered lines of files under 95 % in session, chain, oauth and policy.
#
# Only LLVM tools of the same major version read the profiles of rustc: those of the toolchain (llvm-tools), or Debian's llvm-NN.
#   scripts/coverage.sh                               all tests
#   scripts/coverage.sh [argument of cargo test...]   some of them: --lib
set -euo pipefail
cd "$(dirname "$0")/.."

major=$(rustc -vV | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p')
bundled=$(rustc --print sysroot)/lib/rustlib/$(rustc -vV | sed -n 's/^host: //p')/bin
tool() {
  local found
  for found in "$bundled/$1" "/usr/lib/llvm-$major/bin/$1" "$1-$major"; do
    command -v "$found" 2>/dev/null && return
  done
}
profdata=$(tool llvm-profdata) cov=$(tool llvm-cov)
if [ -z "$profdata" ] || [ -z "$cov" ]; then
  echo "coverage: skipped, there is no llvm-profdata of LLVM $major (rustup component add llvm-tools, or apt-get install llvm-$major)"
  exit 0
fi

target=${CARGO_TARGET_DIR:-$PWD/target}
out=$target/coverage
mkdir -p "$out"
rm -f "$out"/*.profraw
# Instruments only the crate. With RUSTFLAGS, all dependencies would be compiled again.
export RUSTC_WORKSPACE_WRAPPER=$PWD/scripts/instrument.sh LLVM_PROFILE_FILE=$out/%p-%m.profraw
export CARGO_PROFILE_DEV_DEBUG=0 CARGO_PROFILE_TEST_DEBUG=0
[ $# -gt 0 ] || set -- --lib --tests
cargo test --quiet "$@" --no-run --message-format=json 2>/dev/null |
  python3 -c '
import json, sys
for line in sys.stdin:
    executable = json.loads(line).get("executable")
    if executable: print(executable)' >"$out/objects"
rm -f "$out"/*.profraw
failed=0
cargo test --quiet --no-fail-fast "$@" || failed=1
"$profdata" merge -sparse "$out"/*.profraw -o "$out/all.profdata"
mapfile -t objects < <(sed 's/^/-object=/' "$out/objects")
"$cov" export -format=lcov -instr-profile="$out/all.profdata" "${objects[@]}" -sources src >"$out/lcov.info"

python3 - "$out/lcov.info" <<'PYTHON'
import collections, itertools, pathlib, sys

root = pathlib.Path.cwd()
files, path = collections.defaultdict(dict), None
for line in open(sys.argv[1]):
    if line.startswith("SF:"):
        path = pathlib.Path(line[3:].strip()).relative_to(root)
    elif line.startswith("DA:"):
        number, count = map(int, line[3:].split(",")[:2])
        files[path][number] = max(count, files[path].get(number, 0))

def measured(path, lines):
    """Without the tests in the file, which cover themselves."""
    text = path.read_text().splitlines()
    end = next((n for n, (a, b) in enumerate(itertools.pairwise(text), 1) if a == "#[cfg(test)]" and b.startswith("mod tests {")), len(text) + 1)
    return {number: count for number, count in lines.items() if number < end}

def share(lines):
    return 100 * sum(count > 0 for count in lines.values()) / len(lines) if lines else 100.0

def ranges(numbers):
    for _, group in itertools.groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
        group = [number for _, number in group]
        yield str(group[0]) if len(group) == 1 else f"{group[0]}-{group[-1]}"

files = {path: measured(path, lines) for path, lines in sorted(files.items()) if "tests" not in path.parts}
folders = collections.defaultdict(dict)
for path, lines in files.items():
    folder = path.parts[1] if len(path.parts) > 2 else "(top)"
    folders[folder].update({(path, number): count for number, count in lines.items()})
for folder, lines in sorted(folders.items()):
    print(f"{folder:10} {share(lines):5.1f} %  of {len(lines)} lines")
everything = {key: count for lines in folders.values() for key, count in lines.items()}
print(f"{'all':10} {share(everything):5.1f} %  of {len(everything)} lines")
for path, lines in files.items():
    if path.parts[1] in ("session", "chain", "oauth", "policy") and share(lines) < 95:
        print(f"{path}: {share(lines):.1f} %, not covered: {', '.join(ranges(sorted(n for n, c in lines.items() if c == 0)))}")
PYTHON
exit $failed
