//! Gauges that are read off the running parts before each scrape.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

use crate::dedup::Dedup;
use crate::dlq::DeadLetters;
use crate::queue::Budget;
use crate::storage::log::{CursorStatus, Status};
use crate::storage::{Fate, Store};
use crate::telemetry::{self, BacklogFigures};

use super::observe::{CAPACITY_PROBE_BYTES, Observed};

/// The rate at which the queues grow is taken over this time.
const GROWTH_WINDOW: Duration = Duration::from_secs(300);
/// Scrapes more frequent than this are no new reading.
const READING_INTERVAL_MIN: Duration = Duration::from_secs(1);

struct Sources {
    store: Arc<Store>,
    budget: Budget,
    observed: Vec<Observed>,
    dedup: Option<Arc<Dedup>>,
    dead_letters: Arc<DeadLetters>,
    growth: Growth,
    /// By queue and cursor: the oldest record that is not settled, and when it was received (ns since 1970).
    oldest: HashMap<(String, String), (u64, u64)>,
}

#[derive(Clone, Default)]
pub struct Figures(Arc<Mutex<Option<Sources>>>);

impl Figures {
    pub fn set(
        &self,
        store: Arc<Store>,
        budget: Budget,
        observed: Vec<Observed>,
        dead_letters: Arc<DeadLetters>,
        dedup: Option<Arc<Dedup>>,
    ) {
        // A counter that appears with its first loss shows no increase.
        store.queues().iter().for_each(|log| telemetry::storage_damaged(log.id(), 0, 0));
        let (growth, oldest) = (Growth::default(), HashMap::new());
        *self.0.lock() = Some(Sources { store, budget, observed, dead_letters, dedup, growth, oldest });
    }

    /// May read the disk.
    pub fn refresh(&self) {
        telemetry::observe_process();
        if let Some(sources) = &mut *self.0.lock() {
            sources.refresh();
        }
    }
}

impl Sources {
    fn refresh(&mut self) {
        let logs = self.store.queues();
        let statuses: Vec<(&str, Status)> = logs.iter().map(|log| (log.id(), log.status())).collect();
        let waiting: u64 = statuses.iter().map(|(_, status)| most_waiting_bytes(status)).sum();
        let space = self.store.space();
        let (allocated, capacity) = (space.allocated_bytes(), space.max_bytes());
        let growing = self.growth.time_to(Instant::now(), waiting, space.room_bytes());
        let is_full = logs.iter().any(|log| log.is_full_for(CAPACITY_PROBE_BYTES));
        // A full queue does not grow.
        let time_to_full = if is_full { Some(Duration::ZERO) } else { growing };
        telemetry::storage_space(allocated, capacity, time_to_full);
        let shelf = self.dead_letters.shelf();
        for (kind, log) in [("parked", shelf.parked()), ("invalid", shelf.ring())] {
            let letters = log.status();
            telemetry::dead_letters(kind, letters.letters, letters.items, letters.allocated_bytes, letters.max_bytes);
        }
        telemetry::memory(self.budget.used_bytes(), self.budget.limit_bytes());
        if let Some(dedup) = &self.dedup {
            telemetry::dedup_disk(dedup.disk_bytes());
            for figures in dedup.figures() {
                let seen = figures.seen;
                telemetry::dedup(figures.queue, figures.level, seen.keys, seen.bytes, seen.effective_window);
            }
        }
        for Observed { signal, subscription, destination } in &self.observed {
            let (queue, name) = (subscription.queue(), subscription.cursor());
            let status = statuses.iter().find(|(id, _)| *id == queue).map(|(_, status)| status);
            let cursor = status.and_then(|status| status.cursors.iter().find(|cursor| cursor.name == name));
            let backlog = cursor.map(|cursor| cursor.backlog).unwrap_or_default();
            let limit = cursor.and_then(|cursor| cursor.limit);
            let key = (queue.to_owned(), name.to_owned());
            let log = logs.iter().find(|log| log.id() == queue);
            let oldest = log.and_then(|log| log.oldest_unsettled(name, self.oldest.get(&key).copied()));
            let oldest_age = oldest.map_or(Duration::ZERO, |(_, received_unix_ns)| age(received_unix_ns));
            match oldest {
                Some(found) => self.oldest.insert(key, found),
                None => self.oldest.remove(&key),
            };
            let figures = BacklogFigures {
                records: backlog.records,
                items: backlog.items,
                bytes: backlog.bytes,
                size: limit.map_or(backlog.bytes, |limit| backlog.measure(limit.sizer)),
                capacity: limit.map_or(capacity, |limit| limit.size),
                oldest_age,
                held_ranges: subscription.status().held_ranges as u64,
                retry_delay: destination.clock.status().delay,
            };
            telemetry::backlog(queue, &destination.id, signal, &figures);
            if let Some(cursor) = cursor {
                let (ledger, states) = (cursor.ledger, states(cursor));
                telemetry::account(queue, &destination.id, signal, ledger.accepted, ledger.rebased, &states);
            }
        }
    }
}

