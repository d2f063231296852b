#!/usr/bin/env bash
# Tests the package for Debian in a container with a systemd of its own: systemd-nspawn on a copy of
# this machine's files (overlayfs), without network. It takes root.
#
#   deploy/test/deb.sh PACKAGE
#
# The status is 3 if not even an empty container boots on this machine.
set -euo pipefail

fail() { echo "test/deb.sh: $*" >&2; exit 1; }
[ "$#" -eq 1 ] || fail "usage: deploy/test/deb.sh PACKAGE"
cd "$(dirname "$(realpath "$0")")/../.."
package=$(realpath "$1")
work=$(mktemp -d)
root=$work/root
# A file system in memory, because the container's files are on top of it, and overlayfs takes no
# directory of an overlayfs.
mkdir "$work/layer" "$root"
unable() {
  echo "test/deb.sh: NOT CHECKED: no systemd boots in a container on this machine" >&2
  exit 3
}
mount -t tmpfs -o size=1g tmpfs "$work/layer" || unable
mkdir "$work/layer/upper" "$work/layer/work"
mounted=""
end() {
  [ -z "$mounted" ] || umount "$root"
  umount "$work/layer" || true
  rm -rf "$work"
}
trap end EXIT
mount -t overlay -o "lowerdir=/,upperdir=$work/layer/upper,workdir=$work/layer/work" overlay "$root" ||
  unable
mounted=yes
# What of this machine's own files would get in the way: a config, and enabled services.
rm -rf "$root/etc/kube-audit-forwarder" "$root/var/lib/private/kube-audit-forwarder"
mkdir -p "$root/test"
cp "$package" "$root/test/old.deb"
cp tests/corpus/01-batch400-metadata.json "$root/test/batch.json"
cp deploy/test/deb-inside.sh "$root/test/inside.sh"
# What docs/operating/virtual-machine.md has to paste: the commands that make certificates, the
# drop-in, and the config.
block() {
  sed '/^ *<!-- If .*, hidden$/,/^ *End if -->$/d' docs/operating/virtual-machine.md |
    awk -v wanted="\`\`\`$1" -v number="$2" '$0 == "```" { on = 0 } on; $0 == wanted { on = ++count == number }' \
      >"$root/test/$3"
  [ -s "$root/test/$3" ] || fail "docs/operating/virtual-machine.md has no block $2 of $1"
}
block sh 2 certificates.sh
block ini 1 credentials.conf
block toml 1 page.toml
# A newer version of the same package, with another line in its config.
dpkg-deb --raw-extract "$package" "$work/newer"
sed -i 's/^Version: .*/Version: 99.0/' "$work/newer/DEBIAN/control"
echo "# A line of version 99." >>"$work/newer/etc/kube-audit-forwarder/relay.toml"
dpkg-deb --root-owner-group -Zgzip --build "$work/newer" "$root/test/new.deb" >/dev/null
cat >"$root/etc/systemd/system/deb-test.service" <<'END'
[Unit]
DefaultDependencies=no
After=basic.target
Requires=basic.target
[Service]
Type=oneshot
WorkingDirectory=/test
ExecStart=/bin/sh -c 'bash inside.sh >said 2>&1; echo "$?" >status'
ExecStopPost=/bin/systemctl --no-block --force poweroff
END
# The marks of a machine whose packages start no service (policy-rc.d) are not for this one.
rm -f "$root/usr/sbin/policy-rc.d"
boot() {
  timeout "$1" systemd-nspawn --directory="$root" --boot --register=no --keep-unit --private-network \
    systemd.unit=deb-test.service >"$work/booted" 2>&1 || true
  status=$(cat "$root/test/status" 2>/dev/null || true)
  rm -f "$root/test/status"
}
# Without the package, first: a machine that boots no container says nothing about the package.
mv "$root/test/inside.sh" "$root/test/whole.sh"
echo true >"$root/test/inside.sh"
boot 120
if [ "$status" != 0 ]; then
  tail -n 20 "$work/booted" >&2
  unable
fi
mv "$root/test/whole.sh" "$root/test/inside.sh"
boot 300
[ -n "$status" ] || fail "the container did not end the test: $(tail -n 40 "$work/booted" "$root/test/said" 2>/dev/null)"
cat "$root/test/said"
[ "$status" = 0 ] || fail "status $status"
