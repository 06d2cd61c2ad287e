// Sends known spans, points and log records with the Node SDK, and prints what it sent as JSON.
// Usage: client.js grpc|proto|json ENDPOINT none|gzip COUNT RUN
"use strict";

const { resourceFromAttributes } = require("@opentelemetry/resources");
const { BasicTracerProvider, BatchSpanProcessor } = require("@opentelemetry/sdk-trace-base");
const { MeterProvider, PeriodicExportingMetricReader } = require("@opentelemetry/sdk-metrics");
const { LoggerProvider, BatchLogRecordProcessor } = require("@opentelemetry/sdk-logs");

const PACKAGES = { grpc: "grpc", proto: "proto", json: "http" };

async function main() {
  const [protocol, endpoint, compression, count, run] = process.argv.slice(2);
  const exporter = (signal, name, path) => {
    const module = require(`@opentelemetry/exporter-${signal}-otlp-${PACKAGES[protocol]}`);
    return new module[name]({ url: protocol === "grpc" ? endpoint : endpoint + path, compression });
  };
  const resource = resourceFromAttributes({ "service.name": "interop-node", "interop.run": run });
  const spans = exporter("trace", "OTLPTraceExporter", "/v1/traces");
  const metrics = exporter("metrics", "OTLPMetricExporter", "/v1/metrics");
  const logs = exporter("logs", "OTLPLogExporter", "/v1/logs");
  const logProcessor = BatchLogRecordProcessor.length > 1
    ? new BatchLogRecordProcessor(logs) : new BatchLogRecordProcessor({ exporter: logs });
  const spanProvider = new BasicTracerProvider({ resource, spanProcessors: [new BatchSpanProcessor(spans)] });
  const meterProvider = new MeterProvider({
    resource, readers: [new PeriodicExportingMetricReader({ exporter: metrics })],
  });
  const logProvider = new LoggerProvider({ resource, processors: [logProcessor] });
  const tracer = spanProvider.getTracer("interop");
  const counter = meterProvider.getMeter("interop").createCounter("interop.counter", { valueType: 0 });
  const logger = logProvider.getLogger("interop");

  const sent = { spans: [], points: [], logs: [] };
  for (let n = 0; n < Number(count); n += 1) {
    const span = tracer.startSpan(`span-${n}`, { attributes: { n, text: `grüße ${n}` } });
    const { traceId, spanId } = span.spanContext();
    span.end();
    sent.spans.push(`${traceId} ${spanId} span-${n} n=${n} text=grüße ${n}`);
    counter.add(n + 1, { n });
    sent.points.push(`interop.counter n=${n} value=${n + 1}`);
    logger.emit({ body: `record-${n}`, severityNumber: 9, attributes: { n } });
    sent.logs.push(`record-${n} n=${n}`);
  }
  await spanProvider.shutdown();
  await meterProvider.shutdown();
  await logProvider.shutdown();
  console.log(JSON.stringify(sent));
}

main().catch((error) => {
  console.error("node client:", error);
  process.exit(1);
});
