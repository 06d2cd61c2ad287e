//! Metrics page and health endpoints.
