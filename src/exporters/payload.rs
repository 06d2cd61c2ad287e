//! The bytes of a request, in the pieces that they were stored in: repeated protobuf fields merge by concatenation, and
//! a body that is sent piece by piece is merged without a copy.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use crate::otlp::{Signal, json};

use super::{Class, heavy};

/// Pieces, to be read as one message. Cloning shares them. As an HTTP body it has a known length.
#[derive(Clone, Debug, Default)]
pub struct Payload {
    pieces: VecDeque<Bytes>,
    len: usize,
}

impl Payload {
    /// Adds a piece behind the others.
    pub fn push(&mut self, piece: Bytes) {
        if !piece.is_empty() {
            self.len += piece.len();
            self.pieces.push_back(piece);
        }
    }

    /// Bytes in all.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn pieces(&self) -> impl Iterator<Item = &Bytes> {
        self.pieces.iter()
    }

    /// In one piece; copied only when there are several.
    pub fn into_bytes(mut self) -> Bytes {
        if self.pieces.len() <= 1 {
            return self.pieces.pop_front().unwrap_or_default();
        }
        let mut whole = Vec::with_capacity(self.len);
        for piece in &self.pieces {
            whole.extend_from_slice(piece);
        }
        Bytes::from(whole)
    }
}

/// Why a batch could not be written as JSON.
#[derive(Debug, thiserror::Error)]
pub enum JsonError {
    #[error("a batch cannot be written as JSON: {0}")]
    Content(String),
    #[error("failed to write a batch as JSON: {0}")]
    Work(std::io::Error),
}

impl JsonError {
    pub fn class(&self) -> Class {
        match self {
            JsonError::Content(_) => Class::Batch,
            JsonError::Work(_) => Class::Retryable,
        }
    }
}

impl Payload {
    /// OTLP-JSON on one line.
    pub async fn into_json(self, signal: Signal) -> Result<Vec<u8>, JsonError> {
        let len = self.len as u64;
        let write = move || {
            let mut text = Vec::with_capacity(self.len * 2);
            json::write_json(signal, &self.into_bytes(), &mut text).map(|()| text)
        };
        let written = heavy::run(len, write).await.map_err(JsonError::Work)?;
        written.map_err(|error| JsonError::Content(error.to_string()))
    }
}

impl From<Bytes> for Payload {
    fn from(bytes: Bytes) -> Payload {
        let mut payload = Payload::default();
        payload.push(bytes);
        payload
    }
}

impl Body for Payload {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let piece = self.pieces.pop_front();
        self.len -= piece.as_ref().map_or(0, Bytes::len);
        Poll::Ready(piece.map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.len as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;

    #[tokio::test]
    async fn pieces_leave_in_order_with_their_length_known_and_one_piece_is_never_copied() {
        let first = Bytes::from_static(b"first ");
        let mut payload = Payload::from(first.clone());
        assert_eq!(payload.clone().into_bytes().as_ptr(), first.as_ptr());
        payload.push(Bytes::new());
        payload.push(Bytes::from_static(b"second"));
        assert_eq!(payload.pieces().count(), 2, "an empty piece is none");
        assert_eq!(payload.clone().into_bytes(), "first second");
        assert_eq!(payload.size_hint().exact(), Some(12));
        assert_eq!(payload.frame().await.expect("a frame").expect("data").into_data().expect("data"), first);
        assert_eq!((payload.len(), payload.size_hint().exact()), (6, Some(6)));
        assert_eq!(payload.collect().await.expect("read").to_bytes(), "second");
    }
}
