//! `forebay:`, every setting that the collector does not have.

use super::admin;
use crate::config::ids::ComponentId;
use crate::config::plan::{
    AdminPlan, DEDUP_WINDOW_DEFAULT, DataDirSetting, DeadLettersPlan, DedupPlan, QueuePlan, ShutdownPlan, StartAt,
};
use crate::exporters::{self, StatusPolicy};
use crate::otlp::Signal;
use crate::settings::{Kind, OnFull, Origin, Problem, Table};
use std::path::PathBuf;
use std::time::Duration;

#[derive(Default)]
pub struct Forebay {
    pub data_dir: Option<DataDirSetting>,
    pub queue: QueuePlan,
    pub dedup: DedupPlan,
    pub dead_letters: DeadLettersPlan,
    pub shutdown: ShutdownPlan,
    pub admin: Option<AdminPlan>,
    pub memory_limit_bytes: Option<u64>,
    pub max_syncs_per_second: Option<u32>,
    pub pipelines: Vec<PipelineExtra>,
    pub exporters: Vec<ExporterExtra>,
}

/// `forebay.pipelines.<id>`.
pub struct PipelineExtra {
    pub id: String,
    pub origin: Origin,
    pub queue_id: Option<(String, Origin)>,
}

/// `forebay.exporters.<id>`.
pub struct ExporterExtra {
    pub id: String,
    pub origin: Origin,
    pub cursor_id: Option<(String, Origin)>,
    pub on_full: Option<OnFull>,
    pub start_at: Option<StartAt>,
    pub max_request_bytes: Option<u64>,
    pub status_policy: Option<StatusPolicy>,
    /// Whether a copy is parked of what was taken only in part.
    pub parks_partial: Option<bool>,
}

/// Smallest queue: room for a few segments of the smallest size.
pub const QUEUE_BYTES_MIN: u64 = 32 << 20;
/// Smallest memory budget: one request of the default largest size would not fit in less.
const MEMORY_BYTES_MIN: u64 = 16 << 20;
/// Smallest request limit.
const REQUEST_BYTES_MIN: u64 = 1 << 10;
const DEDUP_WINDOW_MIN: Duration = Duration::from_secs(1);
const DEDUP_WINDOW_MAX: Duration = Duration::from_secs(168 * 3600);

/// Smallest dead-letter queue: a request of the default largest size must fit.
const DEAD_LETTERS_BYTES_MIN: u64 = 16 << 20;
const ON_PARTIAL_SUCCESS: &[(&str, bool)] = &[("count", false), ("park", true)];
const START_AT: &[(&str, StartAt)] = &[("end", StartAt::End), ("beginning", StartAt::Beginning)];

pub fn read(table: &mut Table<'_>) -> Forebay {
    let origin = table.origin_of("data_dir");
    let data_dir = table.text("data_dir").map(|path| DataDirSetting { path: PathBuf::from(path), origin });
    let queue = table.table("queue", |table| QueuePlan {
        max_size_bytes: at_least(table, "max_size", QUEUE_BYTES_MIN),
        on_full: OnFull::read(table).unwrap_or_default(),
    });
    let shutdown = table.table("shutdown", |table| {
        let default = ShutdownPlan::default();
        let linger = table.duration("linger").unwrap_or(default.linger);
        let deadline = table.duration("deadline").unwrap_or(default.deadline);
        if linger > deadline {
            table.problem("linger", format!("linger {linger:?} is longer than deadline {deadline:?}"));
        }
        ShutdownPlan { linger, deadline }
    });
    Forebay {
        data_dir,
        queue: queue.unwrap_or_default(),
        dedup: table.table("dedup", dedup).unwrap_or_default(),
        dead_letters: table.table("dead_letters", dead_letters).unwrap_or_default(),
        shutdown: shutdown.unwrap_or_default(),
        admin: table.table("admin", admin::read),
        memory_limit_bytes: table.table("memory", |table| at_least(table, "limit", MEMORY_BYTES_MIN)).flatten(),
        max_syncs_per_second: table.integer("max_syncs_per_second", 1..=1_000_000).map(|n| n as u32),
        pipelines: table.table("pipelines", |table| each(table, pipeline)).unwrap_or_default(),
        exporters: table.table("exporters", |table| each(table, exporter)).unwrap_or_default(),
    }
}

