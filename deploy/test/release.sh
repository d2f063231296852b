#!/usr/bin/env bash
# Tests deploy/release.sh, without network.
#
#   deploy/test/release.sh package DIRECTORY PYTHON HELM [ARCH...]
#       Packages the files kube-audit-forwarder and kube-audit-forwarder.debug of DIRECTORY, twice,
#       in different surroundings. Verifies both releases as docs/operating/releases.md tells it,
#       and runs the released image. PYTHON has the packages of tests/peers/requirements.txt,
#       HELM is the command helm. It takes root, as buildah does. Each ARCH is packaged beside this
#       machine's own architecture: its program is that below target/cross which `./test cross` has
#       built. Without an ARCH, one stands for the others: this machine's program with the headers
#       of one for s390x.
#   deploy/test/release.sh rebuild FLAVOUR DIRECTORY
#       Builds the flavour (default or kafka) in a clone elsewhere, in different surroundings.
#       Expects the bytes of the two files in DIRECTORY, which deploy/static-binary.sh made here.
set -euo pipefail

say() { printf '\n-- %s\n' "$*"; }
fail() { echo "test/release.sh: $*" >&2; exit 1; }

NAME=kube-audit-forwarder
# shellcheck source=deploy/architectures.sh
. "$(dirname "$(realpath "$0")")/../architectures.sh"

# Makes a copy of the tracked files and of the history in the directory $1.
clone() {
  rm -rf "$1.files"
  if [ -d "$1/.git" ]; then
    git -C "$1" fetch --quiet "$PWD" HEAD
    git -C "$1" reset --quiet --hard FETCH_HEAD
    git -C "$1" clean --quiet --force -d
  else
    git clone --quiet --no-checkout "$PWD" "$1"
    git -C "$1" checkout --quiet --detach "$(git rev-parse HEAD)"
  fi
  # Changes that are not committed, so that an edit can be tried.
  git diff --binary HEAD >"$1.files"
  [ ! -s "$1.files" ] || git -C "$1" apply --index --whitespace=nowarn "$1.files"
  rm -f "$1.files"
}

# Runs a command with another mask, time zone, locale, terminal and home than usual.
elsewhere() (
  umask 077
  export TZ=Asia/Kolkata LC_ALL=C.UTF-8 TERM=dumb GZIP=-1 TAR_OPTIONS=--format=pax COLUMNS=37
  unset KUBE_AUDIT_FORWARDER_REVISION SOURCE_DATE_EPOCH CFLAGS CXXFLAGS RUSTFLAGS
  "$@"
)

# Expects that a command fails and says a text.
refused() {
  local expected=$1 said
  shift
  if said=$("$@" 2>&1); then fail "this should have failed: $*"; fi
  grep -qF -- "$expected" <<<"$said" || fail "$*: \"$expected\" is not in: $said"
}

# The command of docs/operating/releases.md, in a network of its own, which reaches nothing.
verify() { unshare --net -- "$PWD/deploy/verify_release.py" "$@"; }

# Expects that the release in $3, with the public key $2, does not verify, with the text $1.
unverified() {
  local expected=$1 said
  shift
  if said=$(verify "$@" 2>&1); then fail "this release should not verify: $expected"; fi
  grep "^NOT VERIFIED: " <<<"$said" | grep -qF -- "$expected" || fail "\"$expected\" is not in: $said"
}

# Gives the program $1 of this machine the headers of one for the architecture $2. In those for IBM
# Z, the highest byte of a number is the first.
look_like() {
  python3 - "$@" <<'END'
import struct, sys

path, arch = sys.argv[1:]
data = bytearray(open(path, "rb").read())
data[5], order = (2, ">") if arch == "s390x" else (1, "<")
head = list(struct.unpack_from("<HHIQQQIHHHHHH", data, 16))
head[1] = {"amd64": 62, "arm64": 183, "s390x": 22, "ppc64le": 21}[arch]
struct.pack_into(f"{order}HHIQQQIHHHHHH", data, 16, *head)
for at in range(head[5], head[5] + 64 * head[11], 64):
    struct.pack_into(f"{order}IIQQQQIIQQ", data, at, *struct.unpack_from("<IIQQQQIIQQ", data, at))
open(path, "wb").write(data)
END
}

