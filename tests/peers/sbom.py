#!/usr/bin/env python3
"""Checks SBOMs against the JSON Schema that CycloneDX publishes for their version, strictly.

Usage: sbom.py FILE...
"""

import json
import sys
from pathlib import Path

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator


def main() -> int:
    wrong = 0
    for file in sys.argv[1:]:
        text = Path(file).read_text(encoding="utf-8")
        version = SchemaVersion.from_version(json.loads(text)["specVersion"])
        error = JsonStrictValidator(version).validate_str(text)
        print(f"{file}: {error or 'valid'}"[:500])
        wrong += error is not None
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
