#!/bin/sh
# Connects kube-apiserver to the relays: waits until they run, makes the certificate of their HTTPS
# listener (deploy/certificate.sh) and the tokens of their admin port (the Secret
# kube-audit-forwarder-admin), sends an empty batch the way that kube-apiserver takes, and only then
# turns the audit webhook to them.
#
#   deploy/connect.sh ibm-cloud CLUSTER [OPTION…]
#       sets the webhook of an IBM Cloud cluster, for which you need the role Administrator,
#       refreshes its master, and waits until events arrive, as `seen` does. Copies the credentials
#       for icr.io from the namespace default first. Prints the webhook of before, for the way back.
#       The webhook gets the client certificate of a service ID, which this script makes: the
#       certificate of a person stops working on the day on which that person leaves.
#
#   deploy/connect.sh own ADDRESS… [OPTION…] >audit-webhook.yaml
#       for a kube-apiserver of your own, whose nodes have these addresses: lets them through to the
#       relays by a NetworkPolicy (deploy/control-plane.yaml), and prints the file for the option
#       --audit-webhook-config-file.
#
#   deploy/connect.sh seen
#       asks kube-apiserver to delete a ConfigMap that does not exist and whose name nobody can
#       guess, and succeeds when the status of a relay names that very request, on whatever way
#       its event has come.
#
#   deploy/connect.sh url CLUSTER URL --ca FILE [--cert FILE --key FILE]
#       sets the webhook of an IBM Cloud cluster to a relay elsewhere, whose certificate that CA has
#       signed, and refreshes the master. The other files are the client certificate and its key.
#
# The manifests or the chart have been applied, or these options do it:
#
#   --config FILE        the config of the relays: deploy/base/relay.toml with another [[output]]
#   --file [NAME=]FILE   a file that the config names below /consumer; once for each file
#                        (together they are the Secret kube-audit-forwarder-consumer)
#   --image NAME:TAG     the image, in place of that of the manifests
#
# The script needs openssl, curl, jq and kubectl, and for IBM Cloud ibmcloud, logged in. Run again,
# it does the same again. The environment may change these values:
#
#   KUBECTL     kubectl          or oc: then `ibmcloud oc` takes the place of `ibmcloud ks`
#   NAMESPACE   ibm-kube-audit
#   OVERLAY     overlays/ibm-iks, overlays/ibm-openshift (oc) or base (own): the manifests below
#               deploy/ that --config applies
#   POLICY      default          the audit policy of the IBM Cloud cluster, or verbose
#   IDENTITY    service-id       whose client certificate the webhook gets; own: that of whoever is
#                                logged in
#   SERVICE_ID  kube-audit-forwarder-CLUSTER, the name of the service ID
#   TIMEOUT     300              seconds to wait for the pods, for the HTTPS listener, for the
#                                rights of the service ID, and until events arrive
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
# The Secret with the tokens of the admin port.
ADMIN=$SERVICE-admin
HERE=$(dirname "$0")
# shellcheck source=deploy/secrets.sh
. "$HERE/secrets.sh"
# The path of the webhook below kube-apiserver's own address.
PROXY=/api/v1/namespaces/$NAMESPACE/services/https:$HTTPS:https/proxy/post
case ${KUBECTL##*/} in oc) kind=oc ;; *) kind=ks ;; esac

say() { printf '%s\n' "$*" >&2; }
fail() { say "connect.sh: $*"; exit 1; }
usage() {
  say "usage: (the head of deploy/connect.sh says more)"
  sed -n 's/^#   \(deploy\/connect.sh\|--\)/  \1/p' "$0" >&2
  exit 2
}

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

# Begins to wait for this many seconds, and says whether they have passed.
begin() { deadline=$(($(date +%s) + $1)); }
is_over() { [ "$(date +%s)" -ge "$deadline" ]; }

# Says what is wrong with --config and its options, before anything in the cluster changes. The
# argument is the overlay if OVERLAY names none.
check_config() {
  overlay=${OVERLAY:-$1}
  if [ -z "$config" ]; then
    [ -z "$image$files" ] || fail "--image and --file need --config"
    return 0
  fi
  [ "$NAMESPACE" = ibm-kube-audit ] || fail "--config needs the namespace ibm-kube-audit, which the manifests name"
  [ -f "$HERE/$overlay/kustomization.yaml" ] || fail "there are no manifests in deploy/$overlay"
  [ -n "$image" ] || [ "$(cat "$HERE/published" 2>/dev/null || echo none)" != none ] ||
    fail "no image is published: make one with deploy/image.sh, and name it by --image"
  case $image in *[!A-Za-z0-9._/:@-]*) fail "$image is not the name of an image" ;; esac
  [ -r "$config" ] || fail "$config can't be read"
  grep -q /certificates/tls.crt "$config" ||
    fail "$config has no listener with /certificates/tls.crt: begin with deploy/base/relay.toml, and replace only its [[output]]"
  while IFS= read -r each; do
    [ -s "${each#*=}" ] || fail "${each#*=} can't be read, or is empty"
    case $each in *=*) echo "${each%%=*}" ;; *) echo "${each##*/}" ;; esac
  done <"$directory/files" >"$directory/names"
  "$KUBECTL" get secret "$CONSUMER" -n "$NAMESPACE" --ignore-not-found -o json >"$directory/consumer.json"
  jq -r '.data // {} | keys[]' "$directory/consumer.json" >>"$directory/names"
  grep -v '^ *#' "$config" | grep -o '[:"]/\(certificates\|consumer\|secrets\)/[A-Za-z0-9._-]*' >"$directory/paths" || true
  while IFS= read -r each; do
    each=${each#?}
    case $each in
    /certificates/tls.crt | /certificates/tls.key) ;;
    /consumer/*)
      grep -qx "${each##*/}" "$directory/names" ||
        fail "$config names $each, but neither a --file nor the Secret $CONSUMER has ${each##*/}"
      ;;
    *) fail "$config names $each, which no pod has: the files of an output are below /consumer" ;;
    esac
  done <"$directory/paths"
  program=$(command -v kube-audit-forwarder) || program=$HERE/../target/release/kube-audit-forwarder
  if [ ! -x "$program" ]; then
    say "$config is not checked, because there is no kube-audit-forwarder on this machine"
  else
    "$program" check --elsewhere --config "$config" >&2 || fail "$config has mistakes"
  fi
  "$KUBECTL" get deployment,statefulset -n "$NAMESPACE" -o json >"$directory/before.json"
  before=$(jq -r --arg name "$SERVICE" '.items[] | select(.metadata.name == $name) |
    "\(.kind) \(.metadata.labels["app.kubernetes.io/managed-by"]) \(.spec.template.metadata.labels["app.kubernetes.io/name"])"' \
    "$directory/before.json")
  case $before/$overlay in
  *null/*) fail "another program than the relays runs as the Deployment $SERVICE; for HAProxy, see docs/replace-haproxy.md" ;;
  *" Helm "*) fail "Helm has installed the relays: change them with helm upgrade, and leave out --config" ;;
  StatefulSet*durable) ;;
  StatefulSet* | Deployment*durable) fail "the relays are a ${before%% *}, which deploy/$overlay is not: name its manifests in OVERLAY" ;;
  esac
}

# Applies the manifests with the config and the image, from a copy. The pods can't start without the
# Secrets, which come first.
install() {
  [ -n "$config" ] || return 0
  "$KUBECTL" apply -f "$HERE/base/namespace.yaml" >&2
  set --
  while IFS= read -r each; do set -- "$@" "--from-file=$each"; done <"$directory/files"
  consumer_secret "$@"
  pull_secret
  mkdir "$directory/deploy"
  cp -R "$HERE/base" "$HERE/overlays" "$directory/deploy"
  cp "$config" "$directory/deploy/base/relay.toml"
  "$KUBECTL" kustomize "$directory/deploy/$overlay" >"$directory/manifests"
  sed "s|^\( *image: \).*|${image:+\\1}${image:-&}|" "$directory/manifests" | "$KUBECTL" apply -f - >&2
}

# Why pods do not start, a line for each reason: `now` if it does not end by itself, else `later`.
# Only the pods of the newest version count, because a rollout keeps older ones that fail, too.
troubles() {
  "$KUBECTL" get deployments,statefulsets,pods,events -n "$NAMESPACE" --request-timeout 10s -o json \
    >"$directory/look.json" 2>/dev/null || return 0
  jq -r --arg name "$SERVICE" '
    def version: .metadata.labels | ."pod-template-hash" // ."controller-revision-hash";
    def words: .message // "" | split("\n") | map(select(. != "")) | .[-3:] | join(" ");
    def ended: "\(.reason) with exit status \(.exitCode): \(words)";
    .items as $all
    | def of($kind): $all[] | select(.kind == $kind);
    def event($reason; $of): [of("Event") | select(.reason == $reason and .involvedObject.name == $of)]
      | max_by(.lastTimestamp) // empty;
    [of("Pod") | select(.metadata.labels["app.kubernetes.io/name"] == $name and .metadata.deletionTimestamp == null
      and .status.phase != "Failed")] as $pods
    | ($pods | max_by(.metadata.creationTimestamp) | version) as $newest
    | (of("Deployment") | select(.metadata.name == $name) | .status.conditions[]?
        | select(.type == "ReplicaFailure" and .status == "True") | "now no pod can be made: \(words)"),
      (of("StatefulSet") | select(.metadata.name == $name and .spec.replicas > ($pods | length))
        | event("FailedCreate"; $name) | "now no pod can be made: \(words)"),
      ($pods[] | select(version == $newest) | .metadata.name as $pod
        | (.status.conditions[]? | select(.type == "PodScheduled" and .status == "False")
            | "later \($pod): \(.reason): \(words)"),
          (.status.containerStatuses[]? | .lastState.terminated as $last | .image as $image
            | (.state.terminated // empty | select(.exitCode != 0) | "now \($pod): \(ended)"),
              (.state.waiting // empty | if .reason | IN("ContainerCreating", "PodInitializing") then event("FailedMount"; $pod)
                  | (if words | contains("not found") then "now" else "later" end) + " \($pod): \(words)"
                elif .reason == "CrashLoopBackOff" then "now \($pod): \($last | ended)"
                elif .reason | test("Image|Registry") then "now \($pod): \(.reason): \($image): \(words)"
                else "now \($pod): \(.reason): \(words)" end)))
    ' "$directory/look.json" || true
}

wait_for_pods() {
  workload=$("$KUBECTL" get deployment,statefulset -n "$NAMESPACE" -o name) || fail "no access to $NAMESPACE"
  workload=$(printf '%s\n' "$workload" | grep -x ".*/$SERVICE") ||
    fail "no $SERVICE in the namespace $NAMESPACE; apply the manifests or the chart first, or use --config"
  "$KUBECTL" get service "$HTTPS" -n "$NAMESPACE" -o name >/dev/null ||
    fail "no Service $HTTPS in the namespace $NAMESPACE, which these manifests, of version 0.1.0, do not have; see docs/operating/upgrade.md"
  # Pods that could not start wait for up to five minutes before they try again; new ones do not.
  case $(troubles) in
  *"now "*) for each in $workload; do "$KUBECTL" rollout restart -n "$NAMESPACE" "$each" >&2; done ;;
  esac
  begin "$TIMEOUT"
  before="" told=""
  for each in $workload; do
    until "$KUBECTL" rollout status -n "$NAMESPACE" "$each" --timeout 3s >"$directory/said" 2>&1; do
      found=$(troubles)
      [ -z "$found" ] || [ "$found" = "$told" ] || say "$found"
      told=$found
      # A reason that is seen twice is not one of a moment.
      now=$(printf '%s\n' "$found" | sed -n 's/^now //p')
      [ -z "$now" ] || [ -z "$before" ] || fail "the relays do not start: $now"
      before=$now
      ! is_over || fail "the relays do not run after $TIMEOUT s: ${found:-$(grep -v 'timed out waiting' "$directory/said" | tail -n 1)}"
      sleep 1
    done
    say "$(tail -n 1 "$directory/said")"
  done
}