# Makes $work/programs, what the tests package, of this machine's program in the directory $1. Its
# flavour kafka is the same program here, but records that flavour's crates.
programs() {
  local directory=$1 flavour features each place real
  say "the programs for ${archs[*]}"
  [ "$foreign" = real ] || say "that for ${archs[1]} is this machine's own, with other headers"
  for flavour in default kafka; do
    features=${flavour#default}
    for each in "${archs[@]}"; do
      has_flavour "$flavour" "$each" || continue
      place=$work/programs/$flavour/$each real=target/cross/$each${features:+-$features}/static
      mkdir -p "$place"
      if [ "$each" = "$arch" ]; then
        cp "$directory/$NAME" "$directory/$NAME.debug" "$place/"
        [ "$flavour" = kafka ] || continue
      elif [ "$foreign" = real ]; then
        [ -f "$real/$NAME" ] || fail "$real/$NAME is missing: ./test cross builds it"
        cp "$real/$NAME" "$real/$NAME.debug" "$place/"
        continue
      else
        cp "$directory/$NAME" "$place/"
        echo "no symbols" >"$place/$NAME.debug"
      fi
      deploy/dependencies.py "$features" "$(target_of "$each")" >"$work/crates"
      objcopy --update-section .dep-v0="$work/crates" "$place/$NAME"
      look_like "$place/$NAME" "$each"
    done
  done
}

# Makes the checksums of the release in $2 again, and signs them with the Ed25519 key $1.
sign_again() (
  cd "$2"
  rm SHA256SUMS SHA256SUMS.sig
  sha256sum -- * >"$work/SHA256SUMS"
  mv "$work/SHA256SUMS" .
  openssl pkeyutl -sign -inkey "$1" -rawin -in SHA256SUMS | base64 -w 0 >SHA256SUMS.sig
)

# Makes the checksums in PROVENANCE.json of the release in $1 those of its files.
provenance_again() (
  cd "$1"
  jq --rawfile sums <(sha256sum -- *) '.subject[] |= (.name as $name | .digest.sha256 =
    ($sums | split("\n")[] | select(endswith("  " + $name)) | split("  ")[0]))' PROVENANCE.json >"$work/changed"
  mv -f "$work/changed" PROVENANCE.json
)

