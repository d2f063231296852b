#!/usr/bin/env bash
# Runs the program of another architecture, which deploy/cross.sh has built, under qemu: the unit
# tests, the demo, the integration tests that an emulator can run, and the sandbox on a real kernel.
#
#   deploy/test/cross.sh ARCH
#
# It needs root, and the tests and the program of this machine, which `./test cross` builds.
set -euo pipefail
cd "$(dirname "$(realpath "$0")")/../.."
. deploy/architectures.sh
arch=$1
place=$PWD/target/cross/$arch
root=$PWD/target/cross/root
say() { printf -- '-- %s\n' "$*"; }

emulator=$root/usr/bin/qemu-$(qemu_of "$arch")
[ "$arch" != amd64 ] || emulator=""
foreign="$emulator $place/static/kube-audit-forwarder"

say "$arch: --version and the demo, with an outage of 10 s"
$foreign --version
$foreign demo

# This machine's own is tested by all other parts.
: >"$place/unchecked"
[ "$arch" != amd64 ] || exit 0

# Those of `base` have the known answers of the cryptographic library.
say "$arch: the unit tests"
crates=(-p base)
case $arch in
arm64 | s390x)
  for crate in audit config config-table evidence-log outputs queue recorder telemetry tools transform verify; do
    crates+=(-p "$crate")
  done
  ;;
esac
deploy/cross.sh --in "$arch" cargo test --quiet --locked --lib "${crates[@]}"

if [ "$arch" = ppc64le ]; then
  echo "all but the demo and the unit tests of base" >"$place/unchecked"
  exit
fi
if [ "$arch" = arm64 ]; then
  say "arm64: the program with Kafka, and a broker"
  kafka="$emulator ${place}-kafka/static/kube-audit-forwarder"
  $kafka --version | grep -x "features: kafka"
  relays "$kafka" "$kafka" 'test(/^outputs::peers::kafka_(broker::a_real_broker_has|tls::events_go)/)'
  say "arm64: the instructions of the scanner, at most 1.6 times those of AVX2"
  benches/hot_path/count.sh "$emulator" "$place/static/hot-path" "decode batches with NEON" 6.4
fi

# The tests and the consumers are programs of this machine, and the relay is one of ARCH. A mark for
# each test and command says whose turn it is. With "$native" each second start of a relay, and each
# second `replay`, `verify` and so on, is this machine's own program, so what one writes the other
# reads, and back.
relays() {
  local first=$1 second=$2 filter=$3
  rm -rf "$place/turns"
  mkdir -p "$place/turns"
  cat >"$place/program" <<END
#!/bin/sh
turn="$place/turns/\$NEXTEST_TEST_NAME.\$1"
if mkdir "\$turn" 2>/dev/null; then exec $first "\$@"; fi
rmdir "\$turn"
exec $second "\$@"
END
  chmod +x "$place/program"
  KUBE_AUDIT_FORWARDER_PROGRAM=$place/program cargo nextest run --workspace --features kafka --locked \
    --profile all --test it -E "$filter"
}
native=$(realpath "${CARGO_TARGET_DIR:-target}")/debug/kube-audit-forwarder

say "$arch: the corpus through a relay, and TLS with both key exchanges"
relays "$foreign" "$foreign" 'test(/^outputs::(tcp|http_output)::.*corpus/) + test(/^outputs::peers::rsyslog/)
  + test(/^ingest::(tls|post_quantum)::/)'

# What a queue, evidence, set-aside events, objects of S3 and resume files leave in a directory. In
# one test a relay starts while 2.5 s of replay last, which an emulated start takes longer than.
too_slow=operate::replay_directory::a_relay_that_starts_meanwhile_is_told_and_nothing_is_left_out
directories="test(/^queue::(durability|kills|optional)::/) + test(/^operate::(upgrade|replay|replay_directory|commands_queue)::/)
  + test(/^outputs::s3::an_object/) + test(/^outputs::set_aside::what_is_set_aside_on_disk/) + test(/^evidence::recorded::/)
  - test(=$too_slow)"
say "$arch, then amd64: directories that go back and forth, with kills"
relays "$foreign" "$native" "$directories"
say "amd64, then $arch"
relays "$native" "$foreign" "$directories"

# An emulated process has neither Landlock nor seccomp, so a kernel is started.
say "$arch: process.restrict on a kernel of Debian"
disk=$root/tmp/disk
rm -rf "$disk"
mkdir -p "$disk"/{bin,proc,sys,dev,tmp,etc}
install -m 755 "$root/kernels/$arch/busybox" "$disk/bin/busybox"
install -m 755 "$place/static/kube-audit-forwarder" "$disk/bin/"
for word in true sh sleep cat; do ln -s busybox "$disk/bin/$word"; done
cat >"$disk/etc/relay.toml" <<'END'
[process]
restrict = "best_effort"
[admin]
address = "127.0.0.1:9090"
[[listener]]
address = "127.0.0.1:8080"
[[output]]
name = "out"
type = "stdout"
END
cat >"$disk/init" <<'END'
#!/bin/busybox sh
export PATH=/bin
busybox mount -t proc proc /proc
busybox mount -t sysfs sys /sys
busybox mount -t devtmpfs dev /dev
busybox ifconfig lo up
/bin/process --test-threads 1; echo "unit tests: $?"
busybox sed 's/best_effort/required/' /etc/relay.toml >/etc/required.toml
kube-audit-forwarder check /etc/relay.toml; echo "best_effort: $?"
kube-audit-forwarder check /etc/required.toml; echo "required: $?"
kube-audit-forwarder run --config /etc/relay.toml &
until kube-audit-forwarder healthcheck --config /etc/relay.toml; do sleep 1; done
busybox wget -q -O - http://127.0.0.1:9090/status | busybox grep -E '"(landlock_abi|seccomp|missing)"'
kill $!; wait $!; echo "relay: $?"
busybox poweroff -f
END
chmod +x "$disk/init"
# The unit tests of the sandbox try each file and each call that it forbids.
tests=$(deploy/cross.sh --in "$arch" cargo test --locked --lib -p process --no-run --message-format json |
  sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -n 1)
install -m 755 "${tests/#\/source/.}" "$disk/bin/process"
case $arch in
arm64)
  machine=(qemu-system-aarch64 -M virt -append "console=ttyAMA0 quiet panic=-1")
  expected=("unit tests: 0" "best_effort: 0" "required: 0" '"seccomp": true' '"missing": null' "relay: 0")
  ;;
s390x)
  machine=(qemu-system-s390x -M s390-ccw-virtio -append "quiet panic=-1")
  expected=("unit tests: 0" "best_effort: 0" "required: 2" '"seccomp": false'
    '"missing": "seccomp (there is no filter for s390x)"' "relay: 0")
  ;;
esac
chroot "$root" sh -c 'cd /tmp/disk && find . | cpio -o -H newc --quiet >../disk.cpio'
timeout 600 chroot "$root" "${machine[@]}" -cpu max -m 2G -nographic -no-reboot -nic none \
  -kernel "/kernels/$arch/vmlinuz" -initrd /tmp/disk.cpio | tee "$place/console"
for line in "${expected[@]}"; do
  grep -qF "$line" "$place/console" || { say "the kernel's console lacks: $line"; exit 1; }
done
echo "the unit tests of client, delivery, doctor, manual and relay, and $too_slow, for which an emulator starts too slowly" \
  >"$place/unchecked"