# A relay opens the HTTPS listener when kubelet has brought it the certificate, within a minute or
# two. An empty batch is accepted and forwarded nowhere.
wait_for_https() {
  printf %s "$EMPTY" >"$directory/empty.json"
  begin "$TIMEOUT"
  until answer=$("$KUBECTL" create --raw "$PROXY" -f "$directory/empty.json" 2>&1); do
    ! is_over || fail "no relay answers at $PROXY within $TIMEOUT s: $answer; see docs/operating/troubleshooting.md $(troubles)"
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
  openssl x509 -in "$directory/ca.pem" -noout -subject -enddate -fingerprint -sha256 >&2 || fail "the cluster's CA is not a certificate"
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
  # Before the call, which may be interrupted after the key is made.
  api_key=$name-$$
  ibmcloud iam service-api-key-create "$api_key" "$id" --description "deleted at the end of connect.sh" \
    --file "$directory/key.json" >/dev/null || fail "cannot create an API key for the service ID $name"
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
  openssl x509 -in "$directory/client-certificate.pem" -noout -subject -enddate -fingerprint -sha256 >&2 || fail "the client certificate is invalid"
  openssl pkey -in "$directory/client-key.pem" -noout || fail "the client key is invalid"
}

# Sets the webhook with these options, and begins the refresh of the master.
set_webhook() {
  say "the webhook before this run:"
  ibmcloud "$kind" cluster master audit-webhook get --cluster "$cluster" >&2 || say "none, or it can't be read"
  ibmcloud "$kind" cluster master audit-webhook set --cluster "$cluster" --policy "$POLICY" --remote-server "$@" >&2
  ibmcloud "$kind" cluster master refresh --cluster "$cluster" >&2 ||
    fail "the webhook is set, but the master can't be refreshed; run: ibmcloud $kind cluster master refresh --cluster $cluster"
  say "the webhook is set; the master is being refreshed, which takes some minutes"
}

