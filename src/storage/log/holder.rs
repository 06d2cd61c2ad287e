//! Who holds the room that a request is refused for: of all queues, not only of the one that is asked.

use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::Inner;
use crate::storage::space::{Holder, Holding};

/// The logs of one store.
#[derive(Default)]
pub struct Peers(Mutex<Vec<Weak<Inner>>>);

impl Peers {
    pub(super) fn join(&self, log: &Arc<Inner>) {
        let mut peers = self.0.lock();
        peers.retain(|peer| peer.strong_count() > 0);
        peers.push(Arc::downgrade(log));
    }

    /// A copy: who looks at them takes locks of theirs.
    fn all(&self) -> Vec<Arc<Inner>> {
        self.0.lock().iter().filter_map(Weak::upgrade).collect()
    }
}

struct Hold {
    gives_way: bool,
    bytes: u64,
    exporter: String,
    queue: String,
    records_behind: u64,
}

/// The cursor of this log for which the most waits; those that give way come last.
fn hold(log: &Inner) -> Option<Hold> {
    let giving_way = log.giving_way();
    let state = log.state.lock();
    let behind = state.cursors.iter().filter(|(_, cursor)| cursor.low() < state.durable_end);
    let holds = behind.map(|(name, cursor)| Hold {
        gives_way: giving_way.contains(name),
        bytes: state.backlogs.get(name).map_or(0, |backlog| backlog.bytes),
        exporter: name.clone(),
        queue: log.id.clone(),
        records_behind: state.durable_end - cursor.low(),
    });
    holds.max_by_key(|hold| (!hold.gives_way, hold.bytes))
}

/// The one that holds the most; those that give way come last.
pub(super) fn find(log: &Inner) -> Holder {
    if log.shared.segment_bytes > log.shared.space.reachable_bytes() {
        return Holder::Never;
    }
    let peers = log.shared.peers.all();
    match peers.iter().filter_map(|peer| hold(peer)).max_by_key(|hold| (!hold.gives_way, hold.bytes)) {
        Some(Hold { gives_way, exporter, queue, records_behind, .. }) => {
            Holder::Exporter(Box::new(Holding { exporter, queue, records_behind, gives_way }))
        }
        None => Holder::Nobody,
    }
}