# Verifies the release in $1, of the Ed25519 key $work/ed25519, by the documented command: as it is,
# and after changes of many kinds.
verified_by_command() {
  local release=$1 key=$work/ed25519.pub bad=$work/bad file bom other
  verify "$key" "$release"
  # Makes $bad, a copy of the release that the next lines change. Its files are links.
  copy() { rm -rf "$bad" && cp -rl "$release" "$bad"; }
  # Changes a JSON file of the copy by a filter of jq.
  changed() { jq "$1" "$release/$2" >"$work/changed" && mv -f "$work/changed" "$bad/$2"; }
  # Changes the index of the images in the file $2 by a filter of jq, makes the file $3 of it, and
  # signs the copy again.
  index_changed() {
    local layout=$work/layout digest
    rm -rf "$layout" && mkdir "$layout"
    tar -xf "$release/$2" -C "$layout"
    digest=$(jq -r '.manifests[0].digest' "$layout/index.json")
    jq -c "$1" "$layout/blobs/sha256/${digest#*:}" >"$work/changed"
    sed -i "s/$digest/sha256:$(sha256sum <"$work/changed" | cut -d ' ' -f 1)/" "$layout/index.json" "$bad/IMAGES"
    mv "$work/changed" "$layout/blobs/sha256/$(sha256sum <"$work/changed" | cut -d ' ' -f 1)"
    rm "$bad/$3"
    tar -cf "$bad/$3" -C "$layout" blobs index.json oci-layout
    sign_again "$work/ed25519.key" "$bad"
  }

  for file in "$release"/*; do
    file=${file##*/}
    copy
    cp --remove-destination "$release/$file" "$bad/$file"
    flip "$bad/$file"
    case $file in
    # The changed byte of the signature may also be one that base64 does not have.
    SHA256SUMS.sig) unverified "" "$key" "$bad" ;;
    SHA256SUMS) unverified "the signature of SHA256SUMS is not of" "$key" "$bad" ;;
    *) unverified "$file has another checksum" "$key" "$bad" ;;
    esac
    rm "$bad/$file"
    case $file in
    SHA256SUMS | SHA256SUMS.sig) unverified "$file is missing" "$key" "$bad" ;;
    *) unverified "missing: $file" "$key" "$bad" ;;
    esac
    ln -s "$release/$file" "$bad/$file"
    case $file in
    SHA256SUMS | SHA256SUMS.sig) unverified "$file is missing" "$key" "$bad" ;;
    *) unverified "$file is not a file" "$key" "$bad" ;;
    esac
  done
  copy && touch "$bad/another-file"
  unverified "not of this release: another-file" "$key" "$bad"
  # A file is exchanged, and its line of the checksums with it.
  for file in "$release"/*.tgz "$release"/BUILDINFO; do
    file=${file##*/}
    copy
    echo exchanged >"$work/changed" && mv -f "$work/changed" "$bad/$file"
    sed "s/^.*  $file\$/$(sha256sum <"$bad/$file" | cut -d ' ' -f 1)  $file/" "$release/SHA256SUMS" \
      >"$work/changed" && mv -f "$work/changed" "$bad/SHA256SUMS"
    (cd "$bad" && sha256sum --check --strict --quiet SHA256SUMS)
    unverified "the signature of SHA256SUMS is not of" "$key" "$bad"
  done
  # The signature is of another key.
  openssl genpkey -algorithm ED25519 -out "$work/other.key"
  copy && sign_again "$work/other.key" "$bad"
  unverified "the signature of SHA256SUMS is not of" "$key" "$bad"
  unverified "neither an Ed25519 nor" "$work/rsa.pub" "$release"
  unverified "is not a public key" "$work/ed25519.key" "$release"
  # Whoever made the release signed what does not fit together.
  bom=$NAME-$version-linux-$arch.cdx.json
  copy && changed 'del(.components[0])' "$bom" && sign_again "$work/ed25519.key" "$bad"
  unverified "${bom%.cdx.json}: SBOM and program differ" "$key" "$bad"
  copy && changed '(.components[] | select(.name == "tokio")).version = "0.1.0"' "$bom"
  sign_again "$work/ed25519.key" "$bad"
  unverified "${bom%.cdx.json}: SBOM and program differ in [('tokio', '0.1.0'), ('tokio'," "$key" "$bad"
  copy && changed 'del(.components[] | select(.name == "/etc/passwd"))' "$bom"
  sign_again "$work/ed25519.key" "$bad"
  unverified "${bom%.cdx.json}: SBOM and image differ in /etc/passwd" "$key" "$bad"
  copy && index_changed '.manifests |= map(select(.platform.architecture | IN("amd64", "arm64")))' \
    "$NAME-$version.oci.tar" "$NAME-kafka-$version.oci.tar"
  unverified "SBOM and image differ in /usr/bin/$NAME" "$key" "$bad"
  # An architecture has another image, or none, or another program.
  copy && index_changed 'del(.manifests[-1])' "$NAME-$version.oci.tar" "$NAME-$version.oci.tar"
  unverified "$NAME-$version: programs for ['$(printf '%s\n' "${archs[@]}" | sort | paste -s -d , |
    sed "s/,/', '/g")'], and images for [" "$key" "$bad"
  copy && index_changed '.manifests[0].platform.architecture = "riscv64"' "$NAME-$version.oci.tar" "$NAME-$version.oci.tar"
  unverified "$NAME-$version.oci.tar: the image for riscv64 is for $arch" "$key" "$bad"
  for other in "${archs[@]}"; do
    [ "$other" != "$arch" ] || continue
    copy && cp -f --remove-destination "$release/$NAME-$version-linux-$arch.tar.gz" "$bad/$NAME-$version-linux-$other.tar.gz"
    sign_again "$work/ed25519.key" "$bad"
    unverified "$NAME-$version-linux-$other: the program is for the machine" "$key" "$bad"
  done
  # IMAGES has another commit. A release of before it has no such file.
  copy && sed 's/ [0-9a-f]*@/ 0123456789012345678901234567890123456789@/' "$release/IMAGES" >"$work/changed"
  mv -f "$work/changed" "$bad/IMAGES" && sign_again "$work/ed25519.key" "$bad"
  unverified "IMAGES and the images differ in" "$key" "$bad"
  copy && rm "$bad/IMAGES" "$bad/PROVENANCE.json" && sign_again "$work/ed25519.key" "$bad"
  verify "$key" "$bad"
  # The package has another program than the archive.
  copy && cp -f --remove-destination "$release/$NAME-kafka_${version}_$arch.deb" "$bad/${NAME}_${version}_$arch.deb"
  provenance_again "$bad" && sign_again "$work/ed25519.key" "$bad"
  unverified "the package has another program than the archive" "$key" "$bad"
  copy && mv "$bad/${NAME}_${version}_$arch.deb" "$bad/${NAME}_${version}_all.deb"
  provenance_again "$bad" && sign_again "$work/ed25519.key" "$bad"
  unverified "packages without a program: ${NAME}_${version}_all.deb" "$key" "$bad"
  # The provenance is of another commit, or not of these files.
  copy && changed '(.predicate.buildDefinition.resolvedDependencies[].digest | select(.gitCommit)).gitCommit = "0"' \
    PROVENANCE.json && sign_again "$work/ed25519.key" "$bad"
  unverified "PROVENANCE.json has the commit ['0'], not" "$key" "$bad"
  copy && changed 'del(.subject[0])' PROVENANCE.json && sign_again "$work/ed25519.key" "$bad"
  unverified "PROVENANCE.json and the files differ in BUILDINFO" "$key" "$bad"
  copy && rm "$bad/$bom" && sign_again "$work/ed25519.key" "$bad"
  unverified "$bom is missing" "$key" "$bad"
  rm -rf "$bad"
}

