// Sends known spans, points and log records with the Go SDK, and prints what it sent as JSON.
//
// Usage: go-client grpc|http ENDPOINT none|gzip COUNT RUN
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strconv"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlplog/otlploggrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlplog/otlploghttp"
	"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetricgrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetrichttp"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/log"
	api "go.opentelemetry.io/otel/metric"
	sdklog "go.opentelemetry.io/otel/sdk/log"
	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/resource"
	"go.opentelemetry.io/otel/sdk/trace"
)

func must[T any](value T, err error) T {
	check(err)
	return value
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "go client:", err)
		os.Exit(1)
	}
}

func exporters(ctx context.Context, protocol, endpoint string, gzip bool) (trace.SpanExporter, metric.Exporter, sdklog.Exporter) {
	if protocol == "grpc" {
		spans := []otlptracegrpc.Option{otlptracegrpc.WithEndpointURL(endpoint)}
		points := []otlpmetricgrpc.Option{otlpmetricgrpc.WithEndpointURL(endpoint)}
		records := []otlploggrpc.Option{otlploggrpc.WithEndpointURL(endpoint)}
		if gzip {
			spans = append(spans, otlptracegrpc.WithCompressor("gzip"))
			points = append(points, otlpmetricgrpc.WithCompressor("gzip"))
			records = append(records, otlploggrpc.WithCompressor("gzip"))
		}
		return must(otlptracegrpc.New(ctx, spans...)), must(otlpmetricgrpc.New(ctx, points...)), must(otlploggrpc.New(ctx, records...))
	}
	spans := []otlptracehttp.Option{otlptracehttp.WithEndpointURL(endpoint + "/v1/traces")}
	points := []otlpmetrichttp.Option{otlpmetrichttp.WithEndpointURL(endpoint + "/v1/metrics")}
	records := []otlploghttp.Option{otlploghttp.WithEndpointURL(endpoint + "/v1/logs")}
	if gzip {
		spans = append(spans, otlptracehttp.WithCompression(otlptracehttp.GzipCompression))
		points = append(points, otlpmetrichttp.WithCompression(otlpmetrichttp.GzipCompression))
		records = append(records, otlploghttp.WithCompression(otlploghttp.GzipCompression))
	}
	return must(otlptracehttp.New(ctx, spans...)), must(otlpmetrichttp.New(ctx, points...)), must(otlploghttp.New(ctx, records...))
}

func main() {
	if len(os.Args) != 6 {
		fmt.Fprintln(os.Stderr, "usage: go-client grpc|http ENDPOINT none|gzip COUNT RUN")
		os.Exit(2)
	}
	ctx := context.Background()
	count := must(strconv.Atoi(os.Args[4]))
	run := os.Args[5]
	spanExporter, metricExporter, logExporter := exporters(ctx, os.Args[1], os.Args[2], os.Args[3] == "gzip")
	res := resource.NewSchemaless(attribute.String("service.name", "interop-go"), attribute.String("interop.run", run))

	spanProvider := trace.NewTracerProvider(trace.WithBatcher(spanExporter), trace.WithResource(res))
	meterProvider := metric.NewMeterProvider(metric.WithReader(metric.NewPeriodicReader(metricExporter)), metric.WithResource(res))
	logProvider := sdklog.NewLoggerProvider(sdklog.WithProcessor(sdklog.NewBatchProcessor(logExporter)), sdklog.WithResource(res))
	tracer := spanProvider.Tracer("interop")
	counter := must(meterProvider.Meter("interop").Int64Counter("interop.counter"))
	logger := logProvider.Logger("interop")

	sent := map[string][]string{"spans": {}, "points": {}, "logs": {}}
	for n := range count {
		_, span := tracer.Start(ctx, fmt.Sprintf("span-%d", n))
		span.SetAttributes(attribute.Int("n", n), attribute.String("text", "grüße "+strconv.Itoa(n)))
		id := span.SpanContext()
		span.End()
		sent["spans"] = append(sent["spans"], fmt.Sprintf("%s %s span-%d n=%d text=grüße %d", id.TraceID(), id.SpanID(), n, n, n))
		counter.Add(ctx, int64(n+1), api.WithAttributes(attribute.Int("n", n)))
		sent["points"] = append(sent["points"], fmt.Sprintf("interop.counter n=%d value=%d", n, n+1))
		var record log.Record
		record.SetBody(attribute.StringValue(fmt.Sprintf("record-%d", n)))
		record.SetSeverity(log.SeverityInfo)
		record.AddAttributes(attribute.Int("n", n))
		logger.Emit(ctx, record)
		sent["logs"] = append(sent["logs"], fmt.Sprintf("record-%d n=%d", n, n))
	}
	check(spanProvider.Shutdown(ctx))
	check(meterProvider.Shutdown(ctx))
	check(logProvider.Shutdown(ctx))
	check(json.NewEncoder(os.Stdout).Encode(sent))
}