/// What became of all items that one exporter's queue accepted: state, reason, items.
fn states(cursor: &CursorStatus) -> Vec<(&'static str, &'static str, u64)> {
    let mut states = vec![("queued", "", cursor.backlog.items)];
    states.extend(Fate::ALL.map(|fate| {
        let (state, reason) = fate.state();
        (state, reason, cursor.ledger.fates.get(fate))
    }));
    states
}

/// A queue grows as its slowest exporter falls behind.
fn most_waiting_bytes(status: &Status) -> u64 {
    status.cursors.iter().map(|cursor| cursor.backlog.bytes).max().unwrap_or(0)
}

/// A clock that was set back makes nothing younger than new.
fn age(received_unix_ns: u64) -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now.saturating_sub(Duration::from_nanos(received_unix_ns))
}

/// How fast the queues grow.
#[derive(Default)]
struct Growth {
    readings: VecDeque<(Instant, u64)>,
}

impl Growth {
    /// How long `room_bytes` last at the rate of the last minutes; None when nothing grows, or is known yet.
    fn time_to(&mut self, now: Instant, waiting_bytes: u64, room_bytes: u64) -> Option<Duration> {
        if self.readings.back().is_none_or(|(at, _)| now.duration_since(*at) >= READING_INTERVAL_MIN) {
            self.readings.push_back((now, waiting_bytes));
        }
        while self.readings.len() > 2 && now.duration_since(self.readings[1].0) >= GROWTH_WINDOW {
            self.readings.pop_front();
        }
        let (since, first_bytes) = *self.readings.front()?;
        let grown_bytes = waiting_bytes.checked_sub(first_bytes).filter(|bytes| *bytes > 0)?;
        let seconds = now.duration_since(since).as_secs_f64();
        Duration::try_from_secs_f64(room_bytes as f64 * seconds / grown_bytes as f64).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_to_full_follows_the_rate_of_the_last_minutes() {
        let (mut growth, start) = (Growth::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(growth.time_to(at(0), 1000, 9000), None, "one reading is no rate");
        assert_eq!(growth.time_to(at(10), 2000, 8000), Some(Duration::from_secs(80)));
        assert_eq!(growth.time_to(at(20), 1000, 9000), None, "what has drained does not grow");
        // The first readings have left the window.
        for minute in 1..=20 {
            growth.time_to(at(60 * minute), 60_000 * minute, 0);
        }
        assert!(growth.readings.len() <= 8, "{}", growth.readings.len());
        assert_eq!(growth.time_to(at(1200), 1_200_000, 50_000), Some(Duration::from_secs(50)));
    }

    #[test]
    fn frequent_scrapes_keep_few_readings() {
        let (mut growth, start) = (Growth::default(), Instant::now());
        for n in 0..10_000u64 {
            growth.time_to(start + Duration::from_millis(n * 100), n, 1);
        }
        assert!(growth.readings.len() as u64 <= GROWTH_WINDOW.as_secs() + 2, "{}", growth.readings.len());
    }
}
