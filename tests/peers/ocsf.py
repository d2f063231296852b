#!/usr/bin/env python3
"""Checks OCSF documents, one in each line of the input, against the published schema.

Usage: ocsf.py VERSION < documents

Prints what is wrong with the first wrong documents, or how many documents are valid.
"""

import json
import sys

import jsonschema
from ocsf_json_schema import OcsfJsonSchemaEmbedded, get_ocsf_schema


def main() -> int:
    schema = OcsfJsonSchemaEmbedded(get_ocsf_schema(version=sys.argv[1]))
    validators: dict[str, jsonschema.Draft202012Validator] = {}
    count = wrong = 0
    for line in sys.stdin.buffer:
        document = json.loads(line)
        count += 1
        name = schema.lookup_class_name_from_uid(document["class_uid"])
        profiles = document["metadata"].get("profiles", [])
        key = " ".join([name, *profiles])
        if key not in validators:
            validators[key] = jsonschema.Draft202012Validator(
                schema.get_class_schema(name, profiles)
            )
        for error in validators[key].iter_errors(document):
            wrong += 1
            if wrong <= 5:
                print(f"line {count}: {error.json_path}: {error.message[:300]}")
    if wrong == 0:
        print(f"{count} documents are valid")
    return 1 if wrong or not count else 0


if __name__ == "__main__":
    sys.exit(main())
