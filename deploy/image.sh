#!/bin/sh
# Makes the image from this clone, with podman, docker or buildah, and brings it to where a cluster
# finds it. Prints the name of the image, for `deploy/connect.sh --image` and for the chart.
#
#   deploy/image.sh icr.io/my-namespace/kube-audit-forwarder
#       pushes it to a registry, to which the engine is logged in. The tag is the version, unless
#       the name has one.
#   deploy/image.sh kind[:CLUSTER]
#       loads it into the nodes of a kind cluster, under the name that manifests and chart have
#   deploy/image.sh k3s
#       imports it on this machine, a node of k3s, as root, under the same name
#
# The environment may change these values:
#
#   ENGINE    the first of podman, docker and buildah that is installed
#   FEATURES  none; kafka for outputs and sources of the type "kafka"
#   PROGRAM   a static program that is built already (deploy/static-binary.sh, deploy/cross.sh). The
#             default is to build it in a container, which takes 15 minutes and the network
#   ARCH      the architecture of PROGRAM, if it is not that of this machine: amd64, arm64, s390x or
#             ppc64le
set -eu
say() { printf '%s\n' "image.sh: $*" >&2; }
fail() { say "$*"; exit 1; }
[ "$#" -eq 1 ] || { sed -n '/^#   deploy/p' "$0" | cut -c 5- >&2; exit 2; }
target=$1
[ -z "${PROGRAM:-}" ] || PROGRAM=$(realpath "$PROGRAM")
cd "$(dirname "$0")/.."

engine=${ENGINE:-}
for each in podman docker buildah; do
  [ -n "$engine" ] || ! command -v "$each" >/dev/null || engine=$each
done
[ -n "$engine" ] || fail "none of podman, docker and buildah is installed"
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' Cargo.toml | head -n 1)

case $target in
kind | kind:?* | k3s)
  program=${target%%:*}
  command -v "$program" >/dev/null || fail "$program is not installed"
  image=ghcr.io/kube-audit-forwarder/kube-audit-forwarder:$version
  ;;
*/*)
  # A colon before the last slash is that of a port.
  case ${target##*/} in
  *@*) fail "a digest is known only after the push: give a tag, or nothing" ;;
  *:*) image=$target ;;
  *) image=$target:$version ;;
  esac
  ;;
*) fail "$target is neither REGISTRY/NAME nor kind nor k3s" ;;
esac

# Podman and buildah know two forms of images, of which only Docker's has a healthcheck.
set -- build --file deploy/Containerfile --tag "$image"
case ${engine##*/} in docker) ;; *) set -- "$@" --format docker ;; esac
[ -z "${ARCH:-}" ] || set -- "$@" --platform "linux/$ARCH"
[ -z "${ARCH:-}" ] || [ -n "${PROGRAM:-}" ] || fail "ARCH is that of PROGRAM, which is not set"
if [ -n "${PROGRAM:-}" ]; then
  arch=${ARCH:-$(uname -m | sed -e s/x86_64/amd64/ -e s/aarch64/arm64/)}
  # The number of the machine in the head of an ELF file.
  case $(od -An -tx1 -j 18 -N 2 "$PROGRAM") in
  " 3e 00") machine=amd64 ;;
  " b7 00") machine=arm64 ;;
  " 00 16") machine=s390x ;;
  " 15 00") machine=ppc64le ;;
  *) machine="no known machine" ;;
  esac
  [ "$machine" = "$arch" ] || fail "$PROGRAM is for $machine, and ARCH is $arch"
  deploy/image-root.sh "$PROGRAM" target/image
  set -- "$@" --build-arg BINARY=prebuilt
else
  set -- "$@" --build-arg "FEATURES=${FEATURES:-}"
fi
"$engine" "$@" . >&2 || fail "$engine can't build the image"

# The image as a file, for a cluster that has no registry.
archive() {
  directory=$(mktemp -d)
  trap 'rm -rf "$directory"' EXIT
  case ${engine##*/} in
  buildah) "$engine" push "$image" "docker-archive:$directory/image.tar:$image" >&2 ;;
  *) "$engine" save --output "$directory/image.tar" "$image" >&2 ;;
  esac
}

case $target in
kind | kind:*)
  archive
  cluster=${target#kind}
  cluster=${cluster#:}
  kind load image-archive "$directory/image.tar" --name "${cluster:-kind}" >&2
  ;;
k3s)
  archive
  k3s ctr images import "$directory/image.tar" >&2
  ;;
*)
  # Docker itself needs no TLS for a registry on this machine.
  case ${engine##*/}:$image in
  docker:*) "$engine" push "$image" >&2 ;;
  *:127.0.0.1:* | *:localhost:*) "$engine" push --tls-verify=false "$image" >&2 ;;
  *) "$engine" push "$image" >&2 ;;
  esac || fail "$engine can't push $image; log in to the registry first: $engine login ${image%%/*} (for icr.io: ibmcloud cr login)"
  ;;
esac
say "the image is where the cluster finds it:"
printf '%s\n' "$image"
