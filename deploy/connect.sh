#!/bin/sh
# Connects kube-apiserver to the relays, when their manifests or the chart have been applied: waits
# until they run, makes the certificate of their HTTPS listener (deploy/certificate.sh), sends an
# empty batch the way that kube-apiserver takes, and only then turns the audit webhook to them.
#
#   deploy/connect.sh ibm-cloud CLUSTER
#       sets the webhook of an IBM Cloud cluster, for which you need the role Administrator,
#       refreshes its master, waits until the refresh is done, and then for a first real event.
#       Copies the credentials for icr.io from the namespace default first. Prints the webhook of
#       before, for the way back, and at a later run what has changed, such as the cluster's CA.
#       The webhook gets the client certificate of a service ID, which this script makes: the
#       certificate of a person stops working on the day on which that person leaves.
#
#       Makes the tokens of the relays' admin port (the Secret kube-audit-forwarder-admin), too.
#
#   deploy/connect.sh own ADDRESS… >audit-webhook.yaml
#       for a kube-apiserver of your own, whose nodes have these addresses: lets them through to the
#       relays by a NetworkPolicy (deploy/control-plane.yaml), makes the tokens of the admin port,
#       and prints the file for the option --audit-webhook-config-file.
#
# The script needs openssl and kubectl; for ibm-cloud also curl, jq, and ibmcloud, logged in. Run
# again, it does the same again. The environment may change these values:
#
#   KUBECTL     kubectl          or oc: then `ibmcloud oc` takes the place of `ibmcloud ks`
#   NAMESPACE   ibm-kube-audit
#   POLICY      default          the audit policy of the IBM Cloud cluster, or verbose
#   IDENTITY    service-id       whose client certificate the webhook gets; own: that of whoever is
#                                logged in
#   SERVICE_ID  kube-audit-forwarder-CLUSTER, the name of the service ID
#   TIMEOUT     300              seconds to wait for the pods, for the HTTPS listener, for the
#                                rights of the service ID, and for the first event
#   REFRESH     1800             seconds to wait until the master is refreshed
#   PAUSE       5                seconds between two checks while it waits
set -eu
umask 077

KUBECTL=${KUBECTL:-kubectl}
NAMESPACE=${NAMESPACE:-ibm-kube-audit}
POLICY=${POLICY:-default}
IDENTITY=${IDENTITY:-service-id}
TIMEOUT=${TIMEOUT:-300}
REFRESH=${REFRESH:-1800}
PAUSE=${PAUSE:-5}
SERVICE=kube-audit-forwarder
# The Service with the port of HTTPS.
HTTPS=$SERVICE-https
PULL_SECRET=all-icr-io
# The Secret with the tokens of the admin port.
ADMIN=$SERVICE-admin
# A ConfigMap with what the webhook was set to, for the next run.
STATE=$SERVICE-webhook
HERE=$(dirname "$0")
# The path of the webhook below kube-apiserver's own address.
PROXY=/api/v1/namespaces/$NAMESPACE/services/https:$HTTPS:https/proxy/post

say() { printf '%s\n' "$*" >&2; }
fail() { say "connect.sh: $*"; exit 1; }
usage() { say "usage: deploy/connect.sh ibm-cloud CLUSTER | own ADDRESS…; the head of the file says more"; exit 2; }

# Private keys are only in this directory and in Secrets, and never on a command line.
directory=$(mktemp -d)
# What the end undoes: the process that forwards a port, and the key of the service ID.
forward="" api_key=""
end() {
  [ -z "$forward" ] || kill "$forward" 2>/dev/null || true
  [ -z "$api_key" ] || delete_api_key
  rm -rf "$directory"
}
trap end EXIT
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
    fail "no Service $HTTPS in the namespace $NAMESPACE, which these manifests, of version 0.1.0, do not have; see docs/operating/upgrade.md"
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
    [ "$waited" -lt "$TIMEOUT" ] || fail "no relay answers at $PROXY within $TIMEOUT s: $answer; see docs/operating/troubleshooting.md"
    waited=$((waited + 2))
    sleep 2
  done
  case $answer in
  *'"accepted":0'*) ;;
  *) fail "something other than a relay answers at $PROXY: $answer" ;;
  esac
  say "the relays answer at $PROXY"
}

