#!/usr/bin/env python3
"""Prints the provenance of a release: an in-toto statement with the predicate SLSA provenance 1.

Usage: deploy/provenance.py VERSION REVISION SOURCE DIRECTORY

It says of which commit of SOURCE, by which script, with which lock file and which compilers each
file in DIRECTORY was made. SHA256SUMS and its signature cover it, as they cover the other files.
The same commit gives the same bytes, so it has no time and no name of a machine.

The formats: https://in-toto.io/Statement/v1 and https://slsa.dev/spec/v1.0/provenance
"""

import hashlib
import json
import sys
from pathlib import Path


def sha256(path: Path) -> dict:
    return {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def main() -> None:
    version, revision, source, directory = sys.argv[1:]
    files = sorted(path for path in Path(directory).iterdir())
    about = dict(line.split(": ", 1) for line in Path(directory, "BUILDINFO").read_text().splitlines())
    tools = {name: about[name] for name in sorted(about.keys() - {"version", "revision", "time"})}
    place = f"{source}/blob/{revision}"
    statement = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": path.name, "digest": sha256(path)} for path in files],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": f"{place}/docs/operating/releases.md#the-files",
                "externalParameters": {"version": version, "source": f"git+{source}"},
                "resolvedDependencies": [
                    {"uri": f"git+{source}@{revision}", "digest": {"gitCommit": revision}},
                    {"uri": f"{place}/Cargo.lock", "digest": sha256(Path("Cargo.lock"))},
                ],
            },
            "runDetails": {"builder": {"id": f"{place}/deploy/release.sh", "version": tools}},
        },
    }
    print(json.dumps(statement, indent=2))


if __name__ == "__main__":
    main()
