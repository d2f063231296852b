#!/usr/bin/env bash
# Makes the files of a release from the commit that is checked out: programs, packages, images, Helm
# chart, SBOMs, provenance, checksums and their signature. docs/operating/releases.md describes each
# file, and how to verify it. The same commit gives the same bytes on machines with the same
# packages, which BUILDINFO lists.
#
# The names of architectures are those of OCI. deploy/static-binary.sh builds the programs of this
# machine's own, and deploy/cross.sh those of the others, which takes root.
set -euo pipefail

usage() {
  cat <<'END'
usage: deploy/release.sh VERSION [OPTION...]

  VERSION           the version in Cargo.toml
  --output DIR      where the files go; the default is target/release-VERSION
  --key FILE        signs with this private key (PEM): Ed25519 or ECDSA P-256; without it the
                    release is not signed
  --flavour NAME    makes one flavour only: "default" or "kafka"
  --arch ARCH       beside this machine's own architecture, makes this one only: amd64, arm64, s390x
                    or ppc64le. It may be given again; the default is all four
  --programs DIR    for tests of this script: packages DIR/FLAVOUR/ARCH, each with the files
                    kube-audit-forwarder and kube-audit-forwarder.debug, instead of building them.
                    The working tree may then have changes
END
}

say() { printf -- '-- %s\n' "$*" >&2; }
fail() { echo "release.sh: $*" >&2; exit 1; }

NAME=kube-audit-forwarder
# shellcheck source=deploy/architectures.sh
. "$(dirname "$(realpath "$0")")/architectures.sh"

version="" output="" key="" programs=""
flavours=(default kafka) chosen=()
while [ "$#" -gt 0 ]; do
  case $1 in
  -h | --help) usage; exit ;;
  --output | --key | --flavour | --arch | --programs)
    [ "$#" -gt 1 ] || { usage >&2; exit 2; }
    case $1 in
    --output) output=$2 ;;
    --key) key=$(realpath "$2") ;;
    --programs) programs=$(realpath "$2") ;;
    --arch)
      target_of "$2" >/dev/null || { usage >&2; exit 2; }
      chosen+=("$2")
      ;;
    --flavour)
      case $2 in default | kafka) flavours=("$2") ;; *) usage >&2; exit 2 ;; esac
      ;;
    esac
    shift 2
    ;;
  -*) usage >&2; exit 2 ;;
  *)
    [ -z "$version" ] || { usage >&2; exit 2; }
    version=$1
    shift
    ;;
  esac
done
[ -n "$version" ] || { usage >&2; exit 2; }
[ -z "$output" ] || { mkdir -p "$output"; output=$(realpath "$output"); }
cd "$(dirname "$(realpath "$0")")/.."
output=${output:-$PWD/target/release-$version}

if [ -n "$(ls -A "$output" 2>/dev/null)" ] && [ ! -f "$output/SHA256SUMS" ]; then
  fail "$output has files, and is not an earlier release"
fi

# Nothing of the caller's surroundings may get into a file.
umask 022
export LC_ALL=C TZ=UTC
unset GZIP TAR_OPTIONS XZ_OPT

SOURCE_URL=$(sed -n 's/^repository = "\(.*\)"$/\1/p' Cargo.toml)
of_cargo=$(sed -n 's/^version = "\(.*\)"$/\1/p' Cargo.toml | head -n 1)
[ "$version" = "$of_cargo" ] || fail "the version in Cargo.toml is $of_cargo, not $version"
revision=$(git rev-parse HEAD)
epoch=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH=$epoch KUBE_AUDIT_FORWARDER_REVISION=$revision
if [ -z "$programs" ]; then
  changes=$(git status --porcelain)
  [ -z "$changes" ] || fail "the working tree has changes:"$'\n'"$changes"
fi
if [ -n "$(sed -n '/^## Unreleased/,/^## [0-9]/p' CHANGELOG.md | grep '^- ' | head -n 1)" ]; then
  say "note: CHANGELOG.md has lines under Unreleased, which belong under $version"
