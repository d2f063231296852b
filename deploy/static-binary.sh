#!/bin/sh
# Builds the program for an image without libraries, as DIRECTORY/static/kube-audit-forwarder.
# DIRECTORY is cargo's target directory. The names of the program's functions and their lines are in
# a file beside it, DIRECTORY/static/kube-audit-forwarder.debug, which perf and gdb need. The
# section .dep-v0 of the program lists its crates: deploy/dependencies.py, which needs Python 3.
#
#   deploy/static-binary.sh FEATURES DIRECTORY [hot-path]
#
# FEATURES is "" or "kafka". The toolchain's C library is linked into the program. For kafka,
# OpenSSL is linked into it too, so its static libraries must be installed (Debian: libssl-dev).
# With `hot-path`, the program of benches/hot_path is built beside it, from the same compiled
# dependencies, as DIRECTORY/static/hot-path.
#
# The same sources, toolchain and FEATURES give the same bytes in any directory: the paths of the
# sources, of cargo's registry and of DIRECTORY are replaced in the programs. The variable
# KUBE_AUDIT_FORWARDER_REVISION, if it is set, is compiled in, and `--version` prints it.
# deploy/cross.sh sets CARGO_BUILD_TARGET, OBJCOPY and OPENSSL_LIB_DIR.
set -eu
usage() { echo "usage: deploy/static-binary.sh FEATURES DIRECTORY [hot-path]" >&2; exit 2; }
case $# in
2) programs=kube-audit-forwarder ;;
3) [ "$3" = hot-path ] || usage; programs="kube-audit-forwarder hot-path" ;;
*) usage ;;
esac
features=$1
mkdir -p "$2"
# Compilers see paths without symbolic links.
directory=$(cd "$2" && pwd -P)
source=$(cd "$(dirname "$0")/.." && pwd -P)
registry=${CARGO_HOME:-$HOME/.cargo}
cd "$source"

# Settings of the caller that cargo or cc prefers to those below would change the program.
unset CARGO_ENCODED_RUSTFLAGS
for name in $(env | sed -n 's/^\([A-Z_]*C\(XX\)\{0,1\}FLAGS[A-Za-z0-9_]*\)=.*/\1/p'); do unset "$name"; done
for name in $(env | sed -n 's/^\(CARGO_PROFILE_[A-Z0-9_]*\)=.*/\1/p'); do unset "$name"; done
# A profile of a running relay has the names of its functions and their lines. Both are moved out of
# the program below, into a file beside it.
export CARGO_PROFILE_RELEASE_DEBUG=line-tables-only
machine=${CARGO_BUILD_TARGET:-$(rustc -vV | sed -n 's/^host: //p')}
# The target is named although it is this machine's own. Otherwise build scripts and macros would be
# linked statically like the program.
# Relocations are packed: half a megabyte of them becomes some kilobytes.
RUSTFLAGS="-C target-feature=+crt-static -C link-arg=-Wl,-z,pack-relative-relocs"
CFLAGS=""
# Both compilers take the last prefix that matches, and DIRECTORY may be below the sources.
for prefix in "$source=/source" "$registry=/cargo" "$directory=/target"; do
  case $prefix in
  *" "*) echo "static-binary.sh: a path has a blank, which compilers' flags can't have: $prefix" >&2; exit 1 ;;
  esac
  RUSTFLAGS="$RUSTFLAGS --remap-path-prefix=$prefix"
  CFLAGS="$CFLAGS -ffile-prefix-map=$prefix"
done
CXXFLAGS=$CFLAGS
# mimalloc compiles the date and the time in. It is always the same one, because an object that was
# compiled for an earlier commit may be used again.
SOURCE_DATE_EPOCH=0
export RUSTFLAGS CFLAGS CXXFLAGS SOURCE_DATE_EPOCH
case $features in
*kafka*)
  OPENSSL_STATIC=1
  OPENSSL_LIB_DIR=${OPENSSL_LIB_DIR:-$(dirname "$(cc -print-file-name=libssl.a)")}
  OPENSSL_INCLUDE_DIR=/usr/include
  export OPENSSL_STATIC OPENSSL_LIB_DIR OPENSSL_INCLUDE_DIR
  ;;
esac
set -- --release --locked --target "$machine" --target-dir "$directory"
for program in $programs; do set -- "$@" --package "$program"; done
for feature in $features; do set -- "$@" --features "kube-audit-forwarder/$feature"; done
cargo build "$@"
mkdir -p "$directory/static"
for program in $programs; do cp "$directory/$machine/release/$program" "$directory/static/"; done
cd "$directory/static"
objcopy=${OBJCOPY:-objcopy}
"$objcopy" --only-keep-debug kube-audit-forwarder kube-audit-forwarder.debug
"$source/deploy/dependencies.py" "$features" "$machine" >dependencies
"$objcopy" --strip-all --add-gnu-debuglink=kube-audit-forwarder.debug \
  --add-section .dep-v0=dependencies kube-audit-forwarder
rm dependencies
