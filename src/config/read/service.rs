//! `service`: pipelines as written, extensions, telemetry.

use super::components::Extension;
use super::{Written, refer};
use crate::config::plan::{DataDirSetting, HealthPlan, LogEncoding, METRICS_ENDPOINT_DEFAULT, TelemetryPlan};
use crate::settings::{Origin, Problem, Problems, Table};

/// A reference with its place.
pub type Reference = (String, Origin);

#[derive(Default)]
pub struct Service {
    pub extensions: Vec<Reference>,
    pub pipelines: Vec<WrittenPipeline>,
    pub telemetry: TelemetryPlan,
}

pub struct WrittenPipeline {
    pub id: String,
    pub origin: Origin,
    pub receivers: Vec<Reference>,
    pub processors: Vec<Reference>,
    pub exporters: Vec<Reference>,
}

const LEVELS: &[(&str, &str)] = &[
    ("trace", "trace"),
    ("debug", "debug"),
    ("info", "info"),
    ("warn", "warn"),
    ("error", "error"),
    ("DEBUG", "debug"),
    ("INFO", "info"),
    ("WARN", "warn"),
    ("ERROR", "error"),
];
const ENCODINGS: &[(&str, LogEncoding)] = &[("console", LogEncoding::Console), ("json", LogEncoding::Json)];
const METRIC_LEVELS: &[(&str, bool)] = &[("none", false), ("basic", true), ("normal", true), ("detailed", true)];

pub fn read(table: &mut Table<'_>) -> Service {
    let extensions = table.texts_with_origins("extensions").unwrap_or_default();
    let pipelines = table.table("pipelines", |table| {
        let mut pipelines = Vec::new();
        for id in table.keys() {
            let origin = table.key_origin_of(&id);
            pipelines.extend(table.named_table(&id, |table| WrittenPipeline {
                id: id.clone(),
                origin,
                receivers: table.texts_with_origins("receivers").unwrap_or_default(),
                processors: table.texts_with_origins("processors").unwrap_or_default(),
                exporters: table.texts_with_origins("exporters").unwrap_or_default(),
            }));
        }
        pipelines
    });
    let pipelines = pipelines.unwrap_or_default();
    if pipelines.is_empty() {
        let problem = Problem::error(table.origin_of("pipelines"), "service.pipelines: there is no pipeline");
        table.report(problem.with_help("add traces, metrics or logs with receivers and exporters"));
    }
    Service { extensions, pipelines, telemetry: table.table("telemetry", telemetry).unwrap_or_default() }
}

fn telemetry(table: &mut Table<'_>) -> TelemetryPlan {
    let mut plan = TelemetryPlan::default();
    table.unsupported(&["traces"]);
    if table.has("resource") {
        table.ignore("resource");
        table.warn("resource", "has no effect: the metrics page carries no resource");
    }
    table.table("logs", |table| {
        table.unsupported(&[
            "development",
            "disable_caller",
            "disable_stacktrace",
            "sampling",
            "output_paths",
            "error_output_paths",
            "initial_fields",
            "processors",
        ]);
        plan.log_level = table.choice("level", LEVELS).unwrap_or(plan.log_level);
        plan.log_encoding = table.choice("encoding", ENCODINGS).unwrap_or(plan.log_encoding);
    });
    let endpoint = table.table("metrics", |table| {
        table.unsupported(&["views"]);
        let on = table.choice("level", METRIC_LEVELS).unwrap_or(true);
        let address = endpoint(table, "address");
        let readers = table.tables("readers", reader).unwrap_or_default();
        let address = address.or(readers.into_iter().flatten().next());
        on.then(|| address.unwrap_or_else(|| METRICS_ENDPOINT_DEFAULT.to_owned()))
    });
    plan.metrics_endpoint = endpoint.unwrap_or(plan.metrics_endpoint);
    plan
}

/// One of `readers`: `{pull: {exporter: {prometheus: {host, port}}}}`.
fn reader(table: &mut Table<'_>) -> Option<String> {
    table.unsupported(&["periodic"]);
    let prometheus = |table: &mut Table<'_>| {
        for key in ["without_scope_info", "without_type_suffix", "without_units", "with_resource_constant_labels"] {
            table.ignore(key);
        }
        let host = table.text("host").unwrap_or_else(|| "localhost".to_owned());
        let port = table.integer("port", 0..=65_535).unwrap_or(8888);
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    };
    table.table("pull", |table| table.table("exporter", |table| table.table("prometheus", prometheus)))??
}

/// A `host:port` to listen on.
pub fn endpoint(table: &mut Table<'_>, key: &'static str) -> Option<String> {
    let endpoint = table.text(key)?;
    let port_ok = endpoint.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    if endpoint.contains("://") || !port_ok {
        table.problem(key, format!("\"{}\" is no host:port, such as localhost:13133", endpoint.escape_debug()));
        return None;
    }
    Some(endpoint)
}

/// What the extensions in force say.
#[derive(Default)]
pub struct Extensions {
    pub data_dir: Option<DataDirSetting>,
    pub max_size_bytes: Option<u64>,
    pub health: HealthPlan,
}

pub fn resolve_extensions(written: &mut Written, problems: &mut Problems) -> Extensions {
    let mut resolved = Extensions::default();
    let mut directory_of: Option<String> = None;
    for (id, origin) in &written.service.extensions {
        let Some(index) = refer("extension", id, origin, &mut written.extensions, problems) else { continue };
        match &written.extensions[index].settings {
            Some(Extension::FileStorage { directory, max_size_bytes }) => {
                resolved.max_size_bytes = resolved.max_size_bytes.or(*max_size_bytes);
                let Some((path, origin)) = directory else { continue };
                if let (Some(first), Some(known)) = (&directory_of, &resolved.data_dir)
                    && known.path != *path
                {
                    let message = format!("`{first}` and `{id}` name two directories; there is one data directory");
                    let problem = Problem::error(origin.clone(), message);
                    problems.add(problem.with_help("name one file_storage in service.extensions"));
                }
                directory_of = Some(id.clone());
                resolved.data_dir = Some(DataDirSetting { path: path.clone(), origin: origin.clone() });
            }
            Some(Extension::HealthCheck { endpoint, path }) => {
                let default = HealthPlan::default();
                resolved.health = HealthPlan {
                    endpoint: endpoint.clone().unwrap_or(default.endpoint),
                    path: path.clone().unwrap_or(default.path),
                };
            }
            None => {}
        }
    }
    resolved
}
