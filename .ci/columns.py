#!/usr/bin/env python3
"""Finds comments and lines of Markdown that are wider than 100 columns, in the files of git.

Checked are all lines of Markdown, the lines of Rust that hold a comment, and the lines of scripts,
TOML and YAML that are nothing but a comment. Not counted are the rows of tables, code blocks and
pictures of Markdown, and lines that one long word without spaces, such as a URL or a path, makes
too wide.

usage: .ci/columns.py    exits with 1 if it has found such lines
"""

import pathlib
import re
import subprocess
import sys

COLUMNS = 100
# Made from deploy/monitoring/rules.yaml, whose lines are four columns further to the left.
GENERATED = {"deploy/overlays/monitoring/prometheusrule.yaml"}
# A line comment of Rust that is not part of a string or of a URL: alone, or after code.
RUST = re.compile(r'^\s*//|^[^"]*(?:"(?:\\.|[^"\\])*"[^"]*)*\s//[ /!]')
# Files whose comments begin with "#".
HASH = re.compile(r"\.(sh|toml|ya?ml|py|conf)$|^(test|\.ci/run|deploy/Containerfile|tests/peers/kubectl)$")


def longest_word(line):
    """The width of a line that holds nothing but the longest word, indented as the line is."""
    indent = re.match(r"\s*(?:(?:///?!?|#|[-*>]|\d+\.)\s*)*", line).end()
    return indent + max(map(len, line[indent:].split(" ")), default=0)


def wide_lines(name, text):
    """The numbers of the lines that are too wide, each with its width."""
    in_block = False
    for number, line in enumerate(text.splitlines(), 1):
        bare = line.strip()
        if name.endswith(".md"):
            if bare.startswith(("```", "~~~")):
                in_block = not in_block
            checked = not in_block and not bare.startswith(("|", "!["))
        elif name.endswith(".rs"):
            checked = bool(RUST.search(line)) and not bare.lstrip("/!").lstrip().startswith("|")
        else:
            checked = bare.startswith("#")
        if checked and len(line) > COLUMNS and longest_word(line) <= COLUMNS:
            yield number, len(line)


def main():
    names = subprocess.check_output(["git", "ls-files"], text=True).splitlines()
    found = 0
    for name in names:
        if not name.endswith((".rs", ".md")) and not HASH.search(name):
            continue
        if name in GENERATED or not pathlib.Path(name).is_file():
            continue
        for number, width in wide_lines(name, pathlib.Path(name).read_text()):
            print(f"{name}:{number}: {width} columns")
            found += 1
    if found:
        sys.exit(f"{found} comments and lines of Markdown are wider than {COLUMNS} columns")


main()
