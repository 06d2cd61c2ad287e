//! The tree → the plan: every section read, every reference resolved.

mod admin;
mod components;
mod forebay;
mod pipelines;
mod service;

use super::plan::Plan;
use crate::settings::{Node, Origin, Problem, Problems, Table};
use components::{Definition, Definitions};
pub use components::{EXTENSIONS, PROCESSORS};
use std::collections::BTreeSet;

/// Everything as it was written, before references are resolved.
struct Written {
    receivers: Definitions<crate::receivers::Settings>,
    exporters: Definitions<components::Exporter>,
    processors: Definitions<components::Processor>,
    extensions: Definitions<components::Extension>,
    service: service::Service,
    forebay: forebay::Forebay,
}

fn read_root(table: &mut Table<'_>) -> Written {
    if table.has("connectors")
        && !table
            .named_table("connectors", |connectors| {
                let keys = connectors.keys();
                keys.iter().for_each(|key| connectors.ignore_named(key));
                keys.is_empty()
            })
            .unwrap_or(true)
    {
        table.problem("connectors", "known to the OpenTelemetry Collector, not supported here: connectors");
    }
    let written = Written {
        receivers: table.table("receivers", components::receivers).unwrap_or_default(),
        exporters: table.table("exporters", components::exporters).unwrap_or_default(),
        processors: table.table("processors", components::processors).unwrap_or_default(),
        extensions: table.table("extensions", components::extensions).unwrap_or_default(),
        service: table.table("service", service::read).unwrap_or_default(),
        forebay: table.table("forebay", forebay::read).unwrap_or_default(),
    };
    if !table.has("service") {
        let problem = Problem::error(table.origin().clone(), "there is no `service`: nothing would run");
        table.report(problem.with_help("add service.pipelines with at least one pipeline"));
    }
    written
}

/// Validates a tree. Err holds every problem, warnings among them.
pub fn plan(tree: &Node) -> Result<Plan, Vec<Problem>> {
    let mut problems = Problems::default();
    let written = Table::root(tree, &mut problems).read(read_root);
    let plan = resolve(written, &mut problems);
    if problems.has_errors() { Err(problems.into_vec()) } else { Ok(Plan { warnings: problems.into_vec(), ..plan }) }
}

/// Every key that the readers ask for when they read `tree`, as dotted paths: to test that an example shows them all.
pub fn known_keys(tree: &Node) -> BTreeSet<String> {
    let mut problems = Problems::default();
    Table::root(tree, &mut problems).read(read_root);
    problems.known_keys().clone()
}

fn resolve(mut written: Written, problems: &mut Problems) -> Plan {
    let extensions = service::resolve_extensions(&mut written, problems);
    let queue = &mut written.forebay.queue;
    queue.max_size_bytes = queue.max_size_bytes.or(extensions.max_size_bytes);
    let pipelines = pipelines::resolve(&mut written, problems);
    let memory_limit_bytes = written.forebay.memory_limit_bytes.or(pipelines.memory_limit_bytes);
    let exporters = pipelines::exporters(&mut written, &pipelines, problems);
    pipelines::warn_of_blocking(&written, &pipelines.plans, &exporters, problems);
    let receivers = pipelines::receivers(&mut written, &pipelines.plans);
    warn_unused(&written, problems);
    Plan {
        data_dir: written.forebay.data_dir.or(extensions.data_dir),
        receivers,
        pipelines: pipelines.plans,
        exporters,
        queue: written.forebay.queue,
        dedup: written.forebay.dedup,
        shutdown: written.forebay.shutdown,
        memory_limit_bytes,
        dead_letters: written.forebay.dead_letters,
        max_syncs_per_second: written.forebay.max_syncs_per_second,
        telemetry: written.service.telemetry,
        health: extensions.health,
        admin: written.forebay.admin,
        is_embedded_default: false,
        warnings: Vec::new(),
    }
}

fn warn_unused(written: &Written, problems: &mut Problems) {
    fn note<T>(what: &str, definitions: &[Definition<T>], problems: &mut Problems) {
        for unused in definitions.iter().filter(|definition| !definition.used) {
            let message = format!("the {what} `{}` is used by nothing", unused.id);
            problems.add(Problem::warning(unused.origin.clone(), message));
        }
    }
    note("receiver", &written.receivers, problems);
    note("processor", &written.processors, problems);
    note("exporter", &written.exporters, problems);
    note("extension", &written.extensions, problems);
}

/// Marks the definition of `id` as used and gives its index, or notes that there is none.
fn refer<T>(
    what: &str,
    id: &str,
    origin: &Origin,
    definitions: &mut [Definition<T>],
    problems: &mut Problems,
) -> Option<usize> {
    if let Some(index) = definitions.iter().position(|definition| definition.id == id) {
        definitions[index].used = true;
        return Some(index);
    }
    let message = format!("the {what} `{}` is not defined", id.escape_debug());
    let names: Vec<&str> = definitions.iter().map(|definition| definition.id.as_str()).collect();
    let help = match names.is_empty() {
        true => format!("define it under `{what}s:`"),
        false => format!("define it under `{what}s:`; defined there: {}", names.join(", ")),
    };
    problems.add(Problem::error(origin.clone(), message).with_help(help));
    None
}