fi
locked=$(git log -1 --format=%ct -- Cargo.lock)
if [ $((epoch - locked)) -gt $((45 * 86400)) ]; then
  say "note: Cargo.lock is of $(date -u -d "@$locked" +%F); CONTRIBUTING.md asks for updates first"
fi

host=$(rustc -vV | sed -n 's/^host: //p')
own=""
for arch in amd64 arm64; do [ "$(target_of "$arch")" != "$host" ] || own=$arch; done
[ -n "$own" ] || fail "a release is made on amd64 or arm64, not on $host"
# This machine's own is the first: its program runs here, and prints the man pages of all.
archs=("$own")
[ "${#chosen[@]}" -gt 0 ] || chosen=("${architectures[@]}")
for arch in "${architectures[@]}"; do
  case "$arch ${chosen[*]} " in "$own "*) ;; *" $arch "*) archs+=("$arch") ;; esac
done

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
new=$work/new
mkdir "$new"

# Writes the archive $1 of the entries of the directory $2: sorted, of nobody, all of the commit's
# time. The name of the archive says if it is compressed.
archive() {
  local options=(--sort=name --format=ustar --owner=0 --group=0 --numeric-owner --mtime="@$epoch")
  # With names instead of ".", so that no entry begins with "./".
  local entries=("$2"/*)
  tar "${options[@]}" -C "$2" -cf "$work/archive.tar" -- "${entries[@]##*/}"
  case $1 in
  *gz) gzip -n <"$work/archive.tar" >"$1" ;;
  *) mv "$work/archive.tar" "$1" ;;
  esac
}

# The libraries of Debian that are linked into a program, besides crates.
linked() {
  local flavour=$1 arch=$2 package packages=(libc6-dev) debian
  debian=$(debian_of "$arch")
  [ "$flavour" != kafka ] || packages+=(libssl-dev)
  if [ "$arch" = "$own" ] || [ -n "$programs" ]; then
    dpkg-query -W -f "\${Package}=\${Version}\n" "${packages[@]}"
    return
  fi
  # The OpenSSL of deploy/cross.sh needs zlib.
  [ "$flavour" != kafka ] || packages+=(zlib1g-dev)
  for package in "${packages[@]}"; do
    grep -E "^$package(-$debian-cross:all|:$debian)=" <<<"$root" ||
      fail "deploy/cross.sh has no $package for $arch"
  done
}

# The name of the files of a flavour.
name_of() {
  case $1 in default) echo "$NAME" ;; *) echo "$NAME-$1" ;; esac
}

