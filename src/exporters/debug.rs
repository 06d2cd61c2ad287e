//! The `debug` exporter.