# The commands by hand of docs/operating/releases.md, in a directory with a release and the public
# key.
verify_ed25519() {
  base64 -d SHA256SUMS.sig >SHA256SUMS.bin
  openssl pkeyutl -verify -pubin -inkey release.pub -rawin -in SHA256SUMS -sigfile SHA256SUMS.bin
}

verify_ecdsa() {
  base64 -d SHA256SUMS.sig >SHA256SUMS.bin
  openssl dgst -sha256 -verify release.pub -signature SHA256SUMS.bin SHA256SUMS
}

# Changes one bit of a file.
flip() {
  local byte
  byte=$(od -An -tu1 -j 40 -N 1 "$1" | tr -d ' ')
  # shellcheck disable=SC2059
  printf "\\$(printf '%03o' $((byte ^ 1)))" | dd of="$1" bs=1 seek=40 conv=notrunc status=none
}

# Verifies the release in $1 with the public key $2 by the command $3, before and after changes.
verified() (
  cp -r "$1" "$work/verified"
  cd "$work/verified"
  cp "$2" release.pub
  sha256sum --check --strict --quiet SHA256SUMS
  "$3"
  local file
  cp SHA256SUMS whole
  flip SHA256SUMS
  if "$3" >/dev/null 2>&1; then fail "the signature holds for changed checksums"; fi
  mv whole SHA256SUMS
  cp SHA256SUMS.sig whole
  flip SHA256SUMS.bin
  base64 -w 0 SHA256SUMS.bin >SHA256SUMS.sig
  if "$3" >/dev/null 2>&1; then fail "a changed signature holds"; fi
  mv whole SHA256SUMS.sig
  "$3"
  case $3 in
  verify_ecdsa) openssl ecparam -name prime256v1 -genkey -noout -out other.key ;;
  *) openssl genpkey -algorithm ED25519 -out other.key ;;
  esac
  openssl pkey -in other.key -pubout -out release.pub
  if "$3" >/dev/null 2>&1; then fail "the signature holds for another key"; fi
  for file in *.tar.gz *.oci.tar *.cdx.json *.tgz BUILDINFO; do
    cp "$file" kept
    flip "$file"
    if sha256sum --check --status SHA256SUMS; then fail "a changed $file is not noticed"; fi
    mv kept "$file"
  done
  sha256sum --check --strict --quiet SHA256SUMS
  rm -rf "$work/verified"
)

