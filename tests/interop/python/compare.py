"""Compares what a client says it sent with what the sink took, item for item; waits a bounded time for the rest.

With TAP, the file of tap.py, also the bytes: every resource entry that left the client arrived as it was, and no other.
What left as JSON is compared by its meaning.

Usage: compare.py SENT.json SINK_FILE RUN SECONDS [TAP_FILE]
"""

import base64
import json
import sys
import time
from collections import Counter

KINDS = ("spans", "points", "logs")


def rows(path, run):
    with open(path, encoding="utf-8") as file:
        for line in file:
            if not line.endswith("\n"):
                break
            row = json.loads(line)
            if row["run"] == run:
                yield row


def items(path, run):
    found = {kind: Counter() for kind in KINDS}
    for row in rows(path, run):
        if row["kind"] in found:
            found[row["kind"]][row["item"]] += 1
    return found


def wait_for_items(sent, path, run, seconds):
    deadline = time.monotonic() + seconds
    while True:
        found = items(path, run)
        if found == sent:
            return
        missing = {kind: list((sent[kind] - found[kind]).elements()) for kind in sent}
        extra = {kind: list((found[kind] - sent[kind]).elements()) for kind in sent}
        if any(extra.values()) or time.monotonic() > deadline:
            for kind in sent:
                print(f"  {kind}: missing {missing[kind][:3]} ({len(missing[kind])}), "
                      f"extra {extra[kind][:3]} ({len(extra[kind])})")
            sys.exit(1)
        time.sleep(0.1)


def compare_bytes(tap, sink, run):
    """Returns what was compared (bytes or meaning), how many entries and how many bytes."""
    left = [row for row in rows(tap, run) if row["kind"] == "entry"]
    came = [row for row in rows(sink, run) if row["kind"] == "entry"]
    if {row["signal"] for row in left} != {"traces", "metrics", "logs"}:
        sys.exit("  the tap has not seen all three signals")
    by = "bytes" if all(row["bytes"] is not None for row in left) else "meaning"
    sent = Counter((row["signal"], row[by]) for row in left)
    arrived = Counter((row["signal"], row[by]) for row in came)
    if sent != arrived:
        for (signal, value), _ in list((sent - arrived).items())[:2]:
            print(f"  {signal}: an entry did not arrive with the same {by}: {value}")
        for (signal, value), _ in list((arrived - sent).items())[:2]:
            print(f"  {signal}: an entry arrived with other {by}: {value}")
        sys.exit(1)
    return by, len(left), sum(len(base64.b64decode(row[by])) for row in left)


def main():
    sent_path, sink, run, seconds, *tap = sys.argv[1:]
    with open(sent_path, encoding="utf-8") as file:
        sent = {kind: Counter(entries) for kind, entries in json.load(file).items()}
    if not all(sent.get(kind) for kind in KINDS):
        sys.exit("the client sent nothing of some signal")
    wait_for_items(sent, sink, run, float(seconds))
    said = ", ".join(f"{sum(entries.values())} {kind}" for kind, entries in sent.items()) + " equal"
    if tap:
        by, count, length = compare_bytes(tap[0], sink, run)
        said += f"; {count} resource entries ({length} bytes) of equal {by}"
    print("  " + said)


if __name__ == "__main__":
    main()
