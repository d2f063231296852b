#!/usr/bin/env bash
# Makes the package for Debian and Ubuntu of a static program: with a service of systemd, man pages
# and completions. The same program gives the same bytes. deploy/release.sh calls it.
#
#   deploy/deb.sh
#       builds the program of this clone, which takes some minutes, a C compiler, binutils and
#       Python 3, and prints the name of the package. The variable PROGRAM may name a program that
#       is built already
#   deploy/deb.sh PROGRAM PACKAGE VERSION ARCHITECTURE EPOCH FILE
#
# PROGRAM prints the man pages and completions. A program of another architecture does not run here:
# the variable PRINTS names one of the same version that does. PACKAGE is the name of the package:
# kube-audit-forwarder, or kube-audit-forwarder-kafka, of which a machine has one at most. EPOCH is
# the time of the files, in seconds since 1970.
set -euo pipefail
if [ "$#" -eq 0 ]; then
  [ -z "${PROGRAM:-}" ] || PROGRAM=$(realpath "$PROGRAM")
  cd "$(dirname "$(realpath "$0")")/.."
  target=${CARGO_TARGET_DIR:-target}
  [ -n "${PROGRAM:-}" ] || deploy/static-binary.sh "" "$target" >&2
  version=$(sed -n 's/^version = "\(.*\)"$/\1/p' Cargo.toml | head -n 1) arch=$(dpkg --print-architecture)
  file=$target/kube-audit-forwarder_${version}_$arch.deb
  deploy/deb.sh "${PROGRAM:-$target/static/kube-audit-forwarder}" kube-audit-forwarder "$version" "$arch" "$(date +%s)" "$file"
  echo "$file"
  exit
fi
[ "$#" -eq 6 ] || { echo "usage: deploy/deb.sh [PROGRAM PACKAGE VERSION ARCHITECTURE EPOCH FILE]" >&2; exit 2; }
program=$(realpath "$1") prints=$(realpath "${PRINTS:-$1}") package=$2 version=$3 arch=$4 epoch=$5 file=$(realpath "$6")
cd "$(dirname "$(realpath "$0")")/.."
umask 022
export LC_ALL=C TZ=UTC SOURCE_DATE_EPOCH=$epoch
unset GZIP

NAME=kube-audit-forwarder
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$work/root
chmod 755 "$work"
add() { install -D -m "$1" "$2" "$root/$3"; }

add 755 "$program" "usr/bin/$NAME"
add 644 "deploy/debian/$NAME.service" "lib/systemd/system/$NAME.service"
add 644 deploy/debian/relay.toml "etc/$NAME/relay.toml"
"$prints" man "$work/man"
# The subcommand help has pages too, which say nothing.
rm -f "$work"/man/*-help.1 "$work"/man/*-help-*.1
for page in "$work"/man/*; do
  gzip -9n "$page"
  add 644 "$page.gz" "usr/share/man/man1/${page##*/}.gz"
done
for shell in bash zsh fish; do "$prints" completions "$shell" >"$work/$shell"; done
add 644 "$work/bash" "usr/share/bash-completion/completions/$NAME"
add 644 "$work/zsh" "usr/share/zsh/vendor-completions/_$NAME"
add 644 "$work/fish" "usr/share/fish/vendor_completions.d/$NAME.fish"
gzip -9nc CHANGELOG.md >"$work/CHANGELOG.md.gz"
add 644 "$work/CHANGELOG.md.gz" "usr/share/doc/$package/CHANGELOG.md.gz"
add 644 deploy/debian/copyright "usr/share/doc/$package/copyright"
for config in config/*.toml; do add 644 "$config" "usr/share/doc/$package/examples/${config##*/}"; done

mkdir "$root/DEBIAN"
cat >"$root/DEBIAN/control" <<END
Package: $package
Version: $version
Architecture: $arch
Maintainer: kube-audit-forwarder <kube-audit-forwarder@users.noreply.github.com>
Installed-Size: $(du -sk --apparent-size --exclude=DEBIAN "$root" | cut -f 1)
Provides: kube-audit-forwarder
Conflicts: kube-audit-forwarder
Replaces: kube-audit-forwarder
Depends: init-system-helpers (>= 1.54~)
Recommends: ca-certificates
Section: net
Priority: optional
Homepage: https://github.com/kube-audit-forwarder/kube-audit-forwarder
Description: forwards the audit events of Kubernetes
 Takes the audit events that a kube-apiserver sends to its webhook, holds them
 in a bounded queue in memory or on disk, and forwards them to Logstash, syslog,
 Kafka, HTTP consumers and others. An event that was acknowledged is delivered,
 or counted as lost.
END
echo "/etc/$NAME/relay.toml" >"$root/DEBIAN/conffiles"
for script in postinst prerm postrm; do install -m 755 "deploy/debian/$script" "$root/DEBIAN/$script"; done
(cd "$root" && find . -path ./DEBIAN -prune -o -type f -printf '%P\0' | sort -z | xargs -0 md5sum) >"$root/DEBIAN/md5sums"
find "$root" -exec touch --no-dereference --date "@$epoch" {} +
dpkg-deb --root-owner-group -Zgzip --build "$root" "$file" >/dev/null
