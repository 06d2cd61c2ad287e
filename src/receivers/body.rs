//! A request's body, read within its limit, the memory budget and a time limit.

use std::pin::pin;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use http::header::EXPECT;
use http::{HeaderMap, Request};
use http_body::Body;
use http_body_util::BodyExt;
use tokio::time::Instant;

use crate::queue::{Budget, Permit};

use super::ingest::Rejection;

/// When a client may come back after memory was short.
pub const RETRY_AFTER_MEMORY: Duration = Duration::from_secs(1);
/// Bodies of unknown length are reserved in steps, the first of this, then doubling.
const STEP_BYTES: usize = 64 << 10;
/// A frame is a slice of the connection's read buffer and keeps all of it; smaller ones are copied out, since a
/// record may stay in memory for long.
const COPIED_BYTES_MAX: usize = 64 << 10;
/// A body may take the read timeout and then a second for each of these: who announces much and sends little does
/// not hold memory for long.
const BYTES_PER_SECOND_MIN: u64 = 4 << 10;
/// What is read and thrown away of a body that was refused, so that the client reads its answer and not a reset.
const DISCARDED_BYTES_MAX: usize = 256 << 20;
const DISCARD_TIMEOUT: Duration = Duration::from_secs(10);

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
    budget: Budget,
    permit: Permit,
    /// Bytes that the sender says will come; 0 when it does not say.
    announced: usize,
    started: Instant,
    received: BytesMut,
    /// A body that is one frame stays as it is.
    single: Option<Bytes>,
}

