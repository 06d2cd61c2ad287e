#!/usr/bin/env bash
# Runs the real binary under the settings of the manifests: user 65532, no capabilities, no new privileges, the whole
# file system read-only but for the data directory. Then asks it for its health, sends it a trace, and stops it.
#
# Usage: deploy/test-sandbox.sh PATH_TO_FOREBAY
set -euo pipefail
forebay=$(realpath "$1")
here=$(realpath "$(dirname "$0")")

if ((EUID != 0)) || ! unshare --mount --net true 2>/dev/null; then
  echo "sandbox: SKIPPED, this user may not make namespaces"
  exit 0
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
cp "$forebay" "$work/forebay"
cp "$here/docker/forebay.yaml" "$work/forebay.yaml"
install -d -o 65532 -g 65532 -m 700 "$work/data"

# In namespaces of its own: ports clash with nobody, and the read-only mounts end with it.
unshare --mount --net --fork bash -euo pipefail -s "$work" <<'INSIDE'
work=$1
ip link set lo up
mount --make-rprivate /
mount --bind "$work" "$work"
mount --bind "$work/data" "$work/data"
mount -o remount,bind,ro "$work"
mount -o remount,bind,ro / 2>/dev/null || mount -o remount,ro,bind /
# An array, not a function: in the background a function would be one more process, and get the signals.
as_image=(setpriv --reuid 65532 --regid 65532 --clear-groups --bounding-set=-all --inh-caps=-all --no-new-privs)
if "${as_image[@]}" touch "$work/x" 2>/dev/null; then echo "sandbox: the root is not read-only" >&2; exit 1; fi

cd /
export FOREBAY_ENDPOINT=http://127.0.0.1:9
"${as_image[@]}" "$work/forebay" run --config "$work/forebay.yaml" --data-dir "$work/data" >"$work/data/log" 2>&1 &
pid=$!
ready=0
for _ in $(seq 100); do
  if "${as_image[@]}" "$work/forebay" healthcheck --endpoint http://127.0.0.1:13133/readyz 2>/dev/null; then ready=1; break; fi
  sleep 0.1
done
if ((!ready)); then cat "$work/data/log" >&2; echo "sandbox: not ready within 10 s" >&2; exit 1; fi
for expected in '^CapEff:\s*0*$' '^CapBnd:\s*0*$' '^Uid:\s*65532\s' '^NoNewPrivs:\s*1$'; do
  grep -qE "$expected" "/proc/$pid/status" || { echo "sandbox: the process is not as $expected says" >&2; exit 1; }
done

# A real request must be stored: the queue's segment then exists.
body='{"resourceSpans":[{"scopeSpans":[{"spans":[{"traceId":"0102030405060708090a0b0c0d0e0f10","spanId":"0102030405060708","name":"sandbox"}]}]}]}'
exec 3<>/dev/tcp/127.0.0.1/4318
printf 'POST /v1/traces HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s' "${#body}" "$body" >&3
read -r -t 10 answer <&3
exec 3<&-
[[ $answer == *" 200"* ]] || { echo "sandbox: a trace was answered with $answer" >&2; exit 1; }
compgen -G "$work/data/queues/*/*.seg" >/dev/null || { echo "sandbox: nothing was stored" >&2; exit 1; }

kill -TERM "$pid"
if ! wait "$pid"; then cat "$work/data/log" >&2; echo "sandbox: it did not stop with 0" >&2; exit 1; fi
echo "sandbox: runs as 65532, without capabilities, on a read-only root; stored a trace; stopped with 0"
INSIDE
