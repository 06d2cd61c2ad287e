//! `forebay queue`: what lies in a data directory, and what a person may do about it.

mod arguments;
mod show;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use serde::Serialize;

use super::arguments::RunArguments;
use super::{Failure, ask, output};
use crate::admin::api::{Retried, RetryRequest};
use crate::config::Plan;
use crate::dlq::name_on_disk;
use crate::storage::log::{Lost, Observer};
use crate::storage::store::OpenReport;
use crate::storage::survey::{Depth, survey};
use crate::storage::{Options, RealDisk, Store, StoreError};

pub use arguments::QueueCommand;
use arguments::{Forget, Place, Retry};

pub fn run(command: QueueCommand) -> Result<(), Failure> {
    match command {
        QueueCommand::Inspect(place) => look(&place, Depth::Headers),
        QueueCommand::Verify(place) => look(&place, Depth::Records),
        QueueCommand::Repair(place) => repair(&place),
        QueueCommand::Forget(forget) => self::forget(&forget),
        QueueCommand::Retry(retry) => self::retry(&retry),
    }
}

/// The data directory as a start would find it, and the plan where a configuration is named.
fn resolve(run: &RunArguments) -> Result<(PathBuf, Option<Plan>), Failure> {
    let plan = if run.config.config.is_empty() { None } else { Some(super::load(&run.config)?) };
    let setting = plan.as_ref().and_then(|plan| plan.data_dir.as_ref());
    let dir = super::data_dir(run.data_dir.as_deref(), setting)?;
    Ok((dir, plan))
}

pub(super) fn existing(run: &RunArguments) -> Result<(PathBuf, Option<Plan>), Failure> {
    let (dir, plan) = resolve(run)?;
    if !dir.join("FORMAT").is_file() {
        return Err(Failure::Other(format!(
            "{} is no data directory: there is no FORMAT file in it\n  help: name the right one with --data-dir",
            dir.display()
        )));
    }
    Ok((dir, plan))
}

pub(super) fn failed(error: &StoreError) -> Failure {
    match error {
        StoreError::InUse { path, pid } => {
            // Whoever has just taken the lock has not signed it yet.
            let who = if pid.is_empty() { "another process".to_owned() } else { format!("process {pid}") };
            Failure::Other(format!(
                "{} is in use by {who}: stop it first; inspect, verify and retry work while it runs",
                path.display()
            ))
        }
        error => Failure::Other(error.to_string()),
    }
}

pub(super) fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).map_err(|error| Failure::Other(error.to_string()))?;
    output::print(&format!("{text}\n"))
}

fn look(place: &Place, depth: Depth) -> Result<(), Failure> {
    let (dir, _) = existing(&place.run)?;
    let found = survey(&dir, depth).map_err(|error| failed(&error))?;
    if place.json {
        print_json(&found)?
    } else {
        output::print(&show::survey(&found, depth))?
    }
    if depth == Depth::Records && found.is_damaged() {
        return Err(Failure::Other(
            "the data directory is damaged; what is whole is delivered all the same\n  help: `forebay queue repair` on \
             the stopped process settles what is lost of queues, the next start what is lost of dead letters"
                .to_owned(),
        ));
    }
    Ok(())
}

/// Notes what recovery says, for the report.
#[derive(Default)]
struct Notes(Mutex<Vec<String>>);

impl Observer for Notes {
    fn failed(&self, queue: &str, operation: &'static str, error: &std::io::Error) {
        self.0.lock().push(format!("failed to {operation} the queue \"{queue}\": {error}"));
    }
    fn damaged(&self, _queue: &str, _lost: &Lost) {}
}

fn repair(place: &Place) -> Result<(), Failure> {
    let (dir, _) = existing(&place.run)?;
    let notes = Arc::new(Notes::default());
    let (store, report) = Store::repair(Arc::new(RealDisk), &dir, Arc::clone(&notes) as Arc<dyn Observer>)
        .map_err(|error| failed(&error))?;
    store.close();
    let failures = notes.0.lock().clone();
    let repaired = show::Repaired::new(&report, &failures);
    if place.json {
        print_json(&repaired)?
    } else {
        output::print(&repaired.text())?
    }
    if failures.is_empty() { Ok(()) } else { Err(Failure::Other("not everything could be mended".to_owned())) }
}

