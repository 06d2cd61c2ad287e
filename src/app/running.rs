//! What runs between start and stop: receivers, queues, deliveries.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::limits::Memory;
use super::observe::Observed;
use super::{build, letters};
use crate::config::{Plan, ShutdownPlan};
use crate::dedup::Dedup;
use crate::dlq::{Captures, DeadLetters};
use crate::pipeline::Drain;
use crate::queue::{Budget, Overflow};
use crate::receivers::otlp::Bound;
use crate::storage::Store;

pub struct Running {
    pub budget: Budget,
    pub subscriptions: Vec<Observed>,
    pub dedup: Option<Arc<Dedup>>,
    pub dead_letters: Arc<DeadLetters>,
    pub leaves_machine: bool,
    pub local_paths: Vec<PathBuf>,
    receivers_end: CancellationToken,
    serving: TaskTracker,
    drain: Drain,
    deliveries: TaskTracker,
    overflow: Overflow,
    /// Writes malformed payloads; ends when the receivers have.
    capturing: Option<JoinHandle<()>>,
}

impl Running {
    /// Starts delivery, then lets the receivers' open ports in.
    pub fn start(
        plan: &Plan,
        data_dir: &Path,
        memory: &Memory,
        store: &Arc<Store>,
        receivers: Vec<Bound>,
        seen_before: &Arc<OnceLock<Arc<Dedup>>>,
    ) -> Result<Running, super::Error> {
        let drain = Drain::default();
        let deliveries = TaskTracker::new();
        let dead_letters = letters::open(plan, store, seen_before)?;
        let built = build::build(plan, data_dir, store, &dead_letters, memory, (&drain, &deliveries), seen_before)?;
        deliveries.close();
        let overflow = Overflow::start(store, built.givers)
            .map_err(|error| super::Error::Setup(format!("failed to start a thread: {error}")))?;
        let budget = Budget::new(memory.intake_bytes);
        let receivers_end = CancellationToken::new();
        let serving = TaskTracker::new();
        if let Some(max_age) = plan.dead_letters.max_age {
            letters::expire(&dead_letters, max_age);
        }
        let (captures, capturing) = match plan.dead_letters.captures_invalid {
            true => {
                let (captures, write) = Captures::new(Arc::clone(dead_letters.shelf().ring()));
                (Some(captures), Some(tokio::spawn(write)))
            }
            false => (None, None),
        };
        for (bound, router) in receivers.into_iter().zip(built.routers) {
            tracing::info!(grpc = ?bound.grpc_addresses(), http = ?bound.http_addresses(), "receiving");
            serving.spawn(bound.serve(Arc::new(router), budget.clone(), captures.clone(), receivers_end.clone()));
        }
        serving.close();
        Ok(Running {
            budget,
            subscriptions: built.subscriptions,
            dedup: built.dedup,
            dead_letters,
            leaves_machine: built.leaves_machine,
            local_paths: built.local_paths,
            receivers_end,
            serving,
            drain,
            deliveries,
            overflow,
            capturing,
        })
    }

    /// `linger` with open receivers, then answers what is under way, then drains, all before the deadline.
    pub async fn stop(self, plan: &ShutdownPlan) {
        let deadline = tokio::time::Instant::now() + plan.deadline;
        tracing::info!(linger_s = plan.linger.as_secs_f64(), deadline_s = plan.deadline.as_secs_f64(), "stopping");
        tokio::time::sleep_until((tokio::time::Instant::now() + plan.linger).min(deadline)).await;
        self.receivers_end.cancel();
        if tokio::time::timeout_at(deadline, self.serving.wait()).await.is_err() {
            tracing::warn!("connections are still open at the deadline; their requests were not acknowledged");
        }
        if let Some(capturing) = self.capturing
            && tokio::time::timeout_at(deadline, capturing).await.is_err()
        {
            tracing::warn!("malformed payloads were not all kept by the deadline");
        }
        self.drain.drain.cancel();
        if tokio::time::timeout_at(deadline, self.deliveries.wait()).await.is_err() {
            tracing::warn!(
                "the queues are not drained at the deadline; what is left is kept and sent after the next start"
            );
        }
        self.drain.abort.cancel();
        self.deliveries.wait().await;
        self.overflow.close();
    }
}
