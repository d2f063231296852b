"""Renders deploy/base and every overlay, and looks for faults that would show in a cluster.

    manifests.py RELAY KUBECTL…

Each KUBECTL renders them with its `kustomize`. All must render the same, and none may say a word on
stderr, such as a warning of a deprecated field. The script checks the result against the schemas of several versions of Kubernetes, and for faults that no schema shows:
selectors that match nothing, ports that do not exist, URLs that kube-apiserver's service proxy
refuses, files that are not mounted, a config that the program RELAY refuses, too little memory, a
drain that is cut off. No pod anywhere in the repository may have privileges
that `pod_security.weaknesses` knows, but those of EXCUSED, each with its reason. At the end each check is shown a manifest with a fault that it
must find.

Custom resources (PodMonitor, PrometheusRule) have no schema here. Other tests check their contents.
"""

import copy
import json
import pathlib
import re
import shlex
import subprocess
import sys
import tempfile
import textwrap
import tomllib

import kubernetes_validate
import yaml

# No directory of compiled Python beside the manifests.
sys.dont_write_bytecode = True
import api
import pod_security

DEPLOY = pathlib.Path(__file__).resolve().parent.parent
REPOSITORY = DEPLOY.parent

# The versions go from the oldest that OpenShift still supports to the newest that has a schema.
VERSIONS = ["1.26", "1.27", "1.29", "1.31", "1.33", "1.35", "1.36", "1.37"]

# Kinds that an operator brings.
CUSTOM = {"monitoring.coreos.com/v1": {"PodMonitor", "ServiceMonitor", "PrometheusRule"}}

NAME = "kube-audit-forwarder"
NAMESPACE = "ibm-kube-audit"
SPOOL = "/var/lib/kube-audit-forwarder"
CONFIG = "/etc/kube-audit-forwarder"
MIB = 1 << 20


# The privileges that a pod has for a reason: by its object, what `weaknesses` and `violations`
# of `pod_security` say of it.
EXCUSED = {
    "DaemonSet kube-audit-log": {
        "replay: may run as root": "kube-apiserver creates its audit.log with the mode 0600",
        "replay: runAsNonRoot is not true": "the same",
        "the pod: runAsUser is 0": "the same",
        "the volume log is of another kind than allowed": "the log is a file of the node",
        "the volume progress is of another kind than allowed": "the place belongs to the node's log",
    }
}


def render(kubectl, directory):
    """Returns the documents of one kustomization. A warning of kubectl is an error here."""
    done = subprocess.run([kubectl, "kustomize", str(directory)], capture_output=True, text=True)
    if done.returncode != 0 or done.stderr:
        raise SystemExit(f"{kubectl} kustomize {directory}: {done.stderr}")
    documents = [document for document in yaml.safe_load_all(done.stdout) if document]
    return sorted(documents, key=identity)


def silent_about_bases(kubectl):
    """Returns whether a kubectl says nothing of a deprecated field, so that `render` would not see it."""
    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory)
        (path / "base").mkdir()
        (path / "base/service.yaml").write_text((DEPLOY / "base/service.yaml").read_text())
        (path / "base/kustomization.yaml").write_text("resources: [service.yaml]\n")
        (path / "kustomization.yaml").write_text("bases: [base]\n")
        done = subprocess.run([kubectl, "kustomize", path], capture_output=True, text=True)
        return "deprecated" not in done.stderr


def identity(document):
    metadata = document["metadata"]
    return (document["kind"], metadata.get("namespace", ""), metadata["name"])


def called(document):
    return f"{document['kind']} {document['metadata']['name']}"


def of_kind(documents, *kinds):
    return [document for document in documents if document["kind"] in kinds]


def schema_problems(documents, versions=VERSIONS):
    for document in documents:
        if document["kind"] in CUSTOM.get(document["apiVersion"], ()):
            continue
        for version in versions:
            try:
                used = kubernetes_validate.validate(document, version, strict=True)
                if used != version:
                    yield f"no schema of Kubernetes {version}, only of {used}"
            except kubernetes_validate.ValidationError as error:
                where = ".".join(str(part) for part in error.path)
                yield f"{called(document)}, Kubernetes {version}: {where}: {error.message}"
            except kubernetes_validate.SchemaNotFoundError as error:
                yield f"{called(document)}: {error.message}"


def selects(selector, labels):
    return bool(selector) and all(labels.get(key) == value for key, value in selector.items())


def size(text):
    """Returns a quantity of Kubernetes or a size of the config, in bytes."""
    number, unit = re.fullmatch(r"(\d+)\s*([KMGT]i?)?B?", str(text)).groups()
    scale = {"K": 1, "M": 2, "G": 3, "T": 4}.get((unit or "")[:1], 0)
    return int(number) * (1024 if (unit or "").endswith("i") else 1000) ** scale


def seconds(text):
    number, unit = re.fullmatch(r"(\d+)(ms|s|m)", text).groups()
    return int(number) * {"ms": 0.001, "s": 1, "m": 60}[unit]


def namespace_problems(documents):
    for document in documents:
        inside = document["metadata"].get("namespace")
        if document["kind"] == "Namespace":
            labels = document["metadata"].get("labels", {})
            for mode, wanted in (("enforce", "privileged"), ("audit", "restricted"), ("warn", "restricted")):
                if pod_security.level(labels, mode) != wanted:
                    yield f"namespace: pod-security {mode} is not {wanted}"
        # Prometheus and Grafana may be in another namespace, but all objects here are in ours.
        elif inside is None:
            yield f"{called(document)} has no namespace"
        # deploy/replace-haproxy.sh deletes by labels.
        elif document["metadata"].get("labels", {}).get("app") != NAME:
            yield f"{called(document)} has no label app"
    if not any(document["metadata"]["name"] == NAMESPACE for document in of_kind(documents, "Namespace")):
        yield f"no namespace {NAMESPACE}"


