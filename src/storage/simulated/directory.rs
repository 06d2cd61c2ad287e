//! Names in a directory, and those changes to them that a power cut may undo.

use std::collections::BTreeMap;

use fastrand::Rng;

/// Names set or taken away at once.
type Change = Vec<(String, Option<u64>)>;

#[derive(Default)]
pub(super) struct Directory {
    pub now: BTreeMap<String, u64>,
    durable: BTreeMap<String, u64>,
    pending: Vec<Change>,
}

fn apply(names: &mut BTreeMap<String, u64>, change: &Change) {
    for (name, node) in change {
        match node {
            Some(node) => names.insert(name.clone(), *node),
            None => names.remove(name),
        };
    }
}

impl Directory {
    pub fn change(&mut self, change: Change) {
        apply(&mut self.now, &change);
        self.pending.push(change);
    }

    pub fn sync(&mut self) {
        self.durable.clone_from(&self.now);
        self.pending.clear();
    }

    /// A journal keeps the first changes; other file systems keep any.
    pub fn lose_power(&mut self, rng: &mut Rng) {
        let has_journal = rng.bool();
        let kept = rng.usize(..=self.pending.len());
        for (index, change) in self.pending.drain(..).enumerate() {
            if if has_journal { index < kept } else { rng.bool() } {
                apply(&mut self.durable, &change);
            }
        }
        self.now.clone_from(&self.durable);
    }
}