# The role Administrator is needed from here to the end, and this command needs it too.
cluster_ca() {
  ibmcloud "$kind" cluster ca get --cluster "$cluster" --output json >"$directory/ca.json" 2>"$directory/said" ||
    fail "cannot read the CA of $cluster; you need the role Administrator for the cluster, and must be logged in: $(cat "$directory/said")"
  jq -er .caCert "$directory/ca.json" | openssl base64 -d -A >"$directory/ca.pem"
  openssl x509 -in "$directory/ca.pem" -noout || fail "the cluster's CA is not a certificate"
  openssl x509 -in "$directory/ca.pem" -noout -checkend 7776000 >/dev/null ||
    say "warning: the cluster's CA expires within 90 days; rotate it, and run this script again"
  status=$(ibmcloud "$kind" cluster ca status --cluster "$cluster") || fail "cannot read the status of the CA"
  say "the cluster's CA: $status"
  case $status in
  *"in progress"*) fail "the cluster's CA is being changed; run this script again when that is complete" ;;
  esac
}

# A deleted key does not end the client certificate that was made with it.
delete_api_key() {
  ibmcloud iam service-api-key-delete "$api_key" "$id" --force >/dev/null 2>&1 ||
    say "warning: delete the API key $api_key of the service ID $name yourself"
  api_key=""
}

# The first of those that have the name, or nothing.
id_of() { jq -r 'if type == "array" then .[0] else . end | .id // empty' "$1"; }

# Gets the kubeconfig of a service ID, which is logged in beside you: with a home of its own.
service_id() {
  name=${SERVICE_ID:-kube-audit-forwarder-$cluster}
  ibmcloud iam service-id "$name" --output json >"$directory/id.json" 2>/dev/null || : >"$directory/id.json"
  id=$(id_of "$directory/id.json")
  if [ -z "$id" ]; then
    ibmcloud iam service-id-create "$name" --description "client certificate of the audit webhook of $cluster" \
      --output json >"$directory/id.json" 2>"$directory/said" ||
      fail "cannot create a service ID; ask for the right to create one, name an existing one in SERVICE_ID, or set IDENTITY=own: $(cat "$directory/said")"
    id=$(id_of "$directory/id.json")
    [ -n "$id" ] || fail "ibmcloud printed no ID for the new service ID"
    say "made the service ID $name; keep it and its policy as long as the webhook is used"
  fi
  # It is refused where the service ID has the policy already. Whether it has, is seen below.
  ibmcloud iam service-policy-create "$id" --roles Administrator,Manager --service-name containers-kubernetes \
    --service-instance "$cluster_id" >"$directory/policy" 2>&1 || true
  ibmcloud iam service-api-key-create "$name-$$" "$id" --description "deleted at the end of connect.sh" \
    --file "$directory/key.json" >/dev/null || fail "cannot create an API key for the service ID $name"
  api_key=$name-$$
  mkdir -p "$directory/home/.bluemix/plugins"
  plugins=${IBMCLOUD_HOME:-$HOME}/.bluemix/plugins
  for each in config.json container-service; do
    [ ! -e "$plugins/$each" ] || cp -R "$plugins/$each" "$directory/home/.bluemix/plugins/"
  done
  rm -rf "$directory/home/.bluemix/plugins/container-service/clusters"
  IBMCLOUD_HOME=$directory/home ibmcloud login --apikey "@$directory/key.json" --no-region >"$directory/said" 2>&1 ||
    fail "the service ID $name can't log in: $(cat "$directory/said")"
  # Rights that have just been given take a minute or two.
  waited=0
  until IBMCLOUD_HOME=$directory/home ibmcloud "$kind" cluster config --cluster "$cluster_id" --admin \
    --output json >"$directory/config.json" 2>"$directory/said"; do
    [ "$waited" -lt "$TIMEOUT" ] ||
      fail "the service ID $name gets no client certificate: $(cat "$directory/said"); its policy: $(cat "$directory/policy")"
    waited=$((waited + PAUSE))
    sleep "$PAUSE"
  done
  delete_api_key
}

