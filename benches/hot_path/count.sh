#!/bin/sh
# Prints how many instructions of an emulated CPU a phase of benches/hot_path takes for each byte.
# Fails if they are more than MOST.
#
#   benches/hot_path/count.sh QEMU PROGRAM PHASE MOST
#   benches/hot_path/count.sh qemu-aarch64 target/static/hot-path "decode batches with NEON" 6.4
#
# Two passes are counted and then one, and the difference is the cost of one. A pass of the batches
# takes about a minute.
set -eu
count() {
  "$1" -one-insn-per-tb -d exec,nochain "$2" "$3" "$4" 2>&1 >/dev/null | grep -c '^Trace'
}
two=$(count "$1" "$2" "$3" 2)
one=$(count "$1" "$2" "$3" 1)
bytes=$("$1" "$2" "$3" 0 | cut -d " " -f 1)
awk -v phase="$3" -v instructions="$((two - one))" -v bytes="$bytes" -v most="$4" 'BEGIN {
  printf "%s: %.2f instructions a byte, at most %s\n", phase, instructions / bytes, most
  exit instructions / bytes > most
}'