# Waits until the master is as it was before the refresh, and prints each step that it takes.
wait_for_refresh() {
  waited=0 told="its state can't be read" began=""
  while [ "$waited" -lt "$REFRESH" ]; do
    if ibmcloud "$kind" cluster get --cluster "$cluster" --output json >"$directory/cluster.json"; then
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
    fi
    waited=$((waited + PAUSE))
    sleep "$PAUSE"
  done
  fail "the master is still not refreshed after $REFRESH s: $told. The webhook is set; run deploy/connect.sh seen later"
}

# Makes the tokens of the relays' admin port, unless they exist, and reads the one for the status.
# The pods take a new Secret within a minute or two.
admin_tokens() {
  found=$("$KUBECTL" get secret "$ADMIN" -n "$NAMESPACE" --ignore-not-found -o name)
  if [ -z "$found" ]; then
    for key in token metrics-token; do
      openssl rand -hex 32 | tr -d '\n' >"$directory/$key"
    done
    "$KUBECTL" create secret generic "$ADMIN" -n "$NAMESPACE" --from-file="token=$directory/token" \
      --from-file="metrics-token=$directory/metrics-token" >&2
    "$KUBECTL" label secret "$ADMIN" -n "$NAMESPACE" "app=$SERVICE" "app.kubernetes.io/name=$SERVICE" >&2
    say "the tokens of the admin port are in the Secret $ADMIN"
  fi
  token=$("$KUBECTL" get secret "$ADMIN" -n "$NAMESPACE" -o 'go-template={{index .data "token" | base64decode}}') ||
    fail "the Secret $ADMIN has no token; see docs/operating/admin-port.md"
}