program() {
  local flavour=$1 features=$2 arch=$3 found=$work/$1/$3 built=target/release-$1 said folder
  mkdir -p "$found"
  if [ -n "$programs" ]; then
    cp "$programs/$flavour/$arch/$NAME" "$programs/$flavour/$arch/$NAME.debug" "$found/"
  else
    # One directory for each program, so that a second run builds nothing again.
    say "building the flavour $flavour for $arch"
    if [ "$arch" = "$own" ]; then
      deploy/static-binary.sh "$features" "$built" >&2
    else
      built+=-$arch
      deploy/cross.sh "$arch" "$features" "$built" >&2
    fi
    cp "$built/static/$NAME" "$built/static/$NAME.debug" "$found/"
    # A program of another architecture does not run here. It has the commit as a text.
    grep -qaF "$revision" "$found/$NAME" || fail "the program for $arch does not have the commit $revision"
  fi
  if [ "$arch" = "$own" ] && [ -z "$programs" ]; then
    said=$("$found/$NAME" --version)
    for expected in "$NAME $version" "revision: $revision" "features: ${features:-none}"; do
      grep -qxF "$expected" <<<"$said" || fail "the program does not say \"$expected\": $said"
    done
  fi
  folder=$(name_of "$flavour")-$version
  mkdir -p "$found.tar/$folder" "$found.debug"
  install -m 755 "$found/$NAME" "$found.tar/$folder/"
  install -m 644 LICENSE CHANGELOG.md "$found.tar/$folder/"
  mkdir -m 755 "$found.tar/$folder/config"
  install -m 644 config/*.toml "$found.tar/$folder/config/"
  archive "$new/$folder-linux-$arch.tar.gz" "$found.tar"
  PRINTS=$work/$flavour/$own/$NAME deploy/deb.sh "$found/$NAME" "$(name_of "$flavour")" "$version" \
    "$(debian_of "$arch")" "$epoch" "$new/$(name_of "$flavour")_${version}_$(debian_of "$arch").deb"
  install -m 644 "$found/$NAME.debug" "$found.debug/"
  archive "$new/$folder-linux-$arch-debug.tar.gz" "$found.debug"
}

# The image of one architecture, from the same Containerfile and the same files as `podman build`
# from a clone, as an entry of the flavour's index. Nothing of it runs.
image() {
  local flavour=$1 arch=$2 context=$work/$1/$2.context about=() label
  mkdir -p "$context/deploy"
  cp deploy/Containerfile "$context/deploy/"
  deploy/image-root.sh "$work/$flavour/$arch/$NAME" "$context/target/image"
  for label in "version=$version" "revision=$revision" "source=$SOURCE_URL" "url=$SOURCE_URL" \
    "documentation=$SOURCE_URL/blob/main/docs/SUMMARY.md" "vendor=$NAME" \
    "created=$(date -u -d "@$epoch" +%Y-%m-%dT%H:%M:%SZ)" "title=$(name_of "$flavour")"; do
    about+=(--label "org.opencontainers.image.$label" --annotation "org.opencontainers.image.$label")
  done
  about+=(--annotation "org.opencontainers.image.licenses=Apache-2.0" --arch "$arch")
  [ "$arch" != arm64 ] || about+=(--variant v8)
  buildah_of "$flavour" bud --isolation chroot --format oci --quiet --build-arg BINARY=prebuilt \
    --timestamp "$epoch" --identity-label=false "${about[@]}" \
    --file "$context/deploy/Containerfile" --manifest "$flavour" "$context"
}

# Runs buildah with the images of the flavour $1. Says what it printed if it fails.
buildah_of() {
  local flavour=$1
  shift
  buildah --storage-driver vfs --root "$work/store-$flavour" --runroot "$work/run-$flavour" "$@" \
    >"$work/buildah.log" 2>&1 || { cat "$work/buildah.log" >&2; fail "buildah $1 does not work"; }
}

# Writes a flavour's images with their index, from which a node takes that of its architecture.
# IMAGES gets the tag and the index's digest in the form that the Terraform module kube-audit of IBM
# Cloud takes.
index() {
  local flavour=$1 file
  file=$(name_of "$flavour")-$version.oci.tar
  buildah_of "$flavour" manifest push --all --quiet --digestfile "$work/digest" "$flavour" \
    "oci:$work/oci-$flavour:$version"
  echo "$file $revision@$(cat "$work/digest")" >>"$new/IMAGES"
  archive "$new/$file" "$work/oci-$flavour"
}

# The Helm chart, as `helm package --version VERSION --app-version VERSION` makes it: the tracked
# files below a folder with the chart's name.
chart() {
  local name
  name=$(sed -n 's/^name: *//p' deploy/chart/Chart.yaml)
  mkdir -p "$work/chart/$name"
  git ls-files -z deploy/chart | while IFS= read -r -d '' file; do
    install -D -m 644 "$file" "$work/chart/$name/${file#deploy/chart/}"
  done
  sed -i -e "s/^version:.*/version: $version/" -e "s/^appVersion:.*/appVersion: \"$version\"/" \
    "$work/chart/$name/Chart.yaml"
  grep -qx "version: $version" "$work/chart/$name/Chart.yaml" || fail "Chart.yaml has no version"
  grep -qx "appVersion: \"$version\"" "$work/chart/$name/Chart.yaml" || fail "Chart.yaml has no appVersion"
  archive "$new/$name-$version.tgz" "$work/chart"
}

