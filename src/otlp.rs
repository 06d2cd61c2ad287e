//! OTLP as bytes: a bounded scan that validates without decoding, cutting items out, JSON both ways, compression with a limit.

pub mod compression;
pub mod edit;
pub mod json;
pub mod resource;
mod schema;
pub mod spans;
pub mod wire;

/// The three signals that OTLP carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Signal {
    Traces = 1,
    Metrics = 2,
    Logs = 3,
}

impl Signal {
    pub const ALL: [Signal; 3] = [Signal::Traces, Signal::Metrics, Signal::Logs];

    /// `traces`, `metrics` or `logs`: the word in pipeline names, URL paths and `data_type` labels.
    pub fn name(self) -> &'static str {
        match self {
            Signal::Traces => "traces",
            Signal::Metrics => "metrics",
            Signal::Logs => "logs",
        }
    }

    /// What one item is called in metric names: `spans`, `metric_points`, `log_records`.
    pub fn items_name(self) -> &'static str {
        match self {
            Signal::Traces => "spans",
            Signal::Metrics => "metric_points",
            Signal::Logs => "log_records",
        }
    }

    /// The gRPC method path of `Export` for this signal.
    pub fn grpc_path(self) -> &'static str {
        match self {
            Signal::Traces => "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
            Signal::Metrics => "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
            Signal::Logs => "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
        }
    }

    pub fn from_u8(value: u8) -> Option<Signal> {
        Signal::ALL.into_iter().find(|signal| *signal as u8 == value)
    }
}

/// How a payload's bytes are compressed, as it was received and as it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Encoding {
    Identity = 0,
    Gzip = 1,
    Zstd = 2,
}

impl Encoding {
    pub fn from_u8(value: u8) -> Option<Encoding> {
        [Encoding::Identity, Encoding::Gzip, Encoding::Zstd].into_iter().find(|encoding| *encoding as u8 == value)
    }
}

/// Request metadata kept with a record (lower-case name, value), in the order received. Records whose metadata
/// differs never share an outgoing request.
pub type Metadata = Vec<(String, Vec<u8>)>;

#[cfg(test)]
mod tests;
