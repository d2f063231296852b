#!/usr/bin/env bash
# What deploy/test/deb.sh runs in its container: the package is installed, started, reloaded,
# upgraded, removed and purged, and no event is lost on the way. old.deb and new.deb are versions of
# it.
set -euo pipefail
NAME=kube-audit-forwarder
CONFIG=/etc/$NAME/relay.toml
STATE=/var/lib/private/$NAME

say() { printf -- '-- %s\n' "$*"; }
fail() {
  echo "FAILED: $*" >&2
  journalctl --no-pager -u "$NAME" | grep -v auditID | tail -n 20 >&2 || true
  exit 1
}
state() { systemctl is-active "$NAME" || true; }
post() { curl --silent --show-error --fail --noproxy '*' --json @batch.json http://127.0.0.1:3000/; }
# A value of the relay's metrics.
metric() {
  curl --silent --noproxy '*' http://127.0.0.1:9090/metrics | awk -v name="kube_audit_forwarder_$1" '$1 == name { print $2 }'
}
# The lines of the journal that are events.
events() { journalctl --no-pager --output cat -u "$NAME" | grep -c '"auditID":' || true; }
wait_for_events() {
  for _ in $(seq 200); do
    [ "$(events)" -lt "$1" ] || break
    sleep 0.1
  done
  [ "$(events)" = "$1" ] || fail "$(events) events in the journal, not $1"
}

ip link set lo up
say "install"
dpkg --install old.deb
[ "$(state)" = active ] || fail "the service is $(state) after the installation"
systemctl is-enabled --quiet "$NAME" || fail "the service does not start at the next boot"
# It is ready when `systemctl start` returns.
[ "$(post)" = '{"accepted":400}' ] || fail "a batch is refused"
wait_for_events 400

say "what the service may do"
pid=$(systemctl show --property MainPID --value "$NAME")
user=$(stat --format %u "/proc/$pid")
if [ "$user" -lt 61184 ] || [ "$user" -gt 65519 ]; then fail "the relay runs as $user, which is not invented by systemd"; fi
grep -qx 'CapEff:	0000000000000000' "/proc/$pid/status" || fail "the relay has capabilities"
grep -qx 'NoNewPrivs:	1' "/proc/$pid/status" || fail "the relay may gain privileges"
[ "$(stat --format %a "$STATE")" = 700 ] || fail "others may look into $STATE"
exposure=$(systemd-analyze security --no-pager "$NAME.service" | sed -n 's/.*exposure level.*: \([0-9.]*\) .*/\1/p')
say "systemd-analyze security: $exposure of 10"
[ "${exposure%.*}" -le 1 ] || fail "systemd calls the service exposed: $exposure"

say "man pages and completions"
man --locale=C "$NAME" 2>/dev/null | grep -q "$NAME" || zcat "/usr/share/man/man1/$NAME.1.gz" | grep -q "$NAME"
bash -c ". /usr/share/bash-completion/completions/$NAME && complete -p $NAME" >/dev/null

say "a reload takes a new config, and a wrong one changes nothing"
sed -i 's/^max_bytes = .*/max_bytes = "512MiB"/' "$CONFIG"
systemctl reload "$NAME"
for _ in $(seq 100); do
  [ "$(metric queue_capacity_bytes)" != 536870912 ] || break
  sleep 0.1
done
[ "$(metric queue_capacity_bytes)" = 536870912 ] || fail "the reload has no effect: $(metric queue_capacity_bytes)"
cp "$CONFIG" good.toml
echo nonsense >>"$CONFIG"
systemctl reload "$NAME"
for _ in $(seq 100); do
  [ "$(metric 'config_reload_total{result="error"}')" != 1 ] || break
  sleep 0.1
done
[ "$(metric 'config_reload_total{result="error"}')" = 1 ] || fail "nothing is said of a wrong config"
[ "$(metric queue_capacity_bytes)" = 536870912 ] || fail "a wrong config changes something"
cp good.toml "$CONFIG"

say "an upgrade keeps the edited config, the events and the administrator's choice"
# What waits on disk survives the restart: the consumer is a port where nobody listens.
printf '\n[[output]]\nname = "away"\ntype = "tcp"\naddresses = ["127.0.0.1:9"]\n' >>"$CONFIG"
systemctl restart "$NAME"
[ "$(post)" = '{"accepted":400}' ] || fail "a batch is refused"
wait_for_events 800
dpkg --install --force-confold new.deb
[ "$(state)" = active ] || fail "the service is $(state) after the upgrade"
grep -q '^max_bytes = "512MiB"$' "$CONFIG" || fail "the upgrade has changed the config"
waiting=$(metric 'output_backlog_events{output="away"}')
[ "$waiting" = 400 ] || fail "$waiting events wait after the upgrade, not 400"

say "a wrong config is said by systemctl, and by the next start"
cp "$CONFIG" good.toml
echo nonsense >>"$CONFIG"
if systemctl restart "$NAME" 2>said-by-systemctl; then fail "a wrong config starts"; fi
[[ $(journalctl --no-pager --output cat -u "$NAME") == *"not TOML"* ]] || fail "the journal does not say why"
cp good.toml "$CONFIG"
systemctl reset-failed "$NAME"
systemctl start "$NAME"

say "the page about a webhook that reaches the Internet"
bash -euo pipefail certificates.sh 2>certificates.log || fail "$(cat certificates.log)"
openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=relay.example.com \
  -addext subjectAltName=DNS:relay.example.com -keyout /etc/ssl/private/relay.example.com.key \
  -out /etc/ssl/certs/relay.example.com.crt 2>/dev/null
cp senders-ca.crt /root/
mkdir -p "/etc/systemd/system/$NAME.service.d"
cp credentials.conf "/etc/systemd/system/$NAME.service.d/"
cp page.toml "$CONFIG"
systemctl daemon-reload
systemctl restart "$NAME"
send() {
  curl --silent --show-error --noproxy '*' --resolve relay.example.com:3443:127.0.0.1 \
    --cacert /etc/ssl/certs/relay.example.com.crt --json @batch.json https://relay.example.com:3443/ "$@"
}
[ "$(send --cert sender.crt --key sender.key)" = '{"accepted":400}' ] || fail "a sender with a certificate is refused"
if send 2>/dev/null; then fail "a sender without a certificate is let in"; fi
"$NAME" check "$CONFIG" >/dev/null 2>&1 || fail "check refuses the config of the page"
cp good.toml "$CONFIG"
rm -r "/etc/systemd/system/$NAME.service.d"
systemctl daemon-reload
systemctl restart "$NAME"

say "it starts, twenty times"
for _ in $(seq 20); do
  systemctl restart "$NAME" || fail "a start fails"
  systemctl reset-failed "$NAME"
done

say "remove, and purge"
systemctl disable "$NAME" 2>/dev/null
dpkg --install --force-confold old.deb
if systemctl is-enabled --quiet "$NAME"; then fail "the installation has undone systemctl disable"; fi
systemctl start "$NAME"
dpkg --remove "$NAME"
[ "$(state)" = inactive ] || fail "the service is $(state) after it was removed"
[ -e "$CONFIG" ] || fail "the config is gone before it was purged"
dpkg --purge "$NAME" 2>said-by-dpkg
[ ! -e "$CONFIG" ] || fail "the config outlives a purge"
# 400 events still wait in there.
grep -q "is kept: it may hold events" said-by-dpkg || fail "nothing is said of the events: $(cat said-by-dpkg)"
[ -n "$(ls -A "$STATE")" ] || fail "the purge has deleted events"
say "all of it works"
