#!/usr/bin/env bash
# Real OpenTelemetry clients through the real binary into a sink that decodes with the official protocol package:
# what goes in comes out, item for item, and byte for byte: a tap before Forebay notes what was sent. Then with the
# OpenTelemetry Collector (official modules, built here) as a second hop: behind Forebay, and in front of it.
#
# FOREBAY=PATH      the binary; built by cargo without
# INTEROP_DIRECT=1  sends to the sink without Forebay: checks the clients and the sink themselves
#
# A client or collector that cannot be installed is SKIPPED and named; what was skipped never counts as passed.
set -euo pipefail
cd "$(dirname "$0")/../.."
here=$PWD/tests/interop
work=${INTEROP_WORK:-$PWD/target/interop}
count=${INTEROP_COUNT:-50}
wait_seconds=${INTEROP_WAIT_SECONDS:-30}
mkdir -p "$work"
run_dir=$(mktemp -d "$work/run.XXXXXX")
pids=()
passed=0 failed=() skipped=()

finish() {
  for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
  for pid in "${pids[@]}"; do wait "$pid" 2>/dev/null || true; done
}
trap finish EXIT

# Succeeds when the TCP port answers, within 20 s.
wait_port() {
  for _ in $(seq 200); do
    if (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; then return 0; fi
    sleep 0.1
  done
  echo "nothing listens on port $1; see $run_dir" >&2
  return 1
}

install_python() {
  [[ -x $work/venv/bin/python ]] || python3 -m venv "$work/venv"
  "$work/venv/bin/pip" install -q -r "$here/python/requirements.txt"
}

install_node() {
  command -v npm >/dev/null || return 1
  mkdir -p "$work/node"
  cp "$here/node/package.json" "$here/node/package-lock.json" "$here/node/client.js" "$work/node/"
  (cd "$work/node" && npm ci --silent --no-audit --no-fund)
}

install_go() {
  command -v go >/dev/null || return 1
  (cd "$here/go" && go build -o "$work/go-client" .)
}

# Only for the background: it leaves this directory and becomes the compiler.
build_collector() {
  command -v go >/dev/null || return 1
  cd "$here/collector" && exec go build -o "$work/collector" .
}

# The sink is Python's: without its packages there is no interop at all.
if ! install_python >"$run_dir/pip.log" 2>&1; then
  echo "interop: SKIPPED, the Python packages cannot be installed ($run_dir/pip.log)"
  exit 0
fi
# The longest build runs beside the first checks.
build_collector >"$run_dir/collector-build.log" 2>&1 &
collector_build=$!
pids+=("$collector_build")
node=1 go=1
install_node >"$run_dir/npm.log" 2>&1 || { node=0 && skipped+=("node: cannot be installed ($run_dir/npm.log)"); }
install_go >"$run_dir/go.log" 2>&1 || { go=0 && skipped+=("go: cannot be built ($run_dir/go.log)"); }

read -r sink_http sink_grpc http grpc tap_http tap_grpc collector_http collector_grpc health metrics \
  < <("$here/../free_ports.py" 10)

"$work/venv/bin/python" "$here/python/sink.py" "$sink_http" "$sink_grpc" "$run_dir/items.jsonl" \
  >"$run_dir/sink.log" 2>&1 &
pids+=($!)
wait_port "$sink_http"
wait_port "$sink_grpc"
"$work/venv/bin/python" "$here/python/tap.py" "$run_dir/tap.jsonl" \
  http "$tap_http" "$http" grpc "$tap_grpc" "$grpc" >"$run_dir/tap.log" 2>&1 &
pids+=($!)
wait_port "$tap_http"
wait_port "$tap_grpc"

start_forebay() {
  local exporter=$1 endpoint=$2 compression=$3
  cat >"$run_dir/forebay-$exporter-$compression.yaml" <<CONFIG
receivers:
  otlp:
    protocols:
      http: {endpoint: "127.0.0.1:$http"}
      grpc: {endpoint: "127.0.0.1:$grpc"}
exporters:
  $exporter: {endpoint: "$endpoint", compression: $compression}
extensions:
  health_check: {endpoint: "127.0.0.1:$health"}
service:
  extensions: [health_check]
  pipelines:
    traces: {receivers: [otlp], exporters: [$exporter]}
    metrics: {receivers: [otlp], exporters: [$exporter]}
    logs: {receivers: [otlp], exporters: [$exporter]}
  telemetry:
    metrics: {address: "127.0.0.1:$metrics"}
CONFIG
  "$forebay" run --config "$run_dir/forebay-$exporter-$compression.yaml" \
    --data-dir "$run_dir/data-$exporter-$compression" >"$run_dir/forebay-$exporter-$compression.log" 2>&1 &
  forebay_pid=$!
  pids+=("$forebay_pid")
  wait_port "$http"
  wait_port "$grpc"
}

stop_forebay() {
  kill -TERM "$forebay_pid"
  if ! wait "$forebay_pid"; then failed+=("$1: forebay did not stop with 0"); fi
}

# start_collector NAME EXPORTER ENDPOINT
start_collector() {
  cat >"$run_dir/$1.yaml" <<CONFIG
receivers:
  otlp:
    protocols:
      http: {endpoint: "127.0.0.1:$collector_http"}
      grpc: {endpoint: "127.0.0.1:$collector_grpc"}
exporters:
  $2: {endpoint: "$3", tls: {insecure: true}}
service:
  pipelines:
    traces: {receivers: [otlp], exporters: [$2]}
    metrics: {receivers: [otlp], exporters: [$2]}
    logs: {receivers: [otlp], exporters: [$2]}
CONFIG
  "$work/collector" --config "$run_dir/$1.yaml" >"$run_dir/$1.log" 2>&1 &
  collector_pid=$!
  pids+=("$collector_pid")
  wait_port "$collector_http"
  wait_port "$collector_grpc"
}

stop_collector() {
  kill -TERM "$collector_pid"
  wait "$collector_pid" || true
}

# check NAME COMMAND…: runs a client, then compares; with the tap's bytes when `tap` is set.
tap=
check() {
  local name=$1 run
  shift
  run="$name-$RANDOM$RANDOM"
  echo "$name"
  if timeout 60 "$@" "$count" "$run" >"$run_dir/$run.json" 2>"$run_dir/$run.log" &&
    "$work/venv/bin/python" "$here/python/compare.py" "$run_dir/$run.json" "$run_dir/items.jsonl" "$run" \
      "$wait_seconds" ${tap:+"$tap"}; then
    passed=$((passed + 1))
  else
    echo "  FAILED; see $run_dir/$run.log"
    tail -n 3 "$run_dir/$run.log" || true
    failed+=("$name")
  fi
}

# all_clients HOP HTTP_PORT GRPC_PORT COMPRESSION…
all_clients() {
  local hop=$1 http_port=$2 grpc_port=$3 compression
  shift 3
  for compression in "$@"; do
    check "$hop-python-http-$compression" "$work/venv/bin/python" "$here/python/client.py" \
      http "http://127.0.0.1:$http_port" $compression
    check "$hop-python-grpc-$compression" "$work/venv/bin/python" "$here/python/client.py" \
      grpc "http://127.0.0.1:$grpc_port" $compression
    if ((node)); then
      check "$hop-node-proto-$compression" node "$work/node/client.js" proto "http://127.0.0.1:$http_port" $compression
      check "$hop-node-json-$compression" node "$work/node/client.js" json "http://127.0.0.1:$http_port" $compression
      check "$hop-node-grpc-$compression" node "$work/node/client.js" grpc "http://127.0.0.1:$grpc_port" $compression
    fi
    if ((go)); then
      check "$hop-go-http-$compression" "$work/go-client" http "http://127.0.0.1:$http_port" $compression
      check "$hop-go-grpc-$compression" "$work/go-client" grpc "http://127.0.0.1:$grpc_port" $compression
    fi
  done
}

if [[ -n ${INTEROP_DIRECT:-} ]]; then
  touch "$run_dir/items.jsonl"
  all_clients direct "$sink_http" "$sink_grpc" none gzip
else
  forebay=${FOREBAY:-}
  if [[ -z $forebay ]]; then
    cargo build --bin forebay
    forebay=${CARGO_TARGET_DIR:-target}/debug/forebay
  fi
  for hop in "otlp_http http://127.0.0.1:$sink_http none" "otlp_http http://127.0.0.1:$sink_http gzip" \
    "otlp_grpc http://127.0.0.1:$sink_grpc gzip"; do
    read -r exporter endpoint compression <<<"$hop"
    start_forebay "$exporter" "$endpoint" "$compression"
    tap=$run_dir/tap.jsonl
    all_clients "$exporter-$compression" "$tap_http" "$tap_grpc" none gzip
    stop_forebay "$exporter-$compression"
  done

  if wait "$collector_build"; then
    # The collector writes messages of its own, so behind it only items can be compared.
    tap=
    start_collector collector-behind otlp_http "http://127.0.0.1:$sink_http"
    start_forebay otlp_grpc "http://127.0.0.1:$collector_grpc" none
    all_clients collector-behind "$tap_http" "$tap_grpc" none
    stop_forebay collector-behind
    stop_collector
    tap=$run_dir/tap.jsonl
    start_forebay otlp_http "http://127.0.0.1:$sink_http" none
    for hop in "otlp_http http://127.0.0.1:$tap_http" "otlp_grpc 127.0.0.1:$tap_grpc"; do
      read -r exporter endpoint <<<"$hop"
      start_collector "collector-in-front-$exporter" "$exporter" "$endpoint"
      all_clients "collector-in-front-$exporter" "$collector_http" "$collector_grpc" none
      stop_collector
    done
    stop_forebay collector-in-front
  else
    skipped+=("collector: cannot be built ($run_dir/collector-build.log)")
  fi
fi

# The comparison itself can fail: the same run, with one byte of what was sent changed.
if [[ -z ${INTEROP_DIRECT:-} ]]; then
  last=$(ls -t "$run_dir"/otlp_*.json | head -n 1)
  "$work/venv/bin/python" "$here/python/tamper.py" "$run_dir/tap.jsonl" "$run_dir/tampered.jsonl" \
    "$(basename "$last" .json)"
  if "$work/venv/bin/python" "$here/python/compare.py" "$last" "$run_dir/items.jsonl" "$(basename "$last" .json)" 1 \
    "$run_dir/tampered.jsonl" >"$run_dir/tampered.log"; then
    failed+=("a changed byte was not noticed")
  elif grep -q "did not arrive with the same bytes" "$run_dir/tampered.log"; then
    passed=$((passed + 1))
  else
    failed+=("a changed byte was noticed as something else ($run_dir/tampered.log)")
  fi
fi

for reason in "${skipped[@]}"; do echo "interop: SKIPPED $reason"; done
if ((${#failed[@]})); then
  printf 'interop: FAILED %s\n' "${failed[@]}"
  exit 1
fi
echo "interop: $passed checks passed, ${#skipped[@]} clients or collectors skipped"