# Publishes the release $1 of the public key $2 in a registry of this machine, and uses it as users
# do: by the tags and digests, and by the chart. $3 is the command helm.
published() {
  local release=$1 key=$2 helm=$3 commit digest name place each pulled=$work/pulled
  commit=$(git rev-parse HEAD)
  mkdir "$work/registry"
  printf 'version: 0.1\nstorage: {filesystem: {rootdirectory: %s}}\nhttp: {addr: "127.0.0.1:0"}\n' \
    "$work/registry" >"$work/registry.yml"
  docker-registry serve "$work/registry.yml" >"$work/registry.log" 2>&1 &
  registry=$!
  for _ in $(seq 100); do
    place=$(sed -n 's/.*listening on \(127\.0\.0\.1:[0-9]*\).*/\1/p' "$work/registry.log" | head -n 1)
    [ -z "$place" ] || break
    sleep 0.1
  done
  [ -n "$place" ] || fail "the registry does not start: $(cat "$work/registry.log")"
  refused "usage:" deploy/publish.sh "$release" "$key"
  refused "NOT VERIFIED" deploy/publish.sh "$release" "$work/other.key" "$place/org" --plain-http
  HELM=$helm deploy/publish.sh "$release" "$key" "$place/org" --plain-http
  # Once more: everything is there already.
  HELM=$helm deploy/publish.sh "$release" "$key" "$place/org" --plain-http
  for name in $NAME $NAME-kafka; do
    digest=$(sed -n "s/^$name-[0-9].* $commit@//p" "$release/IMAGES")
    # By the version, by the commit, and as the Terraform module names it: the commit with the
    # digest.
    for tag in "$version" "$commit"; do
      [ "$(skopeo inspect --tls-verify=false --format '{{.Digest}}' "docker://$place/org/$name:$tag")" = "$digest" ] ||
        fail "$name:$tag is not $digest"
    done
    skopeo inspect --tls-verify=false "docker://$place/org/$name@$digest" >/dev/null
    # A node pulls the image of its own architecture by the same name.
    for each in $(skopeo inspect --tls-verify=false --raw "docker://$place/org/$name:$version" |
      jq -r '.manifests[].platform.architecture'); do
      rm -rf "$pulled" "$pulled.root" && mkdir "$pulled.root"
      skopeo copy --quiet --src-tls-verify=false --override-arch "$each" "docker://$place/org/$name:$version" "dir:$pulled"
      [ "$(jq -r .architecture "$pulled/$(jq -r '.config.digest[7:]' "$pulled/manifest.json")")" = "$each" ] ||
        fail "$name for $each has another config"
      tar -xzf "$pulled/$(jq -r '.layers[0].digest[7:]' "$pulled/manifest.json")" -C "$pulled.root"
      case $name in *-kafka) flavour=kafka ;; *) flavour=default ;; esac
      cmp "$pulled.root/usr/bin/$NAME" "$work/programs/$flavour/$each/$NAME"
      echo "$flavour $each" >>"$work/pulled.list"
    done
  done
  for flavour in default kafka; do
    for each in "${archs[@]}"; do ! has_flavour "$flavour" "$each" || echo "$flavour $each"; done
  done | diff <(sort "$work/pulled.list") <(sort) || fail "the registry has images for other architectures"
  (cd "$work" && "$helm" pull --plain-http "oci://$place/org/charts/$NAME" --version "$version")
  cmp "$work/$NAME-$version.tgz" "$release/$NAME-$version.tgz" || fail "the registry has another chart"
  # A tag that names another image is not moved.
  skopeo copy --quiet --dest-tls-verify=false --src-tls-verify=false \
    "docker://$place/org/$NAME-kafka:$version" "docker://$place/org/$NAME:$version"
  refused "a tag is never moved" deploy/publish.sh "$release" "$key" "$place/org" --plain-http
  of_pages "$release" "$place" "$helm"
  of_a_clone "$place"
  kill "$registry"
  wait "$registry" || true
  registry=""
}

# Runs each command of the pages that fetches something of the release $1, as if it were published
# in the registry $2: with the registry and a file server of this machine in the place of ghcr.io
# and GitHub, and with buildah in the place of podman.
of_pages() {
  local release=$1 place=$2 helm=$3 clone="$work/a clone elsewhere" line files count=0
  "$clone/deploy/published.sh" "$version"
  mkdir -p "$work/reader/bin" "$work/reader/here"
  python3 -u -m http.server --bind 127.0.0.1 --directory "$release" 0 >"$work/files.log" 2>&1 &
  server=$!
  for _ in $(seq 100); do
    files=$(sed -n 's/^Serving HTTP on .* port \([0-9]*\) .*/\1/p' "$work/files.log")
    [ -z "$files" ] || break
    sleep 0.1
  done
  [ -n "$files" ] || fail "the file server does not start: $(cat "$work/files.log")"
  while read -r line; do
    line=${line//https:\/\/github.com\/kube-audit-forwarder\/$NAME\/releases\/download\/v$version/http:\/\/127.0.0.1:$files}
    line=${line//ghcr.io\/kube-audit-forwarder/$place\/org}
    case $line in
    "curl -fLO "*)
      # For each machine's architecture: the pages set the variable in a line before.
      for ARCH in "${archs[@]}"; do
        [[ $line != *.deb ]] || ARCH=${ARCH/ppc64le/ppc64el}
        (cd "$work/reader/here" && eval "${line/curl/curl --silent --show-error --noproxy 127.0.0.1}") ||
          fail "with a release, this command of the pages fails for $ARCH: $line"
      done
      ;;
    "podman pull "* | "podman run "*) skopeo inspect --tls-verify=false "docker://${line##* }" >/dev/null ;;
    "helm pull "*) (cd "$work/reader/here" && eval "${line/helm/$helm} --plain-http") ;;
    "helm install "*) eval "${line/helm install/$helm template} --plain-http" >"$work/reader/objects" ;;
    *"kubectl set image "*) skopeo inspect --tls-verify=false "docker://${line##*=}" >/dev/null ;;
    *) fail "no test runs this command of the pages: $line" ;;
    esac || fail "with a release, this command of the pages fails: $line"
    count=$((count + 1))
  done < <(find "$clone/README.md" "$clone/docs" -name '*.md' -exec cat {} + |
    sed -e ':a' -e '/\\$/{ N; s/\\\n *//; ba' -e '}' -e 's/--set-file config=[^ ]*//' |
    grep -E '^[a-z].*(ghcr\.io/|releases/download)')
  [ "$count" -ge 6 ] || fail "only $count commands of the pages fetch a part of the release"
  kill "$server"
  wait "$server" || true
  server=""
  grep -q "image: .*kube-audit-forwarder:$version" "$work/reader/objects" || fail "the published chart has no image"
  tar -xzf "$work/reader/here/$NAME-$version-linux-$arch.tar.gz" -C "$work/reader/here"
  "$work/reader/here/$NAME-$version/$NAME" --version >/dev/null
  dpkg-deb --info "$work/reader/here/${NAME}_${version}_$arch.deb" >/dev/null
  git -C "$clone" checkout --quiet -- README.md docs deploy/published
}

