#!/usr/bin/env python3
"""Breaks each promise of docs/contract.md on purpose, and asks whether a test notices.

    scripts/promise-mutants.py                   each mutant of tests/mutants.toml against the test that is to notice it
    scripts/promise-mutants.py --only ID...      these alone
    scripts/promise-mutants.py --sample N        N of them, others each day
    scripts/promise-mutants.py --whole           each against all tests of the unit tests and of tests/all; takes hours
    scripts/promise-mutants.py --check           runs nothing: whether each mutant still fits the code, each promise has one, and
                                                 docs/mutants.md has their table
    scripts/promise-mutants.py --write           writes that table

Arguments after `--` go to cargo instead of `--all-features`. --jobs N: how many tests at once; default 1. --keep: leaves the patched copy.

All mutants are compiled into one build of a copy, each behind a switch that an environment variable turns on, so that each costs the run
of a test and no build. A mutant that its own test does not notice meets all others. Exit status 1: one survived, or its test did not
notice it.
"""

import argparse
import collections
import concurrent.futures
import datetime
import hashlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib

import contract

ROOT = contract.ROOT
DATA = ROOT / "tests/mutants.toml"
PAGE = ROOT / "docs/mutants.md"
BEGIN, END = "<!-- promises -->\n", "<!-- end of promises -->\n"
VARIABLE = "REAUTH_MUTANT"
SWITCH = f'''//! Made by scripts/promise-mutants.py.

/// Whether this mutant is on.
pub(crate) fn on(id: &str) -> bool {{
    static ON: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    ON.get_or_init(|| std::env::var("{VARIABLE}").ok()).as_deref() == Some(id)
}}
'''
# Their tests need a server that is there: a mutant whose test is skipped is told, and not counted as a survivor.
MIMIC = ("redis", "interop")
SECONDS = 120
SECONDS_FOR_ALL = 1500


class Edit:
    """One place of the code that a mutant changes."""

    def __init__(self, mutant, data):
        self.mutant, self.file, self.old = mutant, data.get("file", mutant["file"]), data["old"].strip("\n")
        self.bad, self.new = data.get("bad"), data.get("new")

    def text(self):
        switch = f'crate::mutant::on("{self.mutant["id"]}")'
        if self.new is not None:
            return re.sub(r"\bON\b", switch, self.new.strip("\n"))
        return f"(if {switch} {{ {self.bad.strip()} }} else {{ {self.old} }})"


def read():
    """The mutants, their edits, and why some promises have none."""
    data = tomllib.loads(DATA.read_text())
    mutants, edits = data["mutant"], []
    for mutant in mutants:
        edits += [Edit(mutant, each) for each in [mutant, *mutant.get("also", [])]]
    return mutants, edits, data.get("without", [])


def places(name, found):
    wanted = tuple(name.split("::"))
    return [key for key in found if key[-len(wanted):] == wanted]


def where(old, text):
    """Where this text stands, and is not the end or the beginning of a longer name."""
    start, end = r"(?<!\w)" if old[0].isidentifier() else "", r"(?!\w)" if old[-1].isidentifier() else ""
    return [match.start() for match in re.finditer(start + re.escape(old) + end, text)]


def patched(edits, root):
    """The text of each changed file, and what does not fit."""
    wrong, files = [], collections.defaultdict(lambda: collections.defaultdict(list))
    for edit in edits:
        path = root / edit.file
        count = len(where(edit.old, path.read_text())) if path.exists() else 0
        if count == 1:
            files[edit.file][edit.old].append(edit)
        else:
            wrong.append(f"{edit.mutant['id']}: its text is {count} times in {edit.file}: {edit.old.splitlines()[0]}")
    texts = {}
    for file, by_text in files.items():
        text, end = (root / file).read_text(), 0
        out = []
        for at, old in sorted((where(old, text)[0], old) for old in by_text):
            of_it = by_text[old]
            if at < end:
                wrong.append(f"{of_it[0].mutant['id']}: its text overlaps another mutant's in {file}")
                continue
            if len(of_it) > 1 and any(edit.new is not None for edit in of_it):
                wrong.append(f"{of_it[-1].mutant['id']}: another mutant has the same text in {file}")
                continue
            out.append(text[end:at])
            if len(of_it) == 1:
                out.append(of_it[0].text())
            else:
                out.append("(")
                for edit in of_it:
                    out.append(f'if crate::mutant::on("{edit.mutant["id"]}") {{ {edit.bad.strip()} }} else ')
                out.append(f"{{ {old} }})")
            end = at + len(old)
        texts[file] = "".join(out) + text[end:]
    return texts, wrong


