"""Sends known spans, points and log records with the Python SDK, and prints what it sent as JSON.

Usage: client.py grpc|http ENDPOINT none|gzip COUNT RUN
"""

import json
import sys

from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor


def exporters(protocol, endpoint, gzip):
    if protocol == "grpc":
        import grpc
        from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

        kind = grpc.Compression.Gzip if gzip else grpc.Compression.NoCompression
        options = {"endpoint": endpoint, "insecure": True, "compression": kind}
        return OTLPSpanExporter(**options), OTLPMetricExporter(**options), OTLPLogExporter(**options)
    from opentelemetry.exporter.otlp.proto.http import Compression
    from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    kind = Compression.Gzip if gzip else Compression.NoCompression
    return (
        OTLPSpanExporter(endpoint=endpoint + "/v1/traces", compression=kind),
        OTLPMetricExporter(endpoint=endpoint + "/v1/metrics", compression=kind),
        OTLPLogExporter(endpoint=endpoint + "/v1/logs", compression=kind),
    )


def main():
    protocol, endpoint, compression, count, run = sys.argv[1:6]
    spans, metrics, logs = exporters(protocol, endpoint, compression == "gzip")
    resource = Resource({"service.name": "interop-python", "interop.run": run})
    span_provider = TracerProvider(resource=resource)
    span_provider.add_span_processor(BatchSpanProcessor(spans))
    meter_provider = MeterProvider([PeriodicExportingMetricReader(metrics)], resource=resource)
    log_provider = LoggerProvider(resource=resource)
    log_provider.add_log_record_processor(BatchLogRecordProcessor(logs))
    tracer = span_provider.get_tracer("interop")
    counter = meter_provider.get_meter("interop").create_counter("interop.counter")
    logger = log_provider.get_logger("interop")

    sent = {"spans": [], "points": [], "logs": []}
    for n in range(int(count)):
        with tracer.start_as_current_span(f"span-{n}", attributes={"n": n, "text": f"grüße {n}"}) as span:
            context = span.get_span_context()
        sent["spans"].append(f"{context.trace_id:032x} {context.span_id:016x} span-{n} n={n} text=grüße {n}")
        counter.add(n + 1, {"n": n})
        sent["points"].append(f"interop.counter n={n} value={n + 1}")
        logger.emit(
            LogRecord(body=f"record-{n}", severity_number=SeverityNumber.INFO, timestamp=1, attributes={"n": n})
        )
        sent["logs"].append(f"record-{n} n={n}")
    span_provider.shutdown()
    meter_provider.shutdown()
    log_provider.shutdown()
    print(json.dumps(sent))


if __name__ == "__main__":
    main()