# Without a release, a reader makes the image: for the registry $1, and for clusters without one.
# kind and k3s are stand-ins, which read the image's file as those do.
of_a_clone() {
  local place=$1 image program other=${archs[1]}
  export ENGINE=buildah PROGRAM=$work/programs/default/$arch/$NAME
  export STORAGE_DRIVER=vfs BUILDAH_ISOLATION=chroot CONTAINERS_STORAGE_CONF=$work/storage.conf
  printf '[storage]\ndriver = "vfs"\ngraphroot = "%s"\nrunroot = "%s"\n' "$work/storage" "$work/storage-run" \
    >"$CONTAINERS_STORAGE_CONF"
  image=$(deploy/image.sh "$place/mine/$NAME" 2>"$work/image.log") || fail "$(cat "$work/image.log")"
  [ "$image" = "$place/mine/$NAME:$version" ] || fail "image.sh printed $image"
  image=$(deploy/image.sh "$place/mine/$NAME:mine" 2>"$work/image.log") || fail "$(cat "$work/image.log")"
  [ "$(skopeo inspect --tls-verify=false --config "docker://$image" | jq -r .config.User)" = 65532:65532 ] ||
    fail "$image is not our image"
  # For the nodes of another architecture.
  image=$(ARCH=$other PROGRAM=$work/programs/default/$other/$NAME deploy/image.sh "$place/mine/$NAME:z" 2>"$work/image.log") ||
    fail "$(cat "$work/image.log")"
  [ "$(skopeo inspect --tls-verify=false --override-arch "$other" --config "docker://$image" | jq -r .architecture)" = "$other" ] ||
    fail "$image is not for $other"
  refused "is for $arch, and ARCH is $other" env "ARCH=$other" deploy/image.sh "$place/mine/$NAME:z"
  refused "is for $other, and ARCH is $arch" env -u ARCH "PROGRAM=$work/programs/default/$other/$NAME" \
    deploy/image.sh "$place/mine/$NAME:z"
  refused "ARCH is that of PROGRAM" env -u PROGRAM "ARCH=$other" deploy/image.sh "$place/mine/$NAME:z"
  for program in kind k3s; do
    cat >"$work/reader/bin/$program" <<'END'
#!/bin/sh
echo "${0##*/} $*" >>"$LOADED"
case $1 in load) file=$3 ;; *) file=$4 ;; esac
skopeo inspect --format '{{.RepoTags}}' "docker-archive:$file" >/dev/null
tar -xOf "$file" manifest.json >>"$LOADED"
END
    chmod +x "$work/reader/bin/$program"
  done
  export LOADED=$work/loaded
  for program in kind kind:other k3s; do
    : >"$LOADED"
    PATH=$work/reader/bin:$PATH deploy/image.sh "$program" >/dev/null 2>"$work/image.log" || fail "$(cat "$work/image.log")"
    # The name in the manifests: a node that has it does not pull.
    grep -qF "ghcr.io/kube-audit-forwarder/$NAME:$version" "$LOADED" || fail "$program: $(cat "$LOADED")"
  done
  refused "deploy/image.sh kind[:CLUSTER]" deploy/image.sh
  refused "neither REGISTRY/NAME nor kind nor k3s" deploy/image.sh mine
  refused "kind is not installed" deploy/image.sh kind
  refused "a digest is known only after the push" deploy/image.sh "$place/mine/$NAME@sha256:0"
  refused "log in to the registry first: buildah login 127.0.0.1:1" deploy/image.sh "127.0.0.1:1/mine/$NAME"
  mkdir "$work/tools"
  for program in sh sed head cut dirname realpath; do ln -s "$(command -v "$program")" "$work/tools/"; done
  refused "none of podman, docker and buildah" env -u ENGINE "PATH=$work/tools" sh deploy/image.sh "$place/mine/$NAME"
  unset ENGINE PROGRAM STORAGE_DRIVER BUILDAH_ISOLATION CONTAINERS_STORAGE_CONF LOADED
}

