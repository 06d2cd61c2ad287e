//! `receivers`, `processors`, `exporters`, `extensions`: definitions by id.

use crate::config::ids::ComponentId;
use crate::config::plan::SpanDedupPlan;
use crate::dedup::Match;
use crate::exporters::{self, KINDS as EXPORTERS};
use crate::receivers::{self, KINDS as RECEIVERS};
use crate::settings::{BatchLimits, Kind, Origin, Problem, Retry, SendingQueue, Sizer, Table};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// A component that the user defined.
pub struct Definition<T> {
    pub id: String,
    /// The id under the kind's present name.
    pub canonical_id: String,
    pub origin: Origin,
    /// None: it could not be read, and the problem is noted.
    pub settings: Option<T>,
    pub used: bool,
}

pub type Definitions<T> = Vec<Definition<T>>;

pub struct Exporter {
    pub settings: Arc<dyn exporters::Settings>,
    pub retry: Retry,
    pub sending_queue: SendingQueue,
    pub storage_origin: Origin,
}

pub enum Processor {
    Batch(BatchLimits),
    MemoryLimiter { limit_bytes: Option<u64> },
    Dedup(SpanDedupPlan),
}

pub enum Extension {
    FileStorage { directory: Option<(PathBuf, Origin)>, max_size_bytes: Option<u64> },
    HealthCheck { endpoint: Option<String>, path: Option<String> },
}

pub const PROCESSORS: &[Kind<Processor>] = &[
    Kind {
        name: "batch",
        aliases: &[],
        summary: "read as the exporters' sending_queue.batch",
        read: |table| Processor::Batch(read_batch(table)),
    },
    Kind { name: "memory_limiter", aliases: &[], summary: "read as forebay.memory.limit", read: read_memory_limiter },
    Kind {
        name: "dedup",
        aliases: &[],
        summary: "spans that were taken before are not stored again",
        read: read_dedup,
    },
];
const MATCH: &[(&str, Match)] = &[("exact", Match::Exact), ("id", Match::Id)];
pub const EXTENSIONS: &[Kind<Extension>] = &[
    Kind { name: "file_storage", aliases: &[], summary: "names the data directory", read: read_file_storage },
    Kind { name: "health_check", aliases: &[], summary: "places the health endpoint", read: read_health_check },
];

/// Kinds that the collector's distributions have. Named as such when they are met, so that nobody looks for a typo.
const COLLECTOR_RECEIVERS: &[&str] = &[
    "filelog",
    "fluentforward",
    "hostmetrics",
    "jaeger",
    "journald",
    "k8s_cluster",
    "kafka",
    "kubeletstats",
    "nop",
    "prometheus",
    "statsd",
    "syslog",
    "zipkin",
];
const COLLECTOR_PROCESSORS: &[&str] = &[
    "attributes",
    "cumulativetodelta",
    "filter",
    "groupbyattrs",
    "groupbytrace",
    "k8sattributes",
    "metricstransform",
    "probabilistic_sampler",
    "redaction",
    "resource",
    "resourcedetection",
    "span",
    "tail_sampling",
    "transform",
];
const COLLECTOR_EXPORTERS: &[&str] = &[
    "awss3",
    "clickhouse",
    "datadog",
    "elasticsearch",
    "googlecloud",
    "jaeger",
    "kafka",
    "loadbalancing",
    "loki",
    "nop",
    "otelarrow",
    "prometheus",
    "prometheusremotewrite",
    "pulsar",
    "splunk_hec",
    "zipkin",
];
const COLLECTOR_EXTENSIONS: &[&str] = &[
    "basicauth",
    "bearertokenauth",
    "headers_setter",
    "health_check_v2",
    "healthcheckv2",
    "memory_limiter",
    "memory_ballast",
    "oauth2client",
    "oidc",
    "opamp",
    "pprof",
    "sigv4auth",
    "zpages",
];

pub fn receivers(table: &mut Table<'_>) -> Definitions<receivers::Settings> {
    definitions("receiver", table, RECEIVERS, COLLECTOR_RECEIVERS, |kind, table| (kind.read)(table))
}

pub fn exporters(table: &mut Table<'_>) -> Definitions<Exporter> {
    definitions("exporter", table, EXPORTERS, COLLECTOR_EXPORTERS, |kind, table| {
        let retry = table.table("retry_on_failure", Retry::read).unwrap_or_default();
        let mut storage_origin = table.origin().clone();
        let sending_queue = table.table("sending_queue", |table| {
            storage_origin = table.origin_of("storage");
            SendingQueue::read(table)
        });
        let settings = (kind.read)(table);
        Exporter { settings, retry, sending_queue: sending_queue.unwrap_or_default(), storage_origin }
    })
}

pub fn processors(table: &mut Table<'_>) -> Definitions<Processor> {
    definitions("processor", table, PROCESSORS, COLLECTOR_PROCESSORS, |kind, table| (kind.read)(table))
}

pub fn extensions(table: &mut Table<'_>) -> Definitions<Extension> {
    definitions("extension", table, EXTENSIONS, COLLECTOR_EXTENSIONS, |kind, table| (kind.read)(table))
}

