#!/usr/bin/env python3
"""Links of the guide, which is read on GitHub and in rustdoc.

    scripts/links.py             checks every page of docs/guide
    scripts/links.py --write     writes the link definitions at the end of every page
    scripts/links.py --doc DIR   checks them, and that `cargo doc` has made what they point to in DIR

A page links to items and pages by label: [`Session::wrap`], [errors]. Markdown takes the first definition of a label. In rustdoc that is the one
in src/guide/links.md, which src/guide.rs includes before each page, so rustdoc checks it. On GitHub it is the one at the end of the page, which this
script derives from src/guide/links.md and docs/public-api.txt.
"""

import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
GUIDE = ROOT / "docs/guide"
DOCS = "https://docs.rs/reqwest-reauth/latest/reqwest_reauth"
MARK = "<!-- Link definitions for GitHub: written by scripts/links.py. -->"
DEFINITION = re.compile(r"^\[([^\]]+)\]: (\S+)$", re.M)
ITEM = re.compile(r"\bpub (?:async )?(struct|enum|trait|fn|mod|type|macro) reqwest_reauth((?:::\w+)+)(?!\w|<[^>]*>::)")
VARIANT = re.compile(r"^(?:#\[\S+\] )?pub reqwest_reauth((?:::\w+)+)", re.M)


def kinds():
    """What each public path is: `Session` to `struct`."""
    listing = (ROOT / "docs/public-api.txt").read_text()
    found = {path[2:]: "variant" for path in VARIANT.findall(listing)}
    found.update({path[2:]: kind for kind, path in ITEM.findall(listing)})
    return found


def url(path, known):
    """Where docs.rs has the item at `crate::…`, or the page beside this one."""
    if path.startswith("https://"):
        return path
    parts = path.split("::")[1:]
    if not parts:
        return f"{DOCS}/index.html"
    if parts[0] == "guide":
        return f"{parts[1]}.md" if len(parts) > 1 else "README.md"
    if parts[0] in ("reqwest", "reqwest_middleware"):
        name = parts[0].replace("_", "-")
        rest = f"struct.{parts[1]}.html" if len(parts) > 1 and parts[1] != "Error" else "enum.Error.html" if len(parts) > 1 else "index.html"
        return f"https://docs.rs/{name}/latest/{parts[0]}/{rest}"
    kind = known.get("::".join(parts))
    if kind is None:
        sys.exit(f"src/guide/links.md: {path} is not in docs/public-api.txt")
    if kind == "mod":
        return f"{DOCS}/{'/'.join(parts)}/index.html"
    owner = known.get("::".join(parts[:-1]))
    if kind in ("fn", "variant") and owner not in (None, "mod"):
        anchor = "variant" if kind == "variant" and owner == "enum" else "structfield" if kind == "variant" else "method"
        return f"{DOCS}/{'/'.join([*parts[:-2], f'{owner}.{parts[-2]}.html'])}#{anchor}.{parts[-1]}"
    return f"{DOCS}/{'/'.join([*parts[:-1], f'{kind}.{parts[-1]}.html'])}"


def prose(text):
    """The page without code blocks and without its definitions."""
    return re.sub(r"^```.*?^```$", "", text.split(MARK)[0], flags=re.M | re.S)


def used(text, labels):
    """Labels that a page links to, and those that nobody defines."""
    text = prose(text)
    own = {label.lower() for label, _ in DEFINITION.findall(text)}
    found, unknown = set(), set()
    # [text][label], then what is left: [label].
    for label in re.findall(r"\[(?:[^\[\]]+)\]\[([^\[\]]+)\]", text):
        (found if label.lower() in labels else unknown).add(label.lower())
    text = re.sub(r"\[[^\[\]]+\](\[[^\[\]]+\]|\([^)]*\)|:)", "", text)
    for label in re.findall(r"\[([^\[\]]+)\]", text):
        if label.lower() in labels:
            found.add(label.lower())
        elif label.startswith("`") and label.lower() not in own:
            unknown.add(label)
    return found, unknown


def anchors(text):
    """Links within a page to a heading that is not there. GitHub and rustdoc name headings alike."""
    headings = re.findall(r"^#+ (.*)$", prose(text), re.M)
    names = {re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", heading.lower())) for heading in headings}
    return [name for name in re.findall(r"\]\(#([^)]+)\)", prose(text)) if name not in names]


def missing(target, folder):
    """Whether `cargo doc` has made no such page or anchor."""
    if not target.startswith(DOCS):
        return False
    path, _, anchor = target[len(DOCS) + 1 :].partition("#")
    page = folder / "reqwest_reauth" / path
    return not page.exists() or f'id="{anchor}"' not in page.read_text() and anchor != ""


def main():
    folder = pathlib.Path(sys.argv[2]) if sys.argv[1:2] == ["--doc"] else None
    labels = {label.lower(): (label, path) for label, path in DEFINITION.findall((ROOT / "src/guide/links.md").read_text())}
    known, faults, linked = kinds(), [], set()
    for page in sorted(GUIDE.glob("*.md")):
        text = page.read_text()
        found, unknown = used(text, labels)
        linked |= found
        faults += [f"{page.relative_to(ROOT)}: [{label}] is not in src/guide/links.md" for label in sorted(unknown)]
        if "crate::" in prose(text):
            faults.append(f"{page.relative_to(ROOT)}: a link with `crate::` does not work on GitHub")
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", prose(text)):
            if not target.startswith("https://"):
                faults.append(f"{page.relative_to(ROOT)}: ({target}) does not work in rustdoc; use a label")
        lines = [f"[{labels[label][0]}]: {url(labels[label][1], known)}" for label in sorted(found)]
        whole = text.split(MARK)[0].rstrip() + "\n" + (f"\n{MARK}\n\n" + "\n".join(lines) + "\n" if lines else "")
        for line in lines:
            target = line.split(": ", 1)[1]
            if not target.startswith("https://") and not (GUIDE / target).exists() or folder and missing(target, folder):
                faults.append(f"{page.relative_to(ROOT)}: {target} does not exist")
        faults += [f"{page.relative_to(ROOT)}: #{name} is no heading" for name in anchors(text)]
        if whole != text:
            if "--write" in sys.argv:
                page.write_text(whole)
            else:
                faults.append(f"{page.relative_to(ROOT)}: run scripts/links.py --write")
    faults += [f"src/guide/links.md: [{labels[label][0]}] is used by no page" for label in sorted(set(labels) - linked)]
    print(*faults, sep="\n", end="\n" if faults else "")
    sys.exit(1 if faults else 0)


main()