# Commits in a clone what stands before a release: the key of releases, or none, and the head of the
# lines about this version in the CHANGELOG.
prepared() {
  local place=$1 key=${2:-}
  if [ -n "$key" ]; then cp "$key" "$place/deploy/release.pub"; else rm -f "$place/deploy/release.pub"; fi
  "$place/deploy/published.sh" "${3:-$version}"
  grep -q "^## $version" "$place/CHANGELOG.md" || sed -i "s/^## Unreleased$/&\n\n## $version/" "$place/CHANGELOG.md"
  git -C "$place" add --all
  git -C "$place" -c user.name=test -c user.email=test@example.com commit --quiet --allow-empty --message "a release"
}

# What the workflow of a release runs, in a clone with the tag.
of_tag() {
  local place="$work/a clone elsewhere" key unreadable
  refused "the tag 1 is not v and a version" "$place/deploy/release-of-tag.sh" 1
  refused "RELEASE_KEY is empty" "$place/deploy/release-of-tag.sh" "v$version"
  key=$(cat "$work/ed25519.key")
  prepared "$place"
  RELEASE_KEY=$key refused "no deploy/release.pub" "$place/deploy/release-of-tag.sh" "v$version"
  prepared "$place" "$work/ecdsa.pub"
  RELEASE_KEY=$key refused "not the public half of RELEASE_KEY" "$place/deploy/release-of-tag.sh" "v$version"
  RELEASE_KEY=none refused "RELEASE_KEY is not a private key" "$place/deploy/release-of-tag.sh" "v$version"
  prepared "$place" "$work/ed25519.pub" none
  RELEASE_KEY=$key refused "do not say that $version exists" "$place/deploy/release-of-tag.sh" "v$version"
  prepared "$place" "$work/ed25519.pub"
  # One image, because release.sh has made all of them above.
  local options=(--programs "$work/programs" --flavour default --arch "$arch")
  RELEASE_KEY=$key "$place/deploy/release-of-tag.sh" "v$version" "${options[@]}" >/dev/null
  cmp "$place/target/release.pub" "$work/ed25519.pub"
  # The steps after this one publish as another user.
  unreadable=$(find "$place/target" ! -perm -o=r)
  [ -z "$unreadable" ] || fail "the user who publishes can't read $unreadable"
  grep -q "^## $version" "$place/target/notes.md" || fail "the notes are not about $version"
  "$place/deploy/release.sh" "$version" "${options[@]}" --output "$work/of-tag" --key "$work/ed25519.key" >/dev/null
  diff -r "$work/of-tag" "$place/target/release-of-tag" || fail "the release of the tag has other bytes"
}