# Asks the relay in this pod for its status.
status_of() {
  : >"$directory/status.json"
  : >"$directory/forward"
  "$KUBECTL" port-forward -n "$NAMESPACE" "$1" :9090 >"$directory/forward" 2>&1 &
  forward=$!
  tries=0 port=""
  while [ "$tries" -lt 10 ] && ! grep -q '^[Ee]rror' "$directory/forward"; do
    port=$(sed -n 's/^Forwarding from 127\.0\.0\.1:\([0-9]*\) .*/\1/p' "$directory/forward")
    [ -z "$port" ] || break
    tries=$((tries + 1))
    sleep 1
  done
  for scheme in ${port:+http https}; do
    code=0
    # The token stays out of the list of processes. kube-apiserver answers for the pod, whatever the
    # name in its certificate is.
    printf 'header = "Authorization: Bearer %s"\n' "$token" |
      curl --config - --silent --show-error --fail --insecure --noproxy '*' --max-time 10 \
        "$scheme://127.0.0.1:$port/status" >"$directory/status.json" 2>>"$directory/forward" || code=$?
    # A refusal is an answer, too.
    case $code in 0 | 22) break ;; esac
  done
  kill "$forward" 2>/dev/null || true
  wait "$forward" 2>/dev/null || true
  forward=""
  [ -s "$directory/status.json" ]
}

