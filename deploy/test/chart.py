"""Renders the Helm chart and compares it with what kustomize makes of deploy/, object by object.

    chart.py RELAY HELM KUBECTL

HELM is the real Helm. For deploy/base and each overlay there are values with which the chart must
give the same objects, to the last field. Other values are tried one by one: each must have its
effect and no other one, and what it gives must keep the schemas of Kubernetes, Pod Security and the
checks of manifests.py. The schema of the values must refuse a key that it does not know, wherever
it stands. At the end the comparison is shown charts with a fault that it must find.
"""

import base64
import copy
import json
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib

import yaml

sys.dont_write_bytecode = True
import api
import manifests
import pod_security
from manifests import DEPLOY, NAMESPACE, REPOSITORY, called, identity, of_kind, pod_of

CHART = DEPLOY / "chart"

IBM_IMAGE = {"image": {"pullSecrets": ["all-icr-io"]}}
WITH_NAMESPACE = {"namespace": {"create": True}}
DURABLE = {"durable": {"enabled": True}}
OPENSHIFT = {"openshift": True}
MONITORING = {"monitoring": {"monitor": "PodMonitor", "prometheusRule": True, "dashboard": True}}

# The values that give the objects of each kustomization.
ALIKE = {
    "base": WITH_NAMESPACE,
    "durable": WITH_NAMESPACE | DURABLE,
    "ibm-iks": WITH_NAMESPACE | IBM_IMAGE,
    "ibm-iks-durable": WITH_NAMESPACE | IBM_IMAGE | DURABLE,
    "ibm-openshift": WITH_NAMESPACE | IBM_IMAGE | OPENSHIFT,
    "ibm-openshift-durable": WITH_NAMESPACE | IBM_IMAGE | OPENSHIFT | DURABLE,
}


class Helm:
    """The real Helm, with its directories below a temporary one."""

    def __init__(self, program, directory):
        self.program = str(pathlib.Path(program).absolute())
        self.directory = directory
        names = ("HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME")
        self.environment = {name: str(directory / name) for name in names} | {"PATH": "/usr/bin:/bin"}

    def run(self, *arguments, **options):
        command = [self.program, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, env=self.environment, **options)

    def template(self, values, chart=CHART, namespace=NAMESPACE, more=()):
        """Returns the rendered objects, or the text of Helm's error."""
        file = self.directory / "values.yaml"
        file.write_text(yaml.safe_dump(values))
        done = self.run("template", "any-name", chart, "--namespace", namespace, "--values", file, *more)
        if done.returncode != 0 or done.stderr:
            return done.stderr
        return sorted((it for it in yaml.safe_load_all(done.stdout) if it), key=identity)

    def objects(self, values, chart=CHART, namespace=NAMESPACE, more=()):
        objects = self.template(values, chart, namespace, more)
        if isinstance(objects, str):
            raise SystemExit(f"helm template, {values}: {objects}")
        return objects


def differences(left, right, where=""):
    """Yields the path of each difference between two documents, with both values."""
    if isinstance(left, dict) and isinstance(right, dict):
        for key in sorted(left.keys() | right.keys()):
            yield from differences(left.get(key), right.get(key), f"{where}.{key}")
    elif isinstance(left, list) and isinstance(right, list) and len(left) == len(right):
        for index, pair in enumerate(zip(left, right)):
            yield from differences(*pair, f"{where}[{index}]")
    elif left != right or type(left) is not type(right):
        yield f"{where}: {str(left)[:200]!r} and {str(right)[:200]!r}"


def compare(chart, kustomize):
    """Yields each object that only one side has, and each difference within the others."""
    ours, theirs = ({identity(it): it for it in side} for side in (chart, kustomize))
    for key in sorted(ours.keys() ^ theirs.keys()):
        yield f"{key} is only {'in the chart' if key in ours else 'among the manifests'}"
    for key in sorted(ours.keys() & theirs.keys()):
        yield from (f"{key[0]} {key[2]}{difference}" for difference in differences(ours[key], theirs[key]))


def custom_problems(documents):
    """Yields fields of the operator's objects that its API (v1, operator 0.93) does not have.

    The lists hold the fields that are used here, not all of the API.
    """
    endpoint = {"port", "path", "interval", "scrapeTimeout", "authorization"}
    rule = {"alert", "expr", "for", "keep_firing_for", "labels", "annotations"}
    for document in documents:
        spec = document.get("spec", {})
        if document["kind"] == "PodMonitor":
            found = set(spec) - {"jobLabel", "selector", "podMetricsEndpoints"}
            found |= {key for it in spec["podMetricsEndpoints"] for key in set(it) - endpoint}
        elif document["kind"] == "ServiceMonitor":
            found = set(spec) - {"jobLabel", "selector", "endpoints"}
            found |= {key for it in spec["endpoints"] for key in set(it) - endpoint}
        elif document["kind"] == "PrometheusRule":
            found = set(spec) - {"groups"}
            found |= {key for group in spec["groups"] for key in set(group) - {"name", "rules"}}
            found |= {key for group in spec["groups"] for it in group["rules"] for key in set(it) - rule}
        else:
            continue
        if found:
            yield f"{called(document)}: {sorted(found)}"