fn open(dir: &Path, notes: &Arc<Notes>) -> Result<(Store, OpenReport), Failure> {
    let observer = Arc::clone(notes) as Arc<dyn Observer>;
    Store::open(Arc::new(RealDisk), dir, &Options::default(), observer).map_err(|error| failed(&error))
}

/// The name of a queue or a cursor; that of a pipeline or an exporter stands for its own.
fn on_disk(name: &Option<String>) -> Option<String> {
    name.as_deref().map(name_on_disk)
}

/// What one name's removal brought.
#[derive(Serialize)]
struct Forgotten {
    queue: String,
    /// None: the whole queue.
    exporter: Option<String>,
    /// Records that will not be delivered any more: of the exporter, or all that the queue held.
    records: u64,
    items: u64,
}

fn forget(command: &Forget) -> Result<(), Failure> {
    let (dir, plan) = existing(&command.place.run)?;
    let command = &Forget { queue: on_disk(&command.queue), exporter: on_disk(&command.exporter), ..command.clone() };
    if let Some(plan) = &plan {
        refuse_configured(command, plan)?;
    }
    let notes = Arc::new(Notes::default());
    let (store, report) = open(&dir, &notes)?;
    // Opening settles what is lost, once: this is the only time that it is said.
    show::findings(&report).for_each(|finding| output::complain(&finding));
    let mut forgotten = Vec::new();
    let queues = store.queues();
    let queues = queues.iter().map(|log| log.id().to_owned());
    for queue in queues.filter(|id| command.queue.as_ref().is_none_or(|wanted| wanted == id)) {
        let weight = match &command.exporter {
            Some(exporter) => store.forget_cursor(&queue, exporter).map_err(|error| failed(&error))?,
            None => store.forget_queue(&queue).map_err(|error| failed(&error))?,
        };
        if let Some(weight) = weight {
            let (records, items) = (weight.records, weight.items);
            forgotten.push(Forgotten { queue, exporter: command.exporter.clone(), records, items });
        }
    }
    let known: Vec<String> = store.queues().iter().map(|log| show::known(log)).collect();
    store.close();
    if let Some(failure) = notes.0.lock().first() {
        return Err(Failure::Other(failure.clone()));
    }
    if forgotten.is_empty() {
        return Err(Failure::Other(format!("nothing has that name\n  help: there are {}", known.join("; "))));
    }
    if command.place.json {
        return print_json(&forgotten);
    }
    output::print(&forgotten.iter().map(show::forgotten).collect::<String>())
}

/// A name that the configuration still has is probably a mistake.
fn refuse_configured(command: &Forget, plan: &Plan) -> Result<(), Failure> {
    let queue = command.queue.as_deref();
    let still = match command.exporter.as_deref() {
        Some(exporter) => plan.pipelines.iter().any(|pipeline| {
            let of_queue = queue.is_none_or(|queue| queue == pipeline.queue_id);
            let cursors = plan.exporters.iter().filter(|known| pipeline.exporters.contains(&known.id));
            of_queue && cursors.into_iter().any(|known| known.cursor_id == exporter)
        }),
        None => plan.pipelines.iter().any(|pipeline| Some(pipeline.queue_id.as_str()) == queue),
    };
    if still {
        return Err(Failure::Other(
            "the configuration still has it\n  help: remove it there first, or leave --config out and name --data-dir"
                .to_owned(),
        ));
    }
    Ok(())
}

/// What `retry` brought.
#[derive(Serialize)]
struct RetryReport {
    running: bool,
    ranges: u64,
}

fn retry(command: &Retry) -> Result<(), Failure> {
    let (dir, _) = existing(&command.place.run)?;
    let request = RetryRequest { queue: on_disk(&command.queue), exporter: on_disk(&command.exporter) };
    let body = serde_json::to_vec(&request).map_err(|error| Failure::Other(error.to_string()))?;
    let answer: Option<Retried> = ask::block_on(async {
        match ask::process(&dir).await? {
            Some(mut way) => way.json(http::Method::POST, "/api/v1/queue/retry", body).await.map(Some),
            None => Ok(None),
        }
    })?;
    let ranges = answer.as_ref().map_or(0, |answer| answer.ranges);
    if command.place.json {
        return print_json(&RetryReport { running: answer.is_some(), ranges });
    }
    output::print(&match answer {
        Some(_) => format!("{ranges} ranges that were set aside are tried again now\n"),
        None => "no process uses the data directory; what is set aside is tried again when one starts\n".to_owned(),
    })
}
