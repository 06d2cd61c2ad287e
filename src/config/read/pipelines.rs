//! Pipelines with their references resolved, and what they use.

use super::components::Processor;
use super::forebay::same_id;
use super::{Written, refer};
use crate::config::ids::{ComponentId, StoredNames, signal, stored_name};
use crate::config::plan::{ExporterPlan, PipelinePlan, ReceiverPlan};
use crate::otlp::Signal;
use crate::settings::{BatchLimits, OnFull, Origin, Problem, Problems};

pub struct Resolved {
    pub plans: Vec<PipelinePlan>,
    pub memory_limit_bytes: Option<u64>,
    /// Batch limits that a `batch` processor asks for, by exporter id.
    batches: Vec<(String, BatchLimits)>,
}

pub fn resolve(written: &mut Written, problems: &mut Problems) -> Resolved {
    let mut resolved = Resolved { plans: Vec::new(), memory_limit_bytes: None, batches: Vec::new() };
    let mut queues = StoredNames::new("queue_id");
    for pipeline in &written.service.pipelines {
        let id = &pipeline.id;
        let parsed = ComponentId::parse(id);
        let Some(signal) = parsed.as_ref().ok().and_then(|parsed| signal(&parsed.kind)) else {
            let why = parsed.err().unwrap_or_else(|| "names no signal that is known here".to_owned());
            let message = format!("the pipeline id \"{}\" {why}", id.escape_debug());
            let help = "write traces, metrics or logs, with /name if there are several";
            problems.add(Problem::error(pipeline.origin.clone(), message).with_help(help));
            continue;
        };
        let extra = written.forebay.pipelines.iter().find(|extra| extra.id == *id);
        let chosen = extra.and_then(|extra| extra.queue_id.clone());
        let (queue_id, origin) = chosen.unwrap_or_else(|| (stored_name(id), pipeline.origin.clone()));
        if let Err(problem) = queues.claim(&queue_id, &format!("pipeline `{id}`"), &origin) {
            problems.add(problem);
        }
        let receivers = references("receiver", pipeline, &pipeline.receivers, &mut written.receivers, problems);
        let exporters = references("exporter", pipeline, &pipeline.exporters, &mut written.exporters, problems);
        let mut dedup = None;
        for (processor, origin) in &pipeline.processors {
            let Some(index) = refer("processor", processor, origin, &mut written.processors, problems) else {
                continue;
            };
            match &written.processors[index].settings {
                Some(Processor::Batch(limits)) => {
                    resolved.batches.extend(exporters.iter().map(|exporter| (exporter.clone(), limits.clone())));
                }
                Some(Processor::MemoryLimiter { limit_bytes: Some(limit) }) => {
                    resolved.memory_limit_bytes =
                        Some(resolved.memory_limit_bytes.map_or(*limit, |known| known.min(*limit)));
                }
                Some(Processor::Dedup(_)) if signal != Signal::Traces => {
                    let message = format!("the pipeline `{id}` has the processor `{processor}`: only spans have ids");
                    let help = "remove it; forebay.dedup.requests has whole requests of any signal";
                    problems.add(Problem::error(origin.clone(), message).with_help(help));
                }
                Some(Processor::Dedup(_)) if dedup.is_some() => {
                    let message = format!("the pipeline `{id}` has two dedup processors");
                    problems.add(Problem::error(origin.clone(), message).with_help("keep one of them"));
                }
                Some(Processor::Dedup(plan)) => dedup = Some(plan.clone()),
                Some(Processor::MemoryLimiter { limit_bytes: None }) | None => {}
            }
        }
        resolved.plans.push(PipelinePlan { id: id.clone(), signal, queue_id, receivers, exporters, dedup });
    }
    let pipelines = &written.service.pipelines;
    for extra in &written.forebay.pipelines {
        if !pipelines.iter().any(|pipeline| pipeline.id == extra.id) {
            undefined("pipelines", &extra.id, &extra.origin, problems);
        }
    }
    resolved
}

fn undefined(section: &str, id: &str, origin: &Origin, problems: &mut Problems) {
    let message = format!("forebay.{section}: there is no `{}`", id.escape_debug());
    problems.add(Problem::error(origin.clone(), message).with_help("use an id that is defined, or remove the entry"));
}

/// The ids of one list, each defined and named once; at least one.
fn references<T>(
    what: &str,
    pipeline: &super::service::WrittenPipeline,
    written: &[(String, Origin)],
    definitions: &mut [super::Definition<T>],
    problems: &mut Problems,
) -> Vec<String> {
    if written.is_empty() {
        let message = format!("the pipeline `{}` has no {what}", pipeline.id);
        problems.add(
            Problem::error(pipeline.origin.clone(), message).with_help(format!("name at least one under `{what}s:`")),
        );
    }
    let mut ids: Vec<String> = Vec::new();
    for (id, origin) in written {
        if ids.contains(id) {
            let message = format!("the pipeline `{}` names the {what} `{id}` twice", pipeline.id);
            problems.add(Problem::error(origin.clone(), message).with_help("remove one of them"));
        } else if refer(what, id, origin, definitions, problems).is_some() {
            ids.push(id.clone());
        }
    }
    ids
}