impl<B: Body<Data = Bytes> + Unpin> BodyReader<B>
where
    B::Error: std::fmt::Display,
{
    pub fn new(body: B, limits: BodyLimits, budget: &Budget) -> BodyReader<B> {
        BodyReader {
            body,
            limits,
            budget: budget.clone(),
            permit: budget.empty_permit(),
            announced: 0,
            started: Instant::now(),
            received: BytesMut::new(),
            single: None,
        }
    }

    /// Reserves memory for `bytes` that are announced, or refuses at once.
    pub fn announce(&mut self, bytes: u64) -> Result<(), Rejection> {
        if bytes > self.limits.bytes_max {
            return Err(Rejection::TooLarge(format!(
                "the request is too large: it has {bytes} bytes, at most {} are taken",
                self.limits.bytes_max
            )));
        }
        self.reserve(bytes)?;
        self.announced = usize::try_from(bytes).unwrap_or(usize::MAX);
        Ok(())
    }

    fn reserve(&mut self, bytes: u64) -> Result<(), Rejection> {
        let more = bytes.saturating_sub(self.permit.bytes());
        if self.permit.try_grow(more) { Ok(()) } else { Err(out_of_memory()) }
    }

    fn len(&self) -> usize {
        self.received.len() + self.single.as_ref().map_or(0, Bytes::len)
    }

    /// One more piece; false at the end.
    async fn fill(&mut self) -> Result<bool, Rejection> {
        let allowance = Duration::from_secs(self.len() as u64 / BYTES_PER_SECOND_MIN) + self.limits.read_timeout;
        let left = allowance.saturating_sub(self.started.elapsed());
        let patience = self.limits.read_timeout.min(left);
        let frame = match tokio::time::timeout(patience, pin!(&mut self.body).frame()).await {
            Err(_) => return Err(Rejection::TooSlow),
            Ok(None) => return Ok(false),
            Ok(Some(Err(error))) => return Err(Rejection::Broken(error.to_string())),
            Ok(Some(Ok(frame))) => frame,
        };
        let Ok(data) = frame.into_data() else { return Ok(true) };
        let len = self.len() + data.len();
        if len as u64 > self.limits.bytes_max {
            return Err(Rejection::TooLarge(format!(
                "the request is too large: more than the {} bytes that are taken",
                self.limits.bytes_max
            )));
        }
        self.reserve(len as u64)?;
        if self.single.is_none() && self.received.is_empty() {
            if data.len() >= self.announced && data.len() > COPIED_BYTES_MAX {
                self.single = Some(data);
            } else {
                self.append(&data, len)?;
            }
            return Ok(true);
        }
        if let Some(first) = self.single.take() {
            self.append(&first, len)?;
        }
        self.append(&data, len)?;
        Ok(true)
    }

    /// Appends; `len` bytes are there afterwards or soon.
    fn append(&mut self, data: &[u8], len: usize) -> Result<(), Rejection> {
        if self.received.len() + data.len() > self.received.capacity() {
            let capacity = if self.announced >= len {
                self.announced
            } else if self.received.is_empty() && data.len() <= COPIED_BYTES_MAX {
                // Mostly all there is: exactly this.
                len
            } else {
                let limit = usize::try_from(self.limits.bytes_max).unwrap_or(usize::MAX);
                (2 * len).max(STEP_BYTES).min(limit.max(len))
            };
            // While it moves, it is there twice.
            self.reserve((self.received.capacity() + capacity) as u64)?;
            self.received.reserve(capacity - self.received.len());
            self.permit.shrink_to(self.received.capacity() as u64);
        }
        self.received.extend_from_slice(data);
        Ok(())
    }

    /// The first `len` bytes, taken off the front; None when the body is shorter.
    pub async fn take(&mut self, len: usize) -> Result<Option<Bytes>, Rejection> {
        while self.len() < len {
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
    pub async fn finish(&mut self) -> Result<(Bytes, Permit), Rejection> {
        while self.fill().await? {}
        let body = match self.single.take() {
            Some(single) => single,
            None => std::mem::take(&mut self.received).freeze(),
        };
        let mut permit = std::mem::replace(&mut self.permit, self.budget.empty_permit());
        permit.shrink_to(body.len() as u64);
        Ok((body, permit))
    }

    /// The rest of a body that was refused, to be discarded.
    pub fn into_rest(self) -> B {
        self.body
    }
}

/// Reads what is left and throws it away, within bounds. HTTP/1 closes a connection whose request was not read to the
/// end, and a client that is still sending then sees a reset in place of its answer.
pub async fn discard<B: Body<Data = Bytes> + Unpin>(mut body: B) {
    let reading = async {
        let mut left = DISCARDED_BYTES_MAX;
        while let Some(Ok(frame)) = body.frame().await {
            let len = frame.data_ref().map_or(0, Bytes::len);
            match left.checked_sub(len) {
                Some(less) => left = less,
                None => return,
            }
        }
    };
    // Who takes longer gets the reset.
    let _ = tokio::time::timeout(DISCARD_TIMEOUT, reading).await;
}

/// The client sends its body only after it is told to.
pub fn waits_for_continue(headers: &HeaderMap) -> bool {
    headers.contains_key(EXPECT)
}

/// Discards what was not read of a request while its answer goes out.
pub fn discard_unread<B>(request: Request<B>)
where
    B: Body<Data = Bytes> + Unpin + Send + 'static,
    B::Error: Send,
{
    if !waits_for_continue(request.headers()) && !request.body().is_end_stream() {
        tokio::spawn(discard(request.into_body()));
    }
}

pub fn out_of_memory() -> Rejection {
    Rejection::Unavailable {
        message: "memory for requests is used up; try again soon".to_owned(),
        retry_after: RETRY_AFTER_MEMORY,
        reason: "memory",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::{StreamExt, stream};
    use http_body::Frame;
    use http_body_util::StreamBody;
    use std::convert::Infallible;

    const LIMITS: BodyLimits = BodyLimits { bytes_max: 3 << 20, read_timeout: Duration::from_secs(30) };

    fn body(pieces: Vec<Bytes>) -> impl Body<Data = Bytes, Error = Infallible> + Unpin {
        StreamBody::new(stream::iter(pieces.into_iter().map(|piece| Ok(Frame::data(piece)))).boxed())
    }

    #[tokio::test]
    async fn however_a_body_is_cut_and_announced_it_arrives_whole_and_accounted_for() {
        let bytes: Vec<u8> = (0..700_000u32).map(|n| (n % 251) as u8).collect();
        for piece in [1000, 16 << 10, 65_537, 300_000, 700_000] {
            for announced in [None, Some(700_000)] {
                let budget = Budget::new(8 << 20);
                let pieces = bytes.chunks(piece).map(Bytes::copy_from_slice).collect();
                let mut reader = BodyReader::new(body(pieces), LIMITS, &budget);
                if let Some(announced) = announced {
                    reader.announce(announced).expect("fits");
                }
                let front = reader.take(5).await.expect("read").expect("five bytes");
                let (rest, permit) = reader.finish().await.expect("read");
                assert_eq!([&front[..], &rest[..]].concat(), bytes, "pieces of {piece}, announced {announced:?}");
                assert_eq!(permit.bytes(), rest.len() as u64);
                drop((reader, permit));
                assert_eq!(budget.used_bytes(), 0);
            }
        }
    }

    #[tokio::test]
    async fn a_body_of_unknown_length_never_holds_more_than_it_reserved() {
        let budget = Budget::new(1 << 20);
        let pieces = vec![Bytes::from(vec![0; 100_000]); 20];
        let mut reader = BodyReader::new(body(pieces), LIMITS, &budget);
        let refused = reader.finish().await.expect_err("more than the budget");
        assert!(matches!(refused, Rejection::Unavailable { reason: "memory", .. }));
        assert!(reader.received.capacity() as u64 <= reader.permit.bytes(), "what is allocated is reserved");
        drop(reader);
        assert_eq!(budget.used_bytes(), 0);
    }

    #[tokio::test]
    async fn a_small_body_does_not_keep_the_read_buffer_it_came_in() {
        let budget = Budget::new(1 << 20);
        let read_buffer = Bytes::from(vec![7; 512 << 10]);
        let mut reader = BodyReader::new(body(vec![read_buffer.slice(100..400)]), LIMITS, &budget);
        let (bytes, _permit) = reader.finish().await.expect("read");
        assert_eq!(bytes, vec![7; 300]);
        drop(reader);
        assert!(read_buffer.is_unique(), "only the test still holds it");
    }
}
