#!/bin/sh
# Brings the manifests of deploy/base and deploy/overlays into the Helm chart, whose templates read
# them: deploy/chart/manifests holds byte-for-byte copies, because a chart may contain no files from
# outside its own directory. Run this after each edit of a manifest; deploy/test/chart.py fails
# until then.
#
#   deploy/chart.sh [DIRECTORY]    the default is deploy/chart/manifests
set -eu
cd "$(dirname "$0")"
to=${1:-chart/manifests}
rm -rf "$to"
mkdir -p "$to"
for file in namespace serviceaccount deployment service networkpolicy poddisruptionbudget; do
  cp "base/$file.yaml" "$to/"
done
cp base/relay.toml overlays/durable/statefulset.yaml "$to/"
for file in podmonitor.yaml prometheusrule.yaml dashboard.json; do
  cp "overlays/monitoring/$file" "$to/"
done
