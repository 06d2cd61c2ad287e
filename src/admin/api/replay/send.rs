//! The letters of a replay on their way, one after the other.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::Progress;
use crate::admin::api::dlq::MALFORMED;
use crate::admin::api::{Api, Unsent};
use crate::dlq::{Description, Note, format_id};
use crate::storage::unix_now_ns;
use crate::telemetry;

/// For how long a slow reader is waited for: another replay waits for this one.
const READER_PATIENCE: Duration = Duration::from_secs(60);
/// Longest reason that is noted about a letter.
const MESSAGE_BYTES_MAX: usize = 1 << 10;
/// What is said of a letter that somebody else ended meanwhile.
const GONE: &str = "it is gone already";

/// How letters are to be sent.
pub(super) struct Sending {
    pub to: Option<String>,
    pub pause: Duration,
    /// 0: no end.
    pub failures_max: u32,
}

/// What has come of a replay so far.
#[derive(Default)]
pub(super) struct Tally {
    pub delivered: usize,
    pub failed: usize,
    pub items: u64,
    pub left: usize,
    pub unknown: Vec<String>,
    /// Failures in a row of each destination, and its last message.
    pub failing: BTreeMap<String, (u32, String)>,
}

impl Tally {
    pub fn summary(self, dry_run: bool) -> Progress {
        let Tally { delivered, failed, items, left, unknown, failing } = self;
        let stopped = failing.into_iter().filter(|_| left > 0);
        let stopped = stopped.map(|(id, (times, message))| format!("{id} failed {times} times in a row: {message}"));
        Progress::Summary { delivered, failed, items, dry_run, left, stopped: stopped.collect(), unknown }
    }

    fn note(&mut self, to: Option<&str>, result: &Result<u64, Unsent>) {
        match result {
            Ok(items) => {
                self.delivered += 1;
                self.items += items;
            }
            Err(_) => self.failed += 1,
        }
        telemetry::dead_letters_replayed(if result.is_ok() { "delivered" } else { "failed" }, 1);
        let Some(to) = to else { return };
        match result {
            Err(Unsent { message, is_destination: true }) => {
                let (times, last) = self.failing.entry(to.to_owned()).or_default();
                *times += 1;
                message.clone_into(last);
            }
            _ => {
                self.failing.remove(to);
            }
        }
    }

    fn has_stopped(&self, to: &str, failures_max: u32) -> bool {
        failures_max > 0 && self.failing.get(to).is_some_and(|(times, _)| *times >= failures_max)
    }
}

/// Sends the letters at the rate that is wanted. When nobody listens any more, what is done is done, and the rest stays.
pub(super) async fn send(
    api: &Arc<Api>,
    ids: &[u64],
    order: &Sending,
    mut tally: Tally,
    listener: &mpsc::Sender<Vec<u8>>,
) {
    let mut turn = tokio::time::Instant::now();
    for (index, id) in ids.iter().enumerate() {
        let to = destination(api, *id, order.to.as_deref()).await;
        if let Ok(to) = &to
            && tally.has_stopped(to, order.failures_max)
        {
            if order.to.is_some() || listener.is_closed() {
                tally.left += ids.len() - index;
                break;
            }
            tally.left += 1;
            continue;
        }
        tokio::select! {
            biased;
            () = listener.closed() => {
                let left = ids.len() - index;
                let Tally { delivered, failed, items, .. } = tally;
                tracing::info!(delivered, failed, items, left, "a replay of dead letters ended early: nobody listens");
                return;
            }
            () = tokio::time::sleep_until(turn) => {}
        }
        turn = tokio::time::Instant::now() + order.pause;
        let (to, result) = match to {
            Ok(to) => (Some(to.clone()), one(api, *id, &to).await),
            Err(message) => (None, Err(Unsent { message, is_destination: false })),
        };
        tally.note(to.as_deref(), &result);
        let line = Progress::Letter {
            id: format_id(*id),
            delivered: result.is_ok(),
            message: result.err().map(|unsent| unsent.message),
            done: index + 1,
            of: ids.len(),
        };
        if !matches!(tokio::time::timeout(READER_PATIENCE, listener.send(line.line())).await, Ok(Ok(()))) {
            let Tally { delivered, failed, items, .. } = tally;
            tracing::info!(delivered, failed, items, "a replay of dead letters ended early: nobody reads");
            return;
        }
    }
    let Tally { delivered, failed, items, left, .. } = tally;
    tracing::info!(delivered, failed, items, left, "a replay of dead letters ended");
    // Its reader has seen every line but this one.
    let _ = tokio::time::timeout(READER_PATIENCE, listener.send(tally.summary(false).line())).await;
}

