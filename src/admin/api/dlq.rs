//! Dead letters over HTTP.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::StatusCode;
use http::header::CONTENT_TYPE;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::asked::{Id, Order, Payload, Wanted};
use super::{Api, SEE_LOG, blocking, refuse};
use crate::dlq::{self, EditError, Filter, Note, Shelf, format_id, parse_id};
use crate::storage::dead_letters::LetterError;
use crate::storage::unix_now_ns;

/// Lines of a replay that wait for a slow reader, and for how long: another replay waits for this one.
const LINES_AHEAD: usize = 16;
const READER_PATIENCE: Duration = Duration::from_secs(60);
const LINES: &str = "application/x-ndjson";
const PAGE_DEFAULT: usize = 100;
/// Slowest replay, letters a second: its pause must fit into a clock.
const RATE_MIN: f64 = 0.001;
/// Longest reason that is noted about a letter.
const MESSAGE_BYTES_MAX: usize = 1 << 10;

/// A filter as it stands in a URL.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Selection {
    /// Separated by commas.
    ids: Option<String>,
    queue: Option<String>,
    exporter: Option<String>,
    signal: Option<String>,
    reason: Option<dlq::Reason>,
    service: Option<String>,
    since_unix_ms: Option<u64>,
    until_unix_ms: Option<u64>,
    after: Option<String>,
    limit: Option<usize>,
    /// Whether all that are meant are counted.
    count: bool,
}

impl Selection {
    fn filter(self) -> Result<Filter, String> {
        let ids = self.ids.map(|ids| ids.split(',').map(str::to_owned).collect()).unwrap_or_default();
        let filter = Filter {
            ids,
            queue: self.queue,
            exporter: self.exporter,
            signal: self.signal,
            reason: self.reason,
            service: self.service,
            since_unix_ms: self.since_unix_ms,
            until_unix_ms: self.until_unix_ms,
        };
        filter.check().map(|()| filter)
    }
}

/// Of a filter that names what cannot be.
fn impossible(error: String) -> Response {
    refuse(StatusCode::BAD_REQUEST, error, "`forebay dlq list` shows which letters there are")
}

fn failed(error: &LetterError) -> Response {
    let status = if error.is_full() { StatusCode::INSUFFICIENT_STORAGE } else { StatusCode::INTERNAL_SERVER_ERROR };
    let help = if error.is_full() { "`forebay dlq purge` makes room, or raise dead_letters.max_size" } else { SEE_LOG };
    refuse(status, error, help)
}

pub(super) fn unknown(id: &str) -> Response {
    refuse(StatusCode::NOT_FOUND, format!("there is no letter {id}"), "`forebay dlq list` shows which there are")
}

