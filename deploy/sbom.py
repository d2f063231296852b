#!/usr/bin/env python3
"""Prints the SBOM of a released program: CycloneDX 1.6 as JSON, with each crate that is built for it.

Usage: deploy/sbom.py FEATURES TARGET REVISION EPOCH [PACKAGE=VERSION...]

FEATURES is "" or "kafka", TARGET is the target triple, EPOCH the time of the commit in seconds since
1970. Each PACKAGE is a library of the machine that is linked into the program, besides the crates.

The crates are those of `cargo tree --edges normal,build` with these features: what is linked into the
program, and what runs while it is built. Dependencies of tests are not among them. The crates of
this repository are the program itself, and in no registry, so they are not listed. The checksums are
those of Cargo.lock, the licences those that the crates declare. The same sources give the same bytes.
"""

import datetime
import json
import re
import subprocess
import sys
import tomllib
import uuid
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
NAME = "kube-audit-forwarder"

# A package as `name version`. No two packages of this project have the same name and version.
Package = tuple[str, str]


def cargo(*arguments: str) -> str:
    command = ["cargo", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, check=True, stdout=subprocess.PIPE, text=True).stdout


def tree(features: str, target: str) -> dict[Package, set[Package]]:
    """The packages, each with those that it depends on."""
    lines = cargo(
        *("tree", "--locked", "--package", NAME, "--edges", "normal,build", "--target", target),
        *("--features", features, "--prefix", "depth", "--charset", "ascii", "--format", " {p}"),
    )
    found: dict[Package, set[Package]] = {}
    above: list[Package] = []
    for line in lines.splitlines():
        # For example "2 serde_derive v1.0.228 (proc-macro) (*)". The dependencies of a package
        # with a (*) are listed at its first place.
        depth, name, version = re.match(r"(\d+) (\S+) v(\S+)", line).groups()
        package = (name, version)
        found.setdefault(package, set())
        del above[int(depth) :]
        if above:
            found[above[-1]].add(package)
        above.append(package)
    return found


def licences(expression: str | None) -> list[dict]:
    """The licences of a crate. `/` is how crates wrote OR before 2017."""
    if not expression:
        return []
    return [{"expression": re.sub(r"\s*/\s*", " OR ", expression)}]


def component(package: Package, metadata: dict, checksums: dict[Package, str]) -> dict:
    name, version = package
    purl = f"pkg:cargo/{name}@{version.replace('+', '%2B')}"
    found = {"type": "library", "bom-ref": purl, "name": name, "version": version}
    if package in checksums:
        found["hashes"] = [{"alg": "SHA-256", "content": checksums[package]}]
    if of_crate := licences(metadata.get("license")):
        found["licenses"] = of_crate
    found["purl"] = purl
    if repository := metadata.get("repository"):
        found["externalReferences"] = [{"type": "vcs", "url": repository}]
    return found


def main() -> None:
    features, target, revision, epoch, *linked = sys.argv[1:]
    packages = tree(features, target)
    of_cargo = json.loads(cargo("metadata", "--locked", "--format-version", "1", "--features", features))["packages"]
    metadata = {(package["name"], package["version"]): package for package in of_cargo}
    lock = tomllib.loads((REPOSITORY / "Cargo.lock").read_text())["package"]
    checksums = {
        (package["name"], package["version"]): package["checksum"]
        for package in lock
        if "checksum" in package
    }
    root = next(package for package in packages if package[0] == NAME)
    for own in [package for package in packages if metadata[package]["source"] is None]:
        if own != root:
            packages[root] |= packages.pop(own)
    packages[root] -= {package for package in packages[root] if package not in packages}
    components = {
        package: component(package, metadata[package], checksums) for package in sorted(packages)
    }
    program = components.pop(root) | {"type": "application"}
    program["properties"] = [
        {"name": f"{NAME}:features", "value": features or "none"},
        {"name": f"{NAME}:revision", "value": revision},
        {"name": f"{NAME}:target", "value": target},
        *({"name": f"{NAME}:linked", "value": package} for package in linked),
    ]
    moment = datetime.datetime.fromtimestamp(int(epoch), datetime.timezone.utc)
    about = f"{revision} {target} {features} {' '.join(linked)}"
    of = {package: found["bom-ref"] for package, found in components.items()}
    of[root] = program["bom-ref"]
    bom = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, f'{NAME} {about}')}",
        "version": 1,
        "metadata": {
            "timestamp": moment.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "lifecycles": [{"phase": "build"}],
            "component": program,
        },
        "components": list(components.values()),
        "dependencies": [
            {"ref": of[package], "dependsOn": sorted(of[needed] for needed in packages[package])}
            for package in [root, *components]
        ],
    }
    json.dump(bom, sys.stdout, indent=2, ensure_ascii=False)
    print()


if __name__ == "__main__":
    main()
