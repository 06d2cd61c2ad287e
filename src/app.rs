//! Start and stop order of one process.
//!
//! Start: logs, metrics, ports, data directory (recovery; `/livez` answers meanwhile), exporters, delivery, receivers,
//! ready. Stop: not ready, `linger` with open receivers, receivers closed and their requests answered, queues
//! drained until the deadline, a last checkpoint.

mod build;
mod figures;
mod letters;
mod limits;
mod observe;
pub mod resend;
mod running;
mod seen;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal as UnixSignal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::admin::api::{self, Api};
use crate::admin::{self, Health, Phase, control};
use crate::config::{LogEncoding, Plan};
use crate::receivers::listen::BindError;
use crate::storage::{Options, RealDisk, Store, StoreError};
use crate::telemetry;
use resend::Exporters;
use running::Running;

/// How often the embedded default says that nothing leaves this machine.
const REMIND_EVERY: Duration = Duration::from_secs(60);
/// Blocking work: large bodies, cold reads, large compressions.
const BLOCKING_THREADS_MAX: usize = 16;
/// Exit code after a second signal.
const EXIT_AT_ONCE: i32 = 130;

/// Why the process could not start or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Bind(#[from] BindError),
    #[error("{error}{}", hint(error))]
    Store {
        #[from]
        error: StoreError,
    },
    #[error("exporters.{id}: {reason}")]
    Exporter { id: String, reason: String },
    #[error("failed to set up the process: {0}")]
    Setup(String),
}

fn hint(error: &StoreError) -> &'static str {
    match error {
        StoreError::Io { cause, .. } => match cause.kind() {
            std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem => {
                "; give this user a directory that it may write, with --data-dir or FOREBAY_DATA_DIR"
            }
            std::io::ErrorKind::NotADirectory => "; a file is in the way: choose another --data-dir",
            std::io::ErrorKind::StorageFull => "; free some space on that file system, or choose another --data-dir",
            _ => "",
        },
        _ => "",
    }
}

/// Runs a plan until it is told to stop.
pub fn run(plan: Plan, data_dir: PathBuf) -> Result<(), Error> {
    let encoding = match plan.telemetry.log_encoding {
        LogEncoding::Console => telemetry::LogEncoding::Console,
        LogEncoding::Json => telemetry::LogEncoding::Json,
    };
    telemetry::init_logs(plan.telemetry.log_level, encoding);
    limits::refuse_huge_pages();
    runtime()?.block_on(start(plan, data_dir))
}

fn runtime() -> Result<Runtime, Error> {
    // Follows the processor quota of the cgroup.
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    Builder::new_multi_thread()
        .worker_threads(workers)
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .enable_all()
        .build()
        .map_err(|error| Error::Setup(error.to_string()))
}

