"""Replaces HAProxy by the relays and back, as docs/replace-haproxy.md tells it, and counts the events.

    haproxy.py RELAY KUBECTL

The page's commands and deploy/replace-haproxy.sh run as written, with the real kubectl, the program
RELAY and the real HAProxy. This script plays the rest of the cluster: the API with its objects, the
controllers of Deployments, ReplicaSets and pods, the Service, and kube-apiserver, which sends
numbered events all the time (switch.py). Pod Security admits a pod, or not. A pod is a process on
127.0.0.1, and `kubectl exec` runs the program in the pod's directories.

The consumer serves only /post. At the end each event must have come to the consumer, or be in a file
that an undo has written. Between the two, somebody who follows the page makes mistakes.
"""

import contextlib
import http.client
import http.server
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse

sys.dont_write_bytecode = True
import api
import manifests
import pod_security
import switch
from manifests import NAME, NAMESPACE, REPOSITORY

PAGE = REPOSITORY / "docs/replace-haproxy.md"
# Commands of the page that need a browser, a registry, IBM Cloud or a connection that stays open.
ELSEWHERE = ("kubectl port-forward ", "deploy/connect.sh ", "deploy/image.sh ", "ibmcloud ")
SCRIPT = "deploy/replace-haproxy.sh"
MISSING = "registry.example/missing:1"

KINDS = {
    "v1": {
        "configmaps": "ConfigMap", "namespaces": "Namespace", "pods": "Pod", "secrets": "Secret",
        "serviceaccounts": "ServiceAccount", "services": "Service",
    },
    "apps/v1": {"deployments": "Deployment", "replicasets": "ReplicaSet", "statefulsets": "StatefulSet"},
    "networking.k8s.io/v1": {"networkpolicies": "NetworkPolicy"},
    "policy/v1": {"poddisruptionbudgets": "PodDisruptionBudget"},
}
OURS = f"/api/v1/namespaces/{NAMESPACE}"
DEPLOYMENTS = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments"
SETS = f"/apis/apps/v1/namespaces/{NAMESPACE}/replicasets"

# haproxy.cfg of the tutorial.
CONFIG = """\
global
  log stdout format raw local0 info
defaults
  mode http
  timeout client 10s
  timeout connect 5s
  timeout server 10s
  timeout http-request 10s
  log global
frontend myfrontend
  bind :3000
  default_backend remotelogstash
# Use remote log consumer IP and port here
backend remotelogstash
  server s1 192.0.2.1:8080 check
"""

WRAPPER = """\
#!/bin/sh
printf '%s\\n' "$*" >>{directory}/calls
case " $* " in
*" exec "*)
  pod=${{4#pod/}}
  shift 6
  count=$#
  while [ "$count" -gt 0 ]; do
    case $1 in /var/lib/{name}) set -- "$@" "{directory}/$pod/spool" ;; *) set -- "$@" "$1" ;; esac
    shift
    count=$((count - 1))
  done
  KUBE_AUDIT_FORWARDER_CONFIG={directory}/$pod/relay.toml exec {relay} "$@"
  ;;
# The stand-in has no schemas.
*" apply "* | *" create "* | *" replace "*) exec {kubectl} "$@" --validate=false ;;
esac
exec {kubectl} "$@"
"""


def discovery():
    """Returns the answers by which kubectl learns what there is."""
    groups = [
        {"name": version.partition("/")[0], "versions": [it], "preferredVersion": it}
        for version in list(KINDS)[1:]
        for it in [{"groupVersion": version, "version": "v1"}]
    ]
    answers = {
        "/version": {"major": "1", "minor": "33", "gitVersion": "v1.33.0"},
        "/api": {"kind": "APIVersions", "versions": ["v1"]},
        "/apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups},
    }
    verbs = ["create", "delete", "get", "list", "patch", "update", "watch"]
    for version, kinds in KINDS.items():
        resources = [
            {"name": name, "singularName": "", "namespaced": name != "namespaces", "kind": kind, "verbs": verbs}
            for name, kind in kinds.items()
        ]
        answers[api.root(version)] = {"kind": "APIResourceList", "groupVersion": version, "resources": resources}
    return answers


