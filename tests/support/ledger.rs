//! What was sent and what was acknowledged, kept outside the victim; and whether the sink has it all.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::setup::Setup;
use super::{Sink, Taken, request, span};

#[derive(Default)]
pub struct Ledger {
    pub sent: Mutex<BTreeSet<String>>,
    pub acknowledged: Mutex<BTreeSet<String>>,
    counter: AtomicU64,
}

/// Sends without pause; notes what was sent before, and what was acknowledged after.
pub async fn load(
    client: reqwest::Client,
    url: String,
    spans_per_request: u64,
    ledger: Arc<Ledger>,
    stop: Arc<AtomicBool>,
) {
    while !stop.load(Ordering::SeqCst) {
        let first = ledger.counter.fetch_add(spans_per_request, Ordering::SeqCst);
        let names: Vec<String> = (first..first + spans_per_request).map(|n| format!("span-{n}")).collect();
        ledger.sent.lock().extend(names.iter().cloned());
        let sending = client.post(&url).header("content-type", "application/x-protobuf").body(request(&names)).send();
        match sending.await {
            Ok(response) if response.status().is_success() => ledger.acknowledged.lock().extend(names),
            // Refused, or the victim is dead: not acknowledged.
            _ => tokio::time::sleep(Duration::from_millis(2)).await,
        }
    }
}

/// Sends one span, noted like those of [`load`]; whether it was acknowledged.
pub async fn post(ledger: &Ledger, setup: &Setup, client: &reqwest::Client, name: &str) -> bool {
    ledger.sent.lock().insert(name.to_owned());
    let is_taken = setup.post(client, name).await.status().is_success();
    if is_taken {
        ledger.acknowledged.lock().insert(name.to_owned());
    }
    is_taken
}

/// acknowledged ⊆ delivered ⊆ sent, and every payload as it was sent. Err names the first that is wrong.
pub fn check(ledger: &Ledger, taken: &Taken) -> Result<(), String> {
    let (sent, acknowledged) = (ledger.sent.lock(), ledger.acknowledged.lock());
    let missing: Vec<_> = acknowledged.iter().filter(|name| !taken.contains_key(*name)).collect();
    if !missing.is_empty() {
        return Err(format!("{} acknowledged spans are missing, such as {:?}", missing.len(), &missing[..1]));
    }
    for (name, (_, bytes)) in taken {
        if !sent.contains(name) {
            return Err(format!("{name} was delivered and never sent"));
        }
        if *bytes != prost::Message::encode_to_vec(&span(name)) {
            return Err(format!("{name} was changed on the way"));
        }
    }
    Ok(())
}

pub async fn drained(ledger: &Ledger, sink: &Sink) -> bool {
    let acknowledged = ledger.acknowledged.lock();
    let taken = sink.taken.lock();
    acknowledged.iter().all(|name| taken.contains_key(name))
}
