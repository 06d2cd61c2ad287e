#!/usr/bin/env bash
# Prometheus's own reader on the metrics page of the running binary, with every signal received, refused and sent on.
#
# FOREBAY=PATH  the binary; built by cargo without
#
# promtool comes from the PATH, else out of Debian's package, which is unpacked and not installed. SKIPPED without.
set -euo pipefail
cd "$(dirname "$0")/.."
tools=$PWD/target/tools
dir=$(mktemp -d)
pid=
finish() {
  if [[ -n $pid ]]; then
    kill "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
  fi
  rm -rf "$dir"
}
trap finish EXIT

find_promtool() {
  promtool=$(command -v promtool || true)
  [[ -n $promtool ]] && return 0
  promtool=$tools/usr/bin/promtool
  [[ -x $promtool ]] && return 0
  command -v dpkg-deb >/dev/null || return 1
  (cd "$dir" && { apt-get download -q prometheus || { apt-get update -q && apt-get download -q prometheus; }; }) || return 1
  mkdir -p "$tools"
  dpkg-deb -x "$dir"/prometheus_*.deb "$tools"
}

if ! find_promtool >"$dir/tools.log" 2>&1; then
  tail -n 2 "$dir/tools.log"
  echo "promtool: SKIPPED, it cannot be installed here"
  exit 0
fi
forebay=${FOREBAY:-}
if [[ -z $forebay ]]; then
  cargo build -q --bin forebay
  forebay=${CARGO_TARGET_DIR:-target}/debug/forebay
fi

read -r http grpc health metrics dead < <(tests/free_ports.py 5)
cat >"$dir/forebay.yaml" <<YAML
receivers:
  otlp: {protocols: {http: {endpoint: "127.0.0.1:$http"}, grpc: {endpoint: "127.0.0.1:$grpc"}}}
exporters:
  file: {path: "$dir/out.jsonl"}
  otlp_http/dead: {endpoint: "http://127.0.0.1:$dead"}
extensions:
  health_check: {endpoint: "127.0.0.1:$health"}
service:
  extensions: [health_check]
  telemetry: {metrics: {address: "127.0.0.1:$metrics"}}
  pipelines:
    traces: {receivers: [otlp], exporters: [file, otlp_http/dead]}
    metrics: {receivers: [otlp], exporters: [file]}
    logs: {receivers: [otlp], exporters: [file]}
YAML
"$forebay" run --config "$dir/forebay.yaml" --data-dir "$dir/data" >"$dir/log" 2>&1 &
pid=$!
for _ in $(seq 200); do
  curl -sf -o /dev/null "http://127.0.0.1:$health/readyz" && break
  kill -0 "$pid" 2>/dev/null || { cat "$dir/log"; exit 1; }
  sleep 0.1
done

post() {
  curl -s -o /dev/null -w '%{http_code}\n' "http://127.0.0.1:$http/v1/$1" -H 'Content-Type: application/json' -d "$2"
}
post traces '{"resourceSpans":[{"scopeSpans":[{"spans":[{"traceId":"5b8efff798038103d269b633813fc60c",
  "spanId":"eee19b7ec3c1b174","name":"hello","startTimeUnixNano":"1","endTimeUnixNano":"2"}]}]}]}' >>"$dir/codes"
post metrics '{"resourceMetrics":[{"scopeMetrics":[{"metrics":[{"name":"m","gauge":{"dataPoints":[{"asInt":"1"}]}}]}]}]}' \
  >>"$dir/codes"
post logs '{"resourceLogs":[{"scopeLogs":[{"logRecords":[{"body":{"stringValue":"hello"}}]}]}]}' >>"$dir/codes"
post traces 'not OTLP' >>"$dir/codes"
if [[ $(tr '\n' ' ' <"$dir/codes") != "200 200 200 400 " ]]; then
  echo "promtool: unexpected answers: $(tr '\n' ' ' <"$dir/codes")"
  exit 1
fi
for _ in $(seq 100); do
  curl -sf "http://127.0.0.1:$metrics/metrics" >"$dir/page"
  grep -q '^otelcol_exporter_sent_log_records{.*} 1$' "$dir/page" && break
  sleep 0.1
done
grep -q '^otelcol_exporter_sent_log_records{.*} 1$' "$dir/page" || { echo "promtool: nothing was sent on"; exit 1; }

# Exit code 3: it can be read, and the linter would have named something otherwise.
code=0
"$promtool" check metrics <"$dir/page" >"$dir/lint" 2>&1 || code=$?
if ((code != 0 && code != 3)); then
  cat "$dir/lint"
  echo "promtool: FAILED, Prometheus cannot read the page (exit code $code)"
  exit 1
fi
# The collector's plain names have no _total; ours are of one kind with them.
if grep -v 'counter metrics should have "_total" suffix' "$dir/lint"; then
  echo "promtool: FAILED, see above"
  exit 1
fi
# The checker can fail.
code=0
{ cat "$dir/page"; echo 'forebay_broken{label="open} 1'; } | "$promtool" check metrics >/dev/null 2>&1 || code=$?
if ((code != 1)); then
  echo "promtool: FAILED, a broken page passes"
  exit 1
fi
echo "promtool: $("$promtool" --version 2>&1 | head -n 1); $(grep -c '^# TYPE' "$dir/page") families, $(grep -vc '^#' "$dir/page") samples"
