//! The component kinds that a configuration may name, and their settings.
//!
//! The one file that knows which rooms read which settings: a new kind is a line here.

use crate::settings::{Secret, Table};
use std::time::Duration;

/// A kind under its present name, the older names that mean the same, and what it is.
pub struct Kind {
    pub name: &'static str,
    pub aliases: &'static [&'static str],
    pub summary: &'static str,
}

pub const RECEIVERS: &[Kind] = &[Kind { name: "otlp", aliases: &[], summary: "OTLP over gRPC and HTTP" }];

pub const EXPORTERS: &[Kind] = &[
    Kind { name: "otlp_grpc", aliases: &["otlp"], summary: "OTLP over gRPC" },
    Kind { name: "otlp_http", aliases: &["otlphttp"], summary: "OTLP over HTTP" },
    Kind { name: "file", aliases: &[], summary: "OTLP-JSON lines in a file on this machine" },
    Kind { name: "debug", aliases: &[], summary: "a line per request in the log" },
];

/// Finds a kind by its name or an older one.
pub fn find(kinds: &'static [Kind], name: &str) -> Option<&'static Kind> {
    kinds.iter().find(|kind| kind.name == name || kind.aliases.contains(&name))
}

/// Settings of one exporter, by kind.
#[derive(Clone, Debug)]
pub enum ExporterSettings {
    OtlpGrpc(Remote),
    OtlpHttp(Remote),
    File(File),
    Debug(Debug),
}

/// Reads the settings of an exporter of a kind in [`EXPORTERS`]; None for any other.
pub fn read_exporter(kind: &str, table: &mut Table<'_>) -> Option<ExporterSettings> {
    match kind {
        "otlp_grpc" => Some(ExporterSettings::OtlpGrpc(Remote::read(table, false))),
        "otlp_http" => Some(ExporterSettings::OtlpHttp(Remote::read(table, true))),
        "file" => Some(ExporterSettings::File(File::read(table))),
        "debug" => Some(ExporterSettings::Debug(Debug::read(table))),
        _ => None,
    }
}

/// Settings of one receiver, by kind.
#[derive(Clone, Debug)]
pub enum ReceiverSettings {
    Otlp(Otlp),
}

/// Reads the settings of a receiver of a kind in [`RECEIVERS`]; None for any other.
pub fn read_receiver(kind: &str, table: &mut Table<'_>) -> Option<ReceiverSettings> {
    match kind {
        "otlp" => Some(ReceiverSettings::Otlp(Otlp::read(table))),
        _ => None,
    }
}

/// OTLP destination.
#[derive(Clone, Debug)]
pub struct Remote {
    pub endpoint: Option<String>,
    /// Traces, metrics, logs (HTTP only).
    pub signal_endpoints: [Option<String>; 3],
    pub headers: Vec<(String, Secret)>,
    pub compression: Option<String>,
    pub timeout: Duration,
    pub tls: Tls,
}

/// Client side of TLS.
#[derive(Clone, Debug, Default)]
pub struct Tls {
    pub insecure: bool,
    pub insecure_skip_verify: bool,
    pub ca_file: Option<String>,
    pub ca_pem: Option<String>,
    pub cert_file: Option<String>,
    pub cert_pem: Option<String>,
    pub key_file: Option<String>,
    pub key_pem: Option<Secret>,
    pub server_name_override: Option<String>,
}

const COMPRESSIONS: &[(&str, &str)] = &[("gzip", "gzip"), ("zstd", "zstd"), ("none", "none"), ("auto", "auto")];

impl Remote {
    fn read(table: &mut Table<'_>, http: bool) -> Remote {
        let endpoint = table.text("endpoint");
        let signal_endpoints = if http {
            [table.text("traces_endpoint"), table.text("metrics_endpoint"), table.text("logs_endpoint")]
        } else {
            [None, None, None]
        };
        if endpoint.is_none() && signal_endpoints.iter().all(Option::is_none) && !table.has("endpoint") {
            table.problem("", "an endpoint is required");
        }
        if http {
            table.unsupported(&["encoding", "proxy_url", "http2_ping_timeout", "http2_read_idle_timeout"]);
        } else {
            table.unsupported(&["keepalive", "balancer_name", "authority"]);
        }
        table.unsupported(&["auth", "compression_params", "read_buffer_size", "write_buffer_size"]);
        Remote {
            endpoint,
            signal_endpoints,
            headers: table.text_map("headers").unwrap_or_default(),
            compression: table.choice("compression", COMPRESSIONS).map(str::to_owned),
            timeout: table.duration("timeout").unwrap_or(Duration::from_secs(if http { 30 } else { 5 })),
            tls: table.table("tls", Tls::read).unwrap_or_default(),
        }
    }
}

impl Tls {
    fn read(table: &mut Table<'_>) -> Tls {
        table.unsupported(&[
            "min_version",
            "max_version",
            "cipher_suites",
            "reload_interval",
            "include_system_ca_certs_pool",
        ]);
        Tls {
            insecure: table.flag("insecure").unwrap_or(false),
            insecure_skip_verify: table.flag("insecure_skip_verify").unwrap_or(false),
            ca_file: table.text("ca_file"),
            ca_pem: table.text("ca_pem"),
            cert_file: table.text("cert_file"),
            cert_pem: table.text("cert_pem"),
            key_file: table.text("key_file"),
            key_pem: table.secret("key_pem"),
            server_name_override: table.text("server_name_override"),
        }
    }
}

/// The `file` exporter.
#[derive(Clone, Debug)]
pub struct File {
    /// Relative paths stand below the data directory.
    pub path: String,
    pub rotation_bytes_max: Option<u64>,
    pub max_backups: Option<u64>,
}

impl File {
    fn read(table: &mut Table<'_>) -> File {
        table.unsupported(&["format", "compression", "append", "group_by", "flush_interval", "encoding"]);
        let path = table.text("path");
        if path.is_none() && !table.has("path") {
            table.problem("", "a path is required");
        }
        let rotation = table.table("rotation", |table| {
            table.unsupported(&["max_days", "localtime"]);
            (table.integer("max_megabytes", 1..=1 << 20), table.integer("max_backups", 1..=100_000))
        });
        let (megabytes, max_backups) = rotation.unwrap_or_default();
        File { path: path.unwrap_or_default(), rotation_bytes_max: megabytes.map(|n| n << 20), max_backups }
    }
}

/// The `debug` exporter.
#[derive(Clone, Debug)]
pub struct Debug {
    pub verbosity: &'static str,
}

impl Debug {
    fn read(table: &mut Table<'_>) -> Debug {
        table.unsupported(&["sampling_initial", "sampling_thereafter", "use_internal_logger", "output_paths"]);
        const VERBOSITIES: &[(&str, &str)] = &[("basic", "basic"), ("normal", "normal"), ("detailed", "detailed")];
        Debug { verbosity: table.choice("verbosity", VERBOSITIES).unwrap_or("basic") }
    }
}

/// The `otlp` receiver; None: that protocol is off.
#[derive(Clone, Debug)]
pub struct Otlp {
    pub grpc_endpoint: Option<String>,
    pub http_endpoint: Option<String>,
}

impl Otlp {
    fn read(table: &mut Table<'_>) -> Otlp {
        let protocols = table.table("protocols", |table| {
            let grpc = table.table("grpc", |table| {
                table.unsupported(&["tls", "auth", "keepalive", "include_metadata", "transport"]);
                table.integer("max_recv_msg_size_mib", 1..=1024);
                table.integer("max_concurrent_streams", 1..=1 << 20);
                table.text("endpoint").unwrap_or_else(|| "localhost:4317".to_owned())
            });
            let http = table.table("http", |table| {
                table.unsupported(&["tls", "auth", "cors", "include_metadata", "compression_algorithms"]);
                table.byte_size("max_request_body_size");
                table.text("endpoint").unwrap_or_else(|| "localhost:4318".to_owned())
            });
            (grpc, http)
        });
        let (grpc_endpoint, http_endpoint) = protocols.unwrap_or_default();
        if grpc_endpoint.is_none() && http_endpoint.is_none() {
            table.problem("protocols", "name at least one of grpc and http");
        }
        Otlp { grpc_endpoint, http_endpoint }
    }
}
