#!/usr/bin/env python3
"""What a restart costs with a large backlog: the time to open it, and the memory while it drains.

    tests/backlog.py [--gb 10] [--binaries target/release] [--data-root DIR] [--memory-limit SIZE]

Fills a queue while the destination is away (in a data directory under --data-root, which must lie on a real disk and is
removed at the end), then measures a start after kill -9 and one after a clean stop, both with a warm page cache, then lets
the destination come back. Fails if anything was lost, if a start took a second, or if the drain took more than 128 MiB.
"""

import argparse
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

from free_ports import free_ports

OPEN_SECONDS_MAX = 1.0
DRAIN_MIB_MAX = 128
SPANS_PER_REQUEST = 1000
PATIENCE_SECONDS = 1800

parser = argparse.ArgumentParser()
parser.add_argument("--gb", type=float, default=10)
parser.add_argument("--binaries", default="target/release")
parser.add_argument("--data-root", default="target")
parser.add_argument("--span-bytes", type=int, default=551)
parser.add_argument("--memory-limit", default="", help="forebay.memory.limit, such as 64MiB; the default without")
arguments = parser.parse_args()

binaries = pathlib.Path(arguments.binaries).resolve()
root = pathlib.Path(tempfile.mkdtemp(prefix="backlog-", dir=arguments.data_root))
processes = []


http, health, metrics, sink_http, sink_grpc = free_ports(5)
memory = f"memory: {{limit: {arguments.memory_limit}}}, " if arguments.memory_limit else ""
config = root / "forebay.yaml"
config.write_text(f"""
receivers:
  otlp: {{protocols: {{http: {{endpoint: '127.0.0.1:{http}'}}}}}}
exporters:
  otlp_http: {{endpoint: 'http://127.0.0.1:{sink_http}', retry_on_failure: {{initial_interval: 50ms, max_interval: 200ms}}}}
extensions:
  health_check: {{endpoint: '127.0.0.1:{health}'}}
forebay: {{{memory}queue: {{max_size: {int(arguments.gb * 1.2e9 + 1e9)}}}}}
service:
  extensions: [health_check]
  telemetry: {{metrics: {{address: '127.0.0.1:{metrics}'}}}}
  pipelines:
    traces: {{receivers: [otlp], exporters: [otlp_http]}}
""")


def get(port, path):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=2) as answer:
            return answer.read().decode()
    except (OSError, urllib.error.URLError):
        return None


def sample(name):
    """The sum of a metric's series."""
    lines = (get(metrics, "/metrics") or "").splitlines()
    values = [line.rsplit(" ", 1)[1] for line in lines if re.match(rf"{name}(_total)?[{{ ]", line)]
    return sum(float(value) for value in values)


def start():
    """A ready forebay, and the seconds from exec to readiness."""
    began = time.monotonic()
    with open(root / "log", "ab") as log:
        words = [binaries / "forebay", "run", "--config", config, "--data-dir", root / "data"]
        process = subprocess.Popen(words, stdout=log, stderr=log)
    processes.append(process)
    while get(health, "/readyz") is None:
        if process.poll() is not None or time.monotonic() - began > PATIENCE_SECONDS:
            sys.exit((root / "log").read_text()[-4000:])
        time.sleep(0.002)
    return process, time.monotonic() - began


def peak_mib(process):
    status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status).group(1)) / 1024


def end(process, how):
    process.send_signal(how)
    process.wait()


def warm():
    """Puts the segments into the page cache, as after a restart of the process alone."""
    for path in (root / "data").rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                while file.read(1 << 20):
                    pass


def main():
    problems = []
    process, seconds = start()
    print(f"empty: ready after {seconds * 1000:.0f} ms")
    requests = int(arguments.gb * 1e9 / (arguments.span_bytes * SPANS_PER_REQUEST))
    words = [binaries / "forebay-bench", "load", "--endpoint", f"http://127.0.0.1:{http}", "--json"]
    words += ["--requests", str(requests), "--duration", f"{PATIENCE_SECONDS}s", "--span-bytes", str(arguments.span_bytes)]
    words += ["--spans-per-request", str(SPANS_PER_REQUEST)]
    load = json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE).stdout)
    acknowledged = load["acked_spans"]
    stored = sum(path.stat().st_size for path in (root / "data" / "queues").rglob("*.seg"))
    segments = len(list((root / "data" / "queues").rglob("*.seg")))
    print(f"backlog: {acknowledged} spans acknowledged, {stored / 1e9:.2f} GB in {segments} segments, "
          f"{peak_mib(process):.0f} MiB of memory at the most while it came in")
    end(process, signal.SIGKILL)
    warm()
    for name, how in (("kill -9", signal.SIGTERM), ("a clean stop", signal.SIGKILL)):
        process, seconds = start()
        queued = sample("forebay_queue_backlog_items")
        print(f"after {name}: ready after {seconds * 1000:.0f} ms, {queued:.0f} spans queued, {peak_mib(process):.0f} MiB")
        if seconds >= OPEN_SECONDS_MAX:
            problems.append(f"opening took {seconds:.2f} s after {name}")
        end(process, how)
    words = [binaries / "forebay-bench", "sink", "--http", f"127.0.0.1:{sink_http}", "--grpc", f"127.0.0.1:{sink_grpc}"]
    sink = subprocess.Popen(words, stdout=subprocess.PIPE)
    processes.append(sink)
    process, seconds = start()
    print(f"after a second kill -9: ready after {seconds * 1000:.0f} ms")
    began = time.monotonic()
    while sample("forebay_queue_backlog_items") > 0:
        if process.poll() is not None or time.monotonic() - began > PATIENCE_SECONDS:
            sys.exit("the backlog does not drain")
        time.sleep(0.2)
    seconds = time.monotonic() - began
    peak = peak_mib(process)
    end(process, signal.SIGTERM)
    sink.terminate()
    counts = json.loads(sink.communicate()[0].decode().strip().splitlines()[-1])
    delivered = counts["spans"]
    print(f"drain: {delivered} spans in {seconds:.0f} s ({stored / 1e6 / seconds:.0f} MB/s), {peak:.0f} MiB at the most, "
          f"{max(0, delivered - acknowledged)} spans sent twice")
    if peak > DRAIN_MIB_MAX:
        problems.append(f"the drain took {peak:.0f} MiB")
    if delivered < acknowledged:
        problems.append(f"{acknowledged - delivered} spans are missing")
    sys.exit("; ".join(problems) or 0)


try:
    main()
finally:
    for process in processes:
        if process.poll() is None:
            process.kill()
            process.wait()
    shutil.rmtree(root)
