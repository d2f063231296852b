#!/usr/bin/env bash
# Builds the static program for another architecture, in a Debian that it makes for it.
#
#   deploy/cross.sh ARCH [FEATURES [DIRECTORY]]
#       does what deploy/static-binary.sh FEATURES DIRECTORY does, for ARCH: amd64, arm64, s390x or
#       ppc64le. FEATURES is "" or, for amd64 and arm64, "kafka". DIRECTORY is a relative path below
#       this repository, and by default target/cross/ARCH or target/cross/ARCH-kafka
#   deploy/cross.sh --in ARCH COMMAND...
#       runs a command there, with this directory as /source: cargo builds for ARCH, and runs what
#       it built under qemu
#   deploy/cross.sh --packages
#       prints the day of that Debian, as sid=TIME, and its packages, as NAME:ARCHITECTURE=VERSION
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
. deploy/architectures.sh
fail() { echo "cross.sh: $*" >&2; exit 1; }
# A shell of `su` lacks it.
PATH=$PATH:/usr/sbin:/sbin

packages=(binutils ca-certificates cargo g++ gcc libc6-dev make pkgconf python3 rustc
  g++-aarch64-linux-gnu gcc-{s390x,powerpc64le}-linux-gnu libc6-dev-{arm64,s390x,ppc64el}-cross
  libstd-rust-dev:{arm64,s390x,ppc64el} {libssl,zlib1g}-dev{,:arm64}
  # What deploy/test/cross.sh runs programs and kernels with.
  cpio qemu-user qemu-system-{arm,s390x})

