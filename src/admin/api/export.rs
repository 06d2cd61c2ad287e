//! Dead letters as lines of OTLP-JSON. What cannot be read is left out, and said to be, in its place: the answer goes on.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::header::CONTENT_TYPE;
use serde::{Deserialize, Serialize};

use super::asked::Wanted;
use super::dlq::{LINES, MALFORMED, NO_LETTER, Selection, impossible};
use super::{Api, blocking};
use crate::dlq::{self, Shelf, format_id};

/// How the line begins that stands for a letter that is left out, and the one before a letter that is not whole. No line of
/// a payload begins so.
pub const LEFT_OUT_START: &[u8] = b"{\"forebayLeftOut\":";
pub const INCOMPLETE_START: &[u8] = b"{\"forebayIncomplete\":";

/// A line before a letter's own, of which JSON cannot show everything.
#[derive(Debug, Serialize, Deserialize)]
pub struct Incomplete {
    #[serde(rename = "forebayIncomplete")]
    pub incomplete: IncompleteLetter,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct IncompleteLetter {
    pub id: String,
    pub missing: String,
}

/// A line in place of a letter. To a reader of OTLP-JSON, which passes over fields that it does not know, it is an empty
/// request.
#[derive(Debug, Serialize, Deserialize)]
pub struct LeftOut {
    #[serde(rename = "forebayLeftOut")]
    pub left_out: LeftOutLetter,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct LeftOutLetter {
    pub id: String,
    pub error: String,
}

pub async fn export(State(api): State<Arc<Api>>, Wanted(selection): Wanted<Selection>) -> Response {
    let shelf = Arc::clone(api.letters.shelf());
    let filter = match selection.filter() {
        Ok(filter) => filter,
        Err(error) => return impossible(error),
    };
    let selecting = Arc::clone(&shelf);
    let select = move || {
        let (ids, doubtful) = filter.select_with_doubts(&selecting);
        // What never could be decoded is exported by nobody who does not name it: then it is said why not.
        let is_wanted = |id: u64| !filter.ids.is_empty() || !selecting.is_malformed(id);
        let doubts = doubtful.into_iter().filter(|doubt| is_wanted(doubt.id));
        let doubts = doubts.map(|doubt| Err((doubt.id, doubt.error.to_string())));
        let strangers = filter.strangers(&selecting).into_iter().map(|id| Err((id, NO_LETTER.to_owned())));
        ids.into_iter().filter(|id| is_wanted(*id)).map(Ok).chain(doubts).chain(strangers).collect::<Vec<_>>()
    };
    let letters = match blocking(select).await {
        Ok(letters) => letters,
        Err(response) => return response,
    };
    // Each letter is read when the one before it is on its way: who reads slowly holds no thread, and one letter.
    let stream = futures_util::stream::unfold((shelf, letters.into_iter()), async |(shelf, mut letters)| {
        loop {
            let line = match letters.next()? {
                Err((id, error)) => left_out(id, error),
                Ok(id) => {
                    let reading = Arc::clone(&shelf);
                    let read = tokio::task::spawn_blocking(move || exported(&reading, id)).await;
                    match read.map_err(|error| error.to_string()).flatten() {
                        Ok(None) => continue,
                        Ok(Some(line)) => line,
                        Err(error) => left_out(id, error),
                    }
                }
            };
            return Some((Ok::<_, std::convert::Infallible>(line), (shelf, letters)));
        }
    });
    ([(CONTENT_TYPE, LINES)], Body::from_stream(stream)).into_response()
}

fn left_out(id: u64, error: String) -> Vec<u8> {
    let id = format_id(id);
    // A slip of whoever asks is no fault here.
    if error != NO_LETTER {
        tracing::error!(letter = %id, %error, "a dead letter cannot be exported and is left out");
    }
    // Text always can be written.
    let mut line = serde_json::to_vec(&LeftOut { left_out: LeftOutLetter { id, error } }).unwrap_or_default();
    line.push(b'\n');
    line
}

/// One letter as a line, with one before it where something is missing in it; None when it is gone.
fn exported(shelf: &Shelf, id: u64) -> Result<Option<Vec<u8>>, String> {
    let Some(letter) = shelf.read(id).map_err(|error| error.to_string())? else { return Ok(None) };
    if shelf.is_malformed(id) {
        return Err(MALFORMED.to_owned());
    }
    let mut lines = Vec::new();
    if let Some(fields) = dlq::unknown_fields(&letter) {
        let incomplete = IncompleteLetter { id: format_id(id), missing: fields.to_string() };
        lines = serde_json::to_vec(&Incomplete { incomplete }).map_err(|error| error.to_string())?;
        lines.push(b'\n');
    }
    lines.append(&mut dlq::payload_json(&letter)?);
    lines.push(b'\n');
    Ok(Some(lines))
}
