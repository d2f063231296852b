#!/bin/sh
# Builds the program for an image without libraries: target directory DIRECTORY/static/kube-audit-forwarder.
#
#   deploy/static-binary.sh FEATURES DIRECTORY
#
# FEATURES is "" or "kafka". The C library is linked in, whichever the toolchain's is; for kafka also OpenSSL, of which the
# static libraries have to be installed (Debian: libssl-dev).
set -eu
[ "$#" -eq 2 ] || { echo "usage: deploy/static-binary.sh FEATURES DIRECTORY" >&2; exit 2; }
features=$1
directory=$2

host=$(rustc -vV | sed -n 's/^host: //p')
# Named, although it is this machine's: otherwise build scripts and macros would be linked like the program.
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
