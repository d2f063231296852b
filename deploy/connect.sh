#!/bin/sh
# Connects kube-apiserver to the relays, when their manifests or the chart have been applied: waits
# until they run, makes the certificate of their HTTPS listener (deploy/certificate.sh), sends an
# empty batch the way that kube-apiserver takes, and only then turns the audit webhook to them.
#
#   deploy/connect.sh ibm-cloud CLUSTER
#       sets the webhook of an IBM Cloud cluster, and refreshes its master. Copies the credentials
#       for icr.io from the namespace default first. Prints the webhook of before, for the way back.
#
#   deploy/connect.sh own ADDRESS… >audit-webhook.yaml
#       for a kube-apiserver of your own, whose nodes have these addresses: lets them through to the
#       relays by a NetworkPolicy (deploy/control-plane.yaml), and prints the file for its option
#       --audit-webhook-config-file.
#
# The script needs openssl and kubectl; for ibm-cloud also ibmcloud and jq, logged in. Run again, it
# does the same again. The environment may change these values:
#
#   KUBECTL     kubectl          or oc: then `ibmcloud oc` takes the place of `ibmcloud ks`
#   NAMESPACE   ibm-kube-audit
#   POLICY      default          the audit policy of the IBM Cloud cluster, or verbose
#   TIMEOUT     300              seconds to wait for the pods, and for the HTTPS listener
set -eu
umask 077

KUBECTL=${KUBECTL:-kubectl}
NAMESPACE=${NAMESPACE:-ibm-kube-audit}
POLICY=${POLICY:-default}
TIMEOUT=${TIMEOUT:-300}
SERVICE=kube-audit-forwarder
# The Service with the port of HTTPS.
HTTPS=$SERVICE-https
PULL_SECRET=all-icr-io
HERE=$(dirname "$0")
# The path of the webhook below kube-apiserver's own address.
PROXY=/api/v1/namespaces/$NAMESPACE/services/https:$HTTPS:https/proxy/post

say() { printf '%s\n' "$*" >&2; }
fail() { say "connect.sh: $*"; exit 1; }
usage() { say "usage: deploy/connect.sh ibm-cloud CLUSTER | own ADDRESS…; the head of the file says more"; exit 2; }

# Private keys are only in this directory and in Secrets, and never on a command line.
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
trap 'exit 1' HUP INT TERM

needs() {
  for program; do command -v "$program" >/dev/null || fail "$program is not installed"; done
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

wait_for_pods() {
  workload=$("$KUBECTL" get deployment,statefulset -n "$NAMESPACE" -o name) || fail "no access to $NAMESPACE"
  workload=$(printf '%s\n' "$workload" | grep -x ".*/$SERVICE") ||
    fail "no $SERVICE in the namespace $NAMESPACE; apply the manifests or the chart first"
  "$KUBECTL" get service "$HTTPS" -n "$NAMESPACE" -o name >/dev/null ||
    fail "no Service $HTTPS in the namespace $NAMESPACE, which is new after version 0.1.0; see docs/operating/upgrade.md"
  for each in $workload; do
    "$KUBECTL" rollout status -n "$NAMESPACE" "$each" --timeout "${TIMEOUT}s" >&2
  done
}

# A relay opens the HTTPS listener when kubelet has brought it the certificate, within a minute or
# two. An empty batch is accepted and forwarded nowhere.
wait_for_https() {
  printf '{"kind":"EventList","apiVersion":"audit.k8s.io/v1","metadata":{},"items":[]}' >"$directory/empty.json"
  waited=0
  until answer=$("$KUBECTL" create --raw "$PROXY" -f "$directory/empty.json" 2>&1); do
    [ "$waited" -lt "$TIMEOUT" ] || fail "no relay answers at $PROXY: $answer"
    waited=$((waited + 2))
    sleep 2
  done
  case $answer in
  *'"accepted":0'*) ;;
  *) fail "it is no relay that answers at $PROXY: $answer" ;;
  esac
  say "the relays answer at $PROXY"
}

