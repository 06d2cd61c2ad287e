//! The component kinds that a configuration may name, and their settings.
//!
//! The one file that knows which rooms read which settings: a new kind is a line here.

use crate::receivers::otlp;
use crate::settings::Table;

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

pub use crate::exporters::Settings as ExporterSettings;

/// Reads the settings of an exporter of a kind in [`EXPORTERS`]; None for any other.
pub fn read_exporter(kind: &str, table: &mut Table<'_>) -> Option<ExporterSettings> {
    ExporterSettings::read(kind, table)
}

/// Settings of one receiver, by kind.
#[derive(Clone, Debug)]
pub enum ReceiverSettings {
    Otlp(otlp::Settings),
}

/// Reads the settings of a receiver of a kind in [`RECEIVERS`]; None for any other.
pub fn read_receiver(kind: &str, table: &mut Table<'_>) -> Option<ReceiverSettings> {
    match kind {
        "otlp" => Some(ReceiverSettings::Otlp(otlp::Settings::read(table))),
        _ => None,
    }
}
