//! Dead letters over HTTP.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use serde::{Deserialize, Serialize};

use super::asked::{Id, Order, Payload, Wanted};
use super::{Api, SEE_LOG, blocking, refuse};
use crate::dlq::{self, EditError, Filter, format_id, parse_id};
use crate::storage::dead_letters::LetterError;
use crate::telemetry;

/// What an answer of one JSON value a line is.
pub(super) const LINES: &str = "application/x-ndjson";
const PAGE_DEFAULT: usize = 100;
/// What to do with a letter that was malformed at the door.
pub(super) const MALFORMED: &str = "it could not be decoded at the door; repair it with `forebay dlq edit` first";

/// Of an id that is asked for.
pub const NO_LETTER: &str = "there is no letter of that id";

/// What to do with a payload of which an edit would lose something.
const DROPS_UNKNOWN: &str = "the letter is as it was: replay it unchanged where you can; `forebay dlq edit --force` (`?force=true`) \
     edits it without them, and there is no other copy";

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
    pub(super) fn filter(self) -> Result<Filter, String> {
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
pub(super) fn impossible(error: String) -> Response {
    refuse(StatusCode::BAD_REQUEST, error, "`forebay dlq list` shows which letters there are")
}

pub(super) fn failed(error: &LetterError) -> Response {
    let status = if error.is_full() { StatusCode::INSUFFICIENT_STORAGE } else { StatusCode::INTERNAL_SERVER_ERROR };
    let help = match error {
        LetterError::NeverFits { .. } => "raise dead_letters.max_size; no purge makes room enough",
        error if error.is_full() => {
            "`forebay dlq purge` and `forebay dlq replay` make room, or raise dead_letters.max_size; an edit \
             that makes its letter smaller needs none"
        }
        _ => SEE_LOG,
    };
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
    if !(1..=dlq::PAGE_MAX).contains(&limit) {
        let error = format!("the limit must be from 1 to {}, and is {limit}", dlq::PAGE_MAX);
        return refuse(StatusCode::BAD_REQUEST, error, "ask for more with `after`, the `next` of the page before");
    }
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
    /// No exporter is known for it: a replay has to name one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub lacks_exporter: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Editing {
    /// Also where the payload has fields that no JSON can have.
    force: bool,
}

pub async fn edit(
    State(api): State<Arc<Api>>,
    id: Id,
    Wanted(Editing { force }): Wanted<Editing>,
    payload: Payload,
) -> Response {
    let shelf = Arc::clone(api.letters.shelf());
    let work = move || {
        let Payload { text, permit } = payload;
        let edited = dlq::edit(&shelf, id.number, &text, force);
        drop(permit);
        edited
    };
    match blocking(work).await {
        Ok(Ok(dlq::Edit { items, has_exporter })) => {
            let id = format_id(id.number);
            tracing::info!(letter = %id, items, "a dead letter was edited");
            Json(Edited { id, items, lacks_exporter: !has_exporter }).into_response()
        }
        Ok(Err(EditError::Unknown(_))) => unknown(&id.text),
        Ok(Err(EditError::Log(error))) => failed(&error),
        Ok(Err(error @ EditError::UnknownFields(_))) => refuse(StatusCode::CONFLICT, error, DROPS_UNKNOWN),
        Ok(Err(error)) => refuse(StatusCode::BAD_REQUEST, error, "the letter is as it was"),
        Err(response) => response,
    }
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
    /// Ids that were named and that no letter has.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unknown: Vec<String>,
}

/// Why a filter is not acted upon: it names nothing, or what cannot be.
pub(super) fn unclear(filter: &Filter, all: bool) -> Option<Response> {
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
        let unknown = request.filter.strangers(parked.shelf()).into_iter().map(format_id).collect();
        let ids = request.filter.select(parked.shelf())?;
        let items = ids.iter().filter_map(|id| parked.shelf().row(*id)).map(|row| u64::from(row.items)).sum();
        let letters = if dry_run { ids.len() } else { parked.purge(&ids)? };
        Ok(Purged { letters, items, dry_run, unknown })
    };
    match blocking(work).await {
        Ok(Ok(purged)) => {
            if !dry_run {
                telemetry::dead_letters_purged(purged.letters as u64);
                tracing::info!(letters = purged.letters, items = purged.items, "dead letters were purged");
            }
            Json(purged).into_response()
        }
        Ok(Err(error)) => failed(&error),
        Err(response) => response,
    }
}