ibm_cloud() {
  needs jq ibmcloud
  cluster=$1
  case ${KUBECTL##*/} in oc) kind=oc ;; *) kind=ks ;; esac
  pull_secret
  wait_for_pods
  KUBECTL=$KUBECTL NAMESPACE=$NAMESPACE "$HERE/certificate.sh"
  wait_for_https
  ibmcloud "$kind" cluster ca get --cluster "$cluster" --output json >"$directory/ca.json"
  jq -er .caCert "$directory/ca.json" | openssl base64 -d -A >"$directory/ca.pem"
  ibmcloud "$kind" cluster config --cluster "$cluster" --admin --output json >"$directory/config.json"
  for part in certificate key; do
    jq -er ".users[0].user.\"client-$part-data\"" "$directory/config.json" |
      openssl base64 -d -A >"$directory/client-$part.pem"
  done
  openssl x509 -in "$directory/ca.pem" -noout || fail "the cluster's CA is no certificate"
  openssl x509 -in "$directory/client-certificate.pem" -noout || fail "the client's certificate is none"
  openssl pkey -in "$directory/client-key.pem" -noout || fail "the client's key is none"
  say "the webhook until now:"
  ibmcloud "$kind" cluster master audit-webhook get --cluster "$cluster" >&2 || say "none"
  ibmcloud "$kind" cluster master audit-webhook set --cluster "$cluster" --policy "$POLICY" \
    --remote-server "https://127.0.0.1:2040$PROXY" --ca-cert "$directory/ca.pem" \
    --client-cert "$directory/client-certificate.pem" --client-key "$directory/client-key.pem" >&2
  ibmcloud "$kind" cluster master refresh --cluster "$cluster" >&2
  say "the webhook is set; events come when the master is refreshed, which takes some minutes"
}

own() {
  for address; do
    case $address in
    *[!0-9a-fA-F.:]*) fail "$address is no address" ;;
    *:*) printf '        - ipBlock:\n            cidr: %s/128\n' "$address" ;;
    *.*.*.*) printf '        - ipBlock:\n            cidr: %s/32\n' "$address" ;;
    *) fail "$address is no address" ;;
    esac
  done >"$directory/blocks"
  wait_for_pods
  KUBECTL=$KUBECTL NAMESPACE=$NAMESPACE "$HERE/certificate.sh"
  # The example's block, which is the end of the file, gives way to those of the addresses.
  sed -e "s/^  namespace: .*/  namespace: $NAMESPACE/" -e '/^        # One block/,$d' "$HERE/control-plane.yaml" |
    cat - "$directory/blocks" | "$KUBECTL" apply -f - >&2
  address=$("$KUBECTL" get service "$HTTPS" -n "$NAMESPACE" -o 'jsonpath={.spec.clusterIP}')
  ca=$("$KUBECTL" get secret audit-webhook -n "$NAMESPACE" -o 'jsonpath={.data.ca\.crt}')
  [ -n "$ca" ] || fail "the Secret audit-webhook has no ca.crt: the CA that signed the certificate is not known here"
  wait_for_https
  case $address in *:*) address="[$address]" ;; esac
  cat <<END
apiVersion: v1
kind: Config
clusters:
  - name: relay
    cluster:
      server: https://$address/post
      certificate-authority-data: $ca
contexts:
  - name: relay
    context: {cluster: relay}
current-context: relay
END
  say "give this file to kube-apiserver with --audit-webhook-config-file, beside --audit-policy-file"
}

needs openssl "$KUBECTL"
case ${1:-} in
ibm-cloud)
  [ "$#" -eq 2 ] || usage
  ibm_cloud "$2"
  ;;
own)
  [ "$#" -ge 2 ] || usage
  shift
  own "$@"
  ;;
*)
  usage
  ;;
esac
