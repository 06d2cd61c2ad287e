//! Dead letters sent again, one after the other, for as long as somebody listens.

mod send;

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use http::header::CONTENT_TYPE;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use send::{Sending, Tally};

use super::asked::Order;
use super::dlq::{LINES, failed, unclear};
use super::{Api, blocking, refuse};
use crate::dlq::{Filter, Shelf, format_id};
use crate::storage::dead_letters::LetterError;

/// Lines that wait for a slow reader.
const LINES_AHEAD: usize = 16;
/// Slowest replay, letters a second: its pause must fit into a clock.
const RATE_MIN: f64 = 0.001;
/// Failures in a row after which a destination gets no more letters, unless another number is asked for.
pub const FAILURES_MAX_DEFAULT: u32 = 5;

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
    /// A destination that fails so often in a row gets no more letters, which stay as they are; 0: it gets them all.
    pub failures_max: Option<u32>,
}

/// A rate that letters can be sent at, or why it is none.
pub fn check_rate(rate: f64) -> Result<f64, String> {
    match rate.is_finite() && rate >= RATE_MIN {
        true => Ok(rate),
        false => Err(format!("the rate must be a number of at least {RATE_MIN} letters a second")),
    }
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
        /// Letters that were not tried, for the destination that they go to had failed too often.
        #[serde(default, skip_serializing_if = "is_zero")]
        left: usize,
        /// Those destinations, and what they said last.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        stopped: Vec<String>,
        /// Ids that were named and that no letter has.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        unknown: Vec<String>,
    },
}

fn is_zero(count: &usize) -> bool {
    *count == 0
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
    if let Some(Err(error)) = request.rate.map(check_rate) {
        return refuse(StatusCode::BAD_REQUEST, error, "leave it out to send as fast as the exporter takes");
    }
    let to = match request.to.as_deref().map(|name| api.resend.exporter(name)).transpose() {
        Ok(to) => to,
        Err(error) => {
            return refuse(StatusCode::BAD_REQUEST, error, "name one of these as `to`; no letter was touched");
        }
    };
    let shelf = Arc::clone(api.letters.shelf());
    let filter = request.filter.clone();
    let select = move || Ok((sendable(&shelf, &filter)?, filter.strangers(&shelf)));
    let (ids, strangers) = match blocking(select).await {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => return failed(&error),
        Err(response) => return response,
    };
    let unknown: Vec<String> = strangers.into_iter().map(format_id).collect();
    if request.dry_run {
        let shelf = api.letters.shelf();
        let items = ids.iter().filter_map(|id| shelf.row(*id)).map(|row| u64::from(row.items)).sum();
        let tally = Tally { delivered: ids.len(), items, unknown, ..Tally::default() };
        return ([(CONTENT_TYPE, LINES)], tally.summary(true).line()).into_response();
    }
    let Ok(one_at_a_time) = Arc::clone(&api.replaying).try_lock_owned() else {
        return refuse(StatusCode::CONFLICT, "another replay is under way", "wait for it, or interrupt it");
    };
    let (sender, receiver) = mpsc::channel(LINES_AHEAD);
    let order = Sending {
        to,
        pause: request.rate.map(|rate| Duration::from_secs_f64(1.0 / rate)).unwrap_or_default(),
        failures_max: request.failures_max.unwrap_or(FAILURES_MAX_DEFAULT),
    };
    tokio::spawn(async move {
        send::send(&api, &ids, &order, Tally { unknown, ..Tally::default() }, &sender).await;
        drop(one_at_a_time);
    });
    lines(receiver)
}

/// The letters that are meant, without those that never could be decoded unless they are named: they cannot be sent.
fn sendable(shelf: &Shelf, filter: &Filter) -> Result<Vec<u64>, LetterError> {
    let mut ids = filter.select(shelf)?;
    if filter.ids.is_empty() {
        ids.retain(|id| !shelf.is_malformed(*id));
    }
    Ok(ids)
}

#[cfg(test)]
mod tests;