def copies_problems():
    """Yields the manifests of the chart that are not copies of those of the kustomizations."""
    for file in (CHART / "manifests").iterdir():
        originals = [it for it in DEPLOY.rglob(file.name) if not it.is_relative_to(CHART)]
        if file.is_symlink() or not any(it.read_bytes() == file.read_bytes() for it in originals):
            yield f"manifests/{file.name} is not a copy of a manifest of deploy/"


def version_problems():
    version = tomllib.loads((REPOSITORY / "Cargo.toml").read_text())["workspace"]["package"]["version"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    if (chart["version"], chart["appVersion"]) != (version, version):
        yield f"the chart is of {chart['version']}, the program of {version}"


def alike_problems(helm, kubectl):
    base = None
    for name, values in ALIKE.items():
        directory = DEPLOY / "base" if name == "base" else DEPLOY / "overlays" / name
        wanted = manifests.render(kubectl, directory)
        base = base or wanted
        yield from (f"{name}: {it}" for it in compare(helm.objects(values), wanted))
    monitoring = manifests.render(kubectl, DEPLOY / "overlays/monitoring")
    both = sorted(base + monitoring, key=identity)
    yield from (f"monitoring: {it}" for it in compare(helm.objects(WITH_NAMESPACE | MONITORING), both))
    overlays = {it.name for it in (DEPLOY / "overlays").iterdir() if it.is_dir()}
    if overlays != ALIKE.keys() - {"base"} | {"monitoring"}:
        yield f"no values for {sorted(overlays ^ ALIKE.keys())}"


def container_of(documents):
    return pod_of(documents)["containers"][0]


def only(documents, kind, name=None):
    found = [it for it in of_kind(documents, kind) if name in (None, it["metadata"]["name"])]
    assert len(found) == 1, (kind, name, found)
    return found[0]


def senders_of(documents):
    return only(documents, "NetworkPolicy", manifests.NAME)["spec"]["ingress"][0]["from"]


def readers_of(documents):
    return only(documents, "NetworkPolicy", f"{manifests.NAME}-prometheus")["spec"]["ingress"][0]["from"]


TOLERATION = {"key": "audit", "operator": "Exists", "effect": "NoSchedule"}
AFFINITY = {
    "nodeAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{"matchExpressions": [{"key": "a", "operator": "Exists"}]}]
        }
    }
}
SPREAD = {
    "maxSkew": 2,
    "topologyKey": "kubernetes.io/hostname",
    "whenUnsatisfiable": "DoNotSchedule",
    "labelSelector": {"matchLabels": {"app": manifests.NAME}},
}
VOLUME = {"name": "policies", "configMap": {"name": "audit-policies"}}
MOUNT = {"name": "policies", "mountPath": "/policies", "readOnly": True}
PEER = {"ipBlock": {"cidr": "192.0.2.10/32"}}
READER = {"ipBlock": {"cidr": "192.0.2.20/32"}}
EGRESS_RULE = {"to": [{"ipBlock": {"cidr": "198.51.100.7/32"}}], "ports": [{"port": 5044, "protocol": "TCP"}]}
DIGEST = "sha256:" + "0123456789abcdef" * 4
CONFIG = (REPOSITORY / "config/haproxy-replacement.toml").read_text()
DURABLE_CONFIG = f'{CONFIG}\n[queue]\ndirectory = "{manifests.SPOOL}"\n'

