//! One exporter's view of one queue: leases in order, redelivery of what was not settled, ranges set aside.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Mutex as AsyncMutex, Notify, watch};
use tokio::time::Instant;

use crate::storage::log::Position;
use crate::storage::{Log, Record, Weight};

/// Ranges that may be set aside at once; then the exporter stops taking fresh records.
pub const HELD_RANGES_MAX: usize = 256;
/// How long a range that was set aside waits for its next try.
pub const HELD_RETRY_AFTER: Duration = Duration::from_secs(300);

/// Proof that records are somebody else's from now on (back door). Made from a delivery; only this moves a cursor.
#[derive(Debug)]
#[must_use]
pub struct Settled {
    _sealed: (),
}

impl Settled {
    /// The destination took them.
    pub fn by_delivery() -> Settled {
        Settled { _sealed: () }
    }
}

/// Bounds of one lease. At least one record is leased whatever its size.
#[derive(Clone, Copy, Debug)]
pub struct LeaseLimits {
    /// Inflated bytes.
    pub bytes_max: u64,
    pub records_max: usize,
    pub items_max: u64,
}

#[derive(Debug)]
struct Held {
    range: Range<u64>,
    retry_at: Instant,
    reason: String,
}

#[derive(Debug, Default)]
struct Book {
    /// Ranges whose lease came back unsettled, in the order they came back.
    redeliver: VecDeque<Range<u64>>,
    held: Vec<Held>,
    /// Leases out at the moment.
    leased: usize,
}

/// What is waiting and what is set aside.
#[derive(Clone, Debug, Default)]
pub struct SubscriptionStatus {
    pub leased: usize,
    pub held_ranges: usize,
    pub held_reason: Option<String>,
}

#[derive(Debug)]
pub struct Subscription {
    log: Arc<Log>,
    cursor: String,
    /// Where fresh records are read; one reader at a time.
    reader: AsyncMutex<Position>,
    book: Mutex<Book>,
    changed: Notify,
}

impl Subscription {
    /// The cursor must exist in the log. What it has settled is never leased again.
    pub fn new(log: Arc<Log>, cursor: &str) -> Arc<Subscription> {
        let (low, redeliver, fresh) = match log.cursor(cursor) {
            Some(found) => {
                let fresh = found.above().iter().last().map_or(found.low(), |range| range.end);
                (found.low(), found.above().gaps(found.low()..fresh), fresh)
            }
            None => (0, Vec::new(), 0),
        };
        debug_assert!(low <= fresh);
        Arc::new(Subscription {
            log,
            cursor: cursor.to_owned(),
            reader: AsyncMutex::new(Position::at(fresh)),
            book: Mutex::new(Book { redeliver: redeliver.into(), ..Book::default() }),
            changed: Notify::new(),
        })
    }

    pub fn queue(&self) -> &str {
        self.log.id()
    }

    pub fn cursor(&self) -> &str {
        &self.cursor
    }

    pub fn status(&self) -> SubscriptionStatus {
        let book = self.book.lock();
        SubscriptionStatus {
            leased: book.leased,
            held_ranges: book.held.len(),
            held_reason: book.held.last().map(|held| held.reason.clone()),
        }
    }

    /// Whether everything durable is settled or set aside and no lease is out.
    pub async fn is_drained(&self) -> bool {
        let position = self.reader.lock().await.sequence;
        let book = self.book.lock();
        book.leased == 0 && book.redeliver.is_empty() && position >= self.log.durable_end()
    }