async fn start(plan: Plan, data_dir: PathBuf) -> Result<(), Error> {
    let setup = |error: &dyn std::fmt::Display| Error::Setup(error.to_string());
    let mut stop_signals = StopSignals::new().map_err(|error| setup(&error))?;
    let handle = telemetry::install_metrics().map_err(|error| setup(&error))?;
    telemetry::observe_process();
    let upkeep = handle.clone();
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(telemetry::UPKEEP_EVERY).await;
            upkeep.run_upkeep();
        }
    });

    let pages_end = CancellationToken::new();
    let health = Arc::new(Health::default());
    let page = admin::health_page(&plan.health.endpoint, &plan.health.path, Arc::clone(&health)).await?;
    tracing::info!(addresses = ?page.addresses(), "health endpoint");
    page.serve(&pages_end);
    let figures = figures::Figures::default();
    if let Some(endpoint) = &plan.telemetry.metrics_endpoint {
        let refreshed = figures.clone();
        let page = admin::metrics_page(endpoint, handle, move || refreshed.refresh()).await?;
        tracing::info!(addresses = ?page.addresses(), "metrics page");
        page.serve(&pages_end);
    }
    let admin_port = match &plan.admin {
        Some(admin) => Some(admin::admin_port(admin).await?),
        None => None,
    };
    let receivers = build::bind_receivers(&plan).await?;

    let memory = limits::Memory::new(plan.memory_limit_bytes, plan.exporters.len());
    let options = Options {
        max_size_bytes: plan.queue.max_size_bytes,
        tail_bytes_max: memory.tail_bytes,
        syncs_per_second_max: plan.max_syncs_per_second,
        ..Options::default()
    };
    let dir = data_dir.clone();
    let observer = observe::StorageObserver::default();
    let seen_before = Arc::clone(&observer.dedup);
    let opening =
        tokio::task::spawn_blocking(move || Store::open(Arc::new(RealDisk), &dir, &options, Arc::new(observer)));
    let (store, report) = opening.await.map_err(|error| setup(&error))??;
    let store = Arc::new(store);
    observe::log_recovery(&data_dir, &store, &report);

    let mut running = Running::start(&plan, &data_dir, &memory, &store, receivers, &seen_before)?;
    let dedup = running.dedup.take();
    let budget = &running.budget;
    let exporters = running.subscriptions.iter().map(|one| &one.destination);
    let exporters = exporters.map(|one| (one.id.clone(), Arc::clone(&one.exporter))).collect();
    let retry = Box::new(observe::answer_retry(&running.subscriptions));
    let api = Api::new(Arc::clone(&running.dead_letters), Arc::new(Exporters(exporters)), Some(retry));
    let api = api::router(api);
    if let Some(port) = admin_port {
        let page = port.page(api.clone());
        tracing::info!(addresses = ?page.addresses(), "admin API");
        page.serve(&pages_end);
    }
    let control = control::serve(&data_dir, api, pages_end.clone()).inspect_err(|error| {
        tracing::warn!(%error, "no control socket in the data directory: `forebay queue retry` and `forebay dlq` cannot reach this process");
    });
    let letters = Arc::clone(&running.dead_letters);
    let subscriptions = std::mem::take(&mut running.subscriptions);
    figures.set(Arc::clone(&store), budget.clone(), subscriptions, Arc::clone(&letters), dedup.clone());
    health.set_checks(observe::disk_check(&store), observe::capacity_check(&store, budget));
    health.set_phase(Phase::Running);
    tracing::info!(version = env!("CARGO_PKG_VERSION"), data_dir = %data_dir.display(), "ready");
    if !running.leaves_machine {
        remind(std::mem::take(&mut running.local_paths));
    }

    stop_signals.next().await;
    tokio::spawn(async move {
        stop_signals.next().await;
        tracing::warn!("a second signal: exiting at once; what was acknowledged is on disk");
        std::process::exit(EXIT_AT_ONCE);
    });
    health.set_phase(Phase::Stopping);
    running.stop(&plan.shutdown).await;
    let closing = Arc::clone(&store);
    let close = move || {
        letters.shelf().close();
        closing.close();
        if let Some(dedup) = dedup {
            dedup.close();
        }
    };
    tokio::task::spawn_blocking(close).await.map_err(|error| setup(&error))?;
    observe::log_left_behind(&data_dir, &store);
    pages_end.cancel();
    // Its socket goes while the data directory is still ours.
    if let Ok(control) = control {
        control.await.map_err(|error| setup(&error))?;
    }
    drop(store);
    Ok(())
}

/// Says every minute that the data stays here, lest somebody relies on it arriving elsewhere.
fn remind(local_paths: Vec<PathBuf>) {
    tokio::spawn(async move {
        loop {
            tracing::warn!(
                files = ?local_paths,
                "no exporter sends anything to another machine: what arrives is kept here; \
                 configure an otlp_http or otlp_grpc exporter to send it on"
            );
            tokio::time::sleep(REMIND_EVERY).await;
        }
    });
}

/// SIGTERM and SIGINT.
struct StopSignals {
    terminate: UnixSignal,
    interrupt: UnixSignal,
}

impl StopSignals {
    fn new() -> std::io::Result<StopSignals> {
        Ok(StopSignals { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
