"""Runs the commands of docs/replace-cloud-logs-app.md, in the order of the page, and has kubectl
read each of its commands on the other pages.

    pages.py KUBECTL

KUBECTL is the real kubectl, against the stand-in of api.py. Each command must end well and ask for
exactly the writes that the page promises: two replicas, the image and nothing else of the pod, the
pod of before, and the credentials for the image.

A command of kubectl or oc on any page runs without a cluster. It must get as far as the connection,
so kubectl knows its options and has read the files of deploy/ that it names. `oc adm` is not read,
because kubectl has no such commands.
"""

import copy
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
import tempfile

sys.dont_write_bytecode = True
import api
import manifests
from manifests import APP, NAMESPACE, REPOSITORY

PAGE = "docs/replace-cloud-logs-app.md"
THEIRS = "icr.io/ibm/ibmcloud-kube-audit-to-ibm-cloud-logs:latest"
# Other tests run the image and count events; these need a cluster or a registry.
ELSEWHERE = ("port-forward", "skopeo", "deploy/image.sh")


def metadata(name, **more):
    return {"name": name, "namespace": NAMESPACE, "uid": name, "resourceVersion": "1"} | more


def template_with(image):
    pod = copy.deepcopy(manifests.APP_POD)
    pod["containers"][0]["image"] = image
    return {"metadata": {"labels": {"app": APP}}, "spec": pod}


def objects():
    """Returns the objects of the tutorial as they are after the switch, because the stand-in changes
    nothing: with the second of two revisions.
    """
    labels = {"app": APP}
    revision = "deployment.kubernetes.io/revision"
    counts = ("replicas", "updatedReplicas", "readyReplicas", "availableReplicas")
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata(APP, generation=1, annotations={revision: "2"}),
        "spec": {"replicas": 1, "selector": {"matchLabels": labels}, "template": template_with("ours")},
        "status": {"observedGeneration": 1} | dict.fromkeys(counts, 1),
    }
    yield deployment
    for number, image in (("1", THEIRS), ("2", "ours")):
        old = template_with(image)
        old["metadata"]["labels"] = labels | {"pod-template-hash": number}
        owner = {"apiVersion": "apps/v1", "kind": "Deployment", "name": APP, "uid": APP, "controller": True}
        about = metadata(f"{APP}-{number}", labels=old["metadata"]["labels"], annotations={revision: number})
        spec = {"replicas": 0, "selector": {"matchLabels": old["metadata"]["labels"]}, "template": old}
        yield {"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": about | {"ownerReferences": [owner]}, "spec": spec}
    yield {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata("default")}
    secret = {"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/dockerconfigjson", "data": {"a": "Yg=="}}
    yield secret | {"metadata": {"name": "all-icr-io", "namespace": "default"}}


# The stand-in has no schemas for `kubectl create`.
WRAPPER = """\
#!/bin/sh
case $1 in create) shift; set -- create --validate=false "$@" ;; esac
exec '{}' "$@"
"""

METRICS = """\
apiserver_audit_error_total{plugin="webhook"} 0
apiserver_audit_event_total 1234
apiserver_audit_level_total{level="Metadata"} 1
"""


def wanted(deployment):
    """Returns the writes that the page promises, in their order."""
    path = api.path_of(deployment)
    namespace = f"/api/v1/namespaces/{NAMESPACE}"
    unpublished = (REPOSITORY / "deploy/published").read_text() == "none\n"
    registry = "icr.io/my-namespace" if unpublished else "ghcr.io/kube-audit-forwarder"
    image = f"{registry}/kube-audit-forwarder:0.2.0"
    secret = {"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/dockerconfigjson", "data": {"a": "Yg=="}}
    yield "POST", f"{namespace}/secrets", secret | {"metadata": {"name": "all-icr-io", "namespace": NAMESPACE}}
    yield "PATCH", f"{namespace}/serviceaccounts/default", {"imagePullSecrets": [{"name": "all-icr-io"}]}
    yield "PATCH", f"{path}/scale", {"spec": {"replicas": 2}}
    containers = {"$setElementOrder/containers": [{"name": APP}], "containers": [{"image": image, "name": APP}]}
    yield "PATCH", path, {"spec": {"template": {"spec": containers}}}
    yield "PATCH", path, "the pod of before"