def workload_problems(documents, relay):
    workloads = of_kind(documents, "Deployment", "StatefulSet")
    if len(workloads) != 1:
        yield f"{len(workloads)} workloads in place of one"
        return
    workload = workloads[0]
    spec, template = workload["spec"], workload["spec"]["template"]
    pod, labels = template["spec"], template["metadata"]["labels"]
    if workload["metadata"]["name"] != NAME:
        yield f"the workload is {called(workload)}"
    if spec["replicas"] < 2:
        yield "fewer than two replicas"
    if not selects(spec["selector"]["matchLabels"], labels):
        yield "the workload does not select its own pods"
    spread = {constraint["topologyKey"] for constraint in pod.get("topologySpreadConstraints", ())}
    if "kubernetes.io/hostname" not in spread:
        yield "not spread over nodes"
    for constraint in pod.get("topologySpreadConstraints", ()):
        if not selects(constraint["labelSelector"]["matchLabels"], labels):
            yield "a spread constraint counts other pods"
    yield from security_problems(documents, pod)
    container = pod["containers"][0]
    yield from image_problems(container)
    yield from probe_problems(container)
    yield from selector_problems(documents, labels, container)
    config = yield from config_problems(documents, pod, container, relay)
    if config is not None:
        yield from route_problems(documents, config)
        yield from volume_problems(documents, workload, container, config)
        yield from limit_problems(container, config)
        yield from drain_problems(pod, container, config)


def security_problems(documents, pod):
    """Yields violations of the pod-security level `restricted`, and of stricter rules of ours."""
    for violation in pod_security.violations(pod):
        yield f"pod security: {violation}"
    accounts = of_kind(documents, "ServiceAccount")
    if pod.get("serviceAccountName") not in [account["metadata"]["name"] for account in accounts]:
        yield "the pod's ServiceAccount is not here"
    for account in accounts:
        if account.get("automountServiceAccountToken") is not False:
            yield "the account mounts a token"
    yield from pod_security.weaknesses(pod)
    if len(pod["containers"]) != 1 or pod.get("initContainers"):
        yield "not one container"