def merged(old, patch):
    """Applies a JSON merge patch (RFC 7396). For what kubectl sends here, a strategic one is the same."""
    if not isinstance(patch, dict):
        return patch
    result = dict(old) if isinstance(old, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        elif not key.startswith("$"):
            result[key] = merged(result.get(key), value)
    return result


def labels_of(document):
    return document["metadata"].get("labels") or {}


class Refused(Exception):
    pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_):
        """HAProxy's health checks, and processes that end, leave connections in the middle."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(*_)


class Consumer(Server):
    """Keeps the numbers of the events. `refuses_relays`: only what HAProxy passes on is taken."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), ConsumerHandler)
        self.numbers, self.refuses_relays, self.by_relays = set(), False, 0
        threading.Thread(target=self.serve_forever, daemon=True).start()


class ConsumerHandler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        text = self.rfile.read(int(self.headers["Content-Length"])).decode()
        by_relay = self.headers.get("User-Agent", "").startswith(NAME)
        if self.path.partition("?")[0] != "/post":
            self.answer(404)
        elif by_relay and self.server.refuses_relays:
            self.answer(503)
        else:
            numbers = [int(it) for it in re.findall(r'"auditID": ?"(\d+)"', text)]
            self.server.numbers.update(numbers)
            self.server.by_relays += by_relay and len(numbers)
            self.answer(200)

    def do_OPTIONS(self):
        self.answer(405)

    do_GET = do_HEAD = do_OPTIONS

    def answer(self, status):
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


class Pod:
    """The process of a Pod."""

    def __init__(self, cluster, document):
        self.cluster, self.document, self.name = cluster, document, document["metadata"]["name"]
        self.port, self.process, self.reason = switch.free_port(), None, "ContainerCreating"
        self.directory = cluster.directory / self.name
        shutil.rmtree(self.directory, ignore_errors=True)
        self.directory.mkdir()
        self.spec = document["spec"]["containers"][0]
        self.is_haproxy = "haproxy-alpine" in self.spec["image"]

    def start(self):
        """Starts it when its files are there, like the kubelet."""
        (config,) = [it["configMap"]["name"] for it in self.document["spec"]["volumes"] if "configMap" in it]
        data = self.cluster.objects.get(f"{OURS}/configmaps/{config}", {}).get("data", {})
        if self.spec["image"] == MISSING:
            self.reason = "ErrImagePull"
            return
        if self.is_haproxy:
            if "haproxy.cfg" not in data or not self.cluster.haproxy_starts:
                return
            text = data["haproxy.cfg"].replace("bind :3000", f"bind 127.0.0.1:{self.port}")
            (self.directory / "haproxy.cfg").write_text(text)
            command = [self.cluster.haproxy, "-db", "-f", self.directory / "haproxy.cfg"]
        else:
            text = data["relay.toml"]
            for old, new in (
                ("0.0.0.0:3000", f"127.0.0.1:{self.port}"),
                ("0.0.0.0:4443", "127.0.0.1:0"),
                ("0.0.0.0:9090", f"127.0.0.1:{switch.free_port()}"),
                (f"/var/lib/{NAME}", f"{self.directory}/spool"),
                ("/certificates/", f"{self.directory}/certificates/"),
                ("/admin/", f"{self.directory}/admin/"),
            ):
                assert old in text, old
                text = text.replace(old, new)
            text = text.replace("/consumer/", f"{self.directory}/consumer/")
            (self.directory / "relay.toml").write_text(text)
            for folder, secret in (("admin", f"{NAME}-admin"), ("consumer", f"{NAME}-consumer")):
                (self.directory / folder).mkdir()
                for key, value in self.cluster.objects.get(f"{OURS}/secrets/{secret}", {}).get("data", {}).items():
                    decoded = subprocess.run(["base64", "-d"], input=value.encode(), capture_output=True, check=True)
                    (self.directory / folder / key).write_bytes(decoded.stdout)
            command = [self.cluster.relay, *self.spec.get("args", ["run"])]
        environment = os.environ | {"KUBE_AUDIT_FORWARDER_CONFIG": str(self.directory / "relay.toml")}
        with (self.directory / "log").open("w") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)

    def listens(self):
        with switch.socket.socket() as it:
            return self.process is not None and it.connect_ex(("127.0.0.1", self.port)) == 0

    def status(self):
        if self.process is None:
            state = {"waiting": {"reason": self.reason, "message": self.spec["image"]}}
            return {"phase": "Pending", "containerStatuses": [{"state": state}]}
        if self.process.poll() is not None:
            return {"phase": "Failed" if self.process.returncode else "Succeeded"}
        ready = "True" if self.listens() else "False"
        return {"phase": "Running", "conditions": [{"type": "Ready", "status": ready}]}

    def end(self):
        """Ends it as the kubelet does, after it has left the endpoints."""
        time.sleep(switch.STALE)
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(90)
            except subprocess.TimeoutExpired:
                self.process.kill()


