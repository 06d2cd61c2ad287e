#!/usr/bin/env bash
# A container of 128 MiB and a fifth of a processor, 50 requests at once with a span of 11 MB each: nobody is killed,
# and every answer is a success or a retryable refusal. Needs root and a writable cgroup; SKIPPED without.
set -uo pipefail
cd "$(dirname "$0")/.."
cargo build -q --bin forebay || exit 1
forebay=$(realpath "${CARGO_TARGET_DIR:-target}/debug/forebay")
name=forebay-test-$$
memory_bytes=$((128 << 20))
if mkdir "/sys/fs/cgroup/memory/$name" 2>/dev/null && mkdir "/sys/fs/cgroup/cpu/$name" 2>/dev/null; then
  groups=("/sys/fs/cgroup/memory/$name" "/sys/fs/cgroup/cpu/$name")
  echo $memory_bytes >"${groups[0]}/memory.limit_in_bytes" &&
    echo 100000 >"${groups[1]}/cpu.cfs_period_us" && echo 20000 >"${groups[1]}/cpu.cfs_quota_us" || exit 1
elif mkdir "/sys/fs/cgroup/$name" 2>/dev/null && echo $memory_bytes >"/sys/fs/cgroup/$name/memory.max" 2>/dev/null; then
  groups=("/sys/fs/cgroup/$name")
  echo "20000 100000" >"${groups[0]}/cpu.max" || exit 1
else
  rmdir "/sys/fs/cgroup/$name" "/sys/fs/cgroup/memory/$name" 2>/dev/null
  echo "cgroup: SKIPPED, no writable cgroup here"
  exit 0
fi
dir=$(mktemp -d)
pid=
finish() {
  if [[ -n $pid ]]; then kill -9 "$pid" 2>/dev/null; wait "$pid" 2>/dev/null; fi
  rmdir "${groups[@]}" 2>/dev/null
  rm -rf "$dir"
}
trap finish EXIT

read -r http_port health_port < <(tests/free_ports.py 2)
cat >"$dir/forebay.yaml" <<YAML
receivers:
  otlp: {protocols: {http: {endpoint: 127.0.0.1:$http_port}}}
exporters:
  file: {path: out.jsonl}
extensions:
  health_check: {endpoint: 127.0.0.1:$health_port}
service:
  extensions: [health_check]
  telemetry: {metrics: {level: none}}
  pipelines:
    traces: {receivers: [otlp], exporters: [file]}
YAML
(
  for group in "${groups[@]}"; do echo "$BASHPID" >"$group/cgroup.procs"; done
  exec "$forebay" run --config "$dir/forebay.yaml" --data-dir "$dir/data" >"$dir/log" 2>&1
) &
pid=$!

HTTP_PORT=$http_port HEALTH_PORT=$health_port python3 - <<'PY'
import http.client, os, sys, threading, time

def varint(n):
    out = b""
    while n >= 128:
        out += bytes([n & 127 | 128])
        n >>= 7
    return out + bytes([n])

def field(number, body):
    return varint(number << 3 | 2) + varint(len(body)) + body

prompt = field(1, b"prompt") + field(2, field(1, b"x" * 11_000_000))
span = field(1, b"\1" * 16) + field(2, b"\2" * 8) + field(5, b"big") + field(9, prompt)
body = field(1, field(2, field(2, span)))

def ask(port, method, path, body=None, timeout=120):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    connection.request(method, path, body, {"content-type": "application/x-protobuf"} if body else {})
    response = connection.getresponse()
    response.read()
    return response.status, response.getheader("retry-after")

for _ in range(300):
    try:
        if ask(int(os.environ["HEALTH_PORT"]), "GET", "/readyz", timeout=5)[0] == 200:
            break
    except OSError:
        pass
    time.sleep(0.2)
else:
    sys.exit("not ready within a minute")

answers = []

def send():
    try:
        answers.append(ask(int(os.environ["HTTP_PORT"]), "POST", "/v1/traces", body))
    except OSError as error:
        answers.append(("no answer", str(error)))

threads = [threading.Thread(target=send) for _ in range(50)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
accepted = sum(status == 200 for status, _ in answers)
refused = sum(status == 503 and after is not None for status, after in answers)
print(f"cgroup: {accepted} accepted, {refused} refused with Retry-After, {50 - accepted - refused} otherwise")
if accepted == 0 or accepted + refused != 50:
    sys.exit(f"unexpected answers: {answers}")
PY
verdict=$?
if ! kill -0 "$pid" 2>/dev/null || grep -qE '^oom_kill [1-9]' "${groups[0]}"/memory.oom_control "${groups[0]}"/memory.events 2>/dev/null; then
  echo "cgroup: the process was killed"
  tail -5 "$dir/log"
  verdict=1
fi
exit $verdict
