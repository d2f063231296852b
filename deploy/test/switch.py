"""Replaces the Cloud Logs app by the relay and back, as docs/replace-cloud-logs-app.md tells it, and
counts the events.

    switch.py RELAY

RELAY is the program, which runs with the image's config, at other ports. A stand-in for the app is
the other receiver. This script plays the rest of the cluster:

- the Deployment: two replicas, and a rollout that starts a new pod before it ends an old one. There
  is no readiness probe, so a pod counts as ready before its program listens;
- the Service: what has just ended stays in it for a moment;
- kube-apiserver: batches of numbered events, each with five attempts and growing pauses, which begin
  at a tenth of the real 10 s.

All batches must be taken, and each event must be a line of some pod at least once. Twice is allowed
for the batches whose first attempt failed.
"""

import collections
import http.client
import itertools
import json
import pathlib
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent.parent
BATCH = 20
ATTEMPTS, PAUSE, GROWTH = 5, 1.0, 1.5
# How long an ended pod stays among the endpoints.
STALE = 0.2

APP = """
import http.server, json, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        # One write, so that lines of two requests do not mix.
        os.write(1, "".join(json.dumps(event) + "\\n" for event in body["items"]).encode())
        self.send_response(200)
        self.end_headers()
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def free_port():
    with socket.socket() as it:
        it.bind(("127.0.0.1", 0))
        return it.getsockname()[1]


class Pod:
    """A receiver: the app, or the relay with the image's config."""

    def __init__(self, directory, relay=None):
        self.port = free_port()
        self.lines = directory / f"{self.port}.lines"
        if relay is None:
            command = [sys.executable, "-c", APP, str(self.port)]
        else:
            config = (REPOSITORY / "config/stdout.toml").read_text()
            for old, new in (
                ("0.0.0.0:3000", f"127.0.0.1:{self.port}"),
                ("0.0.0.0:4443", "127.0.0.1:0"),
                ("0.0.0.0:9090", "127.0.0.1:0"),
                ("/certificates/", f"{directory}/certificates/"),
            ):
                assert old in config, old
                config = config.replace(old, new)
            file = directory / f"{self.port}.toml"
            file.write_text(config)
            command = [relay, "run", "--config", file]
        self.relay = relay
        with self.lines.open("w") as lines, (directory / "log").open("a") as log:
            self.process = subprocess.Popen(command, stdout=lines, stderr=log)

    def end(self):
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(60)
        # The app knows no signals. The relay must have delivered what it held.
        if self.relay and status != 0:
            raise SystemExit(f"a relay ended with the status {status}")


class Cluster:
    def __init__(self, directory, relay):
        self.directory, self.relay = directory, relay
        self.pods = [Pod(directory), Pod(directory)]
        self.ended = []
        self.endpoints = list(self.pods)
        for pod in self.pods:
            self.wait_until_it_listens(pod)

    def wait_until_it_listens(self, pod):
        for _ in range(600):
            with socket.socket() as it:
                if it.connect_ex(("127.0.0.1", pod.port)) == 0:
                    return
            time.sleep(0.1)
        raise SystemExit("a pod does not listen")

    def roll_out(self, relay):
        """maxSurge 1 and maxUnavailable 0, as the defaults give for two replicas."""
        for old in list(self.pods):
            new = Pod(self.directory, relay)
            self.pods.append(new)
            self.endpoints = [*self.endpoints, new]
            if new.process.poll() is not None:
                raise SystemExit("a new pod has ended")
            self.pods.remove(old)
            ending = threading.Thread(target=old.end)
            ending.start()
            time.sleep(STALE)
            self.endpoints = [pod for pod in self.endpoints if pod is not old]
            ending.join()
            self.ended.append(old)
        for pod in self.pods:
            self.wait_until_it_listens(pod)

    def close(self):
        for pod in self.pods:
            pod.end()
        self.ended += self.pods

    def counts(self):
        """Returns how often each number is among the lines of all pods."""
        found = collections.Counter()
        for pod in self.ended:
            found.update(int(json.loads(line)["auditID"]) for line in pod.lines.read_text().splitlines())
        return found


class Sender:
    """The webhook of kube-apiserver, in batch mode."""

    def __init__(self, cluster):
        self.cluster, self.stopped = cluster, threading.Event()
        corpus = (REPOSITORY / "tests/corpus/06-single-min.json").read_text()
        self.event = json.loads(corpus)["items"][0]
        self.sent, self.given_up, self.repeated, self.batches = 0, [], set(), []
        self.thread = threading.Thread(target=self.send_all)
        self.thread.start()

    def send_all(self):
        for first in itertools.count(0, BATCH):
            if self.stopped.wait(0.02):
                break
            batch = threading.Thread(target=self.send, args=(range(first, first + BATCH),))
            batch.start()
            self.batches.append(batch)
            self.sent = first + BATCH

    def send(self, numbers):
        items = [self.event | {"auditID": str(number)} for number in numbers]
        body = json.dumps({"kind": "EventList", "apiVersion": "audit.k8s.io/v1", "metadata": {}, "items": items})
        pause = PAUSE
        for attempt in range(ATTEMPTS):
            if attempt:
                self.repeated.update(numbers)
                time.sleep(pause)
                pause *= GROWTH
            connection = http.client.HTTPConnection("127.0.0.1", random.choice(self.cluster.endpoints).port, timeout=30)
            try:
                connection.request("POST", "/post", body, {"Content-Type": "application/json"})
                if connection.getresponse().status == 200:
                    return
            except OSError:
                pass
            except http.client.HTTPException:
                pass
            finally:
                connection.close()
        self.given_up.append(numbers)

    def stop(self):
        self.stopped.set()
        self.thread.join()
        for batch in self.batches:
            batch.join()


def main():
    (relay,) = sys.argv[1:]
    with tempfile.TemporaryDirectory() as name:
        cluster = Cluster(pathlib.Path(name), str(pathlib.Path(relay).resolve()))
        sender = Sender(cluster)
        try:
            time.sleep(1)
            cluster.roll_out(cluster.relay)
            time.sleep(1)
            # kubectl rollout undo
            cluster.roll_out(None)
            time.sleep(1)
        finally:
            sender.stop()
            cluster.close()
        found = cluster.counts()
        relays = sum(len(pod.lines.read_text().splitlines()) for pod in cluster.ended if pod.relay)
    missing = [number for number in range(sender.sent) if not found[number]]
    twice = {number for number, count in found.items() if count > 1}
    if sender.given_up or missing or twice - sender.repeated or set(found) - set(range(sender.sent)):
        raise SystemExit(f"given up: {sender.given_up}, missing: {missing}, twice: {sorted(twice - sender.repeated)}")
    if relays < BATCH:
        raise SystemExit("no batch has come to a relay")
    print(f"{sender.sent} events over two switches: none missing, {len(twice)} twice, {relays} by relays")


if __name__ == "__main__":
    main()