class Nothing:
    """Stands for no endpoints, for which kube-apiserver is answered 503."""

    port = 1


class Cluster(Server):
    """The API, the controllers and the kubelet."""

    def __init__(self, directory, relay, haproxy):
        super().__init__(("127.0.0.1", 0), Handler)
        self.directory, self.relay, self.haproxy = directory, relay, haproxy
        self.lock = threading.RLock()
        self.objects, self.pods, self.ended, self.ending, self.answers = {}, {}, {}, [], discovery()
        self.version = self.serial = 0
        self.haproxy_starts, self.policy_blocks = True, False
        self.stopped = threading.Event()
        threading.Thread(target=self.serve_forever, daemon=True).start()
        self.controllers = threading.Thread(target=self.control)
        self.controllers.start()

    def close(self):
        self.stopped.set()
        self.controllers.join()
        for thread in self.ending:
            thread.join()
        for pod in self.pods.values():
            pod.end()
        self.shutdown()
        self.server_close()

    # The API.

    def write(self, path, document):
        with self.lock:
            self.version += 1
            old = self.objects.get(path, {})
            meta = document["metadata"]
            meta.setdefault("uid", old.get("metadata", {}).get("uid") or f"uid-{self.version}")
            meta["resourceVersion"] = str(self.version)
            if "spec" in document:
                changed = old.get("spec") != document["spec"]
                meta["generation"] = old.get("metadata", {}).get("generation", 0) + changed
            if document["kind"] == "Deployment" and old and old["spec"]["selector"] != document["spec"]["selector"]:
                raise Refused("spec.selector: field is immutable")
            if document["kind"] == "Secret":
                document.pop("stringData", None)
            self.objects[path] = document
            return document

    def create(self, path, document, dry_run=False):
        with self.lock:
            if document["kind"] == "Pod" and not pod_security.admits(labels_of(self.objects[OURS]), document["spec"]):
                raise Refused('violates PodSecurity "restricted:latest"')
            if dry_run:
                return document
            if path in self.objects:
                raise Refused("already exists")
            self.write(path, document)
            if document["kind"] == "Pod":
                self.pods[path] = Pod(self, document)
            return document

    def delete(self, path, orphan=False):
        with self.lock:
            document = self.objects.pop(path)
            self.version += 1
            uid = document["metadata"]["uid"]
            for place, it in list(self.objects.items()):
                owners = it["metadata"].get("ownerReferences", [])
                if any(owner["uid"] == uid for owner in owners):
                    if orphan:
                        it["metadata"]["ownerReferences"] = []
                    else:
                        self.delete(place)
            if path in self.pods:
                pod = self.pods.pop(path)
                self.ended[path] = (time.monotonic(), pod)
                thread = threading.Thread(target=pod.end)
                thread.start()
                self.ending.append(thread)
            return document

    @property
    def endpoints(self):
        """The pods to which the Service leads. What has just ended stays for a moment."""
        with self.lock:
            if self.policy_blocks and any("/networkpolicies/" in path for path in self.objects):
                return [Nothing]
            now = time.monotonic()
            going = [pod for since, pod in self.ended.values() if now - since < switch.STALE and pod.was_endpoint]
            wanted = self.objects[f"{OURS}/services/{NAME}"]["spec"]["selector"]
            there = []
            for path, pod in self.pods.items():
                pod.was_endpoint = manifests.selects(wanted, labels_of(self.objects[path])) and self.is_ready(path)
                there += [pod] if pod.was_endpoint else []
            return there + going or [Nothing]

    # The controllers.

    def is_ready(self, path):
        conditions = self.objects[path].get("status", {}).get("conditions", [])
        return {"type": "Ready", "status": "True"} in conditions

    def control(self):
        while not self.stopped.wait(0.05):
            with self.lock:
                for path, pod in list(self.pods.items()):
                    if pod.process is None:
                        pod.start()
                    self.objects[path]["status"] = pod.status()
                for path in [it for it in self.objects if it.startswith(f"{SETS}/")]:
                    self.control_set(self.objects[path])
                for path in [it for it in self.objects if it.startswith(f"{DEPLOYMENTS}/")]:
                    self.control_deployment(self.objects[path])

    def owned(self, owner, below):
        """Returns the paths of the objects that belong to `owner`. It adopts orphans that it selects,
        and releases what it does not select any more.
        """
        found, uid = [], owner["metadata"]["uid"]
        for path, it in list(self.objects.items()):
            if not path.startswith(f"{below}/"):
                continue
            owners = it["metadata"].setdefault("ownerReferences", [])
            selected = manifests.selects(owner["spec"]["selector"]["matchLabels"], labels_of(it))
            if selected and not owners:
                reference = {"apiVersion": owner["apiVersion"], "kind": owner["kind"], "name": owner["metadata"]["name"]}
                owners.append(reference | {"uid": uid, "controller": True})
            elif not selected and any(it["uid"] == uid for it in owners):
                owners.clear()
            if any(it["uid"] == uid for it in owners):
                found.append(path)
        return found

    def control_set(self, owner):
        pods = self.owned(owner, f"{OURS}/pods")
        # Pods that are not ready end first.
        pods.sort(key=self.is_ready)
        for path in pods[: max(0, len(pods) - owner["spec"]["replicas"])]:
            self.delete(path)
        for _ in range(owner["spec"]["replicas"] - len(pods)):
            self.serial += 1
            name = f"{owner['metadata']['name']}-{self.serial}"
            template = json.loads(json.dumps(owner["spec"]["template"]))
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": template["metadata"], "spec": template["spec"]}
            pod["metadata"] |= {"name": name, "namespace": NAMESPACE}
            with contextlib.suppress(Refused):
                self.create(f"{OURS}/pods/{name}", pod)

    def control_deployment(self, owner):
        sets, spec, name = self.owned(owner, SETS), owner["spec"], owner["metadata"]["name"]
        digest = f"{hash(json.dumps(spec['template'], sort_keys=True)) & 0xFFFFFF:06x}"
        current = f"{SETS}/{name}-{digest}"
        if current not in self.objects:
            template = json.loads(json.dumps(spec["template"]))
            template["metadata"]["labels"]["pod-template-hash"] = digest
            labels = template["metadata"]["labels"]
            new = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": f"{name}-{digest}", "namespace": NAMESPACE, "labels": labels}}
            new["spec"] = {"replicas": 0, "selector": {"matchLabels": labels}, "template": template}
            self.write(current, new)
            return
        replicas = spec.get("replicas", 1)
        pods = {path: self.owned(self.objects[path], f"{OURS}/pods") for path in sets}
        ready = {path: sum(map(self.is_ready, pods[path])) for path in sets}
        # maxSurge 1 and maxUnavailable 0.
        room = replicas + 1 - sum(self.objects[path]["spec"]["replicas"] for path in sets)
        ours = self.objects[current]["spec"]
        ours["replicas"] = min(replicas, ours["replicas"] + max(0, room))
        # As many old ones may go as new ones are ready (reconcileOldReplicaSets of Kubernetes).
        spare = sum(self.objects[path]["spec"]["replicas"] for path in sets) - replicas
        spare -= ours["replicas"] - ready.get(current, 0)
        for path in sets:
            old = self.objects[path]["spec"]
            if path != current and old["replicas"] and spare > 0:
                old["replicas"] -= 1
                break
        count = sum(len(it) for it in pods.values())
        owner["status"] = {
            "observedGeneration": owner["metadata"]["generation"], "replicas": count,
            "updatedReplicas": len(pods.get(current, ())), "readyReplicas": sum(ready.values()),
            "availableReplicas": sum(ready.values()),
        }


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def handle_one(self):
        url = urllib.parse.urlsplit(self.path)
        path, query = url.path, dict(urllib.parse.parse_qsl(url.query))
        body = json.loads(self.body() or "null")
        try:
            getattr(self, self.command.lower())(path, query, body)
        except Refused as error:
            self.status_of(403, str(error))
        except BrokenPipeError:
            pass

    def body(self):
        """Returns the body, which `kubectl create --raw` sends in chunks."""
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while length := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(length))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_one

    def get(self, path, query, _):
        cluster = self.server
        if path in cluster.answers:
            self.answer(200, cluster.answers[path])
        elif query.get("watch") in ("1", "true"):
            self.watch(path, query)
        elif path.endswith("/log"):
            log = cluster.pods[path.removesuffix("/log")].directory / "log"
            self.answer(200, log.read_text() if log.exists() else "")
        elif path in cluster.objects:
            self.answer(200, cluster.objects[path])
        elif (kind := self.kind_of(path)) is not None:
            items = self.below(path, query)
            about = {"kind": f"{kind}List", "apiVersion": self.version_of(path), "metadata": {"resourceVersion": str(cluster.version)}}
            self.answer(200, about | {"items": items})
        else:
            self.status_of(404, "not found")

    def post(self, path, query, body):
        found = re.fullmatch(rf"{OURS}/services/{NAME}:80/proxy/post", path)
        if found:
            pod = self.server.endpoints[0]
            connection = http.client.HTTPConnection("127.0.0.1", pod.port, timeout=10)
            try:
                connection.request("POST", "/post", json.dumps(body), {"Content-Type": "application/json"})
                answer = connection.getresponse()
                self.answer(answer.status, answer.read().decode())
            except OSError as error:
                self.status_of(503, str(error))
            return
        place = f"{path}/{body['metadata']['name']}"
        body["metadata"].setdefault("namespace", NAMESPACE)
        self.answer(201, self.server.create(place, body, "dryRun" in query))

    def put(self, path, _, body):
        self.answer(200, self.server.write(path, body))

    def patch(self, path, query, body):
        with self.server.lock:
            old = self.server.objects.get(path)
            if old is None and "apply" not in self.headers["Content-Type"]:
                self.status_of(404, "not found")
                return
            body["metadata"] = body.get("metadata", {})
            new = json.loads(json.dumps(merged(old or {}, body)))
            self.answer(200, new if "dryRun" in query else self.server.write(path, new))

    def delete(self, path, _, body):
        if path not in self.server.objects:
            self.status_of(404, "not found")
            return
        self.answer(200, self.server.delete(path, (body or {}).get("propagationPolicy") == "Orphan"))

    def kind_of(self, path):
        kinds = {name: kind for kinds in KINDS.values() for name, kind in kinds.items()}
        return kinds.get(path.rpartition("/")[2])

    def version_of(self, path):
        return next(version for version in KINDS if path.startswith(f"{api.root(version)}/"))

    def below(self, path, query):
        """Returns the objects below a path that the selectors of a query select."""
        found = []
        with self.server.lock:
            for place, it in sorted(self.server.objects.items()):
                wanted = [part for part in query.get("labelSelector", "").split(",") if part]
                about = {"metadata.name": it["metadata"]["name"], "status.phase": it.get("status", {}).get("phase")}
                fields = [part for part in query.get("fieldSelector", "").split(",") if part]
                if place.rpartition("/")[0] != path or not all(self.selects(part, about) for part in fields):
                    continue
                if all(self.selects(part, labels_of(it)) for part in wanted):
                    found.append(json.loads(json.dumps(it)))
        return found

    def selects(self, part, labels):
        key, negative, value = part.partition("!=") if "!=" in part else part.partition("=")
        return (labels.get(key) == value) != (negative == "!=")

    def watch(self, path, query):
        """Says what is there, and then each change, for half a minute."""
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        known = {}
        for _ in range(300):
            seen = {it["metadata"]["name"]: it for it in self.below(path, query)}
            events = [("ADDED" if name not in known else "MODIFIED", it) for name, it in seen.items() if known.get(name) != it]
            events += [("DELETED", it) for name, it in known.items() if name not in seen]
            for kind, it in events:
                data = json.dumps({"type": kind, "object": it}).encode() + b"\n"
                self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
            known = seen
            time.sleep(0.1)
        self.wfile.write(b"0\r\n\r\n")

    def status_of(self, code, message):
        reason = {404: "NotFound", 403: "Forbidden"}.get(code, "ServiceUnavailable")
        status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason}
        self.answer(code, status | {"code": code, "message": message})

    def answer(self, status, content):
        is_text = isinstance(content, str)
        with self.server.lock:
            data = (content if is_text else json.dumps(content)).encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain" if is_text else "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