def check(mutants, edits, without):
    wrong = patched(edits, ROOT)[1]
    found = contract.tests()
    numbers = [number for number, _ in contract.promises(contract.PAGE.read_text()) if number[0].isdigit()]
    covered = collections.Counter()
    seen = set()
    for mutant in mutants:
        if mutant["id"] in seen:
            wrong.append(f"{mutant['id']} stands twice")
        seen.add(mutant["id"])
        for number in mutant["promise"]:
            covered[number] += 1
            if number not in numbers:
                wrong.append(f"{mutant['id']} names {number}, which is no promise")
        for name in mutant["killed_by"]:
            if len(places(name, found)) != 1:
                wrong.append(f"{mutant['id']}: {name} is {len(places(name, found)) or 'no'} test")
        if not mutant["killed_by"] and not mutant.get("survives"):
            wrong.append(f"{mutant['id']} has neither a test nor a reason")
    covered.update(each["promise"] for each in without)
    wrong += [f"{number} has no mutant in {DATA.relative_to(ROOT)}" for number in numbers if not covered[number]]
    page = PAGE.read_text()
    if BEGIN not in page or page.split(BEGIN)[1].split(END)[0] != table(mutants, without):
        wrong.append("docs/mutants.md has another table: scripts/promise-mutants.py --write")
    print("\n".join(wrong) or f"promise mutants: {len(mutants)}, for {len(numbers)} promises")
    return bool(wrong)


def by_number(numbers):
    return [tuple(map(int, number.split("."))) for number in numbers]


def escaped(text):
    """As it stands in a cell of a table."""
    return text.replace("|", "\\|")


def table(mutants, without):
    lines = ["", "| promise | mutant | what is broken | noticed by |", "| --- | --- | --- | --- |"]
    killed = [mutant for mutant in mutants if not mutant.get("survives")]
    for mutant in sorted(killed, key=lambda mutant: by_number(mutant["promise"])):
        tests = ", ".join(f"`{name}`" for name in mutant["killed_by"])
        lines.append(f"| {', '.join(mutant['promise'])} | `{mutant['id']}` | {escaped(mutant['slip'])} | {tests} |")
    survivors = [mutant for mutant in mutants if mutant.get("survives")]
    if survivors or without:
        lines += ["", "Not noticed by a test, or not broken by a mutant:", "", "| promise | what is broken | why no test notices |", "| --- | --- | --- |"]
        lines += [f"| {', '.join(mutant['promise'])} | {escaped(mutant['slip'])} | {escaped(mutant['survives'])} |" for mutant in survivors]
        lines += [f"| {each['promise']} | (no mutant) | {each['reason']} |" for each in without]
    return "\n".join(lines) + "\n\n"


def copy(edits, tree):
    """The tracked files, with all mutants in them.

    Times of files stay, so that cargo does not compile the tests again. `src/lib.rs` is new at each run: cargo takes packages at the same
    place of two workspaces that share a target folder for one, and would use the library without mutants if that was built later.
    """
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    for file in filter(None, files):
        source, target = ROOT / file, tree / file
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
    texts, wrong = patched(edits, ROOT)
    if wrong:
        sys.exit("\n".join(wrong))
    texts["src/lib.rs"] = texts.get("src/lib.rs", (ROOT / "src/lib.rs").read_text()) + "\nmod mutant;\n"
    texts["src/mutant.rs"] = SWITCH
    for file, text in texts.items():
        (tree / file).write_text(text)


