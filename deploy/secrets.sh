# shellcheck shell=sh disable=SC2034,SC2153,SC2154 # variables of the scripts that read this file
# Secrets of the relays, for connect.sh and replace-haproxy.sh, which set KUBECTL, NAMESPACE and
# `directory`, a directory that only they can read. No value is on a command line.

# The body of a request that a relay accepts and forwards nowhere.
EMPTY='{"kind":"EventList","apiVersion":"audit.k8s.io/v1","metadata":{},"items":[]}'
# The Secrets with the files of outputs, and with the credentials for icr.io.
CONSUMER=kube-audit-forwarder-consumer
PULL_SECRET=all-icr-io

# Puts the files of outputs, as --from-file=FILE, into their Secret. Those of earlier runs stay,
# because the config may name them, too. The server keeps no copy of the values in an annotation.
consumer_secret() {
  [ "$#" -gt 0 ] || return 0
  "$KUBECTL" get secret "$CONSUMER" -n "$NAMESPACE" --ignore-not-found -o json >"$directory/consumer.json"
  "$KUBECTL" create secret generic "$CONSUMER" -n "$NAMESPACE" "$@" --dry-run=client -o json |
    jq --slurpfile before "$directory/consumer.json" '.data = ($before[0].data // {}) + .data' |
    "$KUBECTL" apply --server-side --force-conflicts -f - >&2
}

# The pods can't start before the credentials for their image are in their namespace.
pull_secret() {
  for namespace in "$NAMESPACE" default; do
    "$KUBECTL" get secret "$PULL_SECRET" -n "$namespace" --ignore-not-found -o json >"$directory/$namespace.json"
  done
  if [ ! -s "$directory/$NAMESPACE.json" ] && [ -s "$directory/default.json" ]; then
    jq --arg namespace "$NAMESPACE" '{apiVersion, kind, type, data, metadata: {name: .metadata.name, namespace: $namespace}}' \
      "$directory/default.json" | "$KUBECTL" create -f - >&2
  fi
}
