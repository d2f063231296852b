#!/usr/bin/env bash
# Builds the static program for another architecture, in a Debian that it makes for it.
#
#   deploy/cross.sh ARCH FEATURES DIRECTORY
#       does what deploy/static-binary.sh FEATURES DIRECTORY does, for ARCH: amd64, arm64, s390x or
#       ppc64le. FEATURES "kafka" exists for amd64 and arm64. DIRECTORY is a relative path, and is
#       below this repository
#   deploy/cross.sh --in ARCH COMMAND...
#       runs a command there, with this directory as /source: cargo builds for ARCH, and runs what
#       it built under qemu
#   deploy/cross.sh --packages
#       prints the packages of that Debian, as NAME:ARCHITECTURE=VERSION
#
# It needs root, debootstrap, and cargo, on amd64. The Debian is a directory of 5 GB,
# target/cross/root: the compilers come from Debian's development distribution, because no
# stable one has a Rust that is new enough and the standard libraries for all four.
# Nothing of it is installed on this machine.
# The same packages give the same bytes. The variable DEBIAN names another mirror: with a directory
# of snapshot.debian.org, such as http://snapshot.debian.org/archive/debian/20261130T000000Z, the
# packages are those of that day.
set -euo pipefail
usage() { sed -n '/^#   deploy/,/^# It needs/p' "$0" | sed -e '$d' -e 's/^# \{0,3\}//' >&2; exit 2; }
cd "$(dirname "$(realpath "$0")")/.."

packages=(binutils ca-certificates cargo g++ gcc libc6-dev make pkgconf python3 rustc
  g++-aarch64-linux-gnu gcc-{s390x,powerpc64le}-linux-gnu libstd-rust-dev:{arm64,s390x,ppc64el}
  libssl-dev libssl-dev:arm64
  # What deploy/test/cross.sh runs programs and kernels with.
  cpio qemu-user qemu-system-{arm,s390x})

# A kernel and a shell of another architecture, for deploy/test/cross.sh.
kernel() {
  local to=$root.new/kernels/$1 name
  mkdir -p "$to"
  name=$(chroot "$root.new" apt-cache search --names-only "^linux-binary-[0-9][^-]*-$1\$" | sort -V | tail -n 1)
  # shellcheck disable=SC2016 # for the shell in the Debian
  chroot "$root.new" sh -ec 'cd "$1"; shift; exec apt-get -o APT::Sandbox::User=root download -q "$@"' sh \
    "/kernels/$1" "${name%% *}:$1" "busybox-static:$1"
  dpkg-deb --fsys-tarfile "$to"/linux-*.deb | tar -xO --wildcards '*/vmlinuz' >"$to/vmlinuz"
  dpkg-deb --fsys-tarfile "$to"/busybox-*.deb | tar -xO ./usr/bin/busybox >"$to/busybox"
  rm "$to"/*.deb
}

root=$PWD/target/cross/root
# Complete or not there at all. Made again when this file asks for other packages.
wanted="${DEBIAN:-http://deb.debian.org/debian} ${packages[*]}"
if [ "$(cat "$root/packages" 2>/dev/null)" != "$wanted" ]; then
  rm -rf "$root" "$root.new"
  mkdir -p "$root.new"
  {
    debootstrap --variant=minbase sid "$root.new" "${DEBIAN:-http://deb.debian.org/debian}"
    # A mirror may be some weeks behind.
    echo 'Acquire::Check-Valid-Until "false";' >"$root.new/etc/apt/apt.conf.d/10old"
    for arch in arm64 s390x ppc64el; do chroot "$root.new" dpkg --add-architecture "$arch"; done
    chroot "$root.new" apt-get update -q
    DEBIAN_FRONTEND=noninteractive \
      chroot "$root.new" apt-get install -q -y --no-install-recommends "${packages[@]}"
    for arch in arm64 s390x; do kernel "$arch"; done
    chroot "$root.new" apt-get clean
  } >&2
  mkdir -p "$root.new"/{source,cargo}
  echo "$wanted" >"$root.new/packages"
  mv "$root.new" "$root"
fi

enter() {
  local machine=$1 triple qemu gcc
  shift
  case $machine in
  amd64) triple=x86_64-unknown-linux-gnu gcc=x86_64-linux-gnu qemu="" ;;
  arm64) triple=aarch64-unknown-linux-gnu gcc=aarch64-linux-gnu qemu=qemu-aarch64 ;;
  s390x) triple=s390x-unknown-linux-gnu gcc=s390x-linux-gnu qemu=qemu-s390x ;;
  ppc64le) triple=powerpc64le-unknown-linux-gnu gcc=powerpc64le-linux-gnu qemu=qemu-ppc64le ;;
  *) usage ;;
  esac
  local name=${triple^^}
  name=CARGO_TARGET_${name//-/_}
  # The crates come from this machine's cargo: in the Debian, nothing is fetched.
  cargo fetch --quiet --locked
  # The mounts are those of this process alone, and end with it.
  # shellcheck disable=SC2016 # for the shell with the mounts
  exec unshare --mount sh -eu -c '
    root=$1 cargo=$2
    shift 2
    mount --bind . "$root/source"
    mount --bind "$cargo" "$root/cargo"
    mount -t proc proc "$root/proc"
    mount --bind /dev "$root/dev"
    mount -t tmpfs tmp "$root/tmp"
    exec chroot "$root" env -i --chdir=/source "$@"
  ' sh "$root" "${CARGO_HOME:-$HOME/.cargo}" \
    PATH=/usr/sbin:/usr/bin HOME=/root CARGO_HOME=/cargo CARGO_NET_OFFLINE=true \
    CARGO_BUILD_TARGET="$triple" CARGO_TARGET_DIR="/source/target/cross/$machine" "${name}_LINKER=$gcc-gcc" ${qemu:+"${name}_RUNNER=$qemu"} \
    "${name}_RUSTFLAGS=-C target-feature=+crt-static" \
    OBJCOPY="$gcc-objcopy" OPENSSL_LIB_DIR="/usr/lib/$gcc" \
    ${KUBE_AUDIT_FORWARDER_REVISION:+KUBE_AUDIT_FORWARDER_REVISION="$KUBE_AUDIT_FORWARDER_REVISION"} "$@"
}

case "${1:-} $#" in
"--packages 1")
  chroot "$root" dpkg-query -W -f "\${Package}:\${Architecture}=\${Version}\n"
  ;;
"--in "[3-9]* | "--in "[1-9][0-9]*)
  shift
  enter "$@"
  ;;
[a-z]*" 3")
  enter "$1" deploy/static-binary.sh "$2" "$3"
  ;;
*) usage ;;
esac