# What has to be the same on another machine for the same bytes.
buildinfo() {
  echo "version: $version"
  echo "revision: $revision"
  echo "time: $(date -u -d "@$epoch" +%Y-%m-%dT%H:%M:%SZ)"
  echo "rustc: $(rustc -vV | paste -sd ';')"
  cc --version | sed -n '1s/^/cc: /p'
  buildah --version | sed 's/^/buildah: /'
  # zlib compresses the list of crates in the programs.
  python3 -c 'import platform, zlib; print("python3:", platform.python_version(), "zlib", zlib.ZLIB_RUNTIME_VERSION)'
  local package
  for package in binutils ca-certificates dpkg g++ gzip libc6-dev libssl-dev make pkgconf tar; do
    dpkg-query -W -f "\${Package}: \${Version}\n" "$package"
  done
  [ -z "$root" ] || printf '%s\n' "$root" | sed 's/^\(.*\)=/cross \1: /'
}

# Signs the file $1 as $1.sig: one line of base64, as `cosign verify-blob --key` takes it.
sign() {
  local file=$1
  openssl pkey -in "$key" -pubout -out "$work/key.pub" || fail "$key is no private key"
  case $(openssl pkey -pubin -in "$work/key.pub" -noout -text | head -n 1) in
  ED25519*)
    openssl pkeyutl -sign -inkey "$key" -rawin -in "$file" -out "$work/signature"
    openssl pkeyutl -verify -pubin -inkey "$work/key.pub" -rawin -in "$file" \
      -sigfile "$work/signature" >/dev/null
    ;;
  "Public-Key: (256 bit)")
    openssl dgst -sha256 -sign "$key" -out "$work/signature" "$file"
    openssl dgst -sha256 -verify "$work/key.pub" -signature "$work/signature" "$file" >/dev/null
    ;;
  *) fail "$key is neither an Ed25519 nor an ECDSA P-256 key" ;;
  esac
  base64 -w 0 "$work/signature" >"$file.sig"
  echo >>"$file.sig"
}

# The packages of the root in which the programs of other architectures are built.
root=""
[ -n "$programs" ] || [ "${#archs[@]}" = 1 ] || root=$(deploy/cross.sh --packages)
ca=$(dpkg-query -W -f "\${Version}" ca-certificates)
for flavour in "${flavours[@]}"; do
  features=$flavour
  [ "$flavour" != default ] || features=""
  for arch in "${archs[@]}"; do
    has_flavour "$flavour" "$arch" || { say "there is no $flavour for $arch"; continue; }
    program "$flavour" "$features" "$arch"
    say "the image and the SBOM of the flavour $flavour for $arch"
    image "$flavour" "$arch"
    libraries=$(linked "$flavour" "$arch")
    # shellcheck disable=SC2086 # the words are the packages
    deploy/sbom.py "$features" "$(target_of "$arch")" "$revision" "$epoch" \
      "$work/$flavour/$arch.context/target/image/root" "$ca" $libraries \
      >"$new/$(name_of "$flavour")-$version-linux-$arch.cdx.json"
  done
  index "$flavour"
done
chart
buildinfo >"$new/BUILDINFO"
install -m 644 deploy/verify_release.py "$new/"
deploy/provenance.py "$version" "$revision" "$SOURCE_URL" "$new" >"$work/PROVENANCE.json"
install -m 644 "$work/PROVENANCE.json" "$new/"
(cd "$new" && sha256sum -- * >"$work/SHA256SUMS" && mv "$work/SHA256SUMS" .)
if [ -n "$key" ]; then
  sign "$new/SHA256SUMS"
  deploy/verify_release.py "$work/key.pub" "$new" >&2
else
  say "note: this release is not signed, because there is no --key"
fi

# The files of an earlier run must not be left beside the new ones. Nothing else is deleted.
mkdir -p "$output"
if [ -f "$output/SHA256SUMS" ]; then
  sed -n 's/^[0-9a-f]\{64\}  \([^/]*\)$/\1/p' "$output/SHA256SUMS" | while IFS= read -r file; do
    rm -f -- "$output/$file"
  done
  rm -f "$output/SHA256SUMS" "$output/SHA256SUMS.sig"
fi
[ -z "$(ls -A "$output")" ] || fail "$output has files that are of no release"
cp "$new"/* "$output/"
chmod 644 "$output"/*
say "the release is in $output"
cat "$output/SHA256SUMS"
