#!/usr/bin/env bash
# Runs the program of another architecture, which deploy/cross.sh has built, under qemu.
#
#   deploy/test/cross.sh ARCH [PART...]
#
# The parts are the functions below, by default all that an emulator of ARCH can run: the demo, the
# unit tests, integration tests whose relay is that program, the sandbox on a real kernel, and a
# second build. It needs root, and the tests and the program of this machine, which `./test cross`
# builds. What was left out is in target/cross/ARCH/unchecked afterwards.
set -euo pipefail
cd "$(dirname "$(realpath "$0")")/../.."
. deploy/architectures.sh
arch=$1
shift
place=$PWD/target/cross/$arch
root=$PWD/target/cross/root
say() { printf -- '-- %s\n' "$*"; }

emulator=$root/usr/bin/qemu-$(qemu_of "$arch")
[ "$arch" != amd64 ] || emulator=""
foreign="$emulator $place/static/kube-audit-forwarder"
native=$(realpath "${CARGO_TARGET_DIR:-target}")/debug/kube-audit-forwarder
crates=(base) named=()
# An emulated /proc/self/stat has no memory.
without_memory=tests::a_reading_says_what_is_rendered
# A relay starts while 2.5 s of replay last, which an emulated start takes longer than.
too_slow=operate::replay_directory::a_relay_that_starts_meanwhile_is_told_and_nothing_is_left_out
case $arch in
amd64) parts=(demo) unchecked="" ;; # All other parts of ./test are for this machine's own.
ppc64le) parts=(demo unit again) unchecked="all but the demo and the unit tests of base" ;;
arm64 | s390x)
  parts=(demo unit corpus directories kernel)
  [ "$arch" != arm64 ] || parts+=(kafka instructions)
  crates+=(audit config config-table evidence-log outputs queue recorder telemetry tools transform verify)
  unchecked="the unit tests of client, delivery, doctor, manual and relay, nine tenths of the seeds"
  unchecked+=" of the others, $without_memory, and $too_slow"
  ;;
esac

for crate in "${crates[@]}"; do named+=(-p "$crate"); done

# The outage of its consumer takes 10 s.
demo() {
  $foreign --version
  $foreign demo
}

# Those of `base` have the known answers of the cryptographic library. An emulated program is ten
# times slower or more, so each randomised test has a tenth of its seeds.
unit() {
  deploy/cross.sh --in "$arch" env KUBE_AUDIT_FORWARDER_SEEDS=10% \
    cargo test --locked --lib --no-fail-fast "${named[@]}" -- --skip "$without_memory"
}

# A second build from nothing has the same bytes. One architecture is enough: all four are built by
# the same compilers from the same packages.
again() {
  rm -rf target/cross/again
  deploy/cross.sh "$arch" "" target/cross/again
  cmp "$place/static/kube-audit-forwarder" target/cross/again/static/kube-audit-forwarder
  rm -rf target/cross/again
}

# Those of the scanner are at most 1.6 times those of AVX2, 4.0.
instructions() {
  benches/hot_path/count.sh "$emulator" "$place/static/hot-path" "decode batches with NEON" 6.4
}

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
    --profile all --run-ignored all --no-fail-fast --test it -E "$filter"
}

# Real consumers get the bytes of the corpus; TLS has both exchanges of keys.
corpus() {
  relays "$foreign" "$foreign" 'test(/^outputs::(tcp|http_output)::.*corpus/) + test(/^outputs::peers::rsyslog/)
    + test(/^ingest::(tls|post_quantum)::/)'
}

# A broker has the events, without and with TLS.
kafka() {
  local program="$emulator ${place}-kafka/static/kube-audit-forwarder"
  $program --version | grep -x "features: kafka"
  relays "$program" "$program" 'test(/^outputs::peers::kafka_(broker::a_real_broker_has|tls::events_go)/)'
}

# What a queue, evidence, set-aside events, dead letters, objects of S3 and resume files leave in a
# directory goes back and forth, with kills.
directories() {
  local filter
  filter="(test(/^queue::(durability|kills|optional)::/) + test(/^outputs::dead_letters::/)
    + test(/^operate::(upgrade|replay|replay_directory|commands_queue)::/) + test(/^outputs::s3::an_object/)
    + test(/^outputs::set_aside::what_is_set_aside_on_disk/) + test(/^evidence::recorded::/)) - test(=$too_slow)"
  relays "$foreign" "$native" "$filter"
  relays "$native" "$foreign" "$filter"
}

# process.restrict on a kernel of Debian: an emulated process has neither Landlock nor seccomp.
kernel() {
  local disk tests machine expected line
  disk=$root/tmp/disk
  rm -rf "$disk"
  mkdir -p "$disk"/{bin,proc,sys,dev,tmp,etc}
  install -m 755 "$root/kernels/$arch/busybox" "$disk/bin/busybox"
  install -m 755 "$place/static/kube-audit-forwarder" "$disk/bin/"
  for word in true sh sleep cat; do ln -s busybox "$disk/bin/$word"; done
  echo "127.0.0.1 localhost" >"$disk/etc/hosts"
  touch "$disk"/etc/{resolv.conf,passwd,shadow}
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
  # The unit tests of the sandbox try each file and each call that it forbids. With the other
  # crates, cargo builds their dependencies as for `unit`.
  tests=$(deploy/cross.sh --in "$arch" cargo test --locked --lib "${named[@]}" -p process --no-run \
    --message-format json |
    jq -r 'select(.target.name == "process" and .executable).executable')
  install -m 755 "${tests/#\/source/.}" "$disk/bin/process"
  case $arch in
  arm64)
    machine=(qemu-system-aarch64 -M virt -append "console=ttyAMA0 quiet panic=-1")
    expected=("unit tests: 0" "best_effort: 0" "required: 0" '"seccomp": true' '"missing": null'
      "relay: 0")
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
}

[ "$#" = 0 ] || parts=("$@")
for part in "${parts[@]}"; do
  say "$arch: $part"
  began=$SECONDS
  "$part"
  say "$arch: $part took $((SECONDS - began)) s"
done
printf '%s' "$unchecked" >"$place/unchecked"