pub fn receivers(written: &mut Written, pipelines: &[PipelinePlan]) -> Vec<ReceiverPlan> {
    let used = |id: &String| pipelines.iter().any(|pipeline| pipeline.receivers.contains(id));
    let definitions = written.receivers.iter_mut().filter(|definition| used(&definition.id));
    definitions
        .filter_map(|definition| {
            Some(ReceiverPlan { id: definition.id.clone(), settings: definition.settings.take()? })
        })
        .collect()
}

pub fn exporters(written: &mut Written, resolved: &Resolved, problems: &mut Problems) -> Vec<ExporterPlan> {
    for extra in &written.forebay.exporters {
        if !written.exporters.iter().any(|definition| same_id(&definition.id, &extra.id)) {
            undefined("exporters", &extra.id, &extra.origin, problems);
        }
    }
    let mut cursors = StoredNames::new("cursor_id");
    let mut plans = Vec::new();
    for definition in written.exporters.iter_mut().filter(|definition| definition.used) {
        let Some(exporter) = definition.settings.take() else { continue };
        let id = definition.id.clone();
        if let Some(storage) = &exporter.sending_queue.storage
            && !written.service.extensions.iter().any(|(extension, _)| extension == storage)
        {
            let message = format!(
                "sending_queue.storage: the extension `{}` is not in service.extensions",
                storage.escape_debug()
            );
            problems.add(
                Problem::error(exporter.storage_origin, message)
                    .with_help("name it there, or remove `storage`: the queue is durable without it"),
            );
        }
        let extra = written.forebay.exporters.iter().find(|extra| same_id(&extra.id, &id));
        if let Some(extra) = extra.filter(|_| !exporter.settings.is_remote()) {
            let keys = [
                ("max_request_bytes", extra.max_request_bytes.is_some()),
                ("status_policy", extra.status_policy.is_some()),
                ("on_partial_success", extra.parks_partial.is_some()),
            ];
            for (key, _) in keys.iter().filter(|(_, is_set)| *is_set) {
                let message = format!("forebay.exporters.{id}.{key} has no effect: no server answers this exporter");
                problems.add(Problem::error(extra.origin.clone(), message).with_help("remove the key"));
            }
        }
        let chosen = extra.and_then(|extra| extra.cursor_id.clone());
        let (cursor_id, origin) =
            chosen.unwrap_or_else(|| (stored_name(&definition.canonical_id), definition.origin.clone()));
        if let Err(problem) = cursors.claim(&cursor_id, &format!("exporter `{id}`"), &origin) {
            problems.add(problem);
        }
        let mut sending_queue = exporter.sending_queue;
        if let Some((_, limits)) = resolved.batches.iter().find(|(exporter, _)| *exporter == id)
            && !sending_queue.batch_is_set
        {
            sending_queue.batch = limits.clone();
        }
        plans.push(ExporterPlan {
            id,
            cursor_id,
            settings: exporter.settings,
            retry: exporter.retry,
            sending_queue,
            on_full: extra.and_then(|extra| extra.on_full).unwrap_or(written.forebay.queue.on_full),
            start_at: extra.and_then(|extra| extra.start_at).unwrap_or_default(),
            max_request_bytes: extra.and_then(|extra| extra.max_request_bytes),
            status_policy: extra.and_then(|extra| extra.status_policy.clone()).unwrap_or_default(),
            parks_partial: extra.and_then(|extra| extra.parks_partial).unwrap_or(false),
        });
    }
    plans
}

/// One dead destination stops the intake of all that share its queue and block: somebody should know that beforehand.
pub fn warn_of_blocking(
    written: &Written,
    pipelines: &[PipelinePlan],
    exporters: &[ExporterPlan],
    problems: &mut Problems,
) {
    for pipeline in pipelines {
        let blocks = |id: &&String| exporters.iter().any(|e| e.id == **id && e.on_full == OnFull::Block);
        let blocking: Vec<&str> = pipeline.exporters.iter().filter(blocks).map(String::as_str).collect();
        let origin = written.service.pipelines.iter().find(|written| written.id == pipeline.id).map(|p| &p.origin);
        let (Some(origin), true) = (origin, blocking.len() > 1) else { continue };
        let message = format!(
            "the exporters {} of the pipeline `{}` share one queue, and each of them blocks it when it is full: while \
             one destination is away for long, the others get nothing new either",
            blocking.iter().map(|id| format!("`{id}`")).collect::<Vec<_>>().join(", "),
            pipeline.id
        );
        let help = "set forebay.exporters.<id>.on_full: drop where losing the oldest data is better, or give the queue more room";
        problems.add(Problem::warning(origin.clone(), message).with_help(help));
    }
}
