#!/bin/sh
# Replaces the HAProxy of IBM Cloud's tutorial with the relays, and brings it back. Both Deployments
# have the same name, so Kubernetes ends HAProxy's pod only when the relays are ready.
# docs/replace-haproxy.md says more.
#
#   deploy/replace-haproxy.sh config [FILE]
#       converts the cluster's haproxy.cfg, or FILE, and writes its outputs into
#       deploy/base/relay.toml. Exit status 3: there are lines to decide on.
#   deploy/replace-haproxy.sh relay [--image IMAGE] [--file FILE]… [--force]
#       saves HAProxy's Deployment in the ConfigMap kube-audit-forwarder-haproxy, puts the files
#       into the Secret kube-audit-forwarder-consumer, has a pod check the config and the consumer,
#       and starts the relays. --force: also if that check fails.
#   deploy/replace-haproxy.sh undo
#       starts HAProxy as it was saved. The relays then get no more events. What they can't deliver
#       goes to POD-OUTPUT.jsonl in the current directory before they are deleted.
#
# Each can be run again at any time. They need kubectl and jq, `relay` also openssl, and `config`
# the program kube-audit-forwarder. The environment may change these values:
#
#   KUBECTL  kubectl   or oc, for OpenShift
#   PROGRAM  kube-audit-forwarder, or target/release/kube-audit-forwarder
#   TIMEOUT  300       seconds to wait for pods
#   DRAIN    60        seconds that `undo` waits for each relay to deliver its events
#   PAUSE    5         seconds between two looks, and until no node sends to a relay any more
set -eu
umask 077

