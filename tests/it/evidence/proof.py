"""Checks what `evidence prove` has printed, with hashlib alone.

proof.py FILE POSITION LINE

The signature is checked by verify.py. Exits with 1 and a message if the event at this position did
not have this line.
"""

import base64
import hashlib
import json
import sys


def sha256(*parts):
    return hashlib.sha256(b"".join(parts)).digest()


def root(leaf, index, size, path):
    """The root that a path leads to (RFC 9162, section 2.1.3.2)."""
    node, last = leaf, size - 1
    for beside in path:
        if last == 0:
            sys.exit("the path is too long")
        if index % 2 == 1 or index == last:
            node = sha256(b"\x01", beside, node)
            while index % 2 == 0 and index != 0:
                index, last = index // 2, last // 2
        else:
            node = sha256(b"\x01", node, beside)
        index, last = index // 2, last // 2
    if last != 0:
        sys.exit("the path is too short")
    return node


def main(file, position, line):
    with open(file, encoding="utf-8") as opened:
        head, checkpoint, signatures, of_line = opened.read().split("\n\n")
    version, extra, index, *path = head.split("\n")
    if version != "c2sp.org/tlog-proof@v1" or not signatures.startswith("\u2014 "):
        sys.exit("it is no proof")
    entry = base64.b64decode(extra.removeprefix("extra "))
    _, size, expected = checkpoint.split("\n")
    path = [base64.b64decode(hash) for hash in path]
    found = root(sha256(b"\x00", entry), int(index.removeprefix("index ")), int(size), path)
    if found != base64.b64decode(expected):
        sys.exit("the path does not lead to the root of the checkpoint")
    entry = json.loads(entry)
    salt, *path = of_line.rstrip("\n").split("\n")
    salt = base64.b64decode(salt.removeprefix("salt "))
    leaf = sha256(b"\x00", salt, sha256(line.encode()))
    offset = int(position) - entry["first"]
    found = root(leaf, offset, entry["count"], [base64.b64decode(hash) for hash in path])
    if found != base64.b64decode(entry["root"]):
        sys.exit("the path does not lead from the line to the root of its range")


main(*sys.argv[1:])