# Whether a relay has the event of the request with these digits. If not, `last` has what was seen.
is_seen() {
  last=""
  pods=$("$KUBECTL" get pods -n "$NAMESPACE" -l "app.kubernetes.io/name=$SERVICE" --request-timeout 10s -o name \
    2>"$directory/said") || last="the pods can't be listed: $(tail -n 1 "$directory/said")"
  [ -n "$pods$last" ] || last="there are no pods of the relays"
  for pod in $pods; do
    if ! status_of "$pod"; then
      last="$last; the status of $pod can't be read: $(tail -n 1 "$directory/forward")"
    elif jq -e --arg digits "$digits" '.probes // [] | index($digits)' "$directory/status.json" >/dev/null 2>&1; then
      return 0
    else
      last="$last; $pod: $(jq -r 'if .probes then "\(.accepted_events) events accepted since its start, none of them this one"
        else "it can not tell, because it is older than this script" end' "$directory/status.json" 2>/dev/null)"
    fi
  done
  return 1
}

# Proves that events arrive: a relay names a request that this script has made. Events that others
# cause prove nothing, because they may have come another way. The request is repeated, because a
# relay may end, or kube-apiserver may not answer. The argument says what was done before.
prove() {
  digits=$(openssl rand -hex 16)
  say "waiting until a relay has the event of this script's own request, which deletes the ConfigMap $SERVICE-probe-$digits; there is no such ConfigMap"
  begin "$TIMEOUT"
  while :; do
    asked=$("$KUBECTL" delete configmap "$SERVICE-probe-$digits" -n "$NAMESPACE" --ignore-not-found --request-timeout 10s 2>&1 | tail -n 1)
    if is_seen; then
      refused=$(jq -r '.reloads.refused // empty | if type == "string" then . else tojson end' "$directory/status.json")
      [ -z "$refused" ] || fail "events arrive, but $pod goes on with its old config and refuses the new one: $refused"
      say "events arrive: $pod has the event of this script's request"
      return 0
    fi
    ! is_over || break
    sleep "$PAUSE"
  done
  fail "not seen yet: within $TIMEOUT s no relay has shown the event of this script's request. $1
The last look: ${last#; }${asked:+; kube-apiserver: $asked}
See docs/operating/troubleshooting.md, \"No events arrive\", and then run: deploy/connect.sh seen"
}

ibm_cloud() {
  needs "$KUBECTL" ibmcloud
  cluster=$1
  check_config "overlays/ibm-$(echo "$kind" | sed -e s/ks/iks/ -e s/oc/openshift/)"
  cluster_ca
  cluster_id=$(ibmcloud "$kind" cluster get --cluster "$cluster" --output json | jq -er .id) || fail "cannot read the ID of $cluster"
  # `install` has done it if there is a config.
  [ -n "$config" ] || pull_secret
  install
  wait_for_pods
  admin_tokens
  KUBECTL=$KUBECTL NAMESPACE=$NAMESPACE "$HERE/certificate.sh"
  wait_for_https
  client_certificate
  set_webhook "https://127.0.0.1:2040$PROXY" --ca-cert "$directory/ca.pem" \
    --client-cert "$directory/client-certificate.pem" --client-key "$directory/client-key.pem"
  wait_for_refresh
  prove "The webhook is set, and the master is refreshed."
}

own() {
  needs "$KUBECTL"
  for address; do
    case $address in
    *[!0-9a-fA-F.:]*) fail "$address is not an IP address" ;;
    *:*) printf '        - ipBlock:\n            cidr: %s/128\n' "$address" ;;
    *.*.*.*) printf '        - ipBlock:\n            cidr: %s/32\n' "$address" ;;
    *) fail "$address is not an IP address" ;;
    esac
  done >"$directory/blocks"
  check_config base
  install
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
  say "name the printed file in the option --audit-webhook-config-file of kube-apiserver, and a policy in --audit-policy-file. Then run: deploy/connect.sh seen"
}

