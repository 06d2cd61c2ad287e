#!/usr/bin/env bash
# First inputs out of tests/corpus (the signal's byte, then the file) and config/ (the form's byte, then the file).
set -euo pipefail
cd "$(dirname "$0")"
mkdir -p corpus/{wire_scan,json,recovery,configuration,framing}
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
for file in ../config/*.yaml ../config/*.toml; do
  form='\000'
  [[ $file == *.toml ]] && form='\001'
  { printf "$form"; cat "$file"; } >"corpus/configuration/${file##*/}"
done
# Route and signal, type, encoding, cuts, flags, no header of its own.
for file in ../tests/corpus/*/valid/*.pb ../tests/corpus/*/valid/*.json ../tests/corpus/*/valid/*.gz; do
  case $file in
    */traces/*) signal=0 ;;
    */metrics/*) signal=2 ;;
    *) signal=4 ;;
  esac
  kind=0 encoding=0
  [[ $file == *.json* ]] && kind=1
  [[ $file == *.gz ]] && encoding=1
  name=${file#../tests/corpus/}
  { printf "\\00$signal\\00$kind\\00$encoding\\003\\000\\000"; cat "$file"; } >"corpus/framing/http-${name//\//-}"
  [[ $kind == 1 ]] && continue
  { printf "\\00$((signal + 1))\\002\\00$encoding\\003\\00$((1 + 2 * encoding))\\000"; cat "$file"; } >"corpus/framing/grpc-${name//\//-}"
done
