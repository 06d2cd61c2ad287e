//! Who is sent what, and when a replay ends.

use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http_body_util::BodyExt;
use tower::ServiceExt;

use super::*;
use crate::admin::api::{Resend, Unsent, router};
use crate::dlq::{DeadLetters, Description, OnFull, Reason};
use crate::storage::dead_letters::{Letter, NewLetter};
use crate::storage::{Disk, RealDisk};

const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Default)]
struct Counting(AtomicUsize);

impl Resend for Counting {
    fn exporter(&self, name: &str) -> Result<String, String> {
        Ok(name.to_owned())
    }
    fn resend<'a>(&'a self, _: &'a Letter, _: &'a str) -> BoxFuture<'a, Result<(), Unsent>> {
        self.0.fetch_add(1, Ordering::SeqCst);
        async { Ok(()) }.boxed()
    }
}

async fn replay(router: &Router, rate: &str) -> Response {
    let body = format!("{{\"all\": true, \"to\": \"x\", \"rate\": {rate}}}");
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

/// What its letters go to: one that takes everything, one that is away, and one that refuses every letter alone.
#[derive(Default)]
struct Three(AtomicUsize);

impl Resend for Three {
    fn exporter(&self, name: &str) -> Result<String, String> {
        let is_known = ["alive", "away", "strict"].contains(&name);
        is_known.then(|| name.to_owned()).ok_or_else(|| format!("no exporter `{name}`; there are: alive, away, strict"))
    }
    fn resend<'a>(&'a self, _: &'a Letter, to: &'a str) -> BoxFuture<'a, Result<(), Unsent>> {
        self.0.fetch_add(1, Ordering::SeqCst);
        let message = format!("{to} says no");
        let result = match to {
            "alive" => Ok(()),
            to => Err(Unsent { message, is_destination: to == "away" }),
        };
        async { result }.boxed()
    }
}

/// Twelve letters for each of the three in turn; all events of a replay of that request, and how often it sent.
async fn replayed(request: &str) -> (u16, Vec<Progress>, usize, Vec<u32>) {
    let dir = tempfile::tempdir().expect("temporary directory");
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let (shelf, _) = Shelf::open(&disk, dir.path(), 1 << 20, None).expect("opens");
    let letter = |exporter: &str| {
        let mut description = Description::new(Reason::Rejected, "no", 5);
        description.exporter = Some(exporter.to_owned());
        NewLetter {
            signal: 1,
            encoding: 0,
            items: 1,
            raw_len: 0,
            parked_unix_ns: 1,
            description: description.to_bytes(),
            payload: Bytes::new(),
        }
    };
    let letters = (0..12).flat_map(|_| ["alive", "away", "strict"]).map(letter).collect();
    let _ = shelf.parked().append(letters).expect("kept");
    let sent = Arc::new(Three::default());
    let letters = Arc::new(DeadLetters::new(shelf, OnFull::Block));
    let router = router(Api::new(Arc::clone(&letters), Arc::clone(&sent) as _, None));
    let http = http::Request::post("/api/v1/dlq/replay").header(CONTENT_TYPE, "application/json");
    let answer = router.oneshot(http.body(Body::from(request.to_owned())).expect("a request")).await.expect("answered");
    let status = answer.status().as_u16();
    let text = answer.into_body().collect().await.expect("whole").to_bytes();
    let read = |line: &[u8]| serde_json::from_slice(line).ok();
    let events = text.split(|byte| *byte == b'\n').filter_map(read).collect();
    let replays = |row: &crate::storage::dead_letters::Row| {
        let note = letters.shelf().read(row.id).expect("readable").expect("there").note;
        note.map_or(0, |note| serde_json::from_slice::<crate::dlq::Note>(&note).expect("a note").replays)
    };
    let replays = letters.shelf().rows().iter().map(replays).collect();
    (status, events, sent.0.load(Ordering::SeqCst), replays)
}

#[tokio::test]
async fn a_destination_that_fails_again_and_again_gets_no_more_letters_and_the_others_do() {
    let last = |events: &[Progress]| match events.last() {
        Some(Progress::Summary { delivered, failed, left, stopped, .. }) => {
            (*delivered, *failed, *left, stopped.clone())
        }
        other => panic!("no summary: {other:?}"),
    };
    let (_, events, sent, replays) = replayed(r#"{"all": true}"#).await;
    assert_eq!(last(&events), (12, 17, 7, vec!["away failed 5 times in a row: away says no".to_owned()]));
    assert_eq!((events.len(), sent), (30, 29));
    assert_eq!(replays.iter().filter(|times| **times == 0).count(), 7, "what was not tried is as it was: {replays:?}");
    let (_, events, sent, _) = replayed(r#"{"all": true, "failures_max": 0}"#).await;
    assert_eq!((last(&events), sent), ((12, 24, 0, vec![]), 36));
    let (_, events, sent, replays) = replayed(r#"{"all": true, "to": "away", "failures_max": 2}"#).await;
    assert_eq!(last(&events), (0, 2, 34, vec!["away failed 2 times in a row: away says no".to_owned()]));
    assert_eq!((sent, replays.iter().sum::<u32>()), (2, 2));
}

#[tokio::test]
async fn an_exporter_that_there_is_not_is_told_before_any_letter_is_touched_also_by_a_dry_run() {
    for request in [r#"{"all": true, "to": "nobody"}"#, r#"{"all": true, "to": "nobody", "dry_run": true}"#] {
        let (status, events, sent, replays) = replayed(request).await;
        assert_eq!((status, events, sent), (400, vec![], 0));
        assert!(replays.len() == 36 && replays.iter().all(|times| *times == 0));
    }
}
