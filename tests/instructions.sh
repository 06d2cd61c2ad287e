#!/usr/bin/env bash
# Instructions that one span or record costs, counted by valgrind, against limits. Times differ between machines and
# hours; instructions hardly do, so a limit can stand in a test. SKIPPED without valgrind.
#
# The limits are about a quarter above what was measured with Rust 1.95 (docs/performance.md). To change one: run this
# three times, put the greatest figure and a quarter here and the figure into that document; the commit says why.
set -euo pipefail
cd "$(dirname "$0")/.."
scan_span_max=1950
json_span_max=53500
inflate_span_max=11600
append_record_max=3900
# A record of 64 KiB against one of 1 KiB, in percent: its bytes are summed once; twice would show.
append_percent_max=1650

if ! command -v valgrind >/dev/null; then
  echo "instructions: SKIPPED, valgrind is not installed"
  exit 0
fi
# Always built here: a binary that was left behind by a build that failed says nothing about the code.
cargo build -q --release --bin forebay-bench
bench=${CARGO_TARGET_DIR:-target}/release/forebay-bench
# In memory where that can be: waiting for a disk costs time and no instructions.
dir=$(mktemp -d -p /dev/shm 2>/dev/null || mktemp -d)
trap 'rm -rf "$dir"' EXIT

# Instructions of `forebay-bench repeat STEP TIMES`; of an append only those of the writer's thread, because opening
# and waiting cost now more and now less.
count() {
  local tool=(--tool=cachegrind --cache-sim=no --cachegrind-out-file=/dev/null) data=()
  if [[ $1 == append* ]]; then
    tool=(--tool=callgrind '--toggle-collect=forebay::storage::log::writer::run*' --callgrind-out-file=/dev/null)
    data=(--data-dir "$dir/data")
  fi
  valgrind "${tool[@]}" "$bench" repeat "$1" "$2" "${data[@]}" >"$dir/log" 2>&1 || { tail -n 5 "$dir/log" >&2; return 1; }
  rm -rf "$dir/data"
  sed -n 's/.*I *refs: *//p' "$dir/log" | tr -d ,
}

# each STEP FEW MANY UNITS: instructions a unit, without what starting costs.
each() {
  local few many
  few=$(count "$1" "$2")
  many=$(count "$1" "$3")
  echo $(((many - few) / (($3 - $2) * $4)))
}

failed=0
# holds WHAT FIGURE LIMIT
holds() {
  if (($2 > 0 && $2 <= $3)); then
    echo "instructions: $1: $2, at most $3"
  else
    echo "instructions: FAILED $1: $2, at most $3 are allowed"
    failed=1
  fi
}

holds "scan, a span of 551 bytes" "$(each scan 2 12 1000)" $scan_span_max
holds "JSON, a span of 551 bytes" "$(each json 1 5 1000)" $json_span_max
holds "inflate gzip, a span of 551 bytes" "$(each inflate 2 12 1000)" $inflate_span_max
small=$(($(count append1k 1000) / 1000))
large=$(($(count append64k 1000) / 1000))
holds "append, a record of 1 KiB" "$small" $append_record_max
holds "append, 64 KiB against 1 KiB, in percent" $((large * 100 / (small > 0 ? small : 1))) $append_percent_max
# The check can fail.
if (("$(each scan 1 2 1000)" <= scan_span_max / 10)); then
  echo "instructions: FAILED, the counting counts nothing"
  failed=1
fi
exit $failed
