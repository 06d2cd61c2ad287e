//! Dedup from the plan: what each queue wants, and what a restart brought back.

use std::sync::Arc;

use crate::config::{PipelinePlan, Plan};
use crate::dedup::clock::Clock;
use crate::dedup::{Bounds, Dedup, Ground, Wanted};
use crate::storage::log::Drive;
use crate::storage::{Log, Store, StoreError};

use super::Error;
use super::limits::Memory;

pub fn open(
    plan: &Plan,
    memory: &Memory,
    store: &Store,
    queues: &[(&PipelinePlan, Arc<Log>)],
) -> Result<Option<Arc<Dedup>>, Error> {
    let is_wanted = |pipeline: &PipelinePlan| plan.dedup.requests.contains(&pipeline.signal);
    let count = queues.iter().filter(|(pipeline, _)| is_wanted(pipeline)).count() as u64;
    let bytes_max = |configured: Option<u64>| configured.unwrap_or(memory.dedup_bytes);
    let wanted = || {
        queues.iter().map(|(pipeline, log)| Wanted {
            log: Arc::clone(log),
            signal: pipeline.signal,
            requests: is_wanted(pipeline).then(|| Bounds {
                window: plan.dedup.window,
                bytes_max: bytes_max(plan.dedup.max_memory_bytes) / count.max(1),
            }),
            spans: pipeline
                .dedup
                .as_ref()
                .map(|spans| (spans.by, Bounds { window: spans.window, bytes_max: bytes_max(spans.max_memory_bytes) })),
        })
    };
    let ground = || Ground {
        disk: Arc::clone(store.disk()),
        space: Arc::clone(store.space()),
        data_dir: store.dir().to_owned(),
        clock: Clock::real(),
        drive: Drive::Threads,
    };
    let opened = store.with_room(|| {
        Dedup::open(ground(), wanted().collect()).map_err(StoreError::io("open the fingerprints in", store.dir()))
    });
    let Some((dedup, report)) = opened? else { return Ok(None) };
    for (queue, restored) in report {
        if restored.ignored > 0 {
            tracing::warn!(
                queue,
                ignored = restored.ignored,
                "fingerprints of records that are not there do not count: what they held may come again"
            );
        }
        tracing::info!(
            queue,
            fingerprints = restored.fingerprints,
            rebuilt_records = restored.rebuilt_records,
            "what was seen before is known again"
        );
    }
    Ok(Some(Arc::new(dedup)))
}
