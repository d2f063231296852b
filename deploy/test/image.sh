#!/usr/bin/env bash
# Builds the image of deploy/Containerfile around a program that is built already, without network,
# or loads a released image. Runs it as Kubernetes does: as user 65532, without capabilities, with a
# read-only root, in a network of its own with a DNS server and a consumer that speaks TLS.
#
#   deploy/test/image.sh BINARY          as root, for mounts and namespaces
#   deploy/test/image.sh FILE.oci.tar    the same, with the image in an OCI archive
set -euo pipefail

# The limit tells when something large comes in by accident.
MAX_BYTES=$((20 * 1024 * 1024))

say() { printf '\n-- %s\n' "$*"; }
fail() { echo "image.sh: $*" >&2; exit 1; }

# Repeats a command until it succeeds, for as long as a busy machine may take.
wait_for() {
  local what=$1 tries
  shift
  for ((tries = 0; tries < 600; tries++)); do
    if "$@" >/dev/null 2>&1; then return 0; fi
    sleep 0.2
  done
  fail "waited in vain for $what"
}

build() {
  local given=$1 image=kube-audit-forwarder container mount bytes compressed inspected
  local expected=('"User": "65532:65532"' '"/usr/bin/kube-audit-forwarder"')
  store=$(mktemp -d)
  # shellcheck disable=SC2064
  trap "rm -rf '$store'" EXIT
  buildah=(buildah --storage-driver vfs --root "$store/root" --runroot "$store/run")
  case $given in
  *.oci.tar)
    # What `podman load --input FILE` and `skopeo copy oci-archive:FILE …` read.
    image=$("${buildah[@]}" pull --quiet "oci-archive:$given")
    ;;
  *)
    deploy/image-root.sh "$given" target/image
    "${buildah[@]}" bud --isolation chroot --format docker --quiet --build-arg BINARY=prebuilt \
      --file deploy/Containerfile --tag "$image" .
    # An image in the form of OCI has no healthcheck.
    expected+=('"healthcheck"')
    ;;
  esac
  inspected=$("${buildah[@]}" inspect --type image "$image")
  for word in "${expected[@]}"; do
    grep -qF "$word" <<<"$inspected" || fail "the image has no $word"
  done
  container=$("${buildah[@]}" from "$image")
  mount=$("${buildah[@]}" mount "$container")
  # A program that needs a loader or libraries does not start in the image.
  if grep -q INTERP <<<"$(readelf -lW "$mount/usr/bin/kube-audit-forwarder")"; then
    fail "the program in the image is not static"
  fi
  bytes=$(find "$mount" -type f -printf '%s\n' | awk '{ sum += $1 } END { print sum }')
  compressed=$(tar -C "$mount" -c . | gzip | wc -c)
  say "the image has $bytes bytes ($(awk "BEGIN { printf \"%.1f\", $bytes / 1048576 }") MiB), $compressed compressed"
  [ "$bytes" -le "$MAX_BYTES" ] || fail "that is more than $MAX_BYTES"
  # The container has a network and mounts of its own, and everything that it starts ends with it.
  unshare --mount --net --pid --fork --kill-child --mount-proc -- "$script" inside "$mount" "$store"
}

