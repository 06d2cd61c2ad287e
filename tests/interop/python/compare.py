"""Compares what a client says it sent with what the sink took, item for item; waits a bounded time for the rest.

Usage: compare.py SENT.json SINK_FILE RUN SECONDS
"""

import json
import sys
import time
from collections import Counter


def arrived(path, run):
    found = {"spans": Counter(), "points": Counter(), "logs": Counter()}
    with open(path, encoding="utf-8") as file:
        for line in file:
            if not line.endswith("\n"):
                break
            row = json.loads(line)
            if row["run"] == run:
                found[row["kind"]][row["item"]] += 1
    return found


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        sent = {kind: Counter(items) for kind, items in json.load(file).items()}
    if not all(sent.get(kind) for kind in ("spans", "points", "logs")):
        sys.exit("the client sent nothing of some signal")
    deadline = time.monotonic() + float(sys.argv[4])
    while True:
        found = arrived(sys.argv[2], sys.argv[3])
        if found == sent:
            print("  " + ", ".join(f"{sum(items.values())} {kind}" for kind, items in sent.items()) + " equal")
            return
        missing = {kind: list((sent[kind] - found[kind]).elements()) for kind in sent}
        extra = {kind: list((found[kind] - sent[kind]).elements()) for kind in sent}
        if any(extra.values()) or time.monotonic() > deadline:
            for kind in sent:
                print(f"  {kind}: missing {missing[kind][:3]} ({len(missing[kind])}), "
                      f"extra {extra[kind][:3]} ({len(extra[kind])})")
            sys.exit(1)
        time.sleep(0.1)


if __name__ == "__main__":
    main()
