#!/usr/bin/env python3
"""Prints the SBOM of a released program and of its image: CycloneDX 1.6 as JSON, with each crate that
is built for the program, and each file of the image.

Usage: deploy/sbom.py FEATURES TARGET REVISION EPOCH ROOT CA [PACKAGE=VERSION...]

FEATURES is "" or "kafka", TARGET is the target triple, EPOCH the time of the commit in seconds since
1970. ROOT has the files of the image, and CA is the version of Debian's ca-certificates, where the
CA bundle comes from. Each PACKAGE is a library of the machine that is linked into the program,
besides the crates.

The crates are those of `cargo tree --edges normal,build` with these features: what is linked into the
program, and what runs while it is built. Dependencies of tests are not among them. The crates of
this repository are the program itself, and in no registry, so they are not listed. The checksums are
those of Cargo.lock, the licences those that the crates declare. The same sources give the same bytes.
"""

import datetime
import hashlib
import json
import re
import sys
import tomllib
import uuid
from pathlib import Path
from urllib.parse import quote

# No directory of compiled Python: a release is made only of a tree without changes.
sys.dont_write_bytecode = True
from dependencies import NAME, REPOSITORY, Package, Tree, cargo


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


def files_of(root: Path) -> list[dict]:
    """The files of the image. Their names are the paths in it."""
    found = []
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        name = f"/{path.relative_to(root)}"
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        hashes = [{"alg": "SHA-256", "content": digest}]
        found.append({"type": "file", "bom-ref": f"file:{name}", "name": name, "hashes": hashes})
    return found


def main() -> None:
    features, target, revision, epoch, root_of_image, ca_version, *linked = sys.argv[1:]
    tree = Tree(features, target)
    packages = tree.packages
    of_cargo = json.loads(cargo("metadata", "--locked", "--format-version", "1", "--features", features))["packages"]
    metadata = {(package["name"], package["version"]): package for package in of_cargo}
    lock = tomllib.loads((REPOSITORY / "Cargo.lock").read_text())["package"]
    checksums = {
        (package["name"], package["version"]): package["checksum"]
        for package in lock
        if "checksum" in package
    }
    root = next(package for package in packages if package[0] == NAME)
    for own in tree.own - {root}:
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
    files = files_of(Path(root_of_image))
    ca = f"pkg:deb/debian/ca-certificates@{quote(ca_version, safe='')}?arch=all"
    bundle = {"type": "data", "bom-ref": ca, "name": "ca-certificates", "version": ca_version, "purl": ca}
    made_of = {f"file:/usr/bin/{NAME}": program["bom-ref"], "file:/etc/ssl/certs/ca-certificates.crt": ca}
    if not made_of.keys() <= {file["bom-ref"] for file in files}:
        raise SystemExit(f"sbom.py: {root_of_image} is not the root of the image: {files}")
    digests = " ".join(file["hashes"][0]["content"] for file in files)
    about = f"{revision} {target} {features} {ca_version} {' '.join(linked)} {digests}"
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
        "components": [*components.values(), bundle, *files],
        "dependencies": [
            *(
                {"ref": of[package], "dependsOn": sorted(of[needed] for needed in packages[package])}
                for package in [root, *components]
            ),
            *({"ref": file, "dependsOn": [origin]} for file, origin in sorted(made_of.items())),
        ],
    }
    json.dump(bom, sys.stdout, indent=2, ensure_ascii=False)
    print()


if __name__ == "__main__":
    main()
