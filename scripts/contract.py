#!/usr/bin/env python3
"""Checks docs/contract.md against the tests.

    scripts/contract.py          every promise has a test or is listed as not held; every test named exists; every number cited exists
    scripts/contract.py 3.6      where the tests of that promise are
"""

import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/contract.md"

# A function with a test attribute, a property, or a test that a binary without libtest lists (tests/support/trials.rs).
TEST = re.compile(r"#\[(?:tokio::)?test(?:\([^]]*\))?\]\s*(?:(?:#\[[^\n]*\]|//[^\n]*)\s*)*(?:async )?fn (\w+)")
PROPERTY = re.compile(r"^    fn (\w+)\(", re.M)
TRIAL = re.compile(r"^pub\(crate\) async fn (\w+)\(\) \{", re.M)
CITED = re.compile(r"\bcontract(?:\.md)?,? §?(\d+\.\d+)((?:(?:,| and| to) §?\d+\.\d+)*)", re.I)


def modules(path):
    """`src/session/state/tests.rs` is `src::session::state`."""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    while parts[-1] in ("mod", "main", "tests"):
        parts.pop()
    return parts


def tests():
    """Where each test is: (modules, name) to path and line."""
    found = {}
    for path in sorted([*ROOT.glob("tests/**/*.rs"), *ROOT.glob("src/**/*.rs")]):
        text = path.read_text()
        patterns = [TEST]
        if "proptest!" in text:
            patterns.append(PROPERTY)
        if path.parent.name in ("redis", "interop") and path.parent.parent == ROOT / "tests":
            patterns.append(TRIAL)
        for pattern in patterns:
            for match in pattern.finditer(text):
                line = text.count("\n", 0, match.start(1)) + 1
                found[(*modules(path), match[1])] = f"{path.relative_to(ROOT)}:{line}"
    return found


def promises(page):
    """Each number, and the tests named below it."""
    body, _, rest = page.partition("\n## Not held yet\n")
    named = {}
    for match in re.finditer(r"^\*\*(\d+\.\d+)\*\*(.*?)(?=^\*\*\d|^## |\Z)", body, re.M | re.S):
        number, text = match[1], match[2]
        if number in named:
            yield number, None
        named[number] = re.findall(r"`(\w+(?:::\w+)+)`", text.partition("\nTests:")[2])
        yield number, named[number]
    for number in re.findall(r"^\| (\d+\.\d+) \|", rest, re.M):
        yield f"not held {number}", []


def main():
    found = tests()
    named, not_held, wrong = {}, set(), []
    for number, names in promises(PAGE.read_text()):
        if names is None:
            wrong.append(f"{number} stands twice")
        elif number.startswith("not held "):
            not_held.add(number.removeprefix("not held "))
        else:
            named[number] = names

    def places(name):
        wanted = tuple(name.split("::"))
        return [place for key, place in found.items() if key[-len(wanted):] == wanted]

    if len(sys.argv) > 1:
        for number in sys.argv[1:]:
            for name in named.get(number, []):
                print(*places(name) or ["(not found)"], name)
        return 0

    for number, names in named.items():
        if not names and number not in not_held:
            wrong.append(f"{number} has no test, and is not listed as not held")
        wrong += [f"{number} names {name}, which is no test" for name in names if not places(name)]
    wrong += [f"{number} is listed as not held, and is no promise" for number in not_held - named.keys()]
    for path in sorted([*ROOT.glob("tests/**/*.rs"), *ROOT.glob("src/**/*.rs")]):
        for match in CITED.finditer(path.read_text()):
            for number in [match[1], *re.findall(r"\d+\.\d+", match[2])]:
                if number not in named:
                    wrong.append(f"{path.relative_to(ROOT)} cites {number}, which is no promise")
    print("\n".join(wrong) or f"contract: {len(named)} promises, {sum(map(len, named.values()))} tests named, {len(not_held)} not held in full")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