/// The exporter that a letter goes to. Reads its description where it must, its payload never.
async fn destination(api: &Arc<Api>, id: u64, to: Option<&str>) -> Result<String, String> {
    if let Some(to) = to {
        return Ok(to.to_owned());
    }
    let shelf = Arc::clone(api.letters.shelf());
    let read = move || shelf.located(id).map(|letter| letter.description());
    let read = tokio::task::spawn_blocking(read).await.map_err(|error| error.to_string())?;
    let description = read.ok_or(GONE)?.map_err(|error| error.to_string())?;
    if api.letters.shelf().is_malformed(id) {
        return Err(MALFORMED.to_owned());
    }
    let description = description.ok_or("its description is damaged; name an exporter with --to")?;
    let description = Description::from_bytes(&description).map_err(|error| error.to_string())?;
    let original = description.exporter.ok_or("no exporter is known for it; name one with --to")?;
    api.resend.exporter(&original)
}

/// Sends one letter; ended only when it is delivered, else what went wrong is noted. Returns its items.
async fn one(api: &Arc<Api>, id: u64, to: &str) -> Result<u64, Unsent> {
    let untried = |message: String| Unsent { message, is_destination: false };
    let shelf = Arc::clone(api.letters.shelf());
    let read = tokio::task::spawn_blocking(move || shelf.read(id)).await.map_err(|error| untried(error.to_string()))?;
    let letter = read.map_err(|error| untried(error.to_string()))?.ok_or_else(|| untried(GONE.to_owned()))?;
    if api.letters.shelf().is_malformed(id) {
        return Err(untried(MALFORMED.to_owned()));
    }
    let sent = api.resend.resend(&letter, to).await;
    let shelf = Arc::clone(api.letters.shelf());
    let items = u64::from(letter.row.items);
    match sent {
        Ok(()) => {
            // What somebody put in its place meanwhile was not sent.
            let ended = tokio::task::spawn_blocking(move || shelf.remove_unchanged(&letter.row)).await;
            match ended.map_err(|error| untried(error.to_string()))? {
                Ok(true) => Ok(items),
                Ok(false) => Err(untried("it was delivered as it was; it has been edited since, and stays".to_owned())),
                Err(error) => Err(untried(format!("it was delivered, and could not be removed: {error}"))),
            }
        }
        Err(unsent) => {
            let before: Option<Note> = letter.note.and_then(|note| serde_json::from_slice(&note).ok());
            let message = unsent.message[..unsent.message.floor_char_boundary(MESSAGE_BYTES_MAX)].to_owned();
            let replays = before.map_or(0, |note| note.replays) + 1;
            let note = Note { replays, message: message.clone(), at_unix_ms: unix_now_ns() / 1_000_000 };
            let note = serde_json::to_vec(&note).unwrap_or_default();
            match tokio::task::spawn_blocking(move || shelf.note(id, Bytes::from(note))).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => tracing::warn!(letter = format_id(id), %error, "a failed replay cannot be noted"),
                Err(error) => tracing::warn!(letter = format_id(id), %error, "a failed replay cannot be noted"),
            }
            Err(Unsent { message, ..unsent })
        }
    }
}
