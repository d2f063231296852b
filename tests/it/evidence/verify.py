"""Checks an evidence log. It shares no code with the program: hashlib, and openssl for Ed25519.

verify.py DIRECTORY VERIFIER_KEY [LINES [OUTPUT STORED]]

DIRECTORY has the files of the log. LINES has the events that were accepted, from position 0 on, a
line each. STORED has the lines that the consumer of OUTPUT has got; the consumer must have each
line that left, and no other. It prints the entries as JSON lines, or a message about the first
fault and exits with 1.
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
    """Returns salts and line hashes: of the accepted ranges by first position and number, and of
    the lines that were sent by output, first position and root."""
    accepted, sent = {}, {}
    for name in sorted(os.listdir(os.path.join(directory, "lines"))):
        content = read(directory, f"lines/{name}")
        while content:
            length = int.from_bytes(content[:4], "big")
            record, content = content[8 : 8 + length], content[8 + length :]
            check(len(record) == length, f"lines/{name} is cut off")
            kind = record[0]
            first, count = int.from_bytes(record[1:9], "big"), int.from_bytes(record[9:13], "big")
            salt, hashes, output = record[13:29], record[29:], None
            if kind == 2:
                output, hashes = hashes[1 : 1 + hashes[0]].decode(), hashes[1 + hashes[0] :]
            lines = [hashes[at : at + 32] for at in range(0, len(hashes), 32)]
            if kind == 1:
                check(len(hashes) == 32 * count, f"lines/{name} has a wrong record")
                accepted[(first, count)] = (salt, lines)
            else:
                check(kind == 2, f"lines/{name} has a record of another kind")
                sent[(output, first, encoded_root(salt, lines))] = lines
    return accepted, sent


def encoded_root(salt, lines):
    return base64.b64encode(root([sha256(b"\x00", salt, line) for line in lines])).decode()


def check_delivered(entry, hashes, sent):
    """Returns the hashes of the lines that left."""
    first, count = entry["first"], entry["count"]
    check(1 <= count <= 4096, f"a range of {count} events")
    fates = {first + int(offset): fate for offset, fate in entry.get("not_delivered", {}).items()}
    changed = {first + int(offset) for offset in entry.get("changed", [])}
    left = [position for position in range(first, first + count) if position not in fates]
    check(all(position in left for position in changed), "an event was changed and did not leave")
    if "root" not in entry:
        check(not changed, f"events from {first} on were changed, and there is no root")
        is_filtered = any(fate in ("dropped", "duplicate") for fate in fates.values())
        check(not (left and is_filtered), f"events from {first} on were dropped, without a root")
        return [hashes[position] for position in left]
    lines = sent[(entry["output"], first, entry["root"])]
    check(len(lines) == len(left), f"{len(left)} events from {first} on, and {len(lines)} lines")
    for position, line in zip(left, lines):
        is_same = line == hashes[position]
        check(is_same != (position in changed), f"{position} is changed in the log or in its line")
    return lines


def main(directory, key, lines=None, output=None, consumer=None):
    note = read(directory, "checkpoint").decode()
    size, expected = checkpoint(note, key)
    found = entries(directory, size)
    leaves = [sha256(b"\x00", entry) for entry in found]
    check(root(leaves) == expected, "the root of the entries is not that of the checkpoint")
    check_tiles(directory, leaves)
    accepted, sent = ranges(directory)
    stored, hashes, left, fates, off = None, [], {}, {}, set()
    if lines is not None:
        with open(lines, "rb") as file:
            stored = file.read().split(b"\n")[:-1]
    places = {}
    for entry in map(json.loads, found):
        print(json.dumps(entry))
        if entry["type"] == "delivered":
            check(entry["first"] + entry["count"] <= len(hashes), "a delivery comes too early")
            for line in check_delivered(entry, hashes, sent):
                left.setdefault(entry["output"], set()).add(line)
        if entry["type"] == "delivered" or (entry["type"] == "lost" and entry["output"] != "queue"):
            positions = range(entry["first"], entry["first"] + entry["count"])
            fates.setdefault(entry["output"], set()).update(positions)
        if entry["type"] == "lost" and entry["output"] == "queue" and "first" in entry:
            check(entry["first"] == len(hashes), f"the loss at {entry['first']} does not follow")
            # The queue dropped them before they were hashed.
            hashes.extend([None] * entry["count"])
        if entry["type"] == "alarm" and entry["what"] == "off":
            check(entry["first"] == len(hashes), "the events without evidence do not follow")
            off.update(range(entry["first"], entry["first"] + entry["count"]))
            hashes.extend([None] * entry["count"])
        if entry["type"] in ("start", "stop"):
            for name, place in entry["outputs"].items():
                places[name] = max(place, places.get(name, 0))
        if entry["type"] != "accepted":
            continue
        first, count = entry["first"], entry["count"]
        check(first == len(hashes), f"the range at {first} does not follow {len(hashes)}")
        salt, own = accepted[(first, count)]
        check(encoded_root(salt, own) == entry["root"], f"the root at {first} is wrong")
        hashes.extend(own)
        if stored is not None:
            events = [sha256(line) for line in stored[first : first + count]]
            check(own == events, f"the hashes at {first} are not those of the events")
    for name, place in places.items():
        missing = set(range(min(place, len(hashes)))) - fates.get(name, set()) - off
        check(not missing, f"{name} is at {place}, without a fate of {sorted(missing)[:5]}")
    if stored is not None:
        check(len(hashes) == len(stored), f"{len(hashes)} of {len(stored)} events have entries")
    if consumer is not None:
        with open(consumer, "rb") as file:
            got = {sha256(line) for line in file.read().split(b"\n")[:-1]}
        check(got == left.get(output, set()), "the consumer's lines are not those that left")


if __name__ == "__main__":
    main(*sys.argv[1:])
