"""Checks an evidence log. It shares no code with the program: hashlib, and openssl for Ed25519.

verify.py DIRECTORY VERIFIER_KEY [LINES]

DIRECTORY has the files of the log. LINES has the events that were accepted, from position 0 on, a
line each. It prints the entries as JSON lines, or a message about the first fault and exits with 1.
"""

import base64
import hashlib
import json
import os
import subprocess
import sys
import tempfile

# The beginning of an Ed25519 public key in DER (RFC 8410).
DER = bytes.fromhex("302a300506032b6570032100")


def sha256(*parts):
    return hashlib.sha256(b"".join(parts)).digest()


def root(leaves):
    """The Merkle Tree Hash of RFC 6962, section 2.1."""
    if not leaves:
        return sha256()
    if len(leaves) == 1:
        return leaves[0]
    left = 1
    while left * 2 < len(leaves):
        left *= 2
    return sha256(b"\x01", root(leaves[:left]), root(leaves[left:]))


def check(condition, message):
    if not condition:
        sys.exit(message)


def is_signed(public, message, signature):
    with tempfile.TemporaryDirectory() as directory:
        paths = [os.path.join(directory, name) for name in ("key", "message", "signature")]
        for path, content in zip(paths, (DER + public, message, signature)):
            with open(path, "wb") as file:
                file.write(content)
        arguments = ["-pubin", "-keyform", "DER", "-inkey", paths[0], "-rawin", "-in", paths[1]]
        command = ["openssl", "pkeyutl", "-verify", *arguments, "-sigfile", paths[2]]
        return subprocess.run(command, capture_output=True).returncode == 0


def checkpoint(note, key):
    """Returns size and root of a signed checkpoint."""
    name, number, encoded = key.split("+", 2)
    kind, public = base64.b64decode(encoded)[:1], base64.b64decode(encoded)[1:]
    check(kind == b"\x01", "the key is of another type")
    key_id = sha256(name.encode(), b"\n", kind, public)[:4]
    check(key_id.hex() == number, "the number of the key is wrong")
    text, signatures = note.rsplit("\n\n", 1)
    text += "\n"
    valid = 0
    for line in signatures.splitlines():
        dash, signer, signature = line.split(" ")
        signature = base64.b64decode(signature)
        if dash == "\u2014" and signer == name and signature[:4] == key_id:
            check(is_signed(public, text.encode(), signature[4:]), "a signature is wrong")
            valid += 1
    check(valid == 1, "the checkpoint has no signature of the key")
    origin, size, encoded = text.splitlines()
    check(origin == name, "the origin is not the name of the key")
    return int(size), base64.b64decode(encoded)


def read(directory, path):
    with open(os.path.join(directory, path), "rb") as file:
        return file.read()


def tile_path(kind, index, width):
    """The path of a tile (C2SP tlog-tiles)."""
    groups = [f"{index % 1000:03}"]
    while index >= 1000:
        index //= 1000
        groups.insert(0, f"x{index % 1000:03}")
    partial = f".p/{width}" if width < 256 else ""
    return f"tile/{kind}/{'/'.join(groups)}{partial}"


def tiles(count):
    for index in range((count + 255) // 256):
        yield index, min(256, count - index * 256)


def entries(directory, size):
    found = []
    for index, width in tiles(size):
        bundle = read(directory, tile_path("entries", index, width))
        at = 0
        for _ in range(width):
            length = int.from_bytes(bundle[at : at + 2], "big")
            found.append(bundle[at + 2 : at + 2 + length])
            at += 2 + length
        check(at == len(bundle), f"bundle {index} has more than {width} entries")
    return found


def check_tiles(directory, leaves):
    level, hashes = 0, leaves
    while hashes:
        for index, width in tiles(len(hashes)):
            content = read(directory, tile_path(level, index, width))
            expected = b"".join(hashes[index * 256 : index * 256 + width])
            check(content == expected, f"tile {index} of level {level} is wrong")
        whole = len(hashes) // 256
        hashes = [root(hashes[at * 256 : at * 256 + 256]) for at in range(whole)]
        level += 1


def ranges(directory):
    """Returns salt and line hashes of each range, by its first position."""
    found = {}
    for name in sorted(os.listdir(os.path.join(directory, "lines"))):
        content = read(directory, f"lines/{name}")
        while content:
            length = int.from_bytes(content[:4], "big")
            record, content = content[8 : 8 + length], content[8 + length :]
            check(len(record) == length, f"lines/{name} is cut off")
            check(record[0] == 1, f"lines/{name} has a record of another kind")
            first, count = int.from_bytes(record[1:9], "big"), int.from_bytes(record[9:13], "big")
            salt, hashes = record[13:29], record[29:]
            check(len(hashes) == 32 * count, f"lines/{name} has a wrong record")
            lines = [hashes[at : at + 32] for at in range(0, len(hashes), 32)]
            found[(first, count)] = (salt, lines)
    return found


def main(directory, key, lines=None):
    note = read(directory, "checkpoint").decode()
    size, expected = checkpoint(note, key)
    found = entries(directory, size)
    leaves = [sha256(b"\x00", entry) for entry in found]
    check(root(leaves) == expected, "the root of the entries is not that of the checkpoint")
    check_tiles(directory, leaves)
    hashes, stored = ranges(directory), None
    if lines is not None:
        with open(lines, "rb") as file:
            stored = file.read().split(b"\n")[:-1]
    position = 0
    for entry in map(json.loads, found):
        print(json.dumps(entry))
        if entry["type"] != "accepted":
            continue
        first, count = entry["first"], entry["count"]
        check(first == position, f"the range at {first} does not follow {position}")
        position += count
        salt, own = hashes[(first, count)]
        of_range = root([sha256(b"\x00", salt, line) for line in own])
        check(base64.b64encode(of_range).decode() == entry["root"], f"the root at {first} is wrong")
        if stored is not None:
            events = [sha256(line) for line in stored[first : first + count]]
            check(own == events, f"the hashes at {first} are not those of the events")
    if stored is not None:
        check(position == len(stored), f"{position} of {len(stored)} events have entries")


main(*sys.argv[1:])
