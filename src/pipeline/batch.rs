//! One request out of several records: protobuf messages with repeated fields merge by concatenation.

use bytes::Bytes;

use crate::exporters::{Batch, Payload, heavy};
use crate::otlp::compression::{self, InflateError};
use crate::otlp::{Encoding, Signal};
use crate::queue::metadata;
use crate::storage::Record;

/// A record that passed its check and still cannot be read: a bug, or another version's encoding.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error("record {sequence} cannot be inflated: {cause}")]
    Inflate { sequence: u64, cause: InflateError },
    #[error("record {sequence} has an encoding of another version ({encoding})")]
    Encoding { sequence: u64, encoding: u8 },
    #[error("failed to inflate records: {0}")]
    Worker(std::io::Error),
}

/// Builds the request for `records` (at least one, all of one signal and with the same metadata).
pub async fn build(signal: Signal, records: &[Record]) -> Result<Batch, BuildError> {
    let items = records.iter().map(|record| u64::from(record.items)).sum();
    let metadata = records.first().map(|record| metadata::decode(&record.metadata)).unwrap_or_default();
    let compressed: u64 = records
        .iter()
        .filter(|record| record.encoding != Encoding::Identity as u8)
        .map(|record| u64::from(record.raw_len))
        .sum();
    let records = records.to_vec();
    let payload = heavy::run(compressed, move || merge(&records)).await.map_err(BuildError::Worker)??;
    Ok(Batch { signal, items, payload, metadata })
}

/// Records that were stored as they are go into the request as they are; others are inflated.
fn merge(records: &[Record]) -> Result<Payload, BuildError> {
    let mut payload = Payload::default();
    for record in records {
        let encoding = Encoding::from_u8(record.encoding)
            .ok_or(BuildError::Encoding { sequence: record.sequence, encoding: record.encoding })?;
        if encoding == Encoding::Identity {
            payload.push(record.payload.clone());
            continue;
        }
        let mut inflated = Vec::with_capacity(record.raw_len as usize);
        // It was inflated to this very length before it was accepted.
        compression::inflate(encoding, &record.payload, record.raw_len as usize, &mut inflated, &mut |_| true)
            .map_err(|cause| BuildError::Inflate { sequence: record.sequence, cause })?;
        payload.push(Bytes::from(inflated));
    }
    Ok(payload)
}