# Values, the kinds of objects that they may change or add, and what must be true of the result.
EFFECTS = [
    ({"config": CONFIG}, {"ConfigMap"}, lambda it: only(it, "ConfigMap")["data"] == {"relay.toml": CONFIG}),
    ({"image": {"digest": DIGEST}}, {"Deployment"}, lambda it: container_of(it)["image"] == f"ghcr.io/{manifests.NAME}/{manifests.NAME}@{DIGEST}"),
    (
        {"image": {"repository": "icr.io/a/b", "tag": "1.2"}},
        {"Deployment"},
        lambda it: container_of(it)["image"] == "icr.io/a/b:1.2",
    ),
    ({"image": {"pullPolicy": "Always"}}, {"Deployment"}, lambda it: container_of(it)["imagePullPolicy"] == "Always"),
    (
        {"image": {"pullSecrets": ["one", "two"]}},
        {"ServiceAccount"},
        lambda it: only(it, "ServiceAccount")["imagePullSecrets"] == [{"name": "one"}, {"name": "two"}],
    ),
    ({"replicas": 3}, {"Deployment"}, lambda it: only(it, "Deployment")["spec"]["replicas"] == 3),
    (
        {"durable": {"enabled": True, "size": "20Gi", "storageClassName": "block"}},
        {"Deployment", "StatefulSet"},
        lambda it: only(it, "StatefulSet")["spec"]["volumeClaimTemplates"][0]["spec"]
        == {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "20Gi"}}, "storageClassName": "block"},
    ),
    (
        {"queue": {"maxBytes": "1GiB", "emptyDirSize": "2Gi"}},
        {"Deployment"},
        lambda it: {"name": "QUEUE_MAX_BYTES", "value": "1GiB"} in container_of(it)["env"]
        and {"name": "spool", "emptyDir": {"sizeLimit": "2Gi"}} in pod_of(it)["volumes"]
        and container_of(it)["resources"]["requests"]["ephemeral-storage"] == "2Gi",
    ),
    (
        DURABLE | {"queue": {"maxBytes": "9GiB"}},
        {"Deployment", "StatefulSet"},
        lambda it: [one["value"] for one in container_of(it)["env"] if one["name"] == "QUEUE_MAX_BYTES"] == ["9GiB"],
    ),
    (
        {"secrets": {"certificate": "tls", "consumer": "ca"}},
        {"Deployment"},
        lambda it: secrets_of(it)[:2] == [{"secretName": "tls", "optional": True}, {"secretName": "ca", "optional": True}],
    ),
    (
        {"admin": {"tokenSecret": "doors"}},
        {"Deployment"},
        lambda it: secrets_of(it)[2] == {"secretName": "doors", "optional": True},
    ),
    (
        {"admin": {"tokenSecret": "doors", "createTokens": True}, "monitoring": {"monitor": "ServiceMonitor"}},
        {"Deployment", "Secret", "Service", "ServiceMonitor"},
        lambda it: tokens_fit(it, "doors"),
    ),
    (
        {"evidence": {"keySecret": "keys"}},
        {"Deployment"},
        lambda it: {"name": "evidence-key", "secret": {"secretName": "keys", "defaultMode": 0o440}} in pod_of(it)["volumes"]
        and {"name": "evidence-key", "mountPath": "/evidence-key", "readOnly": True} in container_of(it)["volumeMounts"]
        and {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}} in container_of(it)["env"],
    ),
    (
        {"resources": {"limits": {"memory": "1Gi"}}},
        {"Deployment"},
        lambda it: container_of(it)["resources"]
        == {"requests": {"cpu": "100m", "memory": "128Mi", "ephemeral-storage": "3Gi"}, "limits": {"memory": "1Gi"}},
    ),
    (
        {"priorityClassName": "system-cluster-critical"},
        {"Deployment"},
        lambda it: pod_of(it)["priorityClassName"] == "system-cluster-critical",
    ),
    ({"nodeSelector": {"pool": "edge"}}, {"Deployment"}, lambda it: pod_of(it)["nodeSelector"] == {"pool": "edge"}),
    ({"tolerations": [TOLERATION]}, {"Deployment"}, lambda it: pod_of(it)["tolerations"] == [TOLERATION]),
    ({"affinity": AFFINITY}, {"Deployment"}, lambda it: pod_of(it)["affinity"] == AFFINITY),
    (
        {"topologySpreadConstraints": [SPREAD]},
        {"Deployment"},
        lambda it: pod_of(it)["topologySpreadConstraints"] == [SPREAD],
    ),
    (
        OPENSHIFT | {"podAnnotations": {"a": "b"}},
        {"Deployment"},
        lambda it: only(it, "Deployment")["spec"]["template"]["metadata"]["annotations"]
        == {"a": "b", "openshift.io/required-scc": "restricted-v2"},
    ),
    (
        {"podLabels": {"team": "audit", "app": "other"}},
        {"Deployment"},
        lambda it: only(it, "Deployment")["spec"]["template"]["metadata"]["labels"]
        == {"app": manifests.NAME, "app.kubernetes.io/name": manifests.NAME, "team": "audit"},
    ),
    (
        {"extraEnv": [{"name": "A", "value": "b"}]},
        {"Deployment"},
        lambda it: container_of(it)["env"][-1] == {"name": "A", "value": "b"},
    ),
    (
        {"extraVolumes": [VOLUME], "extraVolumeMounts": [MOUNT]},
        {"Deployment"},
        lambda it: pod_of(it)["volumes"][-1] == VOLUME and container_of(it)["volumeMounts"][-1] == MOUNT,
    ),
    (
        {"drain": {"seconds": 120, "terminationGracePeriodSeconds": 150}},
        {"Deployment"},
        lambda it: pod_of(it)["terminationGracePeriodSeconds"] == 150
        and container_of(it)["lifecycle"]["preStop"]["exec"]["command"][-1] == "120",
    ),
    (
        {"serviceAccount": {"annotations": {"a": "b"}}},
        {"ServiceAccount"},
        lambda it: only(it, "ServiceAccount")["metadata"]["annotations"] == {"a": "b"},
    ),
    (
        {"service": {"annotations": {"a": "b"}}},
        {"Service"},
        lambda it: [one["metadata"]["annotations"] for one in of_kind(it, "Service")] == [{"a": "b"}, {"a": "b"}],
    ),
    (
        {"service": {"ports": "two"}},
        {"Service"},
        lambda it: not list(manifests.proxy_problems(it, manifests.TWO_PORTS)),
    ),
    ({"podDisruptionBudget": {"enabled": False}}, {"PodDisruptionBudget"}, lambda it: not of_kind(it, "PodDisruptionBudget")),
    (
        {"podDisruptionBudget": {"maxUnavailable": "50%"}},
        {"PodDisruptionBudget"},
        lambda it: only(it, "PodDisruptionBudget")["spec"]["maxUnavailable"] == "50%",
    ),
    ({"networkPolicy": {"enabled": False}}, {"NetworkPolicy"}, lambda it: not of_kind(it, "NetworkPolicy")),
    (
        {"networkPolicy": {"from": [PEER], "metricsFrom": [READER]}},
        {"NetworkPolicy"},
        lambda it: [len(senders_of(it)), senders_of(it)[-1]] == [4, PEER]
        and readers_of(it)[1:] == [READER],
    ),
    (
        {"networkPolicy": {"metricsNamespaces": ["observability"]}},
        {"NetworkPolicy"},
        lambda it: readers_of(it)[0]["namespaceSelector"]["matchExpressions"][0]["values"] == ["observability"],
    ),
    (
        {"networkPolicy": {"egress": {"enabled": True, "rules": [EGRESS_RULE]}}},
        {"NetworkPolicy"},
        lambda it: only(it, "NetworkPolicy", f"{manifests.NAME}-egress")["spec"]["policyTypes"] == ["Egress"]
        and only(it, "NetworkPolicy", f"{manifests.NAME}-egress")["spec"]["egress"][1] == EGRESS_RULE
        and {port["port"] for port in only(it, "NetworkPolicy", f"{manifests.NAME}-egress")["spec"]["egress"][0]["ports"]}
        == {53, 5353},
    ),
    (
        {"monitoring": {"monitor": "PodMonitor", "interval": "15s", "labels": {"release": "stack"}}},
        {"PodMonitor"},
        lambda it: only(it, "PodMonitor")["spec"]["podMetricsEndpoints"][0]["interval"] == "15s"
        and only(it, "PodMonitor")["metadata"]["labels"]["release"] == "stack",
    ),
    (
        {"monitoring": {"monitor": "ServiceMonitor"}},
        {"ServiceMonitor", "Service"},
        lambda it: service_monitor_fits(it),
    ),
    (
        {"monitoring": {"prometheusRule": True, "labels": {"release": "stack"}}},
        {"PrometheusRule"},
        lambda it: only(it, "PrometheusRule")["metadata"]["labels"]["release"] == "stack",
    ),
    ({"monitoring": {"dashboard": True}}, {"ConfigMap"}, lambda it: len(of_kind(it, "ConfigMap")) == 2),
    (
        {"monitoring": {"prometheusRule": True, "dashboard": True, "runbookUrl": "https://relay.example/runbooks"}},
        {"PrometheusRule", "ConfigMap"},
        lambda it: runbooks_of(it) == {"https://relay.example/runbooks"},
    ),
    (
        WITH_NAMESPACE | OPENSHIFT,
        {"Namespace", "Deployment"},
        lambda it: "security.openshift.io/scc.podSecurityLabelSync" in only(it, "Namespace")["metadata"]["labels"],
    ),
]


