#!/usr/bin/env bash
# Builds the book of docs/ into target/book. Installs mdBook if it is missing. Fails if a page of
# docs/SUMMARY.md is missing.
#
# A book has only the pages, and a folder shows its index.md. So in a copy of docs/ below target/,
# links that leave docs/ become links to GitHub, README.md becomes index.md, and the page of the
# commands gets the help of each, if cargo has built the program.
set -euo pipefail
cd "$(dirname "$0")/.."

repository=https://github.com/kube-audit-forwarder/kube-audit-forwarder/blob/main

. tests/tools.sh
install_tools

target=${CARGO_TARGET_DIR:-target}
copy=$target/book-source
rm -rf "$copy" "$target/book"
mkdir -p "$copy"
cp -r docs "$copy/docs"
sed '/^edit-url-template/d' book.toml >"$copy/book.toml"
find "$copy/docs" -maxdepth 1 -name '*.md' -exec sed -i "s#](\.\./#]($repository/#g" {} +
find "$copy/docs" -mindepth 2 -name '*.md' -exec sed -i "s#](\.\./\.\./#]($repository/#g" {} +
commands=$copy/docs/reference/commands.md
program=$target/debug/kube-audit-forwarder
if [ -x "$program" ]; then
  mapfile -t names < <(sed -n "s/^| \`\([^\`]*\)\` | .*/\1/p" "$commands")
  for name in "${names[@]}"; do
    read -ra words <<<"$name"
    help=$(KUBE_AUDIT_FORWARDER_CONFIG="" "$program" "${words[@]}" --help)
    printf '\n## %s\n\n~~~text\n%s\n~~~\n' "$name" "$help" >>"$commands"
  done
else
  echo "docs/build.sh: there is no $program, so the book has no help of the commands" >&2
fi
for page in "$copy"/docs/*/README.md; do mv "$page" "${page%README.md}index.md"; done
find "$copy/docs" -name '*.md' -exec sed -i "s#](\([a-z./-]*\)README\.md#](\1index.md#g" {} +
mdbook build "$copy" --dest-dir "$(realpath "$target")/book"
