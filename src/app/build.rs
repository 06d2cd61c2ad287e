//! From the plan to running parts.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio_util::task::TaskTracker;

use crate::config::{ExporterPlan, Plan, StartAt as PlannedStart};
use crate::dedup::Dedup;
use crate::dlq::DeadLetters;
use crate::exporters::Context;
use crate::otlp::Signal;
use crate::pipeline::{self, BatchPolicy, Destination, Drain, Parking, Policy, RetryPolicy};
use crate::queue::{Giver, Park, Router, Subscription};
use crate::receivers::otlp::Bound;
use crate::settings::{OnFull, Sizer};
use crate::storage::log::Position;
use crate::storage::{Log, StartAt, Store, Weight};
use crate::telemetry::{self, ExporterMetrics};

use super::limits::Memory;
use super::observe::{ExporterMeter, Observed};
use super::{Error, letters, seen};

/// Drops of one exporter are logged this often at the most; the count is in the metrics.
const LOG_DROPS_EVERY: Duration = Duration::from_secs(10);

/// What runs, for those who watch it.
pub struct Built {
    /// One per receiver, in the plan's order.
    pub routers: Vec<Router>,
    /// None: nobody wants it.
    pub dedup: Option<Arc<Dedup>>,
    pub subscriptions: Vec<Observed>,
    /// Those that give up old records at the cap.
    pub givers: Vec<Giver>,
    pub leaves_machine: bool,
    /// Files of `file` exporters.
    pub local_paths: Vec<PathBuf>,
}

/// Opens every receiver's ports, in the plan's order.
pub async fn bind_receivers(plan: &Plan) -> Result<Vec<Bound>, Error> {
    let mut bound = Vec::new();
    for receiver in &plan.receivers {
        bound.push(receiver.settings.bind(&receiver.id).await?);
    }
    Ok(bound)
}

/// Opens the queues, builds the exporters and starts delivery.
pub fn build(
    plan: &Plan,
    data_dir: &Path,
    store: &Store,
    dead_letters: &Arc<DeadLetters>,
    memory: &Memory,
    (drain, deliveries): (&Drain, &TaskTracker),
    seen_before: &OnceLock<Arc<Dedup>>,
) -> Result<Built, Error> {
    let mut leaves_machine = false;
    let mut local_paths = Vec::new();
    let mut destinations: BTreeMap<&str, (&ExporterPlan, Arc<Destination>)> = BTreeMap::new();
    for exporter in &plan.exporters {
        let context = Context {
            id: &exporter.id,
            data_dir,
            max_request_bytes: exporter.max_request_bytes,
            status_policy: &exporter.status_policy,
        };
        let built = exporter
            .settings
            .build(&context)
            .map_err(|error| Error::Exporter { id: exporter.id.clone(), reason: error.0 })?;
        local_paths.extend(built.local_path().map(Path::to_owned));
        leaves_machine |= built.leaves_machine();
        let destination = Destination::new(
            &exporter.id,
            built,
            Policy {
                retry: retry_policy(exporter),
                batch: batch_policy(exporter),
                consumers: exporter.sending_queue.num_consumers,
                memory_bytes: memory.delivery_bytes,
                parking: Some(Parking { letters: Arc::clone(dead_letters), keeps_partial: exporter.parks_partial }),
            },
            Arc::new(ExporterMeter(ExporterMetrics::new(&exporter.id))),
        );
        destinations.insert(&exporter.id, (exporter, destination));
    }

    let mut routers: Vec<Router> = plan.receivers.iter().map(|_| Router::new()).collect();
    let mut subscriptions = Vec::new();
    let mut givers = Vec::new();
    let mut queues = Vec::new();
    let mut planned: BTreeMap<&str, Signal> = BTreeMap::new();
    for pipeline in &plan.pipelines {
        let exporters: Vec<_> = pipeline.exporters.iter().filter_map(|id| destinations.get(id.as_str())).collect();
        let cursors: Vec<(String, StartAt)> = exporters
            .iter()
            .map(|(exporter, _)| {
                let start = match exporter.start_at {
                    PlannedStart::End => StartAt::End,
                    PlannedStart::Beginning => StartAt::Beginning,
                };
                (exporter.cursor_id.clone(), start)
            })
            .collect();
        let log = store.queue(&pipeline.queue_id, &cursors)?;
        for (exporter, _) in &exporters {
            if let Some(size) = exporter.sending_queue.queue_size {
                log.limit_backlog(&exporter.cursor_id, exporter.sending_queue.sizer, size);
            }
        }
        planned.insert(&pipeline.queue_id, pipeline.signal);
        queues.push((pipeline, log));
    }
    let dedup = seen::open(plan, memory, store, &queues)?;
    if let Some(dedup) = &dedup {
        // Storage tells it what is gone from the first delivery's first read on; nobody else sets it.
        let _ = seen_before.set(Arc::clone(dedup));
    }
    for (pipeline, log) in &queues {
        let gate = dedup.as_ref().and_then(|dedup| dedup.gate(log.id()));
        for (receiver, router) in plan.receivers.iter().zip(&mut routers) {
            if pipeline.receivers.contains(&receiver.id) {
                router.add_behind(pipeline.signal, Arc::clone(log), gate.clone());
            }
        }
    }
    // Queues of pipelines that are gone go on draining to exporters that are still here.
    for log in store.queues() {
        let planned = planned.get(log.id()).copied();
        let signal = planned.map(|signal| signal.name());
        for cursor in log.status().cursors {
            let exporter = destinations.values().find(|(exporter, _)| exporter.cursor_id == cursor.name);
            match exporter {
                Some((exporter, destination)) => {
                    if exporter.on_full != OnFull::Block {
                        log.let_give_way(&cursor.name);
                    }
                    let subscription = Subscription::new(Arc::clone(&log), &cursor.name);
                    deliveries.spawn(pipeline::run(Arc::clone(&subscription), Arc::clone(destination), drain.clone()));
                    if exporter.on_full != OnFull::Block {
                        let signal = planned.or_else(|| signal_of(&log, &cursor.name));
                        let park = (exporter.on_full == OnFull::Park)
                            .then(|| letters::park_at_cap(dead_letters, log.id(), &exporter.id));
                        givers.push(giver(&subscription, &exporter.id, signal, park));
                    }
                    let destination = Arc::clone(destination);
                    subscriptions.push(Observed { signal: signal.unwrap_or("orphan"), subscription, destination });
                }
                None => warn_orphan(&log, &cursor.name, cursor.backlog.records),
            }
        }
        if signal.is_none() {
            tracing::warn!(queue = log.id(), "no pipeline feeds this queue any more; what it holds is still delivered");
        }
    }
    Ok(Built { routers, dedup, subscriptions, givers, leaves_machine, local_paths })
}

