//! The `otlp_grpc` exporter.
