//! From a body to a durable record: inflate, validate, offer. The same for both transports.

use std::cell::RefCell;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::HeaderMap;
use tokio::sync::Semaphore;

use crate::dlq::{Capture, Captures, Origin};
use crate::otlp::compression::{self, InflateError};
use crate::otlp::{Encoding, Signal, json, wire};
use crate::queue::{Accepted, Budget, Intake, Marks, Offer, Permit, Refused, RefusedReason};
use crate::telemetry::ReceiverMetrics;

/// Inflating and validating more than this leaves the async worker.
const INLINE_BYTES_MAX: usize = 1 << 20;
/// Smaller bodies are read sooner than asked about.
const ADMISSION_BYTES_MIN: u64 = 64 << 10;
/// When a client may come back after a fault of our own.
const RETRY_AFTER_INTERNAL: Duration = Duration::from_secs(5);

/// Why a request is not accepted; each transport has its own status for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// Undecodable: HTTP 400, INVALID_ARGUMENT.
    Malformed(Flaw),
    /// Over the limit: HTTP 413, RESOURCE_EXHAUSTED without RetryInfo.
    TooLarge(String),
    /// Come again: HTTP 503 with Retry-After, UNAVAILABLE with RetryInfo.
    Unavailable { message: String, retry_after: Duration, reason: &'static str },
    /// Nobody here takes this signal: HTTP 404, UNIMPLEMENTED.
    NoPipeline(String),
    /// The body stopped arriving: HTTP 408, DEADLINE_EXCEEDED.
    TooSlow,
    /// The connection broke; nobody reads the answer.
    Broken(String),
}

impl From<Refused> for Rejection {
    fn from(refused: Refused) -> Rejection {
        let Refused { reason, message, retry_after } = refused;
        let reason = match reason {
            RefusedReason::NoPipeline => return Rejection::NoPipeline(message),
            RefusedReason::Full => "full",
            RefusedReason::Stopping => "stopping",
            RefusedReason::Storage => "storage",
        };
        Rejection::Unavailable { message, retry_after, reason }
    }
}

/// What is wrong with a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flaw {
    pub message: String,
    /// Where in the inflated body reading ended.
    pub offset: Option<usize>,
}

impl From<String> for Flaw {
    fn from(message: String) -> Flaw {
        Flaw { message, offset: None }
    }
}

/// How the message in the body is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    Protobuf,
    Json,
}

/// How the body is compressed on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WireEncoding {
    Stored(Encoding),
    /// HTTP's `deflate`; kept inflated.
    Zlib,
}

/// What both transports of one receiver share.
pub struct Ingest {
    pub intake: Arc<dyn Intake>,
    pub budget: Budget,
    /// Large bodies worked on at once.
    pub heavy: Arc<Semaphore>,
    pub metrics: ReceiverMetrics,
    /// The receiver's id.
    pub receiver: String,
    /// Where malformed bodies go, if they are kept.
    pub captures: Option<Captures>,
}

/// A validated request, not stored yet.
struct Checked {
    encoding: Encoding,
    items: u64,
    raw_len: u64,
    payload: Bytes,
    permit: Permit,
    marks: Marks,
}

/// A body as it came, and from whom.
pub struct Arrival<'a> {
    pub client: Client<'a>,
    pub content: Content,
    pub encoding: WireEncoding,
    pub body: Bytes,
    pub permit: Permit,
}

/// Who sent a request.
#[derive(Clone, Copy)]
pub struct Client<'a> {
    pub peer: Option<IpAddr>,
    pub headers: &'a HeaderMap,
}

impl Ingest {
    /// Takes a whole body; success only with the receipt.
    pub async fn accept(&self, signal: Signal, arrival: Arrival<'_>, bytes_max: u64) -> Result<Accepted, Rejection> {
        let Arrival { client, content, encoding, body, permit } = arrival;
        let started = Instant::now();
        let limit = usize::try_from(bytes_max).unwrap_or(usize::MAX);
        let kept = self.captures.as_ref().map(|_| body.clone());
        let checked = match self.check(signal, content, encoding, body, permit, limit).await {
            Ok(checked) => checked,
            Err(rejection) => {
                self.count(signal, &rejection);
                if let (Rejection::Malformed(flaw), Some(body)) = (&rejection, kept) {
                    self.capture(signal, encoding, flaw, body, client);
                }
                return Err(rejection);
            }
        };
        let items = checked.items;
        let offer = Offer {
            signal,
            encoding: checked.encoding,
            items,
            raw_len: checked.raw_len,
            metadata: Vec::new(),
            payload: checked.payload,
            permit: checked.permit,
            marks: checked.marks,
            peer: client.peer,
        };
        match self.intake.offer(offer).await {
            Ok(accepted) => {
                self.metrics.accepted(signal as usize - 1, items, started.elapsed());
                Ok(accepted)
            }
            Err(refused) => {
                let rejection = Rejection::from(refused);
                self.count_items(signal, &rejection, items);
                Err(rejection)
            }
        }
    }

