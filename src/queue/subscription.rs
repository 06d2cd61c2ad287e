//! One exporter's view of one queue: leases in order, redelivery of what was not settled, ranges set aside or given up.

use std::ops::Range;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{Mutex as AsyncMutex, Notify, watch};
use tokio::time::Instant;

use crate::storage::log::Position;
use crate::storage::{Durable, Fate, Fates, Log, Record, Weight};

use super::book::{Book, HELD_RANGES_MAX, Held, Turn, Why};
use super::{Lease, Left};

/// Proof that records are somebody else's from now on (back door). Made from a delivery, or from the receipt of the
/// dead-letter queue; only this moves a cursor.
#[derive(Debug)]
#[must_use]
pub struct Settled {
    /// Items of which something else became than `rest`.
    pub(super) others: Fates,
    pub(super) rest: Fate,
}

impl Settled {
    /// The destination took them.
    pub fn by_delivery() -> Settled {
        Settled { others: Fates::default(), rest: Fate::Delivered }
    }

    /// There is nothing in it: numbers never used, records lost to damage or given up meanwhile, all counted elsewhere.
    pub(super) fn of_nothing() -> Settled {
        Settled::by_delivery()
    }

    /// They are on disk as dead letters, or were given up for want of room there, as `fates` says.
    pub fn by_dead_letters(_durable: Durable, fates: Fates) -> Settled {
        Settled { others: fates, rest: Fate::DeadLettered }
    }

    /// The same of some of the items; the rest was delivered.
    pub fn in_part_by_dead_letters(_durable: Durable, fates: Fates) -> Settled {
        Settled { others: fates, rest: Fate::Delivered }
    }

