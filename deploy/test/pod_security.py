"""The Pod Security level `restricted`, as Kubernetes' own admission plugin checks it.

The rules are those of https://kubernetes.io/docs/concepts/security/pod-security-standards/, level
Restricted, version latest (1.37), which contain those of Baseline. `violations` says what the
plugin would say of a pod, and `admits` says what a namespace with certain labels does with a pod.

`weaknesses` says which of our own rules a pod does not keep. They are stricter, have no exception,
and hold for every pod that this repository ships: `pods` finds them.
"""

import copy

PREFIX = "pod-security.kubernetes.io/"

CAPABILITIES = {
    "AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE",
    "SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT",
}
SYSCTLS = {
    "kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range", "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports", "net.ipv4.tcp_keepalive_time", "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl", "net.ipv4.tcp_keepalive_probes", "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem", "net.ipv4.tcp_slow_start_after_idle", "net.ipv4.tcp_notsent_lowat",
}
VOLUMES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "image", "persistentVolumeClaim",
    "projected", "secret",
}
SELINUX_TYPES = {None, "", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}


def violations(pod, annotations=None):
    """Yields each rule of `restricted` that a pod's spec does not keep.

    `annotations` are those of the pod. Older clusters read AppArmor's profile from them.
    """
    containers = containers_of(pod)
    contexts = [("the pod", pod.get("securityContext") or {})]
    contexts += [(container["name"], container.get("securityContext") or {}) for container in containers]
    on_windows = (pod.get("os") or {}).get("name") == "windows"
    own_users = pod.get("hostUsers") is False

    for key in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(key):
            yield f"{key} is true"
    for sysctl in contexts[0][1].get("sysctls") or ():
        if sysctl["name"] not in SYSCTLS:
            yield f"the sysctl {sysctl['name']}"
    for volume in pod.get("volumes") or ():
        if not set(volume) - {"name"} <= VOLUMES:
            yield f"the volume {volume['name']} is of another kind than allowed"
    for key, value in (annotations or {}).items():
        if key.startswith("container.apparmor.security.beta.kubernetes.io/"):
            if value not in ("", "runtime/default") and not value.startswith("localhost/"):
                yield f"{key} is {value}"

    for name, context in contexts:
        if (context.get("windowsOptions") or {}).get("hostProcess"):
            yield f"{name}: hostProcess is true"
        if (context.get("appArmorProfile") or {}).get("type", "RuntimeDefault") == "Unconfined":
            yield f"{name}: no AppArmor profile"
        options = context.get("seLinuxOptions") or {}
        if options.get("type") not in SELINUX_TYPES or options.get("user") or options.get("role"):
            yield f"{name}: seLinuxOptions"
        if context.get("runAsUser") == 0 and not own_users:
            yield f"{name}: runAsUser is 0"

    for container in containers:
        yield from _of_container(container, contexts[0][1], on_windows, own_users)


def _of_container(container, of_pod, on_windows, own_users):
    name = container["name"]
    context = container.get("securityContext") or {}
    if context.get("privileged"):
        yield f"{name}: privileged"
    if context.get("procMount") not in (None, "Default"):
        yield f"{name}: procMount is {context['procMount']}"
    for port in container.get("ports") or ():
        if port.get("hostPort"):
            yield f"{name}: hostPort {port['hostPort']}"
    handlers = [container.get(f"{kind}Probe") or {} for kind in ("liveness", "readiness", "startup")]
    handlers += (container.get("lifecycle") or {}).values()
    for handler in handlers:
        for action in ("httpGet", "tcpSocket"):
            if (handler.get(action) or {}).get("host"):
                yield f"{name}: a probe or hook of another host"
    if context.get("runAsNonRoot") is False and not own_users:
        yield f"{name}: runAsNonRoot is false"
    if not context.get("runAsNonRoot", of_pod.get("runAsNonRoot")) and not own_users:
        yield f"{name}: runAsNonRoot is not true"
    # A Windows pod is excused from what only Linux has.
    added = set((context.get("capabilities") or {}).get("add") or ())
    if not added <= CAPABILITIES:
        yield f"{name}: the capabilities {sorted(added - CAPABILITIES)}"
    profile = context.get("seccompProfile") or of_pod.get("seccompProfile") or {}
    if not on_windows or profile:
        if profile.get("type") not in ("RuntimeDefault", "Localhost"):
            yield f"{name}: the seccomp profile is {profile.get('type')}"
    if on_windows:
        return
    if context.get("allowPrivilegeEscalation") is not False:
        yield f"{name}: allowPrivilegeEscalation is not false"
    if "ALL" not in ((context.get("capabilities") or {}).get("drop") or ()):
        yield f"{name}: not all capabilities are dropped"
    if not added <= {"NET_BIND_SERVICE"}:
        yield f"{name}: the capabilities {sorted(added)}"


def containers_of(pod):
    return [it for kind in ("initContainers", "containers", "ephemeralContainers") for it in pod.get(kind) or ()]


def weaknesses(pod):
    """Yields each of our own rules that a pod's spec does not keep."""
    if pod.get("automountServiceAccountToken") is not False:
        yield "a token is mounted"
    of_pod = pod.get("securityContext") or {}
    for container in containers_of(pod):
        name = container["name"]
        context = container.get("securityContext") or {}
        if context.get("seccompProfile", of_pod.get("seccompProfile")) != {"type": "RuntimeDefault"}:
            yield f"{name}: no seccomp profile"
        if context.get("runAsNonRoot", of_pod.get("runAsNonRoot")) is not True:
            yield f"{name}: may run as root"
        if context.get("readOnlyRootFilesystem") is not True:
            yield f"{name}: the root file system is writable"
        if context.get("allowPrivilegeEscalation") is not False:
            yield f"{name}: privileges may rise"
        if context.get("capabilities") != {"drop": ["ALL"]}:
            yield f"{name}: capabilities are not dropped"
        if context.get("privileged"):
            yield f"{name}: privileged"


def pods(value):
    """Yields the spec of each pod within a document of any kind: whatever has containers."""
    if isinstance(value, dict):
        if isinstance(value.get("containers"), list):
            yield value
        for inner in value.values():
            yield from pods(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from pods(inner)


def weakened(pod):
    """Yields copies of a pod with one setting taken away each, and whose setting it was."""
    wrong = copy.deepcopy(pod)
    wrong.pop("automountServiceAccountToken", None)
    yield "automountServiceAccountToken", wrong
    for key in ("seccompProfile", "runAsNonRoot"):
        wrong = copy.deepcopy(pod)
        for context in [wrong, *containers_of(wrong)]:
            context.get("securityContext", {}).pop(key, None)
        yield key, wrong
    for index, container in enumerate(containers_of(pod)):
        for key in ("readOnlyRootFilesystem", "allowPrivilegeEscalation", "capabilities"):
            wrong = copy.deepcopy(pod)
            containers_of(wrong)[index].get("securityContext", {}).pop(key, None)
            yield f"{container['name']}: {key}", wrong


def level(labels, mode):
    """Returns the level that a namespace's labels ask for in a mode, such as `enforce`."""
    return labels.get(PREFIX + mode, "privileged")


def admits(labels, pod, annotations=None):
    """Returns whether a namespace with these labels admits a pod: only `enforce` refuses one.

    Here `baseline` counts as `restricted`, which refuses more. Our manifests use no `baseline`.
    """
    return level(labels, "enforce") == "privileged" or not list(violations(pod, annotations))
