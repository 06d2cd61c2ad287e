//! The `otlp_http` exporter.