    /// Waits until there is something to lease.
    pub async fn ready(&self) {
        let mut durable_end = self.log.watch_durable_end();
        loop {
            let changed = self.changed.notified();
            let next_held = self.release_held();
            if self.has_work(&mut durable_end).await {
                return;
            }
            let held = async {
                match next_held {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = changed => {}
                result = durable_end.changed() => {
                    if result.is_err() {
                        // The log is closed; nothing will come any more.
                        std::future::pending::<()>().await;
                    }
                }
                () = held => {}
            }
        }
    }

    async fn has_work(&self, durable_end: &mut watch::Receiver<u64>) -> bool {
        let fresh = self.reader.lock().await.sequence;
        let end = *durable_end.borrow_and_update();
        let book = self.book.lock();
        !book.redeliver.is_empty() || (fresh < end && book.held.len() < HELD_RANGES_MAX)
    }

    /// Moves ranges whose time has come back among those to redeliver; returns when the next one is due.
    fn release_held(&self) -> Option<Instant> {
        let mut book = self.book.lock();
        let now = Instant::now();
        let (due, later): (Vec<_>, Vec<_>) = book.held.drain(..).partition(|held| held.retry_at <= now);
        book.redeliver.extend(due.into_iter().map(|held| held.range));
        book.held = later;
        book.held.iter().map(|held| held.retry_at).min()
    }

    /// Everything set aside is to be tried now.
    pub fn retry_held(&self) {
        let mut book = self.book.lock();
        let held = std::mem::take(&mut book.held);
        book.redeliver.extend(held.into_iter().map(|held| held.range));
        drop(book);
        self.changed.notify_waiters();
    }

    /// The next records, or None when there are none just now. All of a lease's records have the same metadata.
    pub async fn lease(self: &Arc<Self>, limits: LeaseLimits) -> std::io::Result<Option<Lease>> {
        let again = self.book.lock().redeliver.pop_front();
        if let Some(range) = again {
            // Put back if the read fails or is cancelled.
            let mut lease = Lease::new(self, range.clone(), Vec::new());
            let (records, next) = self.read(Position::at(range.start), range.end, limits).await?;
            let end = next.sequence.min(range.end);
            lease.covers.end = end;
            if end < range.end {
                self.book.lock().redeliver.push_front(end..range.end);
                self.changed.notify_waiters();
            }
            if records.is_empty() {
                lease.settle(Settled { _sealed: () });
                return Ok(None);
            }
            lease.weight = weight_of(&records);
            lease.records = records;
            return Ok(Some(lease));
        }
        let mut position = self.reader.lock().await;
        if self.book.lock().held.len() >= HELD_RANGES_MAX {
            return Ok(None);
        }
        let end = self.log.durable_end();
        if position.sequence >= end {
            return Ok(None);
        }
        let start = position.sequence;
        let (records, next) = self.read(*position, end, limits).await?;
        *position = next;
        let lease = Lease::new(self, start..next.sequence, records);
        drop(position);
        if lease.records.is_empty() {
            // Numbers never used, or records lost to damage, which the log has reported.
            lease.settle(Settled { _sealed: () });
            return Ok(None);
        }
        Ok(Some(lease))
    }

    /// Records from `from` up to `until`, cut where the metadata changes, and the position behind them.
    async fn read(&self, from: Position, until: u64, limits: LeaseLimits) -> std::io::Result<(Vec<Record>, Position)> {
        let chunk = match self.log.read_tail(from, limits.bytes_max, limits.records_max) {
            Some(chunk) => chunk,
            None => {
                let log = Arc::clone(&self.log);
                tokio::task::spawn_blocking(move || log.read_file(from, limits.bytes_max, limits.records_max))
                    .await
                    .map_err(std::io::Error::other)??
            }
        };
        let mut records = chunk.records;
        let mut next = chunk.next;
        let mut items = 0;
        let cut = records.iter().enumerate().position(|(index, record)| {
            items += u64::from(record.items);
            record.sequence >= until
                || (index > 0 && (record.metadata != records[0].metadata || items > limits.items_max))
        });
        if let Some(cut) = cut {
            // Up to the last record kept; what lies between the two was never used or is lost.
            next = Position::at(records[cut].sequence);
            records.truncate(cut);
        }
        Ok((records, next))
    }
}

fn weight_of(records: &[Record]) -> Weight {
    records.iter().fold(Weight::default(), |sum, record| sum.plus(&record.weight()))
}

/// Records on their way to a destination. Dropping it redelivers them.
#[derive(Debug)]
#[must_use = "dropping a lease redelivers its records"]
pub struct Lease {
    subscription: Arc<Subscription>,
    covers: Range<u64>,
    records: Vec<Record>,
    /// Of all records in `covers`, also while they are shed.
    weight: Weight,
    open: bool,
}

impl Lease {
    fn new(subscription: &Arc<Subscription>, covers: Range<u64>, records: Vec<Record>) -> Lease {
        subscription.book.lock().leased += 1;
        let weight = weight_of(&records);
        Lease { subscription: Arc::clone(subscription), covers, records, weight, open: true }
    }

    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// Sequences that this lease answers for.
    pub fn covers(&self) -> Range<u64> {
        self.covers.clone()
    }

