#!/bin/sh
# Makes the certificate of the HTTPS listener: a key, and a request for the names and cluster IPs of
# both Services, SERVICE and SERVICE-https, which Kubernetes signs. The script stores them as the
# Secret audit-webhook (tls.crt, tls.key, ca.crt). Run again, it makes and stores a new certificate.
# The relays use it within a minute or two, without a restart and without losing a connection.
#
#   deploy/certificate.sh
#
# The script needs openssl, and a kubectl whose user may approve certificates (cluster-admin may).
# The environment may change these values:
#
#   KUBECTL     kubectl                         or oc
#   NAMESPACE   ibm-kube-audit
#   SERVICE     kube-audit-forwarder
#   SECRET      audit-webhook
#   SIGNER      kubernetes.io/kubelet-serving   or another signer, if this one signs for no Services
#   TIMEOUT     120                             seconds to wait for the certificate
set -eu
umask 077

KUBECTL=${KUBECTL:-kubectl}
NAMESPACE=${NAMESPACE:-ibm-kube-audit}
SERVICE=${SERVICE:-kube-audit-forwarder}
SECRET=${SECRET:-audit-webhook}
SIGNER=${SIGNER:-kubernetes.io/kubelet-serving}
TIMEOUT=${TIMEOUT:-120}
REQUEST=$SERVICE.$NAMESPACE

say() { printf '%s\n' "$*" >&2; }
fail() { say "certificate.sh: $*"; exit 1; }

[ "$#" -eq 0 ] || { say "usage: deploy/certificate.sh; the head of the file says what the environment changes"; exit 2; }
for program in openssl "$KUBECTL"; do
  command -v "$program" >/dev/null || fail "$program is not installed"
done

# The key is only here and in the Secret, and never on a command line.
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
trap 'exit 1' HUP INT TERM

addresses=$("$KUBECTL" get service "$SERVICE" -n "$NAMESPACE" -o 'jsonpath={.spec.clusterIPs[*]}') ||
  fail "no Service $SERVICE in the namespace $NAMESPACE; apply the manifests first"
case $addresses in
"" | None) fail "the Service $SERVICE has no cluster IP" ;;
esac
# Version 0.1.0 of the manifests has no second Service.
more=$("$KUBECTL" get service "$SERVICE-https" -n "$NAMESPACE" --ignore-not-found \
  -o 'jsonpath={.spec.clusterIPs[*]}')

# The signer requires a node's subject. Clients verify the names below it.
{
  cat <<END
[req]
prompt = no
distinguished_name = subject
req_extensions = extensions
[subject]
O = system:nodes
CN = system:node:$SERVICE.$NAMESPACE.svc
[extensions]
keyUsage = critical, digitalSignature, keyEncipherment
extendedKeyUsage = serverAuth
subjectAltName = @names
[names]
END
  number=0
  for name in "$SERVICE" "$SERVICE-https"; do
    for end in ".$NAMESPACE.svc" ".$NAMESPACE.svc.cluster.local" ".$NAMESPACE" ""; do
      number=$((number + 1))
      printf 'DNS.%d = %s\n' "$number" "$name$end"
    done
  done
  number=0
  for address in $addresses $more; do
    number=$((number + 1))
    printf 'IP.%d = %s\n' "$number" "$address"
  done
} >"$directory/request.conf"
openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$directory/tls.key" 2>/dev/null
openssl req -new -sha256 -config "$directory/request.conf" -key "$directory/tls.key" -out "$directory/request.csr"

encoded() { openssl base64 -A -in "$1"; }

# A request can't be changed afterwards, so the request of an earlier run is deleted first.
"$KUBECTL" delete csr "$REQUEST" --ignore-not-found >&2
"$KUBECTL" apply -f - >&2 <<END
apiVersion: certificates.k8s.io/v1
kind: CertificateSigningRequest
metadata:
  name: $REQUEST
spec:
  request: $(encoded "$directory/request.csr")
  signerName: $SIGNER
  usages:
    - digital signature
    - key encipherment
    - server auth
END
"$KUBECTL" certificate approve "$REQUEST" >&2

waited=0
while :; do
  "$KUBECTL" get csr "$REQUEST" -o 'jsonpath={.status.certificate}' >"$directory/signed"
  [ ! -s "$directory/signed" ] || break
  state=$("$KUBECTL" get csr "$REQUEST" \
    -o 'jsonpath={range .status.conditions[*]}{.type}: {.message}{"\n"}{end}')
  case $state in
  *Failed:* | *Denied:*) fail "$SIGNER did not sign the request $REQUEST: $state" ;;
  esac
  [ "$waited" -lt "$TIMEOUT" ] ||
    fail "$SIGNER has not signed the request $REQUEST within $TIMEOUT s; does this cluster have that signer?"
  waited=$((waited + 1))
  sleep 1
done
openssl base64 -d -A -in "$directory/signed" -out "$directory/tls.crt"
openssl x509 -in "$directory/tls.crt" -noout -pubkey >"$directory/signed.pub" ||
  fail "what $SIGNER answered is no certificate"
openssl pkey -in "$directory/tls.key" -pubout -out "$directory/ours.pub"
cmp -s "$directory/signed.pub" "$directory/ours.pub" || fail "the certificate is for another key"

# The CA that a sender must trust. It is known only if the cluster's own CA has signed.
ca=
if "$KUBECTL" get configmap kube-root-ca.crt -n "$NAMESPACE" -o 'jsonpath={.data.ca\.crt}' \
  >"$directory/ca.crt" && openssl verify -CAfile "$directory/ca.crt" "$directory/tls.crt" >/dev/null 2>&1; then
  ca="ca.crt: $(encoded "$directory/ca.crt")"
else
  say "the certificate is not signed by the CA in the ConfigMap kube-root-ca.crt: the Secret gets no ca.crt"
fi

# The type of a Secret can't be changed, so an existing Secret keeps its type. The pods accept any
# type.
type=$("$KUBECTL" get secret "$SECRET" -n "$NAMESPACE" --ignore-not-found -o 'jsonpath={.type}')
"$KUBECTL" apply -f - >&2 <<END
apiVersion: v1
kind: Secret
metadata:
  name: $SECRET
  namespace: $NAMESPACE
type: ${type:-kubernetes.io/tls}
data:
  tls.crt: $(encoded "$directory/tls.crt")
  tls.key: $(encoded "$directory/tls.key")
  $ca
END

expires=$(openssl x509 -in "$directory/tls.crt" -noout -enddate)
say "Secret $NAMESPACE/$SECRET: a new certificate, valid until ${expires#notAfter=}; run this again before then"
