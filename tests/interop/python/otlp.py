"""OTLP requests as rows of a file: one row an item, and one for each resource entry with its bytes as they were.

A batch of Forebay's is a concatenation of requests, so entries (resourceSpans, resourceMetrics, resourceLogs) are what
can be compared byte for byte, whatever was batched with what.
"""

import base64
import gzip
import json
import threading

from google.protobuf import json_format
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2 as logs
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as metrics
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as trace

LOCK = threading.Lock()
SIGNALS = {
    "traces": trace.ExportTraceServiceRequest,
    "metrics": metrics.ExportMetricsServiceRequest,
    "logs": logs.ExportLogsServiceRequest,
}
FIELDS = {"traces": "resource_spans", "metrics": "resource_metrics", "logs": "resource_logs"}
GRPC_METHODS = {
    "/opentelemetry.proto.collector.trace.v1.TraceService/Export": "traces",
    "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export": "metrics",
    "/opentelemetry.proto.collector.logs.v1.LogsService/Export": "logs",
}


def attributes(pairs):
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}


def span_items(resource):
    for scope in resource.scope_spans:
        for span in scope.spans:
            own = attributes(span.attributes)
            identity = f"{span.trace_id.hex()} {span.span_id.hex()}"
            yield "spans", f"{identity} {span.name} n={own.get('n')} text={own.get('text')}"


def point_items(resource):
    for scope in resource.scope_metrics:
        for metric in scope.metrics:
            for point in metric.sum.data_points:
                value = point.as_int if point.WhichOneof("value") == "as_int" else int(point.as_double)
                yield "points", f"{metric.name} n={attributes(point.attributes).get('n')} value={value}"


def log_items(resource):
    for scope in resource.scope_logs:
        for record in scope.log_records:
            yield "logs", f"{record.body.string_value} n={attributes(record.attributes).get('n')}"


ITEMS = {"traces": span_items, "metrics": point_items, "logs": log_items}


def entries(body):
    """The bytes of each top-level field, which in all three requests is field 1, length-delimited."""
    position = 0
    while position < len(body):
        if body[position] != 0x0A:
            raise ValueError(f"an unexpected field at {position} of a request")
        position += 1
        length = shift = 0
        while True:
            byte = body[position]
            position += 1
            length |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        if position + length > len(body):
            raise ValueError("a request ends in the middle of an entry")
        yield body[position : position + length]
        position += length


def from_json(body, request):
    """OTLP's JSON is protobuf's but for the ids, which are hexadecimal."""

    def convert(node):
        if isinstance(node, list):
            return [convert(entry) for entry in node]
        if not isinstance(node, dict):
            return node
        ids = ("traceId", "spanId", "parentSpanId")
        return {
            key: base64.b64encode(bytes.fromhex(value)).decode() if key in ids and value else convert(value)
            for key, value in node.items()
        }

    json_format.ParseDict(convert(json.loads(body)), request, ignore_unknown_fields=True)


def inflate(body, encoding):
    if encoding in (None, "", "identity"):
        return body
    if encoding == "gzip":
        return gzip.decompress(body)
    raise ValueError(f"content-encoding {encoding}")


def rows(signal, body, is_json=False):
    """A request's rows. A JSON request has no protobuf bytes of its own: its entries are then the official package's
    serialization, and only its meaning can be compared."""
    request = SIGNALS[signal]()
    if is_json:
        from_json(body, request)
    else:
        request.ParseFromString(body)
    found = getattr(request, FIELDS[signal])
    raw = [None] * len(found) if is_json else list(entries(body))
    if len(raw) != len(found):
        raise ValueError(f"{len(raw)} entries in the bytes, {len(found)} in the message")
    for entry, resource in zip(raw, found):
        run = attributes(resource.resource.attributes).get("interop.run")
        meaning = resource.SerializeToString(deterministic=True)
        yield {
            "run": run,
            "kind": "entry",
            "signal": signal,
            "bytes": None if entry is None else base64.b64encode(entry).decode(),
            "meaning": base64.b64encode(meaning).decode(),
        }
        for kind, item in ITEMS[signal](resource):
            yield {"run": run, "kind": kind, "item": item}


def write(file, new_rows):
    text = "".join(json.dumps(row) + "\n" for row in new_rows)
    with LOCK:
        file.write(text)
        file.flush()