package() {
  local directory python=$2 helm version arch archs=() foreign=real each wanted=()
  directory=$(realpath "$1") helm=$(realpath "$3")
  version=$(sed -n 's/^version = "\(.*\)"$/\1/p' Cargo.toml | head -n 1)
  case $(uname -m) in x86_64) arch=amd64 ;; *) arch=arm64 ;; esac
  shift 3
  [ "$#" -gt 0 ] || { set -- s390x && foreign=borrowed; }
  archs=("$arch")
  for each in "$@"; do [ "$each" = "$arch" ] || archs+=("$each"); done
  for each in "${archs[@]}"; do wanted+=(--arch "$each"); done
  openssl genpkey -algorithm ED25519 -out "$work/ed25519.key"
  openssl pkey -in "$work/ed25519.key" -pubout -out "$work/ed25519.pub"
  openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$work/ecdsa.key" 2>/dev/null
  openssl pkey -in "$work/ecdsa.key" -pubout -out "$work/ecdsa.pub"
  openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out "$work/rsa.key" 2>/dev/null
  openssl pkey -in "$work/rsa.key" -pubout -out "$work/rsa.pub"

  say "wrong versions, keys, directories and trees are refused"
  refused "is $version, not 9.9.9" deploy/release.sh 9.9.9
  refused "usage:" deploy/release.sh
  refused "usage:" deploy/release.sh "$version" --flavour all
  refused "usage:" deploy/release.sh "$version" --arch ppc64el
  mkdir "$work/occupied" && touch "$work/occupied/file"
  refused "not an earlier release" deploy/release.sh "$version" --output "$work/occupied"
  clone "$work/a clone elsewhere"
  echo "# a change" >>"$work/a clone elsewhere/Cargo.toml"
  refused "the working tree has changes" "$work/a clone elsewhere/deploy/release.sh" "$version"
  clone "$work/a clone elsewhere"

  programs "$directory"
  refused "neither an Ed25519 nor" deploy/release.sh "$version" --programs "$work/programs" \
    --flavour default --arch "$arch" --key "$work/rsa.key" --output "$work/refused"

  say "two runs, here and elsewhere"
  deploy/release.sh "$version" --programs "$work/programs" "${wanted[@]}" --output "$work/first" \
    --key "$work/ed25519.key"
  elsewhere "$work/a clone elsewhere/deploy/release.sh" "$version" --programs "$work/programs" "${wanted[@]}" \
    --output "$work/second" --key "$work/ed25519.key" >/dev/null
  diff -r "$work/first" "$work/second" || fail "two runs have made different bytes"

  say "one command verifies it"
  verified_by_command "$work/first"
  say "checksums and signature, by hand"
  verified "$work/first" "$work/ed25519.pub" verify_ed25519
  # In the place of an earlier release, with fewer architectures and a key of the other kind.
  deploy/release.sh "$version" --programs "$work/programs" --flavour default --arch "$arch" \
    --output "$work/second" --key "$work/ecdsa.key" >/dev/null
  for each in "${archs[@]:1}"; do
    [ ! -e "$work/second/$NAME-$version-linux-$each.tar.gz" ] || fail "--arch has not left out $each"
  done
  [ ! -e "$work/second/$NAME-kafka-$version-linux-$arch.tar.gz" ] || fail "a file of the earlier release"
  verified "$work/second" "$work/ecdsa.pub" verify_ecdsa
  verify "$work/ecdsa.pub" "$work/second"
  unverified "the signature of SHA256SUMS is not of" "$work/ed25519.pub" "$work/second"

  say "the files"
  "$python" tests/peers/sbom.py "$work/first"/*.cdx.json
  python3 deploy/test/release.py "$work/first" "$version" "$work/programs" "$helm" "${archs[@]}"

  say "a registry has what was published"
  published "$work/first" "$work/ed25519.pub" "$helm"
  say "the release of a tag"
  of_tag

  say "the released image"
  deploy/test/image.sh "$work/first/$NAME-$version.oci.tar"
  say "the packages of a release are the same in two runs, verify, and work"
}

rebuild() {
  local flavour=$1 directory place features=$1 started
  directory=$(realpath "$2")
  [ "$flavour" != default ] || features=""
  # Kept, so that a later run compiles the crates of others only if they have changed.
  place=$(realpath -m "${CARGO_TARGET_DIR:-target}")/rebuild
  mkdir -p "$place"
  clone "$place/sources"
  started=$SECONDS
  elsewhere "$place/sources/deploy/static-binary.sh" "$features" "$place/$flavour"
  for file in $NAME $NAME.debug; do
    cmp "$directory/$file" "$place/$flavour/static/$file" || fail "$file: other bytes elsewhere"
  done
  say "$flavour: the same program in another directory, in $((SECONDS - started)) s"
}

cd "$(dirname "$(realpath "$0")")/../.."
work=$(mktemp -d)
registry="" server=""
end() {
  local each
  for each in $registry $server; do kill "$each"; done
  rm -rf "$work"
}
trap end EXIT
case $#:${1:-} in
[4-9]:package) package "${@:2}" ;;
3:rebuild) rebuild "$2" "$3" ;;
*) fail "usage: deploy/test/release.sh package DIRECTORY PYTHON HELM [ARCH...] | rebuild FLAVOUR DIRECTORY" ;;
esac