    /// The destination took the batch, and not so many items of it.
    pub fn rejected(mut self, items: u64) -> Settled {
        self.others.add(Fate::Rejected, items);
        self
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

/// What is waiting and what is set aside.
#[derive(Clone, Debug, Default)]
pub struct SubscriptionStatus {
    pub leased: usize,
    pub held_ranges: usize,
    pub held_reason: Option<String>,
}

#[derive(Debug)]
pub struct Subscription {
    pub(super) log: Arc<Log>,
    pub(super) cursor: String,
    /// Whether records may be given up under it ([`Log::let_give_way`] before [`Subscription::new`]).
    pub(super) gives_way: bool,
    /// Where fresh records are read; one reader at a time.
    pub(super) reader: AsyncMutex<Position>,
    pub(super) book: Mutex<Book>,
    pub(super) changed: Notify,
}

impl Subscription {
    /// The cursor must exist in the log. What it has settled is never leased again.
    pub fn new(log: Arc<Log>, cursor: &str) -> Arc<Subscription> {
        let (low, unsettled, fresh) = match log.cursor(cursor) {
            Some(found) => {
                let fresh = found.above().iter().last().map_or(found.low(), |range| range.end);
                (found.low(), found.above().gaps(found.low()..fresh), fresh)
            }
            None => (0, Vec::new(), 0),
        };
        debug_assert!(low <= fresh);
        Arc::new(Subscription {
            gives_way: log.gives_way(cursor),
            log,
            cursor: cursor.to_owned(),
            reader: AsyncMutex::new(Position::at(fresh)),
            book: Mutex::new(Book::begin(unsettled)),
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
            leased: book.out.len(),
            held_ranges: book.held().len(),
            held_reason: book.held().last().map(|held| held.reason.message.clone()),
        }
    }

    /// Whether everything durable is settled or set aside and no lease is out.
    pub async fn is_drained(&self) -> bool {
        let position = self.reader.lock().await.sequence;
        let book = self.book.lock();
        book.out.is_empty() && !book.has_again() && position >= self.log.durable_end()
    }

    /// Waits until there is something to lease.
    pub async fn ready(&self) {
        let mut durable_end = self.log.watch_durable_end();
        loop {
            let changed = self.changed.notified();
            let next_held = self.release_due();
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
        book.has_again() || (fresh < end && book.takes_fresh())
    }

    pub(super) fn hold(&self, range: Range<u64>, reason: Why, left: Option<Left>) {
        let message = reason.message.clone();
        if self.book.lock().hold(range, reason, left) {
            tracing::error!(
                exporter = %self.cursor, queue = %self.log.id(), reason = %message,
                "so much is set aside ({HELD_RANGES_MAX} ranges) that no fresh records are taken until some of it is delivered or \
                 a dead letter: mend what refuses it, or make room among the dead letters, then `forebay queue retry`"
            );
        }
    }

    /// What was set aside for long enough is to be tried; when the next is due.
    fn release_due(&self) -> Option<Instant> {
        let mut book = self.book.lock();
        let now = Instant::now();
        book.release_held(|held| held.retry_at() <= now);
        book.held().iter().map(Held::retry_at).min()
    }

    /// The destination has taken something: what wanted only that is to be tried now.
    pub fn retry_unproven(&self) {
        self.book.lock().release_held(|held| held.reason.unproven_since.is_some());
        self.changed.notify_waiters();
    }

    /// Everything set aside is to be tried now; how many ranges that are.
    pub fn retry_held(&self) -> u64 {
        let count = self.book.lock().release_held(|_| true);
        self.changed.notify_waiters();
        count
    }

    /// By how much the backlog is beyond `queue_size`, where records may be given up.
    pub fn excess(&self) -> Option<(crate::settings::Sizer, u64)> {
        self.log.excess(&self.cursor)
    }

    /// The next records, or None when there are none just now. All of a lease's records have the same metadata.
    pub async fn lease(self: &Arc<Self>, limits: LeaseLimits) -> std::io::Result<Option<Lease>> {
        let has_fresh = self.has_fresh();
        let again = self.book.lock().next_again(has_fresh);
        if let Some((range, turn)) = again {
            // Put back if the read fails or is cancelled.
            let mut lease = Lease::new(self, range.clone(), turn.clone(), Vec::new());
            let (records, next) = match self.read(Position::at(range.start), range.end, limits).await {
                Err(error) if is_disks(&error) => {
                    let end = self.log.end_of_segment(range.start).min(range.end);
                    if end < range.end {
                        self.book.lock().put_back_first(end..range.end, turn.clone());
                    }
                    lease.cover_to(end);
                    lease.hold(unreadable(&error));
                    return Ok(None);
                }
                read => read?,
            };
            let end = next.sequence.min(range.end);
            lease.cover_to(end);
            if end < range.end {
                self.book.lock().put_back_first(end..range.end, turn);
                self.changed.notify_waiters();
            }
            if records.is_empty() {
                lease.settle(Settled::of_nothing());
                return Ok(None);
            }
            lease.fill(records);
            return Ok(Some(lease));
        }
        let mut position = self.reader.lock().await;
        if self.gives_way
            && let Some(low) =
                self.log.cursor(&self.cursor).map(|cursor| cursor.low()).filter(|low| *low > position.sequence)
        {
            *position = Position::at(low);
        }
        let end = self.log.durable_end();
        if position.sequence >= end || !self.book.lock().take_fresh() {
            return Ok(None);
        }
        let start = position.sequence;
        let (records, next) = match self.read(*position, end, limits).await {
            Err(error) if is_disks(&error) => {
                // What lies behind is not kept from its destination by what cannot be read.
                *position = Position::at(self.log.end_of_segment(start));
                Lease::new(self, start..position.sequence, Turn::First, Vec::new()).hold(unreadable(&error));
                return Ok(None);
            }
            read => read?,
        };
        *position = next;
        let lease = Lease::new(self, start..next.sequence, Turn::First, records);
        drop(position);
        if lease.records().is_empty() {
            // Numbers never used, or records lost to damage, which the log has reported.
            lease.settle(Settled::of_nothing());
            return Ok(None);
        }
        Ok(Some(lease))
    }

    /// Whether somebody may lease fresh records now. Who is reading them at this moment leaves some, as a rule.
    fn has_fresh(&self) -> bool {
        let is_behind = self.reader.try_lock().map_or(true, |position| position.sequence < self.log.durable_end());
        is_behind && self.book.lock().takes_fresh()
    }

    /// Nothing fresh can be leased, and what is there and may not, or intake for such as this, waits for what was set aside.
    pub(super) fn is_starved(&self, weight: Weight) -> bool {
        let is_behind = self.reader.try_lock().is_ok_and(|position| position.sequence < self.log.durable_end());
        !self.has_fresh() && (is_behind || self.log.reserve(weight).is_err())
    }

    /// Of each of up to `count` settled ranges, evenly chosen, the first record, where the disk still has it.
    pub(super) async fn settled_samples(&self, count: usize, limits: LeaseLimits) -> std::io::Result<Vec<Record>> {
        let settled: Vec<Range<u64>> =
            self.log.cursor(&self.cursor).map(|cursor| cursor.above().iter().collect()).unwrap_or_default();
        let step = settled.len().div_ceil(count.max(1)).max(1);
        let mut samples = Vec::new();
        for range in settled.into_iter().step_by(step) {
            let one = LeaseLimits { records_max: 1, ..limits };
            let (records, _) = self.read(Position::at(range.start), range.end, one).await?;
            samples.extend(records.into_iter().filter(|record| range.contains(&record.sequence)));
        }
        Ok(samples)
    }

    /// Records from `from` up to `until`, cut where the metadata changes, and the position behind them.
    pub(super) async fn read(
        &self,
        from: Position,
        until: u64,
        limits: LeaseLimits,
    ) -> std::io::Result<(Vec<Record>, Position)> {
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

/// The disk failed, not this process.
pub(super) fn is_disks(error: &std::io::Error) -> bool {
    error.raw_os_error().is_some()
}

fn unreadable(error: &std::io::Error) -> Why {
    tracing::error!(
        %error,
        "records cannot be read from the disk and are set aside; later ones go on. If the disk does not recover, stop and run \
         `forebay queue repair`"
    );
    Why::of(format!("it cannot be read: {error}"))
}

pub(super) fn overlap(one: &Range<u64>, other: &Range<u64>) -> bool {
    one.start < other.end && other.start < one.end
}