# Runs the image as a container: mounts the files that a runtime mounts, then makes the root
# read-only.
inside() {
  local root=$1 work=$2 config=$2/config spool=$2/spool
  ip link set lo up
  mkdir -p "$config" "$spool" "$work/consumer" "$work/ca" "$work/secret" "$root"/{proc,consumer,certificates}
  touch "$root/etc/resolv.conf" "$root/etc/hosts"
  cat >"$work/relay.sh" <<END
#!/bin/sh
exec env --ignore-environment PATH="$PATH" KUBE_AUDIT_FORWARDER_CONFIG=/etc/kube-audit-forwarder/relay.toml \\
  chroot --userspec=65532:65532 --groups= "$root" /usr/bin/kube-audit-forwarder "\$@"
END
  chmod +x "$work/relay.sh"
  relay=("$work/relay.sh")

  say "as it is, and in the pod of the Cloud Logs app: events to stdout, HTTPS with its Secret"
  certificates "$work/ca"
  mount --bind "$root" "$root"
  mount -o remount,bind,ro "$root"
  mount -t proc proc "$root/proc"
  # The Secret is optional. Without it the volume is empty.
  mount -o bind,ro "$work/secret" "$root/certificates"
  "${relay[@]}" >"$work/events" 2>"$work/log" &
  local pid=$!
  wait_for "healthcheck" "${relay[@]}" healthcheck
  post http://127.0.0.1:3000/post
  wait_for "400 lines" lines "$work/events" 400
  if post https://127.0.0.1:4443/post --insecure 2>/dev/null; then fail "HTTPS without a certificate"; fi
  # As kubelet brings it: the files of a version, which one link swaps in at once.
  mkdir "$work/secret/..1"
  for file in crt key; do
    cp "$work/ca/in-hosts.example.$file" "$work/secret/..1/tls.$file"
    ln -s "..data/tls.$file" "$work/secret/tls.$file"
  done
  chmod 644 "$work/secret/..1"/*
  ln -s ..1 "$work/secret/..data"
  wait_for "the HTTPS listener" curl --silent --insecure --noproxy '*' https://127.0.0.1:4443/
  # kube-apiserver's service proxy does not verify the certificate.
  post https://127.0.0.1:4443/post --insecure
  wait_for "800 lines" lines "$work/events" 800
  ends "$pid" "$work/log"

  say "DNS, TLS and a queue on disk"
  cp "$work/ca/ca.crt" "$work/consumer/"
  # The image's own bundle, with the test's CA at its end. The relay must find this bundle if the
  # config names no `ca`.
  cat "$root/etc/ssl/certs/ca-certificates.crt" "$work/ca/system-ca.crt" >"$work/bundle.crt"
  mount --bind "$work/bundle.crt" "$root/etc/ssl/certs/ca-certificates.crt"
  mount --bind "$work/consumer" "$root/consumer"
  echo "127.0.0.1 localhost in-hosts.example" >"$work/hosts"
  mount --bind "$work/hosts" "$root/etc/hosts"
  echo "nameserver 127.0.0.1" >"$work/resolv.conf"
  mount --bind "$work/resolv.conf" "$root/etc/resolv.conf"
  # The directory has the owner and the mode of the emptyDir of a pod with fsGroup.
  chown root:65532 "$spool"
  chmod 2775 "$spool"
  mount -o bind,ro "$config" "$root/etc/kube-audit-forwarder"
  mount --bind "$spool" "$root/var/lib/kube-audit-forwarder"
  cat >"$config/relay.toml" <<END
listener = [{ address = "127.0.0.1:3000" }]
queue = { directory = "/var/lib/kube-audit-forwarder" }
admin = { address = "127.0.0.1:9090" }
[[output]]
name = "by-dns"
type = "http"
urls = ["https://only-in-dns.example:8443/"]
tls = { ca = "/consumer/ca.crt" }
[[output]]
name = "by-hosts"
type = "http"
urls = ["https://in-hosts.example:8444/"]
END
  # The DNS server answers only for this name, and with no address of IPv6.
  dnsmasq --no-daemon --no-resolv --no-hosts --conf-file=/dev/null --user=root --pid-file= --port=53 \
    --listen-address=127.0.0.1 --bind-interfaces --address=/only-in-dns.example/127.0.0.1 2>"$work/dnsmasq.log" &
  consumer "$work"
  wait_for "the consumer" "${relay[@]}" check --config /etc/kube-audit-forwarder/relay.toml --connect
  "${relay[@]}" check --config /etc/kube-audit-forwarder/relay.toml --connect
  # The check must fail for a name that nobody knows, and for a CA that signed something else.
  sed -i 's/only-in-dns/in-no-dns/' "$config/relay.toml"
  if "${relay[@]}" check --config /etc/kube-audit-forwarder/relay.toml --connect; then fail "any name will do"; fi
  if "${relay[@]}" --version | grep -q "^features: none"; then
    # The other tests run a program with Kafka.
    printf '[[output]]\nname = "k"\ntype = "kafka"\nbrokers = ["a:9092"]\ntopic = "t"\n' >"$config/kafka.toml"
    if "${relay[@]}" check --config /etc/kube-audit-forwarder/kafka.toml >"$work/said" 2>&1; then fail "there is no Kafka"; fi
    grep -q "output\[0\].type: this binary was built without kafka" "$work/said" || fail "$(cat "$work/said")"
  fi
  sed -i 's/in-no-dns/only-in-dns/; s/8444/8443/' "$config/relay.toml"
  if "${relay[@]}" check --config /etc/kube-audit-forwarder/relay.toml --connect; then fail "any CA will do"; fi
  sed -i 's#in-hosts.example:8443#in-hosts.example:8444#' "$config/relay.toml"
  "${relay[@]}" 2>"$work/log" &
  pid=$!
  wait_for "healthcheck" "${relay[@]}" healthcheck
  grep -q '^CapEff:[[:space:]]*0*$' "/proc/$pid/status" || fail "it has capabilities"
  post http://127.0.0.1:3000/
  "${relay[@]}" drain --seconds 120
  local output metrics
  metrics=$(curl --silent --noproxy '*' http://127.0.0.1:9090/metrics)
  for output in by-dns by-hosts; do
    grep -qx "kube_audit_forwarder_output_events_total{output=\"$output\"} 400" <<<"$metrics" ||
      fail "$output has not got 400 events"
  done
  ends "$pid" "$work/log"
  if "${relay[@]}" healthcheck 2>/dev/null; then fail "healthcheck says that a relay runs which has ended"; fi
  say "the image works"
}

lines() { [ "$(wc -l <"$1")" = "$2" ]; }

# Posts a batch to a URL, with options of curl.
post() {
  local answer
  answer=$(curl --silent --show-error --noproxy '*' --max-time 60 --json @tests/corpus/01-batch400-metadata.json "$@") ||
    return 1
  [ "$answer" = '{"accepted":400}' ] || fail "the relay answered $answer"
}

# Sends SIGTERM to the relay and expects exit status 0.
ends() {
  local status=0
  kill -TERM "$1"
  wait "$1" || status=$?
  [ "$status" = 0 ] || { cat "$2" >&2; fail "the relay ended with status $status"; }
}

# Makes a CA of the test and one of the system, each with a certificate of a server.
certificates() (
  cd "$1"
  local name host
  for name in ca system-ca; do
    openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj "/CN=$name" -keyout "$name.key" -out "$name.crt"
  done 2>/dev/null
  while read -r name host; do
    openssl req -newkey rsa:2048 -nodes -subj "/CN=$host" -keyout "$host.key" -out "$host.csr" 2>/dev/null
    openssl x509 -req -days 2 -in "$host.csr" -CA "$name.crt" -CAkey "$name.key" -CAcreateserial \
      -extfile <(echo "subjectAltName=DNS:$host") -out "$host.crt" 2>/dev/null
  done <<END
ca only-in-dns.example
system-ca in-hosts.example
END
)

# Starts a consumer that accepts every post, with TLS. It reads a body whole before it answers, as
# `proxy_pass` does: with `return` alone, nginx answers before the last byte of a large body, and
# the relay does not take such an answer for an acknowledgement.
consumer() {
  cat >"$1/nginx.conf" <<END
user root;
pid $1/nginx.pid;
error_log $1/nginx.log;
daemon off;
events {}
http {
  access_log off;
  client_body_temp_path $1/bodies;
  proxy_temp_path $1/answers;
  proxy_pass_request_body off;
  proxy_set_header Content-Length "";
  client_max_body_size 64m;
  server {
    listen 127.0.0.1:8443 ssl;
    ssl_certificate $1/ca/only-in-dns.example.crt;
    ssl_certificate_key $1/ca/only-in-dns.example.key;
    location / { proxy_pass http://unix:$1/accepts.socket:/; }
  }
  server {
    listen 127.0.0.1:8444 ssl;
    ssl_certificate $1/ca/in-hosts.example.crt;
    ssl_certificate_key $1/ca/in-hosts.example.key;
    location / { proxy_pass http://unix:$1/accepts.socket:/; }
  }
  server {
    listen unix:$1/accepts.socket;
    location / { return 200; }
  }
}
END
  nginx -c "$1/nginx.conf" 2>>"$1/nginx.log" &
}

case $# in
1)
  script=$(realpath "$0")
  given=$(realpath "$1")
  cd "$(dirname "$script")/../.."
  build "$given"
  ;;
3) inside "$2" "$3" ;;
*) fail "usage: deploy/test/image.sh BINARY|FILE.oci.tar" ;;
esac
