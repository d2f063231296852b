"""A small stand-in for kube-apiserver: it has one Service, and takes note of how it is patched.

The commands kubectl and helm are the real ones. So what `kubectl apply` makes of a Service that is
there, and what a chart finds by `lookup`, is what they do in a cluster.
"""

import copy
import http.server
import json
import pathlib
import subprocess
import tempfile
import threading

RESOURCES = {
    "/version": {"major": "1", "minor": "33", "gitVersion": "v1.33.0"},
    "/api": {"kind": "APIVersions", "versions": ["v1"]},
    "/apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": []},
    "/api/v1": {
        "kind": "APIResourceList",
        "groupVersion": "v1",
        "resources": [
            {"name": "services", "singularName": "service", "namespaced": True, "kind": "Service", "verbs": ["get", "patch"]}
        ],
    },
}
NOT_FOUND = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}


class Api(http.server.ThreadingHTTPServer):
    """Serves while the `with` block lasts. `kubeconfig` is the text of a kubeconfig for it."""

    daemon_threads = True

    def __init__(self, service):
        super().__init__(("127.0.0.1", 0), Handler)
        metadata = service["metadata"]
        self.path = f"/api/v1/namespaces/{metadata['namespace']}/services/{metadata['name']}"
        self.service, self.patches = service, []
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


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        path = self.path.partition("?")[0]
        found = self.server.service if path == self.server.path else RESOURCES.get(path)
        self.answer(200 if found else 404, found or NOT_FOUND)

    def do_PATCH(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        if self.path.partition("?")[0] == self.server.path:
            self.server.patches.append((self.headers["Content-Type"], body))
        self.answer(200, self.server.service)

    def answer(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
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
        for name, content in (("config", api.kubeconfig), ("new.json", json.dumps(service)), ("old.json", json.dumps(before))):
            (place / name).write_text(content)
        command = [kubectl, "--kubeconfig", place / "config", "--cache-dir", place / "cache"]
        command += ["apply", "--validate=false", "-f", place / "new.json"]
        subprocess.run(command, check=True, capture_output=True, text=True)
        result = before
        for kind, patch in api.patches:
            assert kind == "application/strategic-merge-patch+json", kind
            (place / "old.json").write_text(json.dumps(result))
            command = [kubectl, "patch", "--local", "-f", place / "old.json", "-p", patch, "-o", "json"]
            result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return result
