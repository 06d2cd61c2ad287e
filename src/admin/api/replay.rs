//! Dead letters sent again, one after the other, for as long as somebody listens.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::StatusCode;
use http::header::CONTENT_TYPE;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::asked::Order;
use super::dlq::{LINES, MALFORMED, failed, unclear};
use super::{Api, blocking, refuse};
use crate::dlq::{Filter, Note, Shelf, format_id};
use crate::storage::dead_letters::LetterError;
use crate::storage::unix_now_ns;

/// Lines that wait for a slow reader, and for how long: another replay waits for this one.
const LINES_AHEAD: usize = 16;
const READER_PATIENCE: Duration = Duration::from_secs(60);
/// Slowest replay, letters a second: its pause must fit into a clock.
const RATE_MIN: f64 = 0.001;
/// Longest reason that is noted about a letter.
const MESSAGE_BYTES_MAX: usize = 1 << 10;

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
    if let Some(Err(error)) = request.rate.map(check_rate) {
        return refuse(StatusCode::BAD_REQUEST, error, "leave it out to send as fast as the exporter takes");
    }
    let shelf = Arc::clone(api.letters.shelf());
    let filter = request.filter.clone();
    let ids = match blocking(move || sendable(&shelf, &filter)).await {
        Ok(Ok(ids)) => ids,
        Ok(Err(error)) => return failed(&error),
        Err(response) => return response,
    };
    if request.dry_run {
        let shelf = api.letters.shelf();
        let items = ids.iter().filter_map(|id| shelf.row(*id)).map(|row| u64::from(row.items)).sum();
        let summary = Progress::Summary { delivered: ids.len(), failed: 0, items, dry_run: true };
        return ([(CONTENT_TYPE, LINES)], summary.line()).into_response();
    }
    let Ok(one_at_a_time) = Arc::clone(&api.replaying).try_lock_owned() else {
        return refuse(StatusCode::CONFLICT, "another replay is under way", "wait for it, or interrupt it");
    };
    let (sender, receiver) = mpsc::channel(LINES_AHEAD);
    tokio::spawn(async move {
        send(&api, &ids, &request, &sender).await;
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

/// Sends the letters at the rate that is wanted. When nobody listens any more, what is done is done, and the rest stays.
async fn send(api: &Arc<Api>, ids: &[u64], request: &ReplayRequest, listener: &mpsc::Sender<Vec<u8>>) {
    let (mut delivered, mut failed, mut items) = (0, 0, 0);
    let pause = request.rate.map(|rate| Duration::from_secs_f64(1.0 / rate));
    let mut turn = tokio::time::Instant::now();
    for (index, id) in ids.iter().enumerate() {
        tokio::select! {
            biased;
            () = listener.closed() => {
                let left = ids.len() - index;
                tracing::info!(delivered, failed, items, left, "a replay of dead letters ended early: nobody listens");
                return;
            }
            () = tokio::time::sleep_until(turn) => {}
        }
        turn = tokio::time::Instant::now() + pause.unwrap_or_default();
        let result = one(api, *id, request.to.as_deref()).await;
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
        if !matches!(tokio::time::timeout(READER_PATIENCE, listener.send(line.line())).await, Ok(Ok(()))) {
            tracing::info!(delivered, failed, items, "a replay of dead letters ended early: nobody reads");
            return;
        }
    }
    tracing::info!(delivered, failed, items, "a replay of dead letters ended");
    let summary = Progress::Summary { delivered, failed, items, dry_run: false };
    // Its reader has seen every line but this one.
    let _ = tokio::time::timeout(READER_PATIENCE, listener.send(summary.line())).await;
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use axum::Router;
    use futures_util::FutureExt;
    use futures_util::future::BoxFuture;
    use http_body_util::BodyExt;
    use tower::ServiceExt;

    use super::*;
    use crate::admin::api::{Resend, router};
    use crate::dlq::{DeadLetters, OnFull};
    use crate::storage::dead_letters::{Letter, NewLetter};
    use crate::storage::{Disk, RealDisk};

    const PATIENCE: Duration = Duration::from_secs(20);

    #[derive(Default)]
    struct Counting(AtomicUsize);

    impl Resend for Counting {
        fn resend<'a>(&'a self, _: &'a Letter, _: Option<&'a str>) -> BoxFuture<'a, Result<(), String>> {
            self.0.fetch_add(1, Ordering::SeqCst);
            async { Ok(()) }.boxed()
        }
    }

    async fn replay(router: &Router, rate: &str) -> Response {
        let body = format!("{{\"all\": true, \"rate\": {rate}}}");
        let request = http::Request::post("/api/v1/dlq/replay").header(CONTENT_TYPE, "application/json");
        let request = request.body(Body::from(body)).expect("a request");
        router.clone().oneshot(request).await.expect("answered")
    }

    #[tokio::test]
    async fn a_replay_whose_listener_has_gone_ends_at_once_and_sends_no_letter_more() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let disk: Arc<dyn Disk> = Arc::new(RealDisk);
        let (shelf, _) = Shelf::open(&disk, dir.path(), 1 << 20, None).expect("opens");
        let letter = NewLetter {
            signal: 1,
            encoding: 0,
            items: 1,
            raw_len: 0,
            parked_unix_ns: 1,
            description: Bytes::from_static(b"{}"),
            payload: Bytes::new(),
        };
        let _ = shelf.parked().append(vec![letter; 3]).expect("kept");
        let sent = Arc::new(Counting::default());
        let letters = Arc::new(DeadLetters::new(shelf, OnFull::Block));
        let router = router(Api::new(Arc::clone(&letters), Arc::clone(&sent) as _, None));
        // The next turn would come in a quarter of an hour.
        let answer = replay(&router, "0.001").await;
        let mut body = answer.into_body();
        let first = tokio::time::timeout(PATIENCE, body.frame()).await.expect("a line").expect("a line");
        assert!(first.expect("whole").into_data().expect("bytes").starts_with(b"{\"event\":\"letter\""));
        assert_eq!(replay(&router, "1").await.status(), StatusCode::CONFLICT);
        drop(body);
        let again = async {
            loop {
                let answer = replay(&router, "1000").await;
                if answer.status() == StatusCode::OK {
                    return answer;
                }
                tokio::task::yield_now().await;
            }
        };
        let answer = tokio::time::timeout(PATIENCE, again).await.expect("the first one has ended");
        assert_eq!(sent.0.load(Ordering::SeqCst), 1, "nothing was sent for nobody");
        let text = answer.into_body().collect().await.expect("whole").to_bytes();
        assert_eq!(text.split(|byte| *byte == b'\n').count(), 4, "two letters, the summary, and the end");
        assert_eq!((sent.0.load(Ordering::SeqCst), letters.shelf().rows().len()), (3, 0));
    }
}