# The certificate and the key with which kube-apiserver comes to the service proxy.
client_certificate() {
  who=$(ibmcloud target --output json | jq -r '.user.user_email // .user.display_name // "you"') || who=you
  case $IDENTITY/$who in
  service-id/ServiceId-* | own/ServiceId-*) say "the webhook gets the client certificate of $who, who is logged in" ;;
  service-id/*) service_id ;;
  own/*)
    say "warning: the webhook gets the client certificate of $who. Events stop without a warning when $who leaves or loses the role. IDENTITY=service-id prevents it"
    ;;
  *) fail "IDENTITY is service-id or own, not $IDENTITY" ;;
  esac
  [ -s "$directory/config.json" ] ||
    ibmcloud "$kind" cluster config --cluster "$cluster" --admin --output json >"$directory/config.json"
  for part in certificate key; do
    jq -er ".users[0].user.\"client-$part-data\"" "$directory/config.json" |
      openssl base64 -d -A >"$directory/client-$part.pem"
  done
  openssl x509 -in "$directory/client-certificate.pem" -noout || fail "the client certificate is invalid"
  openssl pkey -in "$directory/client-key.pem" -noout || fail "the client key is invalid"
}

# What one certificate is, in a line.
of_certificate() {
  openssl x509 -in "$1" -noout -fingerprint -sha256 -enddate | sed -e 's/^.*Fingerprint=//' -e 's/^notAfter=/until /' |
    tr '\n' ' ' | sed 's/ $//'
}

# Prints what is new since this script ran last, and keeps what it has set now. Nothing of it is
# secret.
tell_changes() {
  ca=$(of_certificate "$directory/ca.pem")
  client=$(of_certificate "$directory/client-certificate.pem")
  "$KUBECTL" get configmap "$STATE" -n "$NAMESPACE" --ignore-not-found -o json >"$directory/state.json"
  for what in "ca=$ca" "client=$client" "url=$url" "policy=$POLICY"; do
    key=${what%%=*}
    now=${what#*=}
    before=$(jq -r --arg key "$key" '.data[$key] // empty' "$directory/state.json" 2>/dev/null) || before=""
    case $before in
    "$now") say "unchanged: $key ($now)" ;;
    "") say "set: $key ($now)" ;;
    *) say "changed: $key (before: $before; now: $now)" ;;
    esac
  done
  jq -n --arg name "$STATE" --arg namespace "$NAMESPACE" --arg ca "$ca" --arg client "$client" --arg url "$url" \
    --arg policy "$POLICY" '{apiVersion: "v1", kind: "ConfigMap", metadata: {$name, $namespace}, data: {$ca, $client, $url, $policy}}' |
    "$KUBECTL" apply -f - >&2 || say "warning: the ConfigMap $STATE can't be written; the next run can't say what has changed"
}

# Waits until the master is as it was before the refresh, and prints each step that it takes.
wait_for_refresh() {
  waited=0 told="" began=""
  while [ "$waited" -lt "$REFRESH" ]; do
    ibmcloud "$kind" cluster get --cluster "$cluster" --output json >"$directory/cluster.json" ||
      fail "cannot read the state of the master; the webhook is set, and the refresh may still be running"
    state=$(jq -r '.masterState // .lifecycle.masterState // "unknown"' "$directory/cluster.json")
    status=$(jq -r '.masterStatus // .lifecycle.masterStatus // ""' "$directory/cluster.json")
    [ "$told" = "$state $status" ] || say "the master: $state. $status"
    told="$state $status"
    case $state in
    # A refresh that has just been asked for is not seen at once.
    deployed) [ -z "$began" ] && [ "$waited" -lt 60 ] || return 0 ;;
    *fail* | *cancel*) fail "the master's refresh has failed ($state): $status" ;;
    *) began=yes ;;
    esac
    waited=$((waited + PAUSE))
    sleep "$PAUSE"
  done
  fail "the master is still not refreshed after $REFRESH s: $told. The webhook is set; check later whether events arrive"
}

# Makes the tokens of the relays' admin port, unless they exist, and reads the one for metrics. The
# pods take a new Secret within a minute or two.
admin_tokens() {
  if ! "$KUBECTL" get secret "$ADMIN" -n "$NAMESPACE" >/dev/null 2>&1; then
    for key in token metrics-token; do
      (umask 077 && openssl rand -hex 32 | tr -d '\n' >"$directory/$key")
    done
    "$KUBECTL" create secret generic "$ADMIN" -n "$NAMESPACE" --from-file="token=$directory/token" \
      --from-file="metrics-token=$directory/metrics-token" >&2
    "$KUBECTL" label secret "$ADMIN" -n "$NAMESPACE" "app=$SERVICE" "app.kubernetes.io/name=$SERVICE" >&2
    say "the tokens of the admin port are in the Secret $ADMIN"
  fi
  metrics_token=$("$KUBECTL" get secret "$ADMIN" -n "$NAMESPACE" -o 'go-template={{index .data "metrics-token" | base64decode}}') ||
    fail "the Secret $ADMIN has no metrics-token; see docs/operating/admin-port.md"
}

# The events that the relays have accepted, as their metrics say.
events() {
  total=0
  for pod in $("$KUBECTL" get pods -n "$NAMESPACE" -l "app.kubernetes.io/name=$SERVICE" -o name); do
    : >"$directory/forward"
    "$KUBECTL" port-forward -n "$NAMESPACE" "$pod" :9090 >"$directory/forward" 2>&1 &
    forward=$!
    tries=0 port=""
    while [ -z "$port" ] && [ "$tries" -lt 10 ]; do
      port=$(sed -n 's/^Forwarding from 127\.0\.0\.1:\([0-9]*\) .*/\1/p' "$directory/forward")
      tries=$((tries + 1))
      [ -n "$port" ] || sleep 1
    done
    # The token stays out of the list of processes.
    count=$(printf 'header = "Authorization: Bearer %s"\n' "$metrics_token" |
      curl --config - --silent --fail --noproxy '*' --max-time 10 "http://127.0.0.1:${port:-1}/metrics" |
      sed -n 's/^kube_audit_forwarder_event_total //p')
    kill "$forward" 2>/dev/null || true
    wait "$forward" 2>/dev/null || true
    forward=""
    [ -n "$count" ] || return 1
    total=$((total + count))
  done
  echo "$total"
}