/// Of a queue without a pipeline: what its oldest record is. Whoever delivers it meets an error here again.
fn signal_of(log: &Log, cursor: &str) -> Option<Signal> {
    let low = log.cursor(cursor)?.low();
    let oldest = log.read_file(Position::at(low), 1, 1).ok()?.records.pop()?;
    Signal::from_u8(oldest.signal)
}

/// Counts what an exporter gives up, and says so now and then.
fn giver(subscription: &Arc<Subscription>, exporter: &str, signal: Option<Signal>, park: Option<Park>) -> Giver {
    let is_parked = park.is_some();
    let counted = signal.map(|signal| match is_parked {
        true => telemetry::queue_full_dead_letters(exporter, signal as usize - 1),
        false => telemetry::queue_full_drops(exporter, signal as usize - 1),
    });
    let (queue, exporter) = (subscription.queue().to_owned(), exporter.to_owned());
    let last = Mutex::new(None::<Instant>);
    let on_gone = move |weight: &Weight| {
        if let Some(counted) = &counted {
            counted.increment(weight.items);
        }
        let mut last = last.lock();
        if last.is_none_or(|at| at.elapsed() >= LOG_DROPS_EVERY) {
            *last = Some(Instant::now());
            let (items, records) = (weight.items, weight.records);
            if is_parked {
                tracing::error!(
                    %queue, %exporter, items, records,
                    "the queue is full: the oldest records of this exporter become dead letters (on_full: park); the count \
                     is in forebay_exporter_dead_lettered_*"
                );
            } else {
                tracing::error!(
                    %queue, %exporter, items, records,
                    "the queue is full: the oldest records of this exporter are dropped (on_full: drop); the count is in \
                     forebay_exporter_dropped_*"
                );
            }
        }
    };
    Giver { subscription: Arc::clone(subscription), park, on_gone: Box::new(on_gone) }
}

fn warn_orphan(log: &Log, cursor: &str, backlog_records: u64) {
    tracing::warn!(
        queue = log.id(),
        exporter = cursor,
        backlog_records,
        "this exporter is not configured any more; its backlog is kept (a typo must not delete data) and takes space"
    );
}

fn retry_policy(exporter: &ExporterPlan) -> RetryPolicy {
    let retry = &exporter.retry;
    RetryPolicy {
        enabled: retry.enabled,
        initial_interval: retry.initial_interval,
        max_interval: retry.max_interval,
        multiplier: retry.multiplier,
        randomization_factor: retry.randomization_factor,
        max_elapsed_time: retry.max_elapsed_time.unwrap_or(Duration::ZERO),
    }
}

fn batch_policy(exporter: &ExporterPlan) -> BatchPolicy {
    let limits = &exporter.sending_queue.batch;
    // Sizes in other units than items leave the bounds to bytes, which always hold.
    match limits.sizer {
        Sizer::Items => {
            BatchPolicy { min_items: limits.min_size, max_items: limits.max_size, flush_timeout: limits.flush_timeout }
        }
        _ => BatchPolicy { flush_timeout: limits.flush_timeout, ..BatchPolicy::default() },
    }
}
