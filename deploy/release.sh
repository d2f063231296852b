#!/usr/bin/env bash
# Makes the files of a release from the commit that is checked out: programs, packages, images, Helm
# chart, SBOMs, provenance, checksums and their signature. docs/operating/releases.md describes each
# file, and how to verify it. The same commit gives the same bytes on machines with the same
# packages, which BUILDINFO lists.
set -euo pipefail

usage() {
  cat <<'END'
usage: deploy/release.sh VERSION [OPTION...]

  VERSION           the version in Cargo.toml
  --output DIR      where the files go; the default is target/release-VERSION
  --key FILE        signs with this private key (PEM): Ed25519 or ECDSA P-256; without it the
                    release is not signed
  --flavour NAME    makes one flavour only: "default" or "kafka"
  --programs DIR    for tests of this script: packages DIR/default or DIR/kafka, each with the files
                    kube-audit-forwarder and kube-audit-forwarder.debug, instead of building them.
                    The working tree may then have changes
END
}

say() { printf -- '-- %s\n' "$*" >&2; }
fail() { echo "release.sh: $*" >&2; exit 1; }

NAME=kube-audit-forwarder

version="" output="" key="" programs=""
flavours=(default kafka)
while [ "$#" -gt 0 ]; do
  case $1 in
  -h | --help) usage; exit ;;
  --output | --key | --flavour | --programs)
    [ "$#" -gt 1 ] || { usage >&2; exit 2; }
    case $1 in
    --output) output=$2 ;;
    --key) key=$(realpath "$2") ;;
    --programs) programs=$(realpath "$2") ;;
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

target=$(rustc -vV | sed -n 's/^host: //p')
case $target in
x86_64-*) arch=amd64 ;;
aarch64-*) arch=arm64 ;;
*) fail "no name is known for the architecture of $target" ;;
esac

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

# The libraries of the machine that are linked into the programs, besides crates.
linked() {
  local package packages=(libc6-dev)
  [ "$1" != kafka ] || packages+=(libssl-dev)
  for package in "${packages[@]}"; do
    dpkg-query -W -f "\${Package}=\${Version}\n" "$package"
  done
}

# The name of the files of a flavour.
name_of() {
  case $1 in default) echo "$NAME" ;; *) echo "$NAME-$1" ;; esac
}

program() {
  local flavour=$1 features=$2 found said
  found=$work/$flavour
  mkdir "$found"
  if [ -n "$programs" ]; then
    cp "$programs/$flavour/$NAME" "$programs/$flavour/$NAME.debug" "$found/"
  else
    # One directory for each flavour, so that a second run builds nothing again.
    say "building the flavour $flavour"
    deploy/static-binary.sh "$features" "target/release-$flavour" >&2
    cp "target/release-$flavour/static/$NAME" "target/release-$flavour/static/$NAME.debug" "$found/"
    said=$("$found/$NAME" --version)
    for expected in "$NAME $version" "revision: $revision" "features: ${features:-none}"; do
      grep -qxF "$expected" <<<"$said" || fail "the program does not say \"$expected\": $said"
    done
  fi
  local folder
  folder=$(name_of "$flavour")-$version
  mkdir -p "$work/tar-$flavour/$folder" "$work/debug-$flavour"
  install -m 755 "$found/$NAME" "$work/tar-$flavour/$folder/"
  install -m 644 LICENSE CHANGELOG.md "$work/tar-$flavour/$folder/"
  mkdir -m 755 "$work/tar-$flavour/$folder/config"
  install -m 644 config/*.toml "$work/tar-$flavour/$folder/config/"
  archive "$new/$folder-linux-$arch.tar.gz" "$work/tar-$flavour"
  deploy/deb.sh "$found/$NAME" "$(name_of "$flavour")" "$version" "$arch" "$epoch" \
    "$new/$(name_of "$flavour")_${version}_$arch.deb"
  install -m 644 "$found/$NAME.debug" "$work/debug-$flavour/"
  archive "$new/$folder-linux-$arch-debug.tar.gz" "$work/debug-$flavour"
}

# The image, from the same Containerfile and the same files as `podman build` from a clone. IMAGES
# gets its tag and digest in the form that IBM Cloud's Terraform module kube-audit takes.
image() {
  local flavour=$1 folder context=$work/context-$1 about store
  folder=$(name_of "$flavour")-$version
  mkdir -p "$context/deploy"
  cp deploy/Containerfile "$context/deploy/"
  deploy/image-root.sh "$work/$flavour/$NAME" "$context/target/image"
  store=(buildah --storage-driver vfs --root "$work/store-$flavour" --runroot "$work/run-$flavour")
  about=()
  for label in "version=$version" "revision=$revision" "source=$SOURCE_URL" "url=$SOURCE_URL" \
    "documentation=$SOURCE_URL/blob/main/docs/SUMMARY.md" "vendor=$NAME" \
    "created=$(date -u -d "@$epoch" +%Y-%m-%dT%H:%M:%SZ)" "title=$(name_of "$flavour")"; do
    about+=(--label "org.opencontainers.image.$label" --annotation "org.opencontainers.image.$label")
  done
  about+=(--annotation "org.opencontainers.image.licenses=Apache-2.0")
  "${store[@]}" bud --isolation chroot --format oci --quiet --build-arg BINARY=prebuilt \
    --timestamp "$epoch" --identity-label=false "${about[@]}" \
    --file "$context/deploy/Containerfile" --tag "$folder" "$context" >/dev/null \
    2>"$work/bud.log" || { cat "$work/bud.log" >&2; fail "the image can't be built"; }
  "${store[@]}" push --quiet --digestfile "$work/digest" "$folder" "oci:$work/oci-$flavour:$version" \
    2>"$work/push.log" || { cat "$work/push.log" >&2; fail "the image can't be written"; }
  echo "$folder-linux-$arch.oci.tar $revision@$(cat "$work/digest")" >>"$new/IMAGES"
  archive "$new/$folder-linux-$arch.oci.tar" "$work/oci-$flavour"
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
  rustc -vV | sed 's/^/rustc: /'
  cc --version | sed -n '1s/^/cc: /p'
  buildah --version | sed 's/^/buildah: /'
  # zlib compresses the list of crates in the programs.
  python3 -c 'import platform, zlib; print("python3:", platform.python_version(), "zlib", zlib.ZLIB_RUNTIME_VERSION)'
  local package
  for package in binutils ca-certificates dpkg g++ gzip libc6-dev libssl-dev make pkgconf tar; do
    dpkg-query -W -f "\${Package}: \${Version}\n" "$package"
  done
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

for flavour in "${flavours[@]}"; do
  features=$flavour
  [ "$flavour" != default ] || features=""
  program "$flavour" "$features"
  say "the image and the SBOM of the flavour $flavour"
  image "$flavour"
  mapfile -t libraries < <(linked "$flavour")
  ca=$(dpkg-query -W -f "\${Version}" ca-certificates)
  deploy/sbom.py "$features" "$target" "$revision" "$epoch" \
    "$work/context-$flavour/target/image/root" "$ca" "${libraries[@]}" \
    >"$new/$(name_of "$flavour")-$version-linux-$arch.cdx.json"
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