    /// Keeps a copy of what could not be decoded, if that is wanted and there is memory for it.
    pub fn capture(&self, signal: Signal, encoding: WireEncoding, flaw: &Flaw, body: Bytes, client: Client<'_>) {
        let Some(captures) = &self.captures else { return };
        let Some(permit) = self.budget.try_reserve(body.len() as u64) else {
            return captures.skip();
        };
        let encoding = match encoding {
            WireEncoding::Stored(encoding) => encoding,
            // As bytes; the header says what they are.
            WireEncoding::Zlib => Encoding::Identity,
        };
        let headers = client.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
        captures.offer(Capture {
            signal,
            encoding,
            body,
            message: flaw.message.clone(),
            offset: flaw.offset.map(|offset| offset as u64),
            origin: Origin::new(&self.receiver, client.peer, headers),
            permit,
        });
    }

    /// Refuses before a large body is read what would be refused anyway.
    pub fn admit(&self, signal: Signal, announced_bytes: u64) -> Result<(), Rejection> {
        if announced_bytes < ADMISSION_BYTES_MIN {
            return Ok(());
        }
        self.intake.check(signal, announced_bytes).map_err(Rejection::from)
    }

    /// Counts a request whose items are not known: as one item, so that an alert on refused items sees it.
    pub fn count(&self, signal: Signal, rejection: &Rejection) {
        self.count_items(signal, rejection, 1);
    }

    fn count_items(&self, signal: Signal, rejection: &Rejection, items: u64) {
        let index = signal as usize - 1;
        match rejection {
            Rejection::Unavailable { reason, .. } => self.metrics.refused(index, items, reason),
            Rejection::Malformed(_) => self.metrics.failed(index, items, "malformed"),
            Rejection::TooLarge(_) => self.metrics.failed(index, items, "too_large"),
            Rejection::NoPipeline(_) => self.metrics.failed(index, items, "no_pipeline"),
            Rejection::TooSlow => self.metrics.refused(index, items, "too_slow"),
            // Nobody was answered.
            Rejection::Broken(_) => self.metrics.refused(index, 0, "broken"),
        }
    }

    async fn check(
        &self,
        signal: Signal,
        content: Content,
        encoding: WireEncoding,
        body: Bytes,
        permit: Permit,
        limit: usize,
    ) -> Result<Checked, Rejection> {
        let inline_limit = limit.min(INLINE_BYTES_MAX);
        if body.len() <= INLINE_BYTES_MAX {
            let first = self.looker().check(signal, content, encoding, body.clone(), permit, inline_limit);
            match first {
                Err((Rejection::TooLarge(_), mut permit)) if inline_limit < limit => {
                    // What was inflated so far is gone.
                    permit.shrink_to(body.len() as u64);
                    return self.check_heavy(signal, content, encoding, body, permit, limit).await;
                }
                other => return other.map_err(|(rejection, _)| rejection),
            }
        }
        self.check_heavy(signal, content, encoding, body, permit, limit).await
    }

    fn looker(&self) -> Looker {
        Looker { intake: Arc::clone(&self.intake), budget: self.budget.clone() }
    }

    async fn check_heavy(
        &self,
        signal: Signal,
        content: Content,
        encoding: WireEncoding,
        body: Bytes,
        permit: Permit,
        limit: usize,
    ) -> Result<Checked, Rejection> {
        let looker = self.looker();
        let turn = Arc::clone(&self.heavy).acquire_owned().await;
        let work = move || {
            let _turn = turn;
            looker.check(signal, content, encoding, body, permit, limit).map_err(|(rejection, _)| rejection)
        };
        tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| {
            // Our own fault, or the process is ending: the client must not drop its data for it.
            tracing::error!(%error, signal = signal.name(), "validating a request failed");
            Err(Rejection::Unavailable {
                message: "the request could not be validated; try again".to_owned(),
                retry_after: RETRY_AFTER_INTERNAL,
                reason: "internal",
            })
        })
    }
}

