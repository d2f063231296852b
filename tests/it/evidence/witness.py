"""A witness (C2SP tlog-witness). It shares no code with the program: openssl for Ed25519.

witness.py DIRECTORY NAME LOG_KEY PORT

DIRECTORY holds the key and the newest checkpoint, so that a witness can be started again. It
prints its URL and its verifier key, a line each. PORT 0 is one that the kernel chooses.
"""

import base64
import http.server
import json
import os
import subprocess
import sys
import tempfile
import time

from verify import check, checkpoint, root, sha256


def openssl(*arguments):
    return subprocess.run(["openssl", *arguments], check=True, capture_output=True).stdout


class Refused(Exception):
    """An answer with another status than 200: the status, and the body."""


def subproof(old, size, proof, is_whole, old_root):
    """Returns the roots of the first `old` and of all `size` leaves by a proof (RFC 6962, 2.1.2).

    The hashes of the proof are used from its end on.
    """
    if old == size:
        if is_whole:
            return old_root, old_root
        last = proof.pop()
        return last, last
    left = 1
    while left * 2 < size:
        left *= 2
    if old <= left:
        right = proof.pop()
        first, second = subproof(old, left, proof, is_whole, old_root)
        return first, sha256(b"\x01", second, right)
    above = proof.pop()
    first, second = subproof(old - left, size - left, proof, False, old_root)
    return sha256(b"\x01", above, first), sha256(b"\x01", above, second)


def extends(old, old_root, size, new_root, proof):
    if old == 0:
        return not proof
    try:
        roots = subproof(old, size, proof, True, old_root)
    except IndexError:
        return False
    return not proof and roots == (old_root, new_root)


class Witness:
    def __init__(self, directory, name, log_key):
        self.key, self.state = os.path.join(directory, "key"), os.path.join(directory, "state")
        if not os.path.exists(self.key):
            openssl("genpkey", "-algorithm", "ed25519", "-out", self.key)
        public = openssl("pkey", "-in", self.key, "-pubout", "-outform", "DER")[-32:]
        kind = b"\x04"
        self.name, self.log_key = name, log_key
        self.id = sha256(name.encode(), b"\n", kind, public)[:4]
        encoded = base64.b64encode(kind + public).decode()
        self.verifier = f"{name}+{self.id.hex()}+{encoded}"

    def newest(self):
        if not os.path.exists(self.state):
            return 0, root([])
        with open(self.state) as file:
            size, encoded = json.load(file)
        return size, base64.b64decode(encoded)

    def add(self, body):
        """Returns the signature lines for a request, or raises what is wrong with it."""
        head, note = body.split("\n\n", 1)
        old, *proof = head.split("\n")
        word, old = old.split(" ")
        check(word == "old" and str(int(old)) == old and len(proof) <= 63, "no add-checkpoint")
        if note.split("\n", 1)[0] != self.log_key.split("+")[0]:
            raise Refused(404, "")
        try:
            size, new_root = checkpoint(note, self.log_key)
        except SystemExit as wrong:
            raise Refused(403, str(wrong)) from wrong
        old, proof = int(old), [base64.b64decode(line) for line in proof]
        if old > size:
            raise Refused(400, "")
        has, has_root = self.newest()
        if old != has:
            raise Refused(409, f"{has}\n")
        if not extends(has, has_root, size, new_root, proof):
            raise Refused(422, "")
        with open(self.state + ".new", "w") as file:
            json.dump([size, base64.b64encode(new_root).decode()], file)
        os.replace(self.state + ".new", self.state)
        at = int(time.time()) + int(os.environ.get("AHEAD", "0"))
        text = note.rsplit("\n\n", 1)[0] + "\n"
        with tempfile.NamedTemporaryFile() as file:
            file.write(f"cosignature/v1\ntime {at}\n{text}".encode())
            file.flush()
            signature = openssl("pkeyutl", "-sign", "-rawin", "-inkey", self.key, "-in", file.name)
        encoded = base64.b64encode(self.id + at.to_bytes(8, "big") + signature).decode()
        other = base64.b64encode(b"\x00\x01\x02\x03" + bytes(72)).decode()
        # Clients must ignore the signatures of keys that they do not know.
        lines = f"\u2014 another.example {other}\n\u2014 {self.name} {encoded}\n"
        with open(self.state + ".note", "w") as file:
            file.write(note + lines)
        return lines


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        """The newest checkpoint (C2SP tlog-witness, "Monitor Retrieval Mechanism")."""
        witness = self.server.witness
        origin = witness.log_key.split("+")[0]
        path = f"/below/{sha256(origin.encode()).hex()}/checkpoint"
        if self.path == path and os.path.exists(witness.state + ".note"):
            with open(witness.state + ".note") as file:
                self.answer(200, file.read())
        else:
            self.answer(404, "")

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        try:
            check(self.path == "/below/add-checkpoint", "another path")
            status, answer = 200, self.server.witness.add(body)
        except Refused as refused:
            status, answer = refused.args
        except SystemExit as wrong:
            status, answer = 400, str(wrong)
        self.answer(status, answer)

    def answer(self, status, text):
        content = text.encode()
        self.send_response(status)
        if status == 409:
            self.send_header("Content-Type", "text/x.tlog.size")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


def main():
    directory, name, log_key, port = sys.argv[1:]
    server = http.server.HTTPServer(("127.0.0.1", int(port)), Handler)
    server.witness = Witness(directory, name, log_key)
    print(f"http://127.0.0.1:{server.server_address[1]}/below", flush=True)
    print(server.witness.verifier, flush=True)
    server.serve_forever()


main()