def yaml_texts():
    """Yields each YAML file of the repository and each block of YAML on its pages, with its name."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, check=True, capture_output=True, text=True)
    for name in listed.stdout.split("\0"):
        # The chart's templates are no YAML before they are rendered; chart.py does so.
        if name.startswith("deploy/chart/templates/"):
            continue
        if name.endswith((".yaml", ".yml")):
            yield name, (REPOSITORY / name).read_text()
        elif name.endswith(".md"):
            text = (REPOSITORY / name).read_text()
            for block in re.findall(r"^( *)```yaml\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL):
                yield name, textwrap.dedent(block[1])


def every_pod_problems(rendered):
    """Checks the pods of all manifests, wherever they are: of what kustomize renders, of each YAML
    file, and of each object on a page. No pod has an exception that is not in EXCUSED.

    A block on a page without a `kind` is a part that somebody adds to a manifest.
    """
    found = [(name, document) for name, documents in rendered.items() for document in documents]
    for name, text in yaml_texts():
        for document in yaml.safe_load_all(text):
            if isinstance(document, dict) and "kind" in document:
                found.append((name, document))
    count = 0
    for name, document in found:
        for pod in pod_security.pods(document):
            count += 1
            excused = EXCUSED.get(called(document), {}).keys()
            yield from (f"{name}: {called(document)}: {problem}" for problem in pod_security.weaknesses(pod) if problem not in excused)
            for setting, weaker in pod_security.weakened(pod):
                # A pod that may run as root has no setting against it.
                if weaker != pod and set(pod_security.weaknesses(weaker)) <= excused:
                    yield f"nothing is said of {called(document)} of {name} without {setting}"
    # Each workload counts as a file, and as often as it is rendered.
    print(f"{count} pods: seccomp, read-only root, no token, no capabilities, no root but as EXCUSED says")
    if count < 12:
        yield f"only {count} pods were found"


def image_problems(container):
    version = tomllib.loads((REPOSITORY / "Cargo.toml").read_text())["workspace"]["package"]["version"]
    if not re.fullmatch(rf"\S+/{NAME}:{re.escape(version)}", container["image"]):
        yield f"the image is {container['image']}, the version {version}"


def ports_of(container):
    return {port["name"]: port["containerPort"] for port in container.get("ports", ())}


def probe_problems(container):
    ports = ports_of(container)
    for kind, path in (("startup", "/readyz"), ("liveness", "/livez"), ("readiness", "/readyz")):
        asked = container.get(f"{kind}Probe", {}).get("httpGet", {})
        if asked.get("path") != path or ports.get(asked.get("port")) != 9090:
            yield f"the {kind} probe asks {asked}"


def selector_problems(documents, labels, container):
    ports = ports_of(container)
    for service in of_kind(documents, "Service"):
        if not selects(service["spec"]["selector"], labels):
            yield f"{called(service)} selects no pod of ours"
        for port in service["spec"]["ports"]:
            if port["targetPort"] not in ports.values():
                yield f"{called(service)}: no container listens on {port['targetPort']}"
    budgets = of_kind(documents, "PodDisruptionBudget")
    if not budgets:
        yield "no PodDisruptionBudget"
    for budget in budgets:
        if not selects(budget["spec"]["selector"]["matchLabels"], labels):
            yield f"{called(budget)} selects no pod of ours"
    open_to = {}
    for policy in of_kind(documents, "NetworkPolicy"):
        if not selects(policy["spec"]["podSelector"]["matchLabels"], labels):
            yield f"{called(policy)} selects no pod of ours"
        if policy["spec"]["policyTypes"] != ["Ingress"]:
            yield f"{called(policy)} keeps more back than what comes in"
        for rule in policy["spec"]["ingress"]:
            for port in rule["ports"]:
                open_to.setdefault(port["port"], []).extend(rule["from"])
    if set(open_to) != set(ports.values()):
        yield f"the policies open {sorted(open_to)}, the container has {sorted(ports.values())}"
    for port in (3000, 4443):
        if sorted(json.dumps(peer, sort_keys=True) for peer in open_to.get(port, ())) != CONTROL_PLANE:
            yield f"the policies let others than the control plane to {port}"
    for peer in open_to.get(9090, ()):
        label = peer.get("podSelector", {}).get("matchLabels")
        namespaces = peer.get("namespaceSelector", {}).get("matchExpressions", [{}])[0].get("values", [])
        if label != {"app.kubernetes.io/name": "prometheus"} or "monitoring" not in namespaces:
            yield f"the policies let {peer} to the admin port"


def service_proxy(documents, path):
    """Returns the scheme and the port of the pod to which kube-apiserver's service proxy sends a
    request for a path, or why it answers 503.

    This is ResourceLocation of Kubernetes (pkg/registry/core/service/storage/storage.go). A Service
    is named as NAME, NAME:PORT or SCHEME:NAME:PORT. A number stands for the name of that port. The
    endpoints' ports have the names of the Service's ports. The wanted name must be equal to one of
    them; where the path names no port, it is empty.
    """
    parts = re.fullmatch(r"/api/v1/namespaces/([^/]+)/services/([^/]+)/proxy(/.*)?", path)
    namespace, wanted = parts[1], parts[2]
    words = wanted.split(":")
    scheme = words.pop(0) if len(words) == 3 else ""
    name, port = (*words, "")[:2]
    if len(words) > 2 or not name or scheme not in ("", "http", "https"):
        return f"invalid service request {wanted!r}"
    services = [it for it in of_kind(documents, "Service") if identity(it)[1:] == (namespace, name)]
    if not services:
        return f"services {name!r} not found"
    spec = services[0]["spec"]
    if port.isdecimal():
        named = [it.get("name", "") for it in spec["ports"] if it["port"] == int(port)]
        if not named:
            return f"no service port {port} found for service {name!r}"
        port = named[0]
    pods = [it["spec"]["template"]["metadata"] for it in of_kind(documents, "Deployment", "StatefulSet")]
    if any(selects(spec["selector"], pod["labels"]) for pod in pods):
        for it in spec["ports"]:
            if it.get("name", "") == port:
                return scheme or "http", it["targetPort"]
    return f"no endpoints available for service {wanted!r}"


# How a URL may name the Services, and where it leads. The first is that of IBM Cloud's tutorial for
# HAProxy.
ROUTES = {
    NAME: ("http", 3000),
    f"{NAME}:80": ("http", 3000),
    f"http:{NAME}:80": ("http", 3000),
    f"http:{NAME}:": ("http", 3000),
    f"https:{NAME}-https:https": ("https", 4443),
    f"https:{NAME}-https:443": ("https", 4443),
    f"http:{NAME}:http": f"no endpoints available for service 'http:{NAME}:http'",
    f"https:{NAME}:https": f"no endpoints available for service 'https:{NAME}:https'",
    f"https:{NAME}:443": f"no service port 443 found for service '{NAME}'",
}
# The same for who keeps the Service of version 0.1.0 (deploy/two-ports).
TWO_PORTS = ROUTES | {
    NAME: f"no endpoints available for service '{NAME}'",
    f"http:{NAME}:": f"no endpoints available for service 'http:{NAME}:'",
    f"http:{NAME}:http": ("http", 3000),
    f"https:{NAME}:https": ("https", 4443),
    f"https:{NAME}:443": ("https", 4443),
}


def proxy_path(name, namespace=NAMESPACE):
    return f"/api/v1/namespaces/{namespace}/services/{name}/proxy/post"


def proxy_problems(documents, routes=ROUTES):
    """Yields the URLs that kube-apiserver's service proxy takes otherwise than `routes` says."""
    namespace = of_kind(documents, "Service")[0]["metadata"].get("namespace")
    for name, expected in routes.items():
        found = service_proxy(documents, proxy_path(name, namespace))
        if found != expected:
            yield f"the service proxy: services/{name} gives {found}"


def route_problems(documents, config):
    """Checks the service proxy's ways, and that a listener of the relay speaks the scheme."""
    yield from proxy_problems(documents)
    speaks = {int(it["address"].rpartition(":")[2]): "https" if it.get("tls") else "http" for it in config["listener"]}
    for scheme, port in {it for it in ROUTES.values() if isinstance(it, tuple)}:
        if speaks.get(port) != scheme:
            yield f"port {port} does not speak {scheme}"


def shown_paths():
    """Yields each path of a Service of ours that a page or connect.sh gives to kube-apiserver."""
    shown = re.compile(rf"/api/v1/namespaces/[^/\s]+/services/(?:https?:)?{NAME}[^/\s]*/proxy/post")
    for page in sorted((REPOSITORY / "docs").rglob("*.md")):
        yield from ((str(page.relative_to(REPOSITORY)), path) for path in shown.findall(page.read_text()))
    assigned = re.findall(r"^(?:NAMESPACE|SERVICE|HTTPS|PROXY)=.*", (DEPLOY / "connect.sh").read_text(), re.MULTILINE)
    script = "\n".join((*assigned, 'printf %s "$PROXY"'))
    said = subprocess.run(["sh", "-euc", script], capture_output=True, text=True, check=True, env={})
    yield "deploy/connect.sh", said.stdout


