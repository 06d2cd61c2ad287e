//! `forebay dlq`: dead letters, looked at, repaired, sent again or ended.
//!
//! With a process running on the data directory it is asked; else the files are opened here, under its lock.

mod arguments;
mod edit;
mod editor;
mod export;
mod hints;
mod lock;
mod select;
mod show;
mod sieve;
mod times;

use std::path::Path;
use std::sync::Arc;

use http::Method;

use super::ask::{Way, block_on};
use super::{Failure, output};
use crate::admin::api::{self, Api, Progress, Purged};
use crate::admin::api::{PurgeRequest, ReplayRequest};
use crate::app::resend::Exporters;
use crate::config::Plan;
use crate::dedup;
use crate::dlq::{DeadLetters, Entry, Listed, OnFull, SeenBefore, Shelf};
use crate::storage::{Disk, RealDisk, store};

pub use arguments::DlqCommand;
use arguments::{List, Place, Purge, Replay, Show};
use hints::Hints;
use lock::Held;
use select::{escape, filter, query};

const PAGE: usize = 500;

pub fn run(command: DlqCommand) -> Result<(), Failure> {
    match command {
        DlqCommand::List(list) => at(&list.place.clone(), async |way| self::list(way, list).await),
        DlqCommand::Show(show) => at(&show.place.clone(), async |way| self::show(way, show).await),
        DlqCommand::Export(export) => at(&export.place.clone(), async |way| export::export(way, export).await),
        DlqCommand::Edit(edit) => at(&edit.place.clone(), async |way| edit::edit(way, edit).await),
        DlqCommand::Replay(replay) => at(&replay.place.clone(), async |way| self::replay(way, replay).await),
        DlqCommand::Purge(purge) => at(&purge.place.clone(), async |way| self::purge(way, purge).await),
    }
}

/// Does the work against the process of the data directory, or against its files.
fn at(place: &Place, work: impl AsyncFnOnce(Way) -> Result<(), Failure>) -> Result<(), Failure> {
    let (dir, plan) = super::queue::existing(&place.run)?;
    let done = block_on(async {
        match lock::take(&dir).await? {
            Held::Process(way) => work(way).await,
            Held::Files(lock) => {
                store::format::check(&RealDisk, &dir).map_err(|error| super::queue::failed(&error))?;
                let done = work(files(&dir, plan.as_ref())?).await;
                drop(lock);
                done
            }
        }
    });
    done.map_err(|failure| match failure {
        Failure::Other(message) => Failure::Other(Hints::of(place).complete(&message)),
        failure => failure,
    })
}

/// The same API, over the files.
fn files(dir: &Path, plan: Option<&Plan>) -> Result<Way, Failure> {
    let max_bytes = plan.map(|plan| plan.dead_letters.clone()).unwrap_or_default().max_size_bytes;
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let (shelf, damage) = Shelf::open(&disk, dir, max_bytes, None)
        .map_err(|error| Failure::Other(format!("failed to open the dead letters in {}: {error}", dir.display())))?;
    damage.iter().for_each(|damage| output::complain(&format_args!("warning: {damage}")));
    let exporters = match plan {
        Some(plan) => Exporters::of_plan(plan, dir).map_err(|error| Failure::Other(error.to_string()))?,
        None => Exporters::default(),
    };
    let data_dir = dir.to_owned();
    // Without a process nobody can tell the records' keys from others.
    let memory = SeenBefore::new(move |_| dedup::forget_everything(disk.as_ref(), &data_dir));
    let letters = Arc::new(DeadLetters::new(shelf, OnFull::Block).remembered_by(memory));
    Ok(Way::Files { router: api::router(Api::new(letters, Arc::new(exporters), None)), damaged: damage.len() })
}

fn to_json(value: &impl serde::Serialize) -> Result<Vec<u8>, Failure> {
    serde_json::to_vec(value).map_err(|error| Failure::Other(error.to_string()))
}

async fn list(mut way: Way, list: List) -> Result<(), Failure> {
    let query = query(&filter(&list.select, Vec::new())?);
    let wanted = if list.limit == 0 { usize::MAX } else { list.limit };
    let mut found = Listed::default();
    loop {
        let limit = PAGE.min(wanted - found.letters.len());
        // How many there are is asked once, and not at all where every one is fetched.
        let more = match found.next.take() {
            Some(after) => format!("&after={after}"),
            None if list.limit > 0 => "&count=true".to_owned(),
            None => String::new(),
        };
        let path = format!("/api/v1/dlq?{query}&limit={limit}{more}");
        let page: Listed = way.json(Method::GET, &path, Vec::new()).await?;
        found.matching = found.matching.or(page.matching);
        found.letters.extend(page.letters);
        found.next = page.next;
        if found.next.is_none() || found.letters.len() >= wanted {
            break;
        }
    }
    found.matching = found.matching.or(Some(found.letters.len()));
    if list.place.json { super::queue::print_json(&found) } else { output::print(&show::list(&found)) }
}

async fn show(mut way: Way, show: Show) -> Result<(), Failure> {
    let path = format!("/api/v1/dlq/{}?payload={}", escape(&show.id), show.show_payload);
    let entry: Entry = way.json(Method::GET, &path, Vec::new()).await?;
    if show.place.json { super::queue::print_json(&entry) } else { output::print(&show::entry(&entry)) }
}

async fn replay(mut way: Way, replay: Replay) -> Result<(), Failure> {
    let request = ReplayRequest {
        filter: filter(&replay.select, replay.ids)?,
        all: replay.all,
        to: replay.to,
        rate: replay.rate,
        dry_run: replay.dry_run,
        failures_max: Some(replay.max_failures),
    };
    let mut progress = show::ReplayProgress::new(replay.place.json, Hints::of(&replay.place));
    let mut rest = Vec::new();
    let lines = |bytes: &[u8]| {
        rest.extend_from_slice(bytes);
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = rest.drain(..=end).collect();
            let read: Progress = serde_json::from_slice(&line)
                .map_err(|error| Failure::Other(format!("the answer cannot be read: {error}")))?;
            progress.take(&read)?;
        }
        Ok(())
    };
    way.stream(Method::POST, "/api/v1/dlq/replay", to_json(&request)?, lines).await?;
    progress.end()
}

async fn purge(mut way: Way, purge: Purge) -> Result<(), Failure> {
    let request = PurgeRequest { filter: filter(&purge.select, purge.ids)?, all: purge.all, dry_run: purge.dry_run };
    let purged: Purged = way.json(Method::POST, "/api/v1/dlq/purge", to_json(&request)?).await?;
    if purge.place.json {
        super::queue::print_json(&purged)?;
    } else {
        let word = if purged.dry_run { "would be" } else { "were" };
        output::print(&format!("{} letters with {} items {word} purged\n", purged.letters, purged.items))?;
    }
    select::strangers(&purged.unknown)
}