def build(tree, arguments, binaries):
    """The test programs by their name."""
    command = ["cargo", "test", "--no-run", "--message-format=json", *arguments]
    for name in sorted(binaries):
        command += ["--lib"] if name == "lib" else ["--test", name]
    environment = os.environ | {"CARGO_TARGET_DIR": os.environ.get("CARGO_TARGET_DIR", str(ROOT / "target"))}
    built = subprocess.run(command, cwd=tree, env=environment, stdout=subprocess.PIPE, text=True)
    messages = [json.loads(line) for line in built.stdout.splitlines() if line.startswith("{")]
    if built.returncode:
        # Nobody reads what a mutant is warned of.
        errors = [message["message"] for message in messages if message["reason"] == "compiler-message"]
        print(*(error["rendered"] for error in errors if error["level"] == "error"), sep="\n")
        sys.exit("promise mutants: the patched copy does not compile")
    programs = {}
    for message in messages:
        target = message.get("target", {})
        if message.get("executable") and message.get("profile", {}).get("test"):
            programs["lib" if "lib" in target["kind"] else target["name"]] = message["executable"]
    return programs


def run(program, arguments, tree, mutant, seconds):
    """The output of a test program, and whether it was stopped."""
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE} | {"CARGO_MANIFEST_DIR": str(tree)}
    if mutant:
        environment[VARIABLE] = mutant
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen([program, *arguments], cwd=tree, env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            status = None
        # Also what the tests have started and left behind.
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()
        out.seek(0)
        return status, out.read()


def results(output):
    """What became of each test, as the harness tells it."""
    return dict(re.findall(r"^test (\S+)\s+\.\.\. (ok|FAILED|ignored)", output, re.M))


class Tests:
    """The tests by the name that they have in the table."""

    def __init__(self, programs, tree):
        self.programs, self.tree = programs, tree
        self.found = contract.tests()
        self.listed = {}
        for name, program in programs.items():
            text = run(program, ["--list"], tree, None, SECONDS)[1]
            self.listed[name] = re.findall(r"^(\S+): test$", text, re.M)

    @staticmethod
    def program(key):
        return "lib" if key[0] == "src" else key[1]

    def path(self, name):
        """The program, and what the harness calls the test."""
        key = places(name, self.found)[0]
        program = self.program(key)
        modules = [part for part in key[1 if key[0] == "src" else 2:-1] if part != "tests"]
        fits = [test for test in self.listed[program] if test.split("::")[-1] == key[-1]]
        exact = [test for test in fits if [part for part in test.split("::")[:-1] if part != "tests"] == modules]
        return program, (exact or fits or [key[-1]])[0]

    def one(self, name, mutant=None, seconds=SECONDS):
        """`ok`, `FAILED`, `ignored`, `timed out` or `missing`, and the output."""
        program, test = self.path(name)
        status, output = run(self.programs[program], [test, "--exact", "--nocapture"], self.tree, mutant, seconds)
        if status is None:
            return "timed out", output
        known = re.search(r"test result: \S+ (\d+) passed; (\d+) failed; (\d+) ignored", output)
        if status:
            return "FAILED", output
        if known and int(known[1]):
            return "ok", output
        return ("ignored" if known and int(known[3]) else "missing"), output

    def all(self, mutant, seconds=SECONDS_FOR_ALL):
        """The tests that fail with this mutant on."""
        failed = []
        for name in ("lib", "all"):
            status, output = run(self.programs[name], [], self.tree, mutant, seconds)
            failed += [f"{name}::{test}" for test, became in results(output).items() if became == "FAILED"]
            if status is None:
                failed.append(f"{name} (stopped after {seconds} s)")
        return failed


def why(output):
    """The first words of the panic."""
    found = re.search(r"panicked at [^\n]*\n([^\n]*)(?:\n([^\n]*)\n([^\n]*))?", output)
    return " ".join(part.strip() for part in found.groups() if part)[:160] if found else ""


def judge(mutant, tests, arguments):
    """How the mutant ended: (noticed, by whom, remark)."""
    begun = time.monotonic()
    took = lambda: f"{time.monotonic() - begun:.1f} s"
    if not arguments.whole:
        for name in mutant["killed_by"]:
            became, output = tests.one(name, mutant["id"], mutant.get("seconds", SECONDS))
            if became in ("ignored", "missing"):
                return "skipped", name, f"the test was {became}"
            if became != "ok":
                # On a busy machine it may fail for another reason.
                without, text = tests.one(name)
                if without == "ok":
                    return "noticed", name, f"{became}: {why(output)} ({took()})"
                return "unclear", name, f"fails without the mutant too: {why(text)}"
    failed = tests.all(mutant["id"])
    if arguments.whole and failed:
        return "noticed", f"{len(failed)} tests", ", ".join(failed[:3])
    if failed:
        return "by others", f"{len(failed)} tests", f"{', '.join(failed[:6])} ({took()})"
    return "survived", "", took()


def main():
    at = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for flag in ("--check", "--write", "--whole", "--keep", "--build"):
        parser.add_argument(flag, action="store_true")
    parser.add_argument("--only", nargs="+", metavar="ID")
    parser.add_argument("--sample", type=int, metavar="N")
    parser.add_argument("--jobs", type=int, default=1)
    arguments = parser.parse_args(sys.argv[1:at])
    for_cargo = sys.argv[at + 1:] or ["--all-features"]

    mutants, edits, without = read()
    if arguments.check:
        return check(mutants, edits, without)
    if arguments.write:
        page = PAGE.read_text()
        before, rest = page.split(BEGIN)
        PAGE.write_text(before + BEGIN + table(mutants, without) + END + rest.split(END)[1])
        return 0

    chosen = [mutant for mutant in mutants if not mutant.get("survives")]
    if arguments.only:
        unknown = set(arguments.only) - {mutant["id"] for mutant in mutants}
        if unknown:
            sys.exit(f"no such mutants: {', '.join(sorted(unknown))}")
        chosen = [mutant for mutant in mutants if mutant["id"] in arguments.only]
    elif arguments.sample:
        # Others each day, and only those whose tests need no server.
        day = datetime.date.today().isoformat()
        quick = [mutant for mutant in chosen if not any(name.split("::")[0] in MIMIC for name in mutant["killed_by"])]
        chosen = sorted(quick, key=lambda mutant: hashlib.sha256((day + mutant["id"]).encode()).digest())[:arguments.sample]

    # At one path, so that a second run compiles only the crate and its tests.
    tree = pathlib.Path(tempfile.gettempdir(), "reqwest-reauth-promises-" + hashlib.sha256(str(ROOT).encode()).hexdigest()[:8])
    shutil.rmtree(tree, ignore_errors=True)
    copy(edits, tree)
    try:
        found = contract.tests()
        binaries = {"lib", "all"} | {Tests.program(places(name, found)[0]) for mutant in chosen for name in mutant["killed_by"]}
        begun = time.monotonic()
        programs = build(tree, for_cargo, binaries)
        print(f"built in {time.monotonic() - begun:.0f} s", flush=True)
        if arguments.build:
            return 0
        tests = Tests(programs, tree)
        outcomes = collections.Counter()
        lines = ["| promise | mutant | what is broken | | by | |", "| --- | --- | --- | --- | --- | --- |"]
        print("\n".join(lines), flush=True)
        log = {}
        with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
            waiting = [(mutant, pool.submit(judge, mutant, tests, arguments)) for mutant in chosen]
            for mutant, result in waiting:
                became, by, remark = result.result()
                outcomes[became] += 1
                log[mutant["id"]] = [became, by, remark]
                print(f"| {', '.join(mutant['promise'])} | {mutant['id']} | {escaped(mutant['slip'])} | {became} | {by} | {escaped(remark)} |", flush=True)
        print(f"{dict(outcomes)}, {time.monotonic() - begun:.0f} s", flush=True)
        return bool(set(outcomes) - {"noticed", "skipped"})
    finally:
        if not arguments.keep:
            shutil.rmtree(tree, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