/// What inflating and validating needs, on whatever thread.
struct Looker {
    intake: Arc<dyn Intake>,
    budget: Budget,
}

thread_local! {
    /// Inflated bytes that are only looked at.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl Looker {
    fn check(
        &self,
        signal: Signal,
        content: Content,
        encoding: WireEncoding,
        body: Bytes,
        mut permit: Permit,
        limit: usize,
    ) -> Result<Checked, (Rejection, Permit)> {
        let result = match (content, encoding) {
            (Content::Protobuf, WireEncoding::Stored(Encoding::Identity)) => {
                if body.len() > limit {
                    Err(too_large(limit))
                } else {
                    self.scan(signal, &body).map(|found| (Encoding::Identity, found, body.len(), body))
                }
            }
            (Content::Protobuf, WireEncoding::Stored(encoding)) => {
                let mut working = self.budget.empty_permit();
                SCRATCH.with_borrow_mut(|scratch| {
                    let checked = inflate(WireEncoding::Stored(encoding), &body, limit, scratch, &mut working)
                        .and_then(|()| self.scan(signal, scratch))
                        .map(|found| (encoding, found, scratch.len(), body));
                    // Large scratch space goes back; small stays warm.
                    scratch.clear();
                    scratch.shrink_to(INLINE_BYTES_MAX);
                    checked
                })
            }
            (content, encoding) => {
                let mut raw = Vec::new();
                inflate(encoding, &body, limit, &mut raw, &mut permit).and_then(|()| {
                    drop(body);
                    let payload = match content {
                        Content::Protobuf => Bytes::from(raw),
                        Content::Json => {
                            // JSON is about twice its protobuf; the copy is accounted for before it is made.
                            if !permit.try_grow(raw.len() as u64 / 2) {
                                return Err(super::body::out_of_memory());
                            }
                            json::to_protobuf(signal, &raw).map_err(|error| {
                                let message = format!("the JSON body cannot be read: {error}");
                                Rejection::Malformed(Flaw { message, offset: error.offset })
                            })?
                        }
                    };
                    let found = self.scan(signal, &payload)?;
                    Ok((Encoding::Identity, found, payload.len(), payload))
                })
            }
        };
        match result {
            Ok((encoding, (items, marks), raw_len, payload)) => {
                if (permit.bytes() as usize) < payload.len()
                    && !permit.try_grow((payload.len() as u64) - permit.bytes())
                {
                    return Err((super::body::out_of_memory(), permit));
                }
                permit.shrink_to(payload.len() as u64);
                Ok(Checked { encoding, items, raw_len: raw_len as u64, payload, permit, marks })
            }
            Err(rejection) => Err((rejection, permit)),
        }
    }

    /// Validates a message, and notes what it will be known by while it is at hand.
    fn scan(&self, signal: Signal, message: &[u8]) -> Result<(u64, Marks), Rejection> {
        let summary = wire::scan(signal, message).map_err(|error| {
            let message = format!("the body is not a valid OTLP request: {error}");
            Rejection::Malformed(Flaw { message, offset: Some(error.offset) })
        })?;
        let marks = self.intake.mark(signal, message, &summary, &self.budget).ok_or_else(super::body::out_of_memory)?;
        Ok((summary.items, marks))
    }
}

fn too_large(limit: usize) -> Rejection {
    Rejection::TooLarge(format!("the request is too large: more than the {limit} bytes that are taken"))
}

fn inflate(
    encoding: WireEncoding,
    body: &[u8],
    limit: usize,
    out: &mut Vec<u8>,
    permit: &mut Permit,
) -> Result<(), Rejection> {
    let mut reserve = |bytes: usize| permit.try_grow(bytes as u64);
    let result = match encoding {
        WireEncoding::Stored(encoding) => compression::inflate(encoding, body, limit, out, &mut reserve),
        WireEncoding::Zlib => compression::inflate_zlib(body, limit, out, &mut reserve),
    };
    result.map_err(|error| match error {
        InflateError::TooLarge { .. } => too_large(limit),
        InflateError::NoMemory => super::body::out_of_memory(),
        InflateError::Malformed { .. } => Rejection::Malformed(error.to_string().into()),
    })
}