def shown_problems(rendered):
    """Yields the paths that the pages and connect.sh show, and that lead to no relay."""
    count = 0
    for where, path in shown_paths():
        count += 1
        found = service_proxy(rendered["base"], path)
        if not isinstance(found, tuple):
            yield f"{where}: {path}: {found}"
    if count < 5:
        yield f"only {count} URLs are shown"


CONTROL_PLANE = sorted(
    json.dumps(
        {
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}},
            "podSelector": {"matchLabels": {key: value}},
        },
        sort_keys=True,
    )
    for key, value in (
        ("k8s-app", "konnectivity-agent"),
        ("app", "konnectivity-agent"),
        ("app", "vpn"),
    )
)


def config_problems(documents, pod, container, relay):
    """Yields the problems; returns the config with every default, as the relay understands it."""
    maps = [document for document in of_kind(documents, "ConfigMap") if document["metadata"]["name"] == f"{NAME}-cm"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    if any("subPath" in mount or "subPathExpr" in mount for mount in mounts.values()):
        yield "a subPath, which never sees an edit"
    if len(maps) != 1:
        yield f"{len(maps)} ConfigMaps {NAME}-cm"
        return None
    mounted = volumes.get(mounts.get(CONFIG, {}).get("name"), {}).get("configMap", {})
    if mounted.get("name") != maps[0]["metadata"]["name"] or "items" in mounted:
        yield f"{CONFIG} is not the ConfigMap as a whole"
    environment = {variable["name"]: variable["value"] for variable in container["env"]}
    file = pathlib.PurePath(environment["KUBE_AUDIT_FORWARDER_CONFIG"])
    if str(file.parent) != CONFIG or file.name not in maps[0]["data"]:
        yield f"the relay reads {file}, which nothing mounts"
        return None
    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory) / file.name
        path.write_text(maps[0]["data"][file.name])
        checked = subprocess.run(
            [relay, "check", "--elsewhere", "--config", path], capture_output=True, text=True, env=environment
        )
        # Missing files and directories depend on the cluster, and are not checked here. The summary
        # of the config has the file on a line of its own, and indented lines below it.
        said = [
            line
            for line in checked.stderr.splitlines()
            if "/certificates/" not in line
            and "/admin/" not in line
            and SPOOL not in line
            and line != str(path)
            and not line.startswith(("ok: ", "  "))
        ]
        if checked.returncode != 0 or said:
            yield f"check: {checked.stderr}"
            return None
        shown = subprocess.run(
            [relay, "config", "--config", path], capture_output=True, text=True, env=environment, check=True
        )
    text = re.sub(
        r"\$\{env:(\w+)(?::-([^}]*))?\}", lambda name: environment.get(name[1], name[2]), shown.stdout
    )
    config = tomllib.loads(text)
    listening = {int(listener["address"].rpartition(":")[2]) for listener in config["listener"]}
    listening.add(int(config["admin"]["address"].rpartition(":")[2]))
    if listening != set(ports_of(container).values()):
        yield f"the relay listens on {sorted(listening)}"
    for address in [config["admin"]["address"], *(listener["address"] for listener in config["listener"])]:
        if not address.startswith("0.0.0.0:"):
            yield f"{address} can't be reached from outside the pod"
    for listener in config["listener"]:
        tls = listener.get("tls")
        if tls is None:
            continue
        secret = volumes[mounts["/certificates"]["name"]].get("secret", {})
        if secret.get("secretName") != "audit-webhook" or secret.get("optional") is not True:
            yield "the Secret audit-webhook is not mounted, or not optional"
        if tls["optional"] is not True:
            yield "without the Secret the relay would not start"
        if (tls["certificate"], tls["private_key"]) != ("/certificates/tls.crt", "/certificates/tls.key"):
            yield "the certificate is not read from the Secret's keys"
    return config


def volume_problems(documents, workload, container, config):
    pod = workload["spec"]["template"]["spec"]
    claims = workload["spec"].get("volumeClaimTemplates", [])
    names = {volume["name"] for volume in pod["volumes"]} | {claim["metadata"]["name"] for claim in claims}
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    if names != mounted:
        yield f"volumes {sorted(names)}, mounted {sorted(mounted)}"
    for mount in container["volumeMounts"]:
        if (mount["mountPath"] == SPOOL) == mount.get("readOnly", False):
            yield f"{mount['mountPath']}: readOnly is wrong"
    if config["queue"]["directory"] != SPOOL:
        yield f"the spool is {config['queue']['directory']}"
        return
    spool = next(mount["name"] for mount in container["volumeMounts"] if mount["mountPath"] == SPOOL)
    room = next(
        (claim["spec"]["resources"]["requests"]["storage"] for claim in claims if claim["metadata"]["name"] == spool),
        None,
    )
    if room is None:
        volume = next(volume for volume in pod["volumes"] if volume["name"] == spool)
        room = volume.get("emptyDir", {}).get("sizeLimit")
    if room is None:
        yield "the spool's volume has no limit"
    elif size(config["queue"]["max_bytes"]) + size(config["dead_letter"]["max_bytes"]) >= size(room):
        yield f"the spool outgrows its volume of {room}"


def limit_problems(container, config):
    """Checks guarantee 4 (docs/concepts/guarantees.md), with http outputs of four requests at once.

    The largest event that is accepted takes max_in_flight once more, while an output sends it alone.
    """
    most = 2 * size(config["limits"]["max_in_flight"]) + (32 + 32 + 4 * 4) * MIB
    most += config["limits"]["max_connections"] * 64 * 1024
    limit = size(container["resources"]["limits"]["memory"])
    if most * 1.25 > limit:
        yield f"the relay may need {most // MIB} MiB, its limit is {limit // MIB}"
    for kind in ("cpu", "memory"):
        if kind not in container["resources"]["requests"]:
            yield f"no request of {kind}"