# Nothing is sent for it: an event that arrives now is one of kube-apiserver.
wait_for_event() {
  waited=0
  # kubelet brings a relay the new tokens within a minute or two.
  until before=$(events); do
    [ "$waited" -lt "$TIMEOUT" ] ||
      fail "the metrics of the relays can't be read; the webhook is set, look at the status page"
    waited=$((waited + PAUSE))
    sleep "$PAUSE"
  done
  while [ "$waited" -lt "$TIMEOUT" ]; do
    now=$(events) || now=$before
    # A relay that has started again counts from 0.
    if [ "$now" -ne "$before" ]; then
      say "events arrive: $now accepted"
      return 0
    fi
    waited=$((waited + PAUSE))
    sleep "$PAUSE"
  done
  fail "the webhook is set, and the master refreshed, but no event came within $TIMEOUT s; see docs/operating/troubleshooting.md"
}

ibm_cloud() {
  needs curl jq ibmcloud
  cluster=$1
  case ${KUBECTL##*/} in oc) kind=oc ;; *) kind=ks ;; esac
  cluster_ca
  cluster_id=$(ibmcloud "$kind" cluster get --cluster "$cluster" --output json | jq -er .id) || fail "cannot read the ID of $cluster"
  pull_secret
  wait_for_pods
  admin_tokens
  KUBECTL=$KUBECTL NAMESPACE=$NAMESPACE "$HERE/certificate.sh"
  wait_for_https
  client_certificate
  url=https://127.0.0.1:2040$PROXY
  say "the webhook before this run:"
  ibmcloud "$kind" cluster master audit-webhook get --cluster "$cluster" >&2 || say "none"
  ibmcloud "$kind" cluster master audit-webhook set --cluster "$cluster" --policy "$POLICY" \
    --remote-server "$url" --ca-cert "$directory/ca.pem" \
    --client-cert "$directory/client-certificate.pem" --client-key "$directory/client-key.pem" >&2
  ibmcloud "$kind" cluster master refresh --cluster "$cluster" >&2
  say "the webhook is set; the master is being refreshed, which takes some minutes"
  tell_changes
  wait_for_refresh
  wait_for_event
}

own() {
  for address; do
    case $address in
    *[!0-9a-fA-F.:]*) fail "$address is not an IP address" ;;
    *:*) printf '        - ipBlock:\n            cidr: %s/128\n' "$address" ;;
    *.*.*.*) printf '        - ipBlock:\n            cidr: %s/32\n' "$address" ;;
    *) fail "$address is not an IP address" ;;
    esac
  done >"$directory/blocks"
  wait_for_pods
  admin_tokens
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
  say "name the printed file in the option --audit-webhook-config-file of kube-apiserver, and a policy in --audit-policy-file"
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
