"""A small stand-in for kube-apiserver, for the real kubectl and the real Helm.

It has the objects that it is given, and no controllers. It changes nothing: it takes note of each
write. So what `kubectl apply` makes of a Service that is there, what a chart finds by `lookup`, and
what a page's commands ask for, is what they do in a cluster.
"""

import copy
import http.server
import json
import pathlib
import subprocess
import tempfile
import threading

# The resources that it knows, by group and version.
KINDS = {
    "v1": {"secrets": "Secret", "serviceaccounts": "ServiceAccount", "services": "Service"},
    "apps/v1": {"deployments": "Deployment", "deployments/scale": "Scale", "replicasets": "ReplicaSet"},
}


def root(version):
    return f"/api/{version}" if version == "v1" else f"/apis/{version}"


def discovery():
    """Returns the answers by which kubectl and Helm learn what there is."""
    apps = {"groupVersion": "apps/v1", "version": "v1"}
    answers = {
        "/version": {"major": "1", "minor": "33", "gitVersion": "v1.33.0"},
        "/api": {"kind": "APIVersions", "versions": ["v1"]},
        "/apis": {
            "kind": "APIGroupList",
            "apiVersion": "v1",
            "groups": [{"name": "apps", "versions": [apps], "preferredVersion": apps}],
        },
    }
    for version, kinds in KINDS.items():
        verbs = ["create", "get", "list", "patch", "watch"]
        resources = [{"name": it, "singularName": "", "namespaced": True, "kind": kinds[it], "verbs": verbs} for it in kinds]
        for it in resources:
            if it["kind"] == "Scale":
                it |= {"group": "autoscaling", "version": "v1"}
        answers[root(version)] = {"kind": "APIResourceList", "groupVersion": version, "resources": resources}
    return answers


def path_of(document):
    """Returns the path of an object."""
    name = next(name for name, kind in KINDS[document["apiVersion"]].items() if kind == document["kind"])
    metadata = document["metadata"]
    return f"{root(document['apiVersion'])}/namespaces/{metadata['namespace']}/{name}/{metadata['name']}"


class Api(http.server.ThreadingHTTPServer):
    """Serves while the `with` block lasts. `kubeconfig` is the text of a kubeconfig for it, `writes`
    has the method, the path and the body of each write, and `texts` what it answers as text.
    """

    daemon_threads = True

    def __init__(self, *documents, texts=()):
        super().__init__(("127.0.0.1", 0), Handler)
        self.objects = {path_of(document): document for document in documents}
        self.answers, self.texts, self.writes = discovery(), dict(texts), []
        cluster = {"name": "x", "cluster": {"server": f"http://127.0.0.1:{self.server_address[1]}"}}
        context = {"name": "x", "context": {"cluster": "x", "user": "x"}}
        config = {"apiVersion": "v1", "kind": "Config", "clusters": [cluster], "contexts": [context]}
        self.kubeconfig = json.dumps(config | {"current-context": "x", "users": [{"name": "x", "user": {}}]})

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()

    def found(self, path):
        """Returns an object, the list of those below a path, or None."""
        if path in self.objects:
            return self.objects[path]
        if path in self.answers:
            return self.answers[path]
        items = [it for place, it in self.objects.items() if place.rpartition("/")[0] == path]
        if items:
            return {"kind": f"{items[0]['kind']}List", "apiVersion": items[0]["apiVersion"], "metadata": {}, "items": items}
        deployment, _, sub = path.rpartition("/")
        if sub == "scale" and deployment in self.objects:
            found = self.objects[deployment]
            replicas = {"replicas": found["spec"]["replicas"]}
            about = {"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": found["metadata"]}
            return about | {"spec": replicas, "status": replicas}
        return None


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        path = self.path.partition("?")[0]
        if path in self.server.texts:
            self.answer(200, "text/plain", self.server.texts[path])
        else:
            self.found(path)

    def do_PATCH(self):
        body, path = self.body(), self.path.partition("?")[0]
        self.server.writes.append(("PATCH", path, body))
        self.found(path)

    def do_POST(self):
        body, path = self.body(), self.path.partition("?")[0]
        self.server.writes.append(("POST", path, body))
        self.answer(201, "application/json", json.dumps(body))

    def body(self):
        return json.loads(self.rfile.read(int(self.headers["Content-Length"])))

    def found(self, path):
        document = self.server.found(path)
        status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}
        self.answer(404 if document is None else 200, "application/json", json.dumps(document or status))

    def answer(self, status, kind, text):
        data = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


def live(service, applied):
    """Returns a Service as the cluster has it: made by `kubectl apply` or by `kubectl create`."""
    found = copy.deepcopy(service)
    found["metadata"] |= {"uid": "0", "resourceVersion": "1"}
    if applied:
        annotation = {"kubectl.kubernetes.io/last-applied-configuration": json.dumps(service) + "\n"}
        found["metadata"]["annotations"] = annotation
    found["spec"] |= {"clusterIP": "10.96.0.17", "clusterIPs": ["10.96.0.17"]}
    return found


def applied(kubectl, before, service):
    """Returns what `kubectl apply` makes of the Service `before`, which `live` has made."""
    with tempfile.TemporaryDirectory() as directory, Api(before) as api:
        place = pathlib.Path(directory)
        (place / "config").write_text(api.kubeconfig)
        (place / "new.json").write_text(json.dumps(service))
        command = [kubectl, "--kubeconfig", place / "config", "--cache-dir", place / "cache"]
        subprocess.run([*command, "apply", "--validate=false", "-f", place / "new.json"], check=True, capture_output=True, text=True)
        result = before
        for method, path, patch in api.writes:
            assert (method, path) == ("PATCH", path_of(before)), (method, path)
            (place / "old.json").write_text(json.dumps(result))
            command = [kubectl, "patch", "--local", "-f", place / "old.json", "-p", json.dumps(patch), "-o", "json"]
            result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return result