def drain_problems(pod, container, config):
    """Checks the times of an end: preStop, then SIGTERM and the relay's own drain, then SIGKILL."""
    command = container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", [])
    if command[:3] != [f"/usr/bin/{NAME}", "drain", "--seconds"]:
        yield f"the preStop hook is {command}"
        return
    needed = int(command[3]) + seconds(config["shutdown"]["drain_timeout"])
    if pod["terminationGracePeriodSeconds"] <= needed:
        yield f"it may take {needed} s to end, and is killed after {pod['terminationGracePeriodSeconds']}"


def problems(documents, relay, versions=VERSIONS):
    yield from schema_problems(documents, versions)
    yield from namespace_problems(documents)
    yield from workload_problems(documents, relay)


def pod_of(documents):
    return of_kind(documents, "Deployment", "StatefulSet")[0]["spec"]["template"]["spec"]


def alike_problems(base, durable):
    """Yields a problem unless the StatefulSet's pods are those of the Deployment."""
    ours, theirs = copy.deepcopy(pod_of(base)), copy.deepcopy(pod_of(durable))
    ours["volumes"] = [volume for volume in ours["volumes"] if volume["name"] != "spool"]
    container, other = ours["containers"][0], theirs["containers"][0]
    del container["resources"]["requests"]["ephemeral-storage"]
    container["env"] = [one for one in container["env"] if one["name"] != "KUBE_AUDIT_FORWARDER_EPHEMERAL"]
    other["env"] = [variable for variable in other["env"] if variable["name"] != "QUEUE_MAX_BYTES"]
    if ours != theirs:
        yield "the StatefulSet's pods are not the Deployment's"


def openshift_problems(documents):
    fixed = {"runAsUser", "runAsGroup", "fsGroup"} & set(pod_of(documents)["securityContext"])
    if fixed:
        yield f"OpenShift's SCC refuses {sorted(fixed)}"
    labels = of_kind(documents, "Namespace")[0]["metadata"]["labels"]
    if "security.openshift.io/scc.podSecurityLabelSync" not in labels:
        yield "OpenShift would change the namespace's pod-security labels"


# The pod of IBM Cloud's tutorial "Forwarding Kubernetes API audit logs to a resource in the private
# network": one container, and no security settings.
TUTORIAL_POD = {
    "containers": [
        {
            "name": "haproxy",
            "image": "haproxytech/haproxy-alpine:2.6",
            "volumeMounts": [
                {
                    "name": "config-volume",
                    "mountPath": "/usr/local/etc/haproxy/haproxy.cfg",
                    "subPath": "haproxy.cfg",
                }
            ],
        }
    ],
    "volumes": [{"name": "config-volume", "configMap": {"name": "kube-audit-forwarder-cm"}}],
}


# What the tutorial's Service has; Kubernetes adds the type ClusterIP to it.
TUTORIAL_SERVICE = {
    "selector": {"app": NAME},
    "ports": [{"protocol": "TCP", "port": 80, "targetPort": 3000}],
    "type": "ClusterIP",
}


def tutorial_service_problems(base):
    """Yields a problem unless ours is the tutorial's Service, so that applying it changes nothing."""
    ours = [it for it in of_kind(base, "Service") if identity(it)[1:] == (NAMESPACE, NAME)]
    if [it["spec"] for it in ours] != [TUTORIAL_SERVICE]:
        yield f"the Service {NAME} is not the tutorial's: {ours}"


