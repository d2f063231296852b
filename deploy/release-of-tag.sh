#!/usr/bin/env bash
# Makes, signs and verifies the release of a tag, in a fresh Debian with Rust: what the workflow
# release.yml runs.
#
#   RELEASE_KEY="$(cat release.key)" deploy/release-of-tag.sh v0.2.0 [OPTION OF release.sh...]
#
# The commit has the public key, deploy/release.pub, since users take it from a clone. The files are
# in target/release-of-tag, that key in target/release.pub, and the lines of CHANGELOG.md about this
# version in target/notes.md.
set -euo pipefail
fail() { echo "release-of-tag.sh: $*" >&2; exit 1; }

tag=${1:?usage: deploy/release-of-tag.sh TAG [OPTION...]}
shift
version=${tag#v}
[ "$tag" = "v$version" ] || fail "the tag $tag is not v and a version"
[ -n "${RELEASE_KEY:-}" ] || fail "RELEASE_KEY is empty: a release that nobody can verify is not published"
cd "$(dirname "$(realpath "$0")")/.."

mkdir -p target
# The key is a file only as long as it is used, and only for this user. Another user publishes what
# is in target.
key=$(umask 077 && mktemp)
trap 'rm -f "$key"' EXIT
printf '%s\n' "$RELEASE_KEY" >"$key"
unset RELEASE_KEY
remedy="openssl pkey -in release.key -pubout -out deploy/release.pub, and commit it"
git show HEAD:deploy/release.pub >target/release.pub 2>/dev/null ||
  fail "the commit has no deploy/release.pub, with which users verify the release: $remedy"
ours=$(openssl pkey -in "$key" -pubout) || fail "RELEASE_KEY is not a private key"
[ "$(openssl pkey -pubin -in target/release.pub -pubout || true)" = "$ours" ] ||
  fail "deploy/release.pub is not the public half of RELEASE_KEY: $remedy"

[ "$(git show HEAD:deploy/published)" = "$version" ] ||
  fail "the pages of the commit do not say that $version exists: run deploy/published.sh $version, and commit it"
notes=$(awk -v head="## $version" 'index($0, "## ") == 1 { on = index($0, head) == 1 && length($0) >= length(head) } on' CHANGELOG.md)
[ -n "$notes" ] || fail "CHANGELOG.md has nothing about $version"
printf '%s\n' "$notes" >target/notes.md

# What Debian's image with Rust has not.
if ! { command -v buildah && command -v debootstrap; } >/dev/null; then
  apt-get update -q
  DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends buildah ca-certificates debootstrap
fi

deploy/release.sh "$version" --key "$key" --output target/release-of-tag "$@"
deploy/verify_release.py target/release.pub target/release-of-tag
