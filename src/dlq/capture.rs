//! Payloads that could not be decoded at the door, on their way to the ring. Best effort: their clients were told that
//! they are refused, and nothing that is acknowledged ever waits for them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::otlp::{Encoding, Signal};
use crate::queue::Permit;
use crate::storage::DeadLetterLog;
use crate::storage::dead_letters::NewLetter;
use crate::storage::unix_now_ns;
use crate::telemetry;

use super::description::Origin;
use super::shelf::RING_BYTES_MAX;
use super::{Description, Parcel, Reason, new_letter};

/// Of a larger body only so much is kept, its beginning.
pub const BODY_BYTES_MAX: usize = (RING_BYTES_MAX / 4) as usize;
/// Bodies that wait to be written, and their bytes; beyond that they are let go.
const WAITING_MAX: usize = 64;
const WAITING_BYTES_MAX: u64 = 8 << 20;
/// The ring is synced no more often than this, whatever clients send.
const WRITE_INTERVAL_MIN: Duration = Duration::from_millis(200);

/// A body that is no request.
pub struct Capture {
    pub signal: Signal,
    /// As the body came.
    pub encoding: Encoding,
    pub body: Bytes,
    pub message: String,
    /// Where in the inflated body reading ended.
    pub offset: Option<u64>,
    pub origin: Origin,
    /// The memory of the body.
    pub permit: Permit,
}

impl Capture {
    fn into_letter(self) -> NewLetter {
        let now_ns = unix_now_ns();
        let mut description = Description::new(Reason::Malformed, &self.message, now_ns);
        description.offset_bytes = self.offset;
        let len = self.body.len();
        let payload = if len > BODY_BYTES_MAX {
            description.cut_from_bytes = Some(len as u64);
            // A slice would keep all of it.
            Bytes::copy_from_slice(&self.body[..BODY_BYTES_MAX])
        } else {
            self.body
        };
        description.origin = Some(self.origin);
        let (signal, encoding) = (self.signal, self.encoding);
        new_letter(Parcel { signal, encoding, items: 0, raw_len: 0, description, payload })
    }
}

/// The receivers' end.
#[derive(Clone)]
pub struct Captures {
    sender: mpsc::Sender<Capture>,
    waiting_bytes: Arc<AtomicU64>,
}

impl Captures {
    /// And the writer, which ends when every sender is gone and all is written.
    pub fn new(ring: Arc<DeadLetterLog>) -> (Captures, impl Future<Output = ()> + Send) {
        let (sender, receiver) = mpsc::channel(WAITING_MAX);
        let waiting_bytes = Arc::new(AtomicU64::new(0));
        (Captures { sender, waiting_bytes: Arc::clone(&waiting_bytes) }, write(ring, receiver, waiting_bytes))
    }

    /// Keeps it soon, unless too much is waiting already.
    pub fn offer(&self, capture: Capture) {
        let bytes = capture.body.len() as u64;
        let before = self.waiting_bytes.fetch_add(bytes, Ordering::AcqRel);
        let is_taken = (before == 0 || before + bytes <= WAITING_BYTES_MAX) && self.sender.try_send(capture).is_ok();
        if !is_taken {
            self.waiting_bytes.fetch_sub(bytes, Ordering::AcqRel);
            self.skip();
        }
    }

    /// There is no room for another.
    pub fn skip(&self) {
        telemetry::captured("busy", 1);
    }
}

async fn write(ring: Arc<DeadLetterLog>, mut receiver: mpsc::Receiver<Capture>, waiting_bytes: Arc<AtomicU64>) {
    let mut captures = Vec::new();
    let mut has_failed = false;
    while receiver.recv_many(&mut captures, WAITING_MAX).await > 0 {
        let (count, bytes) = (captures.len() as u64, captures.iter().map(|one| one.body.len() as u64).sum());
        let (log, taken) = (Arc::clone(&ring), std::mem::take(&mut captures));
        let work = move || {
            let mut group: Vec<NewLetter> = Vec::new();
            let mut group_bytes = 0;
            for letter in taken.into_iter().map(Capture::into_letter) {
                // Together they may be more than the ring takes at once.
                if group_bytes + letter.payload.len() > BODY_BYTES_MAX && !group.is_empty() {
                    log.append(std::mem::take(&mut group)).map(drop).map_err(|error| error.to_string())?;
                    group_bytes = 0;
                }
                group_bytes += letter.payload.len();
                group.push(letter);
            }
            log.append(group).map(drop).map_err(|error| error.to_string())
        };
        let result = tokio::task::spawn_blocking(work).await.map_err(|error| error.to_string());
        waiting_bytes.fetch_sub(bytes, Ordering::AcqRel);
        match result.and_then(|result| result) {
            Ok(()) => {
                has_failed = false;
                telemetry::captured("kept", count);
            }
            Err(error) => {
                if !has_failed {
                    tracing::warn!(%error, "malformed payloads cannot be kept; their clients were told that they are refused");
                }
                has_failed = true;
                telemetry::captured("failed", count);
            }
        }
        if !receiver.is_closed() {
            tokio::time::sleep(WRITE_INTERVAL_MIN).await;
        }
    }
}
