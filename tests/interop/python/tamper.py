"""Copies a tap's file with one bit of one entry of RUN changed, to show that the comparison notices.

Usage: tamper.py TAP_FILE COPY RUN
"""

import base64
import json
import sys


def main():
    source, copy, run = sys.argv[1:4]
    changed = False
    with open(source, encoding="utf-8") as rows, open(copy, "w", encoding="utf-8") as out:
        for line in rows:
            row = json.loads(line)
            if not changed and row["run"] == run and row["kind"] == "entry":
                entry = bytearray(base64.b64decode(row["bytes"]))
                entry[-1] ^= 1
                row["bytes"] = base64.b64encode(entry).decode()
                changed = True
            out.write(json.dumps(row) + "\n")
    if not changed:
        sys.exit("nothing to change")


if __name__ == "__main__":
    main()
