//! The dead-letter queue of this process: opened with the store, its figures and its ages watched.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::config::Plan;
use crate::dedup::Dedup;
use crate::dlq::expiry::{self, Calendar};
use crate::dlq::{DeadLetters, Description, OnFull, Parcel, Reason, SeenBefore, Shelf};
use crate::otlp::{Encoding, Signal, compression, resource};
use crate::queue::{Park, Undo, metadata};
use crate::storage::dead_letters::Damage;
use crate::storage::{Record, Store, StoreError};
use crate::telemetry;

use super::Error;

/// How often letters past their age are looked for: a tenth of the age, within these.
const EXPIRY_INTERVAL_MIN: Duration = Duration::from_millis(100);
const EXPIRY_INTERVAL_MAX: Duration = Duration::from_secs(60);

/// So much of a compressed record is inflated to learn whose it is.
const BEGINNING_BYTES_MAX: usize = 64 << 10;

/// Opens it; what is damaged is said once, here.
pub fn open(plan: &Plan, store: &Store, seen_before: &Arc<OnceLock<Arc<Dedup>>>) -> Result<Arc<DeadLetters>, Error> {
    let max_bytes = plan.dead_letters.max_size_bytes;
    let open = || Shelf::open(store.disk(), store.dir(), max_bytes, Some(store.space()));
    let (shelf, damage) =
        store.with_room(|| open().map_err(StoreError::io("open the dead letters in", store.dir())))?;
    telemetry::dead_letters_damaged(damage.iter().map(Damage::letters_at_least).sum());
    for damage in damage {
        match damage.letters {
            Some(0) => tracing::warn!(%damage, "dead letters are damaged, and none is lost"),
            letters => tracing::error!(letters, %damage, "dead letters are damaged and lost; others are kept"),
        }
    }
    // There from the start, so that a rise is seen.
    ["delivered", "failed"].into_iter().for_each(|outcome| telemetry::dead_letters_replayed(outcome, 0));
    telemetry::dead_letters_purged(0);
    let status = shelf.parked().status();
    if status.letters > 0 {
        tracing::warn!(letters = status.letters, items = status.items, "dead letters wait; see `forebay dlq list`");
    }
    let on_full = if plan.dead_letters.drops { OnFull::Drop } else { OnFull::Block };
    let seen_before = Arc::clone(seen_before);
    let memory = SeenBefore::new(move |records| {
        if let Some(dedup) = seen_before.get() {
            records.iter().for_each(|(queue, sequences)| dedup.forget_all(queue, sequences));
        }
        Ok(())
    });
    Ok(Arc::new(DeadLetters::new(shelf, on_full).remembered_by(memory)))
}

/// Ends letters older than `max_age`, now and then, for as long as the process runs.
pub fn expire(letters: &Arc<DeadLetters>, max_age: Duration) {
    let (letters, calendar) = (Arc::clone(letters), Arc::new(Calendar::start()));
    let interval = (max_age / 10).clamp(EXPIRY_INTERVAL_MIN, EXPIRY_INTERVAL_MAX);
    tokio::spawn(async move {
        tokio::time::sleep(expiry::GRACE.min(max_age)).await;
        loop {
            let (letters, calendar) = (Arc::clone(&letters), Arc::clone(&calendar));
            let work = move || expiry::expire(&letters, calendar.now_unix_ns(), max_age);
            match tokio::task::spawn_blocking(work).await {
                Ok(Ok(expired)) if expired.letters > 0 => {
                    for ((exporter, signal), items) in &expired.items {
                        telemetry::expired_dead_letters(exporter, *signal as usize - 1, *items);
                    }
                    let items: u64 = expired.items.values().sum();
                    tracing::warn!(
                        letters = expired.letters,
                        items,
                        ?max_age,
                        "dead letters are past max_age and dropped"
                    );
                }
                Ok(Ok(_)) => {}
                Ok(Err(error)) => tracing::error!(%error, "dead letters past max_age cannot be ended; trying later"),
                Err(error) => tracing::error!(%error, "ending dead letters past max_age failed; trying later"),
            }
            tokio::time::sleep(interval).await;
        }
    });
}

/// Makes dead letters of what an exporter gives up at the cap (`on_full: park`).
pub fn park_at_cap(letters: &Arc<DeadLetters>, queue: &str, exporter: &str) -> Park {
    let (letters, queue, exporter) = (Arc::clone(letters), queue.to_owned(), exporter.to_owned());
    Box::new(move |records| {
        let parcels = records.iter().map(|record| parcel(record, &queue, &exporter)).collect::<Result<Vec<_>, _>>()?;
        let undo: Undo = Box::new(letters.take_over(parcels).map_err(std::io::Error::other)?);
        Ok(undo)
    })
}

fn parcel(record: &Record, queue: &str, exporter: &str) -> std::io::Result<Parcel> {
    let unknown = || std::io::Error::new(std::io::ErrorKind::InvalidData, "a record of another version");
    let signal = Signal::from_u8(record.signal).ok_or_else(unknown)?;
    let encoding = Encoding::from_u8(record.encoding).ok_or_else(unknown)?;
    let message = "the queue was at its cap, and the exporter's on_full is park";
    let mut description = Description::new(Reason::QueueFull, message, record.received_unix_ns);
    queue.clone_into(&mut description.queue);
    description.sequence = Some(record.sequence);
    description.exporter = Some(exporter.to_owned());
    description.set_metadata(&metadata::decode(&record.metadata));
    if encoding == Encoding::Identity {
        description.set_service_name(resource::service_name(&record.payload));
    } else {
        let mut beginning = Vec::new();
        // It is larger as a rule; what is inflated by then is there all the same.
        let _ = compression::inflate(encoding, &record.payload, BEGINNING_BYTES_MAX, &mut beginning, &mut |_| true);
        description.set_service_name(resource::service_name_in_beginning(&beginning));
    }
    let (items, raw_len) = (u64::from(record.items), u64::from(record.raw_len));
    Ok(Parcel { signal, encoding, items, raw_len, description, payload: record.payload.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::otlp::json;
    use bytes::Bytes;

    #[test]
    fn what_is_parked_at_the_cap_knows_its_service_however_it_is_compressed() {
        let spans: Vec<String> =
            (0..5000u64).map(|n| format!(r#"{{"name":"span {n} of many {}"}}"#, n * 7_919_000_000)).collect();
        let text = format!(
            r#"{{"resourceSpans":[{{"resource":{{"attributes":[{{"key":"service.name","value":{{"stringValue":"checkout"}}}}]}},
            "scopeSpans":[{{"spans":[{}]}}]}}]}}"#,
            spans.join(",")
        );
        let payload: Bytes = json::to_protobuf(Signal::Traces, text.as_bytes()).expect("valid");
        assert!(payload.len() > 2 * BEGINNING_BYTES_MAX);
        for encoding in [Encoding::Identity, Encoding::Gzip, Encoding::Zstd] {
            let stored = compression::compress(encoding, &payload).expect("compressed");
            for (payload, service) in [(stored.clone(), Some("checkout")), (stored.slice(..4), None)] {
                let record = Record {
                    sequence: 1,
                    signal: Signal::Traces as u8,
                    encoding: encoding as u8,
                    items: 5000,
                    raw_len: 1,
                    received_unix_ns: 5,
                    metadata: Bytes::new(),
                    payload,
                    guard: None,
                };
                let parcel = parcel(&record, "default", "otlp").expect("a letter");
                assert_eq!(parcel.description.service_name.as_deref(), service, "{encoding:?}");
            }
        }
    }
}