# A kernel and a shell of another architecture, for deploy/test/cross.sh.
kernel() {
  local to=$root.new/kernels/$1 name
  mkdir -p "$to"
  name=$(chroot "$root.new" apt-cache search --names-only "^linux-binary-[0-9][^-]*-$1\$" | sort -V | tail -n 1)
  [ -n "$name" ] || fail "this Debian has no kernel for $1"
  # shellcheck disable=SC2016 # for the shell in the Debian
  chroot "$root.new" sh -ec 'cd "$1"; shift; exec apt-get -o APT::Sandbox::User=root download -q "$@"' sh \
    "/kernels/$1" "${name%% *}:$1" "busybox-static:$1"
  dpkg-deb --fsys-tarfile "$to"/linux-*.deb | tar -xO --wildcards '*/vmlinuz' >"$to/vmlinuz"
  dpkg-deb --fsys-tarfile "$to"/busybox-*.deb | tar -xO ./usr/bin/busybox >"$to/busybox"
  rm "$to"/*.deb
}

root=$PWD/target/cross/root
# Makes the Debian, unless it is there with the packages that this file asks for.
make_root() {
  local arch wanted="${DEBIAN:-http://deb.debian.org/debian} ${packages[*]}"
  [ "$(uname -m)" = x86_64 ] || fail "this takes a machine of amd64"
  [ "$(id -u)" = 0 ] || fail "this takes root, for the Debian in target/cross/root"
  [ "$(cat "$root/packages" 2>/dev/null)" != "$wanted" ] || return 0
  command -v debootstrap >/dev/null || fail "debootstrap is missing: apt-get install debootstrap"
  # Complete or not there at all.
  rm -rf "$root" "$root.new"
  mkdir -p "$root.new"
  {
    debootstrap --variant=minbase sid "$root.new" "${DEBIAN:-http://deb.debian.org/debian}"
    # A mirror may be some weeks behind.
    echo 'Acquire::Check-Valid-Until "false";' >"$root.new/etc/apt/apt.conf.d/10old"
    for arch in arm64 s390x ppc64el; do chroot "$root.new" dpkg --add-architecture "$arch"; done
    chroot "$root.new" apt-get update -q
    DEBIAN_FRONTEND=noninteractive \
      chroot "$root.new" apt-get install -q -y --no-install-recommends "${packages[@]}" ||
      fail "this Debian lacks a package today: DEBIAN names a mirror of another day (see this file)"
    for arch in arm64 s390x; do kernel "$arch"; done
    chroot "$root.new" apt-get clean
  } >&2
  mkdir -p "$root.new"/{source,cargo}
  echo "$wanted" >"$root.new/packages"
  mv "$root.new" "$root"
}

enter() {
  local machine=$1 triple gcc emulator=""
  shift
  triple=$(target_of "$machine") || usage
  gcc=$(gnu_of "$machine")
  [ "$machine" = amd64 ] || emulator=qemu-$(qemu_of "$machine")
  make_root
  local name=${triple^^}
  name=CARGO_TARGET_${name//-/_}
  # The crates are those that this machine's cargo has fetched; its settings stay out.
  cargo fetch --quiet --locked
  # The mounts are those of this process alone, and end with it.
  # shellcheck disable=SC2016 # for the shell with the mounts
  exec unshare --mount sh -eu -c '
    root=$1 cargo=$2
    shift 2
    mount --rbind . "$root/source"
    mkdir -p "$root/cargo/registry"
    mount --bind "$cargo/registry" "$root/cargo/registry"
    mount -t proc proc "$root/proc"
    mount -t sysfs sys "$root/sys"
    mount --bind /dev "$root/dev"
    mount -t tmpfs tmp "$root/tmp"
    exec chroot "$root" env -i --chdir=/source "$@"
  ' sh "$root" "${CARGO_HOME:-$HOME/.cargo}" \
    PATH=/usr/sbin:/usr/bin HOME=/root CARGO_HOME=/cargo CARGO_NET_OFFLINE=true \
    CARGO_BUILD_TARGET="$triple" CARGO_TARGET_DIR="/source/target/cross/$machine" \
    "${name}_LINKER=$gcc-gcc" ${emulator:+"${name}_RUNNER=$emulator"} \
    "${name}_RUSTFLAGS=-C target-feature=+crt-static" \
    OBJCOPY="$gcc-objcopy" OPENSSL_LIB_DIR="/usr/lib/$gcc" \
    ${KUBE_AUDIT_FORWARDER_REVISION:+KUBE_AUDIT_FORWARDER_REVISION="$KUBE_AUDIT_FORWARDER_REVISION"} "$@"
}

# What the build with Kafka needs besides. That of librdkafka knows no target: it takes these tools,
# and the programs of the machine itself (HOST_) are built by others. This Debian's OpenSSL needs
# zlib.
tools=()
tools() {
  local name prefix
  prefix=$(gnu_of "$1")
  tools=(env OPENSSL_LIBS=ssl:crypto:z HOST_CC=gcc HOST_CXX=g++ HOST_AR=ar)
  tools+=("CC=$prefix-gcc" "CXX=$prefix-g++")
  for name in AR LD NM OBJDUMP RANLIB STRIP; do tools+=("$name=$prefix-${name,,}"); done
}

case "${1:-} $#" in
"--packages 1")
  make_root
  sed -n 's/^Date: /sid=/p' "$root"/var/lib/apt/lists/*_dists_sid_InRelease
  chroot "$root" dpkg-query -W -f "\${Package}:\${Architecture}=\${Version}\n"
  ;;
"--in "[3-9]* | "--in "[1-9][0-9]*)
  shift
  enter "$@"
  ;;
[a-z]*" "[123])
  features=${2:-}
  case ${3:-} in
  /* | *..*) fail "DIRECTORY is a relative path below this repository, not $3" ;;
  esac
  has_flavour "${features:-default}" "$1" || fail "there is no Kafka for $1"
  set -- "$1" deploy/static-binary.sh "$features" "${3:-target/cross/$1${features:+-$features}}"
  [ -z "$features" ] || tools "$1"
  enter "$1" "${tools[@]}" "${@:2}"
  ;;
*) usage ;;
esac