fn definitions<S, T>(
    what: &str,
    table: &mut Table<'_>,
    kinds: &'static [Kind<S>],
    collector_kinds: &[&str],
    read: impl Fn(&Kind<S>, &mut Table<'_>) -> T,
) -> Definitions<T> {
    let mut definitions: Definitions<T> = Vec::new();
    for id in table.keys() {
        let origin = table.key_origin_of(&id);
        let mut definition = Definition {
            id: id.clone(),
            canonical_id: id.clone(),
            origin: origin.clone(),
            settings: None,
            used: false,
        };
        match ComponentId::parse(&id) {
            Err(why) => {
                table.ignore_named(&id);
                let message = format!("the {what} id \"{}\" {why}", id.escape_debug());
                table
                    .report(Problem::error(origin, message).with_help("write type or type/name, such as otlp_http/eu"));
            }
            Ok(parsed) => match Kind::find(kinds, &parsed.kind) {
                Some(kind) => {
                    definition.canonical_id = parsed.with_kind(kind.name);
                    definition.settings = table.named_table(&id, |table| read(kind, table));
                    let twin = definitions.iter().find(|other| other.canonical_id == definition.canonical_id);
                    if let Some(twin) = twin {
                        let message =
                            format!("the {what}s `{id}` and `{}` are one under an old and a new name", twin.id);
                        table.report(Problem::error(origin, message).with_help("remove one, or give it a /name"));
                    }
                }
                None => {
                    table.ignore_named(&id);
                    table.report(unknown_kind(what, &parsed.kind, &origin, kinds, collector_kinds));
                }
            },
        }
        definitions.push(definition);
    }
    definitions
}

fn unknown_kind<S>(what: &str, kind: &str, origin: &Origin, kinds: &[Kind<S>], collector_kinds: &[&str]) -> Problem {
    let names: Vec<&str> = kinds.iter().map(|kind| kind.name).collect();
    let list = names.join(", ");
    if collector_kinds.contains(&kind) {
        let message = format!("known to the OpenTelemetry Collector, not supported here: the {what} type `{kind}`");
        return Problem::error(origin.clone(), message).with_help(format!("{what} types here: {list}"));
    }
    let help = match crate::settings::nearest(kind, names) {
        Some(name) => format!("did you mean `{name}`? {what} types here: {list}"),
        None => format!("{what} types here: {list}"),
    };
    Problem::error(origin.clone(), format!("unknown {what} type `{kind}`")).with_help(help)
}

fn read_batch(table: &mut Table<'_>) -> BatchLimits {
    table.unsupported(&["metadata_keys", "metadata_cardinality_limit"]);
    let limits = BatchLimits {
        flush_timeout: table.duration("timeout").unwrap_or(Duration::from_millis(200)),
        min_size: table.integer("send_batch_size", 0..=u64::MAX).unwrap_or(8192),
        max_size: table.integer("send_batch_max_size", 0..=u64::MAX).unwrap_or(0),
        sizer: Sizer::Items,
    };
    if limits.max_size > 0 && limits.max_size < limits.min_size {
        table.problem("send_batch_max_size", format!("must be at least send_batch_size ({})", limits.min_size));
    }
    table.warn("", "batches are made by the exporters, after the durable queue: these limits are used as their sending_queue.batch");
    limits
}

fn read_memory_limiter(table: &mut Table<'_>) -> Processor {
    let limit_mib = table.integer("limit_mib", 1..=1 << 30);
    table.duration("check_interval");
    table.integer("spike_limit_mib", 0..=1 << 30);
    let percentage = table.integer("limit_percentage", 1..=100);
    table.integer("spike_limit_percentage", 0..=100);
    table.warn("", "memory is one budget for the whole process: limit_mib is used as forebay.memory.limit, the other keys have no effect");
    if percentage.is_some() && limit_mib.is_none() {
        table.warn(
            "limit_percentage",
            "has no effect: unless limit_mib is set, half of the control group's limit is the budget",
        );
    }
    Processor::MemoryLimiter { limit_bytes: limit_mib.map(|mib| mib << 20) }
}

fn read_dedup(table: &mut Table<'_>) -> Processor {
    Processor::Dedup(SpanDedupPlan {
        by: table.choice("match", MATCH).unwrap_or_default(),
        window: super::forebay::dedup_window(table),
        max_memory_bytes: super::forebay::dedup_memory(table),
    })
}

fn read_file_storage(table: &mut Table<'_>) -> Extension {
    let origin = table.origin_of("directory");
    let directory = table.text("directory").map(|directory| (PathBuf::from(directory), origin));
    table.duration("timeout");
    if table.flag("fsync") == Some(false) {
        table.warn("fsync", "everything acknowledged is synced; false is read as true");
    }
    table.flag("create_directory");
    table.text("directory_permissions");
    table.flag("recreate");
    if table.has("compaction") {
        table.ignore("compaction");
        table.warn("compaction", "has no effect: space is reclaimed by whole segments");
    }
    let max_size_bytes = super::forebay::at_least(table, "max_size", super::forebay::QUEUE_BYTES_MIN);
    Extension::FileStorage { directory, max_size_bytes }
}

fn read_health_check(table: &mut Table<'_>) -> Extension {
    table.unsupported(&[
        "tls",
        "auth",
        "cors",
        "response_body",
        "check_collector_pipeline",
        "include_metadata",
        "response_headers",
    ]);
    let path = table.text("path");
    if path.as_ref().is_some_and(|path| !path.starts_with('/')) {
        table.problem("path", "must start with /");
    }
    Extension::HealthCheck { endpoint: super::service::endpoint(table, "endpoint"), path }
}
