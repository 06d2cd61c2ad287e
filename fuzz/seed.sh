#!/usr/bin/env bash
# First inputs for both targets out of tests/corpus: the signal's byte, then the file.
set -euo pipefail
cd "$(dirname "$0")"
mkdir -p corpus/wire_scan corpus/json
for file in ../tests/corpus/*/*/*.pb ../tests/corpus/*/*/*.json; do
  case $file in
    */traces/*) signal='\000' ;;
    */metrics/*) signal='\001' ;;
    *) signal='\002' ;;
  esac
  target=wire_scan
  [[ $file == *.json ]] && target=json
  name=${file#../tests/corpus/}
  { printf "$signal"; cat "$file"; } >"corpus/$target/${name//\//-}"
done
