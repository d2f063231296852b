#!/bin/sh
# Writes into deploy/published whether a release exists, and shows on each page the way that works.
#
#   deploy/published.sh none        nothing is published: a reader builds from a clone
#   deploy/published.sh 0.2.0       this version, that of Cargo.toml, is published
#
# The commit of a release's tag has its version, and main gets that commit from the workflow of the
# release when all is published (CONTRIBUTING.md, "Make a release"). A page has both ways, one of
# them inside a comment, with or without an indent:
#
#   <!-- If unpublished -->         what is between these two lines is shown
#   <!-- End if -->
#   <!-- If published, hidden       what is between these two lines is not
#   End if -->
set -eu
cd "$(dirname "$0")/.."
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' Cargo.toml | head -n 1)
case ${1:-} in
none) shown=unpublished hidden=published ;;
"$version") shown=published hidden=unpublished ;;
*) echo "usage: deploy/published.sh none|$version" >&2; exit 2 ;;
esac
printf '%s\n' "$1" >deploy/published
find README.md docs -name '*.md' -exec grep -l '^ *<!-- If ' {} + | while read -r page; do
  sed -i -e "/^ *<!-- If $shown, hidden\$/,/^ *End if -->\$/{ s/, hidden\$/ -->/; s/^\( *\)End if/\1<!-- End if/; }" \
    -e "/^ *<!-- If $hidden -->\$/,/^ *<!-- End if -->\$/{ s/\(<!-- If .*\) -->\$/\1, hidden/; s/<!-- End if/End if/; }" "$page"
done