seen() {
  needs "$KUBECTL"
  admin_tokens
  prove ""
}

# A request from this machine finds a wrong CA, certificate or path. It may fail where those of the
# master do not, such as at a firewall, so a server that can't be reached is no mistake.
url() {
  needs ibmcloud
  cluster=$1
  case $2 in https://*) ;; *) fail "$2 does not begin with https://: the events would cross the Internet in plain text" ;; esac
  openssl x509 -in "$ca" -noout || fail "$ca is not a certificate"
  [ -z "$cert" ] || openssl x509 -in "$cert" -noout || fail "$cert is not a certificate"
  [ -z "$key" ] || openssl pkey -in "$key" -noout || fail "$key is not a private key"
  status=0
  answer=$(curl --silent --show-error --max-time 20 --cacert "$ca" ${cert:+--cert "$cert" --key "$key"} \
    --header 'Content-Type: application/json' --data "$EMPTY" "$2" 2>&1) || status=$?
  case $status/$answer in
  0/*'"accepted":0'*) say "a relay answers at $2" ;;
  5/* | 6/* | 7/* | 28/*) say "warning: $2 can't be reached from this machine: $answer" ;;
  *) fail "no relay answers at $2: $answer" ;;
  esac
  set_webhook "$2" --ca-cert "$ca" ${cert:+--client-cert "$cert" --client-key "$key"}
  wait_for_refresh
  say "the webhook of $cluster is set to $2, and the master is refreshed. Whether events arrive can't be seen from here: run kube-audit-forwarder top on that machine"
}

needs openssl curl jq
config="" image="" files="" ca="" cert="" key="" count=$#
: >"$directory/files"
# The options leave, and the other arguments stay.
while [ "$count" -gt 0 ]; do
  argument=$1
  shift
  count=$((count - 1))
  case $argument in
  --*)
    [ "$count" -gt 0 ] || usage
    case $argument in
    --config) config=$1 ;;
    --image) image=$1 ;;
    --file) files=yes && printf '%s\n' "$1" >>"$directory/files" ;;
    --ca) ca=$1 ;;
    --cert) cert=$1 ;;
    --key) key=$1 ;;
    *) usage ;;
    esac
    shift
    count=$((count - 1))
    ;;
  *) set -- "$@" "$argument" ;;
  esac
done
form=${1:-}
[ "$#" -eq 0 ] || shift
# The form, the number of its arguments, and the options that are given.
case $form/$#/${config:+c}${image:+i}${files:+f}/${ca:+a}${cert:+b}${key:+k} in
ibm-cloud/1/*/) ibm_cloud "$1" ;;
own/[1-9]*/*/) own "$@" ;;
seen/0//) seen ;;
url/2//a | url/2//abk) url "$@" ;;
*) usage ;;
esac
