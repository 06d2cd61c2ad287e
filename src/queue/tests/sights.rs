//! What happened in a run, to see that it was interesting.

use std::collections::BTreeMap;

/// What a run must have met to be worth anything.
const SIGHTS: [&str; 15] = [
    "cuts",
    "kills",
    "cuts while starting",
    "records",
    "refusals",
    "redelivered",
    "reclaimed",
    "recycled",
    "torn tails",
    "scans",
    "catalogues lost",
    "cursors lost",
    "failures",
    "refused starts",
    "unacknowledged kept",
];

/// How often each sight was met.
#[derive(Clone, Debug, Default)]
pub struct Sights(BTreeMap<&'static str, u64>);

impl Sights {
    pub fn see(&mut self, sight: &'static str, times: u64) {
        debug_assert!(SIGHTS.contains(&sight), "{sight}");
        *self.0.entry(sight).or_default() += times;
    }

    pub fn count(&self, sight: &str) -> u64 {
        self.0.get(sight).copied().unwrap_or(0)
    }

    pub fn add(&mut self, other: &Sights) {
        for (sight, times) in &other.0 {
            self.see(sight, *times);
        }
    }

    pub fn never_met(&self) -> Vec<&'static str> {
        SIGHTS.into_iter().filter(|sight| self.count(sight) == 0).collect()
    }
}
