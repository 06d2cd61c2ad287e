//! The front door: room is promised before a record is handed over.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::oneshot;

use crate::storage::backlog::Weight;
use crate::storage::record::{METADATA_LEN_MAX, PAYLOAD_LEN_MAX};
use crate::storage::segment::RECORDS_START;
use crate::storage::space::{Full, Holder, Reservation};

use super::{AppendError, Durable, Inner, Log, NewRecord, Pending, holder};

impl Inner {
    /// What has to be allocated before all that is pending has room, the last of it a record of `bytes`.
    fn allocation(&self, pending_bytes: u64, bytes: u64) -> Option<u64> {
        let beyond = pending_bytes.saturating_sub(self.room_bytes.load(Ordering::Acquire));
        let usable = self.shared.segment_bytes - RECORDS_START;
        (beyond > 0).then(|| match bytes > usable {
            true => beyond + RECORDS_START,
            false => beyond.div_ceil(usable) * self.shared.segment_bytes,
        })
    }
}

impl Log {
    /// Promises room for a record (from [`NewRecord::weight`]), or says who holds it.
    pub fn reserve(&self, weight: Weight) -> Result<Reservation, Full> {
        let inner = &self.inner;
        if inner.stopping.load(Ordering::Acquire) {
            return Err(Full::Closed);
        }
        if let Some(failure) = &*inner.failure.lock() {
            return Err(Full::Failed(failure.clone()));
        }
        let bytes = weight.bytes;
        let pending_bytes = inner.pending_bytes.fetch_add(bytes, Ordering::AcqRel) + bytes;
        let reservation = self.reserve_backlog(Reservation {
            pending_bytes: Arc::clone(&inner.pending_bytes),
            weight,
            tallies: Vec::new(),
        })?;
        if let Some(allocation) = inner.allocation(pending_bytes, bytes) {
            let checked = inner.shared.space.check(allocation, || holder::find(inner));
            checked.inspect_err(|_| {
                inner.shared.space.want(allocation);
                inner.shared.pressure.raise();
            })?;
        }
        Ok(reservation)
    }

    /// Whether a record of so many bytes would be refused for want of space. Nobody is asked to make room for it.
    pub fn is_full_for(&self, bytes: u64) -> bool {
        let pending_bytes = self.inner.pending_bytes.load(Ordering::Acquire) + bytes;
        let allocation = self.inner.allocation(pending_bytes, bytes);
        allocation.is_some_and(|bytes| self.inner.shared.space.check(bytes, Holder::default).is_err())
    }

    /// Hands the record to the writer. The answer comes when its bytes are synced, or with the reason why not.
    pub fn append(
        &self,
        reservation: Reservation,
        record: NewRecord,
    ) -> oneshot::Receiver<Result<Durable, AppendError>> {
        let (answer, receiver) = oneshot::channel();
        let len = record.payload.len() as u64;
        if len > PAYLOAD_LEN_MAX || record.metadata.len() > METADATA_LEN_MAX {
            // The receiver may have gone away; then nobody wants the answer.
            let _ = answer.send(Err(AppendError::TooLarge { len, max: PAYLOAD_LEN_MAX }));
            return receiver;
        }
        let mut inbox = self.inner.inbox.lock();
        if inbox.closed {
            let _ = answer.send(Err(AppendError::Closed));
            return receiver;
        }
        inbox.pending.push_back(Pending { record, reservation, answer });
        drop(inbox);
        self.inner.inbox_ready.notify_one();
        receiver
    }
}