fn dedup(table: &mut Table<'_>) -> DedupPlan {
    let default = DedupPlan::default();
    let requests = table.texts_with_origins("requests").map(|names| {
        let mut signals = Vec::new();
        for (name, origin) in names {
            match Signal::ALL.into_iter().find(|signal| signal.name() == name) {
                Some(signal) if signals.contains(&signal) => {}
                Some(signal) => signals.push(signal),
                None => {
                    let message = format!("forebay.dedup.requests: there is no signal `{}`", name.escape_debug());
                    table.report(Problem::error(origin, message).with_help("write traces, metrics or logs"));
                }
            }
        }
        signals
    });
    DedupPlan {
        requests: requests.unwrap_or(default.requests),
        window: dedup_window(table),
        max_memory_bytes: dedup_memory(table),
    }
}

pub fn dedup_window(table: &mut Table<'_>) -> Duration {
    let window = table.duration("window").unwrap_or(DEDUP_WINDOW_DEFAULT);
    if !(DEDUP_WINDOW_MIN..=DEDUP_WINDOW_MAX).contains(&window) {
        table.problem("window", "must be from 1s to 168h");
        return DEDUP_WINDOW_DEFAULT;
    }
    window
}

pub fn dedup_memory(table: &mut Table<'_>) -> Option<u64> {
    table.integer("max_memory_mib", 1..=65_536).map(|mib| mib << 20)
}

fn dead_letters(table: &mut Table<'_>) -> DeadLettersPlan {
    let default = DeadLettersPlan::default();
    DeadLettersPlan {
        max_size_bytes: at_least(table, "max_size", DEAD_LETTERS_BYTES_MIN).unwrap_or(default.max_size_bytes),
        drops: table.choice("on_full", &[("block", false), ("drop", true)]).unwrap_or(default.drops),
        captures_invalid: table.flag("capture_invalid").unwrap_or(default.captures_invalid),
        max_age: table.duration("max_age").filter(|age| !age.is_zero()),
    }
}

pub fn at_least(table: &mut Table<'_>, key: &'static str, low: u64) -> Option<u64> {
    let size = table.byte_size(key)?;
    if size < low {
        table.problem(key, format!("{size} bytes are too few; the least is {} KiB", low >> 10));
        return None;
    }
    Some(size)
}

fn each<T>(table: &mut Table<'_>, read: fn(&mut Table<'_>, String, Origin) -> T) -> Vec<T> {
    let mut extras = Vec::new();
    for id in table.keys() {
        let origin = table.key_origin_of(&id);
        extras.extend(table.named_table(&id, |table| read(table, id.clone(), origin)));
    }
    extras
}

fn pipeline(table: &mut Table<'_>, id: String, origin: Origin) -> PipelineExtra {
    let id_origin = table.origin_of("queue_id");
    PipelineExtra { id, origin, queue_id: table.text("queue_id").map(|name| (name, id_origin)) }
}

fn exporter(table: &mut Table<'_>, id: String, origin: Origin) -> ExporterExtra {
    let id_origin = table.origin_of("cursor_id");
    ExporterExtra {
        id,
        origin,
        cursor_id: table.text("cursor_id").map(|name| (name, id_origin)),
        on_full: OnFull::read(table),
        start_at: table.choice("start_at", START_AT),
        max_request_bytes: at_least(table, "max_request_bytes", REQUEST_BYTES_MIN),
        status_policy: table.table("status_policy", StatusPolicy::read),
        parks_partial: table.choice("on_partial_success", ON_PARTIAL_SUCCESS),
    }
}

/// Whether two ids name one component, whatever name of its kind they use.
pub fn same_id(a: &str, b: &str) -> bool {
    let canonical = |id: &str| {
        let parsed = ComponentId::parse(id).ok()?;
        let kind = Kind::find(exporters::KINDS, &parsed.kind)?;
        Some(parsed.with_kind(kind.name))
    };
    a == b || canonical(a).is_some_and(|a| Some(a) == canonical(b))
}