# What IBM Cloud's tutorial for Cloud Logs gives to the pod of its app, and the two forms of its
# Service: today's, and that of older clusters.
APP = "ibmcloud-kube-audit"
APP_POD = {
    "containers": [
        {
            "name": APP,
            "ports": [{"containerPort": 3000}, {"containerPort": 4443}],
            "securityContext": {
                "allowPrivilegeEscalation": False,
                "runAsNonRoot": True,
                "capabilities": {"drop": ["ALL"]},
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "volumeMounts": [{"mountPath": "/certificates", "name": "certificates", "readOnly": True}],
        }
    ],
    "volumes": [{"name": "certificates", "secret": {"secretName": "audit-webhook", "optional": True}}],
}
APP_PORTS = [
    ([{"name": "http", "port": 80, "targetPort": 3000}, {"name": "https", "port": 443, "targetPort": 4443}],
     {f"http:{APP}-service:http": "http", f"https:{APP}-service:https": "https"}),
    ([{"port": 80, "targetPort": 3000}], {f"{APP}-service": "http"}),
]


def app_problems(page, config):
    """Checks that the image's own config fits the pod of the app, and that the page changes nothing
    of it but the image and the number of replicas.
    """
    container = APP_POD["containers"][0]
    speaks = {int(it["address"].rpartition(":")[2]): it.get("tls") for it in config["listener"]}
    if sorted(speaks) != [port["containerPort"] for port in container["ports"]] or speaks[3000] is not None:
        yield f"the image's config listens on {sorted(speaks)}"
    wanted = {"certificate": "/certificates/tls.crt", "private_key": "/certificates/tls.key", "optional": True}
    if speaks.get(4443) != wanted:
        yield f"the image's config has the certificate {speaks.get(4443)}"
    for violation in pod_security.violations(APP_POD):
        yield f"pod security: {violation}"
    metadata = {"namespace": NAMESPACE, "labels": {"app": APP}}
    for ports, urls in APP_PORTS:
        spec = {"selector": {"app": APP}, "ports": ports}
        service = {"kind": "Service", "metadata": metadata | {"name": f"{APP}-service"}, "spec": spec}
        deployment = {"kind": "Deployment", "metadata": metadata | {"name": APP}, "spec": {"template": {"metadata": metadata}}}
        for name, scheme in urls.items():
            found = service_proxy([service, deployment], proxy_path(name))
            if found not in ((scheme, port) for port, tls in speaks.items() if (scheme == "https") == (tls is not None)):
                yield f"services/{name} gives {found}"
    changes = [words for words in commands_of(page) if words[0] == "kubectl" and f"deployment/{APP}" in words]
    verbs = {word for words in changes for word in words[1:2]}
    if verbs != {"scale", "rollout", "set", "port-forward"}:
        yield f"the page does {sorted(verbs)} with the Deployment"
    images = [words[-1] for words in changes if words[1] == "set"]
    if [image.partition("=")[0] for image in images] != [container["name"]]:
        yield f"the page sets the images {images}"


def two_ports_problems(kubectl, rendered):
    """Checks deploy/two-ports: with it, each overlay differs in the Service alone, and a webhook of
    version 0.1.0 goes on. Adds what it makes of deploy/base to `rendered`.
    """
    for name in [name for name, documents in rendered.items() if of_kind(documents, "Namespace")]:
        place = DEPLOY / "base" if name == "base" else DEPLOY / "overlays" / name
        with tempfile.TemporaryDirectory() as directory:
            # The paths of a kustomization are relative.
            up = "../" * (len(pathlib.Path(directory).resolve().parts) - 1)
            lines = {"resources": [f"{up}{place}"], "components": [f"{up}{DEPLOY}/two-ports"]}
            (pathlib.Path(directory) / "kustomization.yaml").write_text(yaml.safe_dump(lines))
            with_it = render(kubectl, pathlib.Path(directory).resolve())
        yield from (f"{name}, two-ports: {it}" for it in schema_problems(of_kind(with_it, "Service")))
        yield from (f"{name}, two-ports: {it}" for it in proxy_problems(with_it, TWO_PORTS))
        changed = [called(it) for it, other in zip(with_it, rendered[name], strict=True) if it != other]
        if changed != [f"Service {NAME}"]:
            yield f"{name}, two-ports: changes {changed}"
        if name == "base":
            rendered["two-ports"] = with_it


def apply_problems(kubectl, rendered):
    """Checks what `kubectl apply` makes of the Service of the tutorial, and of that of version 0.1.0,
    as docs/operating/upgrade.md says.
    """

    def of(name):
        return next(it for it in rendered[name] if identity(it) == ("Service", NAMESPACE, NAME))

    one, two = of("base"), of("two-ports")
    for what, before, applied, new, expected in (
        ("over the tutorial's, which was created", one, False, one, one),
        ("over that of 0.1.0", two, True, one, one),
        ("over that of 0.1.0, which was created", two, False, one, two),
        ("with two-ports over that of 0.1.0", two, True, two, two),
    ):
        ports = api.applied(kubectl, api.live(before, applied), new)["spec"]["ports"]
        if ports != expected["spec"]["ports"]:
            yield f"kubectl apply {what} gives the ports {ports}"


def job_problems(documents, pod, base):
    """Checks a Job of deploy/jobs, which runs in the namespace and with the account of deploy/base."""
    yield from schema_problems(documents)
    yield from security_problems([*base, *documents], pod)
    yield from image_problems(pod["containers"][0])
    namespaces = {document["metadata"].get("namespace") for document in documents}
    if namespaces != {of_kind(base, "Namespace")[0]["metadata"]["name"]}:
        yield f"the namespaces are {namespaces}"


def control_plane_log_problems(documents, base, relay):
    """Checks deploy/control-plane-log: its pod has the privileges of EXCUSED and no other, reads the
    log and writes the resume file where they are mounted, and may send to the relays.
    """
    yield from schema_problems(documents)
    if sorted(document["kind"] for document in documents) != ["DaemonSet", "Namespace", "NetworkPolicy"]:
        yield f"the objects are {[called(document) for document in documents]}"
        return
    daemon, namespace, policy = documents
    template, excused = daemon["spec"]["template"], EXCUSED[called(daemon)].keys()
    labels, pod = template["metadata"]["labels"], template["spec"]
    seen = {*pod_security.violations(pod), *pod_security.weaknesses(pod)}
    if seen != excused:
        yield f"privileges that are not excused, or not needed: {sorted(seen ^ excused)}"
    if daemon["metadata"]["namespace"] != namespace["metadata"]["name"]:
        yield "the DaemonSet is not in its own namespace"
    if not pod_security.admits(namespace["metadata"]["labels"], pod):
        yield "the namespace refuses the pod"
    if not selects(daemon["spec"]["selector"]["matchLabels"], labels):
        yield "the DaemonSet does not select its own pods"
    control_plane = "node-role.kubernetes.io/control-plane"
    if pod["nodeSelector"] != {control_plane: ""} or [it["key"] for it in pod["tolerations"]] != [control_plane]:
        yield "not for the control-plane nodes"
    relays = of_kind(base, "Deployment")[0]["spec"]["template"]
    if not selects(policy["spec"]["podSelector"]["matchLabels"], relays["metadata"]["labels"]):
        yield "the policy selects no relay"
    if policy["metadata"]["namespace"] != of_kind(base, "Deployment")[0]["metadata"]["namespace"]:
        yield "the policy is not in the relays' namespace"
    rules = [(rule["from"], [port["port"] for port in rule["ports"]]) for rule in policy["spec"]["ingress"]]
    ours = {"kubernetes.io/metadata.name": namespace["metadata"]["name"]}
    sender = {"namespaceSelector": {"matchLabels": ours}, "podSelector": {"matchLabels": {"app": labels["app"]}}}
    if rules != [([sender], [3000])]:
        yield f"the policy lets in {rules}"
    container = pod["containers"][0]
    yield from image_problems(container)
    directories = {it["name"]: it["hostPath"]["path"] for it in pod["volumes"]}
    mounts = {it["mountPath"]: (directories[it["name"]], it.get("readOnly", False)) for it in container["volumeMounts"]}
    if mounts != {"/log": ("/var/log/kubernetes/audit", True), "/progress": ("/var/lib/kube-audit-log", False)}:
        yield f"mounted is {mounts}"
    command = container["command"]
    values = dict(zip(command[2::2], command[3::2]))
    if command[:2] != [f"/usr/bin/{NAME}", "replay"] or set(values) != {"--follow", "--url", "--resume"}:
        yield f"the command is {command}"
        return
    if [str(pathlib.Path(values[it]).parent) for it in ("--follow", "--resume")] != ["/log", "/progress"]:
        yield f"the files of {command} are not mounted"
    service = of_kind(base, "Service")[0]
    if values["--url"] != f"http://{NAME}.{NAMESPACE}/" or service["spec"]["ports"][0]["port"] != 80:
        yield f"{values['--url']} is not the relays' Service"
    known = subprocess.run([relay, "replay", "--help"], capture_output=True, text=True, check=True).stdout
    yield from (f"replay has no {option}" for option in values if option not in known)


def control_plane_log_self_test(documents, base, relay):
    """Yields a problem unless `control_plane_log_problems` finds what such a pod may have too much."""
    for what, change in (
        ("a writable log", lambda pod, container: container["volumeMounts"][0].pop("readOnly")),
        ("another directory", lambda pod, container: pod["volumes"][0]["hostPath"].update(path="/")),
        ("the node's network", lambda pod, container: pod.update(hostNetwork=True)),
        ("a capability", lambda pod, container: container["securityContext"].update(capabilities={"drop": ["ALL"], "add": ["DAC_OVERRIDE"]})),
        ("a privileged container", lambda pod, container: container["securityContext"].update(privileged=True)),
        ("another user", lambda pod, container: pod["securityContext"].update(runAsUser=65532)),
    ):
        wrong = copy.deepcopy(documents)
        pod = of_kind(wrong, "DaemonSet")[0]["spec"]["template"]["spec"]
        change(pod, pod["containers"][0])
        if not list(control_plane_log_problems(wrong, base, relay)):
            yield f"nothing is said of {what}"


def command_lines(page):
    """Yields the lines of a page's shell blocks. What deploy/published.sh has hidden is left out."""
    shown = re.sub(r"^ *<!-- If \w+, hidden\n.*?^ *End if -->$", "", page, flags=re.MULTILINE | re.DOTALL)
    for block in re.findall(r"^ *```sh\n(.*?)^ *```$", shown, re.MULTILINE | re.DOTALL):
        yield from (line.strip() for line in block.replace("\\\n", " ").splitlines())


def commands_of(page):
    """Yields the commands of a page's shell blocks, as words, in the order of the page."""
    yield from filter(None, (shlex.split(line, comments=True) for line in command_lines(page)))


def broken(documents):
    """Yields manifests with one fault each, each after words of the problem that must be found."""

    def fault(kind, change):
        wrong = copy.deepcopy(documents)
        change(of_kind(wrong, *kind.split())[0])
        return wrong

    def pod(change):
        return fault("Deployment", lambda workload: change(workload["spec"]["template"]["spec"]))

    def container(change):
        return pod(lambda spec: change(spec["containers"][0]))

    def second_service(change):
        wrong = copy.deepcopy(documents)
        change(of_kind(wrong, "Service")[1])
        return wrong

    def config(old, new):
        def change(document):
            assert old in document["data"]["relay.toml"], old
            document["data"]["relay.toml"] = document["data"]["relay.toml"].replace(old, new)

        return fault("ConfigMap", change)

    yield "Kubernetes", container(lambda it: it.update(imagePolicy="Always"))
    yield "Kubernetes", fault("Service", lambda it: it["spec"]["ports"][0].update(port="80"))
    yield "find schema", fault("Service", lambda it: it.update(apiVersion="v2"))
    yield "pod security: kube-audit-forwarder: not all capabilities", container(
        lambda it: it["securityContext"].update(capabilities={"drop": ["NET_RAW"]})
    )
    yield "pod-security enforce", fault(
        "Namespace", lambda it: it["metadata"]["labels"].update({"pod-security.kubernetes.io/enforce": "restricted"})
    )
    yield "pod-security warn", fault(
        "Namespace", lambda it: it["metadata"]["labels"].update({"pod-security.kubernetes.io/warn": "baseline"})
    )
    yield "has no label app", fault("ConfigMap", lambda it: it["metadata"].pop("labels"))
    yield "has no namespace", fault("Service", lambda it: it["metadata"].pop("namespace"))
    yield "fewer than two", fault("Deployment", lambda it: it["spec"].update(replicas=1))
    yield "not spread", pod(lambda it: it.pop("topologySpreadConstraints"))
    yield "its own pods", fault("Deployment", lambda it: it["spec"]["selector"]["matchLabels"].update(app="x"))
    yield "a token", pod(lambda it: it.pop("automountServiceAccountToken"))
    yield "run as root", pod(lambda it: it["securityContext"].pop("runAsNonRoot"))
    yield "root file system", container(lambda it: it["securityContext"].pop("readOnlyRootFilesystem"))
    yield "capabilities", container(lambda it: it["securityContext"].pop("capabilities"))
    yield "no seccomp", pod(lambda it: it["securityContext"].pop("seccompProfile"))
    yield "the image is", container(lambda it: it.update(image=f"{NAME}:latest"))
    yield "liveness probe", container(lambda it: it["livenessProbe"]["httpGet"].update(port="http"))
    yield "selects no pod", fault("Service", lambda it: it["spec"]["selector"].update(app="haproxy"))
    yield "selects no pod", fault(
        "PodDisruptionBudget", lambda it: it["spec"]["selector"]["matchLabels"].update(app="haproxy")
    )
    yield "no container listens", fault("Service", lambda it: it["spec"]["ports"][0].update(targetPort=80))
    yield "services/kube-audit-forwarder gives", fault("Service", lambda it: it["spec"]["ports"][0].update(name="http"))
    yield "services/kube-audit-forwarder:80 gives", fault("Service", lambda it: it["spec"]["ports"][0].update(port=8080))
    yield "services/https:kube-audit-forwarder-https:https gives", second_service(lambda it: it["spec"]["ports"][0].pop("name"))
    yield "does not speak", config('address = "0.0.0.0:3000"', 'address = "0.0.0.0:3000"\ntls = { certificate = "/certificates/tls.crt", private_key = "/certificates/tls.key", optional = true }')
    yield "others than", fault("NetworkPolicy", lambda it: it["spec"]["ingress"][0]["from"].pop())
    yield "a subPath", container(lambda it: it["volumeMounts"][0].update(subPath="relay.toml"))
    yield "not optional", pod(lambda it: it["volumes"][1]["secret"].pop("optional"))
    yield "volumes [", container(lambda it: it["volumeMounts"].pop(2))
    yield "nothing mounts", container(lambda it: it["env"][0].update(value="/etc/relay.toml"))
    yield "check: ", config("[queue]", "[queues]")
    yield "listens on", config("0.0.0.0:3000", "0.0.0.0:3001")
    yield "from outside", config("0.0.0.0:9090", "127.0.0.1:9090")
    yield "would not start", config("optional = true", "optional = false")
    yield "outgrows", config("2304MiB", "3GiB")
    yield "may need", config('max_in_flight = "128MiB"', 'max_in_flight = "512MiB"')
    yield "no limit", pod(lambda it: it["volumes"][3].update(emptyDir={}))
    yield "may take", config('"20s"', '"30s"')
    yield "preStop hook", container(lambda it: it.pop("lifecycle"))


def main():
    relay, *kubectls = sys.argv[1:]
    directories = [DEPLOY / "base", *sorted(path for path in (DEPLOY / "overlays").iterdir() if path.is_dir())]
    rendered = {}
    found = []
    for directory in directories:
        name = directory.name
        versions = [render(kubectl, directory) for kubectl in kubectls]
        rendered[name] = versions[0]
        found += [f"{name}: {kubectl} renders it otherwise" for kubectl, other in zip(kubectls, versions) if other != versions[0]]
        # An overlay may also only add to the objects of another one.
        checks = problems if of_kind(versions[0], "Namespace") else lambda documents, _: schema_problems(documents)
        found += [f"{name}: {problem}" for problem in checks(versions[0], relay)]
        if "openshift" in name:
            found += [f"{name}: {problem}" for problem in openshift_problems(versions[0])]
        kinds = ", ".join(called(document) for document in versions[0])
        print(f"{directory.relative_to(REPOSITORY)}: {kinds}")
    found += [f"durable: {problem}" for problem in alike_problems(rendered["base"], rendered["durable"])]
    found += [f"{name} is missing" for name in ("ibm-iks", "ibm-openshift", "durable", "ibm-iks-durable", "ibm-openshift-durable", "monitoring") if name not in rendered]
    found += tutorial_service_problems(rendered["base"])
    found += two_ports_problems(kubectls[0], rendered)
    found += apply_problems(kubectls[0], rendered)
    versions = [render(kubectl, DEPLOY / "control-plane-log") for kubectl in kubectls]
    rendered["control-plane-log"] = versions[0]
    found += [f"control-plane-log: {kubectl} renders it otherwise" for kubectl, other in zip(kubectls, versions) if other != versions[0]]
    for check in (control_plane_log_problems, control_plane_log_self_test):
        found += [f"control-plane-log: {problem}" for problem in check(versions[0], rendered["base"], relay)]
    print(f"deploy/control-plane-log: {', '.join(called(document) for document in versions[0])}")
    found += shown_problems(rendered)
    found += every_pod_problems(rendered)
    for file in sorted((DEPLOY / "jobs").glob("*.yaml")):
        documents = list(yaml.safe_load_all(file.read_text()))
        pod = of_kind(documents, "Job")[0]["spec"]["template"]["spec"]
        found += [f"jobs/{file.name}: {problem}" for problem in job_problems(documents, pod, rendered["base"])]
        print(f"deploy/jobs/{file.name}: {', '.join(called(document) for document in documents)}")
    policy = yaml.safe_load((DEPLOY / "control-plane.yaml").read_text())
    found += [f"control-plane.yaml: {problem}" for problem in schema_problems([policy])]
    page = (REPOSITORY / "docs/replace-cloud-logs-app.md").read_text()
    config = tomllib.loads((REPOSITORY / "config/stdout.toml").read_text())
    found += [f"docs/replace-cloud-logs-app.md: {problem}" for problem in app_problems(page, config)]
    if not list(app_problems(page, config | {"listener": config["listener"][:1]})):
        found.append("nothing is said of an image without HTTPS")
    for expected, documents in broken(rendered["base"]):
        seen = list(problems(documents, relay, VERSIONS[-1:]))
        if not any(expected in problem for problem in seen):
            found.append(f"nothing is said of a manifest with the fault {expected!r}: {seen}")
    found += [f"{kubectl} does not warn of `bases`" for kubectl in kubectls if silent_about_bases(kubectl)]
    if not list(tutorial_service_problems(rendered["two-ports"])) or not list(proxy_problems(rendered["two-ports"])):
        found.append("nothing is said of a Service with two ports")
    if not list(openshift_problems(rendered["base"])):
        found.append("nothing is said of fixed users on OpenShift")
    if found:
        raise SystemExit("\n".join(found))
    print(f"valid for Kubernetes {', '.join(VERSIONS)}, and alike with {', '.join(kubectls)}")


if __name__ == "__main__":
    main()
