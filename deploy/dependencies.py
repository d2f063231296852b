#!/usr/bin/env python3
"""Prints the section .dep-v0 of a program: its crates, as `cargo auditable` records them.

Usage: deploy/dependencies.py FEATURES TARGET >SECTION

FEATURES is "" or "kafka", TARGET is the target triple. The section is JSON, compressed by zlib.
`cargo audit bin`, Trivy, Syft and others read it in any program.

`cargo auditable` itself is not used: it asks `cargo metadata`, which adds the features that the
tests of this workspace turn on, and would record crates that are not in the program. The crates
here are those of `cargo tree` for this package alone. The same sources give the same bytes.
"""

import json
import re
import subprocess
import sys
import zlib
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
NAME = "kube-audit-forwarder"

# A package as `name version`. No two packages of this project have the same name and version.
Package = tuple[str, str]


def cargo(*arguments: str) -> str:
    command = ["cargo", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, check=True, stdout=subprocess.PIPE, text=True).stdout


class Tree:
    """The packages of `cargo tree`, each with those that it depends on, and which are our own."""

    def __init__(self, features: str, target: str, edges: str = "normal,build") -> None:
        lines = cargo(
            *("tree", "--locked", "--package", NAME, "--edges", edges, "--target", target),
            *("--features", features, "--prefix", "depth", "--charset", "ascii", "--format", " {p}"),
        )
        self.packages: dict[Package, set[Package]] = {}
        self.own: set[Package] = set()
        above: list[Package] = []
        for line in lines.splitlines():
            # For example "2 serde_derive v1.0.228 (proc-macro) (*)". The dependencies of a package
            # with a (*) are listed at its first place. A package of this repository has its path.
            depth, name, version, rest = re.match(r"(\d+) (\S+) v(\S+)(.*)", line).groups()
            package = (name, version)
            self.packages.setdefault(package, set())
            if " (/" in rest:
                self.own.add(package)
            del above[int(depth) :]
            if above:
                self.packages[above[-1]].add(package)
            above.append(package)


def section(features: str, target: str) -> bytes:
    """Returns the section. A crate that only runs while the program is built is of the kind build."""
    tree = Tree(features, target)
    linked = Tree(features, target, "normal,no-proc-macro").packages
    names = sorted(tree.packages)
    packages = []
    for package in names:
        name, version = package
        source = "local" if package in tree.own else "crates.io"
        found = {"name": name, "version": version, "source": source}
        if package not in linked:
            found["kind"] = "build"
        if needed := sorted(names.index(other) for other in tree.packages[package]):
            found["dependencies"] = needed
        if name == NAME:
            found["root"] = True
        packages.append(found)
    return zlib.compress(json.dumps({"packages": packages}, separators=(",", ":")).encode(), 9)


if __name__ == "__main__":
    sys.stdout.buffer.write(section(*sys.argv[1:]))
