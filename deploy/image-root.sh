#!/bin/sh
# Puts together the files of the image: DIRECTORY/root, and DIRECTORY/spool, which belongs to the
# image's user.
#
#   deploy/image-root.sh BINARY DIRECTORY
#
# The Containerfile runs this script. Run it by hand, with DIRECTORY target/image, for an image of a
# program that is built already. The CA bundle has the certificates of Debian's ca-certificates, and
# none of those that this machine trusts besides.
set -eu
[ "$#" -eq 2 ] || { echo "usage: deploy/image-root.sh BINARY DIRECTORY" >&2; exit 2; }
source=$(cd "$(dirname "$0")/.." && pwd)
binary=$1
directory=$2

rm -rf "$directory"
umask 022
mkdir -p "$directory/root/usr/bin" "$directory/root/var/lib" "$directory/root/etc/ssl/certs" "$directory/root/etc/kube-audit-forwarder"
install -m 755 "$binary" "$directory/root/usr/bin/kube-audit-forwarder"
for certificate in /usr/share/ca-certificates/mozilla/*.crt; do
  cat "$certificate"
  echo
done >"$directory/root/etc/ssl/certs/ca-certificates.crt"
install -m 644 "$source/config/stdout.toml" "$directory/root/etc/kube-audit-forwarder/relay.toml"
echo "nonroot:x:65532:65532:nonroot:/:/sbin/nologin" >"$directory/root/etc/passwd"
echo "nonroot:x:65532:" >"$directory/root/etc/group"
# glibc's default is to ask DNS first, and to read /etc/hosts only if DNS has no answer.
echo "hosts: files dns" >"$directory/root/etc/nsswitch.conf"
mkdir -p "$directory/spool/kube-audit-forwarder"
chmod 770 "$directory/spool/kube-audit-forwarder"
