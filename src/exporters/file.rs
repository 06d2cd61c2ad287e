//! The `file` exporter.