def runbooks_of(documents):
    """Returns the folders to which the links of the alerts and of the dashboard lead."""
    rules = [rule for group in only(documents, "PrometheusRule")["spec"]["groups"] for rule in group["rules"]]
    links = {rule["annotations"]["runbook_url"].rpartition("/")[0] for rule in rules}
    [text] = [one["data"][key] for one in of_kind(documents, "ConfigMap") for key in one["data"] if key.endswith(".json")]
    variables = json.loads(text)["templating"]["list"]
    return links | {one["query"] for one in variables if one["name"] == "runbooks"}


def secrets_of(documents):
    return [one["secret"] for one in pod_of(documents)["volumes"] if "secret" in one]


def tokens_fit(documents, name):
    """Returns whether the Secret has two random tokens, which the relays and Prometheus ask for."""
    data = only(documents, "Secret", name)["data"]
    tokens = [base64.b64decode(data[key]).decode() for key in ("token", "metrics-token")]
    admin = tomllib.loads(only(documents, "ConfigMap")["data"]["relay.toml"])["admin"]
    mount = next(it for it in container_of(documents)["volumeMounts"] if it["name"] == "admin")["mountPath"]
    credentials = only(documents, "ServiceMonitor")["spec"]["endpoints"][0]["authorization"]["credentials"]
    return (
        all(len(token) == 48 for token in tokens)
        and tokens[0] != tokens[1]
        and [admin["bearer_token_file"], admin["metrics_token_file"]] == [f"{mount}/token", f"{mount}/metrics-token"]
        and credentials == {"name": name, "key": "metrics-token"}
    )