    /// Adds what comes behind this lease, waiting for it; false when nothing can be added any more (limits reached,
    /// other metadata, or somebody else has gone on reading).
    pub async fn extend(&mut self, limits: LeaseLimits) -> std::io::Result<bool> {
        let mut durable_end = self.subscription.log.watch_durable_end();
        let subscription = Arc::clone(&self.subscription);
        loop {
            let end = *durable_end.borrow_and_update();
            let mut position = subscription.reader.lock().await;
            if position.sequence != self.covers.end {
                return Ok(false);
            }
            if position.sequence < end {
                let (mut records, mut next) = subscription.read(*position, end, limits).await?;
                let first = self.records.first();
                let mut bytes: u64 = self.records.iter().map(|record| u64::from(record.raw_len)).sum();
                let mut items: u64 = self.records.iter().map(|record| u64::from(record.items)).sum();
                let fits = |record: &Record| {
                    bytes += u64::from(record.raw_len);
                    items += u64::from(record.items);
                    first.is_none_or(|first| first.metadata == record.metadata)
                        && bytes <= limits.bytes_max
                        && items <= limits.items_max
                };
                let fitting = records.iter().map(fits).take_while(|fits| *fits).count();
                let all = fitting == records.len() && self.records.len() + fitting < limits.records_max;
                if fitting < records.len() {
                    next = Position::at(records[fitting].sequence);
                    records.truncate(fitting);
                }
                *position = next;
                self.covers.end = next.sequence;
                self.weight = self.weight.plus(&weight_of(&records));
                self.records.extend(records);
                return Ok(all);
            }
            drop(position);
            if durable_end.changed().await.is_err() {
                return Ok(false);
            }
        }
    }

    /// Gives the memory back while the destination is waited for; [`Lease::reload`] reads the records again.
    pub fn shed(&mut self) {
        self.records = Vec::new();
    }

    /// Reads the records again after [`Lease::shed`].
    pub async fn reload(&mut self) -> std::io::Result<()> {
        let limits = LeaseLimits { bytes_max: u64::MAX, records_max: usize::MAX, items_max: u64::MAX };
        let mut position = Position::at(self.covers.start);
        let mut records = Vec::new();
        while position.sequence < self.covers.end {
            let (more, next) = self.subscription.read(position, self.covers.end, limits).await?;
            records.extend(more);
            position = next;
        }
        self.records = records;
        Ok(())
    }

    /// The records are somebody else's now.
    pub fn settle(mut self, _settled: Settled) {
        self.open = false;
        self.subscription.log.settle_weighed(&self.subscription.cursor, self.covers.clone(), self.weight);
        self.finish();
    }

    /// Sets the records aside; later ones go on. They are tried again after [`HELD_RETRY_AFTER`] and after a restart.
    pub fn hold(mut self, reason: String) {
        self.open = false;
        self.subscription.book.lock().held.push(Held {
            range: self.covers.clone(),
            retry_at: Instant::now() + HELD_RETRY_AFTER,
            reason,
        });
        self.finish();
    }

    fn finish(&self) {
        self.subscription.book.lock().leased -= 1;
        self.subscription.changed.notify_waiters();
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.open {
            self.subscription.book.lock().redeliver.push_back(self.covers.clone());
            self.finish();
        }
    }
}
