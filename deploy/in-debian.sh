#!/usr/bin/env bash
# Runs a command in a fresh Debian with Rust, the image with which deploy/Containerfile builds: so
# the workflows below .github run what everybody runs. It is privileged, because the tests mount
# file systems, and buildah makes images. The variables named in PASS, with spaces between them, are
# handed on. It takes docker or podman.
#
#   deploy/in-debian.sh ./test
set -euo pipefail
cd "$(dirname "$(realpath "$0")")/.."
image=$(sed -n 's/^FROM \(.*\) AS build$/\1/p' deploy/Containerfile)
engine=$(command -v docker || command -v podman) || { echo "in-debian.sh: neither docker nor podman" >&2; exit 1; }
options=(--rm --privileged --volume "$PWD:/source" --workdir /source)
# The directory belongs to whoever made the clone, and git asks for that.
options+=(--env GIT_CONFIG_COUNT=1 --env GIT_CONFIG_KEY_0=safe.directory --env GIT_CONFIG_VALUE_0=/source)
for name in ${PASS:-}; do options+=(--env "$name"); done
exec "$engine" run "${options[@]}" "$image" "$@"