def service_monitor_fits(documents):
    """Returns whether the ServiceMonitor finds its own Service alone, and that Service the pods."""
    monitor = only(documents, "ServiceMonitor")
    wanted = monitor["spec"]["selector"]["matchLabels"]
    services = [it for it in of_kind(documents, "Service") if manifests.selects(wanted, it["metadata"]["labels"])]
    if [it["metadata"]["name"] for it in services] != [f"{manifests.NAME}-metrics"]:
        return False
    spec = services[0]["spec"]
    labels = only(documents, "Deployment")["spec"]["template"]["metadata"]["labels"]
    ports = {port["name"]: port["targetPort"] for port in spec["ports"]}
    asked = monitor["spec"]["endpoints"][0]["port"]
    return manifests.selects(spec["selector"], labels) and ports[asked] in manifests.ports_of(container_of(documents))


def paths_of(value, path=()):
    """Yields the path of each value that is not a table, and of empty tables."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from paths_of(inner, (*path, key))
    else:
        yield path


def every_pod_problems(values, objects):
    """Checks all pods that values give, and that each setting which keeps them harmless is missed."""
    pods = list(pod_security.pods(objects))
    for pod in pods:
        yield from (f"{values}: {it}" for it in pod_security.weaknesses(pod))
        for setting, weaker in pod_security.weakened(pod):
            if not list(pod_security.weaknesses(weaker)):
                yield f"nothing is said of {values} without {setting}"
    if len(pods) != 1:
        yield f"{values} gives {len(pods)} pods"
    for account in of_kind(objects, "ServiceAccount"):
        if account.get("automountServiceAccountToken") is not False:
            yield f"{values}: the account mounts a token"


def effect_problems(helm):
    plain = {identity(it): it for it in helm.objects({})}
    tried = set()
    for values, kinds, holds in EFFECTS:
        tried |= {path for path in paths_of(values)}
        objects = helm.objects(values)
        try:
            held = holds(objects)
        except (AssertionError, IndexError, KeyError) as error:
            held = False
            yield f"{values}: {error!r}"
        if not held:
            yield f"{values} has no effect: {[it for it in objects if it['kind'] in kinds]}"
        after = {identity(it): it for it in objects}
        changed = {key[0] for key in plain.keys() | after.keys() if plain.get(key) != after.get(key)}
        if changed != kinds:
            yield f"{values} changes {sorted(changed)}"
        yield from (f"{values}: {it}" for it in manifests.schema_problems(objects))
        yield from (f"{values}: {it}" for it in custom_problems(objects))
        yield from (f"{values}: pod security: {it}" for it in pod_security.violations(pod_of(objects)))
        yield from every_pod_problems(values, objects)
        for document in objects:
            if document["kind"] != "Namespace" and document["metadata"].get("namespace") != NAMESPACE:
                yield f"{values}: {called(document)} is in another namespace"
    shipped = yaml.safe_load((CHART / "values.yaml").read_text())
    for path in paths_of(shipped):
        if not any(it[: len(path)] == path for it in tried):
            yield f"no test sets the value {'.'.join(path)}"
    # With the defaults of each form, the objects keep all that manifests.py asks.
    elsewhere = helm.objects(WITH_NAMESPACE, namespace="elsewhere")
    if {it["metadata"].get("namespace", it["metadata"]["name"]) for it in elsewhere} != {"elsewhere"}:
        yield "not all objects are in the namespace of the release"


# The values of volume and queue, and what the chart makes of them: the size of the volume, and
# QUEUE_MAX_BYTES (None: the relay's config decides).
ROOM = (
    ({}, "3Gi", None),
    (DURABLE, "10Gi", "8GiB"),
    ({"queue": {"emptyDirSize": "3Gi"}}, "3Gi", "2304MiB"),
    ({"queue": {"emptyDirSize": "8G"}}, "8G", "5722MiB"),
    ({"queue": {"maxBytes": "2GiB"}}, "3Gi", "2GiB"),
    ({"queue": {"maxBytes": "6GiB"}}, "8Gi", "6GiB"),
    ({"queue": {"maxBytes": "6GB"}}, "8Gi", "6GB"),
    ({"queue": {"maxBytes": "2GiB", "emptyDirSize": "2.5Gi"}}, "2.5Gi", "2GiB"),
    ({"durable": {"enabled": True, "size": "10Gi"}}, "10Gi", "8192MiB"),
    ({"durable": {"enabled": True, "size": "1.5Ti"}}, "1.5Ti", "1258291MiB"),
    (DURABLE | {"queue": {"maxBytes": "9GiB"}}, "10Gi", "9GiB"),
    (DURABLE | {"queue": {"maxBytes": "16GiB"}}, "20Gi", "16GiB"),
    # The size of the emptyDir is nothing for volumes.
    (DURABLE | {"queue": {"maxBytes": "9GiB", "emptyDirSize": "1Gi"}}, "10Gi", "9GiB"),
)


def room_problems(helm):
    """Yields a problem for each pair of volume and queue that the chart makes otherwise."""
    for values, size, max_bytes in ROOM:
        objects = helm.objects(values)
        yield from every_pod_problems(values, objects)
        found = [one["value"] for one in container_of(objects)["env"] if one["name"] == "QUEUE_MAX_BYTES"]
        if values.get("durable"):
            claim = only(objects, "StatefulSet")["spec"]["volumeClaimTemplates"][0]
            volume = claim["spec"]["resources"]["requests"]["storage"]
        else:
            volume = [it for it in pod_of(objects)["volumes"] if it["name"] == "spool"][0]["emptyDir"]["sizeLimit"]
            asked = container_of(objects)["resources"]["requests"]["ephemeral-storage"]
            if asked != volume:
                yield f"{values}: asks for {asked} of ephemeral storage, and the limit is {volume}"
        if (volume, found) != (size, [max_bytes] if max_bytes else []):
            yield f"{values}: the volume has {volume}, and the queue {found}"


def schema_problems(helm):
    """Yields a problem for each wrong value that Helm takes."""
    shipped = yaml.safe_load((CHART / "values.yaml").read_text())
    schema = json.loads((CHART / "values.schema.json").read_text())

    def closed(schema, values, path):
        known = set(schema["properties"]) - {"global"}
        if known != set(values):
            yield f"{'.'.join(path) or 'values'}: schema and values differ in {sorted(known ^ set(values))}"
        for key, value in values.items():
            if isinstance(value, dict) and value:
                yield from closed(schema["properties"][key], value, (*path, key))

    yield from closed(schema, shipped, ())

    def nested(path, value):
        for key in reversed(path):
            value = {key: value}
        return value

    tables = {path[:length] for path in paths_of(shipped) for length in range(len(path))}
    for table in sorted(tables):
        refused = helm.template(nested(table, {"unknown": "x"}))
        if not isinstance(refused, str) or "unknown is not allowed" not in refused:
            yield f"the key {'.'.join((*table, 'unknown'))} is not refused: {str(refused)[:200]}"
    # No value may be of another type than the default's: a number stands for a text, a text for
    # everything else.
    for path in paths_of(shipped):
        default = shipped
        for key in path:
            default = default[key]
        wrong = 7 if isinstance(default, str) else "wrong"
        refused = helm.template(nested(path, wrong))
        if not isinstance(refused, str) or "values don't meet the specifications" not in refused:
            yield f"{'.'.join(path)} = {wrong!r} is not refused: {str(refused)[:200]}"
    for values, words in (
        ({"replicas": 0}, "replicas"),
        ({"image": {"digest": "sha256:12"}}, "image.digest"),
        ({"monitoring": {"monitor": "Probe"}}, "monitoring.monitor"),
        ({"queue": {"maxBytes": "8 gigs"}}, "queue.maxBytes"),
        # The relay does not know these units.
        ({"queue": {"maxBytes": "1Gi"}}, "queue.maxBytes"),
        ({"queue": {"maxBytes": "1TiB"}}, "queue.maxBytes"),
        ({"queue": {"maxBytes": "3GiB", "emptyDirSize": "3Gi"}}, "do not fit into queue.emptyDirSize (3Gi)"),
        ({"queue": {"maxBytes": "4GiB", "emptyDirSize": "4G"}}, "do not fit into queue.emptyDirSize (4G)"),
        (
            {"durable": {"enabled": True, "size": "1.5Ti"}, "queue": {"maxBytes": "1536GiB"}},
            "do not fit into durable.size (1.5Ti)",
        ),
        ({"drain": {"seconds": 70}}, "must be longer than drain.seconds"),
        ({"config": "[admin"}, "config is not TOML"),
        ({"config": CONFIG.replace("0.0.0.0:9090", "127.0.0.1:9090")}, "admin.address is 127.0.0.1:9090"),
        ({"config": CONFIG.replace("0.0.0.0:9090", "[::1]:9090")}, "admin.address is [::1]:9090"),
        ({"config": CONFIG.replace("0.0.0.0:9090", "0.0.0.0:9091")}, "admin.address is 0.0.0.0:9091"),
        ({"config": CONFIG.replace("[admin]", "[other]")}, "admin.address is 127.0.0.1:9090"),
        (DURABLE | {"config": CONFIG}, "the config's queue is not on the volume"),
    ):
        refused = helm.template(values)
        if not isinstance(refused, str) or words not in refused:
            yield f"{values} is not refused: {str(refused)[:200]}"
    if isinstance(helm.template({"global": {"x": 1}}), str):
        yield "the chart can not be a dependency: Helm adds `global` to its values"


def package_problems(helm, directory):
    """Lints and packages the chart; the package must render as the directory does."""
    linted = helm.run("lint", "--strict", CHART)
    noise = [line for line in linted.stdout.splitlines() if "[WARNING]" in line or "[ERROR]" in line]
    if linted.returncode != 0 or linted.stderr or noise:
        yield f"helm lint: {linted.stdout}{linted.stderr}"
    packaged = helm.run("package", CHART, "--destination", directory)
    if packaged.returncode != 0 or packaged.stderr:
        yield f"helm package: {packaged.stdout}{packaged.stderr}"
        return
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["version"]
    package = directory / f"kube-audit-forwarder-{version}.tgz"
    with tarfile.open(package) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    files = {str(it.relative_to(CHART)) for it in CHART.rglob("*") if it.is_file()}
    if inside != files:
        yield f"the package and the directory differ in {sorted(inside ^ files)}"
    alone = shutil.copytree(CHART, directory / "alone", symlinks=True)
    values = WITH_NAMESPACE | MONITORING
    for name, chart in (("package", package), ("copy of the directory", alone)):
        if helm.template(values, chart=chart) != helm.objects(values):
            yield f"the {name} renders otherwise than the directory"


def notes_problems(helm, directory):
    """Renders NOTES.txt, which `helm template` leaves out, as a text within an object."""
    chart = directory / "notes"
    shutil.copytree(CHART, chart)
    shutil.move(chart / "templates/NOTES.txt", chart)
    (chart / "templates/notes.yaml").write_text(
        'apiVersion: v1\nkind: Notes\nmetadata: {name: notes, namespace: x}\n'
        'text: {{ tpl (.Files.Get "NOTES.txt") . | toJson }}\n'
    )
    for values, present, absent in (
        ({}, ["deployment/kube-audit-forwarder", "No config was given"], ["statefulset"]),
        (
            IBM_IMAGE | DURABLE | {"config": DURABLE_CONFIG, "replicas": 3},
            ["3 relays", "statefulset/kube-audit-forwarder"],
            ["No config was given"],
        ),
        ({"service": {"ports": "two"}}, [], []),
    ):
        text = only(helm.objects(values, chart=chart, namespace="elsewhere"), "Notes")["text"]
        objects = helm.objects(values, namespace="elsewhere")
        paths = re.findall(r"/api/v1/\S+", text)
        routes = [manifests.service_proxy(objects, path) for path in paths]
        if routes != [("http", 3000), ("http", 3000), ("https", 4443)]:
            yield f"NOTES.txt has the paths {paths}, which lead to {routes}"
        wanted = [*present, "-n elsewhere"]
        yield from (f"NOTES.txt does not say {words!r}: {text}" for words in wanted if words not in text)
        yield from (f"NOTES.txt says {words!r}: {text}" for words in absent if words in text)


def kept_ports_problems(helm, directory):
    """Yields a problem unless a Service in the cluster keeps its number of ports."""
    for ports, routes in (("one", manifests.ROUTES), ("two", manifests.TWO_PORTS)):
        before = only(helm.objects({"service": {"ports": ports}}), "Service", manifests.NAME)
        with api.Api(api.live(before, False)) as cluster:
            config = directory / "kubeconfig"
            config.write_text(cluster.kubeconfig)
            asking = ("--dry-run=server", "--kubeconfig", config)
            after = helm.objects({}, more=asking)
            moved = helm.objects({"service": {"ports": "one"}}, more=asking)
        yield from (f"a Service with the ports {ports}: {it}" for it in manifests.proxy_problems(after, routes))
        yield from (f"ports one over {ports}: {it}" for it in manifests.proxy_problems(moved))


def page_problems(helm, directory):
    """Runs each `helm install` and `helm upgrade` of the pages as `helm template`, from a directory
    that has the files that they name, and looks for values that the pages name and nobody knows.
    """
    place = directory / "clone"
    place.mkdir()
    (place / "deploy").symlink_to(DEPLOY)
    shutil.copy(DEPLOY / "base/relay.toml", place)
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["version"]
    shutil.copy(directory / f"kube-audit-forwarder-{version}.tgz", place)
    count = 0
    for path in ("docs/operating/kubernetes.md", "docs/operating/helm.md"):
        for words in manifests.commands_of((REPOSITORY / path).read_text()):
            if words[:2] not in (["helm", "install"], ["helm", "upgrade"]):
                continue
            count += 1
            # deploy/test/release.sh runs what fetches the published chart.
            if any(word.startswith("oci://") for word in words):
                continue
            # The cluster has the values of before; a template has none.
            arguments = [word for word in words[2:] if word not in ("--reuse-values", "--reset-then-reuse-values")]
            done = helm.run("template", *arguments, cwd=place)
            if done.returncode != 0 or done.stderr:
                yield f"{path}: {' '.join(words)}: {done.stderr}"
    if count < 4:
        yield f"only {count} commands of Helm on the pages"
    page = (REPOSITORY / "docs/operating/helm.md").read_text()
    example = re.search(r"^```yaml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)[1]
    objects = helm.objects(yaml.safe_load(example))
    yield from (f"docs/operating/helm.md: {it}" for it in manifests.schema_problems(objects))
    shipped = yaml.safe_load((CHART / "values.yaml").read_text())
    table = page[page.index("| you want | value |"):page.index("Where a value needs a list")]
    for line in table.splitlines()[2:]:
        for name in re.findall(r"`([A-Za-z]+(?:\.[A-Za-z]+)*)(?:=[^`]*)?`", line.partition("|")[2].partition("|")[2]):
            value = shipped
            for key in name.split("."):
                value = value.get(key) if isinstance(value, dict) else None
                if value is None:
                    break
            # `release` is a label of the user's; a kind is a value and no key.
            if value is None and not name.startswith("monitoring.labels.") and name != "ServiceMonitor":
                yield f"docs/operating/helm.md names the value {name}"


def relay_problems(helm, relay):
    """Yields what manifests.py finds in the chart's objects, and a config that `check` refuses."""
    for name, values in ALIKE.items():
        yield from (f"{name}: {it}" for it in manifests.problems(helm.objects(values), relay, manifests.VERSIONS[-1:]))