pub async fn list(State(api): State<Arc<Api>>, Wanted(mut selection): Wanted<Selection>) -> Response {
    let after = match selection.after.take().map(|after| parse_id(&after).ok_or(after)) {
        Some(Err(after)) => {
            let error = format!("`{after}` is no id of a letter");
            return refuse(StatusCode::BAD_REQUEST, error, "give `next` of the page before");
        }
        after => after.and_then(Result::ok),
    };
    let (limit, counts) = (selection.limit.unwrap_or(PAGE_DEFAULT), selection.count);
    let filter = match selection.filter() {
        Ok(filter) => filter,
        Err(error) => return impossible(error),
    };
    let shelf = Arc::clone(api.letters.shelf());
    match blocking(move || dlq::list(&shelf, &filter, after, limit, counts)).await {
        Ok(Ok(listed)) => Json(listed).into_response(),
        Ok(Err(error)) => failed(&error),
        Err(response) => response,
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Shown {
    payload: bool,
}

pub async fn show(State(api): State<Arc<Api>>, id: Id, Wanted(shown): Wanted<Shown>) -> Response {
    let shelf = Arc::clone(api.letters.shelf());
    match blocking(move || dlq::show(&shelf, id.number, shown.payload)).await {
        Ok(Ok(Some(entry))) => Json(entry).into_response(),
        Ok(Ok(None)) => unknown(&id.text),
        Ok(Err(error)) => failed(&error),
        Err(response) => response,
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Edited {
    pub id: String,
    pub items: u64,
}

pub async fn edit(State(api): State<Arc<Api>>, id: Id, payload: Payload) -> Response {
    let shelf = Arc::clone(api.letters.shelf());
    let work = move || {
        let Payload { text, permit } = payload;
        let edited = dlq::edit(&shelf, id.number, &text);
        drop(permit);
        edited
    };
    match blocking(work).await {
        Ok(Ok(items)) => {
            let id = format_id(id.number);
            tracing::info!(letter = %id, items, "a dead letter was edited");
            Json(Edited { id, items }).into_response()
        }
        Ok(Err(EditError::Unknown(_))) => unknown(&id.text),
        Ok(Err(EditError::Log(error))) => failed(&error),
        Ok(Err(error)) => refuse(StatusCode::BAD_REQUEST, error, "the letter is as it was"),
        Err(response) => response,
    }
}

pub async fn export(State(api): State<Arc<Api>>, Wanted(selection): Wanted<Selection>) -> Response {
    let shelf = Arc::clone(api.letters.shelf());
    let filter = match selection.filter() {
        Ok(filter) => filter,
        Err(error) => return impossible(error),
    };
    let selecting = Arc::clone(&shelf);
    let ids = match blocking(move || readable(&selecting, &filter)).await {
        Ok(Ok(ids)) => ids,
        Ok(Err(error)) => return failed(&error),
        Err(response) => return response,
    };
    // Each letter is read when the one before it is on its way: who reads slowly holds no thread, and one letter.
    let stream = futures_util::stream::unfold((shelf, ids.into_iter()), async |(shelf, mut ids)| {
        loop {
            let id = ids.next()?;
            let reading = Arc::clone(&shelf);
            let read = tokio::task::spawn_blocking(move || exported(&reading, id)).await;
            let line = match read.map_err(|error| error.to_string()).flatten() {
                Ok(None) => continue,
                Ok(Some(line)) => Ok(line),
                Err(error) => {
                    // It cuts the answer off, so that nobody takes it for whole.
                    ids = Vec::new().into_iter();
                    Err(format!("letter {} cannot be exported: {error}", format_id(id)))
                }
            };
            return Some((line, (shelf, ids)));
        }
    });
    ([(CONTENT_TYPE, LINES)], Body::from_stream(stream)).into_response()
}

/// The letters that are meant, without those that never could be decoded unless they are named: they can neither be
/// exported nor sent.
fn readable(shelf: &Shelf, filter: &Filter) -> Result<Vec<u64>, LetterError> {
    let mut ids = filter.select(shelf)?;
    if filter.ids.is_empty() {
        ids.retain(|id| !shelf.is_malformed(*id));
    }
    Ok(ids)
}

/// What to do with a letter that was malformed at the door.
const MALFORMED: &str = "it could not be decoded at the door; repair it with `forebay dlq edit` first";

/// One letter as a line; None when it is gone.
fn exported(shelf: &Shelf, id: u64) -> Result<Option<Vec<u8>>, String> {
    let Some(letter) = shelf.read(id).map_err(|error| error.to_string())? else { return Ok(None) };
    if shelf.is_malformed(id) {
        return Err(MALFORMED.to_owned());
    }
    let mut line = dlq::payload_json(&letter)?;
    line.push(b'\n');
    Ok(Some(line))
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PurgeRequest {
    pub filter: Filter,
    /// Every letter there is; else an empty filter is refused.
    pub all: bool,
    pub dry_run: bool,
}

#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Purged {
    pub letters: usize,
    pub items: u64,
    pub dry_run: bool,
}

/// Why a filter is not acted upon: it names nothing, or what cannot be.
fn unclear(filter: &Filter, all: bool) -> Option<Response> {
    if filter.is_empty() && !all {
        let help = "name ids or a filter, or say that all are meant";
        return Some(refuse(StatusCode::BAD_REQUEST, "no letters are named", help));
    }
    filter.check().err().map(impossible)
}

pub async fn purge(State(api): State<Arc<Api>>, Order(request): Order<PurgeRequest>) -> Response {
    if let Some(refusal) = unclear(&request.filter, request.all) {
        return refusal;
    }
    let parked = Arc::clone(&api.letters);
    let dry_run = request.dry_run;
    let work = move || -> Result<Purged, LetterError> {
        let ids = request.filter.select(parked.shelf())?;
        let items = ids.iter().filter_map(|id| parked.shelf().row(*id)).map(|row| u64::from(row.items)).sum();
        let letters = if dry_run { ids.len() } else { parked.purge(&ids)? };
        Ok(Purged { letters, items, dry_run })
    };
    match blocking(work).await {
        Ok(Ok(purged)) => {
            if !dry_run {
                tracing::info!(letters = purged.letters, items = purged.items, "dead letters were purged");
            }
            Json(purged).into_response()
        }
        Ok(Err(error)) => failed(&error),
        Err(response) => response,
    }
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReplayRequest {
    pub filter: Filter,
    pub all: bool,
    /// An exporter's id; without, each letter goes to the one that could not deliver it.
    pub to: Option<String>,
    /// Letters a second at the most.
    pub rate: Option<f64>,
    pub dry_run: bool,
}

/// One line for each letter, and one at the end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Progress {
    Letter {
        id: String,
        delivered: bool,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        message: Option<String>,
        done: usize,
        of: usize,
    },
    Summary {
        delivered: usize,
        failed: usize,
        items: u64,
        dry_run: bool,
    },
}

impl Progress {
    fn line(&self) -> Vec<u8> {
        // Text and numbers always can be written.
        let mut line = serde_json::to_vec(self).unwrap_or_default();
        line.push(b'\n');
        line
    }
}

/// Sends lines as they come.
fn lines(receiver: mpsc::Receiver<Vec<u8>>) -> Response {
    let stream = futures_util::stream::unfold(receiver, async |mut receiver| {
        let line = receiver.recv().await?;
        Some((Ok::<_, std::convert::Infallible>(line), receiver))
    });
    ([(CONTENT_TYPE, LINES)], Body::from_stream(stream)).into_response()
}

pub async fn replay(State(api): State<Arc<Api>>, Order(request): Order<ReplayRequest>) -> Response {
    if let Some(refusal) = unclear(&request.filter, request.all) {
        return refusal;
    }
    if request.rate.is_some_and(|rate| !(rate >= RATE_MIN && rate.is_finite())) {
        let error = format!("the rate must be at least {RATE_MIN} letters a second");
        return refuse(StatusCode::BAD_REQUEST, error, "leave it out to send as fast as the exporter takes");
    }
    let shelf = Arc::clone(api.letters.shelf());
    let filter = request.filter.clone();
    let ids = match blocking(move || readable(&shelf, &filter)).await {
        Ok(Ok(ids)) => ids,
        Ok(Err(error)) => return failed(&error),
        Err(response) => return response,
    };
    let (sender, receiver) = mpsc::channel(LINES_AHEAD);
    if request.dry_run {
        let shelf = api.letters.shelf();
        let items = ids.iter().filter_map(|id| shelf.row(*id)).map(|row| u64::from(row.items)).sum();
        let summary = Progress::Summary { delivered: ids.len(), failed: 0, items, dry_run: true };
        return ([(CONTENT_TYPE, LINES)], summary.line()).into_response();
    }
    let Ok(one_at_a_time) = Arc::clone(&api.replaying).try_lock_owned() else {
        return refuse(StatusCode::CONFLICT, "another replay is under way", "wait for it, or interrupt it");
    };
    tokio::spawn(async move {
        let _one_at_a_time = one_at_a_time;
        let (mut delivered, mut failed, mut items) = (0, 0, 0);
        let pause = request.rate.map(|rate| Duration::from_secs_f64(1.0 / rate));
        for (index, id) in ids.iter().enumerate() {
            let started = tokio::time::Instant::now();
            let result = one(&api, *id, request.to.as_deref()).await;
            match &result {
                Ok(sent) => {
                    delivered += 1;
                    items += sent;
                }
                Err(_) => failed += 1,
            }
            let line = Progress::Letter {
                id: format_id(*id),
                delivered: result.is_ok(),
                message: result.err(),
                done: index + 1,
                of: ids.len(),
            };
            // Nobody listens any more: what is done is done, and the rest stays.
            if !matches!(tokio::time::timeout(READER_PATIENCE, sender.send(line.line())).await, Ok(Ok(()))) {
                return;
            }
            if let Some(pause) = pause {
                tokio::time::sleep_until(started + pause).await;
            }
        }
        tracing::info!(delivered, failed, items, "a replay of dead letters ended");
        let summary = Progress::Summary { delivered, failed, items, dry_run: false };
        // Its reader has seen every line but this one.
        let _ = tokio::time::timeout(READER_PATIENCE, sender.send(summary.line())).await;
    });
    lines(receiver)
}

/// Sends one letter; ended only when it is delivered, else what went wrong is noted. Returns its items.
async fn one(api: &Arc<Api>, id: u64, to: Option<&str>) -> Result<u64, String> {
    let shelf = Arc::clone(api.letters.shelf());
    let read = tokio::task::spawn_blocking(move || shelf.read(id)).await.map_err(|error| error.to_string())?;
    let letter = read.map_err(|error| error.to_string())?.ok_or("it is gone already")?;
    if api.letters.shelf().is_malformed(id) {
        return Err(MALFORMED.to_owned());
    }
    let sent = api.resend.resend(&letter, to).await;
    let shelf = Arc::clone(api.letters.shelf());
    let items = u64::from(letter.row.items);
    match sent {
        Ok(()) => {
            // What somebody put in its place meanwhile was not sent.
            let ended = tokio::task::spawn_blocking(move || shelf.remove_unchanged(&letter.row)).await;
            match ended.map_err(|error| error.to_string())? {
                Ok(true) => Ok(items),
                Ok(false) => Err("it was delivered as it was; it has been edited since, and stays".to_owned()),
                Err(error) => Err(format!("it was delivered, and could not be removed: {error}")),
            }
        }
        Err(message) => {
            let before: Option<Note> = letter.note.and_then(|note| serde_json::from_slice(&note).ok());
            let message = message[..message.floor_char_boundary(MESSAGE_BYTES_MAX)].to_owned();
            let replays = before.map_or(0, |note| note.replays) + 1;
            let note = Note { replays, message: message.clone(), at_unix_ms: unix_now_ns() / 1_000_000 };
            let note = serde_json::to_vec(&note).unwrap_or_default();
            match tokio::task::spawn_blocking(move || shelf.note(id, Bytes::from(note))).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => tracing::warn!(letter = format_id(id), %error, "a failed replay cannot be noted"),
                Err(error) => tracing::warn!(letter = format_id(id), %error, "a failed replay cannot be noted"),
            }
            Err(message)
        }
    }
}