KUBECTL=${KUBECTL:-kubectl}
TIMEOUT=${TIMEOUT:-300}
PAUSE=${PAUSE:-5}
NAMESPACE=ibm-kube-audit
NAME=kube-audit-forwarder
SAVED=$NAME-haproxy
# The label of the relays' objects, and the label `app` of relays that get no more events.
RELAYS=app.kubernetes.io/name=$NAME
LEFT=$NAME-left
SPOOL=/var/lib/$NAME
HERE=$(dirname "$0")
# shellcheck source=deploy/secrets.sh
. "$HERE/secrets.sh"
case ${KUBECTL##*/} in oc) overlay=ibm-openshift ;; *) overlay=ibm-iks ;; esac

say() { printf '%s\n' "replace-haproxy.sh: $*" >&2; }
fail() { say "$*"; exit 1; }
usage() { sed -n 's/^#   \(deploy\)/\1/p' "$0" >&2; exit 2; }
kube() { "$KUBECTL" -n "$NAMESPACE" "$@"; }
needs() { for each; do command -v "$each" >/dev/null || fail "$each is not installed"; done; }
# Creates or changes an object, without the annotation of `kubectl apply`, which would hold a
# Secret once more.
write() {
  jq --arg name "$NAME" '.metadata.labels = {app: $name, "app.kubernetes.io/name": $name}' |
    kube apply --server-side --force-conflicts -f - >&2
}

directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
trap 'exit 1' HUP INT TERM

# Sets `runs` to what the Deployment is: haproxy, relay or nothing.
look() {
  kube get deployment "$NAME" --ignore-not-found -o json >"$directory/live.json"
  kube get configmap "$SAVED" --ignore-not-found -o json >"$directory/saved.json"
  jq -r '.data["before.json"]' "$directory/saved.json" >"$directory/before.json"
  runs=$(jq -sr --arg name "$NAME" 'if . == [] then "nothing"
    elif .[0].spec.template.metadata.labels["app.kubernetes.io/name"] == $name then "relay" else "haproxy" end' "$directory/live.json")
}

# Prints the output tables of a config ($2 is 1), or the rest of it (0). A comment belongs to the
# line below it.
part() {
  awk -v wanted="$2" '/^(#|$)/ { held = held $0 "\n"; next } /^\[/ { output = /^\[+output[].]/ }
    { if (output == wanted) printf "%s%s\n", held, $0; held = "" }' "$1"
}

# Whether the config still writes the events to stdout only.
as_shipped() { [ "$(sed -n 's/^type = //p' "$HERE/base/relay.toml")" = '"stdout"' ]; }

config() {
  [ "$#" -le 1 ] || usage
  program=$(command -v "${PROGRAM:-$NAME}" || command -v "$HERE/../target/release/$NAME") ||
    fail "the program $NAME is not installed; see docs/start.md"
  as_shipped || fail "deploy/base/relay.toml has outputs of yours, which stay; to start again, run: git checkout deploy/base/relay.toml"
  if [ "$#" -eq 1 ]; then cat "$1"; else kube get configmap "$NAME-cm" -o json | jq -er '.data["haproxy.cfg"]'; fi >"$directory/haproxy.cfg" ||
    fail "there is no haproxy.cfg in the ConfigMap $NAME-cm; name its file: deploy/replace-haproxy.sh config FILE"
  status=0
  case $program in /*) ;; *) program=$PWD/$program ;; esac
  (cd "$directory" && "$program" migrate haproxy haproxy.cfg >migrated.toml) || status=$?
  case $status in 0 | 3) ;; *) fail "haproxy.cfg can't be converted; see docs/migrate-haproxy.md" ;; esac
  # HAProxy passed the path of the webhook's URL on, unless its config has another one.
  { part "$HERE/base/relay.toml" 0 && part "$directory/migrated.toml" 1 | sed '/^urls = /s,\(:[0-9]*\)/",\1/post",g'; } >"$directory/relay.toml"
  "$program" check --elsewhere --config "$directory/relay.toml" || fail "the converted config is not valid; deploy/base/relay.toml is unchanged"
  cat "$directory/relay.toml" >"$HERE/base/relay.toml"
  say "deploy/base/relay.toml has the outputs of haproxy.cfg now: look at it"
  [ "$status" = 0 ] || say "decide on the lines above that begin with \"decide:\""
  exit "$status"
}

# HAProxy as it is now. The labels of the namespace are those of before the first attempt.
save() {
  kube get configmap "$NAME-cm" --ignore-not-found -o json >"$directory/map.json"
  "$KUBECTL" get namespace "$NAMESPACE" -o json >"$directory/namespace.json"
  jq -n --slurpfile live "$directory/live.json" --slurpfile map "$directory/map.json" --slurpfile namespace "$directory/namespace.json" \
    --slurpfile before "$directory/before.json" '
    {deployment: ($live[0] | del(.status, .metadata["uid", "resourceVersion", "creationTimestamp", "generation", "managedFields"])),
     files: ($map[0].data // {} | del(.["relay.toml"])),
     labels: ($before[0].labels // $namespace[0].metadata.labels)}' >"$directory/new.json"
  mv "$directory/new.json" "$directory/before.json"
  kube create configmap "$SAVED" --from-file="$directory/before.json" --dry-run=client -o json | write
  say "HAProxy's Deployment is saved in the ConfigMap $SAVED"
}

# A pod of its own, behind no Service: $1 is the Deployment's file, and $2 a change to the pod.
pod_of() {
  jq --arg name "$NAME-check" "$2"' | .spec.template | {apiVersion: "v1", kind: "Pod",
    metadata: {name: $name, annotations: .metadata.annotations, labels: {app: $name}},
    spec: (.spec + {restartPolicy: "Never"})}' "$1"
}

# Has a pod check the image, the config, the files and the way to the consumer, before anything
# changes for the events.
check_in_cluster() {
  kube delete pod "$NAME-check" --ignore-not-found >&2
  jq --arg name "$NAME-check" 'select(.kind == "ConfigMap") | .metadata.name = $name' "$directory/all.json" | write
  # shellcheck disable=SC2016 # jq's variable
  pod_of "$directory/deployment.json" 'del(.spec.template.spec.topologySpreadConstraints) |
    (.spec.template.spec.volumes[] | select(.configMap).configMap.name) = $name | .spec.template.spec.containers[0] |=
    (del(.startupProbe, .livenessProbe, .readinessProbe, .lifecycle) | .args = ["check", "--connect"])' | kube create -f - >&2
  waited=0 state=""
  while [ "$waited" -lt "$TIMEOUT" ]; do
    case $state in *Succeeded* | *Failed* | *Err* | *BackOff* | *Invalid*) break ;; esac
    sleep "$PAUSE"
    waited=$((waited + PAUSE))
    state=$(kube get pod "$NAME-check" -o json | jq -r '.status | [.phase, (.containerStatuses[]?.state.waiting | .reason, .message),
      (.conditions[]? | select(.reason == "Unschedulable").message)] | map(select(.)) | join(" ")')
  done
  kube logs "$NAME-check" >&2 || true
  kube delete "pod/$NAME-check" "configmap/$NAME-check" >&2
  case $state in
  *Succeeded*) say "the config is valid, and the consumer answers" ;;
  *) [ -n "$force" ] || fail "the check in the cluster failed ($state), so nothing is switched. For an image, use --image; for the consumer's files, --file" ;;
  esac
}

admin_tokens() {
  if [ -z "$(kube get secret "$NAME-admin" --ignore-not-found -o name)" ]; then
    for key in token metrics-token; do openssl rand -hex 32 | tr -d '\n' >"$directory/$key"; done
    kube create secret generic "$NAME-admin" --from-file="$directory/token" --from-file="$directory/metrics-token" \
      --dry-run=client -o json | write
  fi
}

# The relays' NetworkPolicy, which is not tested yet, must not keep events from HAProxy.
stop() {
  [ -z "$(kube get pods -l "app=$NAME,app.kubernetes.io/name!=$NAME" -o name)" ] || kube delete networkpolicy -l "$RELAYS" >&2
  fail "$*"
}

relay() {
  image="" force="" left=$#
  while [ "$left" -gt 0 ]; do
    case $1:$left in
    --force:*) force=yes; shift; left=$((left - 1)); continue ;;
    --image:1 | --file:1) usage ;;
    --image:*) image=$2 ;;
    --file:*) [ -r "$2" ] || fail "can't read the file $2"; set -- "$@" --from-file="$2" ;;
    *) usage ;;
    esac
    shift 2
    left=$((left - 2))
  done
  needs openssl
  ! as_shipped || fail "deploy/base/relay.toml sends nothing to your consumer; first run: deploy/replace-haproxy.sh config"
  look
  port=$(kube get service "$NAME" -o json | jq -r --arg name "$NAME" 'select(.spec.selector == {app: $name}).spec.ports[] |
    select(.targetPort == 3000 or .targetPort == "http").port' | head -n 1)
  [ -n "$port" ] || fail "there is no Service $NAME that selects app=$NAME and leads to port 3000, like the tutorial's"
  case $runs in
  haproxy)
    jq -e --arg name "$NAME" '.spec.selector == {matchLabels: {app: $name}}' "$directory/live.json" >/dev/null ||
      fail "the Deployment's selector is not app=$NAME, as the tutorial's is, and Kubernetes can't change it"
    save
    ;;
  nothing) [ -s "$directory/before.json" ] || fail "there is no Deployment $NAME; see docs/operating/kubernetes.md" ;;
  esac
  "$KUBECTL" kustomize "$HERE/overlays/$overlay" | "$KUBECTL" create --dry-run=client -o json -f - >"$directory/all.json"
  jq --arg image "$image" 'select(.kind == "Deployment") | if $image == "" then . else .spec.template.spec.containers[0].image = $image end' \
    "$directory/all.json" >"$directory/deployment.json"
  # The Service stays as it is.
  jq --arg name "$NAME" 'select((.kind | IN("Deployment", "ConfigMap", "NetworkPolicy") | not) and (.kind != "Service" or .metadata.name != $name))' \
    "$directory/all.json" | "$KUBECTL" apply -f - >&2
  consumer_secret "$@"
  admin_tokens
  pull_secret
  check_in_cluster
  # A pod of HAProxy may start again, so the ConfigMap has its files, too.
  jq --slurpfile before "$directory/before.json" 'select(.kind | IN("ConfigMap", "NetworkPolicy")) |
    if .kind == "ConfigMap" then .data += ($before[0].files // {}) else . end' "$directory/all.json" | "$KUBECTL" apply -f - >&2
  verb=replace
  [ "$runs" != nothing ] || verb=create
  kube "$verb" --save-config -f "$directory/deployment.json" >&2 || stop "the relays' Deployment is refused. HAProxy still runs"
  kube rollout status "deployment/$NAME" --timeout "${TIMEOUT}s" >&2 ||
    stop "the relays are not ready. HAProxy still receives events. Look at: $KUBECTL describe pods -n $NAMESPACE -l $RELAYS"
  printf %s "$EMPTY" >"$directory/empty.json"
  waited=0
  route=/api/v1/namespaces/$NAMESPACE/services/$NAME:$port/proxy/post
  until answer=$("$KUBECTL" create --raw "$route" -f "$directory/empty.json" 2>&1) && [ "$answer" = '{"accepted":0}' ]; do
    if [ "$waited" -ge $((4 * PAUSE)) ]; then
      kube delete networkpolicy -l "$RELAYS" >&2
      fail "no relay answers at $route: $answer. Their NetworkPolicy, a possible reason, is deleted (docs/operating/webhook.md#who-may-send). To go back, run: deploy/replace-haproxy.sh undo"
    fi
    sleep "$PAUSE"
    waited=$((waited + PAUSE))
  done
  say "the relays receive the events; HAProxy has ended. To go back, run: deploy/replace-haproxy.sh undo"
}

# Deletes the relays that get no more events, when they have none left.
delete_left() {
  rest=""
  # These have no container, and so no events.
  kube delete pods -l "app=$LEFT" --field-selector status.phase!=Running --wait=false >&2
  for pod in $(kube get pods -l "app=$LEFT" -o name); do
    if ! kube exec "$pod" -- "/usr/bin/$NAME" drain --seconds "${DRAIN:-60}" >&2; then
      kube exec "$pod" -- "/usr/bin/$NAME" queue inspect --json "$SPOOL" >"$directory/queue.json" || : >"$directory/queue.json"
      jq -r '.outputs[] | select(.backlog_events > 0) | "\(.name) \(.backlog_events)"' "$directory/queue.json" >"$directory/outputs"
      [ -s "$directory/queue.json" ] || echo - 1 >"$directory/outputs"
      while read -r output events; do
        file=${pod#pod/}-$output.jsonl
        if ! kube exec "$pod" -- "/usr/bin/$NAME" queue export "$SPOOL" --output "$output" </dev/null >"$file" ||
          [ "$(wc -l <"$file")" -lt "$events" ]; then
          say "$pod stays, because its events can't be read; delete it if it was never ready"
          rest=$pod
          continue 2
        fi
        say "$events events that $output did not take are in $file. Later: kube-audit-forwarder replay $file --url URL"
      done <"$directory/outputs"
    fi
    kube delete "$pod" --wait=false >&2
  done
}

undo() {
  look
  [ "$(jq -r '.deployment.kind' "$directory/before.json")" = Deployment ] || fail "there is nothing to undo: no HAProxy is saved"
  # deploy/connect.sh makes the certificate before it sets the webhook.
  [ -z "$(kube get secret audit-webhook --ignore-not-found -o name)" ] ||
    fail "the relays have a certificate. If the webhook uses HTTPS, which HAProxy does not take, first set the old URL and refresh the master. Then run: $KUBECTL delete secret -n $NAMESPACE audit-webhook"
  [ -z "$(kube get statefulset "$NAME" --ignore-not-found -o name)" ] ||
    fail "the relays are a StatefulSet, which this script does not know; first go back to the Deployment of deploy/overlays/$overlay"
  "$KUBECTL" get namespace "$NAMESPACE" -o json >"$directory/namespace.json"
  # The labels of before, but what somebody has set so that HAProxy's pod is admitted.
  # shellcheck disable=SC2046 # a label has no spaces
  set -- $(jq -r --slurpfile now "$directory/namespace.json" '(.labels // {}) as $before | $now[0].metadata.labels + $before | keys[] |
    select(test("^(pod-security.kubernetes|security.openshift).io/") and $now[0].metadata.labels[.] != "privileged") |
    if $before[.] then "\(.)=\($before[.])" else "\(.)-" end' "$directory/before.json")
  [ "$#" -eq 0 ] || "$KUBECTL" label --overwrite namespace "$NAMESPACE" "$@" >&2
  jq .deployment "$directory/before.json" >"$directory/haproxy.json"
  pod_of "$directory/haproxy.json" . | kube create --dry-run=server -f - >&2 ||
    fail "the namespace does not admit HAProxy's pod; the relays still receive. If Pod Security is the reason: $KUBECTL label --overwrite namespace $NAMESPACE pod-security.kubernetes.io/enforce=privileged"
  jq '{data: .files}' "$directory/before.json" >"$directory/files.json"
  kube patch configmap "$NAME-cm" --type merge --patch-file "$directory/files.json" >&2
  kube delete networkpolicy,poddisruptionbudget -l "$RELAYS" >&2
  if [ "$runs" = relay ]; then
    # The relays' pods go on until HAProxy is ready, and as long as they have events.
    kube delete deployment "$NAME" --cascade=orphan >&2
    kube delete replicaset -l "$RELAYS" --cascade=orphan >&2
  fi
  [ "$runs" = haproxy ] || kube create -f "$directory/haproxy.json" >&2
  kube rollout status "deployment/$NAME" --timeout "${TIMEOUT}s" >&2 ||
    fail "HAProxy is not ready. The relays still receive events; to keep them, run: deploy/replace-haproxy.sh relay"
  kube label pods -l "$RELAYS" --overwrite "app=$LEFT" >&2
  sleep "$PAUSE"
  delete_left
  [ -z "$rest" ] || fail "HAProxy receives the events. Not all relays could be deleted; run this again"
  kube patch configmap "$NAME-cm" --type merge -p '{"data": {"relay.toml": null}}' >&2
  kube delete configmap "$SAVED" >&2
  say "HAProxy receives the events; the relays are deleted"
}

needs "$KUBECTL" jq
case ${1:-} in
config | relay) command=$1; shift; "$command" "$@" ;;
undo) [ "$#" -eq 1 ] || usage; undo ;;
*) usage ;;
esac
