//! One delivery loop per exporter.
