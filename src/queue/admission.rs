//! One offer into all queues that want it: each stores what its gate has not had, all of them or none have room.

use std::sync::Arc;

use bytes::Bytes;

use crate::otlp::{Encoding, compression, edit};
use crate::storage::{AppendError, Durable, Full, Log, NewRecord};
use crate::telemetry;

use super::gate::{Claim, Gate, Offered, Selection, Verdict};
use super::router::{refused_append, refused_full, unavailable};
use super::{Accepted, Permit, Refused};

/// Inflating, cutting and looking up more than this leaves the async worker.
const INLINE_BYTES_MAX: u64 = 1 << 20;

/// One queue, and what stands before it.
#[derive(Clone)]
pub struct Lane {
    pub log: Arc<Log>,
    pub gate: Option<Arc<dyn Gate>>,
}

/// What one queue has of the offer so far.
struct Part {
    lane: Lane,
    left: Selection,
    deduplicated: u64,
}

/// What one queue is to store in this round.
struct Portion {
    part: usize,
    record: NewRecord,
    claim: Option<Box<dyn Claim>>,
}

/// Runs to its end whoever waits for it: what is claimed is settled when the writer has answered.
pub(super) async fn admit(lanes: Vec<Lane>, offered: Offered, permit: Permit) -> Result<Accepted, Refused> {
    let guard = Arc::new(permit);
    let offered = Arc::new(offered);
    let mut parts: Vec<Part> =
        lanes.into_iter().map(|lane| Part { lane, left: Selection::All, deduplicated: 0 }).collect();
    let mut receipts = Vec::with_capacity(parts.len());
    while parts.iter().any(|part| !part.left.is_none()) {
        let mut portions = Vec::new();
        let mut waits = Vec::new();
        for (index, part) in parts.iter_mut().enumerate().filter(|(_, part)| !part.left.is_none()) {
            let left = std::mem::replace(&mut part.left, Selection::None);
            let (verdict, record) = sort(&part.lane, &offered, left, &guard).await?;
            part.deduplicated += verdict.duplicates;
            part.left = verdict.waiting;
            waits.extend(verdict.waits);
            if let Some(record) = record {
                portions.push(Portion { part: index, record, claim: verdict.claim });
            }
        }
        receipts.extend(store(&parts, portions).await?);
        // No claim is held any more: whoever waits for this offer goes on.
        for ended in waits {
            ended.await;
        }
    }
    let deduplicated = parts.iter().map(|part| part.deduplicated).max().unwrap_or(0);
    for part in parts.iter().filter(|part| part.deduplicated > 0) {
        part.lane.log.note_deduplicated(part.deduplicated);
        telemetry::deduplicated(part.lane.log.id(), offered.signal as usize - 1, part.deduplicated);
    }
    if receipts.is_empty() {
        receipts.push(Log::durable_already());
    }
    Ok(Accepted::new(receipts, deduplicated))
}

/// Room in all of them first: when one refuses, nothing is written anywhere.
async fn store(parts: &[Part], portions: Vec<Portion>) -> Result<Vec<Durable>, Refused> {
    let reservations = portions
        .iter()
        .map(|portion| parts[portion.part].lane.log.reserve(portion.record.weight()))
        .collect::<Result<Vec<_>, Full>>()
        .map_err(|full| refused_full(&full))?;
    let answers: Vec<_> = portions
        .into_iter()
        .zip(reservations)
        .map(|(portion, room)| (parts[portion.part].lane.log.append(room, portion.record), portion.claim))
        .collect();
    let mut receipts = Vec::with_capacity(answers.len());
    let mut refused = None;
    // Also behind a queue that failed: what another has made durable it has seen.
    for (answer, claim) in answers {
        match answer.await.unwrap_or(Err(AppendError::Closed)) {
            Ok(receipt) => {
                if let (Some(claim), Some(sequence)) = (claim, receipt.sequence()) {
                    claim.durable(sequence);
                }
                receipts.push(receipt);
            }
            Err(error) => refused = refused.or(Some(refused_append(&error))),
        }
    }
    refused.map_or(Ok(receipts), Err)
}

/// What the gate says of the items left, and the record of those that are fresh.
async fn sort(
    lane: &Lane,
    offered: &Arc<Offered>,
    left: Selection,
    guard: &Arc<Permit>,
) -> Result<(Verdict, Option<NewRecord>), Refused> {
    let Some(gate) = lane.gate.clone() else {
        let record = whole(offered, guard);
        return Ok((Verdict::store(left), Some(record)));
    };
    let (offered_here, guard) = (Arc::clone(offered), Arc::clone(guard));
    let work = move || {
        let verdict = gate.claim(&offered_here, &left);
        let record = match &verdict.fresh {
            Selection::None => None,
            Selection::All => Some(whole(&offered_here, &guard)),
            Selection::Some(chosen) => Some(cut(&offered_here, chosen, &guard)?),
        };
        Ok((verdict, record))
    };
    if offered.raw_len <= INLINE_BYTES_MAX {
        return work();
    }
    match tokio::task::spawn_blocking(work).await {
        Ok(sorted) => sorted,
        Err(error) => {
            tracing::error!(%error, "sorting out what was seen before failed");
            Err(unavailable("the request could not be looked up; try again"))
        }
    }
}

fn whole(offered: &Offered, guard: &Arc<Permit>) -> NewRecord {
    NewRecord {
        signal: offered.signal as u8,
        encoding: offered.encoding as u8,
        items: u32::try_from(offered.items).unwrap_or(u32::MAX),
        raw_len: u32::try_from(offered.raw_len).unwrap_or(u32::MAX),
        received_unix_ns: offered.received_unix_ns,
        metadata: offered.metadata.clone(),
        payload: offered.payload.clone(),
        guard: guard.clone(),
    }
}

/// Only the items with these indices, inflated: what is left of a compressed request is not compressed again.
fn cut(offered: &Offered, chosen: &[u32], guard: &Arc<Permit>) -> Result<NewRecord, Refused> {
    let raw_len = usize::try_from(offered.raw_len).unwrap_or(usize::MAX);
    let mut permit = guard.sibling();
    let mut inflated = Vec::new();
    let short = || unavailable("not enough memory to leave out what was seen before; try again");
    // The copy is at most as long as the message; a compressed one is inflated beside it.
    if !permit.try_grow(offered.raw_len) {
        return Err(short());
    }
    let message: &[u8] = match offered.encoding {
        Encoding::Identity => &offered.payload,
        encoding => {
            compression::inflate(encoding, &offered.payload, raw_len, &mut inflated, &mut |bytes| {
                permit.try_grow(bytes as u64)
            })
            .map_err(|_| short())?;
            &inflated
        }
    };
    let mut next = chosen.iter().peekable();
    let mut keep = |index: usize| next.next_if(|wanted| **wanted as usize == index).is_some();
    let kept = edit::retain(offered.signal, message, &mut keep).map_err(|error| {
        tracing::error!(%error, "a request that was found valid cannot be cut");
        unavailable("the request could not be cut; try again")
    })?;
    let Some(payload) = kept else { return Ok(whole(offered, guard)) };
    drop(inflated);
    permit.shrink_to(payload.len() as u64);
    Ok(NewRecord {
        encoding: Encoding::Identity as u8,
        items: chosen.len() as u32,
        raw_len: payload.len() as u32,
        payload: Bytes::from(payload),
        guard: Arc::new(permit),
        ..whole(offered, guard)
    })
}
