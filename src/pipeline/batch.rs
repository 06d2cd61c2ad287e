//! One request out of several records: protobuf messages with repeated fields merge by concatenation.

use bytes::Bytes;

use crate::otlp::compression::{self, InflateError};
use crate::otlp::{Encoding, Signal};
use crate::queue::metadata;
use crate::storage::Record;

/// Above this much inflating the work leaves the async worker.
const INLINE_INFLATE_BYTES_MAX: u64 = 1 << 20;

/// A record that passed its check and still cannot be read: a bug, or another version's encoding.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error("record {sequence} cannot be inflated: {cause}")]
    Inflate { sequence: u64, cause: InflateError },
    #[error("record {sequence} has an encoding of another version ({encoding})")]
    Encoding { sequence: u64, encoding: u8 },
    #[error("the task that inflates records ended early")]
    Cancelled,
}

/// Builds the request for `records` (at least one, all of one signal and with the same metadata).
pub async fn build(signal: Signal, records: &[Record]) -> Result<crate::exporters::Batch, BuildError> {
    let items = records.iter().map(|record| u64::from(record.items)).sum();
    let metadata = records.first().map(|record| metadata::decode(&record.metadata)).unwrap_or_default();
    let compressed: u64 = records
        .iter()
        .filter(|record| record.encoding != Encoding::Identity as u8)
        .map(|record| u64::from(record.raw_len))
        .sum();
    let payload = match records {
        [only] if only.encoding == Encoding::Identity as u8 => only.payload.clone(),
        _ if compressed <= INLINE_INFLATE_BYTES_MAX => merge(records)?,
        _ => {
            let records = records.to_vec();
            tokio::task::spawn_blocking(move || merge(&records)).await.map_err(|_| BuildError::Cancelled)??
        }
    };
    Ok(crate::exporters::Batch { signal, items, payload, metadata })
}

fn merge(records: &[Record]) -> Result<Bytes, BuildError> {
    let raw_len: usize = records.iter().map(|record| record.raw_len as usize).sum();
    let mut merged = Vec::with_capacity(raw_len);
    let mut scratch = Vec::new();
    for record in records {
        let encoding = Encoding::from_u8(record.encoding)
            .ok_or(BuildError::Encoding { sequence: record.sequence, encoding: record.encoding })?;
        if encoding == Encoding::Identity {
            merged.extend_from_slice(&record.payload);
            continue;
        }
        // It was inflated to this very length before it was accepted.
        compression::inflate(encoding, &record.payload, record.raw_len as usize, &mut scratch, &mut |_| true)
            .map_err(|cause| BuildError::Inflate { sequence: record.sequence, cause })?;
        merged.extend_from_slice(&scratch);
    }
    Ok(Bytes::from(merged))
}
