#!/bin/sh
# Builds the program for an image without libraries, as DIRECTORY/static/kube-audit-forwarder.
# DIRECTORY is cargo's target directory.
#
#   deploy/static-binary.sh FEATURES DIRECTORY
#
# FEATURES is "" or "kafka". The toolchain's C library is linked into the program. For kafka,
# OpenSSL is linked into it too, so its static libraries must be installed (Debian: libssl-dev).
set -eu
[ "$#" -eq 2 ] || { echo "usage: deploy/static-binary.sh FEATURES DIRECTORY" >&2; exit 2; }
features=$1
directory=$2

host=$(rustc -vV | sed -n 's/^host: //p')
# The target is named although it is this machine's own. Otherwise build scripts and macros would be
# linked statically like the program.
export RUSTFLAGS="-C target-feature=+crt-static"
case $features in
*kafka*)
  OPENSSL_STATIC=1
  OPENSSL_LIB_DIR=$(dirname "$(cc -print-file-name=libssl.a)")
  OPENSSL_INCLUDE_DIR=/usr/include
  export OPENSSL_STATIC OPENSSL_LIB_DIR OPENSSL_INCLUDE_DIR
  ;;
esac
cargo build --release --locked --features "$features" --target "$host" --target-dir "$directory"
mkdir -p "$directory/static"
cp "$directory/$host/release/kube-audit-forwarder" "$directory/static/"
