"""Takes OTLP over HTTP and gRPC, decodes it with the official protocol package, and writes one JSON line an item.

Usage: sink.py HTTP_PORT GRPC_PORT FILE
"""

import gzip
import json
import sys
import threading
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2 as logs
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2_grpc as logs_grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as metrics
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2_grpc as metrics_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as trace
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as trace_grpc

LOCK = threading.Lock()


def attributes(pairs):
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}


def span_items(request):
    for resource in request.resource_spans:
        run = attributes(resource.resource.attributes).get("interop.run")
        for scope in resource.scope_spans:
            for span in scope.spans:
                own = attributes(span.attributes)
                identity = f"{span.trace_id.hex()} {span.span_id.hex()}"
                yield run, "spans", f"{identity} {span.name} n={own.get('n')} text={own.get('text')}"


def point_items(request):
    for resource in request.resource_metrics:
        run = attributes(resource.resource.attributes).get("interop.run")
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                for point in metric.sum.data_points:
                    value = point.as_int if point.WhichOneof("value") == "as_int" else int(point.as_double)
                    yield run, "points", f"{metric.name} n={attributes(point.attributes).get('n')} value={value}"


def log_items(request):
    for resource in request.resource_logs:
        run = attributes(resource.resource.attributes).get("interop.run")
        for scope in resource.scope_logs:
            for record in scope.log_records:
                yield run, "logs", f"{record.body.string_value} n={attributes(record.attributes).get('n')}"


def write(file, items):
    with LOCK:
        for run, kind, item in items:
            file.write(json.dumps({"run": run, "kind": kind, "item": item}) + "\n")
        file.flush()


PATHS = {
    "/v1/traces": (trace.ExportTraceServiceRequest, span_items),
    "/v1/metrics": (metrics.ExportMetricsServiceRequest, point_items),
    "/v1/logs": (logs.ExportLogsServiceRequest, log_items),
}


def http_handler(file):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            chunked = self.headers.get("transfer-encoding", "") == "chunked"
            body = self.chunks() if chunked else self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            message, items = PATHS[self.path]
            request = message()
            if self.headers.get("content-type", "").startswith("application/json"):
                from_json(body, request)
            else:
                request.ParseFromString(body)
            write(file, items(request))
            self.send_response(200)
            self.send_header("content-type", self.headers.get("content-type", "application/x-protobuf"))
            answer = b"{}" if "json" in self.headers.get("content-type", "") else b""
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def chunks(self):
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body

        def log_message(self, *_):
            pass

    return Handler


def from_json(body, request):
    """OTLP's JSON is protobuf's but for the ids, which are hexadecimal."""
    import base64

    from google.protobuf import json_format

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


def servicer(base, file, items, response):
    class Servicer(base):
        def Export(self, request, _context):
            write(file, items(request))
            return response()

    return Servicer()


def main():
    http_port, grpc_port, path = sys.argv[1:4]
    with open(path, "a", encoding="utf-8") as file:
        server = grpc.server(futures.ThreadPoolExecutor(4))
        trace_grpc.add_TraceServiceServicer_to_server(
            servicer(trace_grpc.TraceServiceServicer, file, span_items, trace.ExportTraceServiceResponse), server
        )
        metrics_grpc.add_MetricsServiceServicer_to_server(
            servicer(metrics_grpc.MetricsServiceServicer, file, point_items, metrics.ExportMetricsServiceResponse),
            server,
        )
        logs_grpc.add_LogsServiceServicer_to_server(
            servicer(logs_grpc.LogsServiceServicer, file, log_items, logs.ExportLogsServiceResponse), server
        )
        server.add_insecure_port(f"127.0.0.1:{grpc_port}")
        server.start()
        ThreadingHTTPServer(("127.0.0.1", int(http_port)), http_handler(file)).serve_forever()


if __name__ == "__main__":
    main()
