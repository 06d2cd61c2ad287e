//! `forebay dlq`: dead letters, looked at, repaired, sent again or ended.
//!
//! With a process running on the data directory it is asked; else the files are opened here, under its lock.

mod arguments;
mod editor;
mod show;
mod sieve;

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use http::Method;

use super::ask::{self, Way, block_on};
use super::{Failure, output};
use crate::admin::api::{self, Api, Edited, Progress, Purged};
use crate::admin::api::{PurgeRequest, ReplayRequest};
use crate::app::resend::Exporters;
use crate::config::Plan;
use crate::dedup;
use crate::dlq::{DeadLetters, Entry, Filter, Listed, OnFull, Reason, SeenBefore, Shelf};
use crate::settings::parse_duration;
use crate::storage::{Disk, RealDisk, store, unix_now_ns};

pub use arguments::DlqCommand;
use arguments::{Edit, Export, List, Place, Purge, Replay, Select, Show};

const PAGE: usize = 500;

pub fn run(command: DlqCommand) -> Result<(), Failure> {
    match command {
        DlqCommand::List(list) => at(&list.place.clone(), async |way| self::list(way, list).await),
        DlqCommand::Show(show) => at(&show.place.clone(), async |way| self::show(way, show).await),
        DlqCommand::Export(export) => at(&export.place.clone(), async |way| self::export(way, export).await),
        DlqCommand::Edit(edit) => at(&edit.place.clone(), async |way| self::edit(way, edit).await),
        DlqCommand::Replay(replay) => at(&replay.place.clone(), async |way| self::replay(way, replay).await),
        DlqCommand::Purge(purge) => at(&purge.place.clone(), async |way| self::purge(way, purge).await),
    }
}

/// Does the work against the process of the data directory, or against its files.
fn at(place: &Place, work: impl AsyncFnOnce(Way) -> Result<(), Failure>) -> Result<(), Failure> {
    let (dir, plan) = super::queue::existing(&place.run)?;
    block_on(async {
        if let Some(way) = ask::process(&dir).await? {
            return work(way).await;
        }
        let lock = store::lock(&RealDisk, &dir).map_err(|error| super::queue::failed(&error))?;
        store::format::check(&RealDisk, &dir).map_err(|error| super::queue::failed(&error))?;
        let done = work(files(&dir, plan.as_ref())?).await;
        drop(lock);
        done
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

fn filter(select: &Select, ids: Vec<String>) -> Result<Filter, Failure> {
    let ago = |text: &Option<String>| -> Result<Option<u64>, Failure> {
        let Some(text) = text else { return Ok(None) };
        let duration =
            parse_duration(text).map_err(|reason| Failure::Usage(format!("the duration `{text}` {reason}")))?;
        Ok(Some((unix_now_ns() / 1_000_000).saturating_sub(duration.as_millis() as u64)))
    };
    let reason = match &select.reason {
        None => None,
        Some(name) => Some(Reason::parse(name).ok_or_else(|| {
            let known: Vec<&str> = Reason::ALL.iter().map(|reason| reason.name()).collect();
            Failure::Usage(format!("`{name}` is no reason\n  help: there are {}", known.join(", ")))
        })?),
    };
    Ok(Filter {
        ids,
        queue: select.queue.clone(),
        exporter: select.exporter.clone(),
        signal: select.signal.clone(),
        reason,
        service: select.service.clone(),
        since_unix_ms: ago(&select.since)?,
        until_unix_ms: ago(&select.until)?,
    })
}

/// The filter as it stands in a URL.
fn query(filter: &Filter) -> String {
    let mut query = Vec::new();
    let mut put = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            query.push(format!("{name}={}", escape(&value)));
        }
    };
    put("ids", Some(filter.ids.join(",")).filter(|ids| !ids.is_empty()));
    put("queue", filter.queue.clone());
    put("exporter", filter.exporter.clone());
    put("signal", filter.signal.clone());
    put("reason", filter.reason.map(|reason| reason.name().to_owned()));
    put("service", filter.service.clone());
    put("since_unix_ms", filter.since_unix_ms.map(|ms| ms.to_string()));
    put("until_unix_ms", filter.until_unix_ms.map(|ms| ms.to_string()));
    query.join("&")
}

/// Percent-encodes what has a meaning in a query.
fn escape(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.,".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { (byte as char).to_string() } else { format!("%{byte:02X}") }).collect()
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

async fn export(mut way: Way, export: Export) -> Result<(), Failure> {
    let path = format!("/api/v1/dlq/export?{}", query(&filter(&export.select, export.ids)?));
    let mut sieve = sieve::Sieve::new(output::complain);
    match export.output {
        None => {
            way.stream(Method::GET, &path, Vec::new(), |piece| sieve.take(piece, &mut output::print_bytes)).await?;
        }
        Some(target) => {
            let failed =
                |error: std::io::Error| Failure::Other(format!("failed to write {}: {error}", target.display()));
            // Prompts are personal data.
            let mut file =
                std::fs::File::options().write(true).create_new(true).mode(0o600).open(&target).map_err(failed)?;
            let mut write = |bytes: &[u8]| file.write_all(bytes).map_err(failed);
            way.stream(Method::GET, &path, Vec::new(), |piece| sieve.take(piece, &mut write)).await?;
            file.sync_all().map_err(failed)?;
        }
    }
    sieve.end()?;
    match way {
        Way::Files { damaged, .. } if damaged > 0 => Err(Failure::Other(
            "the files are damaged where it was said; what can be read of them was exported\n  \
             help: letters that lay there are lost, unless they can be read by other means"
                .to_owned(),
        )),
        _ => Ok(()),
    }
}

async fn edit(mut way: Way, edit: Edit) -> Result<(), Failure> {
    let path = format!("/api/v1/dlq/{}", escape(&edit.id));
    let text = match &edit.from {
        Some(file) => std::fs::read(file)
            .map_err(|error| Failure::Other(format!("failed to read {}: {error}", file.display())))?,
        None => {
            let entry: Entry = way.json(Method::GET, &format!("{path}?payload=true"), Vec::new()).await?;
            match editor::open(&entry)? {
                Some(text) => text,
                None => return output::print("nothing was changed\n"),
            }
        }
    };
    let edited: Edited = match way.json(Method::PUT, &path, text.clone()).await {
        Err(Failure::Other(message)) if edit.from.is_none() => {
            return Err(Failure::Other(format!("{message}\n  help: {}", editor::keep(&edit.id, &text))));
        }
        answered => answered?,
    };
    if edit.place.json {
        return super::queue::print_json(&edited);
    }
    output::print(&format!("letter {} has {} items now; `forebay dlq replay {0}` sends it\n", edited.id, edited.items))
}

async fn replay(mut way: Way, replay: Replay) -> Result<(), Failure> {
    let request = ReplayRequest {
        filter: filter(&replay.select, replay.ids)?,
        all: replay.all,
        to: replay.to,
        rate: replay.rate,
        dry_run: replay.dry_run,
    };
    let mut progress = show::ReplayProgress::new(replay.place.json);
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
        return super::queue::print_json(&purged);
    }
    let word = if purged.dry_run { "would be" } else { "were" };
    output::print(&format!("{} letters with {} items {word} purged\n", purged.letters, purged.items))
}