class Reader:
    """Somebody who follows the page, in a clone of the repository."""

    def __init__(self, directory, relay, kubectl, haproxy):
        self.directory = directory
        self.clone = directory / "clone"
        shutil.copytree(REPOSITORY / "deploy", self.clone / "deploy")
        self.consumer = Consumer()
        self.cluster = Cluster(directory, relay, haproxy)
        programs = directory / "bin"
        programs.mkdir()
        for name in ("kubectl", "oc"):
            text = WRAPPER.format(directory=directory, name=NAME, relay=relay, kubectl=kubectl)
            (programs / name).write_text(text)
            (programs / name).chmod(0o755)
        (programs / NAME).symlink_to(relay)
        server = {"name": "x", "cluster": {"server": f"http://127.0.0.1:{self.cluster.server_address[1]}"}}
        context = {"name": "x", "context": {"cluster": "x", "user": "x"}}
        config = {"apiVersion": "v1", "kind": "Config", "clusters": [server], "contexts": [context]}
        (directory / "config").write_text(json.dumps(config | {"current-context": "x", "users": [{"name": "x", "user": {}}]}))
        haproxy_directory = str(pathlib.Path(haproxy).parent)
        self.environment = {
            "HOME": str(directory), "KUBECONFIG": str(directory / "config"),
            "PATH": f"{programs}:{os.defpath}:{haproxy_directory}", "TIMEOUT": "60", "DRAIN": "3", "PAUSE": "1",
        }

    def tutorial(self):
        """Makes the objects of the tutorial, as `kubectl create` does. The ConfigMap was applied, so
        that the next `kubectl apply` removes what it no longer has.
        """
        config = CONFIG.replace("192.0.2.1:8080", f"127.0.0.1:{self.consumer.server_address[1]}")
        labels = {"app": NAME}
        about = {"name": NAME, "namespace": NAMESPACE, "labels": labels}
        template = {"metadata": {"labels": dict(labels)}, "spec": manifests.TUTORIAL_POD}
        create = self.cluster.create
        create(OURS, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": {"team": "a"}}})
        map_about = {"name": f"{NAME}-cm", "namespace": NAMESPACE}
        config_map = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": map_about, "data": {"haproxy.cfg": config}}
        self.applied = {"kubectl.kubernetes.io/last-applied-configuration": json.dumps(config_map)}
        create(f"{OURS}/configmaps/{NAME}-cm", config_map | {"metadata": map_about | {"annotations": self.applied}})
        create(f"{OURS}/services/{NAME}", {"apiVersion": "v1", "kind": "Service", "metadata": dict(about), "spec": manifests.TUTORIAL_SERVICE})
        spec = {"replicas": 1, "selector": {"matchLabels": labels}, "template": template}
        create(f"{DEPLOYMENTS}/{NAME}", {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": dict(about), "spec": spec})
        self.wait_for(self.haproxy_receives)

    def wait_for(self, condition):
        for _ in range(600):
            if condition():
                return
            time.sleep(0.1)
        raise SystemExit(f"{condition.__name__} is still not true")

    def haproxy_receives(self):
        return [getattr(pod, "is_haproxy", None) for pod in self.cluster.endpoints] == [True]

    def haproxy_is_ready(self):
        with self.cluster.lock:
            return any(self.cluster.is_ready(path) for path, pod in self.cluster.pods.items() if pod.is_haproxy)

    def relays_receive(self):
        return [getattr(pod, "is_haproxy", None) for pod in self.cluster.endpoints] == [False, False]

    def run(self, line, status=0, says="", **more):
        """Runs a command of the page, which must end with a status, and say something."""
        command = ["bash", "-euo", "pipefail", "-c", line]
        done = subprocess.run(
            command, capture_output=True, text=True, env=self.environment | more, cwd=self.clone, timeout=300
        )
        if done.returncode != status or says not in done.stderr:
            raise SystemExit(f"{line}: {done.returncode} in place of {status}, {says!r}: {done.stdout}{done.stderr}")
        print(f"{line}: {done.stderr.strip().splitlines()[-1] if done.stderr.strip() else status}", flush=True)

    def state(self):
        """Returns what an undo must bring back."""
        found = []
        for path in (OURS, f"{OURS}/configmaps/{NAME}-cm", f"{OURS}/services/{NAME}", f"{DEPLOYMENTS}/{NAME}"):
            it = json.loads(json.dumps(self.cluster.objects[path]))
            # Nobody selects a ConfigMap by its labels, which stay.
            labels = labels_of(it) if it["kind"] != "ConfigMap" else None
            found.append((it["kind"], labels, it.get("spec"), it.get("data")))
        kinds = ("/networkpolicies/", "/poddisruptionbudgets/", f"/{NAME}-haproxy")
        return found, [path for path in self.cluster.objects if any(kind in path for kind in kinds)]

    def undo(self, before, **more):
        self.run(f"{SCRIPT} undo", says="HAProxy receives the events", **more)
        self.wait_for(self.haproxy_receives)
        if self.state() != before:
            raise SystemExit(f"an undo gives\n{self.state()}\nin place of\n{before}")


def page_commands():
    """Returns the commands of the page up to its end, and those that undo."""
    ahead = re.split(r"^## HAProxy on a virtual machine", PAGE.read_text(), flags=re.MULTILINE)[0]
    undo = "\n".join(re.findall(r"^\*\*To undo:?\*\*.*?(?=^## |\Z)", ahead, re.MULTILINE | re.DOTALL))
    forward = re.sub(r"^\*\*To undo:?\*\*.*?(?=^## |\Z)", "", ahead, flags=re.MULTILINE | re.DOTALL)
    return [[*filter(None, manifests.command_lines(part))] for part in (forward, undo)]


def follow(reader):
    """Follows the page, and makes the mistakes and has the troubles that its steps are made for."""
    forward, undo = page_commands()
    if len(forward) > 7 or f"{SCRIPT} undo" not in undo:
        raise SystemExit(f"{PAGE}: forwards {forward}, back {undo}")
    forward = [line for line in forward if not line.startswith(ELSEWHERE)]
    deployment = f"{DEPLOYMENTS}/{NAME}"
    before = reader.state()
    # With the image that the page names, which stays the same.
    relay = next(line for line in forward if line.startswith(f"{SCRIPT} relay"))

    # Too early, and for other manifests than the tutorial's.
    reader.run(relay, 1, "sends nothing to your consumer")
    reader.run(f"{SCRIPT} undo", 1, "nothing to undo")
    reader.run(f"{SCRIPT} relay --file", 2)

    # Files of HAProxy with a line to decide on, and with nothing to convert.
    config = reader.clone / "deploy/base/relay.toml"
    shipped = config.read_text()
    (reader.clone / "haproxy.cfg").write_text(CONFIG.replace("  bind", "  http-request deny if !{ src 10.0.0.0/8 }\n  bind"))
    reader.run(f"{SCRIPT} config haproxy.cfg", 3, "decide: haproxy.cfg:11: http-request deny")
    config.write_text(shipped)
    (reader.clone / "haproxy.cfg").write_text("global\n")
    reader.run(f"{SCRIPT} config haproxy.cfg", 1, "can't be converted")
    assert config.read_text() == shipped

    # The page as written, with each command twice.
    for line in forward:
        reader.run(line)
        if line.endswith(" config"):
            reader.run(line, 1, "outputs of yours")
            text = (reader.clone / "deploy/base/relay.toml").read_text()
            assert "/post" in text and "stdout" not in text, text
        else:
            reader.run(line)
    reader.wait_for(reader.relays_receive)
    if pod_security.level(labels_of(reader.cluster.objects[OURS]), "enforce") != "restricted":
        raise SystemExit(f"{PAGE} does not enforce pod security")
    # The relays have delivered something before anything else happens.
    reader.wait_for(lambda: reader.consumer.by_relays > 100)

    # Back, although the namespace refused HAProxy, and not while the webhook uses HTTPS.
    webhook = f"{OURS}/secrets/audit-webhook"
    about = {"name": "audit-webhook", "namespace": NAMESPACE}
    reader.cluster.create(webhook, {"apiVersion": "v1", "kind": "Secret", "metadata": about})
    reader.run(f"{SCRIPT} undo", 1, "If the webhook uses HTTPS")
    reader.cluster.delete(webhook)
    # Back, but HAProxy does not start; and so forwards again.
    reader.cluster.haproxy_starts = False
    reader.run(f"{SCRIPT} undo", 1, "The relays still receive", TIMEOUT="4")
    reader.wait_for(reader.relays_receive)
    reader.run(relay, says="the relays receive the events")
    reader.wait_for(reader.relays_receive)
    reader.cluster.haproxy_starts = True
    reader.undo(before)
    reader.run(f"{SCRIPT} undo", 1, "nothing to undo")

    # An image that is not there, seen before and after the switch has begun. HAProxy's pod is
    # evicted in the middle of it, and comes again.
    reader.run(f"{relay} --image {MISSING}", 1, "ErrImagePull")
    reader.undo(before)
    reader.cluster.objects[f"{OURS}/configmaps/{NAME}-cm"]["metadata"]["annotations"] = reader.applied
    reader.run(f"{relay} --force --image {MISSING}", 1, "HAProxy still receives", TIMEOUT="4")
    reader.wait_for(reader.haproxy_receives)
    reader.cluster.delete(next(path for path, pod in reader.cluster.pods.items() if pod.is_haproxy))
    reader.wait_for(reader.haproxy_is_ready)
    reader.undo(before)

    # A control plane from elsewhere than the NetworkPolicy says: the policy goes, and events come.
    reader.cluster.policy_blocks = True
    reader.run(relay, 1, "Their NetworkPolicy, a possible reason, is deleted")
    reader.wait_for(reader.relays_receive)
    reader.cluster.policy_blocks = False

    # Relays with volumes, which stay where they are.
    volumes = f"/apis/apps/v1/namespaces/{NAMESPACE}/statefulsets/{NAME}"
    about = {"name": NAME, "namespace": NAMESPACE}
    reader.cluster.create(volumes, {"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": about})
    reader.run(f"{SCRIPT} undo", 1, "a StatefulSet")
    reader.cluster.delete(volumes)
    reader.undo(before)

    # A file of the consumer that nobody has named, and then has.
    text = config.read_text()
    config.write_text(text.replace("/post\"]", "/post\"]\nbearer_token_file = \"/consumer/token\""))
    reader.run(relay, 1, "/consumer/token")
    (reader.clone / "token").write_text("abc")
    reader.run(f"{relay} --file token", says="the relays receive the events")
    config.write_text(text)

    # The consumer turns the relays down. What they hold goes to files.
    reader.consumer.refuses_relays = True
    time.sleep(2)
    reader.undo(before)
    reader.consumer.refuses_relays = False
    saved = [json.loads(line)["auditID"] for file in reader.clone.glob("*.jsonl") for line in file.read_text().splitlines()]
    if not saved:
        raise SystemExit("an undo with a consumer that takes nothing has written no events")

    # As `oc`, which has another overlay, with the namespace's restrictions from before.
    labels, enforce = labels_of(reader.cluster.objects[OURS]), f"{pod_security.PREFIX}enforce"
    labels[enforce] = "privileged"
    admitted = reader.state()
    labels[enforce] = "restricted"
    reader.run(relay, says="the relays receive the events", KUBECTL="oc")
    assert "scc" in json.dumps(reader.cluster.objects[deployment])
    reader.run(f"{SCRIPT} undo", 1, "does not admit HAProxy's pod", KUBECTL="oc")
    reader.wait_for(reader.relays_receive)
    reader.run(f"oc label --overwrite namespace {NAMESPACE} {enforce}=privileged")
    reader.undo(admitted, KUBECTL="oc")

    # Another Deployment than the tutorial's.
    reader.cluster.objects[deployment]["spec"]["selector"]["matchLabels"]["tier"] = "x"
    reader.run(relay, 1, "selector is not")
    del reader.cluster.objects[deployment]["spec"]["selector"]["matchLabels"]["tier"]
    return {int(number) for number in saved}, len(forward)


def main():
    relay, kubectl = (str(pathlib.Path(it).resolve()) for it in sys.argv[1:])
    haproxy = shutil.which("haproxy", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if haproxy is None:
        raise SystemExit("haproxy is not installed")
    with tempfile.TemporaryDirectory() as name:
        reader = Reader(pathlib.Path(name), relay, kubectl, haproxy)
        try:
            reader.tutorial()
            sender = switch.Sender(reader.cluster)
            try:
                saved, commands = follow(reader)
                time.sleep(1)
            finally:
                sender.stop()
        finally:
            reader.cluster.close()
    missing = sorted(set(range(sender.sent)) - reader.consumer.numbers - saved)
    if sender.given_up or missing:
        raise SystemExit(f"given up: {sender.given_up}, missing: {missing}")
    if not sender.sent or not reader.consumer.by_relays:
        raise SystemExit("no event has come by the relays")
    print(
        f"{commands} commands of {PAGE.relative_to(REPOSITORY)}: of {sender.sent} events none is missing, "
        f"{reader.consumer.by_relays} came by relays, {len(saved)} were saved by an undo"
    )


if __name__ == "__main__":
    main()