def self_test(helm, kubectl, directory):
    """Yields a problem unless the comparison finds the faults that a chart may have."""
    wanted = manifests.render(kubectl, DEPLOY / "base")
    for number, (file, old, new) in enumerate(
        (
            ("templates/workload.yaml", '"replicas" $values.replicas', '"replicas" 1'),
            ("templates/service.yaml", "list $http $https", "list $http"),
            ("manifests/deployment.yaml", "drop: [ALL]", "drop: [NET_RAW]"),
            ("templates/poddisruptionbudget.yaml", '"maxUnavailable" .Values', '"minAvailable" .Values'),
        )
    ):
        chart = directory / f"broken-{number}"
        shutil.copytree(CHART, chart)
        text = (chart / file).read_text()
        assert old in text, (file, old)
        (chart / file).write_text(text.replace(old, new))
        objects = helm.objects(WITH_NAMESPACE, chart=chart)
        if not list(compare(objects, wanted)):
            yield f"nothing is said of a chart with {new!r} in {file}"
    monitor = copy.deepcopy(helm.objects(MONITORING))
    only(monitor, "PodMonitor")["spec"]["podMetricsEndpoints"][0]["intervall"] = "30s"
    if not list(custom_problems(monitor)):
        yield "nothing is said of an unknown field of a PodMonitor"


def main():
    relay, program, kubectl = sys.argv[1:]
    with tempfile.TemporaryDirectory() as name:
        directory = pathlib.Path(name)
        helm = Helm(program, directory)
        found = [*copies_problems(), *version_problems()]
        # The rest would only say the same in other words.
        if not found:
            found += alike_problems(helm, kubectl)
            found += effect_problems(helm)
            found += room_problems(helm)
            found += schema_problems(helm)
            found += package_problems(helm, directory)
            found += notes_problems(helm, directory)
            found += kept_ports_problems(helm, directory)
            found += page_problems(helm, directory)
            found += relay_problems(helm, relay)
            found += self_test(helm, kubectl, directory)
        if found:
            raise SystemExit("\n".join(found))
        version = helm.run("version", "--short").stdout.strip()
        print(f"helm {version}: the chart gives the objects of {', '.join(ALIKE)} and monitoring")
        print(f"{len(EFFECTS)} other sets of values, valid for Kubernetes {', '.join(manifests.VERSIONS)}")


if __name__ == "__main__":
    main()
