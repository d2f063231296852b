#!/usr/bin/env bash
# Publishes a verified release: pushes its images and its chart to a registry, and reads back what
# is there. docs/operating/releases.md says what users get.
set -euo pipefail

usage() {
  cat <<'END'
usage: deploy/publish.sh DIRECTORY PUBLIC_KEY REGISTRY [--plain-http]

  DIRECTORY     the files of one release, as deploy/release.sh makes them
  PUBLIC_KEY    the key that they are signed with
  REGISTRY      where the images and the chart go, such as ghcr.io/my-organisation
  --plain-http  the registry has no TLS

The caller is logged in to the registry (skopeo login, helm registry login). Each image, with those
of all architectures, gets two tags: the version and the commit. A tag that is there already is not
moved to another image.
END
}

say() { printf -- '-- %s\n' "$*" >&2; }
fail() { echo "publish.sh: $*" >&2; exit 1; }

helm=${HELM:-helm}
plain=() chart_options=()
case $# in
3) ;;
4)
  [ "$4" = --plain-http ] || { usage >&2; exit 2; }
  plain=(--tls-verify=false)
  chart_options=(--plain-http)
  ;;
*) usage >&2; exit 2 ;;
esac
directory=$(realpath "$1") key=$(realpath "$2") registry=$3
cd "$(dirname "$(realpath "$0")")/.."
deploy/verify_release.py "$key" "$directory" >&2

# The digest that the registry has for a name with a tag, or nothing.
digest() { skopeo inspect "${plain[@]}" --format '{{.Digest}}' "docker://$1" 2>/dev/null || true; }

version=$(sed -n 's/^version: //p' "$directory/BUILDINFO")
push() {
  local file=$1 expected=$2 name=$3 tag there
  for tag in "$version" "${expected%@*}"; do
    there=$(digest "$registry/$name:$tag")
    case $there in
    "${expected#*@}") say "$registry/$name:$tag is there already"; continue ;;
    "") ;;
    *) fail "$registry/$name:$tag is another image ($there); a tag is never moved" ;;
    esac
    skopeo copy --all --quiet --preserve-digests "${plain[@]/#--tls/--dest-tls}" \
      "oci-archive:$directory/$file" "docker://$registry/$name:$tag"
    there=$(digest "$registry/$name:$tag")
    [ "$there" = "${expected#*@}" ] || fail "$registry/$name:$tag has the digest $there, not ${expected#*@}"
    say "$registry/$name:$tag@$there"
  done
}

while read -r file expected; do
  push "$file" "$expected" "${file%-"$version".oci.tar}"
done <"$directory/IMAGES"
"$helm" push "${chart_options[@]}" "$directory/kube-audit-forwarder-$version.tgz" "oci://$registry/charts" >&2
say "published: $registry"