def understood(write):
    """Returns a write, with the text "the pod of before" for an undo that gives back the pod."""
    method, path, body = write
    if isinstance(body, list):
        templates = [it["value"] for it in body if it["path"] == "/spec/template"]
        others = {it["path"] for it in body} - {"/spec/template", "/metadata/annotations"}
        # kubectl adds the empty values of its own types.
        same = [json.dumps(bare(it), sort_keys=True) for it in (*templates, template_with(THEIRS))]
        if len(set(same)) == 1 and not others:
            return method, path, "the pod of before"
    return write


def bare(value):
    if isinstance(value, dict):
        kept = {key: bare(inner) for key, inner in value.items() if inner not in (None, {}, [])}
        return {key: inner for key, inner in kept.items() if key != "protocol"}
    return [bare(inner) for inner in value] if isinstance(value, list) else value


def command_lines(page):
    return manifests.command_lines(page.read_text())


def without_cluster(kubectl):
    """Runs each command of kubectl on the pages without a cluster. Returns their number."""
    count = 0
    with tempfile.TemporaryDirectory() as name:
        directory = pathlib.Path(name)
        for folder in ("deploy", "tests"):
            (directory / folder).symlink_to(REPOSITORY / folder)
        # The user's own files.
        for file in ("api-key", "ca.crt", "token", "metrics-token", "audit-webhook.yaml"):
            (directory / file).write_text("any")
        options = ["--server", "http://127.0.0.1:1"]
        environment = {"HOME": name, "KUBECONFIG": "/dev/null", "PATH": os.defpath}
        for page in [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]:
            for line in command_lines(page):
                found = re.match(r"(?:kubectl|oc) (?!adm |proxy )(.*)", line)
                if not found:
                    continue
                words = shlex.split(found[1], comments=True)
                end = next((it for it, word in enumerate(words) if word in ("|", ">", "&&", ";")), None)
                command = [kubectl, *options, *words[:end]]
                done = subprocess.run(
                    command, input="{}", capture_output=True, text=True, env=environment, cwd=name, timeout=120
                )
                if "refused" not in done.stderr and not ("--dry-run=client" in line and done.returncode == 0):
                    raise SystemExit(f"{page}: {line}: {done.stderr}{done.stdout}")
                count += 1
    return count


def main():
    (kubectl,) = sys.argv[1:]
    kubectl = pathlib.Path(kubectl).resolve()
    read = without_cluster(kubectl)
    run = [line for line in command_lines(REPOSITORY / PAGE) if not any(word in line for word in ELSEWHERE)]
    documents = list(objects())
    with tempfile.TemporaryDirectory() as name, api.Api(*documents, texts={"/metrics": METRICS}) as cluster:
        directory = pathlib.Path(name)
        wrapper = directory / "kubectl"
        wrapper.write_text(WRAPPER.format(kubectl))
        wrapper.chmod(0o755)
        (directory / "config").write_text(cluster.kubeconfig)
        environment = {"HOME": name, "KUBECONFIG": str(directory / "config"), "PATH": f"{name}:{os.defpath}"}
        for line in run:
            command = ["bash", "-euo", "pipefail", "-c", line]
            done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
            if done.returncode != 0:
                raise SystemExit(f"{PAGE}: {line}: {done.stderr}")
            if "--raw" in line and done.stdout.splitlines() != METRICS.splitlines()[:2]:
                raise SystemExit(f"{PAGE}: {line}: {done.stdout}")
    found = [understood(write) for write in cluster.writes]
    expected = list(wanted(documents[0]))
    if found != expected:
        raise SystemExit(f"{PAGE} asks for\n{found}\nin place of\n{expected}")
    if read < 40:
        raise SystemExit(f"only {read} commands of kubectl were found on the pages")
    print(f"kubectl reads {read} commands of the pages; {len(run)} commands of {PAGE} ask for {len(found)} writes, as the page says")


if __name__ == "__main__":
    main()
