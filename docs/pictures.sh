#!/usr/bin/env bash
# Takes the eight pictures of the status page again, docs/status-page-*.png: tests bring a real
# relay into each state and write what the browser shows. Takes a quarter of an hour, and needs what
# `./test setup` installs.
set -euo pipefail
cd "$(dirname "$0")/.."

export KUBE_AUDIT_FORWARDER_SCREENSHOTS=$PWD/docs
tests='healthy_relay|turns_down|is_down_says_why|paused_output|full_queue|losses_have|20_outputs'
cargo nextest run --workspace --locked --profile all --run-ignored all \
  -E "test(/^operate::peers::page::.*($tests)/)"
