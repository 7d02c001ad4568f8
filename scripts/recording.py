#!/usr/bin/env python3
"""Runs the heartbeat example and writes what it prints, line by line at its pace, to docs/heartbeat.svg.

    scripts/recording.py
"""

import html
import pathlib
import re
import subprocess
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
WIDTH, LINE, LEFT, TOP = 760, 17, 14, 24
STYLE = """\
text{font:12.5px ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;fill:#d0d7de;white-space:pre}
.f{fill:#8b949e}.g{fill:#56d364}.y{fill:#e3b341}.r{fill:#ff7b72}
g{animation:show .05s both}
@keyframes show{from{opacity:0}to{opacity:1}}
@media (prefers-reduced-motion){g{animation:none}}"""


def record():
    """The lines, each with the seconds since the start."""
    subprocess.run(["cargo", "build", "--quiet", "--example", "heartbeat"], cwd=ROOT, check=True)
    command = ["cargo", "run", "--quiet", "--example", "heartbeat"]
    start, lines = time.monotonic(), [(0.0, "$ cargo run --example heartbeat")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as program:
        for line in program.stdout:
            lines.append((time.monotonic() - start, line.rstrip("\n")))
    if program.returncode != 0:
        raise SystemExit("the example failed")
    return lines


def span(text, kind=""):
    text = html.escape(text)
    return f'<tspan class="{kind}">{text}</tspan>' if kind else text


def painted(line):
    beat = re.fullmatch(r"( *[\d.]+s)( +)(\d{3}|-)( +\d+)(.*)", line)
    if beat:
        age, gap, status, generation, news = beat.groups()
        news = span(news, "f" if news.strip() == "captured" else "y") if news else ""
        return span(age, "f") + gap + span(status, "g" if status.startswith("2") else "r") + generation + news
    return span(line, "f" if line.startswith(("each line", "  status", "  generation", "  then", "    ", "   time")) else "")


def wrapped(lines, most=98):
    """Long lines go on below, indented."""
    for at, line in lines:
        while len(line) > most:
            cut = line.rfind(" ", 0, most)
            yield at, line[:cut]
            line = " " * 29 + line[cut + 1 :]
        yield at, line


def main():
    lines = list(wrapped(record()))
    height = TOP + LINE * len(lines)
    rows = [
        f'<g style="animation-delay:{at:.2f}s"><text x="{LEFT}" y="{TOP + LINE * number}">{painted(line)}</text></g>'
        for number, (at, line) in enumerate(lines)
        if line
    ]
    label = "The heartbeat example: beats, captured tokens, a refresh after a 502 and a 503, and the sums at the end"
    (ROOT / "docs/heartbeat.svg").write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{label}" xml:space="preserve">\n'
        f'<style>{STYLE}</style>\n<rect width="{WIDTH}" height="{height}" rx="6" fill="#0d1117"/>\n' + "\n".join(rows) + "\n</svg>\n"
    )


main()
