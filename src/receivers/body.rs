//! A request's body, read within its limit, the memory budget and a time limit.

use std::pin::pin;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use http_body::Body;
use http_body_util::BodyExt;

use crate::queue::{Budget, Permit};

use super::ingest::Rejection;

/// When a client may come back after memory was short.
pub const RETRY_AFTER_MEMORY: Duration = Duration::from_secs(1);
/// Bodies of unknown length are reserved in steps of this.
const STEP_BYTES: u64 = 64 << 10;

#[derive(Clone, Copy, Debug)]
pub struct BodyLimits {
    pub bytes_max: u64,
    /// The longest pause between two pieces of a body.
    pub read_timeout: Duration,
}

/// Reads frames and keeps the memory accounted for.
pub struct BodyReader<B> {
    body: B,
    limits: BodyLimits,
    permit: Permit,
    received: BytesMut,
    /// A body that is one frame stays as it is.
    single: Option<Bytes>,
}

impl<B: Body<Data = Bytes> + Unpin> BodyReader<B>
where
    B::Error: std::fmt::Display,
{
    pub fn new(body: B, limits: BodyLimits, budget: &Budget) -> BodyReader<B> {
        BodyReader { body, limits, permit: budget.empty_permit(), received: BytesMut::new(), single: None }
    }

    /// Reserves memory for `bytes` that are announced, or refuses at once.
    pub fn announce(&mut self, bytes: u64) -> Result<(), Rejection> {
        if bytes > self.limits.bytes_max {
            return Err(Rejection::TooLarge(format!(
                "the request has {bytes} bytes; at most {} are taken",
                self.limits.bytes_max
            )));
        }
        let more = bytes.saturating_sub(self.permit.bytes());
        if self.permit.try_grow(more) { Ok(()) } else { Err(out_of_memory()) }
    }

    fn len(&self) -> u64 {
        (self.received.len() + self.single.as_ref().map_or(0, Bytes::len)) as u64
    }

    /// One more piece; false at the end.
    async fn fill(&mut self) -> Result<bool, Rejection> {
        let frame = tokio::time::timeout(self.limits.read_timeout, pin!(&mut self.body).frame()).await;
        let frame = match frame {
            Err(_) => return Err(Rejection::TooSlow),
            Ok(None) => return Ok(false),
            Ok(Some(Err(error))) => return Err(Rejection::Broken(error.to_string())),
            Ok(Some(Ok(frame))) => frame,
        };
        let Ok(data) = frame.into_data() else { return Ok(true) };
        let len = self.len() + data.len() as u64;
        if len > self.limits.bytes_max {
            return Err(Rejection::TooLarge(format!(
                "the request has more than the {} bytes that are taken",
                self.limits.bytes_max
            )));
        }
        if len > self.permit.bytes() {
            let step = (len - self.permit.bytes()).max(STEP_BYTES);
            if !self.permit.try_grow(step) {
                return Err(out_of_memory());
            }
        }
        if self.single.is_none() && self.received.is_empty() {
            self.single = Some(data);
            return Ok(true);
        }
        if let Some(first) = self.single.take() {
            let announced = usize::try_from(self.permit.bytes()).unwrap_or(usize::MAX);
            self.received.reserve(announced.max(first.len() + data.len()));
            self.received.extend_from_slice(&first);
        }
        self.received.extend_from_slice(&data);
        Ok(true)
    }

    /// The first `len` bytes, taken off the front; None when the body is shorter.
    pub async fn take(&mut self, len: usize) -> Result<Option<Bytes>, Rejection> {
        while self.len() < len as u64 {
            if !self.fill().await? {
                return Ok(None);
            }
        }
        if let Some(single) = &mut self.single {
            return Ok(Some(single.split_to(len)));
        }
        let front = Bytes::copy_from_slice(&self.received[..len]);
        self.received.advance(len);
        Ok(Some(front))
    }

    /// Everything to the end, and the memory it takes.
    pub async fn finish(mut self) -> Result<(Bytes, Permit), Rejection> {
        while self.fill().await? {}
        let body = match self.single {
            Some(single) => single,
            None => self.received.freeze(),
        };
        self.permit.shrink_to(body.len() as u64);
        Ok((body, self.permit))
    }
}

pub fn out_of_memory() -> Rejection {
    Rejection::Unavailable {
        message: "memory for requests is used up; try again soon".to_owned(),
        retry_after: RETRY_AFTER_MEMORY,
        reason: "memory",
    }
}
